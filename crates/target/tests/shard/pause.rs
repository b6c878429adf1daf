//! Pauses of a namespace.

use std::time::Duration;

use block::Kind;
use nvme::admin::{Command as Admin, Identify};
use nvme::identify::Cns;
use nvme::io::{Command, Transfer};
use target::shard::PauseStatus;

use crate::harness::{NQN, World, nqn};

fn write(lba: u64) -> nvme::Sqe {
    Command::Write(Transfer::new(lba, 1)).to_sqe(1)
}

#[test]
fn commands_are_held_in_order_and_the_device_is_empty() {
    for shards in 1..=3 {
        let (mut world, device) = World::one_disk(shards, 64);
        let (admin, cntlid) = world.controller(0);
        let io = world.io_queue(usize::from(shards) - 1, cntlid, 1);
        device.stick(true);
        world.submit(io, write(1), &[1; 512], 0);
        world.run();
        let deadline = world.now + Duration::from_mins(1);
        let pause = world.shards[0].pause(&nqn(NQN), 1, deadline);
        world.run();
        assert_eq!(world.shards[0].pause_status(pause), PauseStatus::Draining { shards: 1 });
        for lba in 2..6 {
            world.submit(io, write(lba), &[1; 512], 0);
        }
        device.stick(false);
        world.run();
        assert_eq!(world.shards[0].pause_status(pause), PauseStatus::Paused);
        world.wait(io).ok();
        assert!(world.is_waiting(io));
        assert_eq!(device.done(), [(Kind::Write, 1, 1, false)]);
        // Admin commands are never held.
        let identify = Admin::Identify(Identify::new(Cns::Controller)).to_sqe(0);
        world.execute(admin, identify, &[], 4096).ok();
        world.execute(admin, Admin::KeepAlive.to_sqe(0), &[], 0).ok();
        world.shards[0].resume(pause);
        for _ in 2..6 {
            world.wait(io).ok();
        }
        let order: Vec<u64> = device.done().iter().map(|(_, lba, _, _)| *lba).collect();
        assert_eq!(order, [2, 3, 4, 5]);
        assert_eq!(world.shards[0].pause_status(pause), PauseStatus::Over);
    }
}

#[test]
fn a_pause_that_is_forgotten_ends_by_itself() {
    let (mut world, _) = World::one_disk(2, 64);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let deadline = world.now + Duration::from_secs(5);
    let pause = world.shards[0].pause(&nqn(NQN), 1, deadline);
    world.run();
    world.submit(io, write(1), &[1; 512], 0);
    world.pass(Duration::from_secs(4));
    assert!(world.is_waiting(io));
    world.pass(Duration::from_secs(2));
    world.wait(io).ok();
    assert_eq!(world.shards[0].pause_status(pause), PauseStatus::Over);
}

#[test]
fn two_pauses_both_have_to_end() {
    let (mut world, _) = World::one_disk(2, 64);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let deadline = world.now + Duration::from_secs(50);
    let one = world.shards[0].pause(&nqn(NQN), 1, deadline);
    let two = world.shards[1].pause(&nqn(NQN), 1, deadline);
    world.run();
    world.submit(io, write(1), &[1; 512], 0);
    world.shards[0].resume(one);
    assert!(world.is_waiting(io));
    assert_eq!(world.shards[1].pause_status(two), PauseStatus::Paused);
    world.shards[1].resume(two);
    world.wait(io).ok();
}

#[test]
fn a_queue_that_dies_takes_its_held_commands_along() {
    let (mut world, device) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let deadline = world.now + Duration::from_secs(50);
    let pause = world.shards[0].pause(&nqn(NQN), 1, deadline);
    world.run();
    for lba in 0..3 {
        world.submit(io, write(lba), &[1; 512], 0);
    }
    world.run();
    world.close(io);
    world.close(admin);
    world.assert_clean();
    world.shards[0].resume(pause);
    world.run();
    assert_eq!(device.done(), []);
}
