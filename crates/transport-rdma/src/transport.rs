//! Transport.
use crate::network::RdmaNetwork;
use reactor::{Local, Poller, PollerId, Progress};
use std::cell::RefCell;
use std::rc::Rc;
use target::{PortId, Shard};
/// NVMe/RDMA on one reactor.
#[derive(Debug)]
pub struct RdmaTransport {
    shard: Rc<RefCell<Shard>>,
    port: PortId,
}
impl RdmaTransport {
    /// Adds the transport of `network` to this reactor, whose `shard` it serves as `port`. To be called on the
    /// reactor's thread, after the shard's own poller was added; `pool` is the shard's.
    pub fn start(
        _network: &RdmaNetwork,
        local: &Local,
        shard: Rc<RefCell<Shard>>,
        _pool: &memory::Pool,
        port: PortId,
    ) -> PollerId {
        local.add_poller(Box::new(RdmaTransport { shard, port }))
    }
}
impl Poller for RdmaTransport {
    fn poll(&mut self) -> Progress {
        Progress::Idle
    }
    fn name(&self) -> &'static str {
        "transport-rdma"
    }
}
