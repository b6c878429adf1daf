//! What the SMART log says.

use std::time::Duration;

use nvme::admin::GetLogPage;
use nvme::io::{Command, Transfer};
use nvme::log::{Health, LogPage};
use target::ShardLimits;
use zerocopy::FromBytes;

use crate::device::TestDevice;
use crate::harness::{Attempt, Wire, World, configuration};

const MINUTE: Duration = Duration::from_mins(1);

fn health(world: &mut World, admin: Wire) -> Health {
    let get = nvme::admin::Command::GetLogPage(GetLogPage::new(LogPage::Health, 0, 512));
    let page = world.execute(admin, get.to_sqe(0), &[], 512).ok().data;
    Health::read_from_bytes(&page).unwrap()
}

fn busy_minutes(world: &mut World, admin: Wire) -> u128 {
    health(world, admin).controller_busy_time.get()
}

#[test]
fn busy_time_is_when_io_commands_are_outstanding() {
    let disk = TestDevice::new("disk0", 64);
    let limits = ShardLimits { command_deadline: 60 * MINUTE, ..ShardLimits::default() };
    let mut world = World::with(2, 8 << 20, &limits);
    world.configure(&configuration(&[(1, &disk)]), &[&disk]);
    let (admin, cntlid) = world.controller(0);
    let (idle, _) = world.controller_of(0, &Attempt::admin());
    let queues = [world.io_queue(0, cntlid, 1), world.io_queue(1, cntlid, 2)];
    let read = Command::Read(Transfer::new(0, 1)).to_sqe(1);
    world.pass(3 * MINUTE);
    assert_eq!(busy_minutes(&mut world, admin), 0);
    // First one of its queues, then both: minutes are not counted twice.
    disk.stick(true);
    for (queue, minutes) in queues.into_iter().zip([3, 8]) {
        world.submit(queue, read, &[], 512);
        world.pass((minutes - 1) * MINUTE);
        world.submit(queue, read, &[], 512);
        world.pass(MINUTE);
    }
    assert_eq!(busy_minutes(&mut world, admin), 11);
    disk.stick(false);
    for queue in queues {
        world.wait(queue).ok();
        world.wait(queue).ok();
    }
    // Commands that are over between two looks.
    for _ in 0..180 {
        world.execute(queues[1], read, &[], 512).ok();
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(busy_minutes(&mut world, admin), 11);
    assert_eq!(busy_minutes(&mut world, idle), 0);
    assert_eq!(health(&mut world, admin).power_cycles.get(), 1);
}

#[test]
fn a_controller_whose_queue_is_gone_is_idle() {
    let disk = TestDevice::new("disk0", 64);
    let mut world = World::new(2);
    world.configure(&configuration(&[(1, &disk)]), &[&disk]);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    // The host's data never comes.
    world.wires.get_mut(&io).unwrap().lazy = true;
    let write = Command::Write(Transfer::new(0, 16)).to_sqe(1);
    world.submit(io, write, &[7; 8192], 0);
    world.pass(2 * MINUTE);
    world.close(io);
    world.pass(2 * MINUTE);
    assert_eq!(busy_minutes(&mut world, admin), 2);
}
