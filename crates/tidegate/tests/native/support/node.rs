//! A node in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use block::BlockDevice;
use block::file::{Direct, FileDevice, FileOptions};
use block::ram::{RamDevice, RamOptions};
use memory::Hugepages;
use node::{Node, NodeConfig};
use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use reactor::{IdlePolicy, ReactorConfig, RingChoice};
use target::ShardLimits;
use target::configuration::{
    Configuration, Hosts, Listener, ListenerId, NamespaceOptions, Reach, SubsystemOptions,
};
use transport_tcp::TcpConfig;

use super::PATIENCE;

/// What a node is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) reactors: usize,
    pub(crate) idle: IdlePolicy,
    pub(crate) ring: RingChoice,
    pub(crate) memory: usize,
    pub(crate) tcp: TcpConfig,
    pub(crate) limits: ShardLimits,
    /// One listener each; port 0 for any that is free.
    pub(crate) listeners: Vec<SocketAddr>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            reactors: 1,
            idle: IdlePolicy::default(),
            ring: RingChoice::default(),
            memory: 32 << 20,
            tcp: TcpConfig::default(),
            limits: ShardLimits::default(),
            listeners: vec!["127.0.0.1:0".parse().unwrap()],
        }
    }
}

/// A subsystem to export.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) nqn: &'static str,
    pub(crate) hosts: Hosts,
    /// Places in [`Plan::listeners`]; empty: all.
    pub(crate) listeners: Vec<usize>,
    /// Namespaces 1, 2, ...
    pub(crate) devices: Vec<Arc<dyn BlockDevice>>,
}

impl Exported {
    /// These devices, to every host, on every listener.
    pub(crate) fn new(nqn: &'static str, devices: Vec<Arc<dyn BlockDevice>>) -> Exported {
        Exported { nqn, hosts: Hosts::Any, listeners: Vec::new(), devices }
    }
}

/// Starts a node that exports all this; where it listens.
pub(crate) fn start(plan: &Plan, exports: Vec<Exported>) -> (Node, Vec<SocketAddr>) {
    // Shown with a failure, as far as RUST_LOG asks for it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let reactor = ReactorConfig { idle: plan.idle, ring: plan.ring, ..ReactorConfig::default() };
    let node = Node::start(NodeConfig {
        reactors: vec![reactor; plan.reactors],
        memory_per_reactor: plan.memory,
        hugepages: Hugepages::Never,
        tcp: plan.tcp.clone(),
        limits: plan.limits.clone(),
    })
    .unwrap();
    let wanted = plan.listeners.iter().map(|address| TransportAddress {
        trtype: TransportType::Tcp,
        traddr: address.ip(),
        trsvcid: address.port(),
    });
    let addresses = node.listen(&wanted.collect::<Vec<_>>(), PATIENCE).unwrap();
    let mut change = Configuration::empty().change();
    let id = |index: usize| ListenerId(index as u16 + 1);
    for (index, address) in addresses.iter().copied().enumerate() {
        change.add_listener(Listener { id: id(index), address }).unwrap();
    }
    for exported in exports {
        let nqn: Nqn = exported.nqn.parse().unwrap();
        let reach = if exported.listeners.is_empty() {
            Reach::Everywhere
        } else {
            exported.listeners.iter().map(|&index| id(index)).collect()
        };
        let options = SubsystemOptions { hosts: exported.hosts, reach, ..Default::default() };
        change.add_subsystem(nqn.clone(), options).unwrap();
        for (nsid, device) in (1..).zip(exported.devices) {
            change.add_namespace(&nqn, NamespaceOptions::new(nsid, device)).unwrap();
        }
    }
    node.configure(&change.build().unwrap()).unwrap();
    (node, addresses.iter().map(TransportAddress::socket).collect())
}

/// A RAM device.
pub(crate) fn ram(name: &str, size: u64, block_size: u32) -> Arc<dyn BlockDevice> {
    let name = name.to_owned();
    Arc::new(RamDevice::new(&RamOptions { name, size, block_size, read_only: false }).unwrap())
}

/// A new sparse file as a device.
pub(crate) fn file(path: &Path, size: u64, block_size: u32, direct: Direct) -> Arc<FileDevice> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let options = FileOptions {
        block_size: Some(block_size),
        create_size: Some(size),
        direct,
        ..FileOptions::new(name, path)
    };
    Arc::new(FileDevice::open(&options).unwrap())
}
