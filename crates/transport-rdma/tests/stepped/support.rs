//! Commands of good hosts, one at a time.

use std::rc::Rc;

use memory::Segment;
use nvme::io::{Command, Transfer};
use nvme::{Cqe, Sqe};
use testkit::peer::BLOCK;
use testkit::rdma::{Machine, Options, Queue, World, host_address, keyed};
use verbs::software::DeviceOptions;

/// Bytes of a host's memory.
pub(crate) const MEMORY: usize = 16 << 20;

/// A world whose one device is like this.
pub(crate) fn with_device(change: impl FnOnce(&mut DeviceOptions)) -> World {
    let mut options = Options::default();
    change(&mut options.devices[0]);
    World::new(&options)
}

pub(crate) fn machine(world: &World) -> Rc<Machine> {
    Machine::new(&world.fabric, host_address(), MEMORY)
}

pub(crate) fn read(cid: u16, offset: u64, bytes: u32) -> Sqe {
    let transfer = Transfer::new(offset / u64::from(BLOCK), bytes / BLOCK);
    Command::Read(transfer).to_sqe(1).with_cid(cid)
}

pub(crate) fn write(cid: u16, offset: u64, bytes: u32) -> Sqe {
    let transfer = Transfer::new(offset / u64::from(BLOCK), bytes / BLOCK);
    Command::Write(transfer).to_sqe(1).with_cid(cid)
}

pub(crate) fn filled(machine: &Machine, offset: usize, bytes: &[u8]) -> Segment {
    let segment = machine.segment(offset, bytes.len());
    assert_eq!(segment.copy_from(0, bytes), bytes.len());
    segment
}

pub(crate) fn bytes_of(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0; segment.len()];
    segment.copy_to(0, &mut bytes);
    bytes
}

pub(crate) fn zeroed(machine: &Machine, bytes: usize) -> Segment {
    filled(machine, 0, &vec![0; bytes])
}

/// The capsule of a read or write with this memory.
pub(crate) fn simple(queue: &Queue, sqe: Sqe, segment: &Segment) -> Vec<u8> {
    keyed(sqe, &queue.machine().memory, segment, false)
}

/// Writes and reads back a few bytes: the queue is served.
pub(crate) fn is_served(world: &mut World, queue: &mut Queue, seed: u64) {
    let machine = Rc::clone(queue.machine());
    let data = testkit::peer::pattern(seed, 4096);
    let out = filled(&machine, 0, &data);
    let capsule = simple(queue, write(1, 8 << 20, 4096), &out);
    let answer = world.execute(queue, &capsule).expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
    let back = zeroed(&machine, 4096);
    let capsule = simple(queue, read(2, 8 << 20, 4096), &back);
    let answer = world.execute(queue, &capsule).expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
    assert!(bytes_of(&back) == data);
}

/// All answers that have come.
pub(crate) fn answers(queue: &mut Queue) -> Vec<Cqe> {
    while queue.turn() {}
    let read = |bytes: &[u8]| zerocopy::FromBytes::read_from_bytes(bytes).unwrap();
    queue.arrived.drain(..).map(|message| read(&message.bytes)).collect()
}
