//! Real sockets, reactors, shards and a RAM device; the host is made of PDUs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use nvme::tcp::{DigestFlags, FatalErrorStatus as Fes, Flags};
use reactor::IdlePolicy;
use support::{Admin, Node, Options, Pdu, Peer, pattern, read, write, write_in_capsule};
use transport_tcp::{Listener, TcpConfig, Timeouts};

fn policies() -> [IdlePolicy; 3] {
    [
        IdlePolicy::Interrupt,
        IdlePolicy::Adaptive { max_spin: Duration::from_micros(50) },
        IdlePolicy::Poll,
    ]
}

/// Writes and reads back by every way there is.
fn round_trip(node: &Node, host: usize, digests: DigestFlags) {
    let admin = Admin::connect(node.address, host, digests);
    let mut queue = admin.queue(node.address, 1, digests);
    let base = (host as u64) << 20;

    let small = pattern(host as u64, 4096);
    assert!(queue.execute(write_in_capsule(1, base, 4096), &small).status().is_success());

    let large = pattern(host as u64 + 1000, 512 << 10);
    let offset = base + (256 << 10);
    let capsule = queue.capsule(write(2, offset, 512 << 10), &[]);
    queue.send(&capsule);
    let Pdu::Request(request) = queue.receive() else { panic!() };
    assert_eq!((request.r2to.get(), request.r2tl.get()), (0, 512 << 10));
    for (index, part) in large.chunks(100_000).enumerate() {
        let last = index == large.len() / 100_000;
        let pdu = queue.data(2, request.ttag.get(), index * 100_000, part, last);
        queue.send(&pdu);
    }
    let Pdu::Response(cqe) = queue.receive() else { panic!() };
    assert!(cqe.status().is_success());

    for (cid, from, expected) in [(3, base, &small), (4, offset, &large)] {
        let capsule = queue.capsule(read(cid, from, expected.len() as u32), &[]);
        queue.send(&capsule);
        let mut found = Vec::new();
        loop {
            let Pdu::Data(header, data) = queue.receive() else { panic!() };
            assert_eq!((header.cccid.get(), header.datao.get() as usize), (cid, found.len()));
            found.extend(data);
            let flags = header.header.flags();
            assert_eq!(flags.contains(Flags::LAST), flags.contains(Flags::SUCCESS));
            if flags.contains(Flags::LAST) {
                break;
            }
        }
        assert!(found == *expected, "the data of command {cid}");
    }
}

#[test]
fn data_comes_back_at_every_idle_policy_with_and_without_digests() {
    for idle in policies() {
        for reactors in [1, 2] {
            let node = Node::start(&Options { reactors, idle, ..Options::default() });
            for (host, digests) in [
                DigestFlags::empty(),
                DigestFlags::HEADER,
                DigestFlags::DATA,
                DigestFlags::HEADER | DigestFlags::DATA,
            ]
            .into_iter()
            .enumerate()
            {
                round_trip(&node, host, digests);
            }
            node.wait_until("connections gone", |node| node.network.connections() == 0);
        }
    }
}

#[test]
fn bytes_that_come_one_by_one() {
    let node = Node::start(&Options::default());
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let mut queue = admin.queue(node.address, 1, DigestFlags::HEADER | DigestFlags::DATA);
    let data = pattern(3, 512);
    for byte in queue.capsule(write_in_capsule(1, 0, 512), &data) {
        queue.send(&[byte]);
    }
    assert!(matches!(queue.receive(), Pdu::Response(cqe) if cqe.status().is_success()));
    for byte in queue.capsule(read(2, 0, 512), &[]) {
        queue.send(&[byte]);
    }
    assert!(matches!(queue.receive(), Pdu::Data(_, found) if found == data));
}

#[test]
fn a_host_that_reads_late_gets_everything() {
    let node = Node::start(&Options::default());
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let mut queue = admin.queue(node.address, 1, DigestFlags::DATA);
    // More than any socket buffer takes: 100 reads of 256 KiB, from memory for 128 of them.
    let data = pattern(9, 256 << 10);
    let capsule = queue.capsule(write(0, 0, 256 << 10), &[]);
    queue.send(&capsule);
    let Pdu::Request(request) = queue.receive() else { panic!() };
    for (index, part) in data.chunks(64 << 10).enumerate() {
        let pdu = queue.data(0, request.ttag.get(), index * (64 << 10), part, index == 3);
        queue.send(&pdu);
    }
    assert!(matches!(queue.receive(), Pdu::Response(_)));
    let mut commands = Vec::new();
    for cid in 0..100 {
        commands.extend(queue.capsule(read(cid, 0, 256 << 10), &[]));
    }
    queue.send(&commands);
    node.wait_until("the socket is full", |node| node.network.total().send_calls_short > 0);
    let mut found = vec![0; 100];
    while found.iter().any(|&bytes| bytes < data.len()) {
        let Pdu::Data(header, part) = queue.receive() else { panic!() };
        let at = &mut found[usize::from(header.cccid.get())];
        assert_eq!(header.datao.get() as usize, *at);
        assert!(part == data[*at..*at + part.len()]);
        *at += part.len();
    }
    let values = node.network.total();
    assert!(values.send_calls < 4000, "{values:?}");
}

/// One host has read and does not take the answers; what another writes there is on the medium all the same, long before
/// the first is given up, and the first gets what there was when it was read.
#[test]
fn a_host_that_takes_nothing_does_not_hold_up_the_writes_of_others() {
    const LENGTH: usize = 256 << 10;
    for (reactors, digests) in [(1, DigestFlags::DATA), (2, DigestFlags::empty())] {
        let node = Node::start(&Options { reactors, ..Options::default() });
        let idle = Admin::connect(node.address, 0, digests);
        let mut reader = idle.queue(node.address, 1, digests);
        let busy = Admin::connect(node.address, 1, digests);
        let mut writer = busy.queue(node.address, 1, digests);
        let mut commands = Vec::new();
        for cid in 0..60 {
            commands.extend(reader.capsule(read(cid, 0, LENGTH as u32), &[]));
        }
        reader.send(&commands);
        node.wait_until("the socket is full", |node| node.network.total().send_calls_short > 0);
        let began = Instant::now();
        for number in 1..=20_u8 {
            let write = write_in_capsule(number.into(), 8192, 4096);
            assert!(writer.execute(write, &[number; 4096]).status().is_success());
        }
        assert!(began.elapsed() < Timeouts::default().send / 2, "{:?}", began.elapsed());
        let (mut found, mut latest) = (vec![Vec::new(); 60], 0);
        while found.iter().any(|bytes| bytes.len() < LENGTH) {
            let Pdu::Data(header, part) = reader.receive() else { panic!() };
            found[usize::from(header.cccid.get())].extend(part);
        }
        for bytes in &found {
            let (before, written, after) = (&bytes[..8192], &bytes[8192..12288], &bytes[12288..]);
            assert!(before.iter().chain(after).all(|byte| *byte == 0));
            assert!(written.iter().all(|byte| *byte == written[0]), "a torn block");
            latest = latest.max(written[0]);
        }
        assert_eq!(found[0][8192], 0, "read before it was written");
        assert!(latest <= 20);
    }
}

#[test]
fn many_commands_leave_in_few_system_calls() {
    let node = Node::start(&Options::default());
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let mut queue = admin.queue(node.address, 1, DigestFlags::empty());
    let before = node.network.total();
    for _ in 0..20 {
        let mut commands = Vec::new();
        for cid in 0..32 {
            commands.extend(queue.capsule(read(cid, u64::from(cid) * 4096, 4096), &[]));
        }
        queue.send(&commands);
        for _ in 0..32 {
            assert!(matches!(queue.receive(), Pdu::Data(_, data) if data.len() == 4096));
        }
    }
    let after = node.network.total();
    assert_eq!(after.commands - before.commands, 640);
    let calls = after.send_calls - before.send_calls;
    assert!(calls <= 60, "{calls} calls for 20 batches");
    assert_eq!(after.bytes_copied, before.bytes_copied, "reads copy nothing");
}

#[test]
fn garbage_is_answered_and_the_others_are_served() {
    let node = Node::start(&Options::default());
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let mut queue = admin.queue(node.address, 1, DigestFlags::empty());
    for round in 0..50_u8 {
        let mut peer = Peer::connect(node.address);
        peer.send(&[0x50 + round; 64]);
        let Pdu::Termination(request, copy) = peer.receive() else { panic!() };
        assert_eq!(request.status(), Fes::InvalidHeaderField);
        assert_eq!(copy, [0x50 + round; 8]);
        assert!(peer.at_end());
        // It goes on all the same, and is not listened to.
        let _ = peer.stream.write_all(&[0xff; 4096]);
        let capsule = queue.capsule(read(round.into(), 0, 512), &[]);
        queue.send(&capsule);
        assert!(matches!(queue.receive(), Pdu::Data(..)));
    }
    node.wait_until("closed", |node| node.network.connections() == 2);
    assert_eq!(node.network.total().terminations_header_field, 50);
}

#[test]
fn deadlines_close_connections() {
    let second = Duration::from_millis(200);
    let timeouts =
        Timeouts { negotiation: second, pdu: second, data: second, send: second, close: second };
    let tcp = TcpConfig { timeouts, ..TcpConfig::default() };
    let node = Node::start(&Options { tcp, ..Options::default() });
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());

    let mut silent = Peer::connect(node.address);
    assert!(silent.at_end());

    let mut half = admin.queue(node.address, 1, DigestFlags::empty());
    let capsule = half.capsule(read(1, 0, 512), &[]);
    half.send(&capsule[..40]);
    assert!(half.at_end());

    let mut stingy = admin.queue(node.address, 2, DigestFlags::empty());
    let capsule = stingy.capsule(write(1, 0, 65536), &[]);
    stingy.send(&capsule);
    assert!(matches!(stingy.receive(), Pdu::Request(_)));
    assert!(stingy.at_end());

    let mut deaf = admin.queue(node.address, 3, DigestFlags::empty());
    for cid in 0..100 {
        let capsule = deaf.capsule(read(cid, 0, 1 << 20), &[]);
        deaf.send(&capsule);
    }
    node.wait_until("the deaf one is closed", |node| node.network.total().timeouts_send == 1);

    let mut stubborn = Peer::connect(node.address);
    stubborn.send(&[0xaa; 8]);
    assert!(matches!(stubborn.receive(), Pdu::Termination(..)));
    assert!(stubborn.at_end());
    node.wait_until("the stubborn one is closed", |node| node.network.total().timeouts_close == 1);

    node.wait_until("the admin queue, which is at rest, stays", |node| {
        node.network.connections() == 1
    });
    let values = node.network.total();
    assert_eq!(values.timeouts_negotiation, 1);
    assert_eq!(values.timeouts_pdu, 1);
    assert_eq!(values.timeouts_data, 1);
    drop(admin);
}

#[test]
fn connections_spread_over_reactors() {
    let node = Node::start(&Options { reactors: 2, ..Options::default() });
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let queues: Vec<_> =
        (1..=7).map(|qid| admin.queue(node.address, qid, DigestFlags::empty())).collect();
    // A reactor publishes its load at the end of a turn, which may be after an answer of that turn
    // has arrived here.
    node.wait_until("four queues on each reactor", |node| {
        node.handles().iter().all(|handle| handle.load().queues == 4)
    });
    for mut queue in queues {
        let capsule = queue.capsule(read(1, 0, 4096), &[]);
        queue.send(&capsule);
        assert!(matches!(queue.receive(), Pdu::Data(..)));
    }
    drop(admin);
    node.wait_until("all gone", |node| {
        node.network.connections() == 0
            && node.handles().iter().all(|handle| handle.load().queues == 0)
    });
}

#[test]
fn more_connections_than_allowed_are_closed() {
    let tcp = TcpConfig { max_connections: 3, ..TcpConfig::default() };
    let node = Node::start(&Options { tcp, ..Options::default() });
    let kept: Vec<_> =
        (0..3).map(|_| Peer::negotiated(node.address, DigestFlags::empty())).collect();
    assert!(Peer::connect(node.address).at_end());
    assert_eq!(node.network.total().refused, 1);
    drop(kept);
    node.wait_until("closed", |node| node.network.connections() == 0);
    Peer::negotiated(node.address, DigestFlags::empty());
}

#[test]
fn listeners_come_and_go_while_connections_stay() {
    let node = Node::start(&Options::default());
    let other = Listener::bind("[::1]:0".parse().unwrap(), Duration::ZERO).unwrap();
    let address = other.address();
    node.network.listen(other);
    let mut kept = Peer::negotiated(address, DigestFlags::HEADER);
    node.network.unlisten(address);
    node.wait_until("closed", |_| {
        Listener::bind(address, Duration::ZERO).is_ok()
            || std::net::TcpStream::connect(address).is_err()
    });
    // The connection stays; the listener's address is free, though a connection uses it.
    let again = Listener::bind(address, Duration::from_secs(10)).unwrap();
    node.network.listen(again);
    Peer::negotiated(address, DigestFlags::empty());
    kept.send(&[0xee; 8]);
    assert!(matches!(kept.receive(), Pdu::Termination(..)));
}

#[test]
fn a_port_in_use_is_waited_for_and_named() {
    let first = Listener::bind("127.0.0.1:0".parse().unwrap(), Duration::ZERO).unwrap();
    let address = first.address();
    let error = Listener::bind(address, Duration::from_millis(120)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("use another port"), "{text}");
    let waiting = std::thread::spawn(move || Listener::bind(address, Duration::from_secs(10)));
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap().address(), address);
}

#[test]
fn shutdown_closes_everything() {
    let node = Node::start(&Options { reactors: 2, ..Options::default() });
    let admin = Admin::connect(node.address, 0, DigestFlags::empty());
    let mut queue = admin.queue(node.address, 1, DigestFlags::empty());
    node.network.shutdown();
    assert!(queue.at_end());
    drop((queue, admin));
    node.wait_until("all gone", |node| node.network.connections() == 0);
    assert!(std::net::TcpStream::connect(node.address).is_err());
}
