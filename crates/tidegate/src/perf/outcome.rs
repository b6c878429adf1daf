//! What became of a job: figures and failures. It is filled by the job's thread, with nothing allocated per I/O, and read by
//! the report.

use super::cost::Cost;
use super::pattern::{self, Fault};
use super::workload::Kind;
use anyhow::anyhow;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Failed blocks that are described one by one.
const FINDINGS: usize = 16;
/// Longest latency that a histogram holds; longer ones count as this.
const LATENCY_MAX: u64 = 3_600_000_000_000;

/// More than a histogram takes.
const HISTOGRAM_ROOM: usize = 1 << 20;

/// Figures of one kind of I/O.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) ios: u64,
    pub(crate) bytes: u64,
    /// Nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> anyhow::Result<Self> {
        // The histogram has no way to say that there is no memory for it, so that is found out before.
        Vec::<u8>::new().try_reserve_exact(HISTOGRAM_ROOM).map_err(|_| {
            anyhow!("no memory for the figures of a job: lower --numjobs, --iodepth or --bs")
        })?;
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3)
            .map_err(|error| anyhow!("latency histogram: {error:?}"))?;
        Ok(Self { ios: 0, bytes: 0, latency })
    }

    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.latency.add(&other.latency).map_err(|error| anyhow!("latency histogram: {error:?}"))
    }
}

/// A block that was not as it should be, with what it should have been.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) lba: u64,
    pub(crate) expected: pattern::Acceptable,
    pub(crate) fault: Fault,
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) read: Tally,
    pub(crate) write: Tally,
    pub(crate) trim: Tally,
    /// From the first command to the end of the last.
    pub(crate) elapsed: Duration,
    pub(crate) cost: Cost,
    /// I/Os of the open loop that had not begun when time was up.
    pub(crate) unissued: u64,
    /// Blocks whose content was checked.
    pub(crate) verified: u64,
    /// I/Os with a block that was not good.
    pub(crate) failed: u64,
    /// The first of them.
    pub(crate) failures: Vec<Failure>,
    pub(crate) error: Option<anyhow::Error>,
}

impl Outcome {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            read: Tally::new()?,
            write: Tally::new()?,
            trim: Tally::new()?,
            elapsed: Duration::ZERO,
            cost: Cost::default(),
            unissued: 0,
            verified: 0,
            failed: 0,
            failures: Vec::with_capacity(FINDINGS),
            error: None,
        })
    }

    /// I/Os that have ended.
    pub(crate) fn ios(&self) -> u64 {
        self.read.ios + self.write.ios + self.trim.ios
    }

    /// Counts an I/O that ended `latency` nanoseconds after it began, or should have.
    pub(crate) fn record(&mut self, kind: Kind, bytes: u32, latency: u64) {
        let tally = match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
            Kind::Trim => &mut self.trim,
        };
        tally.ios += 1;
        tally.bytes += u64::from(bytes);
        tally.latency.saturating_record(latency);
    }

    /// Counts an I/O with a block that was not good.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < FINDINGS {
            self.failures.push(failure);
        }
    }
}
