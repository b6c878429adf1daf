//! The server: carries JSON-RPC between clients and [`Methods`].
//!
//! ```text
//!   UnixSocket, TcpSocket --> accept --> stream --+
//!                                                 +--> Message::answer, a task each --> crowd --> Methods
//!   HttpSocket -------------> accept --> http   --+
//! ```
//!
//! Threads: those of the tokio runtime that [`Server`] is used in; each connection is a task, each message under way another.
//!
//! What holds everywhere:
//! * What was begun ends, whether or not its client is still there to hear of it: a method runs in a task of its own.
//! * Everything a client can make the server hold is bounded ([`Limits`]): by not reading on where the client is a
//!   legitimate one that is too fast, by closing where it is not.
//! * A call that hangs takes nothing from the others but what it holds itself: its client's place goes to whoever needs it.
//! * [`Server::stop`] takes no more requests, and lets those under way be answered.
//! * What a peer can provoke is logged at the debug level only.

mod accept;
mod credentials;
mod crowd;
mod http;
mod limits;
mod places;
mod room;
mod stall;
mod stream;
mod tcp;
mod unix;

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::accept::Protocol;
use self::crowd::Crowd;
use self::places::Places;
use self::room::{Room, Ticket};
use crate::jsonrpc::{Id, Message, Methods, RpcError};

pub use credentials::{Credentials, CredentialsError};
pub use http::{HttpSocket, Pages};
pub use limits::Limits;
pub use tcp::TcpSocket;
pub use unix::{UnixError, UnixSocket};

/// Serves one set of methods on any number of sockets.
///
/// Dropping it instead of stopping it ends the connections at the next opportunity, without waiting.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    /// Held to the end: while this process may still answer, no other takes its place.
    sockets: Vec<unix::Held>,
    _stop: DropGuard,
}

/// What every connection has at hand.
struct Shared {
    methods: Arc<Crowd>,
    limits: Limits,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// A server without sockets.
    pub fn new(methods: Arc<dyn Methods>, limits: Limits) -> Server {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let methods = Arc::new(Crowd::new(methods, limits.alike));
        let shared = Arc::new(Shared { methods, limits, stop: stop.clone(), tasks });
        Server { shared, sockets: Vec::new(), _stop: stop.drop_guard() }
    }

    /// Serves JSON-RPC on a Unix socket.
    pub fn unix(&mut self, socket: UnixSocket) -> io::Result<()> {
        let (listener, held) = socket.into_parts();
        let listener = tokio::net::UnixListener::from_std(listener)?;
        self.sockets.push(held);
        self.shared.spawn(accept::accept(self.shared.clone(), listener, stream::Streams));
        Ok(())
    }

    /// Serves JSON-RPC on a TCP port, to whoever can reach it.
    pub fn tcp(&self, socket: TcpSocket) -> io::Result<()> {
        let listener = socket.into_listener()?;
        self.shared.spawn(accept::accept(self.shared.clone(), listener, stream::Streams));
        Ok(())
    }

    /// Serves JSON-RPC by HTTP, and the pages.
    pub fn http(
        &self,
        socket: HttpSocket,
        credentials: Credentials,
        pages: Arc<dyn Pages>,
    ) -> io::Result<()> {
        let listener = socket.into_listener()?;
        let site = http::Site::new(credentials, pages);
        self.shared.spawn(accept::accept(self.shared.clone(), listener, site));
        Ok(())
    }

    /// Serves one connection that somebody else has made, as a Unix socket's is.
    pub fn stream<S>(&self, stream: S) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.shared.clone();
        self.shared.spawn(async move {
            if let Some(place) = Places::new(1).take().await {
                stream::Streams.serve(shared, stream, &place).await;
            }
        })
    }

    /// Takes no more requests, lets the answers of those under way leave, and removes the sockets.
    /// Returns how many tasks were left after [`Limits::farewell`], which go on as long as the runtime does.
    pub async fn stop(self) -> usize {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let all_ended = timeout(self.shared.limits.farewell, self.shared.tasks.wait()).await;
        let left = self.shared.tasks.len();
        if all_ended.is_err() {
            tracing::warn!("JSON-RPC stops with {left} calls or connections unfinished");
        }
        left
    }
}

impl Shared {
    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Carries out a message in a task of its own, which ends even if nobody waits for it any more,
    /// and hands the answer, if it has one, to `reply`, with the room that it takes. Waits for room first.
    fn begin<R, F>(&self, message: Message, room: Arc<Room>, reply: R) -> JoinHandle<F>
    where
        R: FnOnce(Option<Bytes>, Ticket) -> F + Send + 'static,
        F: Send + 'static,
    {
        let methods = self.methods.clone();
        self.spawn(async move {
            room.free().await;
            let mut ticket = room.ticket();
            let answer = message.answer(&*methods, &mut ticket).await.map(Bytes::from);
            reply(answer, ticket)
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The answer to what cannot be attributed to a request.
fn refusal(error: RpcError) -> Bytes {
    Bytes::from(Id::null().response(Err(error)))
}
