//! A node with real reactors, shards and a RAM device, and hosts that send it any bytes they like.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod whole;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use block::BlockDevice;
use block::ram::{RamDevice, RamOptions};
use memory::{Arena, ArenaConfig, Hugepages};
use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use reactor::{
    Handle, IdlePolicy, Instant, Local, Placement, Poller, Progress, Reactor, ReactorConfig,
    Reactors, RingChoice,
};
use target::configuration::{
    Configuration, Hosts, Listener as TargetListener, ListenerId, NamespaceOptions,
    SubsystemOptions,
};
use target::{Message, PortId, Shard, ShardConfig, ShardIndex, ShardLimits};
use transport_tcp::{Listener, TcpConfig, TcpNetwork, TcpTransport};

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

type Mailboxes = Arc<Vec<Mutex<VecDeque<Message>>>>;

struct ShardPoller {
    local: Local,
    shard: Rc<RefCell<Shard>>,
    mailboxes: Mailboxes,
}

impl ShardPoller {
    fn turn(&self) -> bool {
        let mut shard = self.shard.borrow_mut();
        let mut worked = false;
        let own = &self.mailboxes[self.local.index()];
        loop {
            let Some(message) = own.lock().unwrap().pop_front() else { break };
            shard.deliver(message);
            worked = true;
        }
        worked |= shard.poll(self.local.now());
        while let Some((ShardIndex(to), message)) = shard.next_message() {
            self.mailboxes[usize::from(to)].lock().unwrap().push_back(message);
            let _ = self.local.handle(usize::from(to)).unwrap().send(|_| {});
        }
        worked
    }
}

impl Poller for ShardPoller {
    fn poll(&mut self) -> Progress {
        Progress::from_worked(self.turn())
    }

    fn flush(&mut self) {
        self.turn();
    }

    fn ready_to_sleep(&mut self) -> bool {
        !self.shard.borrow().has_work()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shard.borrow().next_deadline()
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
        let mailboxes: Mailboxes =
            Arc::new((0..options.reactors).map(|_| Mutex::default()).collect());
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
    let config = ShardConfig {
        index: ShardIndex(local.index() as u16),
        shards: options.reactors as u16,
        pool: arena.pool(options.pool).unwrap(),
        limits: ShardLimits { requests: options.requests, ..ShardLimits::default() },
        now: local.now(),
    };
    let mut shard = Shard::new(config);
    let errors = shard.configure(configuration, &mut |device| device.open_queue(local));
    assert!(errors.is_empty(), "{errors:?}");
    let shard = Rc::new(RefCell::new(shard));
    local.add_poller(Box::new(ShardPoller {
        local: local.clone(),
        shard: shard.clone(),
        mailboxes,
    }));
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
        let mailboxes: Mailboxes = Arc::new(vec![Mutex::default()]);
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

/// Runs `act` on a reactor's thread and waits for what it returns.
pub fn on<T: Send + 'static>(handle: &Handle, act: impl FnOnce(&Local) -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    handle.send(move |local| drop(send.send(act(local)))).unwrap();
    receive.recv().unwrap()
}

/// A RAM device as namespace 1 of [`SUBSYSTEM`], and a listener on `address`.
fn configuration(address: SocketAddr) -> Arc<Configuration> {
    configuration_of(address, Arc::new(ram(DEVICE_SIZE)))
}

pub fn ram(size: u64) -> RamDevice {
    RamDevice::new(&RamOptions { name: "ram".into(), size, block_size: BLOCK, read_only: false })
        .unwrap()
}

pub fn configuration_of(address: SocketAddr, device: Arc<dyn BlockDevice>) -> Arc<Configuration> {
    let mut change = Configuration::empty().change();
    let nqn: Nqn = SUBSYSTEM.parse().unwrap();
    change
        .add_listener(TargetListener {
            id: ListenerId(1),
            address: TransportAddress {
                trtype: TransportType::Tcp,
                traddr: address.ip(),
                trsvcid: address.port(),
            },
        })
        .unwrap();
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    change.add_subsystem(nqn.clone(), options).unwrap();
    change.add_namespace(&nqn, NamespaceOptions::new(1, device)).unwrap();
    change.build().unwrap()
}
