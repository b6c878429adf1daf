//! Turn by turn: whatever others do to the node, a modest host is answered within a few turns.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nvme::tcp::{DigestFlags, IcReq};
use support::{Admin, Options, Peer, Stepped, read, write};
use zerocopy::IntoBytes;

/// A busy reactor asks epoll every eighth turn, so a connection that was idle may be noticed that late; then
/// it is answered in the same turn.
const TURNS: u32 = 10;
const ROUNDS: u16 = 100;
const ATTACKERS: usize = 20;

/// A connection that sends these bytes and is not looked after any more.
fn stranger(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    // As far as the socket takes them.
    let _ = stream.write(bytes);
    stream
}

/// The most turns that a command of the modest host took while `attack` went on.
fn worst(attack: impl Fn(SocketAddr) -> TcpStream) -> u32 {
    let mut node = Stepped::new(&Options::default());
    let (_admin, mut modest) = node.run(|address| {
        let admin = Admin::connect(address, 0, DigestFlags::empty());
        let queue = admin.queue(address, 1, DigestFlags::empty());
        (admin, queue)
    });
    modest.stream.set_nonblocking(true).unwrap();
    let capsules: Vec<_> = (0..ROUNDS).map(|cid| modest.capsule(read(cid, 0, 512), &[])).collect();
    let mut answer = [0; 24 + 512];
    let mut attackers = Vec::new();
    let mut worst = 0;
    for capsule in capsules {
        attackers.extend((0..ATTACKERS).map(|_| attack(node.address)));
        modest.stream.write_all(&capsule).unwrap();
        let (mut turns, mut done) = (0, 0);
        while done < answer.len() {
            node.reactor.turn();
            turns += 1;
            assert!(turns < 1000, "a modest host is not served");
            if let Ok(count) = modest.stream.read(&mut answer[done..]) {
                done += count;
            }
        }
        worst = worst.max(turns);
        // Those before the last rounds give up; what they leave is cleaned up in the same turns.
        let surplus = attackers.len().saturating_sub(5 * ATTACKERS);
        attackers.drain(..surplus);
    }
    worst
}

fn opening() -> Vec<u8> {
    IcReq::new(0, DigestFlags::empty(), 0).as_bytes().to_vec()
}

#[test]
fn a_modest_host_is_served_in_every_turn() {
    let capsule = |peer: &Peer, command| peer.capsule(command, &[]);
    // A peer that is connected to nothing of interest, to build PDUs with.
    let idle = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::connect(idle.local_addr().unwrap());
    let garbage = vec![0xee; 64 << 10];
    let late_garbage = [opening(), garbage.clone()].concat();
    let half = opening()[..100].to_vec();
    // Commands on a queue without a Connect: each is answered, by an error.
    let refused: Vec<u8> = (0..1000).flat_map(|cid| capsule(&peer, read(cid, 0, 512))).collect();
    let refused = [opening(), refused].concat();
    let writes: Vec<u8> = (0..64).flat_map(|cid| capsule(&peer, write(cid, 0, 65536))).collect();
    let writes = [opening(), writes].concat();
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("garbage", garbage),
        ("garbage after ICReq", late_garbage),
        ("half an ICReq", half),
        ("commands without a Connect", refused),
        ("writes without a Connect", writes),
    ] {
        let turns = worst(|address| stranger(address, &bytes));
        println!("{name}: {turns} turns");
        assert!(turns <= TURNS, "{name}: {turns} turns until a modest host was answered");
    }
}
