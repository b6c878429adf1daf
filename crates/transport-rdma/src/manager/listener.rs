//! Listeners: addresses that hosts come by.
//!
//! A listener belongs to an address, not to a device: when its device is removed it waits, and is there again when the
//! device is. One for all addresses waits for nothing.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use verbs::{Connection, ConnectionId, Device, EventChannel, Library, VerbsError};

use crate::error::BindError;

/// Requests that wait for the manager at a listener.
const BACKLOG: u16 = 256;
/// How often an address in use is tried again, and one whose device is gone.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
const GONE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    /// None: its device is gone.
    connection: Option<Connection>,
    admitting: bool,
    /// Memory has been registered with its device, or that has been tried.
    opened: bool,
}

/// What hosts find at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// They may come.
    Open,
    /// Not yet.
    Shut,
    /// The listener is gone, perhaps with its device.
    Gone,
}

#[derive(Debug)]
struct Binding {
    address: SocketAddr,
    until: Instant,
    reply: Sender<Taken>,
}

/// What came of taking an address.
type Taken = Result<SocketAddr, BindError>;

/// All listeners.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    bindings: Vec<Binding>,
    /// Who asked and is to be told at the end of the turn, when the devices that are listened on have been opened.
    answers: Vec<(Sender<Taken>, Taken)>,
    tried: Option<Instant>,
}

fn listen(address: SocketAddr, events: &EventChannel) -> Result<Connection, VerbsError> {
    let connection = Connection::new(events)?;
    connection.bind(address)?;
    connection.listen(BACKLOG)?;
    Ok(connection)
}

fn is_in_use(error: &VerbsError) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::ADDRINUSE.raw_os_error())
}

/// All devices that can be opened. Another one, and one that comes later, is used once a host comes by it.
fn openable(library: &Library) -> Vec<Device> {
    let all = library.each_device().unwrap_or_else(|error| {
        warn!("RDMA devices cannot be listed: {error}");
        Vec::new()
    });
    let opened = all.into_iter().filter_map(|(name, device)| match device {
        Ok(device) => Some(device),
        Err(error) => {
            warn!("RDMA device {name} cannot be opened: {error}");
            None
        }
    });
    opened.collect()
}

impl Listeners {
    /// Takes an address now, or later within `patience` if it is in use.
    pub(super) fn bind(
        &mut self,
        address: SocketAddr,
        patience: Duration,
        reply: Sender<Taken>,
        events: &EventChannel,
    ) {
        let now = Instant::now();
        let until = now.checked_add(patience).unwrap_or(now);
        self.try_binding(Binding { address, until, reply }, events);
    }

    fn try_binding(&mut self, binding: Binding, events: &EventChannel) {
        let address = binding.address;
        let result = match listen(address, events) {
            Err(error) if is_in_use(&error) && Instant::now() < binding.until => {
                return self.bindings.push(binding);
            }
            Err(source) => Err(BindError { address, source }),
            Ok(connection) => {
                let bound = connection.local_address().map_or(address.port(), |it| it.port());
                let address = SocketAddr::new(address.ip(), bound);
                info!("listening on {address} with RDMA");
                let connection = Some(connection);
                let listener = Listener { address, connection, admitting: false, opened: false };
                self.all.push(listener);
                Ok(address)
            }
        };
        self.answers.push((binding.reply, result));
    }

    /// Tells those who asked for addresses what came of it.
    pub(super) fn answer(&mut self) {
        for (reply, result) in self.answers.drain(..) {
            // Nobody may wait for it any more.
            let _ = reply.send(result);
        }
    }

    /// Tries again what could not be had; whether anything came of it.
    pub(super) fn retry(&mut self, events: &EventChannel) -> bool {
        if self.retry_in().is_none_or(|left| !left.is_zero()) {
            return false;
        }
        self.tried = Some(Instant::now());
        let before = self.bindings.len();
        for binding in std::mem::take(&mut self.bindings) {
            self.try_binding(binding, events);
        }
        let mut worked = self.bindings.len() != before;
        for listener in self.all.iter_mut().filter(|it| it.connection.is_none()) {
            if let Ok(connection) = listen(listener.address, events) {
                info!("listening on {} with RDMA again", listener.address);
                listener.connection = Some(connection);
                listener.opened = false;
                worked = true;
            }
        }
        worked
    }

    /// When something is to be tried again.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        let gone = self.all.iter().any(|listener| listener.connection.is_none());
        let interval = match (self.bindings.is_empty(), gone) {
            (false, _) => BUSY_INTERVAL,
            (true, true) => GONE_INTERVAL,
            (true, false) => return None,
        };
        let since = self.tried.map_or(interval, |tried| tried.elapsed());
        Some(interval.saturating_sub(since))
    }

    /// Hosts may come by this address.
    pub(super) fn admit(&mut self, address: SocketAddr) {
        for listener in self.all.iter_mut().filter(|it| it.address == address) {
            listener.admitting = true;
        }
    }

    /// Whether hosts may come by this listener.
    pub(super) fn door(&self, id: ConnectionId) -> Door {
        let is_it = |it: &&Listener| it.connection.as_ref().is_some_and(|it| it.id() == id);
        match self.all.iter().find(is_it) {
            None => Door::Gone,
            Some(listener) if listener.admitting => Door::Open,
            Some(_) => Door::Shut,
        }
    }

    pub(super) fn remove(&mut self, address: SocketAddr) {
        self.all.retain(|listener| {
            if listener.address == address {
                info!("no longer listening on {address} with RDMA");
            }
            listener.address != address
        });
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.bindings.clear();
    }

    /// A listener's device has been removed: it waits for it.
    pub(super) fn device_removed(&mut self, id: ConnectionId) {
        for listener in &mut self.all {
            if listener.connection.as_ref().is_some_and(|it| it.id() == id) {
                warn!("the RDMA device of {} is gone: waiting for it", listener.address);
                listener.connection = None;
                self.tried = Some(Instant::now());
            }
        }
    }

    /// The devices that listeners lead to and for which that has not been asked before.
    pub(super) fn unopened_devices(&mut self, library: &Library) -> Vec<Device> {
        let mut devices = Vec::new();
        for listener in self.all.iter_mut().filter(|listener| !listener.opened) {
            let Some(connection) = &listener.connection else { continue };
            listener.opened = true;
            match connection.device() {
                Ok(Some(device)) => devices.push(device),
                // On all addresses.
                Ok(None) => devices.extend(openable(library)),
                Err(error) => warn!("the RDMA device of {}: {error}", listener.address),
            }
        }
        devices
    }
}
