//! What was counted when the page, or the method `tidegate_get_statistics`, was asked for.
//!
//! Who takes it may wait: reactors are asked what they have in use, by letter.

use node::{Census, Reactor};
use reactor::Clock;
use target::rate_limit::Rates;
use target::shard::report::ControllerReport;
use target::statistics;

use super::rdma::Rdma;
use crate::plane::Plane;

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// Bytes in it; None while it is waited for.
    pub(crate) size: Option<u64>,
    pub(crate) limits: Rates,
    pub(crate) counted: statistics::Snapshot,
}

/// A namespace: which device is seen where.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) subsystem: String,
    pub(crate) nsid: u32,
    pub(crate) device: String,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// When, in nanoseconds of the monotonic clock.
    pub(crate) ticks: u64,
    pub(crate) tcp_connections: u64,
    pub(crate) tcp: Vec<(&'static str, u64)>,
    /// If the node runs it.
    pub(crate) rdma: Option<Rdma>,
    pub(crate) reactors: Vec<Reactor>,
    /// Empty, as the controllers are, if one of the reactors does not answer.
    pub(crate) shards: Vec<Census>,
    pub(crate) devices: Vec<Device>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) controllers: Vec<ControllerReport>,
}

impl Snapshot {
    pub(crate) fn of(plane: &Plane) -> Self {
        let node = plane.node();
        // A reactor that does not answer is missing from the page, and named by /healthz.
        let shards = node.census().unwrap_or_default();
        let controllers = node.controllers().unwrap_or_default();
        // What had to be waited for comes first, so that this is the time of everything that rates are made of.
        let ticks = Clock::monotonic().now().as_nanos();
        let state = plane.state();
        let devices = state.devices.values().map(|opened| Device {
            name: opened.object.name.clone(),
            size: opened.device.as_ref().ok().map(|device| device.geometry().bytes()),
            limits: opened.limits.rates(),
            counted: opened.statistics.counted().total(),
        });
        let namespaces = state.subsystems.values().flat_map(|subsystem| {
            subsystem.namespaces.iter().map(|(nsid, namespace)| Namespace {
                subsystem: subsystem.nqn.to_string(),
                nsid: *nsid,
                device: namespace.device.clone(),
            })
        });
        Self {
            ticks,
            tcp_connections: u64::try_from(node.tcp_connections()).unwrap_or(u64::MAX),
            tcp: node.tcp_counters().iter().collect(),
            rdma: Rdma::of(node),
            reactors: node.reactors(),
            shards,
            controllers,
            devices: devices.collect(),
            namespaces: namespaces.collect(),
        }
    }
}
