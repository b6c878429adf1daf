//! What was counted when the page was asked for.

use node::{Census, ReactorCounters};
use target::shard::report::ControllerReport;
use target::statistics;

use crate::plane::Plane;

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    /// Bytes in it; None while it is waited for.
    pub(super) size: Option<u64>,
    pub(super) counted: statistics::Snapshot,
}

/// A namespace: which device is seen where.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) subsystem: String,
    pub(super) nsid: u32,
    pub(super) device: String,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) connections: u64,
    pub(super) tcp: Vec<(&'static str, u64)>,
    pub(super) reactors: Vec<ReactorCounters>,
    pub(super) shards: Vec<Census>,
    pub(super) devices: Vec<Device>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) controllers: Vec<ControllerReport>,
}

impl Snapshot {
    pub(super) fn of(plane: &Plane) -> Self {
        let (node, state) = (plane.node(), plane.state());
        let devices = state.devices.values().map(|opened| Device {
            name: opened.object.name.clone(),
            size: opened.device.as_ref().ok().map(|device| device.geometry().bytes()),
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
            connections: u64::try_from(node.connections()).unwrap_or(u64::MAX),
            tcp: node.tcp_counters().iter().collect(),
            reactors: node.reactors().into_iter().map(|it| it.counters).collect(),
            // A reactor that does not answer is missing from the page, and named by /healthz.
            shards: node.census().unwrap_or_default(),
            controllers: node.controllers().unwrap_or_default(),
            devices: devices.collect(),
            namespaces: namespaces.collect(),
        }
    }
}
