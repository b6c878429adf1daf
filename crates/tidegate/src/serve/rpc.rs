//! The control plane's sockets and the threads behind them, none of which is a reactor.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use control::methods::Methods;
use control::pages::NodePages;
use control::plane::Plane;
use control::server::{Credentials, HttpSocket, Limits, Server, TcpSocket, UnixError, UnixSocket};
use control::waiting;
use tokio::runtime::{Builder, Runtime};
use tracing::info;

use super::PATIENCE;
use crate::config;
use crate::failure::Failure;
use crate::rpc::DEFAULT_SOCKET;

/// In the place of a path: no socket.
const NONE: &str = "none";
/// Methods wait for the disk and for reactors more than they compute.
const THREADS: usize = 2;
/// How long calls under way have to end when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Between two attempts to take a socket that another process has.
const RETRY: Duration = Duration::from_millis(50);

/// Whether clients can reach the control plane.
pub(super) fn has_sockets(config: &config::Rpc) -> bool {
    unix_path(config).is_some() || config.tcp.is_some() || config.http.is_some()
}

/// Where the Unix socket is, if there is to be one.
fn unix_path(config: &config::Rpc) -> Option<&Path> {
    let path = config.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
    (path != Path::new(NONE)).then_some(path)
}

/// Bound, so that no other daemon has them; not served yet.
pub(super) struct Sockets {
    unix: Option<UnixSocket>,
    tcp: Option<TcpSocket>,
    http: Option<(HttpSocket, Credentials)>,
}

impl Sockets {
    /// Takes what the configuration names.
    ///
    /// # Errors
    /// One that cannot be had, named.
    pub(super) fn bind(config: &config::Rpc) -> Result<Sockets, Failure> {
        let unix = unix_path(config).map(bind_unix).transpose()?;
        let tcp = match &config.tcp {
            None => None,
            Some(tcp) => {
                let address = SocketAddr::new(tcp.address, tcp.port);
                Some(TcpSocket::bind(address).with_context(|| format!("rpc.tcp: {address}"))?)
            }
        };
        let http = match &config.http {
            None => None,
            Some(http) => {
                let address = SocketAddr::new(http.address, http.port);
                let credentials = Credentials::read(&http.credentials)?;
                let socket =
                    HttpSocket::bind(address).with_context(|| format!("rpc.http: {address}"))?;
                Some((socket, credentials))
            }
        };
        Ok(Sockets { unix, tcp, http })
    }
}

fn bind_unix(path: &Path) -> Result<UnixSocket, UnixError> {
    let until = Instant::now() + PATIENCE;
    let mut waited = false;
    loop {
        match UnixSocket::bind(path) {
            Err(UnixError::Owned(_)) if Instant::now() < until => {
                if !waited {
                    let shown = path.display();
                    info!(
                        "another process serves JSON-RPC on {shown}; waiting up to {PATIENCE:?} for it to end"
                    );
                }
                waited = true;
                thread::sleep(RETRY);
            }
            bound => return bound,
        }
    }
}

/// The server and its threads.
pub(super) struct Rpc {
    runtime: Runtime,
    server: Server,
}

impl Rpc {
    /// Answers clients from now on.
    ///
    /// # Errors
    /// Threads or descriptors are refused.
    pub(super) fn start(sockets: Sockets, plane: &Arc<Plane>) -> Result<Rpc, Failure> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("rpc")
            .enable_all()
            .build()
            .context("cannot start the threads of the RPC server")?;
        let limits = Limits { farewell: FAREWELL, ..Limits::default() };
        let guard = runtime.enter();
        let mut server = Server::new(Arc::new(Methods::new(Arc::clone(plane))), limits);
        if let Some(socket) = sockets.unix {
            server.unix(socket)?;
        }
        if let Some(socket) = sockets.tcp {
            server.tcp(socket)?;
        }
        if let Some((socket, credentials)) = sockets.http {
            let pages = NodePages::new(Arc::clone(plane));
            server.http(socket, credentials, Arc::new(pages))?;
        }
        drop(guard);
        runtime.spawn(waiting::try_again_and_again(Arc::clone(plane)));
        Ok(Rpc { runtime, server })
    }

    /// Takes no more calls, and lets those under way end, if they do so soon.
    pub(super) fn stop(self) {
        self.runtime.block_on(self.server.stop());
        self.runtime.shutdown_background();
    }
}
