//! Descriptors run out, and come back. Alone in its process, whose limit it changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nvme::tcp::DigestFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use support::{Node, Options, Peer};

const HOSTS: usize = 40;

#[test]
fn accepting_pauses_while_descriptors_have_run_out() {
    let node = Node::start(&Options::default());
    drop(Peer::negotiated(node.address, DigestFlags::empty()));
    node.wait_until("gone", |node| node.network.connections() == 0);
    // The hosts' own descriptors exist before the limit falls; ten are left for the target.
    let mut hosts: Vec<_> =
        (0..HOSTS).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let highest = hosts.iter().map(AsRawFd::as_raw_fd).max().unwrap();
    let before = getrlimit(Resource::Nofile);
    let current = Some(u64::try_from(highest).unwrap() + 11);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    for host in &hosts {
        host.connect(&node.address.into()).unwrap();
    }
    node.wait_until("pauses", |node| node.network.total().accept_pauses > 0);
    let (paused, since) = (node.network.total().accept_pauses, Instant::now());
    while since.elapsed() < Duration::from_millis(350) {
        std::thread::yield_now();
    }
    let pauses = node.network.total().accept_pauses - paused;
    assert!((1..=4).contains(&pauses), "{pauses} tries in 350 ms");
    let served = node.network.connections();
    assert!((1..HOSTS).contains(&served), "{served} are served");

    // Hosts leave, and the others come in.
    hosts.truncate(5);
    node.wait_until("the rest is served", |node| node.network.connections() == 5);
    setrlimit(Resource::Nofile, before).unwrap();
    Peer::negotiated(node.address, DigestFlags::HEADER);
}
