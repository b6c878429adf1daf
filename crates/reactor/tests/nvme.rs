//! The ring for NVMe commands, with every set of features that a kernel may leave. There is no device here: `/dev/null` takes
//! any command and ends it with 0. What a real controller makes of them is for the checks in the virtual machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::rc::Rc;

use memory::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE};
use nvme::io::{Command, DatasetManagement, DsmRange, Transfer, WriteZeroes};
use proptest::prelude::*;
use reactor::ring::nvme::{
    CommandPort, CommandRing, Data, Namespace, NamespaceError, NvmeOp, Payload, RingNamespace,
};
use reactor::ring::{Features, Segments};
use reactor::{IdlePolicy, Reactor, ReactorConfig, RingChoice, SimulatedClock};
use rustix::io::Errno;

const DEVICE: Features =
    Features::LARGE_ENTRIES.union(Features::COMMANDS).union(Features::FIXED_COMMANDS);

struct Rig {
    reactor: Reactor,
    pool: Pool,
    namespace: Namespace,
}

impl Rig {
    fn new(without: Features, idle: IdlePolicy) -> Rig {
        let ring = RingChoice::Probe { without };
        let clock = SimulatedClock::new().clock();
        let config = ReactorConfig { ring, idle, clock, ..ReactorConfig::default() };
        let reactor = Reactor::new(&config).unwrap();
        let arena =
            Arena::new(ArenaConfig { capacity: 4 * SLAB_SIZE, hugepages: Hugepages::Never });
        let pool = arena.pool(3 * SLAB_SIZE).unwrap();
        reactor.local().ring().expect("io_uring works here").register_pool(&pool);
        Rig { reactor, pool, namespace: Namespace::stand_in().unwrap() }
    }

    fn ring(&self, device: Features) -> Option<Rc<CommandRing>> {
        CommandRing::of(self.reactor.local(), device)
    }

    fn segments(&self, pieces: &[usize]) -> Segments {
        let mut segments = Segments::default();
        for &len in pieces {
            let buffer = self.pool.take(len).unwrap();
            segments.push(buffer.segment(0, len).unwrap()).unwrap();
        }
        segments
    }

    /// Commands of every shape that moves data, or none.
    fn commands(&self, namespace: &RingNamespace) -> Vec<NvmeOp> {
        let one = || Payload::Memory(self.segments(&[4096]));
        let many = || Payload::Memory(self.segments(&[512, 8192, 1024]));
        let range = Payload::Range(DsmRange::new(5, 10));
        let commands = [
            (Command::Read(Transfer::new(0, 8)), one()),
            (Command::Read(Transfer::new(0, 19)), many()),
            (Command::Write(Transfer::new(0, 8)), one()),
            (Command::Compare(Transfer::new(0, 19)), many()),
            (Command::WriteZeroes(WriteZeroes::new(7, 65_536)), Payload::None),
            (Command::Verify(Transfer::new(0, 9)), Payload::None),
            (Command::DatasetManagement(DatasetManagement::deallocate(1)), range),
            (Command::Flush, Payload::None),
        ];
        let op = |(command, payload)| NvmeOp::new(namespace.clone(), command, payload).unwrap();
        commands.into_iter().map(op).collect()
    }

    /// Steps until `count` results have come.
    fn finish(&mut self, port: &CommandPort, count: usize) -> Vec<(u64, i32)> {
        let results = RefCell::new(Vec::new());
        for _ in 0..1_000_000 {
            self.reactor.step();
            port.drain(usize::MAX, |tag, result| results.borrow_mut().push((tag, result)));
            if results.borrow().len() >= count {
                break;
            }
        }
        assert_eq!(results.borrow().len(), count, "commands were lost");
        results.into_inner()
    }

    fn run(&mut self, ring: &Rc<CommandRing>) -> Vec<i32> {
        let (port, namespace) = (ring.port(), ring.register(&self.namespace));
        let commands = self.commands(&namespace);
        let count = commands.len();
        let available = self.pool.available();
        for (tag, op) in commands.into_iter().enumerate() {
            port.submit(op, tag as u64).unwrap();
        }
        assert_eq!(ring.in_flight(), count);
        let before = self.reactor.local().counters().ring_enters;
        let mut results = self.finish(&port, count);
        assert_eq!(self.reactor.local().counters().ring_enters, before + 1, "one batch");
        assert!(self.pool.available() > available, "the memory has come back");
        results.sort_unstable();
        assert!(results.iter().enumerate().all(|(place, (tag, _))| *tag == place as u64));
        results.into_iter().map(|(_, result)| result).collect()
    }
}

#[test]
fn commands_of_every_kind_by_every_set_of_features() {
    let mut sets = vec![Features::empty()];
    sets.extend((Features::all() - DEVICE).iter());
    sets.push(Features::FIXED_COMMANDS);
    sets.push(Features::all() - Features::LARGE_ENTRIES - Features::COMMANDS);
    for without in sets {
        for idle in [IdlePolicy::Poll, IdlePolicy::Interrupt, IdlePolicy::default()] {
            let mut rig = Rig::new(without, idle);
            let ring = rig.ring(DEVICE).expect("the kernel has such rings");
            assert!(!ring.features().intersects(without), "{without:?}");
            let deferred = ring.features().contains(Features::DEFER_TASKRUN);
            assert!(idle == IdlePolicy::Poll || !deferred, "such a ring cannot wake a sleeper");
            assert_eq!(rig.run(&ring), [0; 8], "without {without:?}, {idle:?}");
        }
    }
}

#[test]
fn there_is_no_ring_without_what_it_needs() {
    for feature in [Features::LARGE_ENTRIES, Features::COMMANDS] {
        assert!(Rig::new(feature, IdlePolicy::Poll).ring(DEVICE).is_none());
        assert!(Rig::new(Features::empty(), IdlePolicy::Poll).ring(DEVICE - feature).is_none());
    }
    let config = ReactorConfig { ring: RingChoice::Forbidden, ..ReactorConfig::default() };
    let reactor = Reactor::new(&config).unwrap();
    assert!(CommandRing::of(reactor.local(), DEVICE).is_none());
}

#[test]
fn polled_only_where_the_reactor_never_sleeps() {
    let device = DEVICE | Features::POLLED_COMMANDS;
    let mut rig = Rig::new(Features::empty(), IdlePolicy::Poll);
    let ring = rig.ring(device).unwrap();
    // The stand-in cannot be polled, and the kernel says so.
    assert_eq!(rig.run(&ring), [-Errno::OPNOTSUPP.raw_os_error(); 8]);
    assert!(!Rc::ptr_eq(&ring, &rig.ring(DEVICE).unwrap()), "for a device without poll queues");
    for (without, idle) in [
        (Features::POLLED_COMMANDS, IdlePolicy::Poll),
        (Features::empty(), IdlePolicy::Interrupt),
        (Features::empty(), IdlePolicy::default()),
    ] {
        let mut rig = Rig::new(without, idle);
        let ring = rig.ring(device).unwrap();
        assert_eq!(rig.run(&ring), [0; 8]);
        assert!(Rc::ptr_eq(&ring, &rig.ring(DEVICE).unwrap()), "one ring for both");
    }
}

#[test]
fn slabs_are_registered_one_a_turn() {
    let mut rig = Rig::new(Features::empty(), IdlePolicy::Interrupt);
    let ring = rig.ring(DEVICE).unwrap();
    let mut registered = Vec::new();
    for _ in 0..5 {
        rig.reactor.turn();
        registered.push(ring.registered_slabs());
    }
    assert_eq!(registered, [1, 2, 3, 3, 3]);
    assert_eq!(rig.run(&ring), [0; 8]);
    let plain = rig.ring(DEVICE - Features::FIXED_COMMANDS).unwrap();
    rig.reactor.turn();
    assert_eq!(plain.registered_slabs(), 0);
}

#[test]
fn a_ring_goes_with_the_last_who_has_it() {
    let mut rig = Rig::new(Features::empty(), IdlePolicy::Interrupt);
    let port = rig.ring(DEVICE).unwrap().port();
    let ring = rig.ring(DEVICE).unwrap();
    let namespace = ring.register(&rig.namespace);
    drop(ring);
    for (tag, op) in rig.commands(&namespace).into_iter().enumerate() {
        port.submit(op, tag as u64).unwrap();
    }
    let lent = rig.pool.available();
    drop(port);
    // It is still driven, and its commands come to their end.
    for _ in 0..8 {
        rig.reactor.step();
    }
    assert!(rig.pool.available() > lent);
    let sleeps = rig.reactor.local().counters().sleeps;
    rig.reactor.step();
    assert_eq!(rig.reactor.local().counters().sleeps, sleeps + 1, "nobody keeps it awake");
    let ring = rig.ring(DEVICE).expect("a new one");
    assert_eq!(rig.run(&ring), [0; 8]);
}

#[test]
fn a_reactor_that_ends_takes_its_ring_along() {
    let rig = Rig::new(Features::empty(), IdlePolicy::Interrupt);
    let ring = rig.ring(DEVICE).unwrap();
    let (port, namespace) = (ring.port(), ring.register(&rig.namespace));
    rig.commands(&namespace).into_iter().for_each(|op| port.submit(op, 1).unwrap());
    let Rig { mut reactor, pool, .. } = rig;
    reactor.turn();
    drop(reactor);
    assert_eq!(ring.in_flight(), 0);
    let op = NvmeOp::new(namespace, Command::Flush, Payload::None).unwrap();
    assert!(port.submit(op, 1).is_err(), "it is closed");
    drop((port, ring));
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn what_is_being_looked_at_is_not_read_into() {
    let rig = Rig::new(Features::empty(), IdlePolicy::Poll);
    let ring = rig.ring(DEVICE).unwrap();
    let (port, namespace) = (ring.port(), ring.register(&rig.namespace));
    let buffer = rig.pool.take(512).unwrap();
    let segment = buffer.segment(0, 512).unwrap();
    let op = |command| {
        NvmeOp::new(namespace.clone(), command, Payload::Memory(segment.clone().into())).unwrap()
    };
    segment.view(|_| {
        assert!(port.submit(op(Command::Read(Transfer::new(0, 1))), 1).is_err());
        assert!(port.submit(op(Command::Write(Transfer::new(0, 1))), 2).is_ok());
    });
    assert!(port.submit(op(Command::Read(Transfer::new(0, 1))), 3).is_ok());
}

#[test]
fn other_files_are_no_namespaces() {
    for path in ["/dev/null", "/dev/zero", "/proc/self/status", "/"] {
        let file = std::fs::File::open(path).unwrap();
        let refused = Namespace::new(file.into()).unwrap_err();
        assert_eq!(refused, NamespaceError::NotNvme, "{path}");
    }
}

proptest! {
    /// A command whose memory is longer or shorter than what the controller would transfer does not exist.
    #[test]
    fn memory_is_as_long_as_the_command_says(
        blocks in 0_u32..200,
        pieces in prop::collection::vec(1_usize..60_000, 0..4),
    ) {
        let rig = Rig::new(Features::all(), IdlePolicy::Poll);
        let ring = Rig::new(Features::empty(), IdlePolicy::Poll).ring(DEVICE).unwrap();
        let namespace = ring.register(&rig.namespace);
        let bytes: usize = pieces.iter().sum();
        // The wire's field has no nought.
        let wanted = usize::try_from(blocks.max(1)).unwrap() * 512;
        let make = |command, payload| NvmeOp::new(namespace.clone(), command, payload).is_some();
        let memory = || Payload::Memory(rig.segments(&pieces));
        let transfer = Transfer::new(0, blocks);
        prop_assert_eq!(make(Command::Read(transfer), memory()), bytes == wanted);
        prop_assert_eq!(make(Command::Write(transfer), memory()), bytes == wanted);
        prop_assert_eq!(make(Command::Compare(transfer), memory()), bytes == wanted);
        prop_assert!(!make(Command::Read(transfer), Payload::None));
        prop_assert_eq!(make(Command::Verify(transfer), memory()), bytes == 0);
        prop_assert_eq!(make(Command::Flush, memory()), bytes == 0);
        let zeroes = Command::WriteZeroes(WriteZeroes::new(0, blocks));
        prop_assert_eq!(make(zeroes, memory()), bytes == 0);
        let ranges = u16::try_from(blocks).unwrap();
        let dsm = Command::DatasetManagement(DatasetManagement::deallocate(ranges));
        prop_assert_eq!(make(dsm, Payload::Range(DsmRange::new(0, 1))), ranges <= 1);
        let mut short = vec![0; wanted - 1];
        let mut short = Data::In(&mut short);
        let refused = rig.namespace.execute(&Command::Read(transfer), &mut short);
        prop_assert_eq!(refused, Err(Errno::INVAL));
        let mut outwards = vec![0; wanted];
        let mut wrong_way = Data::In(&mut outwards);
        let refused = rig.namespace.execute(&Command::Write(transfer), &mut wrong_way);
        prop_assert_eq!(refused, Err(Errno::INVAL));
    }
}
