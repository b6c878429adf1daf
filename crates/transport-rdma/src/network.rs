//! The transport as other threads see it, and what its threads say to each other.
//!
//! ```text
//!   any thread --listen, unlisten, shutdown--> Manager (a thread of its own; rdma_cm, everything that blocks)
//!                                                | ^
//!                               Note: lane, queue | | Order: accept, end, bury
//!                                                v |
//!                                              RdmaTransport (a reactor's)
//! ```
//!
//! Both ways lead through lists behind a lock and a wake-up. They are used once per connection and step of its life, never per
//! I/O; neither side waits for the other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use memory::{Arena, SharedMemory};
use reactor::{Handle, Notes, Place, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use verbs::{CompletionQueue, ConnectionId, Library, QueuePair};

use crate::config::RdmaConfig;
use crate::counters::{CounterValues, Counters};
use crate::error::{BindError, RdmaError};
use crate::lane::{Ends, LaneId, LaneParts, Remains};
use crate::manager::Manager;

/// NVMe/RDMA on all reactors of a process. Clones are the same; any thread may hold one.
#[derive(Clone)]
pub struct RdmaNetwork {
    pub(crate) shared: Arc<Shared>,
}

/// What the reactors' transports and the manager share. Nothing in it is touched per I/O.
pub(crate) struct Shared {
    pub(crate) config: RdmaConfig,
    pub(crate) arena: Arena,
    pub(crate) placement: Placement,
    pub(crate) seats: Box<[Seat]>,
    orders: Mutex<Vec<Order>>,
    /// Readable when there are orders.
    pub(crate) bell: OwnedFd,
    /// What has been counted of each device on each reactor, devices that are gone included.
    counted: Mutex<Vec<Counted>>,
    devices: Mutex<Vec<DeviceReport>>,
}

/// One reactor's share.
pub(crate) struct Seat {
    pub(crate) notes: Notes<Note>,
    connections: AtomicUsize,
}

struct Counted {
    device: String,
    reactor: usize,
    counters: Arc<Counters>,
}

/// Something for a reactor's transport to do.
#[derive(Debug)]
pub(crate) enum Note {
    /// A device is to be used here.
    Open(LaneParts),
    /// A lane gets another completion queue.
    Extend(LaneId, CompletionQueue, Ends),
    /// Nobody has a place in the lane's last completion queue: it is to be given back.
    Shrink(LaneId),
    /// A queue pair that is to be connected.
    Serve(Arrival),
    /// The connection is over.
    Over(ConnectionId),
    /// The order to end it has been carried out: what is posted is being flushed.
    Ended(ConnectionId),
    /// The queue pair has taken its last receive from the shared queue.
    LastReceive(ConnectionId),
    /// The device is gone, or is not to be used any more.
    Close(LaneId),
    /// Every queue is to end once it has sent what is queued on it.
    Shutdown,
}

/// A host's queue on its way to its reactor.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) lane: LaneId,
    pub(crate) connection: ConnectionId,
    pub(crate) pair: QueuePair,
    pub(crate) place: Place,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// Commands that the queue pair has room for.
    pub(crate) depth: u16,
    /// Commands that the host has said it may have outstanding.
    pub(crate) commands: u32,
    /// RDMA reads that may be on their way at a time.
    pub(crate) reads: u8,
}

/// Something for the manager to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Listen there, and say whether that goes.
    Bind(SocketAddr, Duration, Sender<Result<SocketAddr, BindError>>),
    /// Admit hosts that come that way.
    Admit(SocketAddr),
    /// Cease to listen there.
    Unlisten(SocketAddr),
    /// The queue pair is known at its reactor: grant the host's request.
    Accept(ConnectionId),
    /// The reactor has no room for it.
    Refuse(ConnectionId, Option<QueuePair>),
    /// End the connection: everything that is posted is flushed.
    End(ConnectionId),
    /// Nothing is posted any more: destroy both, or what is left.
    Bury(ConnectionId, Option<QueuePair>),
    /// The lane does not work any more: the next queue gets another one.
    Broken(LaneId),
    /// What a reactor needs no more: destroying it may take its time, which it is not to take from a reactor.
    Destroy(Remains),
    /// These are the media that devices of the target consist of.
    Lend(Vec<Arc<SharedMemory>>),
    /// Cease to listen anywhere.
    Shutdown,
    /// The thread is to end.
    Stop,
}

/// A device as its users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Its ports that carry traffic, and those that do not.
    pub ports: Vec<PortReport>,
    /// Queue pairs that it has.
    pub queue_pairs: usize,
    /// It was removed, and has not come back.
    pub removed: bool,
}

/// A port of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortReport {
    /// Its number, counted from 1.
    pub number: u8,
    /// It carries traffic.
    pub active: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What has been counted of a device on a reactor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCounters {
    /// The device's name.
    pub device: String,
    /// The reactor's index.
    pub reactor: usize,
    /// Since the start.
    pub values: CounterValues,
}

impl Seat {
    /// A queue is served here.
    pub(crate) fn joined(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A queue that was served is gone.
    pub(crate) fn left(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn new(
        config: RdmaConfig,
        arena: Arena,
        placement: Placement,
        reactors: &[Handle],
    ) -> Result<Shared, RdmaError> {
        let seats = reactors.iter().map(|handle| Seat {
            notes: Notes::new(handle.clone()),
            connections: AtomicUsize::new(0),
        });
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| RdmaError::Thread(error.into()))?;
        Ok(Shared {
            config: config.clamped(),
            arena,
            placement,
            seats: seats.collect(),
            orders: Mutex::default(),
            bell,
            counted: Mutex::default(),
            devices: Mutex::default(),
        })
    }

    /// Gives the manager something to do.
    pub(crate) fn order(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        // It can only fail by being full of rings that nobody has heard yet.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Takes what there is to do. The manager's.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        let mut rings = [0; 8];
        // Nothing to read: nobody has rung.
        let _ = rustix::io::read(&self.bell, &mut rings);
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leaves a note for a reactor's transport.
    pub(crate) fn note(&self, reactor: usize, note: Note) {
        if let Some(seat) = self.seats.get(reactor) {
            seat.notes.leave(note);
        }
    }

    /// The counters of a device on a reactor, which go on if the device was there before.
    pub(crate) fn counters(&self, device: &str, reactor: usize) -> Arc<Counters> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counted.iter().find(|it| it.device == device && it.reactor == reactor);
        if let Some(known) = known {
            return Arc::clone(&known.counters);
        }
        let counters = Arc::<Counters>::default();
        let entry = Counted { device: device.to_owned(), reactor, counters: counters.clone() };
        counted.push(entry);
        counters
    }

    /// Publishes what devices there are.
    pub(crate) fn publish(&self, devices: Vec<DeviceReport>) {
        *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = devices;
    }
}

impl RdmaNetwork {
    /// The transport for these reactors, in the order of their indices, over memory of `arena`, which has all its slabs
    /// already; `placement` is of the same reactors. Each of them then gets its
    /// [`RdmaTransport`](crate::RdmaTransport). Its manager runs on a thread of its own until [`RdmaNetwork::stop`].
    ///
    /// # Errors
    /// If RDMA does not work on this machine.
    pub fn start(
        config: RdmaConfig,
        library: Library,
        arena: Arena,
        placement: Placement,
        reactors: &[Handle],
    ) -> Result<RdmaNetwork, RdmaError> {
        let (network, mut manager) =
            RdmaNetwork::stepped(config, library, arena, placement, reactors)?;
        thread::Builder::new()
            .name("rdma-manager".to_owned())
            .spawn(move || manager.run())
            .map_err(RdmaError::Thread)?;
        Ok(network)
    }

    /// The same without the thread: whoever asked steps the manager.
    ///
    /// # Errors
    /// As [`RdmaNetwork::start`].
    pub fn stepped(
        config: RdmaConfig,
        library: Library,
        arena: Arena,
        placement: Placement,
        reactors: &[Handle],
    ) -> Result<(RdmaNetwork, Manager), RdmaError> {
        let shared = Arc::new(Shared::new(config, arena, placement, reactors)?);
        let manager = Manager::new(Arc::clone(&shared), library)?;
        Ok((RdmaNetwork { shared }, manager))
    }

    /// The configuration, as it is used.
    pub fn config(&self) -> &RdmaConfig {
        &self.shared.config
    }

    /// Takes an address, the unspecified one for all. An address in use is tried again for `patience`. Hosts are admitted
    /// from [`RdmaNetwork::admit`] on. **Blocks.** A device that comes and goes takes the listener along: it is there whenever the
    /// device is.
    ///
    /// # Errors
    /// [`BindError`], for example if no RDMA device has the address.
    pub fn bind(&self, address: SocketAddr, patience: Duration) -> Result<SocketAddr, BindError> {
        let (reply, answer) = mpsc::channel();
        self.shared.order(Order::Bind(address, patience, reply));
        answer.recv().unwrap_or_else(|_| {
            let source = verbs::VerbsError::Misuse("the manager of connections has ended");
            Err(BindError { address, source })
        })
    }

    /// Admits hosts that come by this address from now on.
    pub fn admit(&self, address: SocketAddr) {
        self.shared.order(Order::Admit(address));
    }

    /// Ceases to listen there soon; connections stay.
    pub fn unlisten(&self, address: SocketAddr) {
        self.shared.order(Order::Unlisten(address));
    }

    /// The memory that devices of the target consist of, all of it. It is registered with every RDMA device, which sends it without a copy from
    /// then on; all its pages are pinned by that.
    pub fn lend(&self, media: Vec<Arc<SharedMemory>>) {
        self.shared.order(Order::Lend(media));
    }

    /// Ceases to listen, and ends every queue once it has sent what is queued on it. [`RdmaNetwork::connections`] tells
    /// when that is done.
    pub fn shutdown(&self) {
        self.shared.order(Order::Shutdown);
        for seat in &self.shared.seats {
            seat.notes.leave(Note::Shutdown);
        }
    }

    /// Ends the manager's thread. Connections that are still there get stuck.
    pub fn stop(&self) {
        self.shared.order(Order::Stop);
    }

    /// Queues being served.
    pub fn connections(&self) -> usize {
        self.shared.seats.iter().map(|seat| seat.connections.load(Ordering::Relaxed)).sum()
    }

    /// What has been counted, by device and reactor; devices that are gone keep their counters.
    pub fn counters(&self) -> Vec<DeviceCounters> {
        let counted = self.shared.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let each = counted.iter().map(|it| DeviceCounters {
            device: it.device.clone(),
            reactor: it.reactor,
            values: it.counters.values(),
        });
        each.collect()
    }

    /// Everything counted together.
    pub fn total(&self) -> CounterValues {
        let each = self.counters().into_iter();
        each.fold(CounterValues::default(), |sum, it| sum.plus(&it.values))
    }

    /// The devices in use.
    pub fn devices(&self) -> Vec<DeviceReport> {
        self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for RdmaNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaNetwork")
            .field("reactors", &self.shared.seats.len())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
