//! Listeners: bound by whoever configures them, served by one reactor, which passes the connections
//! on to the reactors with the fewest queues.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant as WallInstant};

use reactor::{EventSource, Instant, Interest, Local};
use slab::Slab;
use thiserror::Error;
use tracing::{info, warn};

use crate::counters::Counters;
use crate::socket::{ListeningSocket, Socket, is_exhaustion};

/// Connections accepted in one turn, over all listeners.
const ACCEPTS_PER_TURN: usize = 16;
/// How long accepting pauses when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a port in use is tried again.
const BIND_INTERVAL: Duration = Duration::from_millis(50);

/// A socket that listens, not yet served by a reactor.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    address: SocketAddr,
}

/// An address could not be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}{}", remedy(source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop the process that has it, or use another port",
        io::ErrorKind::AddrNotAvailable => {
            "; give the address to an interface of this machine first"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

impl Listener {
    /// Listens on `address`. A port in use is tried again for `patience`: the kernel holds the port of
    /// a process that was killed for a while. **Blocks**: not for a reactor's thread.
    ///
    /// # Errors
    /// [`BindError`], whose source says what the system said last.
    pub fn bind(address: SocketAddr, patience: Duration) -> Result<Listener, BindError> {
        let give_up = WallInstant::now().checked_add(patience);
        let mut said = false;
        loop {
            let bound = ListeningSocket::bind(address).and_then(|socket| {
                let address = socket.address()?;
                Ok(Listener { socket, address })
            });
            match bound {
                Err(source)
                    if source.kind() == io::ErrorKind::AddrInUse
                        && give_up.is_none_or(|at| WallInstant::now() < at) =>
                {
                    if !said {
                        said = true;
                        info!("{address} is in use: trying again for {patience:?}");
                    }
                    thread::sleep(BIND_INTERVAL);
                }
                bound => return bound.map_err(|source| BindError { address, source }),
            }
        }
    }

    /// The address, with the port that the system chose if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The listeners that one reactor serves.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listeners: Slab<Served>,
    source: EventSource,
    /// Which listener is asked first in the next turn.
    turn: usize,
    /// Set while accepting pauses.
    paused_until: Option<Instant>,
    /// That descriptors or memory ran out has been said since the last time that nobody waited.
    said_exhausted: bool,
}

#[derive(Debug)]
struct Served {
    listener: Listener,
    /// There may be connections to accept.
    ready: bool,
}

impl Acceptor {
    pub(crate) fn new(local: &Local) -> Acceptor {
        let source = local.source();
        Acceptor {
            listeners: Slab::new(),
            source,
            turn: 0,
            paused_until: None,
            said_exhausted: false,
        }
    }

    /// Serves `listener` from now on.
    pub(crate) fn add(&mut self, listener: Listener) {
        let address = listener.address();
        let entry = self.listeners.vacant_entry();
        let Ok(key) = u32::try_from(entry.key()) else { return };
        match self.source.register(&listener.socket, key, Interest::READ) {
            Ok(()) => {
                entry.insert(Served { listener, ready: true });
                info!("listening on {address}");
            }
            Err(error) => warn!("cannot watch the listener on {address}: {error}"),
        }
    }

    /// Closes the listener on `address`; its connections stay.
    pub(crate) fn remove(&mut self, address: SocketAddr) {
        let Some((key, _)) =
            self.listeners.iter().find(|(_, served)| served.listener.address == address)
        else {
            return;
        };
        let served = self.listeners.remove(key);
        if let Ok(key) = u32::try_from(key) {
            // The descriptor leaves the epoll instance when it is closed, at the latest.
            let _ = self.source.deregister(&served.listener.socket, key);
        }
        info!("no longer listening on {address}");
    }

    /// Closes all listeners.
    pub(crate) fn clear(&mut self) {
        let addresses: Vec<_> =
            self.listeners.iter().map(|(_, served)| served.listener.address).collect();
        for address in addresses {
            self.remove(address);
        }
    }

    /// Accepts what is there, up to a bound; whether anything was.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        counters: &Counters,
        mut accepted: impl FnMut(Socket),
    ) -> bool {
        let listeners = &mut self.listeners;
        self.source.drain(|key, _| {
            let served = usize::try_from(key).ok().and_then(|key| listeners.get_mut(key));
            if let Some(served) = served {
                served.ready = true;
            }
        });
        if self.listeners.is_empty() {
            return false;
        }
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        let mut left = ACCEPTS_PER_TURN;
        // A different one first each turn, so that none lives on what another leaves.
        let count = self.listeners.capacity();
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let key = self.turn.wrapping_add(step) % count;
            let Some(served) = self.listeners.get_mut(key) else { continue };
            while served.ready && left > 0 {
                match served.listener.socket.accept() {
                    Ok(socket) => {
                        left -= 1;
                        counters.accepted.add(1);
                        accepted(socket);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        served.ready = false;
                        self.said_exhausted = false;
                    }
                    Err(error) if is_exhaustion(&error) => {
                        counters.accept_pauses.add(1);
                        if !self.said_exhausted {
                            self.said_exhausted = true;
                            tracing::warn!(
                                "connections wait to be accepted: {error}; \
                                 raise the limit of open files (ulimit -n), or connect fewer hosts"
                            );
                        }
                        self.paused_until = Some(now + ACCEPT_PAUSE);
                        return left < ACCEPTS_PER_TURN;
                    }
                    // Interrupted, or the connection was gone before it was accepted: the next one.
                    Err(_) => left -= 1,
                }
            }
        }
        left < ACCEPTS_PER_TURN
    }

    /// Whether no connection waits to be accepted now.
    pub(crate) fn is_idle(&self) -> bool {
        self.paused_until.is_some() || self.listeners.iter().all(|(_, served)| !served.ready)
    }

    /// When accepting goes on after a pause.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.paused_until
    }
}
