//! What is counted of a device is what the device itself has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use block::ErrorKind;
use nvme::io::{Command, DatasetManagement, DsmRange, Transfer, WriteZeroes};
use nvme::{NSID_ALL, Sqe};
use proptest::prelude::*;
use target::ShardIndex;
use target::configuration::Configuration;
use target::statistics::{Class, ERRORS, Snapshot, Statistics};
use zerocopy::IntoBytes;

use crate::device::{Logged, TestDevice};
use crate::harness::{NQN, Wire, World, configuration, nqn};

const BLOCKS: u64 = 256;

/// What hosts, device and clock do.
#[derive(Debug, Clone)]
enum Step {
    /// A command on one of the queues.
    Submit(usize, Io),
    /// Time passes.
    Pass(u64),
    /// Operations stay in the device, or do not any more.
    Stick(bool),
    /// It lets go of so many, though stuck.
    LetGo(usize),
    /// The next operation fails so.
    Fail(usize),
    /// This queue breaks, whatever is in flight on it, and another takes its place.
    Break(usize),
}

#[derive(Debug, Clone)]
enum Io {
    Read(u64, u32, bool),
    Write(u64, u32),
    Zeroes(u64, u32),
    Deallocate(Vec<(u64, u32)>),
    Compare(u64, u32),
    Verify(u64, u32),
    Flush,
    FlushAll,
}

impl Io {
    /// The command, the host's data and the room it has for the device's.
    fn command(&self) -> (Sqe, Vec<u8>, u32) {
        let data = |blocks: u32| vec![0xa5; blocks as usize * 512];
        match *self {
            Self::Read(lba, blocks, fua) => {
                let transfer = Transfer { fua, ..Transfer::new(lba, blocks) };
                (Command::Read(transfer).to_sqe(1), Vec::new(), blocks * 512)
            }
            Self::Write(lba, blocks) => {
                (Command::Write(Transfer::new(lba, blocks)).to_sqe(1), data(blocks), 0)
            }
            Self::Zeroes(lba, blocks) => {
                (Command::WriteZeroes(WriteZeroes::new(lba, blocks)).to_sqe(1), Vec::new(), 0)
            }
            Self::Compare(lba, blocks) => {
                (Command::Compare(Transfer::new(lba, blocks)).to_sqe(1), data(blocks), 0)
            }
            Self::Verify(lba, blocks) => {
                (Command::Verify(Transfer::new(lba, blocks)).to_sqe(1), Vec::new(), 0)
            }
            Self::Flush => (Command::Flush.to_sqe(1), Vec::new(), 0),
            Self::FlushAll => (Command::Flush.to_sqe(NSID_ALL), Vec::new(), 0),
            Self::Deallocate(ref ranges) => {
                let list: Vec<_> =
                    ranges.iter().map(|(lba, blocks)| DsmRange::new(*lba, *blocks)).collect();
                let count = u16::try_from(list.len()).unwrap();
                let command = DatasetManagement::deallocate(count);
                let sqe = Command::DatasetManagement(command).to_sqe(1);
                (sqe, list.as_bytes().to_vec(), 0)
            }
        }
    }
}

fn io() -> impl Strategy<Value = Io> {
    let range = || (0..BLOCKS - 16, 1_u32..=16);
    prop_oneof![
        (range(), any::<bool>()).prop_map(|((lba, blocks), fua)| Io::Read(lba, blocks, fua)),
        range().prop_map(|(lba, blocks)| Io::Write(lba, blocks)),
        range().prop_map(|(lba, blocks)| Io::Zeroes(lba, blocks)),
        prop::collection::vec(range(), 1..40).prop_map(Io::Deallocate),
        range().prop_map(|(lba, blocks)| Io::Compare(lba, blocks)),
        range().prop_map(|(lba, blocks)| Io::Verify(lba, blocks)),
        Just(Io::Flush),
        Just(Io::FlushAll),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize, io()).prop_map(|(queue, io)| Step::Submit(queue, io)),
        3 => (0..5_000_000_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Stick),
        2 => (1..20_usize).prop_map(Step::LetGo),
        1 => (0..ERRORS.len()).prop_map(Step::Fail),
        1 => (0..3_usize).prop_map(Step::Break),
    ]
}

/// What the log of a device's queue comes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    /// By class: operations, bytes, nanoseconds, and the extremes.
    classes: BTreeMap<Class, (u64, u64, u64, u64, u64)>,
    errors: [u64; ERRORS.len()],
}

impl Expected {
    fn of(log: &[Logged], queue: usize) -> Self {
        let mut expected = Self::default();
        for it in log.iter().filter(|it| it.queue == queue) {
            let nanos = u64::try_from(it.took.as_nanos()).unwrap();
            match it.result {
                Ok(()) => {
                    let class = expected.classes.entry(it.kind.into());
                    let (count, bytes, sum, shortest, longest) =
                        class.or_insert((0, 0, 0, u64::MAX, 0));
                    *count += 1;
                    *bytes += it.blocks * 512;
                    *sum += nanos;
                    *shortest = nanos.min(*shortest);
                    *longest = nanos.max(*longest);
                }
                Err(kind) => {
                    let at = ERRORS.iter().position(|(known, _)| *known == kind).unwrap();
                    expected.errors[at] += 1;
                }
            }
        }
        expected
    }

    fn from_snapshot(snapshot: &Snapshot) -> Self {
        let classes = Class::ALL.into_iter().filter_map(|class| {
            let it = snapshot.class(class);
            let figures = (it.operations(), it.bytes, it.nanos, it.shortest()?, it.longest()?);
            Some((class, figures))
        });
        Self { classes: classes.collect(), errors: snapshot.errors }
    }
}

fn statistics(configuration: &Configuration) -> Arc<Statistics> {
    let subsystem = configuration.subsystem(&nqn(NQN)).unwrap();
    Arc::clone(&subsystem.namespace(1).unwrap().options().statistics)
}

/// Two shards, one device, three queues.
struct Bench {
    world: World,
    device: Arc<TestDevice>,
    statistics: Arc<Statistics>,
    cntlid: u16,
    queues: Vec<(usize, Wire)>,
    next_qid: u16,
}

impl Bench {
    fn new() -> Self {
        let device = TestDevice::new("disk0", BLOCKS);
        let mut world = World::new(2);
        let configuration = configuration(&[(1, &device)]);
        world.configure(&configuration, &[&device]);
        let (_, cntlid) = world.controller(0);
        let statistics = statistics(&configuration);
        let mut bench = Self { world, device, statistics, cntlid, queues: Vec::new(), next_qid: 1 };
        for shard in [0, 1, 1] {
            let queue = bench.connect(shard);
            bench.queues.push(queue);
        }
        bench
    }

    fn connect(&mut self, shard: usize) -> (usize, Wire) {
        let wire = self.world.io_queue(shard, self.cntlid, self.next_qid);
        self.next_qid += 1;
        (shard, wire)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Submit(queue, io) => {
                let (sqe, data, room) = io.command();
                self.world.submit(self.queues[*queue].1, sqe, &data, room);
                self.world.run();
            }
            Step::Pass(nanos) => self.world.advance(Duration::from_nanos(*nanos)),
            Step::Stick(stuck) => self.device.stick(*stuck),
            Step::LetGo(count) => self.device.let_go_of(*count),
            Step::Fail(kind) => self.device.fail_next(ERRORS[*kind].0),
            Step::Break(queue) => {
                let (shard, wire) = self.queues[*queue];
                self.world.close(wire);
                self.queues[*queue] = self.connect(shard);
            }
        }
    }

    fn check(&self) {
        let log = self.device.state.lock().unwrap().log.clone();
        let counted: BTreeMap<ShardIndex, Snapshot> =
            self.statistics.by_shard().into_iter().collect();
        for shard in 0..2 {
            let counted = &counted[&ShardIndex(u16::try_from(shard).unwrap())];
            let expected = Expected::of(&log, shard);
            assert_eq!(Expected::from_snapshot(counted), expected);
        }
    }
}

proptest! {
    #[test]
    fn every_operation_is_counted_once_as_the_device_saw_it(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut bench = Bench::new();
        for step in &steps {
            bench.take(step);
            bench.check();
        }
        bench.device.stick(false);
        bench.world.run();
        bench.check();
        assert_eq!(bench.statistics.total().in_flight(), 0);
    }
}

#[test]
fn what_is_out_is_in_flight() {
    let mut bench = Bench::new();
    bench.device.stick(true);
    for queue in [0, 1, 2, 2] {
        bench.take(&Step::Submit(queue, Io::Write(0, 1)));
    }
    let total = bench.statistics.total();
    assert_eq!((total.submitted, total.in_flight()), (4, 4));
    bench.take(&Step::LetGo(3));
    bench.take(&Step::Fail(4));
    bench.take(&Step::Pass(1_000_000));
    let total = bench.statistics.total();
    assert_eq!((total.submitted, total.in_flight()), (4, 1));
    assert_eq!(total.class(Class::Write).operations(), 2);
    let no_space = ERRORS.iter().position(|(kind, _)| *kind == ErrorKind::NoSpace).unwrap();
    assert_eq!(total.errors[no_space], 1);
}
