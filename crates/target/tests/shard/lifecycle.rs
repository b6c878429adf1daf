//! Controllers from Connect to their end.

use std::time::Duration;

use nvme::Status;
use nvme::io::{Command, Transfer};
use nvme::register::{ShutdownNotification, ShutdownStatus};
use target::DisconnectReason;

use crate::harness::{Attempt, ENABLED, World};

#[test]
fn a_reset_ends_io_queues_and_keeps_the_admin_queue() {
    let (mut world, _) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let mut cc = ENABLED;
    cc.en = false;
    world.set_cc(admin, cc);
    assert_eq!(world.disconnected(io), DisconnectReason::Reset);
    assert!(world.csts(admin).rdy, "not before the queue is gone");
    world.close(io);
    assert!(!world.csts(admin).rdy);
    world.set_cc(admin, ENABLED);
    assert!(world.csts(admin).rdy);
    world.io_queue(1, cntlid, 1);
}

#[test]
fn a_shutdown_completes_when_the_queues_are_gone() {
    let (mut world, _) = World::one_disk(1, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    let mut cc = ENABLED;
    cc.shn = ShutdownNotification::Normal;
    world.set_cc(admin, cc);
    assert_eq!(world.csts(admin).shst, ShutdownStatus::Occurring);
    world.close(io);
    assert_eq!(world.csts(admin).shst, ShutdownStatus::Complete);
    world.close(admin);
    world.assert_clean();
}

#[test]
fn a_silent_host_loses_its_controller() {
    let (mut world, _) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller_of(0, &Attempt::admin().kato(4000));
    let io = world.io_queue(1, cntlid, 1);
    // Traffic on any queue is a sign of life.
    for _ in 0..5 {
        world.pass(Duration::from_secs(3));
        let read = Command::Read(Transfer::new(0, 1)).to_sqe(1);
        world.execute(io, read, &[], 512).ok();
    }
    assert!(world.wires[&admin].disconnected.is_none());
    world.pass(Duration::from_millis(7500));
    assert!(world.wires[&admin].disconnected.is_none());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.disconnected(admin), DisconnectReason::KeepAlive);
    assert_eq!(world.disconnected(io), DisconnectReason::KeepAlive);
    world.close(admin);
    world.close(io);
    world.assert_clean();
}

#[test]
fn an_admin_queue_takes_its_controller_with_it() {
    let (mut world, _) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    world.close(admin);
    assert_eq!(world.disconnected(io), DisconnectReason::ControllerGone);
    world.close(io);
    world.assert_clean();
}

#[test]
fn disconnect_ends_an_io_queue_only() {
    let (mut world, _) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    world.disconnect_command(admin).failed(Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr());
    world.disconnect_command(io).ok();
    assert_eq!(world.disconnected(io), DisconnectReason::Asked);
    world.close(io);
    world.io_queue(0, cntlid, 1);
}
