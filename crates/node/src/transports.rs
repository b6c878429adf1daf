//! The addresses that a node listens on, whatever the transport, and RDMA, which may come later than the node.
//!
//! An address is taken first and admits hosts once the node is told so: whoever takes several of them, or has to change something
//! else before a host comes, can give them back until then by dropping them. RDMA is the same in the large:
//! [`Rdma`] runs its connection manager, so that addresses can be taken, and becomes the node's when it is added.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nvme::address::{TransportAddress, TransportType};
use transport_rdma::RdmaNetwork;

/// An address that is taken. No host is admitted there before [`Node::accept_on`](crate::Node::accept_on).
#[derive(Debug)]
pub struct Listener(pub(crate) Taken);

#[derive(Debug)]
pub(crate) enum Taken {
    Tcp(transport_tcp::Listener),
    Rdma(RdmaListener),
}

/// An address could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// For NVMe/TCP.
    #[error(transparent)]
    Tcp(#[from] transport_tcp::BindError),
    /// For NVMe/RDMA.
    #[error(transparent)]
    Rdma(#[from] transport_rdma::BindError),
    /// The node does not run this transport, or not yet.
    #[error("cannot listen on {0}: the transport is not there")]
    NoTransport(TransportAddress),
    /// Whoever waited for the answer was told to stop.
    #[error("cannot listen on {0}: interrupted")]
    Interrupted(TransportAddress),
}

impl BindError {
    /// Whether somebody else has the address.
    pub fn is_in_use(&self) -> bool {
        match self {
            Self::Tcp(error) => error.source.kind() == io::ErrorKind::AddrInUse,
            Self::Rdma(error) => {
                let code = error.source.raw_os_error();
                let kind = code.map(|code| io::Error::from_raw_os_error(code).kind());
                kind == Some(io::ErrorKind::AddrInUse)
            }
            Self::NoTransport(_) | Self::Interrupted(_) => false,
        }
    }
}

impl Listener {
    /// Takes an address for NVMe/TCP. **Blocks**, up to `patience` for one in use.
    ///
    /// # Errors
    /// [`BindError::Tcp`].
    pub fn tcp(address: SocketAddr, patience: Duration) -> Result<Listener, BindError> {
        Ok(Listener(Taken::Tcp(transport_tcp::Listener::bind(address, patience)?)))
    }

    /// The address, with the port that the system chose if port 0 was asked for.
    pub fn address(&self) -> TransportAddress {
        let (trtype, address) = match &self.0 {
            Taken::Tcp(listener) => (TransportType::Tcp, listener.address()),
            Taken::Rdma(listener) => (TransportType::Rdma, listener.address),
        };
        TransportAddress { trtype, traddr: address.ip(), trsvcid: address.port() }
    }
}

/// NVMe/RDMA whose connection manager runs until the last clone of this is dropped.
#[derive(Debug, Clone)]
pub struct Rdma(Arc<Running>);

#[derive(Debug)]
struct Running(RdmaNetwork);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Rdma {
    pub(crate) fn new(network: RdmaNetwork) -> Rdma {
        Rdma(Arc::new(Running(network)))
    }

    /// What it counts, and its devices.
    pub fn network(&self) -> &RdmaNetwork {
        &self.0.0
    }

    /// Takes an address for NVMe/RDMA. **Blocks**, up to `patience` for one in use.
    ///
    /// # Errors
    /// [`BindError::Rdma`], for example if no device has the address.
    pub fn bind(&self, address: SocketAddr, patience: Duration) -> Result<Listener, BindError> {
        let address = self.network().bind(address, patience)?;
        let listener = RdmaListener { rdma: self.clone(), address, is_admitted: false };
        Ok(Listener(Taken::Rdma(listener)))
    }
}

/// An address that an RDMA device listens on.
#[derive(Debug)]
pub(crate) struct RdmaListener {
    rdma: Rdma,
    address: SocketAddr,
    is_admitted: bool,
}

impl RdmaListener {
    /// Admits hosts from now on, until the address is unlistened.
    pub(crate) fn admit(mut self) {
        self.is_admitted = true;
        self.rdma.network().admit(self.address);
    }
}

impl Drop for RdmaListener {
    fn drop(&mut self) {
        if !self.is_admitted {
            self.rdma.network().unlisten(self.address);
        }
    }
}
