//! Abort, wherever the command is.

use std::time::Duration;

use block::Kind;
use nvme::admin::{self, Abort};
use nvme::io::{Command, Transfer};
use nvme::{Sqe, Status};

use crate::harness::{Wire, World};

fn abort(sqid: u16, cid: u16) -> Sqe {
    admin::Command::Abort(Abort { sqid, cid }).to_sqe(0)
}

fn write(lba: u64) -> Sqe {
    Command::Write(Transfer::new(lba, 8)).to_sqe(1)
}

fn setup(shards: u16) -> (World, std::sync::Arc<crate::device::TestDevice>, Wire, Wire) {
    let (mut world, device) = World::one_disk(shards, 8192);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(usize::from(shards) - 1, cntlid, 1);
    (world, device, admin, io)
}

#[track_caller]
fn aborts(world: &mut World, admin: Wire, cid: u16, expected: bool) {
    let finished = world.execute(admin, abort(1, cid), &[], 0).ok();
    assert_eq!(Abort::aborted(&finished.cqe), expected);
}

#[test]
fn in_the_device() {
    for shards in 1..=2 {
        let (mut world, device, admin, io) = setup(shards);
        device.stick(true);
        let cid = world.submit(io, write(0), &[1; 4096], 0);
        aborts(&mut world, admin, cid, true);
        world.wait(io).failed(Status::ABORT_REQUESTED);
        device.stick(false);
        world.run();
        assert_eq!(device.done(), []);
        aborts(&mut world, admin, cid, false);
    }
}

#[test]
fn in_a_device_that_does_not_let_go() {
    let (mut world, device, admin, io) = setup(2);
    device.stick(true);
    device.cancels(false);
    let cid = world.submit(io, write(0), &[1; 4096], 0);
    world.submit(admin, abort(1, cid), &[], 0);
    assert!(world.is_waiting(admin));
    device.stick(false);
    world.wait(io).ok();
    let finished = world.wait(admin).ok();
    assert!(!Abort::aborted(&finished.cqe), "it was carried out, and that is what is said");
    assert_eq!(device.done(), [(Kind::Write, 0, 8, false)]);
}

#[test]
fn while_the_data_is_on_its_way() {
    let (mut world, device, admin, io) = setup(2);
    world.wires.get_mut(&io).unwrap().lazy = true;
    let cid = world.submit(io, write(0), &[1; 4096], 0);
    world.submit(admin, abort(1, cid), &[], 0);
    assert!(world.is_waiting(admin));
    let (request, length) = world.wires.get_mut(&io).unwrap().receives.pop_front().unwrap();
    world.receive(io, request, length);
    world.wait(io).failed(Status::ABORT_REQUESTED);
    assert!(Abort::aborted(&world.wait(admin).ok().cqe));
    assert_eq!(device.done(), []);
}

#[test]
fn while_it_waits_for_a_buffer() {
    let (mut world, device, admin, io) = setup(2);
    device.stick(true);
    // A queue may hold a quarter of the 8 MiB.
    let data = vec![1; 1 << 20];
    let big = Command::Write(Transfer::new(0, 2048)).to_sqe(1);
    world.submit(io, big, &data, 0);
    world.submit(io, big, &data, 0);
    let cid = world.submit(io, big, &data, 0);
    let after = world.submit(io, write(9), &[1; 4096], 0);
    world.run();
    assert!(world.shards[1].counters().buffer_waits > 0);
    aborts(&mut world, admin, cid, true);
    world.wait(io).failed(Status::ABORT_REQUESTED);
    device.stick(false);
    world.wait(io).ok();
    world.wait(io).ok();
    assert_eq!(world.wait(io).ok().cqe.cid.get(), after);
}

#[test]
fn while_its_namespace_is_paused() {
    let (mut world, _, admin, io) = setup(2);
    let deadline = world.now + Duration::from_secs(100);
    world.shards[0].pause(&crate::harness::nqn(crate::harness::NQN), 1, deadline);
    world.run();
    let cid = world.submit(io, write(0), &[1; 4096], 0);
    aborts(&mut world, admin, cid, true);
    world.wait(io).failed(Status::ABORT_REQUESTED);
}

#[test]
fn an_event_request() {
    let (mut world, _, admin, _) = setup(1);
    let event = admin::Command::AsynchronousEventRequest.to_sqe(0);
    let cid = world.submit(admin, event, &[], 0);
    world.run();
    world.submit(admin, abort(0, cid), &[], 0);
    world.wait(admin).failed(Status::ABORT_REQUESTED);
    assert!(Abort::aborted(&world.wait(admin).ok().cqe));
    // The place of the aborted one is free again.
    for _ in 0..4 {
        world.submit(admin, event, &[], 0);
    }
    assert!(world.is_waiting(admin));
}

#[test]
fn what_is_not_there_is_not_aborted() {
    let (mut world, _, admin, _) = setup(2);
    aborts(&mut world, admin, 4711, false);
    let finished = world.execute(admin, abort(9, 1), &[], 0).ok();
    assert!(!Abort::aborted(&finished.cqe));
    // Itself.
    let finished = world.execute(admin, abort(0, 77), &[], 0).ok();
    assert!(!Abort::aborted(&finished.cqe));
}

#[test]
fn a_queue_that_goes_answers_the_abort_too() {
    let (mut world, device, admin, io) = setup(2);
    device.stick(true);
    device.cancels(false);
    let cid = world.submit(io, write(0), &[1; 4096], 0);
    for _ in 0..4 {
        world.submit(admin, abort(1, cid), &[], 0);
    }
    world.run();
    // The first waits for the command, the others are told that it is being aborted already: no.
    for _ in 0..3 {
        assert!(!Abort::aborted(&world.wait(admin).ok().cqe));
    }
    world.close(io);
    device.stick(false);
    assert!(!Abort::aborted(&world.wait(admin).ok().cqe));
}

#[test]
fn only_so_many_at_a_time() {
    let (mut world, device, admin, io) = setup(2);
    device.stick(true);
    device.cancels(false);
    let cids: Vec<u16> =
        (0..5).map(|lba| world.submit(io, write(lba * 8), &[1; 4096], 0)).collect();
    for cid in &cids {
        world.submit(admin, abort(1, *cid), &[], 0);
    }
    world.wait(admin).failed(Status::ABORT_LIMIT_EXCEEDED);
    assert!(world.is_waiting(admin));
}
