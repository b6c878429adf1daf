//! Connections by the thousand: those beyond the limit are closed at once, those within it have their
//! timeouts, and whoever is connected already does not notice.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nvme::tcp::DigestFlags;
use target::ShardLimits;
use testkit::peer::Peer;
use transport_tcp::TcpConfig;

use crate::bystander::Bystander;
use crate::support::node::Plan;
use crate::support::until;
use crate::{ends_clean, start};

const LIMIT: usize = 64;

#[test]
fn more_connections_than_allowed_are_closed_at_once() {
    let tcp = TcpConfig { max_connections: LIMIT, ..TcpConfig::default() };
    let (node, address) = start(&Plan { tcp, ..Plan::default() });
    let bystander = Bystander::start(address, 1, 8192);
    // The bystander has two of them.
    let held: Vec<_> = (0..LIMIT - 2).map(|_| Peer::connect(address)).collect();
    until("all places are taken", || (node.connections() == LIMIT).then_some(()));
    for _ in 0..500 {
        let mut surplus = TcpStream::connect(address).unwrap();
        surplus.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        assert!(matches!(surplus.read(&mut [0]), Ok(0) | Err(_)), "closed without a word");
    }
    assert_eq!(node.tcp_counters().refused, 500);
    bystander.goes_on(5);
    drop(held);
    until("places are free again", || (node.connections() == 2).then_some(()));
    drop(Peer::negotiated(address, DigestFlags::empty()));
    bystander.stop();
    ends_clean(&node);
}

#[test]
fn more_queues_than_allowed_are_refused_and_the_rest_go_on() {
    let limits = ShardLimits { queues: 32, ..ShardLimits::default() };
    let (node, address) = start(&Plan { limits, ..Plan::default() });
    let bystander = Bystander::start(address, 1, 8192);
    let held: Vec<_> = (0..30).map(|_| Peer::negotiated(address, DigestFlags::empty())).collect();
    for _ in 0..50 {
        let mut peer = Peer::connect(address);
        peer.send(zerocopy::IntoBytes::as_bytes(&nvme::tcp::IcReq::new(
            0,
            DigestFlags::empty(),
            0,
        )));
        assert!(peer.try_receive().is_err(), "there is no queue for it");
    }
    assert_eq!(node.census().unwrap()[0].counters.queues_refused, 50);
    bystander.goes_on(5);
    drop(held);
    until("queues are free again", || (node.census().unwrap()[0].queues == 2).then_some(()));
    drop(Peer::negotiated(address, DigestFlags::empty()));
    bystander.stop();
    ends_clean(&node);
}

/// Three threads that connect, send something of no use and are gone again, as fast as they can.
#[test]
fn a_storm_of_connections_does_not_stop_the_others() {
    let (node, address) = start(&Plan { reactors: 2, ..Plan::default() });
    let others: Vec<_> = (1..=2).map(|host| Bystander::start(address, host, 16 << 10)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let storm: Vec<_> = (0..3)
        .map(|kind| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    let _ = match kind {
                        0 => Ok(()),
                        1 => stream.write_all(&[0xee; 1000]),
                        _ => stream.write_all(&[0; 1]),
                    };
                    count += 1;
                }
                count
            })
        })
        .collect();
    for other in &others {
        other.goes_on(100);
    }
    stop.store(true, Ordering::Relaxed);
    let stormed: u32 = storm.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(stormed > 100, "{stormed} connections are no storm");
    for other in others {
        let worst = other.stop();
        println!("{stormed} connections came and went; the longest round was {worst:?}");
    }
    ends_clean(&node);
}
