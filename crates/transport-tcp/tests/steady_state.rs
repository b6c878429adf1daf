//! What an I/O costs once everything is warm: no allocation, few system calls; and what a
//! connection costs at rest.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

#[path = "../../reactor/tests/counting/mod.rs"]
mod counting;
mod support;

use std::io::{Read, Write};

use counting::allocations;
use nvme::tcp::DigestFlags;
use support::{Admin, Options, Peer, Stepped, pattern, read, write, write_in_capsule};

/// Bytes of a success response and of the headers before data.
const RESPONSE: usize = 24;
const DATA_HEADER: usize = 24;
const DEPTH: u16 = 32;
/// Idle queues whose memory is measured.
const QUEUES: usize = 100;

/// Runs `round` until it is warm, then counts what the allocator is asked for.
fn assert_no_allocations(what: &str, mut round: impl FnMut()) {
    for _ in 0..50 {
        round();
    }
    let before = allocations();
    for _ in 0..300 {
        round();
    }
    assert_eq!(allocations() - before, 0, "{what}");
}

fn queue(node: &mut Stepped, digests: DigestFlags) -> (Admin, Peer) {
    node.run(move |address| {
        let admin = Admin::connect(address, 0, digests);
        let queue = admin.queue(address, 1, digests);
        (admin, queue)
    })
}

fn batch(pdus: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    pdus.flatten().collect()
}

#[test]
fn reads_and_writes_allocate_nothing() {
    for digests in [DigestFlags::empty(), DigestFlags::HEADER | DigestFlags::DATA] {
        let both = if digests.is_empty() { 0 } else { 8 };
        let mut node = Stepped::new(&Options::default());
        let (_admin, mut peer) = queue(&mut node, digests);
        let mut buffer = vec![0; 1 << 20];

        let reads = batch((0..DEPTH).map(|cid| peer.capsule(read(cid, 4096, 4096), &[])));
        let expected = usize::from(DEPTH) * (DATA_HEADER + 4096 + both);
        assert_no_allocations("reads", || {
            peer.stream.write_all(&reads).unwrap();
            node.collect(&mut peer.stream, &mut buffer, expected);
        });

        let data = pattern(1, 4096);
        let writes =
            batch((0..DEPTH).map(|cid| peer.capsule(write_in_capsule(cid, 8192, 4096), &data)));
        let expected = usize::from(DEPTH) * (RESPONSE + both / 2);
        assert_no_allocations("writes in capsules", || {
            peer.stream.write_all(&writes).unwrap();
            node.collect(&mut peer.stream, &mut buffer, expected);
        });

        // One large write at a time, so that the tag of its R2T is known: 0.
        let data = pattern(2, 65536);
        let command = peer.capsule(write(7, 65536, 65536), &[]);
        let transfer =
            batch((0..4).map(|i| peer.data(7, 0, i * 16384, &data[i * 16384..][..16384], i == 3)));
        let answer = RESPONSE + both / 2;
        assert_no_allocations("writes by R2T", || {
            peer.stream.write_all(&command).unwrap();
            node.collect(&mut peer.stream, &mut buffer, answer);
            peer.stream.write_all(&transfer).unwrap();
            node.collect(&mut peer.stream, &mut buffer, answer);
        });
    }
}

#[test]
fn data_of_large_writes_is_not_copied() {
    let mut node = Stepped::new(&Options::default());
    let (_admin, mut peer) = queue(&mut node, DigestFlags::empty());
    let mut buffer = vec![0; 1 << 16];
    let data = pattern(2, 512 << 10);
    let before = node.network.total();
    for _ in 0..20 {
        let command = peer.capsule(write(7, 0, 512 << 10), &[]);
        peer.stream.write_all(&command).unwrap();
        node.collect(&mut peer.stream, &mut buffer, RESPONSE);
        for (i, part) in data.chunks(128 << 10).enumerate() {
            let pdu = peer.data(7, 0, i * (128 << 10), part, i == 3);
            peer.stream.write_all(&pdu[..24]).unwrap();
            // The header alone first: what follows has a place to go to.
            node.reactor.turn();
            node.reactor.turn();
            peer.stream.write_all(&pdu[24..]).unwrap();
            node.reactor.turn();
        }
        node.collect(&mut peer.stream, &mut buffer, RESPONSE);
    }
    let after = node.network.total();
    assert_eq!(after.bytes_copied - before.bytes_copied, 0);
}

#[test]
fn a_batch_of_reads_takes_few_system_calls() {
    let mut node = Stepped::new(&Options::default());
    let (_admin, mut peer) = queue(&mut node, DigestFlags::empty());
    let mut buffer = vec![0; 1 << 20];
    let reads = batch((0..DEPTH).map(|cid| peer.capsule(read(cid, 4096, 4096), &[])));
    let expected = usize::from(DEPTH) * (DATA_HEADER + 4096);
    let before = node.network.total();
    for _ in 0..100 {
        peer.stream.write_all(&reads).unwrap();
        node.collect(&mut peer.stream, &mut buffer, expected);
    }
    let after = node.network.total();
    let commands = after.commands - before.commands;
    assert_eq!(commands, 3200);
    let received = (after.receive_calls - after.receive_calls_empty)
        - (before.receive_calls - before.receive_calls_empty);
    let sent = after.send_calls - before.send_calls;
    // One of each per batch, give or take a batch that the loopback cut in two.
    assert!(received + sent <= 220, "{received} + {sent} calls for 100 batches");
}

#[test]
fn a_connection_at_rest_costs_little() {
    let mut node = Stepped::new(&Options { requests: 256, ..Options::default() });
    // Everything that grows once has grown.
    let admin = node.run(|address| {
        let admin = Admin::connect(address, 0, DigestFlags::empty());
        for qid in 1..=3 {
            let mut queue = admin.queue(address, qid, DigestFlags::empty());
            let capsule = queue.capsule(read(1, 0, 4096), &[]);
            queue.send(&capsule);
            queue.receive();
        }
        admin
    });
    let before = counting::bytes();
    let queues = node.run(|address| {
        (1..=QUEUES as u16)
            .map(|qid| {
                let mut queue = admin.queue(address, qid, DigestFlags::empty());
                let capsule = queue.capsule(read(1, 0, 4096), &[]);
                queue.send(&capsule);
                queue.receive();
                queue
            })
            .collect::<Vec<_>>()
    });
    let bytes = counting::bytes() - before;
    let each = bytes / QUEUES.cast_signed();
    // The target's own queue is part of it. The bound is 64 KiB.
    assert!(each < 16 << 10, "{each} bytes per queue");
    drop(queues);
}

#[test]
fn a_greedy_host_does_not_hold_up_the_others() {
    let mut node = Stepped::new(&Options::default());
    let (admin, mut greedy) = queue(&mut node, DigestFlags::empty());
    let mut modest = node.run(|address| {
        (2..=9).map(|qid| admin.queue(address, qid, DigestFlags::empty())).collect::<Vec<_>>()
    });
    // The greedy one keeps thousands of commands in flight, as far as the socket takes them.
    greedy.stream.set_nonblocking(true).unwrap();
    let flood = batch((0..100).map(|cid| greedy.capsule(read(cid, 0, 512), &[])));
    let mut sink = vec![0; 1 << 20];
    let before = node.network.total().commands;
    let mut worst = 0;
    for round in 0..200_u16 {
        let _ = greedy.stream.write(&flood);
        for peer in &mut modest {
            let capsule = peer.capsule(read(round, 0, 512), &[]);
            peer.stream.write_all(&capsule).unwrap();
        }
        for peer in &mut modest {
            peer.stream.set_nonblocking(true).unwrap();
            let mut turns = 0;
            let mut done = 0;
            while done < 512 + DATA_HEADER {
                node.reactor.turn();
                turns += 1;
                if let Ok(count) = peer.stream.read(&mut sink[..512 + DATA_HEADER - done]) {
                    done += count;
                }
                assert!(turns < 1000, "a modest host is not served");
            }
            worst = worst.max(turns);
            peer.stream.set_nonblocking(false).unwrap();
        }
        let _ = greedy.stream.read(&mut sink);
    }
    assert!(worst <= 12, "{worst} turns until a modest host was answered");
    assert!(node.network.total().commands - before > 2 * 8 * 200, "the greedy one was served too");
}
