//! What dead queues leave in devices, and what it holds up.

use std::sync::Arc;
use std::time::Duration;

use block::Kind;
use nvme::Status;
use nvme::io::{Command, Transfer};
use target::DisconnectReason;
use target::configuration::NamespaceOptions;

use crate::device::TestDevice;
use crate::harness::{Attempt, ENABLED, NQN, Wire, World, configuration, nqn};

fn write(nsid: u32, lba: u64) -> nvme::Sqe {
    Command::Write(Transfer::new(lba, 1)).to_sqe(nsid)
}

fn read(nsid: u32) -> nvme::Sqe {
    Command::Read(Transfer::new(0, 1)).to_sqe(nsid)
}

/// A controller on shard 0 whose I/O queue, on the last shard, has a write stuck in the device.
fn stuck(shards: u16) -> (World, Arc<TestDevice>, Wire, Wire) {
    let (mut world, device) = World::one_disk(shards, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(usize::from(shards) - 1, cntlid, 1);
    device.stick(true);
    device.cancels(false);
    world.submit(io, write(1, 5), &[7; 512], 0);
    world.run();
    (world, device, admin, io)
}

#[test]
fn a_host_that_comes_back_waits_for_its_old_writes() {
    for shards in 1..=3 {
        let (mut world, device, admin, io) = stuck(shards);
        world.close(io);
        world.close(admin);
        let again = world.open(0);
        world.begin_connect(again, &Attempt::admin());
        assert!(world.is_waiting(again));
        // Somebody else is not held up, and neither is discovery.
        let other = world.open(0);
        world.connect(other, &Attempt::admin().host("nqn.2026-11.io.example:other", 2)).ok();
        let discovery = world.open(0);
        world.connect(discovery, &Attempt::discovery()).ok();
        world.pass(Duration::from_secs(2));
        assert!(world.is_waiting(again));
        device.stick(false);
        world.wait(again).ok();
        // The old write was carried out before the new controller was there.
        assert_eq!(device.done(), [(Kind::Write, 5, 1, false)]);
    }
}

#[test]
fn one_that_waited_in_vain_is_told_to_try_again() {
    let (mut world, device, admin, io) = stuck(2);
    world.close(io);
    world.close(admin);
    let again = world.open(1);
    world.begin_connect(again, &Attempt::admin());
    world.pass(Duration::from_secs(6));
    world.wait(again).failed(Status::CONNECT_CONTROLLER_BUSY);
    device.stick(false);
    world.connect(again, &Attempt::admin()).ok();
}

#[test]
fn a_dead_queue_alone_holds_up_its_host() {
    let (mut world, device, _admin, io) = stuck(2);
    world.close(io);
    let again = world.open(0);
    world.begin_connect(again, &Attempt::admin());
    assert!(world.is_waiting(again));
    device.stick(false);
    world.wait(again).ok();
}

#[test]
fn a_controller_that_does_not_know_yet_holds_up_its_host() {
    // The admin queue is gone; the I/O queue on the other shard has not been told.
    let (mut world, device) = World::one_disk(3, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    world.hold_mail = true;
    world.close(admin);
    let again = world.open(2);
    world.begin_connect(again, &Attempt::admin());
    assert!(world.is_waiting(again));
    // It still takes commands, which must be through before the host has a controller again.
    world.submit(io, write(1, 9), &[1; 512], 0);
    world.run();
    assert_eq!(device.done(), [(Kind::Write, 9, 1, false)]);
    world.hold_mail = false;
    assert!(world.is_waiting(again));
    assert_eq!(world.disconnected(io), DisconnectReason::ControllerGone);
    world.close(io);
    world.wait(again).ok();
}

#[test]
fn a_device_that_keeps_old_writes_is_fenced() {
    for shards in 1..=3 {
        let stuck = TestDevice::new("stuck", 64);
        let sound = TestDevice::new("sound", 64);
        let mut world = World::new(shards);
        world.configure(&configuration(&[(1, &stuck), (2, &sound)]), &[&stuck, &sound]);
        let (admin, cntlid) = world.controller(0);
        let io = world.io_queue(usize::from(shards) - 1, cntlid, 1);
        stuck.stick(true);
        stuck.cancels(false);
        world.submit(io, write(1, 5), &[7; 512], 0);
        world.run();
        world.close(io);
        world.close(admin);
        world.pass(Duration::from_secs(16));
        // The host gets its other namespace, on whatever shard; the stuck one is refused retryably.
        let (_, cntlid) = world.controller(0);
        for shard in 0..usize::from(shards) {
            let io = world.io_queue(shard, cntlid, u16::try_from(shard).unwrap() + 1);
            world.execute(io, read(2), &[], 512).ok();
            world.execute(io, read(1), &[], 512).failed(Status::NAMESPACE_NOT_READY);
        }
        stuck.stick(false);
        world.run();
        for shard in 0..usize::from(shards) {
            let wires: Vec<Wire> = world.wires.keys().copied().collect();
            let io = wires.into_iter().rfind(|wire| wire.shard == shard).unwrap();
            world.execute(io, read(1), &[], 512).ok();
        }
    }
}

#[test]
fn a_fence_stays_when_the_namespace_is_taken_away_and_added_again() {
    for shards in 1..=3 {
        let (mut world, device, admin, io) = stuck(shards);
        world.close(io);
        world.close(admin);
        world.pass(Duration::from_secs(16));
        let mut builder = world.shards[0].configuration().change();
        builder.remove_namespace(&nqn(NQN), 1).unwrap();
        world.configure(&builder.build().unwrap(), &[]);
        // The same device, as another namespace, while the old write is still in it.
        let mut builder = world.shards[0].configuration().change();
        let again = Arc::clone(&device);
        builder.add_namespace(&nqn(NQN), NamespaceOptions::new(3, again)).unwrap();
        world.configure(&builder.build().unwrap(), &[]);
        let (_, cntlid) = world.controller(0);
        for shard in 0..usize::from(shards) {
            let io = world.io_queue(shard, cntlid, u16::try_from(shard).unwrap() + 1);
            world.execute(io, write(3, 5), &[8; 512], 0).failed(Status::NAMESPACE_NOT_READY);
        }
        device.stick(false);
        world.run();
        let wires: Vec<Wire> = world.wires.keys().copied().collect();
        let io = wires.into_iter().next_back().unwrap();
        world.execute(io, write(3, 5), &[9; 512], 0).ok();
        assert_eq!(device.state.lock().unwrap().bytes[5 * 512], 9);
    }
}

#[test]
fn a_reset_waits_for_old_writes_too() {
    let (mut world, device, admin, io) = stuck(2);
    let mut cc = ENABLED;
    cc.en = false;
    world.set_cc(admin, cc);
    world.close(io);
    assert!(world.csts(admin).rdy);
    world.pass(Duration::from_secs(5));
    assert!(world.csts(admin).rdy);
    device.stick(false);
    world.run();
    assert!(!world.csts(admin).rdy);
}

#[test]
fn what_the_device_lets_go_of_holds_up_nobody() {
    let (mut world, device, admin, io) = stuck(2);
    device.cancels(true);
    world.close(io);
    world.close(admin);
    let again = world.open(0);
    world.connect(again, &Attempt::admin()).ok();
    assert_eq!(device.done(), []);
    world.close(again);
    world.assert_clean();
}

#[test]
fn a_command_overdue_in_its_device_is_answered_only_if_it_is_dead() {
    let (mut world, device, _admin, io) = stuck(1);
    world.pass(Duration::from_secs(65));
    // It might still be carried out: nothing is said.
    assert!(world.is_waiting(io));
    assert_eq!(world.shards[0].counters().overdue, 1);
    device.cancels(true);
    world.submit(io, write(1, 6), &[7; 512], 0);
    world.pass(Duration::from_secs(65));
    world.wait(io).failed(Status::COMMAND_INTERRUPTED);
    device.stick(false);
    world.wait(io).ok();
    assert_eq!(device.done(), [(Kind::Write, 5, 1, false)]);
}

#[test]
fn a_queue_that_dies_while_connecting_leaves_nothing() {
    for steps in 0..6 {
        let (mut world, _) = World::one_disk(2, 64);
        let (admin, cntlid) = world.controller(0);
        world.hold_mail = true;
        let io = world.open(1);
        world.begin_connect(io, &Attempt::io(cntlid, 1));
        for _ in 0..steps {
            world.run();
            world.deliver_one(0, 1);
            world.deliver_one(1, 0);
        }
        world.close(io);
        world.hold_mail = false;
        world.run();
        // The number is free again.
        world.io_queue(1, cntlid, 1);
        world.close(admin);
    }
}
