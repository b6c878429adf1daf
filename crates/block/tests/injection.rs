//! The device that fails on purpose, against a model of what is armed and of every byte: each operation ends once, as it
//! should, and what was asked for happens as often as it was asked for, whoever's operations it happens to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

mod rig;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::thread;

use block::injection::{Effect, Injection, InjectionDevice, RETRY, Victim};
use block::ram::{RamDevice, RamOptions};
use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::Buffer;
use proptest::prelude::*;
use reactor::{Instant, SimulatedClock};
use rig::Host;

const BLOCKS: u64 = 48;
const SIZE: usize = 512;

fn ram() -> Arc<dyn BlockDevice> {
    let (name, size) = ("ram".to_owned(), SIZE as u64 * BLOCKS);
    Arc::new(RamDevice::new(&RamOptions { name, size, block_size: 512, read_only: false }).unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    /// On one of two queues.
    Submit(usize, Kind, u8),
    Poll(usize),
    Cancel(prop::sample::Index),
    Inject(Victim, Injection),
    Clear,
    Resume,
    Advance,
}

fn effect() -> impl Strategy<Value = Effect> {
    // Up to one byte beyond the end.
    let offset = prop_oneof![0..8_u64, 0..=2 * SIZE as u64];
    prop_oneof![
        1 => Just(Effect::Fail(ErrorKind::Internal)),
        1 => Just(Effect::Fail(ErrorKind::Status { sct: 2, sc: 0x81 })),
        2 => Just(Effect::Pend),
        1 => Just(Effect::NoMemory),
        3 => (offset, 1..=255_u8).prop_map(|(offset, value)| {
            Effect::Corrupt { offset, value: NonZeroU8::new(value).unwrap() }
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        3 => Just(Kind::Read), 3 => Just(Kind::Write), 1 => Just(Kind::Flush), 1 => Just(Kind::Deallocate), 1 => Just(Kind::Verify),
    ];
    let injection = (effect(), 0..6_u32, 0..4_u64)
        .prop_map(|(effect, count, queue_depth)| Injection { effect, count, queue_depth });
    prop_oneof![
        12 => (0..2_usize, kind, any::<u8>()).prop_map(|(on, kind, fill)| Step::Submit(on, kind, fill)),
        6 => (0..2_usize).prop_map(Step::Poll),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        4 => (prop::sample::select(&Victim::ALL[..]), injection).prop_map(|(it, injection)| Step::Inject(it, injection)),
        1 => Just(Step::Clear),
        1 => Just(Step::Resume),
        1 => Just(Step::Advance),
    ]
}

fn victim(kind: Kind) -> Option<usize> {
    let of = |it: &Victim| match it {
        Victim::Read => Kind::Read,
        Victim::Write => Kind::Write,
        Victim::Deallocate => Kind::Deallocate,
        Victim::Flush => Kind::Flush,
    };
    Victim::ALL.iter().position(|it| of(it) == kind)
}

/// What becomes of an operation by the model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Success,
    Corrupted(u64, NonZeroU8),
    Failure(ErrorKind),
}

#[derive(Debug)]
struct Out {
    kind: Kind,
    lba: usize,
    fate: Fate,
    /// It is with the device below.
    below: bool,
    buffer: Option<Buffer>,
    /// What the submitter's memory holds, or the medium if it is a read.
    bytes: Vec<u8>,
}

/// A queue, and the model of what it holds.
struct Side {
    queue: Box<dyn BlockQueue>,
    out: BTreeMap<u64, Out>,
    pending: VecDeque<u64>,
    starved: VecDeque<u64>,
    retry_at: Instant,
    resumed: u64,
}

struct Test {
    host: Host,
    clock: SimulatedClock,
    device: InjectionDevice,
    sides: Vec<Side>,
    armed: [Option<Injection>; 4],
    resumed: u64,
    medium: Vec<u8>,
    submitted: u64,
}

impl Test {
    fn new() -> Test {
        let clock = SimulatedClock::new();
        let host = Host::simulated(&clock);
        let device = InjectionDevice::new("EE_ram", ram());
        let side = |_| Side {
            queue: host.queue(&device),
            out: BTreeMap::new(),
            pending: VecDeque::new(),
            starved: VecDeque::new(),
            retry_at: Instant::ZERO,
            resumed: 0,
        };
        let sides = (0..2).map(side).collect();
        let medium = vec![0; SIZE * BLOCKS as usize];
        Test { host, clock, device, sides, armed: [None; 4], resumed: 0, medium, submitted: 0 }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit(on, kind, fill) => self.submit(on, kind, fill),
            Step::Poll(on) => self.poll(on),
            Step::Cancel(which) => self.cancel(which),
            Step::Inject(it, injection) => {
                self.device.inject(it, injection);
                self.armed[Victim::ALL.iter().position(|other| *other == it).unwrap()] =
                    Some(injection);
            }
            Step::Clear => {
                self.device.clear();
                self.armed = [None; 4];
            }
            Step::Resume => self.resume(),
            Step::Advance => self.clock.advance(RETRY),
        }
        for side in &self.sides {
            assert_eq!(side.queue.outstanding(), side.out.len());
        }
    }

    fn resume(&mut self) {
        self.device.resume();
        self.resumed += 1;
        for place in &mut self.armed {
            place.take_if(|it| it.effect == Effect::Pend);
        }
    }

    fn submit(&mut self, on: usize, kind: Kind, fill: u8) {
        let token = self.submitted;
        // Operations that are out together have no order: each has its own block.
        let taken = |lba: u64| {
            self.sides.iter().flat_map(|side| side.out.values()).any(|out| out.lba as u64 == lba)
        };
        let Some(lba) =
            (0..BLOCKS).map(|more| (token * 7 + more) % BLOCKS).find(|lba| !taken(*lba))
        else {
            return;
        };
        self.submitted += 1;
        let start = lba as usize * SIZE;
        let (mut data, mut buffer) = (Data::none(), None);
        let mut bytes = vec![fill; SIZE];
        if matches!(kind, Kind::Read | Kind::Write) {
            let made = self.host.buffer(&bytes);
            // In pieces of odd sizes.
            let cut = usize::from(fill) + 1;
            data.push(made.segment(0, cut).unwrap()).unwrap();
            data.push(made.segment(cut, SIZE - cut).unwrap()).unwrap();
            buffer = Some(made);
        }
        if kind == Kind::Read {
            bytes.copy_from_slice(&self.medium[start..start + SIZE]);
        }
        self.host.reactor.turn();
        self.follow(on);
        self.sides[on].out.insert(
            token,
            Out { kind, lba: lba as usize, fate: Fate::Success, below: false, buffer, bytes },
        );
        self.start(on, token);
        let operation = Operation { token: Token(token), kind, lba, blocks: 1, data, fua: false };
        self.sides[on].queue.submit(operation);
    }

    /// A queue sees that there are new orders.
    fn follow(&mut self, on: usize) {
        let side = &mut self.sides[on];
        if std::mem::replace(&mut side.resumed, self.resumed) != self.resumed {
            for token in std::mem::take(&mut side.pending) {
                self.start(on, token);
            }
        }
    }

    fn start(&mut self, on: usize, token: u64) {
        let now = self.host.reactor.local().now();
        let side = &mut self.sides[on];
        let kind = side.out[&token].kind;
        let below = side.out.values().filter(|out| out.below).count();
        let armed = victim(kind).and_then(|at| self.armed[at].as_mut());
        let struck = armed.filter(|it| it.count > 0 && below as u64 >= it.queue_depth);
        let effect = struck.map(|it| {
            it.count -= 1;
            it.effect
        });
        let fate = match effect {
            Some(Effect::Fail(kind)) => Fate::Failure(kind),
            Some(Effect::Corrupt { offset, value }) => Fate::Corrupted(offset, value),
            _ => Fate::Success,
        };
        match effect {
            Some(Effect::Pend) => side.pending.push_back(token),
            Some(Effect::NoMemory) => {
                if side.starved.is_empty() {
                    side.retry_at = now + RETRY;
                }
                side.starved.push_back(token);
            }
            _ => {}
        }
        let out = side.out.get_mut(&token).unwrap();
        out.fate = fate;
        out.below = matches!(effect, None | Some(Effect::Corrupt { .. }));
    }

    fn poll(&mut self, on: usize) {
        self.host.reactor.turn();
        self.follow(on);
        if !self.sides[on].starved.is_empty() && self.sides[on].retry_at <= self.clock.now() {
            for token in std::mem::take(&mut self.sides[on].starved) {
                self.start(on, token);
            }
        }
        let side = &mut self.sides[on];
        let mut seen = Vec::new();
        side.queue.poll(1000, &mut |completion| seen.push(completion));
        for Completion { token: Token(token), result, .. } in seen {
            assert!(
                !side.pending.contains(&token) && !side.starved.contains(&token),
                "{token} is held"
            );
            let Out { kind, lba, fate, buffer, mut bytes, .. } =
                side.out.remove(&token).expect("told twice");
            let expected = if let Fate::Failure(error) = fate { Err(error) } else { Ok(()) };
            assert_eq!(result, expected, "{kind:?} {fate:?}");
            let medium = &mut self.medium[lba * SIZE..(lba + 1) * SIZE];
            if result.is_ok() {
                match kind {
                    Kind::Write => medium.copy_from_slice(&bytes),
                    Kind::Deallocate => medium.fill(0),
                    _ => {}
                }
            }
            if let Fate::Corrupted(offset, value) = fate
                && result.is_ok()
                && let Some(offset) = usize::try_from(offset).ok().filter(|offset| *offset < SIZE)
            {
                match kind {
                    Kind::Write => medium[offset] ^= value.get(),
                    Kind::Read => bytes[offset] ^= value.get(),
                    _ => {}
                }
            }
            if let Some(mut buffer) = buffer
                && result.is_ok()
            {
                assert!(
                    buffer.bytes_mut().expect("memory was let go") == bytes,
                    "{kind:?} {fate:?}"
                );
            }
        }
        let held = side.pending.len() + side.starved.len();
        assert_eq!(side.out.len(), held, "a RAM disk has done all that it was given");
        let retry = (!side.starved.is_empty()).then_some(side.retry_at);
        assert_eq!(side.queue.next_deadline(), retry);
        assert!(!side.queue.needs_poll(), "what is held does not keep a reactor awake");
    }

    fn cancel(&mut self, which: prop::sample::Index) {
        let all: Vec<_> = self
            .sides
            .iter()
            .enumerate()
            .flat_map(|(on, it)| it.out.keys().map(move |token| (on, *token)))
            .collect();
        if all.is_empty() {
            return;
        }
        let (on, token) = all[which.index(all.len())];
        let side = &mut self.sides[on];
        let agreed = side.queue.cancel(Token(token));
        let out = side.out.get_mut(&token).unwrap();
        // A RAM disk has not begun. What has failed already stands.
        match out.fate {
            // Asked a second time.
            Fate::Failure(ErrorKind::Aborted) => {}
            fate => assert_eq!(agreed, !matches!(fate, Fate::Failure(_)), "{fate:?}"),
        }
        if agreed {
            out.fate = Fate::Failure(ErrorKind::Aborted);
            side.pending.retain(|it| *it != token);
            side.starved.retain(|it| *it != token);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_armed_happens_and_nothing_else(steps in prop::collection::vec(step(), 1..150)) {
        let mut test = Test::new();
        let whole = test.host.pool.available();
        for step in &steps {
            test.step(step);
        }
        test.step(&Step::Clear);
        test.step(&Step::Resume);
        test.step(&Step::Advance);
        for on in 0..2 {
            test.poll(on);
            prop_assert!(test.sides[on].out.is_empty());
        }
        prop_assert_eq!(test.host.pool.available(), whole);
        let queue = test.sides[0].queue.as_mut();
        let found = test.host.read(queue, 0, BLOCKS, SIZE * BLOCKS as usize).unwrap();
        prop_assert!(found == test.medium, "what is on the medium");
    }
}

fn flush(queue: &mut dyn BlockQueue, token: u64) {
    let (token, kind, data) = (Token(token), Kind::Flush, Data::none());
    queue.submit(Operation { token, kind, lba: 0, blocks: 0, data, fua: false });
}

#[test]
fn the_count_holds_for_all_reactors_together() {
    const EACH: u64 = 20_000;
    const COUNT: u32 = 30_001;
    let device = InjectionDevice::new("EE_ram", ram());
    let effect = Effect::Fail(ErrorKind::Internal);
    device.inject(Victim::Flush, Injection { effect, count: COUNT, queue_depth: 0 });
    let one = |_| {
        let host = Host::simulated(&SimulatedClock::new());
        let mut queue = host.queue(&device);
        let mut failed = 0;
        for token in 0..EACH {
            flush(queue.as_mut(), token);
            queue.poll(1, &mut |completion| failed += u32::from(completion.result.is_err()));
        }
        failed
    };
    let failed: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(failed, COUNT);
}

#[test]
fn what_is_held_ends_when_the_device_leaves() {
    let host = Host::simulated(&SimulatedClock::new());
    let device = InjectionDevice::new("EE_ram", ram());
    let mut queue = host.queue(&device);
    for (token, effect) in [(1, Effect::Pend), (2, Effect::NoMemory)] {
        device.inject(Victim::Flush, Injection { effect, count: 9, queue_depth: 0 });
        flush(queue.as_mut(), token);
    }
    let mut poll = || {
        let mut seen = Vec::new();
        queue.poll(9, &mut |completion| seen.push((completion.token.0, completion.result)));
        seen
    };
    assert_eq!(poll(), []);
    device.retire();
    assert_eq!(poll(), [(1, Err(ErrorKind::Removed)), (2, Err(ErrorKind::Removed))]);
    // Whoever still has it, has the device below.
    flush(queue.as_mut(), 3);
    let mut seen = Vec::new();
    queue.poll(9, &mut |completion| seen.push((completion.token.0, completion.result)));
    assert_eq!(seen, [(3, Ok(()))]);
}
