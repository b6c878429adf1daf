//! Accepting connections, the same for every kind of socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::places::{Place, Places};

/// How long to wait when there are no descriptors left: some connection has to end first.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a TCP connection is silent before the kernel asks whether the other one is still there.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Where connections come from.
pub(super) trait Listener: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // None of these can fail but for a connection that is over already. The latter two tell of a client whose machine
        // is gone while a call is under way, which no silence would.
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let _ = sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE);
        Ok(stream)
    }
}

/// What is spoken on them.
pub(super) trait Protocol: Clone + Send + Sync + 'static {
    /// Serves a connection to its end.
    fn serve<S>(
        self,
        shared: Arc<Shared>,
        stream: S,
        place: &Place,
    ) -> impl Future<Output = ()> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The only words for a connection too many.
    fn full(&self, connections: usize) -> Bytes;
}

/// Serves what comes until the server stops.
pub(super) async fn accept<L: Listener, P: Protocol>(
    shared: Arc<Shared>,
    listener: L,
    protocol: P,
) {
    let connections = shared.limits.connections;
    let places = Places::new(connections);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.next() => accepted,
        };
        let mut stream = match accepted {
            Ok(stream) => stream,
            // That client did not wait.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                // Once, not for every attempt: a crowd of clients brings this about.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("JSON-RPC connections cannot be accepted: {error}");
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        failing = false;
        let Some(place) = places.take().await else {
            // As much as the socket takes at once: nothing is ever spent on waiting for this client.
            let words = protocol.full(connections);
            let _ = timeout(Duration::ZERO, stream.write_all(&words)).await;
            continue;
        };
        let (protocol, connection) = (protocol.clone(), shared.clone());
        shared.spawn(async move {
            tokio::select! {
                () = protocol.serve(connection, stream, &place) => {}
                () = place.wanted() => {
                    tracing::debug!("a JSON-RPC connection made room for another");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tcp_client_that_vanishes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (stream, _client) = tokio::join!(listener.next(), client);
        let stream = stream.unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEP_ALIVE);
        assert!(stream.nodelay().unwrap());
    }
}
