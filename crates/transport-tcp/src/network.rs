//! The transport as other threads see it: what is to be listened on, and the connections that one
//! reactor has accepted for another.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reactor::{Handle, Notes, Place, Placement};

use crate::config::TcpConfig;
use crate::counters::{CounterValues, Counters};
use crate::listener::Listener;
use crate::socket::Socket;

/// The reactor that serves the listeners.
pub(crate) const LISTENING_REACTOR: usize = 0;

/// NVMe/TCP on all reactors of a process. Clones are the same; any thread may hold one.
#[derive(Clone)]
pub struct TcpNetwork {
    pub(crate) shared: Arc<Shared>,
}

/// What the reactors' transports share. Nothing in it is touched per I/O but the counters, each by
/// its own reactor.
pub(crate) struct Shared {
    pub(crate) config: TcpConfig,
    pub(crate) seats: Box<[Seat]>,
    placement: Placement,
}

/// One reactor's share.
pub(crate) struct Seat {
    pub(crate) notes: Notes<Note>,
    connections: AtomicUsize,
    pub(crate) counters: Counters,
}

/// Something for a reactor's transport to do.
#[derive(Debug)]
pub(crate) enum Note {
    Listen(Listener),
    Unlisten(SocketAddr),
    Serve(Socket, Place),
    Shutdown,
}

impl Seat {
    /// A connection is served here.
    pub(crate) fn joined(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was served is gone.
    pub(crate) fn left(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TcpNetwork {
    /// The transport for these reactors, in the order of their indices; `placement` is of the same. Each of them then
    /// gets its [`TcpTransport`](crate::TcpTransport).
    pub fn new(config: TcpConfig, reactors: &[Handle], placement: Placement) -> TcpNetwork {
        let seats = reactors.iter().map(|handle| Seat {
            notes: Notes::new(handle.clone()),
            connections: AtomicUsize::new(0),
            counters: Counters::default(),
        });
        let shared = Shared { config: config.clamped(), seats: seats.collect(), placement };
        TcpNetwork { shared: Arc::new(shared) }
    }

    /// The configuration, as it is used.
    pub fn config(&self) -> &TcpConfig {
        &self.shared.config
    }

    /// Has the connections of `listener` served from now on. All subsystems of an address share it.
    pub fn listen(&self, listener: Listener) {
        if let Some(seat) = self.shared.seats.get(LISTENING_REACTOR) {
            seat.notes.leave(Note::Listen(listener));
        }
    }

    /// Closes the listener on `address` soon; its connections stay.
    pub fn unlisten(&self, address: SocketAddr) {
        if let Some(seat) = self.shared.seats.get(LISTENING_REACTOR) {
            seat.notes.leave(Note::Unlisten(address));
        }
    }

    /// Closes the listeners, and every connection once it has sent what is queued for it.
    /// [`TcpNetwork::connections`] tells when that is done.
    pub fn shutdown(&self) {
        for seat in &self.shared.seats {
            seat.notes.leave(Note::Shutdown);
        }
    }

    /// Connections being served.
    pub fn connections(&self) -> usize {
        self.shared.seats.iter().map(|seat| seat.connections.load(Ordering::Relaxed)).sum()
    }

    /// The counters of one reactor's transport, all zero if there is no such reactor.
    pub fn counters(&self, reactor: usize) -> CounterValues {
        self.shared.seats.get(reactor).map(|seat| seat.counters.values()).unwrap_or_default()
    }

    /// The counters of all reactors together.
    pub fn total(&self) -> CounterValues {
        let each = self.shared.seats.iter().map(|seat| seat.counters.values());
        each.fold(CounterValues::default(), |sum, values| sum.plus(&values))
    }
}

impl Shared {
    /// Gives a connection that was just accepted to a reactor.
    pub(crate) fn place(&self, socket: Socket) {
        // One that is gone already has no address and needs no place.
        let Ok((_, peer)) = socket.addresses() else { return };
        let Some(place) = self.placement.place(peer.ip()) else { return };
        if let Some(seat) = self.seats.get(place.reactor()) {
            seat.notes.leave(Note::Serve(socket, place));
        }
    }
}

impl fmt::Debug for TcpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpNetwork")
            .field("reactors", &self.shared.seats.len())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
