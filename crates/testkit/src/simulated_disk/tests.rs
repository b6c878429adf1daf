//! The disk against an oracle that keeps, for every block, all values it may have.

use std::collections::BTreeMap;

use block::{BlockQueue, Data, ErrorKind, Kind, Operation, Token};
use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE};

use super::*;

const BLOCK: usize = 512;
const BLOCKS: u64 = 32;

/// Completions in their order.
type Trace = Vec<(u64, Result<(), ErrorKind>)>;

/// A value that a block may have: the number of the write it is from, 0 for none.
#[derive(Debug, Clone, Copy)]
struct Version {
    stamp: u64,
    /// When that write completed, counting completions.
    completed: u64,
    /// It succeeded; otherwise the block may or may not have been written.
    certain: bool,
}

/// What is out.
struct Out {
    kind: Kind,
    lba: u64,
    blocks: u64,
    fua: bool,
    stamp: u64,
    /// Completions at the time it was submitted.
    submitted: u64,
    buffer: Option<Buffer>,
    cancelled: bool,
}

impl Out {
    fn range(&self) -> std::ops::Range<u64> {
        self.lba..self.lba + self.blocks
    }
}

struct Test {
    disk: SimulatedDisk,
    queues: Vec<Box<dyn BlockQueue>>,
    pool: Pool,
    random: Random,
    versions: Vec<Vec<Version>>,
    out: BTreeMap<u64, Out>,
    completions: u64,
    next: u64,
    trace: Trace,
}

impl Test {
    fn new(seed: u64, options: DiskOptions) -> Test {
        let disk = SimulatedDisk::new(DiskOptions { blocks: BLOCKS, ..options });
        let queues = vec![disk.queue(), disk.queue()];
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).unwrap();
        let first = Version { stamp: 0, completed: 0, certain: true };
        let versions = vec![vec![first]; usize::try_from(BLOCKS).unwrap()];
        let (random, out) = (Random::new(seed ^ 0xABCD), BTreeMap::new());
        Test { disk, queues, pool, random, versions, out, completions: 0, next: 1, trace: vec![] }
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..6 => self.submit(),
            6 => self.cancel(),
            _ => self.poll(),
        }
    }

    fn submit(&mut self) {
        let kind = match self.random.below(8) {
            0..4 => Kind::Write,
            4 => Kind::WriteZeroes { deallocate: true },
            5 => Kind::Flush,
            _ => Kind::Read,
        };
        let lba = self.random.below(BLOCKS);
        let blocks = self.random.below((BLOCKS - lba).min(6)) + 1;
        let (fua, stamp) = (self.random.permille(200), self.next);
        self.next += 1;
        let submitted = self.completions;
        // Zeroes look like the beginning, which may come back, so they carry its stamp.
        let stamp = if kind == Kind::Write { stamp } else { 0 };
        let buffer = self.buffer(kind, blocks, stamp);
        let out = Out { kind, lba, blocks, fua, stamp, submitted, buffer, cancelled: false };
        // Operations on the same blocks at the same time would have no order to speak of.
        let clash = |other: &Out| {
            let (a, b) = (other.range(), out.range());
            other.kind != Kind::Flush && kind != Kind::Flush && a.start < b.end && b.start < a.end
        };
        if self.out.values().any(clash) {
            return self.poll();
        }
        let data = out
            .buffer
            .as_ref()
            .map_or_else(Data::none, |buffer| buffer.segment(0, buffer.len()).unwrap().into());
        let token = Token(self.next);
        let queue = usize::try_from(self.next % 2).unwrap();
        self.next += 1;
        self.out.insert(token.0, out);
        self.queues[queue].submit(Operation { token, kind, lba, blocks, data, fua });
    }

    fn buffer(&self, kind: Kind, blocks: u64, stamp: u64) -> Option<Buffer> {
        if !matches!(kind, Kind::Read | Kind::Write) {
            return None;
        }
        let mut buffer = self.pool.take(usize::try_from(blocks).unwrap() * BLOCK).unwrap();
        for block in buffer.bytes_mut().unwrap().chunks_mut(8) {
            block.copy_from_slice(&stamp.to_le_bytes());
        }
        Some(buffer)
    }

    fn cancel(&mut self) {
        let chosen = self.random.index(self.out.len());
        if let Some((&token, out)) = self.out.iter_mut().nth(chosen) {
            out.cancelled |= self.queues.iter_mut().any(|queue| queue.cancel(Token(token)));
        }
    }

    fn poll(&mut self) {
        let mut done = Vec::new();
        for queue in &mut self.queues {
            queue.poll(3, &mut |completion| done.push(completion));
        }
        for Completion { token, result } in done {
            self.trace.push((token.0, result));
            self.completed(token.0, result);
        }
    }

    fn completed(&mut self, token: u64, result: Result<(), ErrorKind>) {
        let mut out = self.out.remove(&token).expect("completed twice, or never submitted");
        self.completions += 1;
        if out.cancelled {
            assert_eq!(result, Err(ErrorKind::Aborted));
            return;
        }
        match (out.kind, result) {
            (Kind::Read, Ok(())) => {
                let mut buffer = out.buffer.take().unwrap();
                let bytes = buffer.bytes_mut().unwrap().to_vec();
                for (block, bytes) in out.range().zip(bytes.chunks(BLOCK)) {
                    let last = self.readable(block);
                    assert!(last.contains(&stamp_of(bytes)), "block {block}: {last:?}");
                }
            }
            (Kind::Write | Kind::WriteZeroes { .. }, result) => {
                let certain = result.is_ok();
                let version = Version { stamp: out.stamp, completed: self.completions, certain };
                for block in out.range() {
                    let versions = &mut self.versions[usize::try_from(block).unwrap()];
                    if certain && out.fua {
                        versions.clear();
                    }
                    versions.push(version);
                }
            }
            (Kind::Flush, Ok(())) => {
                for versions in &mut self.versions {
                    let covered =
                        |version: &Version| version.certain && version.completed <= out.submitted;
                    let last = versions.iter().rposition(covered).unwrap_or(0);
                    versions.drain(..last);
                }
            }
            (_, result) => assert!(result.is_err()),
        }
    }

    /// What a read may bring: the last write that succeeded, or one that failed after it.
    fn readable(&self, block: u64) -> Vec<u64> {
        let versions = &self.versions[usize::try_from(block).unwrap()];
        let last = versions.iter().rposition(|version| version.certain).unwrap_or(0);
        versions[last..].iter().map(|version| version.stamp).collect()
    }

    fn cut(&mut self) {
        self.disk.cut();
        let contents = self.disk.contents();
        assert_eq!(contents, self.disk.durable());
        for (block, bytes) in (0..BLOCKS).zip(contents.chunks(BLOCK)) {
            let versions = &self.versions[usize::try_from(block).unwrap()];
            let in_flight = self.out.values().filter(|out| {
                out.range().contains(&block)
                    && !out.cancelled
                    && matches!(out.kind, Kind::Write | Kind::WriteZeroes { .. })
            });
            let stamp = stamp_of(bytes);
            let mut allowed = versions.iter().map(|version| version.stamp);
            let possible = allowed.any(|allowed| allowed == stamp)
                || in_flight.map(|out| out.stamp).any(|allowed| allowed == stamp);
            assert!(possible, "block {block} has {stamp}, of {versions:?}");
        }
        // The queues are dead: what they had ends as removed.
        for queue in &mut self.queues {
            let outstanding = queue.outstanding();
            let removed = queue.poll(usize::MAX, &mut |done| {
                assert_eq!(done.result, Err(ErrorKind::Removed));
            });
            assert_eq!(removed, outstanding);
        }
        // And it goes on from what is there now.
        self.out.clear();
        self.queues = vec![self.disk.queue(), self.disk.queue()];
        for (versions, bytes) in self.versions.iter_mut().zip(contents.chunks(BLOCK)) {
            *versions = vec![Version { stamp: stamp_of(bytes), completed: 0, certain: true }];
        }
    }
}

/// The write that a block is from; it must be from one alone.
fn stamp_of(block: &[u8]) -> u64 {
    let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(block.chunks(8).all(|part| part == stamp.to_le_bytes()), "a torn block");
    stamp
}

fn run(seed: u64, options: DiskOptions) -> (Trace, DiskCounts, Vec<u8>) {
    let mut test = Test::new(seed, options);
    for _ in 0..4 {
        for _ in 0..120 {
            test.step();
        }
        test.cut();
    }
    (test.trace, test.disk.counts(), test.disk.contents())
}

fn faulty(seed: u64) -> DiskOptions {
    let (failing_reads, failing_writes, failing_flushes) = (50, 50, 100);
    DiskOptions { failing_reads, failing_writes, failing_flushes, ..DiskOptions::new(seed) }
}

#[test]
fn what_was_flushed_or_written_with_fua_is_there_after_a_cut() {
    let mut total = DiskCounts::default();
    for seed in 0..300 {
        let options = if seed % 2 == 0 { DiskOptions::new(seed) } else { faulty(seed) };
        let (_, counts, _) = run(seed, options);
        total.kept += counts.kept;
        total.lost += counts.lost;
        total.torn += counts.torn;
        total.failures += counts.failures;
        total.flushes += counts.flushes;
        total.durable_writes += counts.durable_writes;
    }
    // It did happen: whoever never flushes would not get away with it.
    let DiskCounts { kept, lost, torn, failures, flushes, durable_writes, .. } = total;
    let all = [kept, lost, torn, failures, flushes, durable_writes];
    assert!(all.iter().all(|&count| count > 1000), "{total:?}");
}

#[test]
fn without_a_volatile_cache_completed_is_durable() {
    for seed in 0..100 {
        let options = DiskOptions { volatile_write_cache: false, ..DiskOptions::new(seed) };
        let mut test = Test::new(seed, options);
        for _ in 0..200 {
            test.step();
        }
        let last: Vec<_> = (0..BLOCKS).map(|block| *test.readable(block).last().unwrap()).collect();
        let durable: Vec<_> = test.disk.durable().chunks(BLOCK).map(stamp_of).collect();
        assert_eq!(durable, last);
    }
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run(5, faulty(5)), run(5, faulty(5)));
    assert_ne!(run(5, faulty(5)).0, run(6, faulty(6)).0);
}

#[test]
fn operations_overtake_each_other() {
    let mut test = Test::new(1, DiskOptions::new(1));
    for _ in 0..500 {
        test.step();
    }
    assert!(test.trace.windows(2).any(|two| two[0].0 > two[1].0));
}

#[test]
fn a_stalled_disk_completes_nothing_and_a_failing_one_changes_nothing() {
    let mut test = Test::new(2, DiskOptions::new(2));
    test.disk.stall(true);
    for _ in 0..200 {
        test.step();
    }
    assert_eq!(test.trace, []);
    test.disk.fail(Some(ErrorKind::Removed));
    test.disk.stall(false);
    for _ in 0..200 {
        test.poll();
    }
    assert!(test.out.is_empty() && !test.trace.is_empty());
    let ended = |result| result == Err(ErrorKind::Removed) || result == Err(ErrorKind::Aborted);
    assert!(test.trace.iter().all(|&(_, result)| ended(result)));
    assert!(test.disk.contents().iter().all(|&byte| byte == 0));
}

#[test]
fn the_writes_of_a_process_that_died_happened_or_not_but_never_later() {
    let mut differed = false;
    for seed in 0..20 {
        let mut test = Test::new(seed, DiskOptions { delay: 1000, ..DiskOptions::new(seed) });
        for _ in 0..60 {
            test.step();
        }
        test.queues.clear();
        let contents = test.disk.contents();
        let written = contents.chunks(BLOCK).filter(|block| stamp_of(block) != 0).count();
        differed |= written > 0;
        test.queues = vec![test.disk.queue()];
        for _ in 0..2000 {
            test.queues[0].poll(10, &mut |done| panic!("{done:?} of a dead process"));
        }
        assert_eq!(test.disk.contents(), contents);
    }
    assert!(differed);
}

#[test]
#[should_panic(expected = "memory lent to a write was changed")]
fn memory_that_changes_under_a_write_is_caught() {
    let test = Test::new(1, DiskOptions::new(1));
    let mut queue = test.disk.queue();
    let buffer = test.buffer(Kind::Write, 1, 7).unwrap();
    let data = buffer.segment(0, BLOCK).unwrap();
    let (token, kind, lba, blocks, fua) = (Token(1), Kind::Write, 0, 1, false);
    queue.submit(Operation { token, kind, lba, blocks, data: data.clone().into(), fua });
    data.fill_zero();
    while queue.outstanding() > 0 {
        queue.poll(1, &mut |_| {});
    }
}
