//! What to connect to, over what, and as whom.

use crate::error::HostError;
use crate::identity::HostIdentity;
use crate::queue::{Queue, Settings};
use nvme::Nqn;
use nvme::address::TransportType;
use nvme::rdma::Request;
use std::net::SocketAddr;
use std::time::Duration;
use verbs::Library;

/// To which controller, and as whom.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How: TCP or RDMA.
    pub transport: TransportType,
    /// The libraries that RDMA needs; `None`: those of this machine.
    pub rdma: Option<Library>,
    /// Address of the subsystem's listener.
    pub address: SocketAddr,
    /// The subsystem.
    pub subsystem: Nqn,
    /// Who asks.
    pub host: HostIdentity,
    /// Ask for header digests (TCP).
    pub header_digest: bool,
    /// Ask for data digests (TCP).
    pub data_digest: bool,
    /// Ask the controller not to keep SQHD.
    pub disable_sq_flow_control: bool,
    /// Keep Alive Timeout; zero for none. Whoever holds the controller then calls [`Controller::keep_alive`](crate::Controller::keep_alive) more often.
    pub keep_alive: Duration,
    /// Limit for connecting and for each admin command.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// Over TCP, no digests, flow control on, Keep Alive within 15 s, 10 s for each step.
    pub fn new(address: SocketAddr, subsystem: Nqn, host: HostIdentity) -> Self {
        Self {
            transport: TransportType::Tcp,
            rdma: None,
            address,
            subsystem,
            host,
            header_digest: false,
            data_digest: false,
            disable_sq_flow_control: false,
            keep_alive: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
        }
    }

    /// Sees to it that what the transport needs of this machine is there.
    pub(crate) fn open_libraries(&mut self) -> Result<(), HostError> {
        if self.transport == TransportType::Rdma && self.rdma.is_none() {
            self.rdma = Some(Library::open()?);
        }
        Ok(())
    }

    /// Makes the connection of a queue. `request` says over RDMA what the Connect command will say.
    pub(crate) fn open_queue(
        &self,
        settings: Settings,
        request: Request,
    ) -> Result<Queue, HostError> {
        match (self.transport, &self.rdma) {
            (TransportType::Tcp, _) => Queue::connect(self.address, settings, self.timeout),
            (TransportType::Rdma, Some(library)) => {
                Queue::connect_rdma(library, self.address, settings, request, self.timeout)
            }
            (other, _) => Err(HostError::Transport(other)),
        }
    }
}
