//! One job: a thread with its own connections, its own range of the namespace and its own figures.
//!
//! A turn of the loop is, for each connection: one look (over TCP a `recv`) for whatever has arrived, one reading of the clock, a
//! completion and the next command for each I/O that ended, one sending (over TCP a `send`) of all of them. Nothing is allocated, locked or
//! printed per I/O. When nothing arrives the thread spins for a while and then sleeps until something does.
//!
//! **Open loop.** With a rate, an I/O has an intended start that depends on the rate alone. If the target stalls, the I/Os that
//! should have begun meanwhile begin late, but their latency counts from when they should have begun. I/Os that had not
//! begun when the run ended are counted, not forgotten.

use super::cost::Meter;
use super::ledger::Part;
use super::outcome::{Failure, Outcome};
use super::pattern::{self, Fault, Finding, Stamp};
use super::workload::{Kind, Workload};
use anyhow::{Context, anyhow, bail};
use host::{Completion, Queue, SlotId, Transfer};
use nvme::io::{self, DatasetManagement, DsmRange};
use nvme::{Sqe, U32};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// A command outstanding for so long without any other ending is given up.
const STUCK: Duration = Duration::from_secs(30);
/// A sleep ends so long before the next intended start, to be awake in time.
const WAKE_EARLY: u64 = 100_000;
/// Draws of a random chunk before the search goes on from the last one.
const DRAWS: u32 = 8;
/// What all jobs of a run see.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Zero of every time in nanoseconds.
    pub(crate) epoch: Instant,
    /// Set by whoever wants the run to end: the user, or a job that failed.
    pub(crate) stop: AtomicBool,
    /// I/Os that have ended, for the progress line.
    pub(crate) ios: AtomicU64,
    /// Bytes that they moved.
    pub(crate) bytes: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            stop: AtomicBool::new(false),
            ios: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What a job is to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nsid: u32,
    /// Bytes of a logical block.
    pub(crate) block_bytes: usize,
    /// Blocks of an I/O.
    pub(crate) chunk_blocks: u32,
    /// First block of the job's range.
    pub(crate) first_lba: u64,
    /// How long to go on; `None`: until `ios`.
    pub(crate) runtime: Option<Duration>,
    /// How many I/Os to do at most.
    pub(crate) ios: Option<u64>,
    /// I/Os per second of the open loop; `None`: closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) fua: bool,
    /// Spin so long for an answer before sleeping.
    pub(crate) spin: Duration,
    /// Do the workload; if not, only read back what an earlier run wrote.
    pub(crate) run_workload: bool,
    /// Read back every acknowledged block at the end.
    pub(crate) verify: bool,
}

/// What is remembered of a command until it ends.
#[derive(Debug, Clone, Copy)]
struct Tag {
    /// When the command was sent, or should have been.
    start: u64,
    chunk: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Workload,
    /// Reads back every acknowledged chunk, from this one on.
    ReadBack(u64),
}

/// See the module's description. Made by the main thread, run by its own.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    queues: Vec<Queue>,
    tags: Vec<Box<[Tag]>>,
    state: State<'a>,
}

/// Everything but the connections.
#[derive(Debug)]
struct State<'a> {
    shared: &'a Shared,
    plan: Plan,
    workload: Workload,
    ledger: Option<Part>,
    /// Where data is made and looked at, if any is: it is copied into and out of slots.
    data: Box<[u8]>,
    run: u64,
    phase: Phase,
    read_sqe: Sqe,
    write_sqe: Sqe,
    trim_sqe: Sqe,
    chunk_bytes: u32,
    /// I/Os begun in this phase.
    begun: u64,
    outstanding: u64,
    stopping: bool,
    start: u64,
    /// When to stop beginning new I/Os.
    deadline: u64,
    outcome: Outcome,
}

impl<'a> Job<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        plan: Plan,
        workload: Workload,
        ledger: Option<Part>,
        run: u64,
        mut queues: Vec<Queue>,
        depth: u16,
    ) -> anyhow::Result<Self> {
        let blocks = plan.chunk_blocks;
        let transfer = io::Transfer { fua: plan.fua, ..io::Transfer::new(0, blocks) };
        let chunk_bytes = u32::try_from(plan.block_bytes)?
            .checked_mul(blocks)
            .context("an I/O of 4 GiB or more")?;
        let looked_at = if ledger.is_some() { usize::try_from(chunk_bytes)? } else { 0 };
        let empty = Tag { start: 0, chunk: 0, kind: Kind::Read };
        let tags = queues.iter().map(|_| vec![empty; usize::from(depth)].into()).collect();
        for queue in &mut queues {
            scramble(queue, workload_seed(run, plan.first_lba));
        }
        Ok(Self {
            queues,
            tags,
            state: State {
                read_sqe: io::Command::Read(io::Transfer::new(0, blocks)).to_sqe(plan.nsid),
                write_sqe: io::Command::Write(transfer).to_sqe(plan.nsid),
                trim_sqe: io::Command::DatasetManagement(DatasetManagement::deallocate(1))
                    .to_sqe(plan.nsid),
                phase: Phase::Workload,
                shared,
                plan,
                workload,
                ledger,
                data: vec![0; looked_at].into(),
                run,
                chunk_bytes,
                begun: 0,
                outstanding: 0,
                stopping: false,
                start: 0,
                deadline: u64::MAX,
                outcome: Outcome::new()?,
            },
        })
    }

    /// Does the plan. An error ends the whole run and is in the outcome beside the figures up to it.
    pub(crate) fn run(mut self) -> Outcome {
        if let Err(error) = self.phases() {
            self.state.shared.stop.store(true, Ordering::Relaxed);
            self.state.outcome.error = Some(error);
        }
        self.state.outcome
    }

    fn phases(&mut self) -> anyhow::Result<()> {
        if self.state.plan.run_workload {
            let meter = Meter::start(&self.queues);
            let state = &mut self.state;
            state.start = state.shared.now();
            if let Some(runtime) = state.plan.runtime {
                let runtime = u64::try_from(runtime.as_nanos()).unwrap_or(u64::MAX);
                state.deadline = state.start.saturating_add(runtime);
            }
            let result = self.drive();
            let state = &mut self.state;
            let nanoseconds = state.shared.now().saturating_sub(state.start);
            state.outcome.elapsed = Duration::from_nanos(nanoseconds);
            state.outcome.cost = meter.stop(&self.queues);
            state.count_unissued();
            result?;
        }
        // A run that was ended early reads nothing back: whoever ended it wants to see the report.
        if self.state.plan.verify && !self.state.shared.stop.load(Ordering::Relaxed) {
            self.state.phase = Phase::ReadBack(0);
            self.state.deadline = u64::MAX;
            self.state.stopping = false;
            self.drive()?;
        }
        Ok(())
    }

    /// Begins and ends I/Os until the phase is over and nothing is outstanding.
    fn drive(&mut self) -> anyhow::Result<()> {
        let state = &mut self.state;
        let spin = u64::try_from(state.plan.spin.as_nanos()).unwrap_or(u64::MAX);
        let stuck = u64::try_from(STUCK.as_nanos()).unwrap_or(u64::MAX);
        let mut now = state.shared.now();
        let mut last_work = now;
        loop {
            let mut worked = false;
            for (queue, tags) in self.queues.iter_mut().zip(&mut self.tags) {
                if queue.receive()? {
                    now = state.shared.now();
                    last_work = now;
                    worked = true;
                    let before = state.outcome.ios();
                    while let Some(completion) = queue.next_completion() {
                        state.end(queue, tags, &completion, now)?;
                    }
                    state.publish(state.outcome.ios() - before);
                }
                state.begin_all(queue, tags, now)?;
                queue.flush()?;
            }
            if worked {
                continue;
            }
            now = state.shared.now();
            state.look_for_the_end(now);
            if state.outstanding == 0 && state.is_over() {
                return Ok(());
            }
            let idle = now.saturating_sub(last_work);
            if state.outstanding > 0 && idle > stuck {
                bail!(
                    "{} commands have not ended for {} s: the target is stuck",
                    state.outstanding,
                    STUCK.as_secs()
                );
            }
            let until_next = state.next_start().map_or(u64::MAX, |start| start.saturating_sub(now));
            if (idle >= spin || state.outstanding == 0) && until_next > WAKE_EARLY {
                // Wakes in time to notice the end of the run, too.
                let limit = (until_next - WAKE_EARLY)
                    .min(state.deadline.saturating_sub(now))
                    .min(100_000_000);
                Queue::wait_any(&mut self.queues, Duration::from_nanos(limit))?;
                now = state.shared.now();
            }
        }
    }
}

impl State<'_> {
    /// Begins I/Os on a connection while there are any to begin and it has a free slot.
    fn begin_all(&mut self, queue: &mut Queue, tags: &mut [Tag], now: u64) -> anyhow::Result<()> {
        self.look_for_the_end(now);
        loop {
            let start = match self.next_start() {
                Some(start) if start <= now => start,
                None if !self.is_exhausted() => now,
                _ => return Ok(()),
            };
            let Some(slot) = queue.reserve() else {
                return Ok(());
            };
            let Some((kind, chunk)) = self.draw() else {
                queue.release(slot);
                return Ok(());
            };
            if let Some(tag) = tags.get_mut(slot.index()) {
                *tag = Tag { start, chunk, kind };
            }
            self.begin(queue, slot, kind, chunk)?;
        }
    }

    fn begin(
        &mut self,
        queue: &mut Queue,
        slot: SlotId,
        kind: Kind,
        chunk: u64,
    ) -> anyhow::Result<()> {
        let lba = self.lba(chunk);
        let (sqe, transfer) = match kind {
            Kind::Read => {
                if let Some(ledger) = &mut self.ledger {
                    ledger.reading(chunk);
                }
                (at(self.read_sqe, lba), Transfer::Read(self.chunk_bytes))
            }
            Kind::Write => {
                if let Some(ledger) = &mut self.ledger {
                    let generation = ledger.writing(chunk)?;
                    let stamp = Stamp { run: self.run, lba, generation };
                    pattern::fill(&mut self.data, self.plan.block_bytes, stamp);
                    queue.copy_from(slot, 0, &self.data);
                }
                (at(self.write_sqe, lba), Transfer::Write(self.chunk_bytes))
            }
            Kind::Trim => {
                let range = DsmRange::new(lba, self.plan.chunk_blocks);
                queue.copy_from(slot, 0, range.as_bytes());
                (self.trim_sqe, Transfer::Write(16))
            }
        };
        queue.submit(slot, sqe, transfer)?;
        self.begun += 1;
        self.outstanding += 1;
        Ok(())
    }

    /// Accounts for a command that ended and frees its slot.
    fn end(
        &mut self,
        queue: &mut Queue,
        tags: &[Tag],
        completion: &Completion,
        now: u64,
    ) -> anyhow::Result<()> {
        let Some(&tag) = tags.get(completion.slot.index()) else {
            bail!("a completion for a slot that does not exist");
        };
        self.outstanding -= 1;
        let status = completion.cqe.status();
        if !status.is_success() || completion.data_digest_error {
            return Err(self.io_error(tag, completion));
        }
        if let Some(ledger) = &mut self.ledger {
            match tag.kind {
                Kind::Read => ledger.read(tag.chunk),
                Kind::Write => ledger.written(tag.chunk)?,
                Kind::Trim => {}
            }
            if tag.kind == Kind::Read {
                self.verify(queue, completion.slot, tag.chunk)?;
            }
        }
        queue.release(completion.slot);
        if self.phase == Phase::Workload {
            let latency = now.saturating_sub(tag.start);
            self.outcome.record(tag.kind, self.chunk_bytes, latency);
        }
        Ok(())
    }

    fn publish(&self, ios: u64) {
        let bytes = ios * u64::from(self.chunk_bytes);
        self.shared.ios.fetch_add(ios, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The next operation; `None` if none can begin now.
    fn draw(&mut self) -> Option<(Kind, u64)> {
        if let Phase::ReadBack(from) = self.phase {
            let chunk = self.ledger.as_ref()?.next_acknowledged(from)?;
            self.phase = Phase::ReadBack(chunk + 1);
            return Some((Kind::Read, chunk));
        }
        let kind = self.workload.kind();
        let mut chunk = self.workload.chunk();
        let Some(ledger) = &self.ledger else {
            return Some((kind, chunk));
        };
        let mut draws = 1;
        while !ledger.is_idle(chunk) {
            if !self.workload.is_random() {
                self.workload.undo();
                return None;
            }
            if draws == DRAWS {
                return None;
            }
            draws += 1;
            chunk = self.workload.chunk();
        }
        Some((kind, chunk))
    }

    /// When the next I/O of the open loop should begin; `None` in the closed loop.
    fn next_start(&self) -> Option<u64> {
        let rate = self.plan.rate.filter(|_| self.phase == Phase::Workload)?;
        if self.is_exhausted() {
            return Some(u64::MAX);
        }
        // f64 holds whole nanoseconds for 100 days.
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let after = (self.begun as f64 * 1e9 / rate) as u64;
        Some(self.start.saturating_add(after))
    }

    fn look_for_the_end(&mut self, now: u64) {
        if now >= self.deadline || self.shared.stop.load(Ordering::Relaxed) {
            self.stopping = true;
        }
    }

    /// Whether no more I/O begins in this phase.
    fn is_exhausted(&self) -> bool {
        self.stopping
            || (self.phase == Phase::Workload
                && self.plan.ios.is_some_and(|most| self.begun >= most))
    }

    /// Whether the phase ends once nothing is outstanding.
    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Workload => self.is_exhausted(),
            Phase::ReadBack(from) => {
                self.stopping
                    || self.ledger.as_ref().and_then(|part| part.next_acknowledged(from)).is_none()
            }
        }
    }

    fn count_unissued(&mut self) {
        let Some(rate) = self.plan.rate else {
            return;
        };
        let end = self.deadline.min(self.shared.now());
        let seconds = Duration::from_nanos(end.saturating_sub(self.start)).as_secs_f64();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let due = (seconds * rate) as u64;
        let due = self.plan.ios.map_or(due, |most| due.min(most));
        self.outcome.unissued = due.saturating_sub(self.begun);
    }

    fn lba(&self, chunk: u64) -> u64 {
        self.plan.first_lba + chunk * u64::from(self.plan.chunk_blocks)
    }

    /// Checks what a read brought.
    fn verify(&mut self, queue: &mut Queue, slot: SlotId, chunk: u64) -> anyhow::Result<()> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let acceptable = ledger.acceptable(chunk);
        if acceptable.acknowledged == 0 {
            return Ok(());
        }
        let (lba, block, run) = (self.lba(chunk), self.plan.block_bytes, self.run);
        let data = &mut self.data;
        let mut look = |queue: &Queue| {
            let count = queue.copy_to(slot, 0, data);
            pattern::check(data.get(..count).unwrap_or_default(), block, run, lba, acceptable)
        };
        self.outcome.verified += u64::from(self.plan.chunk_blocks);
        let Err(Finding { lba: at_lba, mut fault }) = look(queue) else {
            return Ok(());
        };
        if let Fault::Lost { found } = fault {
            // Is the old data on the medium, or did only this read return it?
            let sqe = at(self.read_sqe, lba);
            let transfer = Transfer::Read(self.chunk_bytes);
            let again = queue.call(slot, sqe, transfer, STUCK, "a second read")?;
            if again.cqe.status().is_success() && look(queue).is_ok() {
                fault = Fault::Stale { found };
            }
        }
        self.outcome.fail(Failure { lba: at_lba, expected: acceptable, fault });
        Ok(())
    }

    fn io_error(&self, tag: Tag, completion: &Completion) -> anyhow::Error {
        let what = match tag.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Trim => "deallocation",
        };
        let status = if completion.data_digest_error {
            String::from("its data does not match the data digest")
        } else {
            completion.cqe.status().to_string()
        };
        anyhow!(
            "{what} of {} blocks at LBA {} of namespace {} failed: {status}",
            self.plan.chunk_blocks,
            self.lba(tag.chunk),
            self.plan.nsid
        )
    }
}

/// The command with its starting LBA.
fn at(mut sqe: Sqe, lba: u64) -> Sqe {
    let [low, high] = [lba & u64::from(u32::MAX), lba >> 32];
    sqe.cdw10 = U32::new(u32::try_from(low).unwrap_or(0));
    sqe.cdw11 = U32::new(u32::try_from(high).unwrap_or(0));
    sqe
}

fn workload_seed(run: u64, lba: u64) -> u64 {
    pattern::mix(run ^ lba)
}

/// Fills every slot with bytes that neither compress nor repeat, for writes that nobody verifies.
fn scramble(queue: &mut Queue, seed: u64) {
    let (mut state, mut bytes) = (seed, [0; 4096]);
    let mut slots = Vec::new();
    while let Some(slot) = queue.reserve() {
        let mut at = 0;
        loop {
            for word in bytes.as_chunks_mut::<8>().0 {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *word = pattern::mix(state).to_le_bytes();
            }
            at += match queue.copy_from(slot, at, &bytes) {
                0 => break,
                count => count,
            };
        }
        slots.push(slot);
    }
    for slot in slots {
        queue.release(slot);
    }
}
