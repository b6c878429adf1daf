//! The orderly end: what was acknowledged is there, what is stuck is named.

use std::fs;
use std::time::Duration;

use host::Transfer;
use nvme::io::{self, Command};
use rustix::process::Signal;

use crate::support::daemon::{Daemon, NQN, file_config, free_port, loopback};
use crate::support::gate::GatedDevice;
use crate::support::node::{self, Exported, Plan, ram};
use crate::support::workload::Workload;
use crate::support::{connect, folder, options, until};

/// Signals a daemon while four connections keep it busy.
fn ends_under_load(signal: Signal, more: &str) {
    let folder = folder();
    let port = free_port();
    let daemon = Daemon::start(folder.path(), &file_config(port, more));
    let mut workload = Workload::new(loopback(port), NQN, 3);
    workload.run(200);
    let mut signalled = false;
    workload.run_until_broken(|answered| {
        if answered >= 400 && !signalled {
            signalled = true;
            daemon.signal(signal);
        }
    });
    let (status, said, took) = daemon.wait();
    assert!(signalled && status.success(), "{status}: {said}");
    assert!(took < Duration::from_secs(8), "idle hosts held it up for {took:?}: {said}");
    workload.check_medium(1, &fs::read(folder.path().join("disk.img")).unwrap());
}

#[test]
fn sigterm_under_load_finishes_what_was_asked() {
    ends_under_load(Signal::TERM, "");
}

#[test]
fn sigint_under_load_without_io_uring_finishes_what_was_asked() {
    ends_under_load(Signal::INT, "[reactors]\nio_uring = \"never\"\nidle = \"interrupt\"\n");
}

#[test]
fn a_host_that_never_sends_its_data_is_named() {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, "shutdown_timeout = \"500ms\"\n");
    let daemon = Daemon::start(folder.path(), &config);
    let (_controller, mut queues) = connect(options(loopback(port), NQN, "stuck"), 1, 4, 1 << 20);
    let queue = &mut queues[0];
    let slot = queue.reserve().unwrap();
    let write = Command::Write(io::Transfer::new(0, 256)).to_sqe(1);
    queue.submit(slot, write, Transfer::Write(1 << 20)).unwrap();
    // The capsule leaves; the answer, which asks for the data, is awaited and never taken in.
    queue.flush().unwrap();
    assert!(queue.wait(crate::support::PATIENCE).unwrap());
    daemon.signal(Signal::TERM);
    let (status, said, _) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("tidegate: stuck at shutdown: ") && last.contains("127.0.0.1"),
        "{said}"
    );
}

#[test]
fn a_device_that_hangs_is_named() {
    let (device, gate) = GatedDevice::new(ram("tape", 1 << 20, 512));
    let plan = Plan { reactors: 2, ..Plan::default() };
    let (node, addresses) = node::start(&plan, vec![Exported::new(NQN, vec![device])]);
    let (_controller, mut queues) = connect(options(addresses[0], NQN, "stuck"), 2, 4, 4096);
    gate.shut();
    for queue in &mut queues {
        let slot = queue.reserve().unwrap();
        let read = Command::Read(io::Transfer::new(0, 1)).to_sqe(1);
        queue.submit(slot, read, Transfer::Read(512)).unwrap();
        queue.flush().unwrap();
    }
    until("both are in the device", || (gate.held() == 2).then_some(()));
    let stuck = node.shutdown(Duration::from_millis(300)).unwrap_err().to_string();
    assert!(stuck.contains("tape") && stuck.contains(NQN), "{stuck}");
    assert_eq!(stuck.lines().count(), 1, "{stuck}");
}

#[test]
fn a_host_that_does_not_close_holds_up_nothing() {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, "shutdown_timeout = \"200ms\"\n");
    let daemon = Daemon::start(folder.path(), &config);
    // Connected and served, then deaf: neither reads what is sent to it nor closes.
    let (_controller, _queues) = connect(options(loopback(port), NQN, "deaf"), 2, 4, 4096);
    daemon.signal(Signal::TERM);
    let (status, said, took) = daemon.wait();
    assert!(status.success(), "{status}: {said}");
    assert!(took < Duration::from_secs(3), "{took:?}: {said}");
}

#[test]
fn sigterm_while_it_waits_for_a_port_or_a_lock_is_obeyed_at_once() {
    let folder = folder();
    let (port, other) = (free_port(), free_port());
    let first = Daemon::start(folder.path(), &file_config(port, ""));
    // The second waits for the lock on the file; the third, in its own folder, for the port.
    let elsewhere = crate::support::folder();
    for (place, port, waits_for) in
        [(folder.path(), other, "in use"), (elsewhere.path(), port, "in use")]
    {
        let waiting = Daemon::spawn(place, &file_config(port, ""));
        until("it says that it waits", || waiting.errors().contains(waits_for).then_some(()));
        waiting.signal(Signal::TERM);
        let (status, said, took) = waiting.wait();
        assert!(status.success() && said.contains("not serving yet"), "{status}: {said}");
        assert!(took < Duration::from_secs(3), "{took:?}: {said}");
    }
    first.signal(Signal::TERM);
    assert!(first.wait().0.success());
}
