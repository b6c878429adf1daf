//! `perf --verify` against `serve`, both as they are shipped: good data passes, and each kind of damage done behind the
//! target's back is found at its address and called by its name.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme::tcp::{CommonHeader, PduType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zerocopy::FromBytes;

use crate::support::daemon::{Daemon, NQN, free_port, run, tidegate};
use crate::support::{folder, until};

const BLOCK: usize = 4096;

/// A folder with a configuration: namespace 1 a file, namespace 2 memory.
struct Site {
    folder: tempfile::TempDir,
    port: u16,
}

impl Site {
    fn new() -> Self {
        Self { folder: folder(), port: free_port() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self) -> Daemon {
        let config = format!(
            "[devices.file]\nkind = \"file\"\npath = \"disk\"\nsize = \"4MiB\"\nblock_size = {BLOCK}\n\
             [devices.ram]\nkind = \"ram\"\nsize = \"4MiB\"\nblock_size = 512\n\
             [[subsystems]]\nnqn = \"{NQN}\"\n\
             namespaces = [{{ nsid = 1, device = \"file\" }}, {{ nsid = 2, device = \"ram\" }}]\n\
             listeners = [{{ address = \"127.0.0.1\", port = {} }}]\n",
            self.port
        );
        Daemon::start(self.folder.path(), &config)
    }

    /// `perf --json` with these arguments, still to be started.
    fn perf(&self, arguments: &str) -> Command {
        let mut command = tidegate(self.folder.path());
        command.args(perf_arguments(&self.port.to_string(), arguments)).stdout(Stdio::piped());
        command
    }

    /// Runs it to its end: exit status, report, standard error.
    fn run(&self, arguments: &str) -> (i32, Value, String) {
        self.run_through(self.port, arguments)
    }

    /// The same through another port.
    fn run_through(&self, port: u16, arguments: &str) -> (i32, Value, String) {
        let output = run(self.folder.path(), &perf_arguments(&port.to_string(), arguments));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), report, stderr)
    }
}

fn perf_arguments<'a>(port: &'a str, arguments: &'a str) -> Vec<&'a str> {
    let mut all = vec!["perf", "-a", "127.0.0.1", "-s", port, "-n", NQN, "--json"];
    all.extend(arguments.split_whitespace());
    all
}

fn block_of(file: &Path, number: usize) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let at = u64::try_from(number * BLOCK).unwrap();
    File::open(file).unwrap().read_exact_at(&mut block, at).unwrap();
    block
}

fn put(file: &Path, number: usize, offset: usize, bytes: &[u8]) {
    let at = u64::try_from(number * BLOCK + offset).unwrap();
    File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

fn spawn(mut command: Command) -> std::process::Child {
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// Acknowledged blocks by a state file: entries of eight bytes behind a header, four of them the generation.
fn acknowledged(state: &Path) -> usize {
    let state = fs::read(state).unwrap_or_default();
    let entries = state.get(4096..).unwrap_or_default().as_chunks::<8>().0.iter();
    entries.filter(|entry| entry[..4] != [0; 4]).count()
}

/// A relay to `port` that once makes zeroes of the data of a read, if that is `length` bytes, when told to, and swallows what
/// the admin queue answers once there is an I/O queue, if told to.
struct Relay {
    port: u16,
    damage: Arc<AtomicBool>,
    mute: Arc<AtomicBool>,
}

impl Relay {
    fn start(port: u16, length: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let [damage, mute, has_io_queue] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
        let (flag, wanted) = (Arc::clone(&damage), Arc::clone(&mute));
        std::thread::spawn(move || {
            for (number, host) in listener.incoming().enumerate() {
                has_io_queue.store(number > 0, Ordering::Relaxed);
                let (has_io_queue, wanted) = (Arc::clone(&has_io_queue), Arc::clone(&wanted));
                let is_mute = move || {
                    number == 0
                        && has_io_queue.load(Ordering::Relaxed)
                        && wanted.load(Ordering::Relaxed)
                };
                let host = host.unwrap();
                let target = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (mut from, mut to) = (host.try_clone().unwrap(), target.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let flag = Arc::clone(&flag);
                std::thread::spawn(move || relay(target, &host, length, &flag, is_mute));
            }
        });
        Self { port: own, damage, mute }
    }
}

fn relay(
    mut target: TcpStream,
    mut host: &TcpStream,
    length: usize,
    damage: &AtomicBool,
    is_mute: impl Fn() -> bool,
) {
    let mut pdu = vec![0; 8];
    loop {
        pdu.truncate(8);
        match target.read_exact(&mut pdu) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            result => result.unwrap(),
        }
        let header = CommonHeader::read_from_bytes(&pdu).unwrap();
        pdu.resize(usize::try_from(header.plen.get()).unwrap(), 0);
        target.read_exact(&mut pdu[8..]).unwrap();
        let data = usize::from(header.pdo);
        if header.kind() == Ok(PduType::C2hData)
            && pdu.len() - data >= length
            && damage.swap(false, Ordering::Relaxed)
        {
            pdu[data..data + length].fill(0);
        }
        if !is_mute() && host.write_all(&pdu).is_err() {
            break;
        }
    }
    let _ = host.shutdown(Shutdown::Both);
}

#[test]
fn every_way_of_writing_verifies() {
    let site = Site::new();
    let _daemon = site.serve();
    for arguments in [
        "--nsid 1 --rw write --bs 4k --iodepth 16",
        "--nsid 1 --rw randrw --bs 64k --iodepth 8 --numjobs 2 --connections 2 --number-ios 400",
        "--nsid 2 --rw randwrite --bs 512 --iodepth 32 --number-ios 3000 -g -G",
        "--nsid 2 --rw rw --rwmixread 30 --bs 12k --iodepth 4 --number-ios 500 --fua -G",
        "--nsid 2 --rw randwrite --bs 1m --iodepth 2 --number-ios 40",
        "--nsid 1 --rw randwrite --bs 4k --iodepth 128 --rate 20000 --number-ios 2000",
    ] {
        let (code, report, stderr) = site.run(&format!("{arguments} --verify"));
        assert_eq!(code, 0, "{arguments}: {stderr}");
        assert_eq!(report["verify"]["failed_ios"], 0, "{arguments}");
        assert!(report["verify"]["blocks"].as_u64().unwrap() > 0, "{arguments}");
        assert!(report["write"]["ios"].as_u64().unwrap() > 0, "{arguments}");
        let percentiles = &report["write"]["latency_ns"]["percentiles"];
        assert!(percentiles["p50"].as_u64() <= percentiles["p99.99"].as_u64(), "{arguments}");
    }
}

#[test]
fn damage_behind_the_targets_back_is_found_and_named() {
    let site = Site::new();
    let run = "--nsid 1 --rw write --bs 4k --iodepth 8 --size 64k --verify-state state";
    let (disk, old) = (site.path("disk"), site.path("old"));
    let daemon = site.serve();
    assert_eq!(site.run(run).0, 0);
    fs::copy(&disk, &old).unwrap();
    assert_eq!(site.run(run).0, 0);
    daemon.kill();

    put(&disk, 2, 0, &block_of(&old, 2));
    put(&disk, 4, 0, &[0; BLOCK]);
    put(&disk, 6, 1024, &block_of(&old, 6)[1024..]);
    let moved = block_of(&disk, 7);
    put(&disk, 8, 0, &moved);
    put(&disk, 10, 99, &[0xff]);
    let _daemon = site.serve();
    let check = "--nsid 1 --rw read --bs 4k --size 64k --iodepth 8 --verify-state state";
    let (code, report, stderr) = site.run(check);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("verification failed for 5 I/Os"), "{stderr}");
    assert!(stderr.contains(report["error"].as_str().unwrap()), "{stderr}{report}");
    let mut found: Vec<(u64, &str, &str)> = report["verify"]["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| {
            assert_eq!(failure["expected"], "generation 2");
            let text = |key: &str| failure[key].as_str().unwrap();
            (failure["lba"].as_u64().unwrap(), text("kind"), text("found"))
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (2, "lost", "lost write: found generation 1"),
            (4, "lost", "lost write: found zeroes"),
            (
                6,
                "torn",
                "torn write: found generation 2 up to byte 1024 and generation 1 from there"
            ),
            (8, "misplaced", "misplaced write: found generation 2 of LBA 7"),
            (10, "corrupt", "corrupt: byte 64 and on is not what any run wrote"),
        ]
    );
    // A drawing needs figures, and a run that only verifies has none.
    let (code, _, stderr) = site.run(&format!("{check} --plot nothing.svg"));
    assert_eq!(code, 2);
    assert!(stderr.contains("nothing to draw"), "{stderr}");
}

#[test]
fn old_data_read_once_is_stale_and_not_lost() {
    let site = Site::new();
    let _daemon = site.serve();
    let common = "--nsid 1 --bs 8k --size 64k --verify-state state";
    assert_eq!(site.run(&format!("{common} --rw write")).0, 0);
    let relay = Relay::start(site.port, 8192);
    relay.damage.store(true, Ordering::Relaxed);
    let (code, report, stderr) = site.run_through(relay.port, &format!("{common} --rw read"));
    assert_eq!(code, 1, "{stderr}");
    let failures = report["verify"]["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!((&failures[0]["lba"], &failures[0]["kind"]), (&0.into(), &"stale".into()));
    // The relay is honest from then on.
    assert_eq!(site.run_through(relay.port, &format!("{common} --rw read")).0, 0);
}

#[test]
fn damage_on_the_way_fails_the_digest() {
    let site = Site::new();
    let _daemon = site.serve();
    let arguments = "--nsid 1 --rw read --bs 8k --number-ios 10";
    // Blocks that are not zeroes already.
    assert_eq!(site.run("--nsid 1 --rw write --bs 64k --number-ios 4").0, 0);
    let relay = Relay::start(site.port, 8192);
    relay.damage.store(true, Ordering::Relaxed);
    let (code, report, stderr) = site.run_through(relay.port, &format!("{arguments} -G"));
    assert_eq!(code, 1);
    assert!(stderr.contains("LBA 0 of namespace 1") && stderr.contains("data digest"), "{stderr}");
    assert_eq!(report["target"]["data_digest"], true);
}

#[test]
fn a_keep_alive_without_an_answer_ends_the_run_and_is_in_its_report() {
    let site = Site::new();
    let _daemon = site.serve();
    let relay = Relay::start(site.port, BLOCK);
    relay.mute.store(true, Ordering::Relaxed);
    let arguments = "--nsid 1 -k 1 --timeout 1 --runtime 60";
    let (code, report, stderr) = site.run_through(relay.port, arguments);
    assert_eq!(code, 1, "{stderr}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("did not answer") && stderr.contains(error), "{stderr}{report}");
    assert!(report["read"]["ios"].as_u64().unwrap() > 0, "{report}");
    assert!(report["seconds"].as_f64().unwrap() < 60.0, "{report}");
}

#[test]
fn acknowledged_writes_survive_the_death_of_the_target() {
    let site = Site::new();
    let daemon = site.serve();
    let common = "--nsid 1 --bs 4k --iodepth 32 --verify-state state";
    let writer = site.perf(&format!("{common} --rw randwrite --runtime 60"));
    let writer = spawn(writer);
    until("500 blocks are acknowledged", || {
        (acknowledged(&site.path("state")) >= 500).then_some(())
    });
    daemon.kill();
    let ended = writer.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(report["error"].as_str().unwrap().contains("closed the connection"), "{report}");

    let _daemon = site.serve();
    let (code, report, stderr) = site.run(&format!("{common} --rw read"));
    assert_eq!(code, 0, "{stderr}");
    assert!(report["verify"]["blocks"].as_u64().unwrap() >= 500);
}

#[test]
fn wrong_invocations_are_told_from_failures() {
    let site = Site::new();
    let (code, report, stderr) = site.run("--rw read");
    assert_eq!(code, 1);
    assert!(stderr.contains(report["error"].as_str().unwrap()), "{report}");
    assert!(stderr.contains("nothing listens on") && stderr.lines().count() == 1, "{stderr}");
    let _daemon = site.serve();
    for arguments in [
        "--nsid 1 --bs 1k",
        "--nsid 1 --offset 100",
        "--nsid 1 --size 1t",
        "--nsid 1 --bs 2m",
        "--nsid 1 --rw read --verify",
        "--nsid 1 --rw trim --verify",
        "--nsid 1 --bs 1m --numjobs 5",
    ] {
        let (code, report, stderr) = site.run(arguments);
        assert_eq!(code, 2, "{arguments}: {stderr}");
        assert!(stderr.contains(report["error"].as_str().unwrap()), "{report}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_namespace_that_is_not_there_is_named_beside_those_that_are() {
    let site = Site::new();
    let _daemon = site.serve();
    // One that the target could have, and one beyond those that it could.
    for nsid in ["3", "1000000"] {
        let (code, _, stderr) = site.run(&format!("--nsid {nsid}"));
        assert_eq!(code, 1, "{stderr}");
        for named in [&format!("namespace {nsid} "), "--nsid", "(1, 2)"] {
            assert!(stderr.contains(named), "{stderr}");
        }
    }
}

#[test]
fn what_this_machine_has_not_got_is_a_failure_that_says_what_to_lower() {
    let site = Site::new();
    let _daemon = site.serve();
    let cases = [
        // Memory for the data in flight.
        ("ulimit -v 300000", "--numjobs 60 --iodepth 128 --bs 64k", "--iodepth"),
        // Memory for the stacks of threads, of 2 MiB each.
        ("ulimit -v 300000", "--numjobs 120 --runtime 30", "--numjobs"),
        // Descriptors.
        ("ulimit -n 12", "--numjobs 20", "--numjobs"),
    ];
    for (limit, arguments, named) in cases {
        let tidegate = env!("CARGO_BIN_EXE_tidegate");
        let port = site.port.to_string();
        let arguments = perf_arguments(&port, arguments).join(" ");
        let output = Command::new("sh")
            .args(["-c", &format!("{limit}; exec {tidegate} {arguments}")])
            .current_dir(site.folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}: {stderr}");
        assert!(stderr.contains(named) && stderr.lines().count() == 1, "{limit}: {stderr}");
    }
}

#[test]
fn what_the_command_line_alone_decides_is_a_wrong_invocation() {
    // Nothing serves: asking would fail.
    let site = Site::new();
    for (arguments, named) in [
        ("--numjobs 1024 --connections 1024", "--numjobs"),
        ("--bs 0", "--bs"),
        ("--bs 1000", "--bs"),
        ("--bs 4g", "--bs"),
        ("--size 0", "--size"),
        ("--verify", "--verify"),
        ("--rw trim --verify-state state", "--verify"),
    ] {
        let (code, _, stderr) = site.run(arguments);
        assert_eq!(code, 2, "{arguments}: {stderr}");
        assert!(stderr.contains(named) && stderr.lines().count() == 1, "{stderr}");
    }
    // What takes a target to know is not.
    let _daemon = site.serve();
    for arguments in ["--iodepth 200", "--numjobs 200"] {
        let (code, _, stderr) = site.run(&format!("--nsid 2 --bs 512 {arguments}"));
        assert_eq!(code, 1, "{arguments}: {stderr}");
        let flag = arguments.split(' ').next().unwrap();
        assert!(stderr.contains(flag) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn an_interrupt_ends_the_run_with_its_report() {
    let site = Site::new();
    let _daemon = site.serve();
    let run = spawn(site.perf("--nsid 2 --rw randwrite --runtime 60 --verify-state state"));
    // Writes that have begun show that the signal does not come before its handler.
    until("writes are acknowledged", || (acknowledged(&site.path("state")) > 0).then_some(()));
    // Meanwhile nobody else may continue what the file tells.
    let (code, _, stderr) = site.run("--nsid 2 --rw randwrite --verify-state state");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("--verify-state state") && stderr.contains("another run"), "{stderr}");
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(report["write"]["ios"].as_u64().unwrap() > 0);
    assert!(report["seconds"].as_f64().unwrap() < 60.0);
}

#[test]
fn a_plot_is_a_drawing() {
    let site = Site::new();
    let _daemon = site.serve();
    let (code, report, stderr) =
        site.run("--nsid 2 --rw randrw --iodepth 4 --number-ios 2000 --plot latency.svg");
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(
        report["read"]["ios"].as_u64().unwrap() + report["write"]["ios"].as_u64().unwrap(),
        2000
    );
    let drawing = fs::read_to_string(site.path("latency.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.contains("polyline"));
}

#[test]
fn a_plot_that_cannot_be_written_is_refused_before_the_run() {
    let site = Site::new();
    // Nothing serves: the refusal comes before anyone is asked.
    for plot in ["missing/latency.svg", "."] {
        let (code, _, stderr) = site.run(&format!("--plot {plot}"));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(&format!("--plot {plot}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    // One that can be is not there before the run.
    assert_eq!(site.run("--plot latency.svg").0, 1);
    assert!(!site.path("latency.svg").exists());
}
