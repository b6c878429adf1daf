//! An idle node costs next to nothing.

use std::fs;
use std::time::Duration;

use reactor::IdlePolicy;

use crate::support::daemon::{Daemon, NQN, file_config, free_port, loopback};
use crate::support::gate::GatedDevice;
use crate::support::node::{self, Exported, Plan, ram};
use crate::support::{connect, folder, options};

const QUEUES: u16 = 100;
/// Over which it is watched. It is no wait for anything: what is counted is counted per time.
const WINDOW: Duration = Duration::from_secs(3);
/// The default.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// Lets the window pass, with one Keep Alive in it as a real host sends.
fn watch(controller: &mut host::Controller) {
    for _ in 0..2 {
        assert!(controller.next_event(WINDOW / 2).unwrap().is_none());
        controller.keep_alive().unwrap();
    }
}

/// Counts, as the count does not depend on how fast or how busy the machine is: a reactor that sleeps takes
/// no turns, and after each sleep it spins for [`MAX_SPIN`] at most. So many sleeps a second are so many
/// times that spin at most, a fifth of what is allowed.
#[test]
fn an_adaptive_reactor_sleeps_while_a_hundred_queues_are_idle() {
    for reactors in [1, 2] {
        let (device, reactor) = GatedDevice::new(ram("ram", 1 << 20, 512));
        let idle = IdlePolicy::Adaptive { max_spin: MAX_SPIN };
        let plan = Plan { reactors, idle, ..Plan::default() };
        let (node, addresses) = node::start(&plan, vec![Exported::new(NQN, vec![device])]);
        let (mut controller, queues) = connect(options(addresses[0], NQN, "idle"), QUEUES, 1, 4096);
        let before = reactor.counters();
        watch(&mut controller);
        for (before, after) in before.iter().zip(reactor.counters()) {
            let sleeps = (after.sleeps - before.sleeps) as u32;
            assert!(sleeps > 0 && MAX_SPIN * sleeps < WINDOW / 500, "{before:?} {after:?}");
        }
        drop((controller, queues));
        node.shutdown(crate::support::PATIENCE).unwrap();
    }
}

/// Processor time of all threads of the process, in nanoseconds, as the scheduler counts it.
fn processor_time(pid: i32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|thread| {
            let figures = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            figures.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

/// Time on a processor, not elapsed time: waiting for one on a busy machine does not count. What the daemon
/// uses is a small fraction of what is allowed (the counts above say why), so a slow machine passes too.
#[test]
fn a_daemon_with_a_hundred_idle_queues_uses_less_than_a_hundredth_of_a_core() {
    let folder = folder();
    let port = free_port();
    let daemon = Daemon::start(folder.path(), &file_config(port, ""));
    let (mut controller, _queues) = connect(options(loopback(port), NQN, "idle"), QUEUES, 1, 4096);
    let pid = daemon.pid().as_raw_nonzero().get();
    let before = processor_time(pid);
    watch(&mut controller);
    let used = Duration::from_nanos(processor_time(pid) - before);
    assert!(used < WINDOW / 100, "{used:?} in {WINDOW:?}");
}
