//! `tidegate perf`: load on a namespace of any NVMe/TCP or NVMe/RDMA target, and what came of it.
//!
//! The main thread holds the controller (keep alive, progress line, signals); each job is a thread with connections of
//! its own (`job`). What is done is `workload`'s to say, what a verified block looks like `pattern`'s, which generation it must
//! be `ledger`'s, what became of a job `outcome`'s, and what is printed `report`'s and `plot`'s.

mod cost;
mod job;
mod ledger;
mod outcome;
mod pattern;
mod plot;
mod report;
mod workload;

use crate::config::quantity::{Size, Time};
use crate::connection::{ConnectionArgs, some_seconds};
use crate::failure::{self, WrongInvocation};
use crate::output;
use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use host::{Controller, HostError};
use indicatif::{ProgressBar, ProgressStyle};
use job::{Job, Plan, Shared};
use ledger::{Extent, Ledger};
use nvme::{Nqn, Status};
use outcome::Outcome;
use report::Report;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use workload::{Mode, Workload};

/// How often the main thread looks at signals and the progress line.
const TICK: Duration = Duration::from_millis(100);
/// Namespaces named where the one asked for is not there.
const NAMESPACES_SHOWN: usize = 16;
/// How long a run lasts if nothing says so.
const RUNTIME: Duration = Duration::from_secs(10);

/// How `--verify` recognises a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Verify {
    /// A pattern with run, address, generation and CRC-32C in every 64 bytes
    Crc32c,
}

/// Measures a namespace, or writes and verifies it. Writing modes destroy what is in the range.
#[derive(Debug, Clone, Args)]
pub(crate) struct PerfArgs {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// NQN of the subsystem
    #[arg(short = 'n', long = "nqn", visible_alias = "subsysnqn", value_name = "NQN", value_parser = Nqn::of_peer, help_heading = "Connection")]
    nqn: Nqn,

    /// Namespace
    #[arg(long, value_name = "NSID", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=0xffff_fffe), help_heading = "Connection")]
    nsid: u32,

    /// What to do
    #[arg(long, value_enum, default_value = "read")]
    rw: Mode,

    /// Bytes of an I/O, for example 4k or 128KiB
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    bs: Size,

    /// Commands outstanding on each connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4095))]
    iodepth: u16,

    /// Threads; the range is divided among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    numjobs: u16,

    /// Connections (I/O queues) of each job
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,

    /// Percentage of reads in rw and randrw
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,

    /// How long to run, in seconds or with a unit [default: 10s, or until --number-ios are done, or one pass with --verify]
    #[arg(long, value_name = "TIME", value_parser = some_seconds)]
    runtime: Option<Duration>,

    /// Do so many I/Os per job at most
    #[arg(long, alias = "number_ios", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    number_ios: Option<u64>,

    /// First byte of the range used
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: Size,

    /// Bytes of the range used [default: all from the offset on]
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,

    /// Open loop: begin so many I/Os per second, all jobs together, whether or not earlier ones have ended; latency counts from
    /// when an I/O should have begun
    #[arg(long, alias = "rate_iops", value_name = "IOPS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Write blocks that can be recognised, check all that is read, and read everything written back at the end
    #[arg(long, value_enum, value_name = "METHOD", num_args = 0..=1, default_missing_value = "crc32c")]
    verify: Option<Verify>,

    /// Keep what was sent and what was acknowledged in this file; if it is there, continue from it. With a reading mode:
    /// only check what an earlier run wrote
    #[arg(long, value_name = "FILE")]
    verify_state: Option<PathBuf>,

    /// Write with force unit access: data is on the medium when the write ends
    #[arg(long)]
    fua: bool,

    /// Seed of the sequence of operations
    #[arg(long, alias = "randseed", value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Spin so long for an answer before sleeping
    #[arg(long, value_name = "TIME", default_value = "200us")]
    spin: Time,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Draw the latency distribution
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// An error that the user mends by calling with other arguments.
macro_rules! wrong {
    ($($text:tt)*) => { WrongInvocation(format!($($text)*)) };
}

/// What the arguments come to on this namespace.
#[derive(Debug)]
struct Layout {
    block_bytes: u64,
    chunk_blocks: u32,
    first_lba: u64,
    chunks: u64,
    namespace_bytes: u64,
}

/// Runs it and prints the report. The error is a failure to measure, or that something was found wrong.
pub(crate) fn run(args: &PerfArgs) -> anyhow::Result<()> {
    let (report, result) = output::told(measure(args), args.json)?;
    result.and(output::print(&report, args.json))
}

/// The report, and what it says of success. The error is that there are no figures.
fn measure(args: &PerfArgs) -> anyhow::Result<(Report, anyhow::Result<()>)> {
    check(args)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The first one ends the run with its report, the second one at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("signal handlers")?;
    }

    let mut controller = Controller::connect(args.connection.options(&args.nqn)?)?;
    let layout = lay_out(args, &mut controller)?;
    let ledger = open_ledger(args, &layout)?;
    // As `check` has seen, that is no more than a controller can have.
    let connections = args.numjobs.saturating_mul(args.connections);
    let granted = controller.request_queues(connections)?;
    ensure!(
        granted >= connections,
        "{} gives this host {granted} I/O queues, not {connections}: lower --numjobs or --connections",
        controller.address()
    );

    let shared = Shared::new();
    let jobs = make_jobs(args, &layout, ledger.as_ref(), &mut controller, &shared)?;
    let (outcomes, watch_error) = watch(args, &mut controller, &shared, jobs, &stop)?;
    let mut report = Report::new(args, &layout, &controller, &outcomes)?;
    let failed = outcomes.into_iter().find_map(|outcome| outcome.error).or(watch_error);
    let run = failed.map_or(Ok(()), Err);
    if run.is_ok() {
        // The figures stand whether or not the controller shuts down in order.
        let _ = controller.shutdown();
    }
    let drawn = args.plot.as_deref().map_or(Ok(()), |path| plot::draw(path, &report));
    let result = run.and_then(|()| report.verdict()).and(drawn);
    report.error = result.as_ref().err().map(failure::line);
    Ok((report, result))
}

/// Refuses what no target could make right.
fn check(args: &PerfArgs) -> anyhow::Result<()> {
    let verifies = args.verify.is_some() || args.verify_state.is_some();
    let rw = args.rw.name();
    ensure!(!verifies || !args.rw.trims(), wrong!("--verify has nothing to check with --rw {rw}"));
    let queues = u32::from(args.numjobs) * u32::from(args.connections);
    ensure!(
        u16::try_from(queues).is_ok(),
        wrong!(
            "--numjobs {} of --connections {} need {queues} I/O queues, a controller has at most 65535: lower one of them",
            args.numjobs,
            args.connections
        )
    );
    let bytes = args.bs.0;
    ensure!(
        bytes > 0 && bytes.is_multiple_of(512) && u32::try_from(bytes).is_ok(),
        wrong!(
            "--bs {bytes} must be a multiple of the block size, at least 512 bytes, and less than 4 GiB"
        )
    );
    ensure!(
        args.size.is_none_or(|size| size.0 >= bytes),
        wrong!("--size must hold at least one I/O of --bs {bytes} bytes")
    );
    ensure!(
        args.verify_state.is_some() || !verifies || !args.rw.only_reads(),
        wrong!(
            "--verify has nothing to check: --rw {rw} writes nothing, and no --verify-state tells what an earlier run wrote"
        )
    );
    if let Some(path) = &args.plot {
        ensure!(
            !verifies || !args.rw.only_reads(),
            wrong!("--plot has nothing to draw: --rw {rw} with --verify-state only checks")
        );
        plot::check(path).map_err(|error| {
            wrong!(
                "cannot write --plot {}, name a file in a folder that you may write to: {error}",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Fits sizes to the namespace.
fn lay_out(args: &PerfArgs, controller: &mut Controller) -> anyhow::Result<Layout> {
    let namespace = match controller.namespace(args.nsid) {
        // An NSID beyond those that it can have; of one that it could have it says that it has no blocks.
        Err(HostError::Command { status, .. }) if status.same_code(Status::INVALID_NAMESPACE) => {
            return Err(no_namespace(args, controller));
        }
        result => result?,
    };
    let blocks = namespace.nsze.get();
    let Some(format) = namespace.format().filter(|_| blocks > 0) else {
        return Err(no_namespace(args, controller));
    };
    let block_bytes = format.block_size().context("the namespace has no usable block size")?;
    ensure!(
        format.ms.get() == 0,
        "namespace {} carries metadata with its blocks, which perf cannot use",
        args.nsid
    );
    let block_bytes = u64::from(block_bytes);
    let bytes = args.bs.0;
    ensure!(
        bytes > 0 && bytes.is_multiple_of(block_bytes) && bytes / block_bytes <= 65_536,
        wrong!(
            "--bs {bytes} must be a multiple of the block size, {block_bytes} bytes, and at most 65536 of them"
        )
    );
    if let Some(most) = controller.max_transfer() {
        ensure!(
            bytes <= most,
            wrong!("--bs {bytes} is more than the controller takes: {most} bytes")
        );
    }
    let namespace_bytes = blocks.checked_mul(block_bytes).context("namespace size")?;
    let offset = args.offset.0;
    ensure!(
        offset.is_multiple_of(block_bytes) && offset < namespace_bytes,
        wrong!(
            "--offset {offset} must be a multiple of {block_bytes} below the namespace's {namespace_bytes} bytes"
        )
    );
    let size = args.size.map_or(namespace_bytes - offset, |size| size.0);
    ensure!(
        size <= namespace_bytes - offset,
        wrong!(
            "--size {size} from --offset {offset} ends beyond the namespace's {namespace_bytes} bytes"
        )
    );
    let chunks = size / bytes;
    ensure!(
        chunks >= u64::from(args.numjobs),
        wrong!(
            "the range of {size} bytes holds {chunks} I/Os of {bytes} bytes, less than one for each job: raise --size or lower --bs"
        )
    );
    Ok(Layout {
        block_bytes,
        chunk_blocks: u32::try_from(bytes / block_bytes)?,
        first_lba: offset / block_bytes,
        chunks,
        namespace_bytes,
    })
}

/// That there is no such namespace, and which there are.
fn no_namespace(args: &PerfArgs, controller: &mut Controller) -> anyhow::Error {
    let (nqn, nsid) = (&args.nqn, args.nsid);
    let all = match controller.namespaces() {
        Ok(all) => all,
        Err(error) => return error.into(),
    };
    if all.is_empty() {
        return anyhow!("{nqn} has no namespace {nsid}, nor any other, for this host");
    }
    let mut list: Vec<_> = all.iter().take(NAMESPACES_SHOWN).map(u32::to_string).collect();
    if all.len() > NAMESPACES_SHOWN {
        list.push("...".to_owned());
    }
    anyhow!(
        "{nqn} has no namespace {nsid} for this host: give with --nsid one that it has ({})",
        list.join(", ")
    )
}

fn open_ledger(args: &PerfArgs, layout: &Layout) -> anyhow::Result<Option<Ledger>> {
    if args.verify.is_none() && args.verify_state.is_none() {
        return Ok(None);
    }
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let extent = Extent {
        // Unlike any other run's: blocks of an earlier one must not pass for this one's.
        run: pattern::mix(u64::try_from(clock.as_nanos() & u128::from(u64::MAX))?)
            ^ u64::from(std::process::id()),
        nsid: args.nsid,
        offset: args.offset.0,
        chunk_bytes: args.bs.0,
        chunks: layout.chunks,
    };
    let ledger = Ledger::open(extent, args.verify_state.as_deref())?;
    ensure!(
        !(args.rw.only_reads() && ledger.is_empty()),
        wrong!(
            "--verify-state has nothing to check: --rw {} writes nothing, and no earlier run wrote what the file tells of",
            args.rw.name()
        )
    );
    Ok(Some(ledger))
}

fn make_jobs<'a>(
    args: &PerfArgs,
    layout: &Layout,
    ledger: Option<&Ledger>,
    controller: &mut Controller,
    shared: &'a Shared,
) -> anyhow::Result<Vec<Job<'a>>> {
    let jobs = u64::from(args.numjobs);
    let only_check = ledger.is_some() && args.rw.only_reads();
    let run = ledger.map_or(args.seed, Ledger::run);
    let share = layout.chunks / jobs;
    let mut made = Vec::new();
    let mut qid = 0;
    for number in 0..jobs {
        let first = number * share;
        // The last one takes what does not divide.
        let chunks = if number + 1 == jobs { layout.chunks - first } else { share };
        // A verified run without a limit writes its range once.
        let ios =
            args.number_ios.or((ledger.is_some() && args.runtime.is_none()).then_some(chunks));
        let plan = Plan {
            nsid: args.nsid,
            block_bytes: usize::try_from(layout.block_bytes)?,
            chunk_blocks: layout.chunk_blocks,
            first_lba: layout.first_lba + first * u64::from(layout.chunk_blocks),
            runtime: args.runtime.or(ios.is_none().then_some(RUNTIME)),
            ios,
            rate: args.rate.map(|rate| f64::from(rate) / f64::from(args.numjobs)),
            fua: args.fua,
            spin: args.spin.0,
            run_workload: !only_check,
            verify: ledger.is_some(),
        };
        let mut queues = Vec::new();
        for _ in 0..args.connections {
            qid += 1;
            queues.push(controller.open_queue(qid, args.iodepth, u32::try_from(args.bs.0)?)?);
        }
        let workload = Workload::new(
            args.rw,
            args.rwmixread,
            chunks,
            pattern::mix(args.seed ^ (number << 32)),
        );
        let part = ledger.map(|ledger| ledger.part(first, chunks)).transpose()?;
        made.push(Job::new(shared, plan, workload, part, run, queues, args.iodepth)?);
    }
    Ok(made)
}

/// Whether this process may have more memory than a thread's stack: one that has just enough for that dies of the next thing it wants.
fn spare() -> std::io::Result<()> {
    Ok(Vec::<u8>::new().try_reserve_exact(8 << 20)?)
}

/// Runs the jobs and, until the last has ended, keeps the controller alive and the user informed.
fn watch(
    args: &PerfArgs,
    controller: &mut Controller,
    shared: &Shared,
    jobs: Vec<Job<'_>>,
    stop: &AtomicBool,
) -> anyhow::Result<(Vec<Outcome>, Option<anyhow::Error>)> {
    let count = jobs.len();
    let mut progress = Progress::new();
    let keep_alive = controller.options().keep_alive / 3;
    let mut last_keep_alive = Instant::now();
    let mut error = None;
    // Whether the jobs are to run, once it is known that there is a thread for each: one that runs takes memory, of which its
    // process may have no more than the threads just fit into.
    let start = OnceLock::new();
    let outcomes = std::thread::scope(|scope| -> anyhow::Result<Vec<Outcome>> {
        let (sender, receiver) = mpsc::channel();
        for (number, job) in jobs.into_iter().enumerate() {
            let (sender, start) = (sender.clone(), &start);
            let run = move || {
                if *start.wait() {
                    // The receiver outlives every job.
                    let _ = sender.send(job.run());
                }
            };
            let thread = std::thread::Builder::new().name(format!("job {number}"));
            let begun = spare().and_then(|()| thread.spawn_scoped(scope, run));
            if let Err(error) = begun {
                let _ = start.set(false);
                return Err(error).with_context(|| {
                    format!(
                        "cannot start a thread for each of {count} jobs, lower --numjobs or raise what this process may have (ulimit -u, ulimit -v)"
                    )
                });
            }
        }
        drop(sender);
        let _ = start.set(true);
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            match receiver.recv_timeout(TICK) {
                Ok(outcome) => outcomes.push(outcome),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("a job ended without a result"),
            }
            if stop.load(Ordering::Relaxed) {
                shared.stop.store(true, Ordering::Relaxed);
            }
            if !keep_alive.is_zero() && last_keep_alive.elapsed() >= keep_alive && error.is_none() {
                last_keep_alive = Instant::now();
                if let Err(failed) = controller.keep_alive() {
                    error = Some(anyhow::Error::from(failed));
                    shared.stop.store(true, Ordering::Relaxed);
                }
            }
            progress.show(args, shared);
        }
        Ok(outcomes)
    })?;
    progress.bar.finish_and_clear();
    Ok((outcomes, error))
}

/// The line that shows on a terminal how the run goes.
struct Progress {
    bar: ProgressBar,
    last: (Instant, u64, u64),
}

impl Progress {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Self { bar, last: (Instant::now(), 0, 0) }
    }

    fn show(&mut self, args: &PerfArgs, shared: &Shared) {
        let (then, ios, bytes) = self.last;
        let elapsed = then.elapsed();
        if elapsed < Duration::from_millis(500) || self.bar.is_hidden() {
            return;
        }
        let now = (
            Instant::now(),
            shared.ios.load(Ordering::Relaxed),
            shared.bytes.load(Ordering::Relaxed),
        );
        self.last = now;
        let iops = report::per_second(now.1 - ios, elapsed);
        let rate = report::per_second(now.2 - bytes, elapsed) / f64::from(1 << 20);
        self.bar.set_message(format!("{}: {iops:.0} IOPS, {rate:.1} MiB/s", args.rw.name()));
        self.bar.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use nvme::address::TransportType;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        perf: PerfArgs,
    }

    fn parse(line: &str) -> Result<PerfArgs, clap::Error> {
        let words = ["perf", "-n", "nqn.2026-11.io.tidegate:x"].into_iter();
        Only::try_parse_from(words.chain(line.split_whitespace())).map(|only| only.perf)
    }

    #[test]
    fn sizes_and_times_are_fios() {
        let args =
            parse("--bs 128k --size 1g --offset 1MiB --runtime 30 --rate_iops 5000").unwrap();
        assert_eq!(args.bs, Size(128 << 10));
        assert_eq!(args.size, Some(Size(1 << 30)));
        assert_eq!(args.offset, Size(1 << 20));
        assert_eq!(args.runtime, Some(Duration::from_secs(30)));
        assert_eq!(args.rate, Some(5000));
        assert_eq!(parse("--runtime 250ms").unwrap().runtime, Some(Duration::from_millis(250)));
    }

    #[test]
    fn modes_and_verification_are_named_as_in_fio() {
        assert_eq!(parse("--rw readwrite").unwrap().rw, Mode::Rw);
        assert_eq!(parse("--rw=randwrite --verify=crc32c").unwrap().verify, Some(Verify::Crc32c));
        assert_eq!(parse("--verify --rw write").unwrap().verify, Some(Verify::Crc32c));
        assert_eq!(parse("").unwrap().verify, None);
    }

    #[test]
    fn addresses_are_given_as_to_nvme_cli() {
        let args = parse(
            "-t tcp -a ::1 -s 8009 -q nqn.2014-08.org.example:h -I 6b2a8a2e-3a1b-4f0e-9f7d-0a4c6f5b7c11 -g -G",
        )
        .unwrap();
        let options = args.connection.options(&args.nqn).unwrap();
        assert_eq!(options.address, "[::1]:8009".parse().unwrap());
        assert_eq!(options.host.nqn.as_str(), "nqn.2014-08.org.example:h");
        assert!(options.header_digest && options.data_digest);
    }

    #[test]
    fn the_transport_is_tcp_unless_it_is_rdma_which_has_no_digests() {
        let transport = |line: &str| {
            let args = parse(line).unwrap();
            args.connection.options(&args.nqn).map(|options| options.transport)
        };
        let host = "-q nqn.2014-08.org.example:h -I 6b2a8a2e-3a1b-4f0e-9f7d-0a4c6f5b7c11";
        assert_eq!(transport(host).unwrap(), TransportType::Tcp);
        assert_eq!(transport(&format!("{host} -t rdma")).unwrap(), TransportType::Rdma);
        for digest in ["-g", "-G"] {
            let error = transport(&format!("{host} -t rdma {digest}")).unwrap_err();
            assert!(error.is::<WrongInvocation>(), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "--iodepth 0",
            "--iodepth 5000",
            "--bs 4q",
            "--rwmixread 101",
            "--rw append",
            "--rate 0",
            "--rate 4294967296",
            "--runtime soon",
            "--runtime 0",
            "--runtime 31d",
            "--runtime 2592001",
            "--runtime 18446744073709551615",
            "--timeout 0",
            "--timeout 0ms",
            "--timeout 18446744073709551615",
            "--keep-alive-tmo 307445734561825860min",
            "--spin 307445734561825861min",
            "--size 18446744073709551616",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
