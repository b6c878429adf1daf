//! The disk against an oracle that keeps, for every block, all versions it may have.

use std::collections::BTreeMap;
use std::ops::Range;

use block::{Completion, Data, Deallocation, ErrorKind, Kind, Operation, Token};
use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE};

use super::*;

const BLOCK: usize = 512;
const BLOCKS: u64 = 32;

/// Completions in their order.
type Trace = Vec<(u64, Result<(), ErrorKind>)>;

/// A version that a block may have.
#[derive(Debug, Clone, Copy)]
struct Possible {
    version: Version,
    /// When the write that made it completed, counting completions.
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
    version: Version,
    /// Completions at the time it was submitted.
    submitted: u64,
    buffer: Option<Buffer>,
    cancelled: bool,
}

impl Out {
    fn range(&self) -> Range<u64> {
        self.lba..self.lba + self.blocks
    }

    fn writes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::WriteZeroes { .. })
    }
}

/// Whether the disks were rough enough to show anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    /// Blocks that had not been flushed and were there after a cut, or were not.
    kept: u64,
    lost: u64,
    /// Writes of which a cut left some blocks and took others.
    torn: u64,
    failures: u64,
    flushes: u64,
    forced: u64,
}

struct Test {
    disk: Arc<Disk>,
    queues: Vec<DiskQueue>,
    now: u64,
    pool: Pool,
    random: Random,
    possible: Vec<Vec<Possible>>,
    out: BTreeMap<u64, Out>,
    completions: u64,
    next: u64,
    trace: Trace,
    seen: Seen,
}

const FINE: Weather = Weather {
    latency: (1, 16),
    failures: 0,
    stragglers: 20,
    cancels: 500,
    hangs: false,
    gone: false,
};

const FOUL: Weather = Weather { failures: 60, ..FINE };

impl Test {
    fn new(seed: u64, weather: Weather, volatile_write_cache: bool) -> Test {
        let geometry = Geometry { block_size: 512, blocks: BLOCKS, generation: 0 };
        let properties = Properties {
            read_only: false,
            volatile_write_cache,
            deallocation: Some(Deallocation { reads_zero: true, granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: "simulated".to_owned(),
        };
        let mut random = Random::new(seed);
        let disk = Disk::new("disk".to_owned(), geometry, properties, weather, random.split());
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let first = Possible { version: 0, completed: 0, certain: true };
        let mut test = Test {
            disk,
            queues: vec![],
            now: 0,
            pool: Arena::new(config).pool(SLAB_SIZE).unwrap(),
            random,
            possible: vec![vec![first]; usize::try_from(BLOCKS).unwrap()],
            out: BTreeMap::new(),
            completions: 0,
            next: 1,
            trace: vec![],
            seen: Seen::default(),
        };
        test.open();
        test
    }

    fn open(&mut self) {
        let agenda = Rc::default();
        self.queues = (0..2).map(|shard| self.disk.queue(&agenda, shard)).collect();
    }

    fn steps(&mut self, count: u32) {
        for _ in 0..count {
            match self.random.below(10) {
                0..6 => self.submit(),
                6 => self.cancel(),
                _ => self.poll(),
            }
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
        let fua = self.random.permille(200);
        let version = if kind == Kind::Write { self.next } else { 0 };
        self.next += 1;
        let buffer = self.buffer(kind, lba, blocks, version);
        let submitted = self.completions;
        let out = Out { kind, lba, blocks, fua, version, submitted, buffer, cancelled: false };
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

    fn buffer(&self, kind: Kind, lba: u64, blocks: u64, version: Version) -> Option<Buffer> {
        if !matches!(kind, Kind::Read | Kind::Write) {
            return None;
        }
        let blocks = usize::try_from(blocks).unwrap();
        let mut buffer = self.pool.take(blocks * BLOCK).unwrap();
        let contents = pattern::blocks(&vec![version; blocks], lba, BLOCK);
        buffer.bytes_mut().unwrap().copy_from_slice(&contents);
        Some(buffer)
    }

    fn cancel(&mut self) {
        let chosen = self.random.index(self.out.len());
        if let Some((&token, out)) = self.out.iter_mut().nth(chosen) {
            out.cancelled |= self.queues.iter_mut().any(|queue| queue.cancel(Token(token)));
        }
    }

    fn poll(&mut self) {
        self.now += self.random.below(6);
        self.disk.set_time(self.now);
        let mut done = Vec::new();
        for queue in &mut self.queues {
            queue.poll(3, &mut |completion| done.push(completion));
        }
        for Completion { token, result, .. } in done {
            self.trace.push((token.0, result));
            self.completed(token.0, result);
        }
    }

    fn finish(&mut self) {
        while !self.out.is_empty() {
            self.poll();
        }
    }

    fn completed(&mut self, token: u64, result: Result<(), ErrorKind>) {
        let mut out = self.out.remove(&token).expect("completed twice, or never submitted");
        self.completions += 1;
        if out.cancelled {
            assert_eq!(result, Err(ErrorKind::Aborted));
            return;
        }
        self.seen.failures += u64::from(result.is_err());
        match (out.kind, result) {
            (Kind::Read, Ok(())) => {
                let mut buffer = out.buffer.take().unwrap();
                let bytes = buffer.bytes_mut().unwrap().to_vec();
                for (lba, bytes) in out.range().zip(bytes.chunks(BLOCK)) {
                    let version = pattern::read(bytes, lba).unwrap();
                    let readable = self.readable(lba);
                    assert!(readable.contains(&version), "block {lba}: {version}, {readable:?}");
                }
            }
            (Kind::Write | Kind::WriteZeroes { .. }, result) => {
                let certain = result.is_ok();
                let durable = out.fua || !self.disk.properties.volatile_write_cache;
                self.seen.forced += u64::from(certain && out.fua);
                let possible =
                    Possible { version: out.version, completed: self.completions, certain };
                for lba in out.range() {
                    let all = &mut self.possible[usize::try_from(lba).unwrap()];
                    if certain && durable {
                        all.clear();
                    }
                    all.push(possible);
                }
            }
            (Kind::Flush, Ok(())) => {
                self.seen.flushes += 1;
                for all in &mut self.possible {
                    let covered = |one: &Possible| one.certain && one.completed <= out.submitted;
                    let last = all.iter().rposition(covered).unwrap_or(0);
                    all.drain(..last);
                }
            }
            (_, result) => assert!(result.is_err()),
        }
    }

    /// What a read may bring: the last write that succeeded, or one that failed after it.
    fn readable(&self, lba: u64) -> Vec<Version> {
        let all = &self.possible[usize::try_from(lba).unwrap()];
        let last = all.iter().rposition(|one| one.certain).unwrap_or(0);
        all[last..].iter().map(|one| one.version).collect()
    }

    fn contents(&self) -> Vec<Version> {
        (0..BLOCKS).map(|lba| self.disk.version(lba)).collect()
    }

    /// The machine loses its power, and starts again.
    fn cut(&mut self) {
        self.queues.clear();
        let before = self.contents();
        self.disk.cut();
        let after = self.contents();
        for (lba, version) in (0..).zip(&after) {
            let all = &self.possible[usize::try_from(lba).unwrap()];
            let under_way = self
                .out
                .values()
                .filter(|out| out.writes() && !out.cancelled && out.range().contains(&lba));
            let mut allowed =
                under_way.map(|out| out.version).chain(all.iter().map(|one| one.version));
            assert!(allowed.any(|one| one == *version), "block {lba} has {version}, of {all:?}");
        }
        self.count(&before, &after);
        // It goes on from what is there now.
        self.out.clear();
        self.open();
        for (all, &version) in self.possible.iter_mut().zip(&after) {
            *all = vec![Possible { version, completed: 0, certain: true }];
        }
    }

    fn count(&mut self, before: &[Version], after: &[Version]) {
        // Of each write that was not durable: blocks that are still there, and that are not.
        let mut writes: BTreeMap<Version, (u64, u64)> = BTreeMap::new();
        for ((before, after), all) in before.iter().zip(after).zip(&self.possible) {
            if all.len() > 1 {
                let (kept, lost) = writes.entry(*before).or_default();
                *if before == after { kept } else { lost } += 1;
            }
        }
        for (version, (kept, lost)) in writes {
            self.seen.kept += kept;
            self.seen.lost += lost;
            self.seen.torn += u64::from(version > 0 && kept > 0 && lost > 0);
        }
    }
}

fn run(seed: u64, weather: Weather, volatile: bool) -> (Trace, Seen, Vec<Version>) {
    let mut test = Test::new(seed, weather, volatile);
    for _ in 0..4 {
        test.steps(120);
        test.cut();
    }
    let contents = test.contents();
    (test.trace, test.seen, contents)
}

#[test]
fn what_was_flushed_or_written_with_fua_is_there_after_a_cut() {
    let mut total = Seen::default();
    for seed in 0..300 {
        let (_, seen, _) = run(seed, if seed % 2 == 0 { FINE } else { FOUL }, true);
        total.kept += seen.kept;
        total.lost += seen.lost;
        total.torn += seen.torn;
        total.failures += seen.failures;
        total.flushes += seen.flushes;
        total.forced += seen.forced;
    }
    // It did happen: whoever never flushes would not get away with it.
    let Seen { kept, lost, torn, failures, flushes, forced } = total;
    let all = [kept, lost, torn, failures, flushes, forced];
    assert!(all.iter().all(|&count| count > 1000), "{total:?}");
}

#[test]
fn without_a_volatile_cache_completed_is_durable() {
    for seed in 0..100 {
        run(seed, FINE, false);
    }
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run(5, FOUL, true), run(5, FOUL, true));
    assert_ne!(run(5, FOUL, true).0, run(6, FOUL, true).0);
}

#[test]
fn operations_overtake_each_other() {
    let mut test = Test::new(1, FINE, true);
    test.steps(500);
    assert!(test.trace.windows(2).any(|two| two[0].0 > two[1].0));
}

#[test]
fn a_disk_that_hangs_completes_nothing_and_one_that_is_gone_changes_nothing() {
    let mut test = Test::new(2, FINE, true);
    test.disk.hang(true);
    test.steps(200);
    assert_eq!(test.trace, []);
    test.disk.hang(false);
    test.finish();
    let (contents, ended) = (test.contents(), test.trace.len());
    assert!(ended > 0);
    test.disk.pull(true);
    test.steps(200);
    test.finish();
    let after = &test.trace[ended..];
    assert!(!after.is_empty() && after.iter().all(|one| one.1 == Err(ErrorKind::Removed)));
    assert_eq!(test.contents(), contents);
}

#[test]
fn the_writes_of_a_process_that_died_happened_or_not_but_never_later() {
    let mut happened = false;
    for seed in 0..20 {
        let slow = Weather { latency: (1000, 2000), ..FINE };
        let mut test = Test::new(seed, slow, true);
        test.steps(60);
        test.queues.clear();
        let contents = test.contents();
        happened |= contents.iter().any(|version| *version != 0);
        assert_eq!(test.disk.outstanding(), 0);
        test.open();
        test.disk.set_time(1_000_000);
        for queue in &mut test.queues {
            queue.poll(10, &mut |done| panic!("{done:?} of a dead process"));
        }
        assert_eq!(test.contents(), contents);
    }
    assert!(happened);
}

#[test]
#[should_panic(expected = "memory lent to a write was changed")]
fn memory_that_changes_under_a_write_is_caught() {
    let mut test = Test::new(1, FINE, true);
    let buffer = test.buffer(Kind::Write, 0, 1, 7).unwrap();
    let data = buffer.segment(0, BLOCK).unwrap();
    let (token, kind, lba, blocks, fua) = (Token(1), Kind::Write, 0, 1, false);
    test.queues[0].submit(Operation { token, kind, lba, blocks, data: data.clone().into(), fua });
    data.fill_zero();
    test.disk.set_time(1000);
    test.queues[0].poll(1, &mut |_| {});
}
