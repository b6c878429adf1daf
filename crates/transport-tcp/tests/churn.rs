//! Connections come and go by the thousand and leave nothing. Alone in its process, whose memory
//! and descriptors it counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::indexing_slicing)]

mod support;

use nvme::tcp::DigestFlags;
use support::{Admin, Node, Options, Peer, read};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A host that does something else each time, and sometimes nothing good.
fn visit(node: &Node, round: usize) {
    match round % 8 {
        0 => drop(Peer::connect(node.address)),
        1 => drop(Peer::negotiated(node.address, DigestFlags::empty())),
        2 => Peer::connect(node.address).send(&[0x11; 100]),
        3 => {
            let mut peer = Peer::negotiated(node.address, DigestFlags::HEADER);
            let capsule = peer.capsule(read(1, 0, 512), &[]);
            peer.send(&capsule[..30]);
        }
        4 => {
            let peer = Peer::negotiated(node.address, DigestFlags::empty());
            socket2::SockRef::from(&peer.stream)
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
        }
        _ => {
            let admin = Admin::connect(node.address, round % 8, DigestFlags::empty());
            let mut queue = admin.queue(node.address, 1, DigestFlags::DATA);
            let capsule = queue.capsule(read(1, 0, 4096), &[]);
            queue.send(&capsule);
            if round % 8 > 5 {
                queue.receive();
            }
        }
    }
}

#[test]
fn ten_thousand_connections_leave_nothing() {
    let node = Node::start(&Options { reactors: 2, ..Options::default() });
    let settle = |rounds: std::ops::Range<usize>| {
        for round in rounds {
            visit(&node, round);
        }
        node.wait_until("gone", |node| node.network.connections() == 0);
        (descriptors(), resident())
    };
    let (descriptors_before, resident_before) = settle(0..1000);
    let (descriptors_after, resident_after) = settle(1000..8000);
    assert!(node.network.total().closed > 10_000);
    assert_eq!(descriptors_after, descriptors_before);
    let growth = resident_after.saturating_sub(resident_before);
    assert!(growth < 1024, "{growth} KiB more");
}
