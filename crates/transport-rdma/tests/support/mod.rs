//! A node on software devices, with real reactors and a real host, whose fabric is stepped by a thread of its own.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::missing_panics_doc)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use block::BlockDevice;
use host::{ConnectOptions, Controller, HostIdentity};
use memory::{Arena, ArenaConfig, Hugepages};
use nvme::address::TransportType;
use reactor::{IdlePolicy, Placement, ReactorConfig, Reactors};
use target::PortId;
use testkit::column::{self, on};
use testkit::fabric::Stepper;
use testkit::peer::{SUBSYSTEM, host_id, host_nqn};
use transport_rdma::{RdmaConfig, RdmaNetwork, RdmaTransport};
use verbs::Fabric;
use verbs::software::DeviceOptions;

pub const DEVICE_SIZE: u64 = 64 << 20;

pub fn target_address() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

pub fn host_address() -> IpAddr {
    "192.0.2.2".parse().unwrap()
}

/// What a node is made of.
#[derive(Clone)]
pub struct Options {
    pub reactors: usize,
    pub idle: IdlePolicy,
    pub rdma: RdmaConfig,
    pub pool: usize,
    pub requests: u32,
    pub seed: u64,
    pub device: DeviceOptions,
    pub host_device: DeviceOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reactors: 1,
            idle: IdlePolicy::Interrupt,
            rdma: RdmaConfig::default(),
            pool: 32 << 20,
            requests: 1024,
            seed: 1,
            device: DeviceOptions::new("soft0", target_address()),
            host_device: DeviceOptions::new("soft1", host_address()),
        }
    }
}

/// A running node. Dropped, it stops.
pub struct Node {
    pub fabric: Fabric,
    pub network: RdmaNetwork,
    pub address: SocketAddr,
    reactors: Reactors,
    _stepper: Stepper,
}

impl Node {
    pub fn start(options: &Options) -> Node {
        let fabric = Fabric::new(options.seed);
        fabric.add_device(options.device.clone());
        fabric.add_device(options.host_device.clone());
        let stepper = Stepper::start(&fabric);
        let address = SocketAddr::new(options.device.addresses[0], 4420);
        let config = ReactorConfig { idle: options.idle, ..ReactorConfig::default() };
        let reactors = reactor::spawn(vec![config; options.reactors], 1).unwrap();
        let capacity = options.pool * options.reactors;
        let arena = Arena::new(ArenaConfig { capacity, hugepages: Hugepages::Never });
        let network = RdmaNetwork::start(
            options.rdma.clone(),
            fabric.library(),
            arena.clone(),
            Placement::new(reactors.handles()),
            reactors.handles(),
        )
        .unwrap();
        let device = Arc::new(column::ram(DEVICE_SIZE));
        network.lend(device.medium().cloned().into_iter().collect());
        let configuration = column::configuration(&[(TransportType::Rdma, address)], device);
        let mailboxes = column::mailboxes(options.reactors);
        for handle in reactors.handles() {
            let (network, arena, mailboxes) = (network.clone(), arena.clone(), mailboxes.clone());
            let (configuration, options) = (configuration.clone(), options.clone());
            on(handle, move |local| {
                let pool = arena.pool(options.pool).unwrap();
                let shard = column::furnish(
                    local,
                    pool.clone(),
                    options.requests,
                    configuration,
                    mailboxes,
                );
                RdmaTransport::start(&network, local, shard, &pool, PortId(0));
            });
        }
        assert_eq!(network.bind(address, Duration::ZERO).unwrap(), address);
        network.admit(address);
        Node { fabric, network, address, reactors, _stepper: stepper }
    }

    pub fn connect_options(&self) -> ConnectOptions {
        let host = HostIdentity::resolve(Some(host_nqn(0)), Some(host_id(0))).unwrap();
        ConnectOptions {
            transport: TransportType::Rdma,
            rdma: Some(self.fabric.library()),
            ..ConnectOptions::new(self.address, SUBSYSTEM.parse().unwrap(), host)
        }
    }

    pub fn connect(&self) -> Controller {
        Controller::connect(self.connect_options()).unwrap()
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
        self.network.stop();
        self.reactors.stop();
        self.reactors.join(Duration::from_secs(10)).unwrap();
    }
}
