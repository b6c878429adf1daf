//! The slow device: every completion at its time and once, cancellation that tells the truth, and a reactor that
//! sleeps meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant as WallInstant};

use block::delay::{DelayDevice, Latencies};
use block::ram::{RamDevice, RamOptions};
use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::{Arena, ArenaConfig, Hugepages, Pool};
use proptest::prelude::*;
use reactor::{IdlePolicy, Instant, Local, Poller, Progress, ReactorConfig, SimulatedClock};
use rig::Host;

const BLOCKS: u64 = 64;

fn ram() -> Arc<dyn BlockDevice> {
    let (name, size) = ("ram".to_owned(), 512 * BLOCKS);
    Arc::new(RamDevice::new(&RamOptions { name, size, block_size: 512, read_only: false }).unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    Submit(Kind),
    Advance(u64),
    Poll(usize),
    Cancel(prop::sample::Index),
    SetLatencies(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind =
        prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Flush), Just(Kind::Verify)];
    prop_oneof![
        6 => kind.prop_map(Step::Submit),
        3 => (0..400_u64).prop_map(Step::Advance),
        4 => (1..20_usize).prop_map(Step::Poll),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (0..500_u64, 0..500_u64).prop_map(|(read, write)| Step::SetLatencies(read, write)),
    ]
}

/// What the test knows of an operation.
#[derive(Debug, Clone, Copy)]
struct Out {
    kind: Kind,
    /// When it was back from the device below, and is to be told of; not before the first poll that had room for it.
    due: Option<Instant>,
    result: Result<(), ErrorKind>,
    /// Given up before the device below had done it.
    given_up: bool,
}

struct Test {
    host: Host,
    clock: SimulatedClock,
    device: DelayDevice,
    queue: Box<dyn BlockQueue>,
    latencies: (u64, u64),
    out: BTreeMap<u64, Out>,
    submitted: u64,
}

impl Test {
    fn new() -> Test {
        let clock = SimulatedClock::new();
        let host = Host::simulated(&clock);
        let device = DelayDevice::new("slow", ram(), Latencies::default());
        let queue = host.queue(&device);
        Test { host, clock, device, queue, latencies: (0, 0), out: BTreeMap::new(), submitted: 0 }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit(kind) => self.submit(kind),
            Step::Advance(micros) => self.clock.advance(Duration::from_micros(micros)),
            Step::Poll(max) => self.poll(max),
            Step::Cancel(which) if !self.out.is_empty() => {
                let token = *self.out.keys().nth(which.index(self.out.len())).unwrap();
                self.cancel(token);
            }
            Step::Cancel(_) => {}
            Step::SetLatencies(read, write) => {
                self.latencies = (read, write);
                // The rare ones are like the others: their time is known.
                self.device.set_latencies(Latencies {
                    average_read: read,
                    p99_read: read,
                    average_write: write,
                    p99_write: write,
                });
            }
        }
        assert_eq!(self.queue.outstanding(), self.out.len());
    }

    fn submit(&mut self, kind: Kind) {
        let token = self.submitted;
        self.submitted += 1;
        let bytes = [u8::try_from(token % 251).unwrap(); 512];
        let data = match kind {
            Kind::Read | Kind::Write => self.host.buffer(&bytes).segment(0, 512).unwrap().into(),
            _ => Data::none(),
        };
        // Each on a block of its own, as long as there are enough of them.
        let lba = token % BLOCKS;
        self.queue.submit(Operation {
            token: Token(token),
            kind,
            lba,
            blocks: 1,
            data,
            fua: false,
        });
        self.out.insert(token, Out { kind, due: None, result: Ok(()), given_up: false });
    }

    fn poll(&mut self, max: usize) {
        self.host.reactor.turn();
        let now = self.clock.now();
        let mut seen: Vec<Completion> = Vec::new();
        let count = self.queue.poll(max, &mut |completion| seen.push(completion));
        assert_eq!(count, seen.len());
        assert!(count <= max);
        for Completion { token: Token(token), result, .. } in seen {
            let out = self.out.remove(&token).expect("told twice, or never submitted");
            match out.due {
                Some(due) => assert!(due <= now, "{out:?} is told of {:?} early", due.since(now)),
                None => assert!(out.given_up || self.latency(out.kind).is_zero(), "{out:?}"),
            }
            assert_eq!(result, out.result, "{out:?}");
        }
        if count == max {
            // The device below may not have been asked: those that are with it still are, or have got their time now.
            return;
        }
        for out in self.out.values() {
            assert!(out.due.is_none_or(|due| due > now), "{out:?} is late");
        }
        // A RAM disk has done by now what it was given.
        let (read, write) = self.latencies;
        for out in self.out.values_mut().filter(|out| out.due.is_none()) {
            let micros = if out.kind == Kind::Read { read } else { write };
            out.due = Some(now + Duration::from_micros(micros));
        }
        let next = self.out.values().filter_map(|out| out.due).min();
        assert_eq!(self.queue.next_deadline(), next);
    }

    fn latency(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Read => Duration::from_micros(self.latencies.0),
            Kind::Write => Duration::from_micros(self.latencies.1),
            _ => Duration::ZERO,
        }
    }

    fn cancel(&mut self, token: u64) {
        let agreed = self.queue.cancel(Token(token));
        // What the reactor takes for now.
        let now = self.host.reactor.local().now();
        let out = self.out.get_mut(&token).unwrap();
        if out.due.is_none() {
            // With the RAM disk, which has not begun.
            assert!(agreed);
            out.given_up = true;
        } else {
            // Done: a write cannot be undone.
            assert_eq!(agreed, out.kind == Kind::Read, "{out:?}");
            out.due = Some(now);
        }
        if agreed {
            out.result = Err(ErrorKind::Aborted);
        }
    }
}

proptest! {
    #[test]
    fn each_is_told_of_once_and_at_its_time(steps in prop::collection::vec(step(), 1..200)) {
        let mut test = Test::new();
        let whole = test.host.pool.available();
        for step in &steps {
            // A poll with too little room leaves it open which operations have got their time: one with enough follows.
            test.step(step);
            if matches!(step, Step::Poll(_)) {
                test.poll(1000);
            }
        }
        test.poll(1000);
        if let Some(last) = test.out.values().filter_map(|out| out.due).max() {
            test.clock.advance_to(last);
        }
        test.poll(1000);
        prop_assert!(test.out.is_empty());
        prop_assert_eq!(test.queue.next_deadline(), None);
        prop_assert_eq!(test.host.pool.available(), whole);
    }
}

#[test]
fn one_in_a_hundred_takes_the_p99_latency() {
    let mut test = Test::new();
    let latencies = Latencies { average_read: 10, p99_read: 1000, ..Latencies::default() };
    test.device.set_latencies(latencies);
    let (mut quick, mut rare) = (0, 0);
    for _ in 0..200 {
        for number in 0..50 {
            let buffer = test.host.buffer(&[0; 512]);
            let (token, kind) = (Token(number), Kind::Read);
            let data = buffer.segment(0, 512).unwrap().into();
            test.queue.submit(Operation { token, kind, lba: number, blocks: 1, data, fua: false });
        }
        let mut take = |after| {
            test.clock.advance(Duration::from_micros(after));
            test.host.reactor.turn();
            test.queue.poll(1000, &mut |_| {})
        };
        assert_eq!(take(0), 0);
        quick += take(10);
        rare += take(990);
        assert_eq!(test.queue.outstanding(), 0);
    }
    assert_eq!(quick + rare, 10_000);
    assert!((50..=170).contains(&rare), "{rare} of 10,000");
}

#[test]
fn what_is_held_is_told_of_when_the_device_leaves() {
    let mut test = Test::new();
    let ages = u64::MAX;
    test.step(&Step::SetLatencies(ages, ages));
    test.submit(Kind::Write);
    test.poll(10);
    // That time never comes.
    assert_eq!(test.queue.next_deadline(), Some(Instant::from_nanos(u64::MAX)));
    test.submit(Kind::Read);
    test.device.retire();
    let mut seen = Vec::new();
    test.queue.poll(10, &mut |completion| seen.push((completion.token.0, completion.result)));
    assert_eq!(seen, [(0, Ok(())), (1, Ok(()))]);
}

/// Serves one queue, as a shard does.
struct Serving {
    local: Local,
    queue: Box<dyn BlockQueue>,
    told: Sender<(Token, Result<(), ErrorKind>, u64)>,
    /// What its operations may use.
    _pool: Pool,
}

impl Poller for Serving {
    fn poll(&mut self) -> Progress {
        let (told, turns) = (&self.told, self.local.counters().turns);
        let count = self.queue.poll(64, &mut |Completion { token, result, .. }| {
            told.send((token, result, turns)).unwrap();
        });
        Progress::from_worked(count > 0)
    }

    fn ready_to_sleep(&mut self) -> bool {
        !self.queue.needs_poll()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }
}

#[test]
fn a_reactor_sleeps_meanwhile_and_is_woken_by_the_end_of_the_device() {
    let config = ReactorConfig { idle: IdlePolicy::Interrupt, ..ReactorConfig::default() };
    let mut reactors = reactor::spawn(vec![config], 1).unwrap();
    let latencies = Latencies {
        average_read: 50_000,
        p99_read: 50_000,
        average_write: u64::MAX,
        p99_write: u64::MAX,
    };
    let device = Arc::new(DelayDevice::new("slow", ram(), latencies));
    let (told, telling) = channel();
    let slow = Arc::clone(&device);
    let began = WallInstant::now();
    let begin = move |local: &Local| {
        let arena = Arena::new(ArenaConfig { capacity: 2 << 20, hugepages: Hugepages::Never });
        let pool = arena.pool(2 << 20).unwrap();
        let mut queue = slow.open_queue(local).unwrap();
        for (token, kind) in [(1, Kind::Read), (2, Kind::Write)] {
            let data = pool.take(512).unwrap().segment(0, 512).unwrap().into();
            let token = Token(token);
            queue.submit(Operation { token, kind, lba: 0, blocks: 1, data, fua: false });
        }
        local.add_poller(Box::new(Serving { local: local.clone(), queue, told, _pool: pool }));
    };
    reactors.handles()[0].send(begin).unwrap();
    let patience = Duration::from_secs(20);
    let (token, result, turns) = telling.recv_timeout(patience).unwrap();
    assert_eq!((token, result), (Token(1), Ok(())));
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert!(turns < 200, "{turns} turns in fifty milliseconds: it did not sleep");
    // It sleeps for an hour now, unless it is woken.
    device.retire();
    let (token, result, _) = telling.recv_timeout(patience).unwrap();
    assert_eq!((token, result), (Token(2), Ok(())));
    reactors.stop();
    reactors.join(patience).unwrap();
}
