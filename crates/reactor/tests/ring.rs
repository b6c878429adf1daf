//! The ring against real files and pipes, with every set of features that a kernel may leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE, Segment};
use reactor::ring::{FallocateFlags, Features, Op, Port, Ring, RingFile, Segments};
use reactor::{
    IdlePolicy, Instant, Interest, Poller, Progress, Reactor, ReactorConfig, RingChoice,
    SimulatedClock,
};
use rustix::io::Errno;

const ECANCELED: i32 = -Errno::CANCELED.raw_os_error();

/// The most turns that any of these operations may take; a test that needs more has lost one.
const TURNS: usize = 50_000_000;

fn reactor(without: Features) -> Reactor {
    Reactor::new(&ReactorConfig { ring: RingChoice::Probe { without }, ..ReactorConfig::default() })
        .unwrap()
}

/// All that works here, each feature off, and everything off.
fn feature_sets() -> Vec<Features> {
    let mut sets = vec![Features::empty(), Features::all()];
    sets.extend(Features::all().iter());
    sets.push(Features::TASKRUN_FLAG | Features::DEFER_TASKRUN);
    sets
}

struct Rig {
    reactor: Reactor,
    ring: Ring,
    port: Port,
    arena: Arena,
    pool: Pool,
}

impl Rig {
    fn new(without: Features) -> Rig {
        let reactor = reactor(without);
        let ring = reactor.local().ring().expect("io_uring works here");
        let arena =
            Arena::new(ArenaConfig { capacity: 8 * SLAB_SIZE, hugepages: Hugepages::Never });
        let pool = arena.pool(2 * SLAB_SIZE).unwrap();
        Rig { port: ring.port(), reactor, ring, arena, pool }
    }

    fn file(&self, file: impl Into<OwnedFd>) -> RingFile {
        self.ring.register_file(Arc::new(file.into()))
    }

    /// Turns until `count` operations have finished; their results by tag.
    fn finish(&mut self, count: usize) -> HashMap<u64, i32> {
        let results = RefCell::new(HashMap::new());
        for _ in 0..TURNS {
            self.reactor.turn();
            self.port.drain(usize::MAX, |tag, result| {
                assert!(results.borrow_mut().insert(tag, result).is_none());
            });
            if results.borrow().len() >= count {
                break;
            }
        }
        assert_eq!(results.borrow().len(), count, "operations were lost");
        results.into_inner()
    }

    /// One operation, alone.
    fn run(&mut self, op: Op) -> i32 {
        self.port.submit(op, 7).unwrap();
        self.finish(1)[&7]
    }

    fn buffer(&self, bytes: &[u8]) -> (Buffer, Segment) {
        let buffer = self.pool.take(bytes.len()).unwrap();
        let segment = buffer.segment(0, bytes.len()).unwrap();
        assert_eq!(segment.copy_from(0, bytes), bytes.len());
        (buffer, segment)
    }

    fn read(&mut self, file: &RingFile, offset: u64, len: usize) -> Vec<u8> {
        let (_buffer, segment) = self.buffer(&vec![0xEE; len]);
        let op = Op::Read { file: file.clone(), data: segment.clone().into(), offset };
        let got = usize::try_from(self.run(op)).unwrap();
        let mut bytes = vec![0; got];
        segment.copy_to(0, &mut bytes);
        bytes
    }

    /// An operation that does not end by itself: a read from an empty pipe.
    fn endless(&self, tag: u64) -> (PipeWriter, RingFile, Segment) {
        let (reader, writer) = pipe().unwrap();
        let file = self.file(reader);
        let (_, segment) = self.buffer(&[0; 512]);
        let op = Op::Read { file: file.clone(), data: segment.clone().into(), offset: 0 };
        self.port.submit(op, tag).unwrap();
        (writer, file, segment)
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn reads_what_was_written_with_every_feature_set() {
    for without in feature_sets() {
        let mut rig = Rig::new(without);
        let features = rig.ring.features();
        assert!(!features.intersects(without), "{features:?} in spite of {without:?}");
        let registered = rig.ring.register_pool(&rig.pool);
        assert_eq!(registered, if features.contains(Features::FIXED_BUFFERS) { 2 } else { 0 });
        let file = rig.file(tempfile::tempfile().unwrap());
        assert_eq!(file.is_registered(), features.contains(Features::REGISTERED_FILES));

        // One segment.
        let one = pattern(100_000, 1);
        let (_buffer, segment) = rig.buffer(&one);
        let op = Op::Write { file: file.clone(), data: segment.into(), offset: 4096, dsync: true };
        assert_eq!(rig.run(op), 100_000);
        // Several, with gaps between them in memory.
        let pieces: Vec<_> = (2..6).map(|seed| pattern(1000 * usize::from(seed), seed)).collect();
        let mut data = Segments::default();
        for piece in &pieces {
            data.push(rig.buffer(piece).1).unwrap();
        }
        assert_eq!(data.bytes(), 14_000);
        let op = Op::Write { file: file.clone(), data, offset: 1 << 20, dsync: false };
        assert_eq!(rig.run(op), 14_000);
        let op = Op::Fsync { file: file.clone(), datasync: true };
        assert_eq!(rig.run(op), 0);
        let op = Op::Fsync { file: file.clone(), datasync: false };
        assert_eq!(rig.run(op), 0);

        assert_eq!(rig.read(&file, 4096, 100_000), one);
        assert_eq!(rig.read(&file, 1 << 20, 20_000), pieces.concat(), "and it ends there");
        // Scattered the other way round.
        let mut data = Segments::default();
        let into: Vec<_> = [5000, 4000, 3000, 2000].map(|len| rig.buffer(&vec![0; len])).into();
        for (_, segment) in &into {
            data.push(segment.clone()).unwrap();
        }
        let op = Op::Read { file: file.clone(), data, offset: 1 << 20 };
        assert_eq!(rig.run(op), 14_000);
        let scattered: Vec<u8> = into
            .into_iter()
            .flat_map(|(mut buffer, segment)| {
                drop(segment);
                buffer.bytes_mut().unwrap().to_vec()
            })
            .collect();
        assert_eq!(scattered, pieces.concat());
    }
}

#[test]
fn errors_come_back_as_the_systems_own() {
    let mut rig = Rig::new(Features::empty());
    let named = tempfile::NamedTempFile::new().unwrap();
    let read_only = rig.file(File::open(named.path()).unwrap());
    let (_buffer, segment) = rig.buffer(b"never");
    let op = Op::Write { file: read_only, data: segment.into(), offset: 0, dsync: false };
    assert_eq!(rig.run(op), -Errno::BADF.raw_os_error());
}

#[test]
fn punches_and_allocates() {
    for without in [Features::empty(), Features::REGISTERED_FILES] {
        let mut rig = Rig::new(without);
        assert!(rig.ring.features().contains(Features::FALLOCATE));
        let file = rig.file(tempfile::tempfile().unwrap());
        let (_buffer, segment) = rig.buffer(&[0xAA; 3 * 4096]);
        let op = Op::Write { file: file.clone(), data: segment.into(), offset: 0, dsync: false };
        assert_eq!(rig.run(op), 3 * 4096);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let op = Op::Fallocate { file: file.clone(), mode, offset: 4096, len: 4096 };
        assert_eq!(rig.run(op), 0);
        let bytes = rig.read(&file, 0, 3 * 4096);
        assert_eq!(bytes[..4096], [0xAA; 4096]);
        assert_eq!(bytes[4096..8192], [0; 4096]);
        assert_eq!(bytes[8192..], [0xAA; 4096]);
        let mode = FallocateFlags::empty();
        let op = Op::Fallocate { file: file.clone(), mode, offset: 0, len: 1 << 20 };
        assert_eq!(rig.run(op), 0);
        assert_eq!(rustix::fs::fstat(file.as_fd()).unwrap().st_size, 1 << 20);
    }
}

#[test]
fn a_cancelled_operation_ends_and_gives_its_buffer_back() {
    for without in feature_sets() {
        let mut rig = Rig::new(without);
        let whole = rig.pool.available();
        let (mut first_pipe, _, first) = rig.endless(1);
        let (_second_pipe, _, second) = rig.endless(2);
        rig.reactor.turn();
        assert!(!rig.port.cancel(3));
        assert!(rig.port.cancel(2));
        assert!(rig.port.cancel(2), "asking twice is one cancellation");
        assert_eq!(rig.finish(1), HashMap::from([(2, ECANCELED)]));
        assert!(!rig.port.cancel(2), "it is over");
        drop(second);
        assert!(first.view(<[u8]>::len).is_none(), "the kernel may write there");
        first_pipe.write_all(b"hello").unwrap();
        assert_eq!(rig.finish(1), HashMap::from([(1, 5)]));
        assert_eq!(first.view(|bytes| bytes[..5].to_vec()).unwrap(), b"hello");
        drop(first);
        assert_eq!(rig.pool.available(), whole);
        assert_eq!(rig.ring.in_flight(), 0);
    }
}

#[test]
fn an_operation_cancelled_before_it_started_ends_too() {
    let mut rig = Rig::new(Features::empty());
    let (_pipe, _, _) = rig.endless(1);
    assert!(rig.port.cancel(1));
    assert_eq!(rig.finish(1), HashMap::from([(1, ECANCELED)]));
}

#[test]
fn a_dropped_port_leaves_its_operations_to_their_end() {
    let mut rig = Rig::new(Features::empty());
    let whole = rig.pool.available();
    let (mut pipe, _, segment) = rig.endless(1);
    rig.reactor.turn();
    // The next port gets the number of the dropped one, and must not get its results.
    drop(std::mem::replace(&mut rig.port, rig.ring.port()));
    rig.port = rig.ring.port();
    drop(segment);
    assert!(rig.pool.available() < whole, "the kernel still has it");
    pipe.write_all(b"late").unwrap();
    for _ in 0..TURNS {
        rig.reactor.turn();
        if rig.ring.in_flight() == 0 {
            break;
        }
    }
    assert_eq!(rig.pool.available(), whole);
    assert_eq!(rig.port.drain(9, |_, _| ()), 0);
}

#[test]
fn dropping_the_reactor_cancels_and_waits() {
    for without in feature_sets() {
        let rig = Rig::new(without);
        let Rig { mut reactor, ring, port, pool, .. } = rig;
        let whole = pool.available();
        let mut ends = Vec::new();
        for tag in 0..20 {
            let (reader, writer) = pipe().unwrap();
            let file = ring.register_file(Arc::new(reader.into()));
            let segment = pool.take(8192).unwrap().segment(0, 8192).unwrap();
            port.submit(Op::Read { file, data: segment.into(), offset: 0 }, tag).unwrap();
            ends.push(writer);
            // Some of them have started, some have not.
            if tag == 10 {
                reactor.turn();
            }
        }
        drop(reactor);
        assert_eq!(ring.in_flight(), 0);
        assert_eq!(pool.available(), whole);
        for mut end in ends {
            let error = end.write_all(b"x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "its file is closed");
        }
        let (reader, _writer) = pipe().unwrap();
        let file = ring.register_file(Arc::new(reader.into()));
        assert!(port.submit(Op::Fsync { file, datasync: true }, 1).is_err(), "closed");
    }
}

#[test]
fn a_full_ring_refuses_and_goes_on() {
    let config = ReactorConfig { ring_entries: 8, ..ReactorConfig::default() };
    let mut reactor = Reactor::new(&config).unwrap();
    let ring = reactor.local().ring().unwrap();
    let port = ring.port();
    assert_eq!(ring.capacity(), 8);
    let file = ring.register_file(Arc::new(tempfile::tempfile().unwrap().into()));
    let fsync = || Op::Fsync { file: file.clone(), datasync: true };
    for round in 0..1000 {
        let mut accepted = 0;
        while port.submit(fsync(), accepted).is_ok() {
            accepted += 1;
        }
        assert_eq!(accepted, 8);
        // All of them cancelled in the same turn: twice as many entries as the queue has.
        if round % 2 == 0 {
            (0..8).for_each(|tag| assert!(port.cancel(tag)));
        }
        let mut finished = 0;
        for _ in 0..TURNS {
            reactor.turn();
            finished += port.drain(3, |_, result| assert!(result == 0 || result == ECANCELED));
            if finished == 8 {
                break;
            }
        }
        assert_eq!(finished, 8);
    }
}

#[test]
fn a_file_is_closed_when_its_handle_and_operations_are_gone() {
    let mut rig = Rig::new(Features::empty());
    let (reader, writer) = pipe().unwrap();
    let (mut reader, writer): (PipeReader, _) = (reader, rig.file(writer));
    assert!(writer.is_registered());
    let (_buffer, segment) = rig.buffer(b"last words");
    let op = Op::Write { file: writer, data: segment.into(), offset: 0, dsync: false };
    assert_eq!(rig.run(op), 10);
    rig.reactor.turn();
    let mut all = String::new();
    // Returns only at the end of the pipe, when the ring's table does not hold it any more.
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "last words");
}

#[test]
fn more_files_than_places_are_used_by_descriptor() {
    let mut rig = Rig::new(Features::empty());
    let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
    let all: Vec<_> = (0..1030).map(|_| rig.ring.register_file(Arc::clone(&file))).collect();
    assert!(all[1023].is_registered());
    assert!(!all[1024].is_registered());
    let op = |at: usize| Op::Fsync { file: all[at].clone(), datasync: true };
    for at in [0, 1023, 1024, 1029] {
        assert_eq!(rig.run(op(at)), 0);
    }
    drop(all);
    rig.reactor.turn();
    assert!(rig.ring.register_file(file).is_registered());
}

#[test]
fn a_segment_of_another_arena_is_plain_memory() {
    let mut rig = Rig::new(Features::empty());
    assert_eq!(rig.ring.register_pool(&rig.pool), 2);
    // The same region numbers, elsewhere.
    let other = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
    rig.pool = other.pool(SLAB_SIZE).unwrap();
    let file = rig.file(tempfile::tempfile().unwrap());
    let (_buffer, segment) = rig.buffer(b"elsewhere");
    let op = Op::Write { file: file.clone(), data: segment.into(), offset: 0, dsync: false };
    assert_eq!(rig.run(op), 9);
    assert_eq!(rig.read(&file, 0, 100), b"elsewhere");
}

#[test]
fn a_second_pool_is_registered_beside_the_first() {
    let rig = Rig::new(Features::empty());
    assert_eq!(rig.ring.register_pool(&rig.pool), 2);
    let more = rig.arena.pool(3 * SLAB_SIZE).unwrap();
    assert_eq!(rig.ring.register_pool(&more), 5);
    assert_eq!(rig.ring.register_pool(&more), 5);
}

#[test]
fn a_buffer_being_looked_into_is_not_read_into() {
    let rig = Rig::new(Features::empty());
    let file = rig.file(tempfile::tempfile().unwrap());
    let (_buffer, segment) = rig.buffer(b"look");
    let op = Op::Read { file, data: segment.clone().into(), offset: 0 };
    let refused = segment.view(|_| rig.port.submit(op, 1).err()).unwrap();
    rig.port.submit(refused.expect("refused"), 1).unwrap();
}

/// Bounds every sleep of a test that would otherwise hang if a wake were lost.
struct Deadline(Instant);

impl Poller for Deadline {
    fn poll(&mut self) -> Progress {
        Progress::Idle
    }

    fn next_deadline(&self) -> Option<Instant> {
        Some(self.0)
    }
}

/// A reactor that sleeps when there is nothing to do, until its deadline at most.
fn sleeper(without: Features) -> (Reactor, Instant) {
    let (ring, idle) = (RingChoice::Probe { without }, IdlePolicy::Interrupt);
    let reactor = Reactor::new(&ReactorConfig { ring, idle, ..ReactorConfig::default() }).unwrap();
    let deadline = reactor.local().now() + Duration::from_mins(1);
    reactor.local().add_poller(Box::new(Deadline(deadline)));
    (reactor, deadline)
}

#[test]
fn a_sleeping_reactor_wakes_for_a_completion() {
    const ROUNDS: usize = 200;
    for without in feature_sets() {
        let (mut reactor, deadline) = sleeper(without);
        let local = reactor.local().clone();
        let ring = local.ring().unwrap();
        let port = ring.port();
        let (reader, mut writer) = pipe().unwrap();
        let file = ring.register_file(Arc::new(reader.into()));
        let arena = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
        let buffer = arena.pool(SLAB_SIZE).unwrap().take(1).unwrap();
        let handle = reactor.handle();
        let peer = thread::spawn(move || {
            let mut sleeps = 0;
            for _ in 0..ROUNDS {
                // Only once it has gone to sleep (or is about to: the counter comes first).
                while handle.counters().sleeps == sleeps {
                    thread::yield_now();
                }
                sleeps = handle.counters().sleeps;
                writer.write_all(b"x").unwrap();
            }
            writer
        });
        for _ in 0..ROUNDS {
            let data = buffer.segment(0, 1).unwrap().into();
            port.submit(Op::Read { file: file.clone(), data, offset: 0 }, 1).unwrap();
            let mut done = 0;
            while done == 0 {
                reactor.step();
                done = port.drain(1, |_, result| assert_eq!(result, 1));
                assert!(
                    local.now() < deadline,
                    "the wake was lost without {without:?}: {:?}",
                    local.counters()
                );
            }
        }
        drop(peer.join().unwrap());
        assert!(local.counters().sleeps > 0);
    }
}

#[test]
fn a_reactor_asleep_in_the_ring_wakes_for_messages_and_events() {
    const ROUNDS: u32 = 200;
    for without in feature_sets() {
        let (mut reactor, deadline) = sleeper(without);
        let local = reactor.local().clone();
        // Under way all the time, so that the reactor sleeps in the ring and nowhere else.
        let ring = local.ring().unwrap();
        let port = ring.port();
        let (reader, _writer) = pipe().unwrap();
        let file = ring.register_file(Arc::new(reader.into()));
        let arena = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
        let buffer = arena.pool(SLAB_SIZE).unwrap().take(1).unwrap();
        let data = buffer.segment(0, 1).unwrap().into();
        port.submit(Op::Read { file, data, offset: 0 }, 1).unwrap();

        let source = local.source();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        source.register(&near, 0, Interest::READ).unwrap();
        let handle = reactor.handle();
        let peer = thread::spawn(move || {
            let mut sleeps = 0;
            for round in 0..ROUNDS {
                while handle.counters().sleeps == sleeps {
                    thread::yield_now();
                }
                sleeps = handle.counters().sleeps;
                if round % 2 == 0 {
                    handle.send(|_| ()).unwrap();
                } else {
                    far.write_all(b"x").unwrap();
                }
            }
            far
        });
        let mut events = 0;
        while events + local.counters().messages < u64::from(ROUNDS) {
            reactor.step();
            source.drain(|_, _| {
                near.read_exact(&mut [0]).unwrap();
                events += 1;
            });
            let counters = local.counters();
            assert!(local.now() < deadline, "a wake was lost without {without:?}: {counters:?}");
        }
        drop(peer.join().unwrap());
        assert_eq!(events, u64::from(ROUNDS / 2));
    }
}

#[test]
fn an_idle_ring_costs_no_system_call() {
    let time = SimulatedClock::new();
    let mut reactor =
        Reactor::new(&ReactorConfig { clock: time.clock(), ..ReactorConfig::default() }).unwrap();
    let local = reactor.local().clone();
    let ring = local.ring().unwrap();
    for _ in 0..100 {
        reactor.turn();
    }
    assert_eq!((local.counters().ring_enters, local.counters().epoll_calls), (0, 0));
    // Ten operations, one batch.
    let port = ring.port();
    let file = ring.register_file(Arc::new(tempfile::tempfile().unwrap().into()));
    for tag in 0..10 {
        port.submit(Op::Fsync { file: file.clone(), datasync: true }, tag).unwrap();
    }
    reactor.turn();
    assert_eq!(local.counters().ring_enters, 1);
    if !ring.features().contains(Features::TASKRUN_FLAG) {
        return;
    }
    // And afterwards only when the kernel says that there is something: never more often than
    // there are completions.
    let mut finished = 0;
    for _ in 0..TURNS {
        reactor.turn();
        finished += port.drain(10, |_, result| assert_eq!(result, 0));
        if finished == 10 {
            break;
        }
    }
    assert_eq!(finished, 10);
    assert!(local.counters().ring_enters <= 11, "{:?}", local.counters());
}

#[test]
fn a_forbidden_ring_is_absent() {
    let config = ReactorConfig { ring: RingChoice::Forbidden, ..ReactorConfig::default() };
    assert!(Reactor::new(&config).unwrap().local().ring().is_none());
}
