//! The one thing that must never happen: a write of a host's past lands after a write of its present.
//!
//! Hosts come, write, vanish in the middle and come back, by any shard, while the mail between shards is late
//! and devices keep operations. Writes carry the number of the association that sent them as their block
//! address; the device notes the order in which it carried them out, which must not go back.

use std::sync::Arc;
use std::time::Duration;

use block::Kind;
use nvme::io::{Command, Transfer};
use proptest::prelude::*;

use crate::device::TestDevice;
use crate::harness::{Attempt, ENABLED, Wire, World};

#[derive(Debug, Clone)]
enum Step {
    /// A write on one of the present queues.
    Write(usize),
    /// A queue of the present breaks.
    Break(usize),
    /// Everything of the host breaks, in an order of its own, and it connects anew by this shard.
    Return {
        shard: usize,
        order: usize,
    },
    Mail {
        from: usize,
        to: usize,
    },
    Turn(usize),
    Pass(u64),
    /// All shards but this one turn, and get their mail, for a while.
    Settle(usize),
    Stick(usize, bool),
    Cancels(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<usize>().prop_map(Step::Write),
        1 => any::<usize>().prop_map(Step::Break),
        2 => (0_usize..3, any::<usize>()).prop_map(|(shard, order)| Step::Return { shard, order }),
        8 => (0_usize..3, 0_usize..3).prop_map(|(from, to)| Step::Mail { from, to }),
        6 => (0_usize..3).prop_map(Step::Turn),
        2 => (0_u64..8000).prop_map(Step::Pass),
        6 => (0_usize..6).prop_map(Step::Settle),
        4 => (0_usize..3, any::<bool>()).prop_map(|(shard, stuck)| Step::Stick(shard, stuck)),
        1 => any::<bool>().prop_map(Step::Cancels),
    ]
}

/// The host: its admin queue, how far that has come, its I/O queues.
#[derive(Debug)]
struct Host {
    number: u64,
    admin: Wire,
    /// A Connect or Property Set is on its way.
    state: State,
    io: Vec<Wire>,
    /// I/O queues whose Connect is on its way.
    joining: Vec<Wire>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Connecting,
    Enabling(u16),
    Ready,
}

impl Host {
    fn come(world: &mut World, number: u64, shard: usize) -> Self {
        let admin = world.open(shard);
        world.begin_connect(admin, &Attempt::admin());
        Self { number, admin, state: State::Connecting, io: Vec::new(), joining: Vec::new() }
    }

    /// Goes on with whatever has been answered.
    fn go_on(&mut self, world: &mut World) {
        let Some(admin) = world.wires.get_mut(&self.admin) else { return };
        if admin.disconnected.is_some() {
            return;
        }
        while let Some(finished) = world.wires.get_mut(&self.admin).unwrap().finished.pop_front() {
            match self.state {
                State::Connecting if finished.status().is_success() => {
                    let cntlid = u16::try_from(finished.cqe.dw0()).unwrap();
                    let set = nvme::fabrics::PropertySet {
                        size: nvme::fabrics::PropertySize::Four,
                        offset: 0x14,
                        value: ENABLED.bits().into(),
                    };
                    world.submit(self.admin, set.to_sqe(), &[], 0);
                    self.state = State::Enabling(cntlid);
                }
                State::Connecting => {
                    // Told to try again.
                    world.begin_connect(self.admin, &Attempt::admin());
                }
                State::Enabling(cntlid) => {
                    for qid in 1..=3 {
                        let io = world.open(usize::from(qid - 1));
                        world.begin_connect(io, &Attempt::io(cntlid, qid));
                        self.joining.push(io);
                    }
                    self.state = State::Ready;
                }
                State::Ready => {}
            }
        }
        for io in std::mem::take(&mut self.joining) {
            match world.wires.get_mut(&io).unwrap().finished.pop_front() {
                Some(finished) if finished.status().is_success() => self.io.push(io),
                Some(_) => close(world, io),
                None => self.joining.push(io),
            }
        }
    }
}

/// The connection breaks; nothing is turned.
fn close(world: &mut World, wire: Wire) {
    world.wires.remove(&wire);
    world.shards[wire.shard].close_queue(wire.queue);
}

fn serve_disconnects(world: &mut World, host: &mut Host) {
    let ended: Vec<Wire> = world
        .wires
        .iter()
        .filter(|(_, connection)| connection.disconnected.is_some())
        .map(|(wire, _)| *wire)
        .collect();
    for wire in ended {
        close(world, wire);
        host.io.retain(|io| *io != wire);
        host.joining.retain(|io| *io != wire);
    }
}

fn check(device: &Arc<TestDevice>, newest: &mut u64) {
    for (kind, lba, _, _) in device.done() {
        if kind == Kind::Write {
            assert!(lba >= *newest, "a write of association {lba} landed after one of {newest}");
            *newest = lba;
        }
    }
}

proptest! {
    #[test]
    fn no_write_of_the_past_lands_after_one_of_the_present(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let (mut world, device) = World::one_disk(3, 4096);
        world.hold_mail = true;
        let mut newest = 0;
        let mut host = Host::come(&mut world, 1, 0);
        device.cancels(false);
        let first = [Step::Settle(3)];
        let last = [0, 1, 2].map(|shard| Step::Stick(shard, false)).into_iter().chain([Step::Settle(3)]);
        for step in first.into_iter().chain(steps).chain(last) {
            match step {
                Step::Write(number) if !host.io.is_empty() => {
                    let io = host.io[number % host.io.len()];
                    let write = Command::Write(Transfer::new(host.number, 1)).to_sqe(1);
                    let connection = world.wires.get_mut(&io).unwrap();
                    connection.finished.clear();
                    let cid = u16::try_from(number % 60_000).unwrap();
                    let _ = world.submit_as(io, cid, write, &[1; 512], 0);
                }
                Step::Break(number) if !host.io.is_empty() => {
                    let io = host.io.swap_remove(number % host.io.len());
                    close(&mut world, io);
                }
                Step::Return { shard, order } => {
                    let mut wires: Vec<Wire> = world.wires.keys().copied().collect();
                    let count = wires.len().max(1);
                    wires.rotate_left(order % count);
                    if order % 2 == 0 {
                        wires.reverse();
                    }
                    for wire in wires {
                        close(&mut world, wire);
                    }
                    host = Host::come(&mut world, host.number + 1, shard);
                }
                Step::Mail { from, to } => {
                    world.deliver_one(from, to);
                }
                Step::Turn(shard) => {
                    world.turn_one(shard);
                    serve_disconnects(&mut world, &mut host);
                    host.go_on(&mut world);
                }
                Step::Pass(milliseconds) => {
                    world.now = world.now + Duration::from_millis(milliseconds);
                    for shard in 0..3 {
                        world.turn_one(shard);
                    }
                }
                Step::Settle(frozen) => {
                    for _ in 0..12 {
                        for shard in (0..3).filter(|shard| *shard != frozen) {
                            for from in 0..3 {
                                while world.deliver_one(from, shard) {}
                            }
                            world.turn_one(shard);
                            serve_disconnects(&mut world, &mut host);
                            host.go_on(&mut world);
                        }
                    }
                }
                Step::Stick(shard, stuck) => device.stick_queue(shard, stuck),
                Step::Cancels(cancels) => device.cancels(cancels),
                Step::Write(_) | Step::Break(_) => {}
            }
            check(&device, &mut newest);
        }
    }
}
