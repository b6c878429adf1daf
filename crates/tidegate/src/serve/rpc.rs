//! The control plane's sockets and the threads behind them, none of which is a reactor.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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

/// Where clients reach the control plane: what has been bound.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) unix: Option<PathBuf>,
    pub(super) tcp: Option<SocketAddr>,
    pub(super) http: Option<SocketAddr>,
}

/// Bound, so that no other daemon has them; not served yet.
pub(super) struct Sockets {
    places: Places,
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
        let mut places = Places::default();
        let unix = unix_path(config).map(bind_unix).transpose()?;
        places.unix = unix_path(config).map(Path::to_path_buf);
        let tcp = match &config.tcp {
            None => None,
            Some(tcp) => {
                let address = SocketAddr::new(tcp.address, tcp.port);
                let bound = TcpSocket::bind(address)
                    .and_then(|socket| Ok((socket.local_address()?, socket)));
                let (address, socket) = bound.with_context(|| format!("rpc.tcp: {address}"))?;
                places.tcp = Some(address);
                Some(socket)
            }
        };
        let http = match &config.http {
            None => None,
            Some(http) => {
                let address = SocketAddr::new(http.address, http.port);
                let credentials = Credentials::read(&http.credentials)?;
                let bound = HttpSocket::bind(address)
                    .and_then(|socket| Ok((socket.local_address()?, socket)));
                let (address, socket) = bound.with_context(|| format!("rpc.http: {address}"))?;
                places.http = Some(address);
                Some((socket, credentials))
            }
        };
        Ok(Sockets { places, unix, tcp, http })
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
    /// Where it answers.
    pub(super) places: Places,
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
        Ok(Rpc { places: sockets.places, runtime, server })
    }

    /// Takes no more calls, and lets those under way end, if they do so soon.
    pub(super) fn stop(self) {
        self.runtime.block_on(self.server.stop());
        self.runtime.shutdown_background();
    }
}
