//! Event sources over pipes and sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use reactor::{
    EventSource, Interest, Progress, Reactor, ReactorConfig, Readiness, RingChoice, SimulatedClock,
};

fn reactor() -> Reactor {
    let config = ReactorConfig { ring: RingChoice::Forbidden, ..ReactorConfig::default() };
    Reactor::new(&config).unwrap()
}

fn pair() -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    (left, right)
}

fn events(reactor: &mut Reactor, source: &EventSource) -> Vec<(u32, Readiness)> {
    // The first turn is the idle one after which epoll is asked.
    reactor.turn();
    reactor.turn();
    let mut all = Vec::new();
    source.drain(|key, readiness| all.push((key, readiness)));
    all
}

#[test]
fn an_edge_is_reported_once_and_only_to_its_owner() {
    let mut reactor = reactor();
    let (mine, other) = (reactor.local().source(), reactor.local().source());
    let (left, mut right) = pair();
    mine.register(&left, 3, Interest::READ).unwrap();
    assert_eq!(events(&mut reactor, &mine), []);
    right.write_all(b"a").unwrap();
    assert_eq!(events(&mut reactor, &other), []);
    right.write_all(b"b").unwrap();
    // Fetched late, and both edges as one.
    assert_eq!(events(&mut reactor, &mine), [(3, Readiness::READ)]);
    assert_eq!(events(&mut reactor, &mine), [], "although nothing was read");
    right.write_all(b"c").unwrap();
    assert_eq!(events(&mut reactor, &mine), [(3, Readiness::READ)]);
}

#[test]
fn modifying_reports_the_present_state_again() {
    let mut reactor = reactor();
    let source = reactor.local().source();
    let (left, mut right) = pair();
    right.write_all(b"a").unwrap();
    source.register(&left, 0, Interest::READ).unwrap();
    assert_eq!(events(&mut reactor, &source), [(0, Readiness::READ)]);
    source.modify(&left, 0, Interest::READ | Interest::WRITE).unwrap();
    assert_eq!(events(&mut reactor, &source), [(0, Readiness::READ | Readiness::WRITE)]);
    source.modify(&left, 0, Interest::WRITE).unwrap();
    assert_eq!(events(&mut reactor, &source), [(0, Readiness::WRITE)]);
    assert_eq!(source.modify(&left, 1, Interest::READ).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_peer_that_leaves_is_reported_as_closed_and_readable() {
    let mut reactor = reactor();
    let source = reactor.local().source();
    let (mut left, right) = pair();
    source.register(&left, 0, Interest::READ).unwrap();
    drop(right);
    let [(0, readiness)] = events(&mut reactor, &source)[..] else { panic!("one event") };
    assert!(readiness.contains(Readiness::READ | Readiness::CLOSED));
    assert_eq!(left.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_deregistered_key_is_silent_and_free_for_another() {
    let mut reactor = reactor();
    let source = reactor.local().source();
    let (left, mut right) = pair();
    source.register(&left, 5, Interest::READ).unwrap();
    let error = source.register(&right, 5, Interest::READ).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    right.write_all(b"a").unwrap();
    reactor.turn();
    reactor.turn();
    // The event is queued for the source by now.
    source.deregister(&left, 5).unwrap();
    let (next, mut peer) = pair();
    source.register(&next, 5, Interest::READ).unwrap();
    assert_eq!(events(&mut reactor, &source), [], "the former owner's event");
    peer.write_all(b"a").unwrap();
    right.write_all(b"b").unwrap();
    assert_eq!(events(&mut reactor, &source), [(5, Readiness::READ)]);
    source.deregister(&next, 5).unwrap();
    assert_eq!(source.deregister(&next, 5).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_source_may_be_changed_while_it_is_drained() {
    let mut reactor = reactor();
    let source = reactor.local().source();
    let pairs: Vec<_> = (0..300).map(|_| pair()).collect();
    for (key, (left, right)) in pairs.iter().enumerate() {
        source.register(left, u32::try_from(key).unwrap(), Interest::READ).unwrap();
        (&*right).write_all(b"x").unwrap();
    }
    // More than one call to epoll brings, so the following turns ask again at once.
    for _ in 0..4 {
        reactor.turn();
    }
    let mut seen = 0;
    let count = source.drain(|key, _| {
        seen += 1;
        // Each takes its successor along, queued or not.
        let key = usize::try_from(key).unwrap();
        if let Some((left, _)) = pairs.get(key + 1) {
            let _ = source.deregister(left, u32::try_from(key + 1).unwrap());
        }
    });
    assert_eq!((count, seen), (150, 150));
}

#[test]
fn events_of_a_dropped_source_reach_nobody() {
    let mut reactor = reactor();
    let first = reactor.local().source();
    let (left, mut right) = pair();
    first.register(&left, 0, Interest::READ).unwrap();
    drop(first);
    // It takes the number of the dropped one, and the same key.
    let second = reactor.local().source();
    let (quiet, _peer) = pair();
    second.register(&quiet, 0, Interest::READ).unwrap();
    right.write_all(b"x").unwrap();
    assert_eq!(events(&mut reactor, &second), []);
}

#[test]
fn a_busy_reactor_asks_epoll_now_and_then_and_an_unused_epoll_never() {
    struct Busy;
    impl reactor::Poller for Busy {
        fn poll(&mut self) -> Progress {
            Progress::Worked
        }
    }
    let time = SimulatedClock::new();
    let config = ReactorConfig {
        ring: RingChoice::Forbidden,
        clock: time.clock(),
        ..ReactorConfig::default()
    };
    let mut reactor = Reactor::new(&config).unwrap();
    let local = reactor.local().clone();
    local.add_poller(Box::new(Busy));
    for _ in 0..100 {
        reactor.turn();
    }
    assert_eq!(local.counters().epoll_calls, 0);
    let source = local.source();
    let (left, mut right) = pair();
    source.register(&left, 0, Interest::READ).unwrap();
    for _ in 0..800 {
        reactor.turn();
    }
    let calls = local.counters().epoll_calls;
    assert!((100..=101).contains(&calls), "{calls} calls in 800 busy turns");
    right.write_all(b"x").unwrap();
    for _ in 0..8 {
        reactor.turn();
    }
    assert_eq!(source.next(), Some((0, Readiness::READ)), "within eight turns");
    // Long turns: every one of them.
    let before = local.counters().epoll_calls;
    for _ in 0..10 {
        time.advance(Duration::from_micros(60));
        reactor.turn();
    }
    assert_eq!(local.counters().epoll_calls - before, 10);
}

#[test]
fn what_only_wakes_from_sleep_costs_no_call_while_awake() {
    let config = ReactorConfig {
        ring: RingChoice::Forbidden,
        idle: reactor::IdlePolicy::Interrupt,
        ..ReactorConfig::default()
    };
    let mut reactor = Reactor::new(&config).unwrap();
    let source = reactor.local().source();
    let (left, mut right) = pair();
    source.register(&left, 0, Interest::READ | Interest::SLEEP).unwrap();
    right.write_all(b"a").unwrap();
    for _ in 0..100 {
        reactor.turn();
    }
    assert_eq!(reactor.local().counters().epoll_calls, 0);
    assert_eq!(source.next(), None);
    // Asleep it is told: this ends at once, and would not otherwise.
    reactor.local().add_poller(Box::new(Until(reactor.handle())));
    reactor.run();
    assert_eq!(source.next(), Some((0, Readiness::READ)));
}

/// Is written to whenever its reactor goes to sleep.
struct Sleeper {
    source: EventSource,
    other: UnixStream,
    heard: Rc<Cell<u64>>,
}

impl reactor::Poller for Sleeper {
    fn poll(&mut self) -> Progress {
        let mut worked = false;
        while self.source.next().is_some() {
            self.heard.set(self.heard.get() + 1);
            worked = true;
        }
        Progress::from_worked(worked)
    }

    fn ready_to_sleep(&mut self) -> bool {
        self.other.write_all(b"x").unwrap();
        true
    }
}

#[test]
fn what_ended_a_sleep_is_not_asked_for_again() {
    const EVENTS: u64 = 10;
    let config = ReactorConfig {
        ring: RingChoice::Forbidden,
        idle: reactor::IdlePolicy::Interrupt,
        clock: SimulatedClock::new().clock(),
        ..ReactorConfig::default()
    };
    let mut reactor = Reactor::new(&config).unwrap();
    let local = reactor.local().clone();
    let source = local.source();
    let (left, other) = pair();
    source.register(&left, 0, Interest::READ).unwrap();
    let heard = Rc::new(Cell::new(0));
    local.add_poller(Box::new(Sleeper { source, other, heard: Rc::clone(&heard) }));
    while reactor.step() == Progress::Idle {}
    let (before, already) = (local.counters(), heard.get());
    while heard.get() < already + EVENTS {
        reactor.step();
    }
    let after = local.counters();
    assert_eq!(after.sleeps - before.sleeps, EVENTS);
    assert_eq!(after.epoll_calls - before.epoll_calls, EVENTS);
}

/// Ends the reactor once it has slept.
struct Until(reactor::Handle);

impl reactor::Poller for Until {
    fn poll(&mut self) -> Progress {
        if self.0.counters().sleeps > 0 {
            self.0.stop();
        }
        Progress::Idle
    }
}
