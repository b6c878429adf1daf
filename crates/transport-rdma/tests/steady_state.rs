//! What an I/O costs once everything is warm: no allocation, no copy, one completion to be polled for, and one call
//! that posts for all commands of a turn. And what a connection costs at rest.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

#[path = "../../reactor/tests/counting/mod.rs"]
#[allow(dead_code)]
mod counting;
#[path = "stepped/support.rs"]
#[allow(dead_code)]
mod support;

use std::rc::Rc;
use std::time::Duration;

use counting::allocations;
use support::{filled, machine, read, simple, with_device, write, zeroed};
use testkit::peer::pattern;
use testkit::rdma::{Controller, Machine, Queue, World, in_capsule, listed};
use transport_rdma::CounterValues;
use verbs::software::DeviceOptions;

const DEPTH: u16 = 32;

struct Bench {
    world: World,
    machine: Rc<Machine>,
    _controller: Controller,
    queue: Queue,
    /// Allocations in turns of the reactor.
    allocated: u64,
    turns: u64,
    /// Posts of the turn that made most.
    most_posts: u64,
}

/// What changed between two looks at the counters.
struct Cost {
    counted: CounterValues,
    before: CounterValues,
    allocated: u64,
    turns: u64,
    most_posts: u64,
}

impl Cost {
    fn of(&self, get: fn(&CounterValues) -> u64) -> u64 {
        get(&self.counted) - get(&self.before)
    }
}

impl Bench {
    fn new(change: impl FnOnce(&mut DeviceOptions)) -> Bench {
        let mut world = with_device(change);
        let machine = machine(&world);
        let controller = world.controller(&machine, 1, 0).unwrap();
        let queue = world.io_queue(&controller, 1, 128).unwrap();
        Bench {
            world,
            machine,
            _controller: controller,
            queue,
            allocated: 0,
            turns: 0,
            most_posts: 0,
        }
    }

    /// Sends all of these, and steps until each is answered.
    fn round(&mut self, capsules: &[Vec<u8>]) {
        for capsule in capsules {
            self.queue.send(capsule);
        }
        let mut answered = 0;
        while answered < capsules.len() {
            self.world.fabric.run(10_000);
            let posts = self.world.network.total().posts;
            let before = allocations();
            self.world.reactors[0].turn();
            self.allocated += allocations() - before;
            self.turns += 1;
            self.most_posts = self.most_posts.max(self.world.network.total().posts - posts);
            self.queue.turn();
            for message in self.queue.arrived.drain(..) {
                assert_eq!(&message.bytes[14..], &[0, 0], "a command failed");
                answered += 1;
            }
        }
    }

    fn measure(&mut self, rounds: usize, capsules: &[Vec<u8>]) -> Cost {
        for _ in 0..50 {
            self.round(capsules);
        }
        self.settle();
        (self.allocated, self.turns, self.most_posts) = (0, 0, 0);
        let before = self.world.network.total();
        for _ in 0..rounds {
            self.round(capsules);
        }
        self.settle();
        Cost {
            counted: self.world.network.total(),
            before,
            allocated: self.allocated,
            turns: self.turns,
            most_posts: self.most_posts,
        }
    }

    /// What is out ends.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.world.fabric.run(10_000);
            self.world.reactors[0].turn();
        }
    }

    /// Lets time pass, in steps short enough for the reactor to spin and sleep meanwhile.
    fn rest(&mut self, time: Duration) {
        for _ in 0..20 {
            self.world.fabric.run(10_000);
            self.world.reactors[0].step();
            self.world.clock.advance(time / 20);
        }
    }

    fn sleeps(&self) -> u64 {
        self.world.reactors[0].handle().counters().sleeps
    }

    fn epoll_calls(&self) -> u64 {
        self.world.reactors[0].handle().counters().epoll_calls
    }

    fn capsules(&self, kind: Kind) -> Vec<Vec<u8>> {
        self.capsules_of(kind, DEPTH)
    }

    fn capsules_of(&self, kind: Kind, count: u16) -> Vec<Vec<u8>> {
        let data = pattern(1, 4096);
        let each = (0..count).map(|cid| {
            let offset = u64::from(cid) * 4096;
            let memory = &self.machine.memory;
            match kind {
                Kind::Read => {
                    simple(&self.queue, read(cid, offset, 4096), &zeroed(&self.machine, 4096))
                }
                Kind::InCapsule => in_capsule(write(cid, offset, 4096), &data, 0),
                Kind::Small => in_capsule(write(cid, offset, 512), &data[..512], 0),
                Kind::Keyed => {
                    let segment = filled(&self.machine, 3, &data);
                    simple(&self.queue, write(cid, offset, 4096), &segment)
                }
                Kind::List => {
                    let segment = filled(&self.machine, 3, &data);
                    let (one, other) =
                        (segment.part(0, 1000).unwrap(), segment.part(1000, 3096).unwrap());
                    listed(write(cid, offset, 4096), memory, &[one, other], 0, false)
                }
                Kind::ListedRead => {
                    let segment = zeroed(&self.machine, 4096);
                    let (one, other) =
                        (segment.part(0, 1000).unwrap(), segment.part(1000, 3096).unwrap());
                    listed(read(cid, offset, 4096), memory, &[one, other], 0, false)
                }
                Kind::Invalidating => {
                    // A device that cannot is asked in vain, so the key stays good.
                    let segment = zeroed(&self.machine, 4096);
                    testkit::rdma::keyed(read(cid, offset, 4096), memory, &segment, true)
                }
            }
        });
        each.collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Read,
    InCapsule,
    Small,
    Keyed,
    List,
    ListedRead,
    Invalidating,
}

const KINDS: [Kind; 6] =
    [Kind::Read, Kind::InCapsule, Kind::Small, Kind::Keyed, Kind::List, Kind::Invalidating];

/// A kind of device: its name, and what it lacks.
type Variant = (&'static str, fn(&mut DeviceOptions));

fn devices() -> Vec<Variant> {
    vec![
        ("a good device", |it| it.send_with_invalidate = false),
        ("without shared receives", |it| (it.max_srq, it.send_with_invalidate) = (0, false)),
        ("nothing inline", |it| (it.max_inline, it.send_with_invalidate) = (0, false)),
        ("one read at a time", |it| (it.max_qp_init_rd_atom, it.send_with_invalidate) = (1, false)),
    ]
}

/// Whether this goes on this device: a queue's own receives are short.
fn fits(device: &str, kind: Kind) -> bool {
    !(device == "without shared receives" && matches!(kind, Kind::InCapsule | Kind::Small))
}

#[test]
fn no_command_allocates() {
    for (name, device) in devices() {
        let mut bench = Bench::new(device);
        for kind in KINDS.into_iter().filter(|&kind| fits(name, kind)) {
            let capsules = bench.capsules(kind);
            let cost = bench.measure(200, &capsules);
            assert_eq!(cost.allocated, 0, "{name}, {kind:?}: {} turns", cost.turns);
        }
    }
}

#[test]
fn no_data_is_copied() {
    for (name, device) in devices() {
        let mut bench = Bench::new(device);
        for kind in KINDS.into_iter().filter(|&kind| fits(name, kind)) {
            let capsules = bench.capsules(kind);
            let cost = bench.measure(20, &capsules);
            assert_eq!(cost.of(|it| it.bytes_copied), 0, "{name}, {kind:?}");
        }
    }
}

#[test]
fn a_turn_posts_once_and_a_command_completes_once() {
    const ROUNDS: u64 = 100;
    let mut bench = Bench::new(|device| device.send_with_invalidate = false);
    for kind in KINDS {
        let capsules = bench.capsules(kind);
        let cost = bench.measure(ROUNDS as usize, &capsules);
        let commands = ROUNDS * u64::from(DEPTH);
        assert_eq!(cost.of(|it| it.commands), commands);
        // What is fetched is known to be there only by the read's own completion.
        let reads = match kind {
            Kind::Keyed => commands,
            Kind::List => 2 * commands,
            _ => 0,
        };
        assert_eq!(cost.of(|it| it.reads), reads, "{kind:?}");
        // The capsule, what was fetched, and the response.
        assert_eq!(cost.of(|it| it.completions), 2 * commands + reads, "{kind:?}");
        let receive_posts = cost.of(|it| it.receive_posts);
        assert!(receive_posts <= cost.turns, "{kind:?}: {receive_posts} in {} turns", cost.turns);
        let posts = cost.of(|it| it.posts);
        // Reads are bounded by what the host answers at a time, so they go out in several turns.
        let most = match kind {
            Kind::Keyed => 4 * ROUNDS,
            Kind::List => 8 * ROUNDS,
            _ => ROUNDS,
        };
        assert!(posts <= most, "{kind:?}: {posts} posts in {ROUNDS} rounds");
        assert_eq!(cost.most_posts, 1, "{kind:?}");
    }
}

/// However much the turn has for the queue pair: each of these reads takes two or three work requests.
#[test]
fn a_turn_posts_once_for_a_queue_of_the_greatest_depth() {
    const ROUNDS: u64 = 20;
    let mut bench = Bench::new(|device| device.send_with_invalidate = false);
    for kind in [Kind::Read, Kind::ListedRead] {
        let capsules = bench.capsules_of(kind, 128);
        let cost = bench.measure(ROUNDS as usize, &capsules);
        assert_eq!(cost.of(|it| it.commands), ROUNDS * 128);
        assert_eq!(cost.most_posts, 1, "{kind:?}");
    }
}

/// The data path makes no system call of its own, and the completion channel is looked at only before the reactor sleeps.
#[test]
fn busy_turns_make_no_system_calls() {
    let mut bench = Bench::new(|_| {});
    let capsules = bench.capsules(Kind::Read);
    bench.round(&capsules);
    let (calls, before) = (bench.epoll_calls(), bench.world.network.total());
    for capsule in capsules.iter().cycle().take(20_000) {
        // There is always something to be done.
        bench.queue.send(capsule);
        bench.world.fabric.run(4);
        bench.world.reactors[0].turn();
        while bench.queue.room() < 100 {
            bench.world.fabric.run(1000);
            bench.queue.turn();
        }
        bench.queue.arrived.clear();
    }
    let calls = bench.epoll_calls() - calls;
    let after = bench.world.network.total();
    assert_eq!(calls, 0, "calls of epoll");
    assert_eq!(after.events, before.events, "nobody slept");
}

/// A host with one command outstanding wakes the reactor with each command, and with nothing else: what was sent to it ends
/// while the reactor sleeps, which nobody has to know.
#[test]
fn a_lone_command_wakes_the_reactor_once() {
    const ROUNDS: u64 = 100;
    let mut bench = Bench::new(|_| {});
    let capsules = bench.capsules(Kind::Read);
    bench.rest(Duration::from_millis(2));
    let before = bench.world.network.total();
    let sleeps = bench.sleeps();
    for capsule in capsules.iter().cycle().take(ROUNDS as usize) {
        bench.queue.send(capsule);
        bench.rest(Duration::from_micros(200));
        bench.queue.turn();
        assert_eq!(bench.queue.arrived.drain(..).count(), 1);
    }
    assert_eq!(bench.world.network.total().events - before.events, ROUNDS);
    assert!(bench.sleeps() - sleeps >= ROUNDS);
    // When no more come, what was sent is heard of without another wake-up, and then nothing is watched.
    bench.rest(Duration::from_millis(2));
    assert_eq!(bench.world.network.total().completions - before.completions, 2 * ROUNDS);
    assert_eq!(bench.world.network.total().events - before.events, ROUNDS);
}

#[test]
fn a_queue_at_rest_costs_little() {
    const QUEUES: u16 = 100;
    for shared in [256, 0] {
        let mut bench = Bench::new(|device| device.max_srq = shared);
        let free = bench.world.available();
        let host = bench.world.controller(&bench.machine, 2, 0).unwrap();
        let warm = bench.world.io_queue(&host, 1, 32).unwrap();
        let used = free - bench.world.available();
        let queues: Vec<_> =
            (2..2 + QUEUES).map(|qid| bench.world.io_queue(&host, qid, 32).unwrap()).collect();
        let each = (free - used - bench.world.available()) / usize::from(QUEUES);
        // The bound is 64 KiB; with a shared queue it is nothing.
        assert!(
            each <= if shared > 0 { 0 } else { 64 << 10 },
            "{each} bytes of the pool per queue"
        );
        drop((queues, warm));
    }
}
