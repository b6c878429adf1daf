//! Reactors on threads of their own sleep while their queues are idle, and wake up whenever a capsule comes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::cast_possible_truncation)]

mod support;

use std::time::{Duration, Instant};

use host::{Queue, Transfer};
use nvme::io::{Command, Transfer as Blocks};
use reactor::{CounterValues, IdlePolicy};
use support::{Node, Options};
use testkit::Random;

/// Over which an idle node is watched. It is no wait for anything: what is counted is counted per time.
const WINDOW: Duration = Duration::from_secs(1);
/// Longer than any answer takes, and far longer than what would wake a reactor that has missed its wake-up.
const PATIENCE: Duration = Duration::from_secs(20);
const POLICIES: [IdlePolicy; 2] =
    [IdlePolicy::Interrupt, IdlePolicy::Adaptive { max_spin: Duration::from_micros(100) }];

fn counters(node: &Node) -> Vec<CounterValues> {
    node.handles().iter().map(reactor::Handle::counters).collect()
}

fn read(queue: &mut Queue, lba: u64) -> Duration {
    let slot = queue.reserve().unwrap();
    let sqe = Command::Read(Blocks::new(lba, 8)).to_sqe(1);
    let start = Instant::now();
    let ended = queue.call(slot, sqe, Transfer::Read(4096), PATIENCE, "a read").unwrap();
    let took = start.elapsed();
    assert!(ended.cqe.status().is_success(), "{:?}", ended.cqe);
    queue.release(slot);
    took
}

fn write(queue: &mut Queue, lba: u64, bytes: u32) {
    let slot = queue.reserve().unwrap();
    let sqe = Command::Write(Blocks::new(lba, bytes / 512)).to_sqe(1);
    let ended = queue.call(slot, sqe, Transfer::Write(bytes), PATIENCE, "a write").unwrap();
    assert!(ended.cqe.status().is_success(), "{:?}", ended.cqe);
    queue.release(slot);
}

#[test]
fn reactors_with_idle_queues_sleep() {
    for idle in POLICIES {
        let node = Node::start(&Options { reactors: 2, idle, ..Options::default() });
        let mut controller = node.connect();
        controller.request_queues(8).unwrap();
        let mut queues: Vec<_> =
            (1..=8).map(|qid| controller.open_queue(qid, 32, 4096).unwrap()).collect();
        for queue in &mut queues {
            read(queue, 0);
        }
        let before = counters(&node);
        std::thread::sleep(WINDOW);
        for (before, after) in before.iter().zip(counters(&node)) {
            // The shard's housekeeping is all that wakes one.
            let (sleeps, turns) = (after.sleeps - before.sleeps, after.turns - before.turns);
            assert!(sleeps < 50 && turns < 50_000, "{idle:?}: {before:?} {after:?}");
            if idle == IdlePolicy::Interrupt {
                assert!(turns < 500, "{idle:?}: {turns} turns");
            }
        }
        for queue in &mut queues {
            read(queue, 0);
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    for idle in POLICIES {
        for receives in [256, 0] {
            let mut options = Options { idle, ..Options::default() };
            options.device.max_srq = receives;
            let node = Node::start(&options);
            let mut controller = node.connect();
            controller.request_queues(2).unwrap();
            let mut queues: Vec<_> =
                (1..=2).map(|qid| controller.open_queue(qid, 32, 8192).unwrap()).collect();
            let mut random = Random::new(7);
            let before = counters(&node);
            let (mut slow, rounds) = (0, 3000);
            for round in 0..rounds {
                let queue = &mut queues[random.index(2)];
                // Just while it goes to sleep, for one.
                let pause = Instant::now() + Duration::from_nanos(random.spread(100, 300_000));
                while Instant::now() < pause {
                    std::hint::spin_loop();
                }
                match round % 3 {
                    0 => write(queue, 16, 8192),
                    1 => write(queue, 16, 512),
                    _ => slow += u32::from(read(queue, 0) > Duration::from_millis(90)),
                }
            }
            let after = counters(&node);
            assert!(after[0].sleeps - before[0].sleeps > rounds / 10, "{after:?}");
            // What is lost is found by the housekeeping, a tenth of a second later or more.
            assert!(slow < 20, "{idle:?}: {slow} of {rounds} reads were slow");
            assert!(node.network.total().events > 0);
        }
    }
}

#[test]
fn a_reactor_that_never_sleeps_neither_arms_nor_asks_epoll() {
    let node = Node::start(&Options { idle: IdlePolicy::Poll, ..Options::default() });
    let mut controller = node.connect();
    controller.request_queues(1).unwrap();
    let mut queue = controller.open_queue(1, 32, 4096).unwrap();
    read(&mut queue, 0);
    let before = counters(&node);
    for _ in 0..2000 {
        read(&mut queue, 0);
    }
    assert_eq!(counters(&node)[0].epoll_calls, before[0].epoll_calls);
    assert_eq!(node.network.total().events, 0);
}
