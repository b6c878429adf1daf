//! What probes and Prometheus see of the node.
//!
//! Reactors count in their own memory; the numbers are read and written down when somebody asks. `docs/metrics.md` lists
//! them, and a test holds it against what is served.

mod metrics;
pub(crate) mod rdma;
pub(crate) mod snapshot;
pub(crate) mod tables;

use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::plane::Plane;
use crate::server::Pages;
use snapshot::Snapshot;

/// The pages of the node that a plane drives.
#[derive(Debug)]
pub struct NodePages(Arc<Plane>);

impl NodePages {
    /// The pages of this plane's node.
    pub fn new(plane: Arc<Plane>) -> Self {
        Self(plane)
    }
}

impl Pages for NodePages {
    fn healthy(&self) -> Result<(), String> {
        self.0.node().census().map(drop).map_err(|error| error.to_string())
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(Snapshot::of(&self.0)));
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut page, &registry);
        page
    }
}
