//! Limits of devices under the simulated clock: how exact they are, whom they serve, and what they do not disturb.
//!
//! Hosts keep so many commands in flight and answer each completion a tenth of a millisecond later; shards sleep
//! until something comes or is due, as reactors do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use nvme::io::{Command, Transfer, WriteZeroes};
use target::rate_limit::{Limit, RateLimits, Rates};
use target::{CommandRefused, Instant, ShardLimits};

use crate::device::{BLOCK, TestDevice};
use crate::harness::{Attempt, NQN, Wire, World, configuration, nqn};

const SHARDS: u16 = 3;
const ROUND_TRIP: Duration = Duration::from_micros(100);
const TEN_SECONDS: Duration = Duration::from_secs(10);
const NONE: Rates = [0; Limit::ALL.len()];
const MIB: u64 = 1 << 20;

fn rates(limits: &[(Limit, u64)]) -> Rates {
    let mut rates = NONE;
    for (limit, rate) in limits {
        rates[limit.index()] = *rate;
    }
    rates
}

/// What one queue does all the time.
#[derive(Debug, Clone, Copy)]
struct Load {
    shard: usize,
    depth: u16,
    blocks: u32,
    /// Writes in a hundred commands.
    writes: u16,
}

const READS: Load = Load { shard: 0, depth: 16, blocks: 8, writes: 0 };

/// What a queue has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Done {
    fn ios(&self) -> u64 {
        self.reads + self.writes
    }

    fn bytes(&self) -> u64 {
        self.read_bytes + self.written_bytes
    }

    fn of(&self, limit: Limit) -> u64 {
        match limit {
            Limit::ReadWriteIos => self.ios(),
            Limit::ReadIos => self.reads,
            Limit::WriteIos => self.writes,
            Limit::ReadWriteBytes => self.bytes(),
            Limit::ReadBytes => self.read_bytes,
            Limit::WriteBytes => self.written_bytes,
        }
    }
}

fn sum<'a>(done: impl IntoIterator<Item = &'a Done>) -> Done {
    done.into_iter().fold(Done::default(), |sum, one| Done {
        reads: sum.reads + one.reads,
        writes: sum.writes + one.writes,
        read_bytes: sum.read_bytes + one.read_bytes,
        written_bytes: sum.written_bytes + one.written_bytes,
    })
}

/// A queue and what it has under way.
#[derive(Debug)]
struct Worker {
    load: Load,
    wire: Wire,
    nsid: u32,
    sent: u64,
    /// By command identifier: whether it writes.
    under_way: BTreeMap<u16, bool>,
    done: Done,
    failed: u64,
}

struct Bench {
    world: World,
    limits: Vec<Arc<RateLimits>>,
    devices: Vec<Arc<TestDevice>>,
    workers: Vec<Worker>,
    /// When which worker may send its next command.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    turns: u64,
}

impl Bench {
    fn new(devices: u32) -> Self {
        let devices: Vec<_> =
            (0..devices).map(|number| TestDevice::new(&format!("disk{number}"), 8192)).collect();
        let numbered: Vec<_> = (1..).zip(&devices).collect();
        let configuration = configuration(&numbered);
        let subsystem = configuration.subsystem(&nqn(NQN)).unwrap();
        let limits = subsystem.namespaces().iter().map(|it| Arc::clone(it.rate_limits()));
        let limits = limits.collect();
        let bounds = ShardLimits { requests: 2048, ..ShardLimits::default() };
        let mut world = World::with(SHARDS, 16 << 20, &bounds);
        world.configure(&configuration, &devices.iter().collect::<Vec<_>>());
        let due = BinaryHeap::new();
        Self { world, limits, devices, workers: Vec::new(), due, turns: 0 }
    }

    /// One device with these rates.
    fn limited(limits: &[(Limit, u64)]) -> Self {
        let bench = Self::new(1);
        bench.set(limits);
        bench
    }

    fn set(&self, limits: &[(Limit, u64)]) {
        self.limits[0].set(&rates(limits), SHARDS);
    }

    /// Queues with these loads on namespace 1, all of one host.
    fn with(mut self, loads: &[Load]) -> Self {
        let (_, cntlid) = self.world.controller(0);
        for (qid, load) in (1..).zip(loads) {
            self.add(*load, cntlid, qid, 1);
        }
        self
    }

    fn add(&mut self, load: Load, cntlid: u16, qid: u16, nsid: u32) -> usize {
        let wire = self.world.open(load.shard);
        let mut attempt = Attempt::io(cntlid, qid);
        attempt.command.sqsize = load.depth.clamp(2, 127);
        self.world.connect(wire, &attempt).ok();
        let (under_way, done) = (BTreeMap::new(), Done::default());
        self.workers.push(Worker { load, wire, nsid, sent: 0, under_way, done, failed: 0 });
        let worker = self.workers.len() - 1;
        for _ in 0..load.depth {
            self.due.push(Reverse((self.world.now, worker)));
        }
        worker
    }

    fn send(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        // Every so many, evenly spread.
        let writes = u64::from(worker.load.writes);
        let write = (worker.sent + 1) * writes / 100 > worker.sent * writes / 100;
        let cid = (1..=worker.load.depth).find(|cid| !worker.under_way.contains_key(cid)).unwrap();
        let bytes = worker.load.blocks * BLOCK;
        let blocks = Transfer::new(0, worker.load.blocks);
        let (sqe, data) = if write {
            (Command::Write(blocks).to_sqe(worker.nsid), vec![7; bytes as usize])
        } else {
            (Command::Read(blocks).to_sqe(worker.nsid), Vec::new())
        };
        let room = if write { 0 } else { bytes };
        match self.world.submit_as(worker.wire, cid, sqe, &data, room) {
            Ok(_) => {
                worker.sent += 1;
                assert_eq!(worker.under_way.insert(cid, write), None);
            }
            Err(CommandRefused::Busy) => {
                self.due.push(Reverse((self.world.now + ROUND_TRIP, number)));
            }
            Err(CommandRefused::Closed) => {}
        }
    }

    /// What the hosts do at this moment.
    fn hosts(&mut self) {
        for number in 0..self.workers.len() {
            let worker = &mut self.workers[number];
            let Some(connection) = self.world.wires.get_mut(&worker.wire) else { continue };
            while let Some(finished) = connection.finished.pop_front() {
                let cid = finished.cqe.cid.get();
                let write = worker.under_way.remove(&cid).expect("each is answered once");
                let bytes = u64::from(worker.load.blocks * BLOCK);
                if finished.status().is_success() {
                    let done = &mut worker.done;
                    let (ios, all) = if write {
                        (&mut done.writes, &mut done.written_bytes)
                    } else {
                        (&mut done.reads, &mut done.read_bytes)
                    };
                    (*ios, *all) = (*ios + 1, *all + bytes);
                } else {
                    worker.failed += 1;
                }
                self.due.push(Reverse((self.world.now + ROUND_TRIP, number)));
            }
        }
        while let Some(Reverse((at, number))) = self.due.peek().copied()
            && at <= self.world.now
        {
            self.due.pop();
            self.send(number);
        }
        for device in &self.devices {
            device.done();
            device.state.lock().unwrap().log.clear();
        }
    }

    /// Time passes: nobody looks at anything before it is due.
    fn run(&mut self, time: Duration) {
        let end = self.world.now + time;
        loop {
            while self.world.turn() {
                self.hosts();
                self.turns += 1;
            }
            self.hosts();
            let busy = self.world.shards.iter().any(target::Shard::has_work)
                || self.world.shards.iter().any(|it| it.has_actions(crate::harness::PORT));
            let deadlines = self.world.shards.iter().filter_map(target::Shard::next_deadline);
            let hosts = self.due.peek().map(|Reverse((at, _))| *at);
            let next = deadlines.chain(hosts).min().unwrap_or(end);
            // Turns take time.
            let soon = self.world.now + Duration::from_micros(5);
            self.world.now = if busy { soon } else { next.max(soon) }.min(end);
            if self.world.now >= end {
                return;
            }
        }
    }

    /// What each has done in this time.
    fn measure(&mut self, time: Duration) -> Vec<Done> {
        for worker in &mut self.workers {
            worker.done = Done::default();
        }
        self.run(time);
        self.workers.iter().map(|worker| worker.done).collect()
    }
}

#[track_caller]
fn assert_near(found: u64, expected: u64, percent: u64, what: &str) {
    let near = found.abs_diff(expected) * 100 <= expected * percent;
    assert!(near, "{what}: {found} instead of {expected}");
}

/// Loads of every kind on every shard, more than any limit here lets through.
fn crowd() -> Vec<Load> {
    let mut loads = Vec::new();
    for shard in 0..usize::from(SHARDS) {
        for (depth, blocks, writes) in
            [(1, 8, 50), (16, 8, 50), (4, 64, 50), (4, 8, 0), (4, 8, 100)]
        {
            loads.push(Load { shard, depth, blocks, writes });
        }
    }
    loads
}

#[track_caller]
fn is_kept(limits: &[(Limit, u64)], binding: &[Limit]) {
    let mut bench = Bench::limited(limits).with(&crowd());
    let done = sum(&bench.measure(TEN_SECONDS));
    for (limit, rate) in limits {
        let (found, allowed) = (done.of(*limit), rate * 10);
        assert!(found * 100 <= allowed * 105, "{limit:?} {rate}: {found} of {allowed}");
        if binding.contains(limit) {
            assert_near(found, allowed, 5, &format!("{limit:?} {rate}"));
        }
    }
}

#[test]
fn a_limit_of_ios_is_kept_within_five_per_cent() {
    for rate in [20, 500, 9_000, 40_000] {
        is_kept(&[(Limit::ReadWriteIos, rate)], &[Limit::ReadWriteIos]);
    }
    is_kept(&[(Limit::ReadIos, 3_000)], &[Limit::ReadIos]);
    is_kept(&[(Limit::WriteIos, 3_000)], &[Limit::WriteIos]);
}

#[test]
fn a_limit_of_bytes_is_kept_within_five_per_cent() {
    for rate in [MIB, 20 * MIB, 200 * MIB] {
        is_kept(&[(Limit::ReadWriteBytes, rate)], &[Limit::ReadWriteBytes]);
    }
    is_kept(&[(Limit::ReadBytes, 10 * MIB)], &[Limit::ReadBytes]);
    is_kept(&[(Limit::WriteBytes, 10 * MIB)], &[Limit::WriteBytes]);
}

#[test]
fn limits_hold_together() {
    let each = [(Limit::ReadIos, 2_000), (Limit::WriteIos, 500)];
    is_kept(&each, &[Limit::ReadIos, Limit::WriteIos]);
    let each = [(Limit::ReadBytes, 5 * MIB), (Limit::WriteBytes, 20 * MIB)];
    is_kept(&each, &[Limit::ReadBytes, Limit::WriteBytes]);
    // What both ways may do together is more than one of them may, and less than both.
    let all = [(Limit::ReadWriteIos, 5_000), (Limit::ReadIos, 4_000), (Limit::WriteIos, 1_500)];
    is_kept(&all, &[Limit::ReadWriteIos]);
    // The mean command has 7 KiB: bytes run out first.
    is_kept(
        &[(Limit::ReadWriteIos, 5_000), (Limit::ReadWriteBytes, 10 * MIB)],
        &[Limit::ReadWriteBytes],
    );
    is_kept(
        &[(Limit::ReadWriteIos, 1_000), (Limit::ReadWriteBytes, 40 * MIB)],
        &[Limit::ReadWriteIos],
    );
}

/// All queues get the same of this limit, whatever they are.
#[track_caller]
fn is_fair(limit: Limit, rate: u64, loads: &[Load], percent: u64) {
    let mut bench = Bench::limited(&[(limit, rate)]).with(loads);
    bench.run(Duration::from_secs(1));
    let done = bench.measure(TEN_SECONDS);
    let fair = rate * 10 / loads.len() as u64;
    for (load, done) in loads.iter().zip(&done) {
        assert_near(
            done.of(limit),
            fair,
            percent,
            &format!("{limit:?} {rate}: {load:?}, {done:?}"),
        );
    }
}

#[test]
fn deep_and_shallow_queues_get_the_same() {
    let loads = [READS, Load { depth: 1, ..READS }, Load { depth: 128, ..READS }];
    is_fair(Limit::ReadWriteIos, 300, &loads, 5);
    is_fair(Limit::ReadWriteIos, 3_000, &loads, 5);
    is_fair(Limit::ReadBytes, 10 * MIB, &loads, 5);
}

#[test]
fn large_and_small_commands_get_the_same_bytes() {
    let loads = [
        Load { blocks: 1, depth: 32, ..READS },
        Load { blocks: 256, depth: 1, ..READS },
        Load { blocks: 8, writes: 100, ..READS },
        Load { blocks: 64, writes: 50, ..READS },
    ];
    is_fair(Limit::ReadWriteBytes, 20 * MIB, &loads, 5);
    // Each read is one I/O, whatever its size.
    is_fair(Limit::ReadWriteIos, 2_000, &loads, 5);
}

#[test]
fn queues_on_unequal_shards_get_the_same() {
    let loads = [READS, READS, READS, Load { shard: 1, ..READS }];
    for rate in [50, 1_000, 20_000] {
        is_fair(Limit::ReadWriteIos, rate, &loads, 5);
    }
    is_fair(Limit::ReadWriteBytes, 2 * MIB, &loads, 5);
    let loads = [
        Load { depth: 1, ..READS },
        Load { shard: 1, depth: 128, ..READS },
        Load { shard: 1, depth: 64, writes: 100, ..READS },
        Load { shard: 2, depth: 2, ..READS },
    ];
    is_fair(Limit::ReadWriteIos, 400, &loads, 5);
    is_fair(Limit::ReadWriteIos, 4_000, &loads, 5);
}

#[test]
fn what_one_does_not_use_another_gets() {
    // The one with a command at a time, and nothing in between, cannot use its half.
    let loads = [Load { depth: 1, ..READS }, Load { shard: 1, depth: 64, ..READS }];
    for (loads, what) in [(&loads[..], "both"), (&loads[1..], "alone")] {
        let mut bench = Bench::limited(&[(Limit::ReadWriteIos, 40_000)]).with(loads);
        bench.run(Duration::from_secs(1));
        let done = bench.measure(TEN_SECONDS);
        assert_near(sum(&done).ios(), 400_000, 5, what);
        // By itself it would do one in 100 µs, and those in line take a part of that.
        assert!(what == "alone" || done[0].ios() > 30_000, "{done:?}");
    }
    // A limit of one way leaves the other alone, on the same queue.
    let loads = [Load { depth: 32, writes: 0, ..READS }, Load { writes: 100, ..READS }];
    let mut bench = Bench::limited(&[(Limit::ReadIos, 100)]).with(&loads);
    let done = bench.measure(TEN_SECONDS);
    assert_near(done[0].reads, 1_000, 5, "reads");
    assert!(done[1].writes > 1_000_000, "{done:?}");
}

#[test]
fn a_change_takes_effect_at_once() {
    let loads =
        [READS, Load { shard: 1, writes: 50, ..READS }, Load { shard: 2, depth: 1, ..READS }];
    let mut bench = Bench::new(1).with(&loads);
    let second = Duration::from_secs(1);
    let unlimited = sum(&bench.measure(second)).ios();
    for rate in [1_000, 20_000, 2, 5_000, 0, 300] {
        bench.set(&[(Limit::ReadWriteIos, rate)]);
        // Shards are called for a change; nothing but that wakes them.
        let done = sum(&bench.measure(second)).ios();
        match rate {
            0 => assert_near(done, unlimited, 5, "off"),
            // What has been saved up may come on top, once.
            _ => assert!(done <= rate + rate / 10 + 2, "{rate}: {done}"),
        }
        if rate > 0 {
            let done = sum(&bench.measure(2 * second)).ios();
            // And each shard saves up for one.
            assert!(done.abs_diff(2 * rate) <= rate / 10 + u64::from(SHARDS), "{rate}: {done}");
        }
    }
    // From bytes to I/Os, and both.
    bench.set(&[(Limit::ReadWriteBytes, 4 * MIB)]);
    bench.run(second);
    assert_near(sum(&bench.measure(TEN_SECONDS)).bytes(), 40 * MIB, 5, "bytes");
    bench.set(&[(Limit::ReadWriteBytes, 40 * MIB), (Limit::ReadIos, 100), (Limit::WriteIos, 50)]);
    bench.run(second);
    let done = sum(&bench.measure(TEN_SECONDS));
    assert_near(done.reads, 1_000, 5, "reads");
    assert!(done.writes <= 525, "{done:?}");
}

#[test]
fn sleeping_shards_wake_up_for_credit_and_no_more_than_that() {
    let mut bench = Bench::limited(&[(Limit::ReadWriteIos, 10)]).with(&[READS]);
    bench.run(Duration::from_secs(1));
    let before = bench.turns;
    bench.run(TEN_SECONDS);
    // Once in 4 ms, and for each command.
    assert!(bench.turns - before < 3_000, "{} turns in ten seconds", bench.turns - before);
    // With nothing in line, for housekeeping.
    bench.workers.clear();
    bench.due.clear();
    bench.run(TEN_SECONDS);
    let before = bench.turns;
    bench.run(TEN_SECONDS);
    assert!(bench.turns - before < 50, "{} turns in ten seconds", bench.turns - before);
}

#[test]
fn another_device_behind_the_same_connection_is_not_held_back() {
    let mut bench = Bench::new(2);
    bench.set(&[(Limit::ReadWriteBytes, MIB), (Limit::WriteIos, 1)]);
    let wire = {
        let (_, cntlid) = bench.world.controller(0);
        bench.world.io_queue(0, cntlid, 1)
    };
    // Data in capsules is taken in though nothing more may be written; so what is behind can be read.
    bench.world.wires.get_mut(&wire).unwrap().lazy = true;
    for _ in 0..100 {
        bench.world.submit(wire, Command::Write(Transfer::new(0, 8)).to_sqe(1), &[7; 4096], 0);
    }
    bench.world.run();
    let receives = std::mem::take(&mut bench.world.wires.get_mut(&wire).unwrap().receives);
    assert_eq!(receives.len(), 100);
    for (request, length) in receives {
        bench.world.receive(wire, request, length);
    }
    // The pool is not filled with it.
    for _ in 0..20 {
        bench.world.submit(wire, Command::Read(Transfer::new(0, 128)).to_sqe(1), &[], 128 * BLOCK);
    }
    bench.world.run();
    assert!(bench.world.wires[&wire].finished.len() < 5);
    bench.world.wires.get_mut(&wire).unwrap().finished.clear();
    for _ in 0..7 {
        let read = Command::Read(Transfer::new(0, 8)).to_sqe(2);
        bench.world.execute(wire, read, &[], 4096).ok();
    }
    // What moves no data does not count.
    bench.world.execute(wire, Command::Flush.to_sqe(1), &[], 0).ok();
    bench.world.execute(wire, Command::WriteZeroes(WriteZeroes::new(0, 8)).to_sqe(1), &[], 0).ok();
    bench.world.close(wire);
    assert_eq!(bench.world.shards[0].queues_in_use(), 1);
}

#[test]
fn an_orderly_end_does_not_wait_for_limits() {
    let mut bench = Bench::limited(&[(Limit::ReadWriteIos, 1)]).with(&[READS]);
    bench.run(Duration::from_millis(10));
    assert!(bench.workers[0].under_way.len() > 10);
    for shard in &mut bench.world.shards {
        shard.begin_shutdown();
    }
    bench.world.run();
    assert!(bench.world.shards.iter().all(|shard| shard.drained().is_ok()));
    assert_eq!(
        bench.workers[0].under_way.len(),
        bench.world.wires[&bench.workers[0].wire].finished.len()
    );
}

#[test]
fn a_namespace_that_goes_answers_what_waits() {
    let mut bench = Bench::limited(&[(Limit::ReadWriteIos, 1)]).with(&[READS]);
    bench.run(Duration::from_millis(10));
    bench.world.configure(&configuration(&[]), &[]);
    bench.hosts();
    assert!(bench.workers[0].failed > 10);
    assert_eq!(bench.world.shards[0].requests_in_use(), 0);
}
