//! What a run came to: as text for people and as JSON for programs. One structure serves both and the plot.

use super::cost::Cost;
use super::outcome::{Failure, Outcome, Tally};
use super::{Layout, PerfArgs};
use crate::config::quantity::Size;
use anyhow::bail;
use hdrhistogram::Histogram;
use host::Controller;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Percentiles that are reported.
const PERCENTILES: [(&str, f64); 7] = [
    ("p50", 50.0),
    ("p75", 75.0),
    ("p90", 90.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
];

/// See the module's description.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    tidegate: &'static str,
    target: Target,
    options: Options,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Direction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<Direction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trim: Option<Direction>,
    cost_per_io: CostPerIo,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_loop: Option<OpenLoop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<Verified>,
    /// Why the command fails: what ended the run early, or what it found wrong.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Target {
    address: String,
    nqn: String,
    nsid: u32,
    block_bytes: u64,
    bytes: u64,
    header_digest: bool,
    data_digest: bool,
}

#[derive(Debug, Serialize)]
struct Options {
    rw: &'static str,
    bs: u64,
    iodepth: u16,
    numjobs: u16,
    connections: u16,
    rwmixread: u8,
    rate: Option<u32>,
    fua: bool,
    seed: u64,
}

/// The figures of reads, of writes or of deallocations.
#[derive(Debug, Serialize)]
pub(crate) struct Direction {
    ios: u64,
    bytes: u64,
    iops: f64,
    bytes_per_second: f64,
    latency_ns: Latency,
    #[serde(skip)]
    histogram: Histogram<u64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    min: u64,
    mean: f64,
    stddev: f64,
    max: u64,
    percentiles: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct CostPerIo {
    /// User instructions; null where the processor's counter is not to be had.
    instructions: Option<f64>,
    cpu_ns: f64,
    system_calls: f64,
    receive: f64,
    receive_empty: f64,
    send: f64,
    wait: f64,
}

#[derive(Debug, Serialize)]
struct OpenLoop {
    iops_asked: u32,
    /// I/Os that should have begun and had not when time was up.
    unissued: u64,
}

#[derive(Debug, Serialize)]
struct Verified {
    blocks: u64,
    failed_ios: u64,
    failures: Vec<FailureReport>,
}

#[derive(Debug, Serialize)]
struct FailureReport {
    lba: u64,
    kind: &'static str,
    expected: String,
    found: String,
}

impl From<&Failure> for FailureReport {
    fn from(failure: &Failure) -> Self {
        let (from, to) = (failure.expected.acknowledged, failure.expected.sent);
        Self {
            lba: failure.lba,
            kind: failure.fault.name(),
            expected: if from == to {
                format!("generation {from}")
            } else {
                format!("generation {from} to {to}")
            },
            found: failure.fault.to_string(),
        }
    }
}

impl fmt::Display for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LBA {}: expected {}; {}", self.lba, self.expected, self.found)
    }
}

impl Report {
    pub(crate) fn new(
        args: &PerfArgs,
        layout: &Layout,
        controller: &Controller,
        outcomes: &[Outcome],
    ) -> anyhow::Result<Self> {
        let (mut read, mut write, mut trim) = (Tally::new()?, Tally::new()?, Tally::new()?);
        let mut elapsed = Duration::ZERO;
        let mut cost = Cost::zero();
        let mut verified = Verified { blocks: 0, failed_ios: 0, failures: Vec::new() };
        let mut unissued = 0;
        for outcome in outcomes {
            read.add(&outcome.read)?;
            write.add(&outcome.write)?;
            trim.add(&outcome.trim)?;
            elapsed = elapsed.max(outcome.elapsed);
            cost.add(&outcome.cost);
            unissued += outcome.unissued;
            verified.blocks += outcome.verified;
            verified.failed_ios += outcome.failed;
            verified.failures.extend(outcome.failures.iter().map(FailureReport::from));
        }
        let ios = read.ios + write.ios + trim.ios;
        let (header_digest, data_digest) = controller.digests();
        Ok(Self {
            tidegate: env!("CARGO_PKG_VERSION"),
            target: Target {
                address: controller.address().to_string(),
                nqn: args.nqn.to_string(),
                nsid: args.nsid,
                block_bytes: layout.block_bytes,
                bytes: layout.namespace_bytes,
                header_digest,
                data_digest,
            },
            options: Options {
                rw: args.rw.name(),
                bs: args.bs.0,
                iodepth: args.iodepth,
                numjobs: args.numjobs,
                connections: args.connections,
                rwmixread: args.rwmixread,
                rate: args.rate,
                fua: args.fua,
                seed: args.seed,
            },
            seconds: elapsed.as_secs_f64(),
            read: Direction::new(read, elapsed),
            write: Direction::new(write, elapsed),
            trim: Direction::new(trim, elapsed),
            cost_per_io: CostPerIo::new(&cost, ios),
            open_loop: args.rate.map(|iops_asked| OpenLoop { iops_asked, unissued }),
            verify: (args.verify.is_some() || args.verify_state.is_some()).then_some(verified),
            error: None,
        })
    }

    /// An error if a block was not as it should be.
    pub(crate) fn verdict(&self) -> anyhow::Result<()> {
        match &self.verify {
            Some(Verified { failed_ios, failures, .. }) if *failed_ios > 0 => {
                let first = failures.first().map(ToString::to_string).unwrap_or_default();
                bail!(
                    "verification failed for {failed_ios} I/Os of namespace {}: {first}",
                    self.target.nsid
                )
            }
            _ => Ok(()),
        }
    }

    /// The directions that have figures, by name.
    pub(crate) fn directions(&self) -> impl Iterator<Item = (&'static str, &Direction)> {
        [("read", &self.read), ("write", &self.write), ("trim", &self.trim)]
            .into_iter()
            .filter_map(|(name, direction)| Some((name, direction.as_ref()?)))
    }

    /// What was measured, in one line.
    pub(crate) fn title(&self) -> String {
        let options = &self.options;
        let pace = options.rate.map_or_else(String::new, |rate| format!(", {rate} IOPS asked"));
        let connections = u32::from(options.numjobs) * u32::from(options.connections);
        format!(
            "{}, {}, depth {}, {}, {}{pace}",
            options.rw,
            Size(options.bs),
            options.iodepth,
            counted(options.numjobs.into(), "job"),
            counted(connections, "connection")
        )
    }
}

impl Direction {
    fn new(tally: Tally, elapsed: Duration) -> Option<Self> {
        let Tally { ios, bytes, latency } = tally;
        (ios > 0).then(|| Self {
            ios,
            bytes,
            iops: per_second(ios, elapsed),
            bytes_per_second: per_second(bytes, elapsed),
            latency_ns: Latency {
                min: latency.min(),
                mean: latency.mean(),
                stddev: latency.stdev(),
                max: latency.max(),
                percentiles: PERCENTILES
                    .iter()
                    .map(|&(name, at)| (name.to_owned(), latency.value_at_percentile(at).into()))
                    .collect(),
            },
            histogram: latency,
        })
    }

    /// Latencies in nanoseconds.
    pub(crate) fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

impl CostPerIo {
    fn new(cost: &Cost, ios: u64) -> Self {
        let per = |count: u64| ratio(count, ios);
        let calls = cost.calls;
        Self {
            instructions: cost.instructions.map(per),
            cpu_ns: per(u64::try_from(cost.cpu.as_nanos()).unwrap_or(u64::MAX)),
            system_calls: per(calls.receive + calls.send + calls.wait),
            receive: per(calls.receive),
            receive_empty: per(calls.receive_empty),
            send: per(calls.send),
            wait: per(calls.wait),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.target;
        writeln!(f, "{} namespace {} at {}", target.nqn, target.nsid, target.address)?;
        writeln!(f, "{}, {:.2} s", self.title(), self.seconds)?;
        for (name, direction) in self.directions() {
            writeln!(
                f,
                "{name:<6} {:.0} IOPS, {:.1} MiB/s, {} I/Os",
                direction.iops,
                direction.bytes_per_second / f64::from(1 << 20),
                direction.ios
            )?;
            let latency = &direction.latency_ns;
            write!(
                f,
                "       latency in us: min {:.1}, mean {:.1}, max {:.1};",
                microseconds(latency.min),
                latency.mean / 1000.0,
                microseconds(latency.max)
            )?;
            for (name, value) in &latency.percentiles {
                let value = value.as_u64().unwrap_or(0);
                write!(f, " {name} {:.1}", microseconds(value))?;
            }
            writeln!(f)?;
        }
        if self.directions().next().is_some() {
            let cost = &self.cost_per_io;
            let instructions = cost.instructions.map_or_else(
                || String::from("instructions not available here (count with callgrind)"),
                |count| format!("{count:.0} user instructions"),
            );
            writeln!(
                f,
                "cost   per I/O of this process: {instructions}, {:.2} us of processor, {:.3} system calls ({:.3} receive, {:.3} of them empty, {:.3} send, {:.3} wait)",
                cost.cpu_ns / 1000.0,
                cost.system_calls,
                cost.receive,
                cost.receive_empty,
                cost.send,
                cost.wait
            )?;
        }
        if let Some(open_loop) = &self.open_loop {
            writeln!(
                f,
                "open   {} IOPS asked, {} I/Os late beyond the end; latency counts from the intended start",
                open_loop.iops_asked, open_loop.unissued
            )?;
        }
        if let Some(verified) = &self.verify {
            writeln!(
                f,
                "verify {} blocks checked, {} I/Os failed",
                verified.blocks, verified.failed_ios
            )?;
            for failure in &verified.failures {
                writeln!(f, "       {failure}")?;
            }
        }
        Ok(())
    }
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn microseconds(nanoseconds: u64) -> f64 {
    ratio(nanoseconds, 1000)
}

pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    ratio(count, nanoseconds) * 1e9
}

/// 0 if there is nothing to divide by.
#[allow(clippy::cast_precision_loss)] // Figures for people: 53 bits are plenty.
fn ratio(count: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { count as f64 / of as f64 }
}
