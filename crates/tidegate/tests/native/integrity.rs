//! Integrity: random commands of every kind on every kind of device, against an oracle, at every idle
//! policy, with one and two reactors, with `io_uring` and without.

use std::fs;
use std::time::Duration;

use block::BlockDevice;
use block::file::Direct;
use reactor::{IdlePolicy, RingChoice};
use rustix::process::Signal;

use crate::support::daemon::{Daemon, NQN, file_config, free_port, run_json};
use crate::support::gate::GatedDevice;
use crate::support::node::{self, Exported, Plan, ram};
use crate::support::workload::Workload;
use crate::support::{PATIENCE, folder};

const ADAPTIVE: IdlePolicy = IdlePolicy::Adaptive { max_spin: Duration::from_micros(100) };
const URING: RingChoice = RingChoice::Probe { without: reactor::ring::Features::empty() };
const THREADS: RingChoice = RingChoice::Forbidden;
/// Of each namespace.
const SIZE: u64 = 8 << 20;
const COMMANDS: u64 = 2000;

/// One node with five namespaces, four connections over all of them.
fn integrity(ring: RingChoice, idle: IdlePolicy, reactors: usize) {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let (gated, reactor) = GatedDevice::new(ram("ram-512", SIZE, 512));
    let files = [
        (3, path("direct-4096"), 4096, Direct::Auto),
        (4, path("direct-512"), 512, Direct::Auto),
        (5, path("cached-512"), 512, Direct::Never),
    ];
    let mut devices: Vec<std::sync::Arc<dyn BlockDevice>> =
        vec![gated, ram("ram-4096", SIZE, 4096)];
    for (_, path, block_size, direct) in &files {
        devices.push(node::file(path, SIZE, *block_size, *direct));
    }
    let plan = Plan { reactors, idle, ring, ..Plan::default() };
    let (node, addresses) = node::start(&plan, vec![Exported::new(NQN, devices)]);

    let seed = 1 + reactors as u64;
    let mut workload = Workload::new(addresses[0], NQN, seed);
    workload.run(COMMANDS);
    workload.read_back();

    // The run means what its name says.
    let counters = reactor.counters();
    assert_eq!(counters.len(), reactors);
    for counters in counters {
        assert_eq!(counters.ring_enters > 0, ring == URING, "{counters:?}");
        assert_eq!(counters.sleeps > 0, idle != IdlePolicy::Poll, "{counters:?}");
        assert!(counters.busy_turns > COMMANDS / 100, "{counters:?}");
    }
    // A host that stays would be waited for.
    workload.break_off();
    node.shutdown(PATIENCE).unwrap();
    // What the media hold, seen past the target.
    for (nsid, path, ..) in files {
        workload.check_medium(nsid, &fs::read(path).unwrap());
    }
}

macro_rules! integrity {
    ($($name:ident: $ring:ident, $idle:expr, $reactors:literal;)+) => { $(
        #[test]
        fn $name() {
            integrity($ring, $idle, $reactors);
        }
    )+ };
}

integrity! {
    uring_poll_one_reactor: URING, IdlePolicy::Poll, 1;
    uring_poll_two_reactors: URING, IdlePolicy::Poll, 2;
    uring_adaptive_one_reactor: URING, ADAPTIVE, 1;
    uring_adaptive_two_reactors: URING, ADAPTIVE, 2;
    uring_interrupt_one_reactor: URING, IdlePolicy::Interrupt, 1;
    uring_interrupt_two_reactors: URING, IdlePolicy::Interrupt, 2;
    threads_poll_one_reactor: THREADS, IdlePolicy::Poll, 1;
    threads_poll_two_reactors: THREADS, IdlePolicy::Poll, 2;
    threads_adaptive_one_reactor: THREADS, ADAPTIVE, 1;
    threads_adaptive_two_reactors: THREADS, ADAPTIVE, 2;
    threads_interrupt_one_reactor: THREADS, IdlePolicy::Interrupt, 1;
    threads_interrupt_two_reactors: THREADS, IdlePolicy::Interrupt, 2;
}

/// The same through the binary: `perf` verifies what `serve` keeps.
fn through_the_binary(reactors: &str) {
    let folder = folder();
    let port = free_port();
    let daemon = Daemon::start(folder.path(), &file_config(port, reactors));
    let service = port.to_string();
    for (rw, bs, jobs, more) in [
        ("randrw", "4k", "2", &["--iodepth", "32"][..]),
        ("write", "1m", "1", &["--iodepth", "4", "-g", "-G"]),
        ("randwrite", "36k", "3", &["--connections", "2", "-G", "--fua", "--number-ios", "100"]),
        ("rw", "64k", "1", &["--iodepth", "16", "-g", "--disable-sqflow"]),
    ] {
        let arguments =
            ["perf", "-s", &service, "-n", NQN, "--rw", rw, "--bs", bs, "--numjobs", jobs];
        let report = run_json(
            folder.path(),
            &[&arguments[..], &["--verify", "crc32c", "--size", "16m"], more].concat(),
        );
        assert_eq!(report["verify"]["failed_ios"], 0, "{report}");
        assert!(report["verify"]["blocks"].as_u64().unwrap() > 500, "{report}");
        assert!(report["error"].is_null(), "{report}");
    }
    daemon.signal(Signal::TERM);
    let (status, said, _) = daemon.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn perf_verifies_with_io_uring() {
    through_the_binary("");
}

#[test]
fn perf_verifies_without_io_uring_on_one_reactor() {
    through_the_binary("[reactors]\nio_uring = \"never\"\ncores = [0]\nidle = \"interrupt\"\n");
}
