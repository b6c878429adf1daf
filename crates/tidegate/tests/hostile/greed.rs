//! One host that takes all it can get and gives nothing back: there is enough left for every other.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use nvme::tcp::DigestFlags;
use target::ShardLimits;
use testkit::peer::{Admin, Pdu, Peer, write};
use transport_tcp::{TcpConfig, Timeouts};

use crate::bystander::Bystander;
use crate::support::node::Plan;
use crate::support::until;
use crate::{ends_clean, start};

/// A queue full of writes whose data never comes.
fn greedy_queue(
    admin: &Admin,
    address: std::net::SocketAddr,
    qid: u16,
    depth: u16,
    length: u32,
) -> Peer {
    let mut queue = admin.queue(address, qid, DigestFlags::empty());
    let commands: Vec<u8> =
        (0..depth).flat_map(|cid| queue.capsule(write(cid, 0, length), &[])).collect();
    queue.send(&commands);
    queue
}

fn patient() -> TcpConfig {
    // Nobody is saved by a timeout here.
    let timeouts = Timeouts { data: Duration::from_hours(1), ..Timeouts::default() };
    TcpConfig { timeouts, ..TcpConfig::default() }
}

#[test]
fn a_pool_made_empty_leaves_every_other_host_served() {
    let (node, address) = start(&Plan { memory: 16 << 20, tcp: patient(), ..Plan::default() });
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    let greedy: Vec<_> =
        (1..=8).map(|qid| greedy_queue(&admin, address, qid, 32, 1 << 20)).collect();
    // It has as much as one device may hold, and asks for more.
    until("the greedy host has its share", || {
        let census = node.census().unwrap();
        (census[0].memory >= 7 << 20 && census[0].requests >= 8 * 32).then_some(())
    });
    let sizes = [4096, 128 << 10, 1 << 20];
    let others: Vec<_> =
        (1_u64..).zip(sizes).map(|(host, bytes)| Bystander::start(address, host, bytes)).collect();
    for other in &others {
        other.goes_on(20);
    }
    let held = node.census().unwrap()[0].memory;
    assert!(held >= 7 << 20, "the greedy host still holds its share: {held}");
    for other in others {
        other.stop();
    }
    drop((greedy, admin));
    ends_clean(&node);
}

#[test]
fn request_slots_all_taken_leave_every_other_host_served() {
    let limits = ShardLimits { requests: 2048, ..ShardLimits::default() };
    let (node, address) = start(&Plan { limits, tcp: patient(), ..Plan::default() });
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    let greedy: Vec<_> = (1..=24).map(|qid| greedy_queue(&admin, address, qid, 127, 512)).collect();
    until("the greedy host has its share", || {
        let census = node.census().unwrap();
        (census[0].counters.stalls > 0).then_some(())
    });
    let others: Vec<_> = (1..=3).map(|host| Bystander::start(address, host, 8192)).collect();
    for other in &others {
        other.goes_on(20);
    }
    for other in others {
        other.stop();
    }
    drop((greedy, admin));
    ends_clean(&node);
}

/// A queue that owes data has slots for the rest of its entries set aside.
#[test]
fn request_slots_all_set_aside_leave_every_other_host_served() {
    let limits = ShardLimits { requests: 2048, ..ShardLimits::default() };
    let (node, address) = start(&Plan { limits, tcp: patient(), ..Plan::default() });
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    let greedy: Vec<_> = (1..=24).map(|qid| greedy_queue(&admin, address, qid, 1, 512)).collect();
    until("the node knows of them all", || {
        let census = node.census().unwrap()[0];
        (census.requests >= 24 || census.counters.stalls > 0).then_some(())
    });
    let others: Vec<_> = (1..=3).map(|host| Bystander::start(address, host, 8192)).collect();
    for other in others {
        other.goes_on(20);
        other.stop();
    }
    drop((greedy, admin));
    ends_clean(&node);
}

#[test]
fn a_host_that_reads_all_the_time_and_takes_nothing_leaves_the_others_served() {
    let (node, address) = start(&Plan { memory: 16 << 20, tcp: patient(), ..Plan::default() });
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    let greedy: Vec<_> = (1..=8)
        .map(|qid| {
            let mut queue = admin.queue(address, qid, DigestFlags::empty());
            let commands: Vec<u8> = (0..64)
                .flat_map(|cid| queue.capsule(testkit::peer::read(cid, 0, 1 << 20), &[]))
                .collect();
            queue.send(&commands);
            queue
        })
        .collect();
    let others: Vec<_> = (1..=3).map(|host| Bystander::start(address, host, 64 << 10)).collect();
    for other in &others {
        other.goes_on(50);
    }
    for other in others {
        other.stop();
    }
    // They are answered after all, once they read.
    let readers: Vec<_> = greedy
        .into_iter()
        .take(1)
        .map(|mut queue| {
            thread::spawn(move || {
                let mut responses = 0;
                // The last data PDU of each command carries its status.
                while responses < 64 {
                    if let Pdu::Data(header, data) = queue.receive() {
                        let end = header.datao.get() as usize + data.len();
                        responses += usize::from(end == 1 << 20);
                    }
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
    drop(admin);
    ends_clean(&node);
}

/// Sends commands that are refused at once, and reads no answer, until the node takes no more.
fn fill(mut peer: Peer) -> Peer {
    rustix::net::sockopt::set_socket_recv_buffer_size(&peer.stream, 4096).unwrap();
    peer.stream.set_nonblocking(true).unwrap();
    // Reserved fields aside, this opcode is nobody's.
    let commands: Vec<u8> =
        (0..64).flat_map(|cid| peer.capsule(nvme::Sqe::new(0x7e, 1).with_cid(cid), &[])).collect();
    let mut blocked_since = Instant::now();
    while blocked_since.elapsed() < Duration::from_millis(200) {
        match peer.stream.write(&commands[..72]) {
            Ok(72) => blocked_since = Instant::now(),
            Ok(part) => {
                // The rest of that command, so that the stream stays one of commands.
                peer.stream.set_nonblocking(false).unwrap();
                peer.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                if peer.stream.write_all(&commands[part..72]).is_err() {
                    return peer;
                }
                peer.stream.set_nonblocking(true).unwrap();
            }
            Err(_) => thread::yield_now(),
        }
    }
    peer
}

#[test]
fn answers_that_are_never_read_leave_every_other_host_served() {
    let limits = ShardLimits { requests: 2048, ..ShardLimits::default() };
    let timeouts = Timeouts { send: Duration::from_hours(1), ..Timeouts::default() };
    let tcp = TcpConfig { timeouts, ..TcpConfig::default() };
    let (node, address) = start(&Plan { tcp, limits, ..Plan::default() });
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    // On a queue, on an admin queue, and without a name.
    let queues = (1..=8).map(|qid| admin.queue(address, qid, DigestFlags::empty()));
    let others = [
        Admin::connect(address, 0, DigestFlags::empty()).peer,
        Peer::negotiated(address, DigestFlags::empty()),
        Peer::negotiated(address, DigestFlags::empty()),
    ];
    let deaf: Vec<_> = queues.chain(others).map(|peer| thread::spawn(move || fill(peer))).collect();
    let deaf: Vec<_> = deaf.into_iter().map(|thread| thread.join().unwrap()).collect();
    let held = node.census().unwrap()[0].requests;
    println!("{held} of 2048 requests are held by answers that nobody reads");
    let others: Vec<_> = (1..=3).map(|host| Bystander::start(address, host, 8192)).collect();
    for other in &others {
        other.goes_on(20);
    }
    for other in others {
        other.stop();
    }
    drop((deaf, admin));
    ends_clean(&node);
}
