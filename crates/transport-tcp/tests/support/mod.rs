//! A node with real reactors, shards and a RAM device, and hosts that send it any bytes they like.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod whole;

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Hugepages};
use nvme::address::TransportType;
use reactor::{Handle, IdlePolicy, Local, Placement, Reactor, ReactorConfig, Reactors, RingChoice};
use target::PortId;
use target::configuration::Configuration;
use testkit::column::{self, Mailboxes};
use transport_tcp::{Listener, TcpConfig, TcpNetwork, TcpTransport};

pub use testkit::column::on;

// Each test binary uses a part of this.
#[allow(unused_imports)]
pub use testkit::peer::{
    Admin, BLOCK, Pdu, Peer, SUBSYSTEM, host_id, host_nqn, pattern, read, write, write_in_capsule,
};

pub const DEVICE_SIZE: u64 = 64 << 20;

/// What a node is made of.
#[derive(Clone)]
pub struct Options {
    pub reactors: usize,
    pub idle: IdlePolicy,
    pub tcp: TcpConfig,
    pub pool: usize,
    pub requests: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reactors: 1,
            idle: IdlePolicy::Interrupt,
            tcp: TcpConfig::default(),
            pool: 32 << 20,
            requests: 1024,
        }
    }
}

/// A running node. Dropped, it stops.
pub struct Node {
    pub network: TcpNetwork,
    pub address: SocketAddr,
    reactors: Reactors,
}

impl Node {
    pub fn start(options: &Options) -> Node {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Duration::ZERO).unwrap();
        Node::start_on(options, listener)
    }

    pub fn start_on(options: &Options, listener: Listener) -> Node {
        let address = listener.address();
        let config = ReactorConfig { idle: options.idle, ..ReactorConfig::default() };
        let reactors = reactor::spawn(vec![config; options.reactors], 1).unwrap();
        let network = TcpNetwork::new(
            options.tcp.clone(),
            reactors.handles(),
            Placement::new(reactors.handles()),
        );
        let capacity = options.pool * options.reactors;
        let arena = Arena::new(ArenaConfig { capacity, hugepages: Hugepages::Never });
        let configuration = configuration(address);
        let mailboxes = column::mailboxes(options.reactors);
        for handle in reactors.handles() {
            let (network, arena) = (network.clone(), arena.clone());
            let (configuration, mailboxes) = (configuration.clone(), mailboxes.clone());
            let options = options.clone();
            on(handle, move |local| {
                furnish(local, &options, &network, &arena, configuration, mailboxes);
            });
        }
        network.listen(listener);
        Node { network, address, reactors }
    }

    pub fn handles(&self) -> &[Handle] {
        self.reactors.handles()
    }

    /// Waits until `done` says so; the test fails if it does not within ten seconds.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Node) -> bool) {
        let start = std::time::Instant::now();
        while !done(self) {
            let values = self.network.total();
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: {values:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.reactors.stop();
        self.reactors.join(Duration::from_secs(10)).unwrap();
    }
}

/// Gives a reactor its shard and its transport.
fn furnish(
    local: &Local,
    options: &Options,
    network: &TcpNetwork,
    arena: &Arena,
    configuration: Arc<Configuration>,
    mailboxes: Mailboxes,
) {
    let pool = arena.pool(options.pool).unwrap();
    let shard = column::furnish(local, pool, options.requests, configuration, mailboxes);
    TcpTransport::start(network, local, shard, PortId(0));
}

/// A node of one reactor that moves only when a test steps it.
pub struct Stepped {
    pub reactor: Reactor,
    pub network: TcpNetwork,
    pub address: SocketAddr,
}

impl Stepped {
    pub fn new(options: &Options) -> Stepped {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Duration::ZERO).unwrap();
        let address = listener.address();
        let ring = RingChoice::Forbidden; // Nothing here uses it, and valgrind does not know it.
        let reactor = Reactor::new(&ReactorConfig { ring, ..ReactorConfig::default() }).unwrap();
        let network = TcpNetwork::new(
            options.tcp.clone(),
            &[reactor.handle()],
            Placement::new(&[reactor.handle()]),
        );
        let arena = Arena::new(ArenaConfig { capacity: options.pool, hugepages: Hugepages::Never });
        let mailboxes = column::mailboxes(1);
        let configuration = configuration(address);
        furnish(reactor.local(), options, &network, &arena, configuration, mailboxes);
        network.listen(listener);
        Stepped { reactor, network, address }
    }

    /// Runs a host of its own thread to its end, stepping all the while.
    pub fn run<T: Send>(&mut self, host: impl FnOnce(SocketAddr) -> T + Send) -> T {
        let address = self.address;
        std::thread::scope(|scope| {
            let host = scope.spawn(move || host(address));
            while !host.is_finished() {
                self.reactor.turn();
            }
            host.join().unwrap()
        })
    }

    /// Steps until `bytes` bytes have come on `stream`, into `buffer`.
    pub fn collect(&mut self, stream: &mut TcpStream, buffer: &mut [u8], bytes: usize) {
        stream.set_nonblocking(true).unwrap();
        let mut done = 0;
        for _ in 0..1_000_000 {
            self.reactor.turn();
            match stream.read(&mut buffer[..bytes - done]) {
                Ok(0) => panic!("the connection was closed"),
                Ok(count) => done += count,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            if done == bytes {
                stream.set_nonblocking(false).unwrap();
                return;
            }
        }
        panic!("{done} of {bytes} bytes have come: {:?}", self.network.total());
    }
}

/// A RAM device as namespace 1 of [`SUBSYSTEM`], and a listener on `address`.
fn configuration(address: SocketAddr) -> Arc<Configuration> {
    column::configuration(&[(TransportType::Tcp, address)], Arc::new(column::ram(DEVICE_SIZE)))
}
