//! What can go wrong when the transport is made, or an address is to be listened on.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use verbs::{OpenError, VerbsError};

/// Why there is no RDMA transport. One line each.
#[derive(Debug, Error)]
pub enum RdmaError {
    /// The libraries are missing, or too old.
    #[error(transparent)]
    Libraries(#[from] OpenError),
    /// The connection manager does not work.
    #[error(
        "RDMA connections cannot be managed: {0}; load the kernel's module with: modprobe rdma_ucm"
    )]
    ConnectionManager(#[source] VerbsError),
    /// The manager's thread cannot be started.
    #[error("the thread for RDMA connections cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// An address could not be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address} with RDMA: {source}{}", remedy(source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the connection manager said.
    #[source]
    pub source: VerbsError,
}

fn remedy(error: &VerbsError) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::ADDRINUSE.raw_os_error() => {
            "; stop the process that has it, or use another port"
        }
        Some(code)
            if code == rustix::io::Errno::NODEV.raw_os_error()
                || code == rustix::io::Errno::ADDRNOTAVAIL.raw_os_error() =>
        {
            "; no RDMA device has this address: see docs/rdma.md"
        }
        _ => "",
    }
}
