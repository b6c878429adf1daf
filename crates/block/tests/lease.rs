//! Memory that a RAM device lends: it does not change while somebody has it, no write is lost for it, and none is starved.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use block::ram::{RamDevice, RamOptions};
use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::lease::GRANULE;
use memory::{Arena, ArenaConfig, Buffer, DeviceId, Hugepages, Pool, SLAB_SIZE, Segment};
use proptest::prelude::*;
use reactor::{Reactor, ReactorConfig, RingChoice, Workers};

const BLOCK: usize = 512;
const BLOCKS: usize = 64;
const QUEUES: usize = 3;

fn ram(size: usize) -> RamDevice {
    let (name, size) = ("ram".to_owned(), size.try_into().unwrap());
    RamDevice::new(&RamOptions { name, size, block_size: 512, read_only: false }).unwrap()
}

fn pool() -> Pool {
    let config = ArenaConfig { capacity: 4 * SLAB_SIZE, hugepages: Hugepages::Never };
    Arena::new(config).pool(4 * SLAB_SIZE).unwrap()
}

/// A queue of the device, and the memory for its operations.
struct Client {
    queue: Box<dyn BlockQueue>,
    pool: Pool,
    next: u64,
}

impl Client {
    fn new(device: &RamDevice) -> Client {
        Client { queue: device.queue(), pool: pool(), next: 0 }
    }

    fn submit(&mut self, kind: Kind, lba: usize, blocks: usize, data: Data) -> Token {
        let token = Token(self.next);
        self.next += 1;
        let (lba, blocks) = (lba as u64, blocks as u64);
        self.queue.submit(Operation { token, kind, lba, blocks, data, fua: false });
        token
    }

    fn lend(&mut self, lba: usize, blocks: usize) -> Token {
        self.submit(Kind::Read, lba, blocks, Data::lent())
    }

    fn buffer(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.pool.take(bytes.len()).unwrap();
        buffer.bytes_mut().unwrap().copy_from_slice(bytes);
        buffer
    }

    fn write(&mut self, lba: usize, bytes: &[u8]) -> Token {
        let data = self.buffer(bytes).segment(0, bytes.len()).unwrap().into();
        self.submit(Kind::Write, lba, bytes.len() / BLOCK, data)
    }

    fn read(&mut self, lba: usize, blocks: usize) -> (Token, Buffer) {
        let buffer = self.buffer(&vec![0xEE; blocks * BLOCK]);
        let data = buffer.segment(0, blocks * BLOCK).unwrap().into();
        (self.submit(Kind::Read, lba, blocks, data), buffer)
    }

    fn poll(&mut self) -> Vec<Completion> {
        let mut seen = Vec::new();
        self.queue.poll(usize::MAX, &mut |completion| seen.push(completion));
        seen
    }

    /// The one completion that a poll brings.
    fn one(&mut self) -> Completion {
        let mut seen = self.poll();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Lend { queue: usize, lba: usize, blocks: usize },
    Read { queue: usize, lba: usize, blocks: usize },
    Write { queue: usize, lba: usize, blocks: usize, fill: u8 },
    Zero { queue: usize, lba: usize, blocks: usize, kind: Kind },
    Poll(usize),
    Cancel(usize),
    LetGo(usize),
    KeepPart(usize, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..QUEUES;
    let range = (0..BLOCKS, 1..24_usize).prop_map(|(lba, n)| (lba, n.min(BLOCKS - lba)));
    let zero = prop_oneof![
        Just(Kind::Deallocate),
        any::<bool>().prop_map(|deallocate| Kind::WriteZeroes { deallocate })
    ];
    prop_oneof![
        4 => (queue.clone(), range.clone())
            .prop_map(|(queue, (lba, blocks))| Step::Lend { queue, lba, blocks }),
        1 => (queue.clone(), range.clone())
            .prop_map(|(queue, (lba, blocks))| Step::Read { queue, lba, blocks }),
        3 => (queue.clone(), range.clone(), any::<u8>())
            .prop_map(|(queue, (lba, blocks), fill)| Step::Write { queue, lba, blocks, fill }),
        1 => (queue.clone(), range, zero)
            .prop_map(|(queue, (lba, blocks), kind)| Step::Zero { queue, lba, blocks, kind }),
        4 => queue.prop_map(Step::Poll),
        1 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::LetGo),
        1 => any::<(usize, usize, usize)>().prop_map(|(a, b, c)| Step::KeepPart(a, b, c)),
    ]
}

/// An operation that is out.
struct Out {
    lba: usize,
    blocks: usize,
    what: What,
    cancelled: bool,
}

enum What {
    Lend,
    Read(Buffer),
    Write(u8),
    Zero,
}

impl Out {
    fn changes(&self) -> bool {
        matches!(self.what, What::Write(_) | What::Zero)
    }
}

/// Memory that is held, where it lies, and what it said when it was lent.
struct Held {
    at: usize,
    segment: Segment,
    bytes: Vec<u8>,
}

fn share_granules(one: (usize, usize), other: (usize, usize)) -> bool {
    let granules = |(at, len): (usize, usize)| (at / GRANULE, (at + len).div_ceil(GRANULE));
    let (one, other) = (granules(one), granules(other));
    one.0 < other.1 && other.0 < one.1
}

struct Test {
    clients: Vec<Client>,
    out: HashMap<(usize, Token), Out>,
    held: Vec<Held>,
    /// What the device is to hold. The queues take turns on one thread, so the order of completions is that of the effects.
    model: Vec<u8>,
}

impl Test {
    fn new() -> Test {
        let device = ram(BLOCKS * BLOCK);
        Test {
            clients: (0..QUEUES).map(|_| Client::new(&device)).collect(),
            out: HashMap::new(),
            held: Vec::new(),
            model: vec![0; BLOCKS * BLOCK],
        }
    }

    fn add(&mut self, queue: usize, token: Token, lba: usize, blocks: usize, what: What) {
        self.out.insert((queue, token), Out { lba, blocks, what, cancelled: false });
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Lend { queue, lba, blocks } => {
                let token = self.clients[queue].lend(lba, blocks);
                self.add(queue, token, lba, blocks, What::Lend);
            }
            Step::Read { queue, lba, blocks } => {
                let (token, buffer) = self.clients[queue].read(lba, blocks);
                self.add(queue, token, lba, blocks, What::Read(buffer));
            }
            Step::Write { queue, lba, blocks, fill } => {
                let token = self.clients[queue].write(lba, &vec![fill; blocks * BLOCK]);
                self.add(queue, token, lba, blocks, What::Write(fill));
            }
            Step::Zero { queue, lba, blocks, kind } => {
                let token = self.clients[queue].submit(kind, lba, blocks, Data::none());
                self.add(queue, token, lba, blocks, What::Zero);
            }
            Step::Poll(queue) => self.poll(queue),
            Step::Cancel(which) => {
                let mut keys: Vec<_> = self.out.keys().copied().collect();
                keys.sort_unstable();
                if let Some(key) = keys.get(which % keys.len().max(1)) {
                    let out = self.out.get_mut(key).unwrap();
                    out.cancelled |= self.clients[key.0].queue.cancel(key.1);
                }
            }
            Step::LetGo(which) => {
                if !self.held.is_empty() {
                    self.held.swap_remove(which % self.held.len());
                }
            }
            Step::KeepPart(which, from, to) => {
                if !self.held.is_empty() {
                    let at = which % self.held.len();
                    let held = &mut self.held[at];
                    let from = from % held.bytes.len();
                    let len = to % (held.bytes.len() - from) + 1;
                    held.segment = held.segment.part(from, len).unwrap();
                    held.bytes = held.bytes[from..from + len].to_vec();
                    held.at += from;
                }
            }
        }
        for Held { segment, bytes, .. } in &self.held {
            assert_eq!(segment.view(|now| now == bytes), Some(true), "lent memory has changed");
        }
    }

    fn poll(&mut self, queue: usize) {
        for Completion { token, result, lent } in self.clients[queue].poll() {
            let out = self.out.remove(&(queue, token)).expect("completed twice");
            let (at, len) = (out.lba * BLOCK, out.blocks * BLOCK);
            let range = at..at + len;
            if out.cancelled {
                assert_eq!(result, Err(ErrorKind::Aborted));
                continue;
            }
            match out.what {
                What::Lend if result.is_ok() => {
                    let bytes = self.model[range].to_vec();
                    let segment = lent.expect("nothing is lent");
                    assert_eq!(segment.view(|now| now == bytes), Some(true));
                    self.held.push(Held { at, segment, bytes });
                    continue;
                }
                What::Lend => {
                    assert_eq!(result, Err(ErrorKind::NotLent));
                    let reason = |other: &Out| {
                        other.changes()
                            && share_granules((at, len), (other.lba * BLOCK, other.blocks * BLOCK))
                    };
                    assert!(self.out.values().any(reason), "not lent without a reason");
                }
                What::Read(mut buffer) => {
                    assert!(buffer.bytes_mut().unwrap() == &self.model[range]);
                }
                What::Write(fill) => self.model[range].fill(fill),
                What::Zero => self.model[range].fill(0),
            }
            assert!(result.is_ok() || result == Err(ErrorKind::NotLent), "{result:?}");
            assert_eq!(lent, None);
        }
        for ((of, _), out) in &self.out {
            let waits_for = |held: &Held| {
                share_granules((held.at, held.bytes.len()), (out.lba * BLOCK, out.blocks * BLOCK))
            };
            let may_wait = out.changes() && self.held.iter().any(waits_for);
            assert!(*of != queue || may_wait, "waits for nothing");
        }
        let client = &self.clients[queue].queue;
        assert_eq!(client.needs_poll(), client.outstanding() > 0);
    }

    fn finish(mut self) {
        // Whatever waits, waits for leases that are given here, or for those before.
        for _ in 0..2 {
            self.held.clear();
            (0..QUEUES).for_each(|queue| self.poll(queue));
        }
        self.held.clear();
        assert!(self.out.is_empty());
        let token = self.clients[0].lend(0, BLOCKS);
        self.add(0, token, 0, BLOCKS, What::Lend);
        self.poll(0);
        assert_eq!(self.held.len(), 1, "all of it can be lent again");
        for client in &self.clients {
            assert_eq!(client.pool.available(), client.pool.capacity());
        }
    }
}

proptest! {
    #[test]
    fn what_is_lent_holds_still_and_no_write_is_lost(
        steps in prop::collection::vec(step(), 1..300)
    ) {
        let mut test = Test::new();
        for step in &steps {
            test.step(step);
        }
        test.finish();
    }
}

/// A random number of a thread's own.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// Every block carries one number all through; each thread writes every second block, so that both write, and lend, in
/// the same granules all the time.
fn stir(device: &RamDevice, parity: usize, rounds: u64) {
    let mut client = Client::new(device);
    let mut chance = Chance(0x9E37_79B9 + parity as u64);
    let mut held: Vec<(Segment, Vec<u8>)> = Vec::new();
    let mut written = [0_u64; BLOCKS];
    let mut writing: HashMap<Token, (usize, u64)> = HashMap::new();
    let mut lending: HashMap<Token, (usize, usize)> = HashMap::new();
    let mut round = 0;
    while round < rounds || client.queue.outstanding() > 0 {
        round += 1;
        let lba = chance.below(BLOCKS);
        match chance.below(4) {
            _ if round >= rounds => held.clear(),
            0 | 1 if held.len() + lending.len() < 8 => {
                let blocks = 1 + chance.below(16.min(BLOCKS - lba));
                lending.insert(client.lend(lba, blocks), (lba, blocks));
            }
            2 if lba % 2 == parity && !writing.values().any(|(block, _)| *block == lba) => {
                writing.insert(
                    client.write(lba, &round.to_le_bytes().repeat(BLOCK / 8)),
                    (lba, round),
                );
            }
            _ => held.truncate(chance.below(8)),
        }
        for Completion { token, result, lent } in client.poll() {
            if let Some((lba, value)) = writing.remove(&token) {
                assert_eq!(result, Ok(()));
                written[lba] = value;
            }
            let (Some((lba, blocks)), Some(lent)) = (lending.remove(&token), lent) else {
                continue;
            };
            let bytes = lent.view(<[u8]>::to_vec).unwrap();
            assert_eq!(bytes.len(), blocks * BLOCK);
            for (at, block) in bytes.chunks(BLOCK).enumerate() {
                let first = &block[..8];
                assert!(block.chunks(8).all(|word| word == first), "a torn block");
                let out = writing.values().any(|(block, _)| *block == lba + at);
                if (lba + at) % 2 == parity && !out {
                    assert_eq!(first, written[lba + at].to_le_bytes(), "a write is lost");
                }
            }
            held.push((lent, bytes));
        }
        for (segment, bytes) in &held {
            assert_eq!(segment.view(|now| now == bytes), Some(true), "lent memory has changed");
        }
    }
}

#[test]
fn the_same_between_threads() {
    let device = Arc::new(ram(BLOCKS * BLOCK));
    std::thread::scope(|scope| {
        for parity in [0, 1] {
            let device = Arc::clone(&device);
            scope.spawn(move || stir(&device, parity, 20_000));
        }
    });
    let mut client = Client::new(&device);
    client.lend(0, BLOCKS);
    assert_eq!(client.one().result, Ok(()));
}

#[test]
fn a_stream_of_reads_does_not_starve_a_write() {
    let device = ram(BLOCKS * BLOCK);
    let (mut reader, mut writer) = (Client::new(&device), Client::new(&device));
    reader.lend(0, 8);
    let first = reader.one().lent.unwrap();
    writer.write(4, &[7; BLOCK]);
    assert!(writer.poll().is_empty() && writer.queue.needs_poll());
    // Every read overlaps the one before: without the claim there would always be a lease.
    for _ in 0..3 {
        reader.lend(0, 8);
        assert_eq!(reader.one().result, Err(ErrorKind::NotLent));
        let (_, mut buffer) = reader.read(0, 8);
        assert_eq!(reader.one().result, Ok(()));
        assert!(buffer.bytes_mut().unwrap().iter().all(|byte| *byte == 0));
        assert!(first.is_wanted() && writer.poll().is_empty());
    }
    // The wire lets go of the only one there is.
    drop(first);
    assert_eq!(writer.one().result, Ok(()));
    reader.lend(0, 8);
    let lent = reader.one().lent.expect("lent again");
    assert_eq!(lent.view(|bytes| bytes[4 * BLOCK..5 * BLOCK] == [7; BLOCK]), Some(true));
}

#[test]
fn a_write_goes_on_when_another_reactor_lets_go() {
    let device = Arc::new(ram(BLOCKS * BLOCK));
    let (lent, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = Client::new(&device);
            reader.lend(0, 8);
            let lease = reader.one().lent.unwrap();
            lent.store(true, Ordering::SeqCst);
            while !lease.is_wanted() {
                std::thread::yield_now();
            }
            assert!(!done.load(Ordering::SeqCst));
            assert_eq!(lease.view(|bytes| bytes == [0; 8 * BLOCK]), Some(true));
        });
        while !lent.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let mut writer = Client::new(&device);
        writer.write(0, &[1; BLOCK]);
        let give_up = Instant::now() + Duration::from_secs(20);
        while writer.poll().is_empty() {
            assert!(Instant::now() < give_up && writer.queue.needs_poll());
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_write_that_waits_can_be_given_up_and_leaves_nothing() {
    let device = ram(4 << 20);
    let mut client = Client::new(&device);
    client.lend(16, 8);
    let lease = client.one().lent.unwrap();
    let write = client.write(16, &[1; BLOCK]);
    // The whole device, in slices: the first meets the lease.
    let zero = client.submit(Kind::Deallocate, 0, (4 << 20) / BLOCK, Data::none());
    assert!(client.poll().is_empty());
    assert!(client.queue.cancel(write) && client.queue.cancel(zero));
    let ended: Vec<_> = client.poll().into_iter().map(|end| (end.token, end.result)).collect();
    assert_eq!(ended, [(write, Err(ErrorKind::Aborted)), (zero, Err(ErrorKind::Aborted))]);
    assert!(!lease.is_wanted());
    assert_eq!(lease.view(|bytes| bytes == [0; 8 * BLOCK]), Some(true));
    // A queue that goes takes what waits in it along.
    client.write(16, &[1; BLOCK]);
    assert!(client.poll().is_empty() && lease.is_wanted());
    drop(client);
    assert!(!lease.is_wanted());
}

#[test]
fn a_device_that_goes_leaves_what_it_has_lent() {
    let device = ram(BLOCKS * BLOCK);
    let medium = Arc::downgrade(device.medium().unwrap());
    let mut client = Client::new(&device);
    client.write(3, &[5; BLOCK]);
    client.one();
    client.lend(3, 1);
    let lease = client.one().lent.unwrap();
    drop((client, device));
    assert_eq!(lease.view(|bytes| bytes == [5; BLOCK]), Some(true));
    assert!(medium.upgrade().is_some());
    drop(lease);
    assert!(medium.upgrade().is_none());
}

/// Says which thread ended the registration that it stands for.
struct Registration(Sender<ThreadId>);

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

#[test]
fn the_memory_of_a_deleted_device_is_not_freed_by_the_reactor_with_the_last_lease() {
    let workers = Workers::start(1).unwrap();
    let config = ReactorConfig { ring: RingChoice::Forbidden, ..ReactorConfig::default() };
    let mut reactors = Reactor::group(&[config], &workers).unwrap();
    let reactor = &mut reactors[0];
    let (ended, said) = mpsc::channel();
    let device = ram(BLOCKS * BLOCK);
    let make = |_, _| Ok::<_, ()>((7, Box::new(Registration(ended)) as Box<dyn Any + Send>));
    assert_eq!(device.medium().unwrap().register(DeviceId::new().unwrap(), make), Ok(true));
    let queue = device.open_queue(reactor.local()).unwrap();
    let mut client = Client { queue, pool: pool(), next: 0 };
    client.lend(3, 1);
    let lease = client.one().lent.unwrap();
    // The device is deleted, then the namespace goes, and the host has still not taken what it read.
    drop(device);
    drop(client);
    reactor.turn();
    assert!(said.try_recv().is_err(), "it is lent");
    drop(lease);
    reactor.turn();
    let by = said.recv_timeout(Duration::from_mins(1)).unwrap();
    assert_ne!(by, thread::current().id(), "the reactor's");
}

#[test]
fn only_reads_inside_the_device_are_lent() {
    let device = ram(BLOCKS * BLOCK);
    let mut client = Client::new(&device);
    client.lend(BLOCKS - 1, 2);
    assert_eq!(client.one().result, Err(ErrorKind::OutOfRange));
    for kind in [Kind::Write, Kind::Compare] {
        client.submit(kind, 0, 1, Data::lent());
        assert_eq!(client.one().result, Err(ErrorKind::Internal), "{kind:?}");
    }
    let null = block::null::NullDevice::new("null", 4096, 512).unwrap();
    assert!(null.medium().is_none());
    let mut other = Client { queue: null.queue(), ..client };
    other.lend(0, 1);
    assert_eq!(other.one().result, Err(ErrorKind::Internal), "a device that lends nothing");
}
