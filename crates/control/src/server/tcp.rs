//! A TCP port, for JSON-RPC as on a Unix socket.
//!
//! There is no authentication: whoever reaches the port owns the node. It is off unless configured, and belongs on loopback.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// A port that is bound but not served yet.
#[derive(Debug)]
pub struct TcpSocket {
    listener: TcpListener,
}

impl TcpSocket {
    /// Takes the address. From now on connections wait to be accepted.
    pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(TcpSocket { listener })
    }

    /// Where it listens, with the port that the kernel chose where 0 was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) fn into_listener(self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener)
    }
}
