//! Peers that leave something unfinished: each is given its time, and no more.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nvme::tcp::{DigestFlags, IcReq};
use target::ShardLimits;
use testkit::peer::{Admin, Pdu, Peer, pattern, read, write, write_in_capsule};
use transport_tcp::{TcpConfig, Timeouts};
use zerocopy::IntoBytes;

use crate::bystander::Bystander;
use crate::support::node::Plan;
use crate::{SHORT, ends_clean, read_to_end, start};

fn impatient() -> Plan {
    let timeouts =
        Timeouts { negotiation: SHORT, pdu: SHORT, data: SHORT, send: SHORT, close: SHORT };
    Plan {
        tcp: TcpConfig { timeouts, ..TcpConfig::default() },
        limits: ShardLimits { connect_timeout: SHORT, ..ShardLimits::default() },
        ..Plan::default()
    }
}

fn says_nothing(address: SocketAddr) -> Peer {
    Peer::connect(address)
}

fn says_half_of_icreq(address: SocketAddr) -> Peer {
    let mut peer = Peer::connect(address);
    peer.send(&IcReq::new(0, DigestFlags::empty(), 0).as_bytes()[..100]);
    peer
}

fn never_sends_connect(address: SocketAddr) -> Peer {
    Peer::negotiated(address, DigestFlags::empty())
}

fn sends_half_a_capsule(address: SocketAddr) -> Peer {
    let admin = Admin::connect(address, 1, DigestFlags::empty());
    let mut peer = admin.queue(address, 1, DigestFlags::empty());
    let capsule = peer.capsule(write_in_capsule(1, 0, 4096), &pattern(1, 4096));
    peer.send(&capsule[..1000]);
    keep(admin);
    peer
}

fn sends_one_byte_of_a_header(address: SocketAddr) -> Peer {
    let mut peer = Peer::negotiated(address, DigestFlags::empty());
    peer.send(&[4]);
    peer
}

fn owes_data(address: SocketAddr, host: usize) -> Peer {
    let admin = Admin::connect(address, host, DigestFlags::empty());
    let mut peer = admin.queue(address, 1, DigestFlags::empty());
    let command = peer.capsule(write(1, 0, 1 << 20), &[]);
    peer.send(&command);
    let Pdu::Request(_) = peer.receive() else { panic!("no R2T") };
    keep(admin);
    peer
}

fn never_sends_data(address: SocketAddr) -> Peer {
    owes_data(address, 2)
}

fn sends_data_in_drops(address: SocketAddr) -> Peer {
    let peer = owes_data(address, 3);
    let data = peer.data(1, 0, 0, &vec![7; 64 << 10], false);
    // A byte now and then: each one alone would keep a timer going that only watches for silence.
    let mut stream = peer.stream.try_clone().unwrap();
    thread::spawn(move || {
        for byte in data {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    peer
}

/// Asks for far more than the socket's buffers hold.
fn asks_for_much(address: SocketAddr, host: usize) -> Peer {
    let admin = Admin::connect(address, host, DigestFlags::empty());
    let mut peer = admin.queue(address, 1, DigestFlags::empty());
    let commands: Vec<u8> =
        (0..100).flat_map(|cid| peer.capsule(read(cid, 0, 1 << 20), &[])).collect();
    peer.send(&commands);
    keep(admin);
    peer
}

/// Admin queues are open to the end; the test's end closes them.
fn keep(admin: Admin) {
    let stream = admin.peer.stream;
    thread::spawn(move || {
        let mut stream = stream;
        stream.set_read_timeout(None).unwrap();
        let _ = stream.read(&mut [0]);
    });
}

/// Connects and leaves something unfinished.
type Begin = fn(SocketAddr) -> Peer;

#[test]
fn whatever_is_left_unfinished_has_its_timeout() {
    let (node, address) = start(&impatient());
    let bystander = Bystander::start(address, 9, 64 << 10);
    let slow: [(&str, Begin); 7] = [
        ("no ICReq", says_nothing),
        ("half an ICReq", says_half_of_icreq),
        ("no Connect", never_sends_connect),
        ("half a capsule", sends_half_a_capsule),
        ("a byte of a header", sends_one_byte_of_a_header),
        ("no data", never_sends_data),
        ("data in drops", sends_data_in_drops),
    ];
    let waiting: Vec<_> = slow
        .into_iter()
        .map(|(name, begin)| {
            thread::spawn(move || {
                let start = Instant::now();
                let mut peer = begin(address);
                read_to_end(&mut peer);
                let took = start.elapsed();
                assert!(took + Duration::from_millis(100) >= SHORT, "{name}: only {took:?}");
            })
        })
        .collect();
    bystander.goes_on(10);
    for thread in waiting {
        thread.join().unwrap();
    }
    let counters = node.tcp_counters();
    assert_eq!(counters.timeouts_negotiation, 2, "{counters:?}");
    // One of those with a PDU unfinished may have had no Connect for as long.
    assert!((1..=3).contains(&counters.timeouts_pdu), "{counters:?}");
    assert!(counters.timeouts_data >= 1, "{counters:?}");
    assert!(node.census().unwrap()[0].counters.queues_unconnected >= 1);
    bystander.stop();
    drop_keepers(&node);
}

#[test]
fn bytes_that_are_never_read_or_hardly_ever() {
    let (node, address) = start(&impatient());
    let bystander = Bystander::start(address, 9, 64 << 10);
    let mut deaf = asks_for_much(address, 1);
    let mut sips = asks_for_much(address, 2);
    let sipping = thread::spawn(move || {
        let start = Instant::now();
        let mut bytes = [0; 512];
        // 25 KiB a second: 100 MiB would take an hour.
        while start.elapsed() < 20 * SHORT && matches!(sips.stream.read(&mut bytes), Ok(1..)) {
            thread::park_timeout(Duration::from_millis(20));
            if start.elapsed() > 2 * SHORT {
                // The rest that the kernels have is read at once, up to the end.
                return read_to_end(&mut sips);
            }
        }
        0
    });
    bystander.goes_on(10);
    crate::support::until("both have had their time", || {
        (node.tcp_counters().timeouts_send == 2).then_some(())
    });
    bystander.goes_on(10);
    assert!(read_to_end(&mut deaf) < 100 << 20);
    assert!(sipping.join().unwrap() < 100 << 20);
    bystander.stop();
    drop_keepers(&node);
}

/// After a termination request the peer has its time to close, and is then cut off.
#[test]
fn a_peer_that_does_not_close_is_cut_off() {
    let (node, address) = start(&impatient());
    let mut peer = Peer::negotiated(address, DigestFlags::empty());
    peer.send(&[0xff; 64]);
    assert!(matches!(peer.receive(), Pdu::Termination(..)));
    assert!(peer.at_end(), "its half is closed");
    crate::support::until("it is cut off", || {
        (node.tcp_counters().timeouts_close == 1).then_some(())
    });
    ends_clean(&node);
}

/// The admin queues that are still open end with the node.
fn drop_keepers(node: &node::Node) {
    node.shutdown(crate::support::PATIENCE).unwrap();
}
