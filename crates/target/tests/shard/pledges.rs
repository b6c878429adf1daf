//! What comes behind a command on its connection does not wait for it.

use nvme::Status;
use nvme::io::{Command, Transfer};
use target::{CommandRefused, ShardLimits};

use crate::device::TestDevice;
use crate::harness::{Attempt, Wire, World, configuration};

fn write(blocks: u32) -> nvme::Sqe {
    Command::Write(Transfer::new(0, blocks)).to_sqe(1)
}

/// A queue whose host does not send what it is asked for before its test says so.
fn lazy_queue(world: &mut World, host: u8, entries: u16) -> Wire {
    let name = format!("nqn.2026-11.io.example:host{host}");
    let (_, cntlid) = world.controller_of(0, &Attempt::admin().host(&name, host));
    let wire = world.open(0);
    let mut attempt = Attempt::io(cntlid, 1).host(&name, host);
    attempt.command.sqsize = entries - 1;
    world.connect(wire, &attempt).ok();
    world.wires.get_mut(&wire).unwrap().lazy = true;
    wire
}

/// The host sends everything that it has been asked for.
fn send(world: &mut World, wire: Wire) -> usize {
    let receives: Vec<_> = world.wires.get_mut(&wire).unwrap().receives.drain(..).collect();
    for (request, length) in &receives {
        world.receive(wire, *request, *length);
    }
    world.run();
    receives.len()
}

#[test]
fn data_in_a_capsule_gets_memory_while_its_queue_owes_as_much_as_it_may() {
    let (mut world, _) = World::one_disk(1, 8192);
    let io = lazy_queue(&mut world, 1, 32);
    // 8 MiB of memory, of which a queue has a quarter at most: these two hold it, the third waits.
    let large = vec![1; 1 << 20];
    for _ in 0..3 {
        world.submit(io, write(2048), &large, 0);
    }
    world.run();
    assert_eq!(world.wires[&io].receives.len(), 2);
    world.submit(io, write(8), &[2; 4096], 0);
    world.run();
    // It is asked for out of turn; behind it on the wire is what the first two were asked for.
    let asked: Vec<u32> = world.wires[&io].receives.iter().map(|(_, length)| *length).collect();
    assert_eq!(asked, [1 << 20, 1 << 20, 4096]);
    while send(&mut world, io) > 0 {}
    for _ in 0..4 {
        world.wait(io).ok();
    }
}

#[test]
fn a_queue_that_owes_data_has_slots_for_all_its_entries() {
    let device = TestDevice::new("disk0", 8192);
    let limits = ShardLimits { requests: 64, ..ShardLimits::default() };
    let mut world = World::with(1, 8 << 20, &limits);
    world.configure(&configuration(&[(1, &device)]), &[&device]);
    let queues: Vec<Wire> = (1..=6).map(|host| lazy_queue(&mut world, host, 24)).collect();
    let data = vec![1; 64 << 10];
    // Everybody sends as much as is taken, one after the other, as connections are read.
    let mut left = vec![24_u16; queues.len()];
    let mut stalled = vec![false; queues.len()];
    let mut done = 0;
    for _ in 0..10_000 {
        for (at, wire) in queues.iter().enumerate() {
            if left[at] > 0 {
                match world.submit_as(*wire, left[at], write(128), &data, 0) {
                    Ok(_) => {
                        left[at] -= 1;
                        stalled[at] = false;
                    }
                    Err(CommandRefused::Busy) => stalled[at] = true,
                    Err(refused) => panic!("{refused}"),
                }
            }
            world.run();
            // The data comes behind the commands: as long as one is refused, it is not read.
            if !stalled[at] && left[at] == 0 {
                send(&mut world, *wire);
            }
            while world.wires.get_mut(wire).unwrap().finished.pop_front().is_some() {
                done += 1;
            }
        }
        if done == 24 * queues.len() {
            return;
        }
    }
    panic!("only {done} commands finished: everybody waits for everybody, with {left:?} to come");
}

#[test]
fn a_shutdown_reads_on_where_data_is_owed() {
    let (mut world, _) = World::one_disk(1, 8192);
    let io = lazy_queue(&mut world, 1, 32);
    world.submit(io, write(2048), &vec![1; 1 << 20], 0);
    world.run();
    world.shards[0].begin_shutdown();
    world.run();
    let late = world.submit(io, write(8), &[2; 4096], 0);
    world.run();
    let refused = world.wires.get_mut(&io).unwrap().finished.pop_front().unwrap();
    assert_eq!(refused.cqe.cid.get(), late);
    refused.failed(Status::COMMAND_INTERRUPTED);
    send(&mut world, io);
    world.wait(io).ok();
    assert_eq!(world.submit_as(io, 77, write(8), &[2; 4096], 0), Err(CommandRefused::Busy));
}
