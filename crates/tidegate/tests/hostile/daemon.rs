//! The daemon as a process, on a port that anything may connect to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nvme::tcp::DigestFlags;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use testkit::Random;
use testkit::peer::Peer;

use crate::bystander::Bystander;
use crate::support::daemon::{Daemon, NQN, free_port, loopback};
use crate::support::{PATIENCE, folder};

/// Strangers, by how many threads each.
const STRANGERS: u64 = 1500;
const THREADS: u64 = 3;

fn config(port: u16) -> String {
    format!(
        "[devices.ram]\nkind = \"ram\"\nsize = \"64MiB\"\nblock_size = 512\n\
         [[subsystems]]\nnqn = \"{NQN}\"\nnamespaces = [{{ nsid = 1, device = \"ram\" }}]\n\
         listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
    )
}

/// What the port of anything on a network gets to see.
fn stranger(address: SocketAddr, number: u64) {
    let mut bytes = match number % 3 {
        0 => {
            let mut random = Random::new(number);
            (0..512).flat_map(|_| random.number().to_le_bytes()).collect()
        }
        1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    };
    // Random bytes may look like an ICReq that is not finished; these do not.
    bytes[0] |= 0x10;
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(&bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // C2HTermReq: invalid PDU header field.
        Ok(_) => assert_eq!((answer[0], answer[8]), (3, 1), "{answer:x?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn garbage_on_the_port_neither_stops_it_nor_fills_the_log() {
    let (folder, port) = (folder(), free_port());
    let daemon = Daemon::start(folder.path(), &config(port));
    let bystander = Bystander::start(loopback(port), 1, 8192);
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                for number in (thread..STRANGERS).step_by(THREADS as usize) {
                    stranger(loopback(port), number);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    bystander.goes_on(10);
    bystander.stop();
    daemon.signal(Signal::TERM);
    let (status, log, _) = daemon.wait();
    assert!(status.success(), "{status}");
    let lines = log.lines().count();
    // One for each would be an invitation.
    assert!((100..1000).contains(&lines), "{lines} lines for {STRANGERS} strangers");
}

#[test]
fn more_half_open_connections_than_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (folder, port) = (folder(), free_port());
    let daemon = Daemon::start(folder.path(), &config(port));
    let bystander = Bystander::start(loopback(port), 1, 8192);
    let few = Rlimit { current: Some(128), maximum: Some(128) };
    prlimit(Some(daemon.pid()), Resource::Nofile, few).unwrap();
    // The kernel takes them all; the daemon has descriptors for some.
    let half_open: Vec<_> =
        (0..1000).map(|_| TcpStream::connect(loopback(port)).unwrap()).collect();
    bystander.goes_on(20);
    drop(half_open);
    // There is room again, at the latest when those are found out that never said anything.
    let mut peer = Peer::connect(loopback(port));
    peer.stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let request = nvme::tcp::IcReq::new(0, DigestFlags::empty(), 0);
    peer.send(zerocopy::IntoBytes::as_bytes(&request));
    peer.receive();
    bystander.stop();
    drop(peer);
    daemon.signal(Signal::TERM);
    let (status, log, _) = daemon.wait();
    assert!(status.success(), "{status}");
    assert!(log.lines().count() < 1500, "{} lines", log.lines().count());
}
