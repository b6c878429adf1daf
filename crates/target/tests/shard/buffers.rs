//! Who gets memory and slots when there is not enough.

use std::collections::HashSet;
use std::sync::Arc;

use nvme::admin::{Command as Admin, Identify};
use nvme::identify::Cns;
use nvme::io::{Command, Transfer};
use target::{CommandRefused, ShardLimits};

use crate::device::TestDevice;
use crate::harness::{Attempt, Wire, World, configuration};

const MEBI: u32 = 1 << 20;

fn read(blocks: u32) -> nvme::Sqe {
    Command::Read(Transfer::new(0, blocks)).to_sqe(1)
}

fn queues(world: &mut World, host: u8, count: u16) -> Vec<Wire> {
    let name = format!("nqn.2026-11.io.example:host{host}");
    let (_, cntlid) = world.controller_of(0, &Attempt::admin().host(&name, host));
    let mut wires = Vec::new();
    for qid in 1..=count {
        let wire = world.open(0);
        world.connect(wire, &Attempt::io(cntlid, qid).host(&name, host)).ok();
        wires.push(wire);
    }
    wires
}

#[test]
fn a_greedy_host_leaves_room_for_others() {
    let (mut world, device) = World::one_disk(1, 8192);
    let greedy = queues(&mut world, 1, 8);
    let modest = queues(&mut world, 2, 1)[0];
    device.stick(true);
    for wire in &greedy {
        for _ in 0..8 {
            world.submit(*wire, read(2048), &[], MEBI);
        }
    }
    world.run();
    assert!(world.shards[0].counters().buffer_waits > 0);
    world.submit(modest, read(8), &[], 4096);
    world.run();
    assert_eq!(world.shards[0].counters().pool_empty, 0);
    let before = world.shards[0].counters().operations;
    device.stick(false);
    world.wait(modest).ok();
    for wire in &greedy {
        for _ in 0..8 {
            world.wait(*wire).ok();
        }
    }
    assert_eq!(before, 5, "four of the greedy host, and the one of the modest");
}

#[test]
fn everyone_is_served_in_turn_when_the_pool_is_small() {
    let device = TestDevice::new("disk0", 8192);
    let mut world = World::with(1, 2 << 20, &ShardLimits::default());
    world.configure(&configuration(&[(1, &device)]), &[&device]);
    let wires: Vec<Wire> = (1..=6).flat_map(|host| queues(&mut world, host, 2)).collect();
    for _ in 0..4 {
        for wire in &wires {
            world.submit(*wire, read(2048), &[], MEBI);
            world.submit(*wire, read(1), &[], 512);
        }
    }
    world.run();
    for wire in &wires {
        for _ in 0..8 {
            world.wait(*wire).ok();
        }
    }
    assert!(world.shards[0].counters().device_crowded > 0);
}

#[test]
fn admin_commands_pass_while_io_has_everything() {
    let (mut world, device) = World::one_disk(1, 8192);
    let mut admins = Vec::new();
    device.stick(true);
    for host in 1..=4 {
        let name = format!("nqn.2026-11.io.example:host{host}");
        let (admin, cntlid) = world.controller_of(0, &Attempt::admin().host(&name, host));
        admins.push(admin);
        for qid in 1..=2 {
            let wire = world.open(0);
            world.connect(wire, &Attempt::io(cntlid, qid).host(&name, host)).ok();
            let mut refused = false;
            for cid in 0..100 {
                refused |=
                    world.submit_as(wire, cid, read(64), &[], 32768) == Err(CommandRefused::Busy);
            }
            assert!(refused || host < 3);
        }
    }
    for admin in admins {
        let identify = Admin::Identify(Identify::new(Cns::Controller)).to_sqe(0);
        world.execute(admin, identify, &[], 4096).ok();
        world.execute(admin, Admin::KeepAlive.to_sqe(0), &[], 0).ok();
    }
    device.stick(false);
    world.run();
    let resumed: HashSet<Wire> =
        world.wires.iter().filter(|(_, wire)| wire.resumes > 0).map(|(wire, _)| *wire).collect();
    assert!(!resumed.is_empty());
}

#[test]
fn a_hosts_own_admin_commands_pass_while_its_io_hangs() {
    let (mut world, device) = World::one_disk(1, 8192);
    let (admin, cntlid) = world.controller(0);
    device.stick(true);
    for qid in 1..=8 {
        let wire = world.open(0);
        world.connect(wire, &Attempt::io(cntlid, qid)).ok();
        for _ in 0..8 {
            world.submit(wire, read(2048), &[], MEBI);
        }
    }
    world.run();
    assert!(world.shards[0].counters().buffer_waits > 0);
    let identify = Admin::Identify(Identify::new(Cns::Controller)).to_sqe(0);
    world.execute(admin, identify, &[], 4096).ok();
    device.stick(false);
    world.run();
}

#[test]
fn a_stalled_queue_goes_on_when_there_is_room_however_many_stand_before_it() {
    let devices = [TestDevice::new("disk1", 64), TestDevice::new("disk2", 64)];
    let [stuck, other] = &devices;
    let limits = ShardLimits { requests: 8192, ..ShardLimits::default() };
    let mut world = World::with(1, 8 << 20, &limits);
    world.configure(&configuration(&[(1, stuck), (2, other)]), &[stuck, other]);
    stuck.stick(true);
    other.stick(true);
    let (mut waiting, mut wires) = (Vec::new(), Vec::new());
    for host in 1..=8 {
        let name = format!("nqn.2026-11.io.example:host{host}");
        let (_, cntlid) = world.controller_of(0, &Attempt::admin().host(&name, host));
        for qid in 1..=60 {
            let wire = world.open(0);
            let mut attempt = Attempt::io(cntlid, qid).host(&name, host);
            attempt.command.sqsize = 1;
            world.connect(wire, &attempt).ok();
            wires.push(wire);
        }
    }
    // Every queue is full: most by commands of the stuck device, some, far apart in the line, by those of the other.
    for (at, wire) in wires.into_iter().enumerate() {
        let nsid = if at % 120 == 60 { 2 } else { 1 };
        let read = Command::Read(Transfer::new(0, 1)).to_sqe(nsid);
        world.submit_as(wire, 0, read, &[], 512).unwrap();
        world.submit_as(wire, 1, read, &[], 512).unwrap();
        assert_eq!(world.submit_as(wire, 2, read, &[], 512), Err(CommandRefused::Busy));
        if nsid == 2 {
            waiting.push(wire);
        }
    }
    world.run();
    other.stick(false);
    // No time passes: nothing but what has become free tells the shard to look. And it comes to rest.
    world.run();
    for wire in waiting {
        assert_eq!(world.wires[&wire].resumes, 1);
    }
}

#[test]
fn more_commands_than_the_queue_has_entries_wait_outside() {
    let (mut world, device) = World::one_disk(1, 64);
    let (_, cntlid) = world.controller(0);
    let io = world.open(0);
    let mut attempt = Attempt::io(cntlid, 1);
    attempt.command.sqsize = 7;
    world.connect(io, &attempt).ok();
    device.stick(true);
    for cid in 0..8 {
        world.submit_as(io, cid, read(1), &[], 512).unwrap();
    }
    assert_eq!(world.submit_as(io, 8, read(1), &[], 512), Err(CommandRefused::Busy));
    world.run();
    assert_eq!(world.wires[&io].resumes, 0);
    device.stick(false);
    world.wait(io).ok();
    assert_eq!(world.wires[&io].resumes, 1);
    world.submit_as(io, 8, read(1), &[], 512).unwrap();
}

#[test]
fn connections_without_a_name_get_little() {
    let device = TestDevice::new("disk0", 64);
    // An eighth of the request slots is for them: 256.
    let limits = ShardLimits { requests: 2048, ..ShardLimits::default() };
    let mut world = World::with(1, 8 << 20, &limits);
    world.configure(&configuration(&[(1, &device)]), &[&device]);
    let mut wires = Vec::new();
    for _ in 0..300 {
        let wire = world.open(0);
        world.wires.get_mut(&wire).unwrap().lazy = true;
        wires.push(wire);
    }
    let attempt = Attempt::admin();
    for wire in wires.iter().take(200) {
        world.begin_connect(*wire, &attempt);
    }
    world.run();
    // None of them sends its data; a pool of 8 MiB holds 2,048 buffers of 4 KiB.
    assert_eq!(world.shards[0].requests_in_use(), 200);
    for wire in wires {
        world.close(wire);
    }
    world.assert_clean();
}

/// Two disks, the first of which hangs, and a pool of 32 MiB.
fn one_of_two_hangs(limits: &ShardLimits) -> (World, Arc<TestDevice>) {
    let (stuck, well) = (TestDevice::new("disk0", 8192), TestDevice::new("disk1", 8192));
    let mut world = World::with(1, 32 << 20, limits);
    world.configure(&configuration(&[(1, &stuck), (2, &well)]), &[&stuck, &well]);
    stuck.stick(true);
    (world, stuck)
}

fn on(nsid: u32, command: Command) -> nvme::Sqe {
    command.to_sqe(nsid)
}

/// Reads and writes of every size on the second disk, one at a time.
fn second_disk_serves(world: &mut World, wire: Wire) {
    for (blocks, bytes) in [(1, 512), (8, 4096), (256, 128 << 10), (2048, MEBI)] {
        let data = vec![7; bytes as usize];
        let write = on(2, Command::Write(Transfer::new(0, blocks)));
        world.execute(wire, write, &data, 0).ok();
        let read = on(2, Command::Read(Transfer::new(0, blocks)));
        assert_eq!(world.execute(wire, read, &[], bytes).ok().data, data);
    }
}

#[test]
fn a_queue_full_of_commands_for_a_stuck_disk_serves_the_other() {
    for (blocks, bytes) in [(2048, MEBI), (256, 128 << 10), (8, 4096)] {
        let (mut world, stuck) = one_of_two_hangs(&ShardLimits::default());
        let io = queues(&mut world, 1, 1)[0];
        for _ in 0..60 {
            world.submit(io, on(1, Command::Read(Transfer::new(0, blocks))), &[], bytes);
            let data = vec![0; bytes as usize];
            world.submit(io, on(1, Command::Write(Transfer::new(0, blocks))), &data, 0);
        }
        second_disk_serves(&mut world, io);
        assert!(world.wires[&io].finished.is_empty());
        stuck.stick(false);
        for _ in 0..120 {
            world.wait(io).ok();
        }
    }
}

#[test]
fn hosts_full_of_commands_for_a_stuck_disk_are_served_on_the_other() {
    let (mut world, stuck) = one_of_two_hangs(&ShardLimits::default());
    let wires: Vec<Wire> = (1..=12).flat_map(|host| queues(&mut world, host, 2)).collect();
    for wire in &wires {
        for _ in 0..4 {
            world.submit(*wire, on(1, Command::Read(Transfer::new(0, 2048))), &[], MEBI);
            world.submit(*wire, on(1, Command::Write(Transfer::new(0, 8))), &[1; 4096], 0);
        }
    }
    for wire in &wires {
        second_disk_serves(&mut world, *wire);
    }
    stuck.stick(false);
    for wire in &wires {
        for _ in 0..8 {
            world.wait(*wire).ok();
        }
    }
}

#[test]
fn a_stuck_disk_leaves_slots_to_queues_that_do_not_use_it() {
    let limits = ShardLimits { requests: 256, ..ShardLimits::default() };
    let (mut world, stuck) = one_of_two_hangs(&limits);
    let users: Vec<Wire> = (1..=4).flat_map(|host| queues(&mut world, host, 1)).collect();
    let other = queues(&mut world, 5, 1)[0];
    let read = on(1, Command::Read(Transfer::new(0, 1)));
    let mut refused = 0;
    for wire in &users {
        for cid in 0..100 {
            refused += u32::from(world.submit_as(*wire, cid, read, &[], 512).is_err());
        }
    }
    world.run();
    // Half of them are kept for whatever queue owes data. Of the rest the disk leaves as many as it holds, and
    // every host has a few.
    assert!((64..=96).contains(&world.shards[0].requests_in_use()));
    assert!(users.iter().all(|wire| world.wires[wire].resumes == 0));
    second_disk_serves(&mut world, other);
    stuck.stick(false);
    world.run();
    assert!(refused > 200);
    assert!(users.iter().any(|wire| world.wires[wire].resumes == 1));
}

#[test]
fn queues_that_always_have_more_take_turns() {
    let (mut world, device) = {
        let device = TestDevice::new("disk0", 8192);
        let mut world = World::with(1, 8 << 20, &ShardLimits::default());
        world.configure(&configuration(&[(1, &device)]), &[&device]);
        (world, device)
    };
    let wires: Vec<Wire> = (1..=12).flat_map(|host| queues(&mut world, host, 1)).collect();
    device.stick(true);
    for wire in &wires {
        for _ in 0..4 {
            world.submit(*wire, read(2048), &[], MEBI);
        }
    }
    world.run();
    // The device finishes one at a time, and whoever gets an answer asks for more.
    let mut served = vec![0; wires.len()];
    for _ in 0..120 {
        device.let_go_of(1);
        world.run();
        for (at, wire) in wires.iter().enumerate() {
            while world.wires.get_mut(wire).unwrap().finished.pop_front().is_some() {
                served[at] += 1;
                world.submit(*wire, read(2048), &[], MEBI);
            }
        }
    }
    assert_eq!(served.iter().sum::<i32>(), 120);
    assert!(served.iter().all(|count| (8..=12).contains(count)), "{served:?}");
    device.stick(false);
    world.run();
}
