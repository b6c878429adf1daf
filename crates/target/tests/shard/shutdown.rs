//! The orderly end.

use block::Kind;
use nvme::Status;
use nvme::admin::Command as Admin;
use nvme::io::{Command, Transfer};
use target::CommandRefused;

use crate::harness::{Attempt, NQN, World};

#[test]
fn what_is_in_flight_finishes_and_devices_are_flushed() {
    let (mut world, device) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    device.stick(true);
    let write = Command::Write(Transfer::new(3, 1)).to_sqe(1);
    world.submit(io, write, &[1; 512], 0);
    world.submit(admin, Admin::AsynchronousEventRequest.to_sqe(0), &[], 0);
    world.run();
    for shard in &mut world.shards {
        shard.begin_shutdown();
    }
    world.run();
    let stuck = world.shards[1].drained().unwrap_err();
    assert!(stuck.iter().any(|line| line.contains(NQN) && line.contains("disk0")), "{stuck:?}");
    device.done();
    // Nothing new: controllers are refused retryably, commands are not read.
    let wire = world.open(0);
    world.connect(wire, &Attempt::admin()).failed(Status::CONNECT_CONTROLLER_BUSY);
    assert_eq!(world.submit_as(io, 999, write, &[1; 512], 0), Err(CommandRefused::Busy));
    world.execute(admin, Admin::KeepAlive.to_sqe(0), &[], 0).ok();
    device.stick(false);
    world.wait(io).ok();
    for shard in &world.shards {
        assert_eq!(shard.drained(), Ok(()));
    }
    // Each shard flushes, and the one with the write does so after it.
    let flush = (Kind::Flush, 0, 0, false);
    assert_eq!(device.done(), [flush, (Kind::Write, 3, 1, false), flush]);
}

#[test]
fn a_flush_that_fails_is_named() {
    let (mut world, device) = World::one_disk(1, 64);
    device.fail_next(block::ErrorKind::MediumWrite);
    world.shards[0].begin_shutdown();
    world.run();
    let stuck = world.shards[0].drained().unwrap_err();
    assert!(stuck[0].contains(NQN) && stuck[0].contains("flush failed"), "{stuck:?}");
}
