//! What connections cost, and that nothing of them stays. Alone in its process, whose memory and descriptors
//! it counts; one test, because another would count as well.

#![allow(clippy::print_stdout)]
#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::missing_panics_doc)]

#[allow(dead_code)]
mod counting;
#[allow(dead_code)]
#[path = "native/support/mod.rs"]
mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use ::node::Node;
use counting::{Counted, all_bytes, counted_bytes};
use nvme::tcp::{DigestFlags, IcReq};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::daemon::NQN;
use support::node::{self, Exported, Plan, ram};
use support::{PATIENCE, until};
use testkit::peer::{Admin, BLOCK, Peer, read, write};
use zerocopy::IntoBytes;

const THREADS: usize = 4;
const CYCLES: usize = 10_000;
/// Connections that get a receive buffer at the same time, at most: they stay in stock.
const STOCK: i64 = 2 * THREADS as i64 * (64 << 10);
const QUEUES: usize = 1000;
const QUEUES_EACH: u16 = 125;
const LIMIT_EACH: i64 = 64 << 10;

/// Connects, goes as far as its number says, and is gone.
fn cycle(address: SocketAddr, thread: usize, number: usize) {
    match number % 10 {
        // All of it: two queues, a command; the controller is not shut down.
        0 | 1 => {
            let admin = Admin::connect(address, thread, DigestFlags::empty());
            let mut queue = admin.queue(address, 1, DigestFlags::empty());
            // What is in flight when the connection breaks: nothing, a read, a write without its data.
            match number / 10 % 3 {
                0 => {}
                1 => queue.send(&queue.capsule(read(1, 0, 128 << 10), &[])),
                _ => queue.send(&queue.capsule(write(1, 0, 128 << 10), &[])),
            }
        }
        2 => drop(Peer::connect(address)),
        3 => Peer::connect(address).send(&[0xee; 64]),
        _ => drop(Peer::negotiated(address, DigestFlags::HEADER)),
    }
}

fn cycles(address: SocketAddr, count: usize) {
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                for number in 0..count / THREADS {
                    cycle(address, thread, number);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[derive(Debug)]
struct Usage {
    heap: i64,
    resident: i64,
    descriptors: usize,
}

/// What the process uses once nothing is left of any connection.
fn settled(node: &Node) -> Usage {
    until("nothing is left of any connection", || {
        let empty = node.connections() == 0
            && node.census().unwrap().iter().all(|shard| {
                shard.queues == 0
                    && shard.requests == 0
                    && shard.controllers == 0
                    && shard.memory == 0
            });
        empty.then_some(())
    });
    usage()
}

fn usage() -> Usage {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    Usage { heap: all_bytes(), resident: pages * 4096, descriptors }
}

fn connections_leave_nothing(node: &Node, address: SocketAddr) {
    cycles(address, 1000);
    let before = settled(node);
    cycles(address, CYCLES);
    let after = settled(node);
    println!("before {CYCLES} connections {before:?}, after {after:?}");
    assert_eq!(after.descriptors, before.descriptors);
    assert!(after.heap - before.heap <= STOCK, "{before:?}, {after:?}");
    assert!(after.resident - before.resident <= STOCK + (4 << 20), "{before:?}, {after:?}");
    let opened = node.tcp_counters().opened;
    assert!(opened >= CYCLES as u64, "only {opened} connections");
}

/// Each holds a receive buffer until it is gone; then they are given up within a few seconds.
fn half_pdus_leave_nothing(node: &Node, address: SocketAddr) {
    const HALVES: u64 = 1000;
    let before = settled(node);
    let received = node.tcp_counters().bytes_received;
    let halves: Vec<_> = (0..HALVES)
        .map(|_| {
            let mut peer = Peer::connect(address);
            peer.send(&IcReq::new(0, DigestFlags::empty(), 0).as_bytes()[..100]);
            peer
        })
        .collect();
    until("all halves have come", || {
        (node.tcp_counters().bytes_received - received == 100 * HALVES).then_some(())
    });
    let held = usage();
    println!("{HALVES} halves of an ICReq: {} bytes each", (held.heap - before.heap) / 1000);
    drop(halves);
    settled(node);
    // What a reactor always keeps: 16 of each.
    let kept = 2 * 16 * (64 << 10) + (1 << 20);
    until("the memory is given up", || (usage().heap - before.heap <= kept).then_some(()));
}

fn idle_queues_are_cheap(node: &Node, address: SocketAddr) {
    let before = (counted_bytes(), usage());
    let hosts: Vec<_> = (0..QUEUES / usize::from(QUEUES_EACH))
        .map(|host| {
            let admin = Admin::connect(address, host, DigestFlags::empty());
            let queues: Vec<_> = (1..=QUEUES_EACH)
                .map(|qid| {
                    let mut queue = admin.queue(address, qid, DigestFlags::empty());
                    // Each has worked once.
                    queue.send(&queue.capsule(read(1, 0, 4096), &[]));
                    queue.receive();
                    queue
                })
                .collect();
            (admin, queues)
        })
        .collect();
    let queues: u32 = node.census().unwrap().iter().map(|shard| shard.queues).sum();
    assert!(queues as usize >= QUEUES);
    let after = (counted_bytes(), usage());
    let heap = (after.0 - before.0) / QUEUES as i64;
    // The hosts are part of it.
    let resident = (after.1.resident - before.1.resident) / QUEUES as i64;
    println!("an idle I/O queue: {heap} bytes of the node's heap, {resident} resident");
    assert!(heap <= LIMIT_EACH && resident <= LIMIT_EACH, "{heap}, {resident}");
    drop(hosts);
    settled(node);
}

#[test]
fn connections_leave_nothing_and_idle_ones_cost_little() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let device = Arc::new(Counted(ram("ram", 64 << 20, BLOCK)));
    let plan = Plan { reactors: 2, ..Plan::default() };
    let (node, addresses) = node::start(&plan, vec![Exported::new(NQN, vec![device])]);
    connections_leave_nothing(&node, addresses[0]);
    idle_queues_are_cheap(&node, addresses[0]);
    half_pdus_leave_nothing(&node, addresses[0]);
    node.shutdown(PATIENCE).unwrap();
}
