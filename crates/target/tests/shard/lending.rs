//! Reads for which a RAM device lends its own memory.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use block::BlockDevice;
use block::ram::{RamDevice, RamOptions};
use memory::DeviceId;
use nvme::io::{Command, Transfer};
use nvme::{Sqe, Status};
use target::configuration::NamespaceOptions;
use target::rate_limit::Limit;
use target::shard::PauseStatus;
use target::{Borrows, Lease, ShardLimits};

use crate::device::TestDevice;
use crate::harness::{Attempt, NQN, Wire, World, configuration, nqn};

const OTHER: &str = "nqn.2026-11.io.example:other";
const MEBI: u32 = 1 << 20;

fn read(lba: u64, blocks: u32) -> Sqe {
    Command::Read(Transfer::new(lba, blocks)).to_sqe(1)
}

fn write(lba: u64) -> Sqe {
    Command::Write(Transfer::new(lba, 1)).to_sqe(1)
}

/// A RAM device as namespace 1 and another one as namespace 2, over a pool of two MiB for each shard.
fn world(shards: u16) -> (World, Arc<RamDevice>, Arc<TestDevice>) {
    let name = "ram".to_owned();
    let options = RamOptions { name, size: 2 << 20, block_size: 512, read_only: false };
    let (ram, other) = (Arc::new(RamDevice::new(&options).unwrap()), TestDevice::new("disk", 8192));
    let mut world = World::with(shards, 2 << 20, &ShardLimits::default());
    let mut change = configuration(&[(2, &other)]).change();
    let device: Arc<RamDevice> = Arc::clone(&ram);
    change.add_namespace(&nqn(NQN), NamespaceOptions::new(1, device)).unwrap();
    let configuration = change.build().unwrap();
    for shard in &mut world.shards {
        let errors = shard.configure(Arc::clone(&configuration), &mut |device| {
            Ok(if device.name() == "ram" { ram.queue() } else { other.queue() })
        });
        assert!(errors.is_empty());
    }
    world.run();
    (world, ram, other)
}

/// The shards do not come to rest while a write waits: so many turns.
fn turns(world: &mut World) {
    for _ in 0..20 {
        world.turn();
    }
}

fn answers(world: &World, wire: Wire) -> usize {
    world.wires[&wire].finished.len()
}

fn take_none(world: &mut World, wire: Wire, takes_none: bool) {
    let connection = world.wires.get_mut(&wire).unwrap();
    connection.takes_none = takes_none;
    if !takes_none {
        for request in std::mem::take(&mut connection.unsent) {
            world.shards[wire.shard].response_sent(request);
        }
    }
}

#[test]
fn it_takes_nothing_of_the_pool_and_does_not_wait_for_it() {
    let (mut world, _ram, other) = world(1);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    world.execute(io, write(2047), &[7; 512], 0).ok();
    // Hosts that do not take what they read, two MiB in all.
    let (_, other_host) = world.controller_of(0, &Attempt::admin().host(OTHER, 9));
    let mut wires = vec![io];
    for qid in 2..=3 {
        wires.push(world.io_queue(0, cntlid, qid));
    }
    let wire = world.open(0);
    world.connect(wire, &Attempt::io(other_host, 1).host(OTHER, 9)).ok();
    wires.push(wire);
    for wire in &wires {
        take_none(&mut world, *wire, true);
        for _ in 0..4 {
            world.submit(*wire, read(2047 - 255, 256), &[], MEBI / 8);
        }
    }
    world.run();
    for wire in &wires {
        assert_eq!(answers(&world, *wire), 4);
        for finished in std::mem::take(&mut world.wires.get_mut(wire).unwrap().finished) {
            assert_eq!(finished.ok().data[255 * 512..], [7; 512]);
        }
    }
    let counters = *world.shards[0].counters();
    assert_eq!((counters.lent, counters.not_lent), (16, 0));
    assert_eq!((counters.buffer_waits, counters.pool_empty), (0, 0));
    // A queue keeps as much as it could keep of the pool, and no more.
    world.submit(io, read(0, 256), &[], MEBI / 8);
    world.run();
    assert_eq!((answers(&world, io), world.shards[0].counters().buffer_waits), (0, 1));
    for wire in &wires {
        take_none(&mut world, *wire, false);
    }
    world.wait(io).ok();
    // Another device has all of the pool that it can get, and the queue waits for more.
    other.stick(true);
    for _ in 0..4 {
        world.submit(io, Command::Read(Transfer::new(0, 2048)).to_sqe(2), &[], MEBI);
    }
    world.run();
    assert!(world.shards[0].counters().buffer_waits > 1);
    let finished = world.execute(io, read(2047, 1), &[], 512);
    assert_eq!(finished.ok().data, [7; 512]);
    other.stick(false);
    for _ in 0..4 {
        world.wait(io).ok();
    }
}

#[test]
fn a_write_waits_for_what_is_not_sent_and_what_is_read_meanwhile_is_copied() {
    for shards in 1..=2 {
        let (mut world, _ram, _) = world(shards);
        let (_, cntlid) = world.controller(0);
        let reader = world.io_queue(0, cntlid, 1);
        let writer = world.io_queue(usize::from(shards) - 1, cntlid, 2);
        world.execute(writer, write(3), &[1; 512], 0).ok();
        take_none(&mut world, reader, true);
        world.submit(reader, read(0, 8), &[], 4096);
        world.run();
        world.submit(writer, write(3), &[2; 512], 0);
        turns(&mut world);
        assert_eq!(answers(&world, writer), 0);
        assert!(world.shards[writer.shard].has_work(), "it looks again in every turn");
        // Others go on; what they read comes before the write.
        world.submit(writer, read(3, 1), &[], 512);
        world.submit(writer, write(8), &[3; 512], 0);
        turns(&mut world);
        assert_eq!(answers(&world, writer), 2);
        let copied = world.wires.get_mut(&writer).unwrap().finished.drain(..).next_back().unwrap();
        assert!(copied.status().is_success());
        assert_eq!(world.shards[writer.shard].counters().not_lent, 1);
        // The transport's own segments say the same to the end.
        let request = world.wires[&reader].unsent[0];
        let part = world.shards[0].segment(request, 3 * 512, 512).unwrap();
        assert_eq!(part.view(|bytes| bytes == [1; 512]), Some(true));
        take_none(&mut world, reader, false);
        turns(&mut world);
        assert_eq!(answers(&world, writer), 0, "one of them is left");
        assert_eq!(part.view(|bytes| bytes == [1; 512]), Some(true));
        drop(part);
        world.wait(writer).ok();
        world.wait(reader).ok();
        assert_eq!(world.execute(reader, read(3, 1), &[], 512).ok().data, [2; 512]);
    }
}

#[test]
fn what_a_host_does_not_take_is_given_back_when_a_write_waits() {
    let (mut world, _ram, _) = world(2);
    let (_, cntlid) = world.controller(0);
    let (reader, writer) = (world.io_queue(0, cntlid, 1), world.io_queue(1, cntlid, 2));
    world.execute(writer, write(3), &[1; 512], 0).ok();
    take_none(&mut world, reader, true);
    world.submit(reader, read(0, 8), &[], 4096);
    world.run();
    let request = world.wires[&reader].unsent[0];
    assert_eq!(world.shards[0].give_back(request), Lease::Kept, "nobody wants it");
    world.submit(writer, write(3), &[2; 512], 0);
    turns(&mut world);
    assert_eq!(answers(&world, writer), 0);
    assert_eq!(world.shards[0].give_back(request), Lease::GivenBack);
    assert_eq!(world.shards[0].give_back(request), Lease::None, "it is done");
    world.wait(writer).ok();
    let copy = world.shards[0].segment(request, 3 * 512, 512).unwrap();
    assert!(!copy.is_lease());
    assert_eq!(copy.view(|bytes| bytes == [1; 512]), Some(true), "as it was read");
    drop(copy);
    take_none(&mut world, reader, false);
    assert_eq!(world.shards[0].counters().given_back, 1);
}

#[test]
fn a_queue_that_goes_lets_go() {
    let (mut world, _ram, _) = world(2);
    let (admin, cntlid) = world.controller(0);
    let (reader, writer) = (world.io_queue(0, cntlid, 1), world.io_queue(1, cntlid, 2));
    take_none(&mut world, reader, true);
    for lba in 0..4 {
        world.submit(reader, read(lba, 8), &[], 4096);
    }
    world.run();
    world.submit(writer, write(3), &[2; 512], 0);
    turns(&mut world);
    assert_eq!(answers(&world, writer), 0);
    world.close(reader);
    world.wait(writer).ok();
    // And the other way round: a write that waits goes with its queue.
    let reader = world.io_queue(0, cntlid, 1);
    take_none(&mut world, reader, true);
    world.submit(reader, read(0, 8), &[], 4096);
    world.run();
    world.submit(writer, write(3), &[5; 512], 0);
    turns(&mut world);
    world.close(writer);
    take_none(&mut world, reader, false);
    assert_eq!(world.wait(reader).ok().data[3 * 512..4 * 512], [2; 512]);
    assert_eq!(world.execute(reader, read(3, 1), &[], 512).ok().data, [2; 512], "it was given up");
    world.close(reader);
    world.close(admin);
    world.assert_clean();
}

#[test]
fn limits_and_pauses_hold_and_shares_of_memory_do_not_matter() {
    let (mut world, _ram, _) = world(1);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    let configuration = Arc::clone(world.shards[0].configuration());
    let subsystem = configuration.subsystem(&nqn(NQN)).unwrap();
    let limits = Arc::clone(subsystem.namespaces()[0].rate_limits());
    let mut rates = [0; Limit::ALL.len()];
    rates[Limit::ReadIos.index()] = 1000;
    limits.set(&rates, 1);
    for _ in 0..100 {
        world.submit(io, read(0, 8), &[], 4096);
    }
    world.run();
    let at_once = answers(&world, io);
    assert!(at_once < 80, "{at_once}");
    for _ in 0..10 {
        world.advance(Duration::from_millis(1));
    }
    let then = answers(&world, io);
    assert!((at_once + 5..=at_once + 15).contains(&then), "{at_once} {then}");
    world.pass(Duration::from_secs(1));
    assert_eq!(answers(&world, io), 100);
    assert_eq!(world.shards[0].counters().lent, 100);
    limits.set(&[0; Limit::ALL.len()], 1);
    world.wires.get_mut(&io).unwrap().finished.clear();

    let deadline = world.now + Duration::from_mins(1);
    let pause = world.shards[0].pause(&nqn(NQN), 1, deadline);
    world.run();
    assert_eq!(world.shards[0].pause_status(pause), PauseStatus::Paused);
    world.submit(io, read(0, 8), &[], 4096);
    assert!(world.is_waiting(io));
    world.shards[0].resume(pause);
    world.wait(io).ok();
    world.submit(io, read(4096, 1), &[], 512);
    world.wait(io).failed(Status::LBA_OUT_OF_RANGE.with_dnr());
}

#[test]
fn a_transport_is_lent_only_what_it_can_send() {
    let (mut world, ram, _) = world(1);
    let (_, cntlid) = world.controller(0);
    let device = DeviceId::new().unwrap();
    world.borrows = Borrows::Nothing;
    let none = world.io_queue(0, cntlid, 1);
    world.borrows = Borrows::Registered(device);
    let registered = world.io_queue(0, cntlid, 2);
    let lent_for = |world: &mut World, wire| {
        let before = world.shards[0].counters().lent;
        world.execute(wire, read(0, 8), &[], 4096).ok();
        world.shards[0].counters().lent - before
    };
    let medium = ram.medium().unwrap();
    let register = |by| {
        let made =
            medium.register(by, |_, _| Ok::<_, ()>((1, Box::new(()) as Box<dyn Any + Send>)));
        assert_eq!(made, Ok(true));
    };
    register(DeviceId::new().unwrap());
    assert_eq!((lent_for(&mut world, none), lent_for(&mut world, registered)), (0, 0));
    register(device);
    assert_eq!((lent_for(&mut world, none), lent_for(&mut world, registered)), (0, 1));
    medium.unregister(device);
    assert_eq!(lent_for(&mut world, registered), 0);
}
