//! A device in use: its protection domain, the registered memory, and what each reactor has of it.
//!
//! # What fits a completion queue
//! A completion queue that overflows takes all its queue pairs down. So every queue pair is given its share when it is made: in one
//! for what it sends as many places as work requests may be posted to it, signalled or not, and in one for receives as many as it has of its
//! own. The receives of a lane's shared queue all end in its first completion queue, which has room for them and nothing else. What does
//! not fit gets a further completion queue, and if the device has none left, no connection.
//!
//! # One thread's queue pairs
//! A lane's queue pairs are made with a domain of its reactor's own where the device has such ([`Domain::for_thread`]): its driver takes
//! no locks, and reactors share no doorbells. That asks for no two threads to call on a queue pair at the same time. The reactor
//! posts between [`Note::Serve`], which hands the queue pair over, and `Order::End`, after which it posts nothing more. The manager makes and
//! connects it before the one; it fails it after the other, and destroys it after `Order::Bury` has given it back. The one call between is
//! `Order::Accept`'s, when the reactor has posted its receives and nothing has come that it could answer. A host that goes away is hence
//! told to the reactor first, which orders the end.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use memory::{SLAB_SIZE, SharedMemory};
use tracing::{debug, warn};
use verbs::{
    Access, Capacity, CompletionChannel, CompletionQueue, Connection, ConnectionId, Device, Domain,
    EventChannel, QueuePair, RegisteredArena, SharedReceiveQueue, VerbsError,
};

use crate::config::sends;
use crate::lane::{Ends, LaneId, LaneParts, token};
use crate::network::{DeviceReport, Note, PortReport, Shared};
use crate::receives::Receives;

/// Bytes of a response, which goes inline where the device can.
const RESPONSE_BYTES: u32 = 16;

/// Names an adapter, never used twice: a device that comes back is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AdapterId(pub(super) u32);

/// A queue pair's place: on which device, reactor, and completion queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Berth {
    pub(super) adapter: AdapterId,
    pub(super) reactor: usize,
    pub(super) lane: LaneId,
    number: u32,
    sends: Places,
    /// Of its own receives.
    receives: Option<Places>,
}

/// Places in a completion queue of a lane.
#[derive(Debug, Clone, Copy)]
struct Places {
    queue: usize,
    count: u32,
}

impl Berth {
    fn places(&self) -> impl Iterator<Item = Places> {
        std::iter::once(self.sends).chain(self.receives)
    }
}

/// A queue pair just made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) pair: QueuePair,
    pub(super) berth: Berth,
    /// Commands that it has room for.
    pub(super) depth: u16,
    /// RDMA reads that may be on their way at a time.
    pub(super) reads: u8,
}

/// Places of a completion queue of this device.
fn completions(device: &Device, shared: &Shared) -> u32 {
    shared.config.completions.min(device.attributes().max_cqe)
}

/// An identifier bound to the first address of a device that can be bound to.
fn watch(device: &Device, events: &EventChannel) -> Option<Connection> {
    let ports = (1..=device.attributes().ports).filter_map(|it| Some((it, device.port(it).ok()?)));
    let gids = ports.flat_map(|(number, port)| {
        let last = u16::try_from(port.gids).unwrap_or(u16::MAX);
        (0..last).filter_map(move |index| device.gid(number, index).ok())
    });
    let bound = |gid: Ipv6Addr| {
        let connection = Connection::new(events).ok()?;
        connection.bind(SocketAddr::new(gid.to_canonical(), 0)).ok()?;
        let there = connection.device().ok()?.as_ref() == Some(device);
        there.then_some(connection)
    };
    gids.filter(|gid| !gid.is_unspecified()).find_map(bound)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Adapter {
    id: AdapterId,
    lanes: Vec<Lane>,
    connections: HashMap<u32, (ConnectionId, usize)>,
    memory: Arc<RegisteredArena>,
    domain: Domain,
    device: Device,
    /// Where rdma_cm tells of the device's removal, which not every device reports itself, though nobody is connected and the
    /// listeners are for all addresses. None: it has no address.
    _watch: Option<Connection>,
    max_message: u32,
    /// Every reactor has a shared receive queue here, or none has: how much data goes into a capsule is said once per controller,
    /// whose queues are on several reactors.
    shares_receives: bool,
}

/// A reactor's lane, as the manager knows it.
#[derive(Debug)]
struct Lane {
    id: LaneId,
    reactor: usize,
    /// Of its queue pairs.
    domain: Domain,
    channel: CompletionChannel,
    receives: Option<SharedReceiveQueue>,
    queues: Vec<CompletionPlaces>,
}

#[derive(Debug)]
struct CompletionPlaces {
    queue: CompletionQueue,
    of: Ends,
    free: u32,
}

impl CompletionPlaces {
    fn is_free(&self) -> bool {
        self.free == self.queue.capacity()
    }
}

impl Adapter {
    /// Registers the whole arena with the device.
    pub(super) fn new(
        id: AdapterId,
        device: &Device,
        shared: &Shared,
        events: &EventChannel,
    ) -> Result<Adapter, VerbsError> {
        if device.attributes().max_sge < 2 {
            return Err(VerbsError::Misuse("it receives into one piece of memory only"));
        }
        let slabs = u32::try_from(shared.arena.slabs().len()).unwrap_or(u32::MAX);
        if device.attributes().max_mr < slabs || device.attributes().max_mr_size < SLAB_SIZE as u64
        {
            return Err(VerbsError::Misuse(
                "the pools need more memory regions, of 2 MiB, than it has",
            ));
        }
        let domain = Domain::new(device)?;
        let memory = Arc::new(RegisteredArena::new(&domain, &shared.arena, Access::LOCAL_WRITE)?);
        let ports = 1..=device.attributes().ports;
        let longest = ports.filter_map(|port| device.port(port).ok()).map(|it| it.max_message);
        // What a device does not say it does as every device does.
        let max_message = longest.min().filter(|&most| most > 0).unwrap_or(1 << 20);
        let attributes = device.attributes();
        // A capsule is received into two pieces of memory.
        let queues = if attributes.max_srq_sge < 2 { 0 } else { attributes.max_srq };
        let most = usize::try_from(queues).unwrap_or(usize::MAX);
        Ok(Adapter {
            id,
            lanes: Vec::new(),
            connections: HashMap::new(),
            memory,
            domain,
            device: device.clone(),
            _watch: watch(device, events),
            max_message,
            shares_receives: most >= shared.seats.len(),
        })
    }

    pub(super) fn id(&self) -> AdapterId {
        self.id
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn is_gone(&self) -> bool {
        self.device.is_removed()
    }

    /// One line for the log.
    pub(super) fn describe(&self) -> String {
        let receives = if self.shares_receives { "shared receives" } else { "no shared receives" };
        format!("{}: {} ports, {receives}", self.device.name(), self.device.attributes().ports)
    }

    /// Has the device send this medium without a copy, if it can.
    pub(super) fn lend(&self, medium: &Arc<SharedMemory>) {
        if let Err(error) = self.memory.register_medium(medium) {
            let (name, bytes) = (self.device.name(), medium.len());
            warn!("RDMA device {name}: reads of a RAM device of {bytes} bytes are copied: {error}");
        }
    }

    pub(super) fn report(&self) -> DeviceReport {
        let port = |number| {
            let port = self.device.port(number).ok()?;
            Some(PortReport { number, active: port.active, mtu: port.mtu })
        };
        DeviceReport {
            name: self.device.name().to_owned(),
            ports: (1..=self.device.attributes().ports).filter_map(port).collect(),
            queue_pairs: self.connections.len(),
            removed: self.is_gone(),
        }
    }

    /// Makes a queue pair for a host that wants to have `wanted` commands outstanding and answers `reads` RDMA reads at a
    /// time. `number` numbers a new lane.
    pub(super) fn queue_pair(
        &mut self,
        reactor: usize,
        wanted: u32,
        reads: u8,
        shared: &Shared,
        number: impl FnOnce() -> u32,
    ) -> Result<Made, VerbsError> {
        let attributes = self.device.attributes();
        let most = attributes.max_qp_wr;
        let reads = reads.min(attributes.max_qp_init_rd_atom).max(1);
        let depth = wanted.min(shared.config.queue_depth.into()).min(most);
        let sends = sends(depth).min(most);
        let index = match self.lanes.iter().position(|lane| lane.reactor == reactor) {
            Some(index) => index,
            None => self.open_lane(LaneId(number()), reactor, shared)?,
        };
        let (id, name) = (self.id, self.device.name().to_owned());
        let Some(lane) = self.lanes.get_mut(index) else {
            return Err(VerbsError::Misuse("the lane is gone"));
        };
        let own = if lane.receives.is_some() { 0 } else { depth };
        let sent = lane.places(Ends::Sends, sends, &self.device, shared)?;
        let received = match own {
            0 => None,
            own => Some(lane.places(Ends::Receives, own, &self.device, shared)?),
        };
        let first = received.map_or(0, |places| places.queue);
        let (Some(sends_end), Some(receives_end)) =
            (lane.queues.get(sent.queue), lane.queues.get(first))
        else {
            return Err(VerbsError::Misuse("the lane has no completion queue"));
        };
        let make = |inline| {
            let capacity = Capacity { sends, receives: own, pieces: 1, inline };
            let receives = lane.receives.as_ref();
            let (sends, ends) = (&sends_end.queue, &receives_end.queue);
            QueuePair::new(&lane.domain, sends, ends, receives, capacity)
        };
        // Some devices take nothing inline.
        let pair = make(RESPONSE_BYTES).or_else(|_| make(0))?;
        debug!("{name}: queue pair {} with room for {sends} work requests", pair.number());
        let number = pair.number();
        let berth =
            Berth { adapter: id, reactor, lane: lane.id, number, sends: sent, receives: received };
        for places in berth.places() {
            if let Some(queue) = lane.queues.get_mut(places.queue) {
                queue.free = queue.free.saturating_sub(places.count);
            }
        }
        let depth = u16::try_from(depth).unwrap_or(u16::MAX);
        Ok(Made { pair, berth, depth, reads })
    }

    /// Which connection a queue pair belongs to from now on.
    pub(super) fn connected(&mut self, berth: &Berth, id: ConnectionId) {
        self.connections.insert(berth.number, (id, berth.reactor));
    }

    /// The connection of a queue pair, and its reactor.
    pub(super) fn connection(&self, number: u32) -> Option<(ConnectionId, usize)> {
        self.connections.get(&number).copied()
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = ConnectionId> {
        self.connections.values().map(|(id, _)| *id)
    }

    /// A queue pair has been destroyed. Another one may have its number already.
    pub(super) fn leave(&mut self, berth: &Berth, id: ConnectionId, shared: &Shared) {
        if self.connections.get(&berth.number).is_some_and(|(known, _)| *known == id) {
            self.connections.remove(&berth.number);
        }
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == berth.lane) else { return };
        for places in berth.places() {
            if let Some(queue) = lane.queues.get_mut(places.queue) {
                queue.free = queue.free.saturating_add(places.count);
            }
        }
        lane.shrink(shared);
    }

    /// Makes a reactor its lane; its place among the lanes.
    fn open_lane(
        &mut self,
        id: LaneId,
        reactor: usize,
        shared: &Shared,
    ) -> Result<usize, VerbsError> {
        let attributes = self.device.attributes();
        let most = completions(&self.device, shared);
        let channel = CompletionChannel::new(&self.device)?;
        let domain = self.domain.for_thread();
        let count = shared.config.shared_receives.min(attributes.max_srq_wr).min(most / 2);
        let token = token(id, 0);
        let receives = if self.shares_receives && count > 0 {
            Some(SharedReceiveQueue::new(&domain, count, token)?)
        } else {
            None
        };
        let locks = if domain.is_for_thread() { "without locks" } else { "with its locks" };
        debug!("{}: reactor {reactor} uses it {locks}", self.device.name());
        let mut lane = Lane { id, reactor, domain, channel, receives, queues: Vec::new() };
        let capacity = if lane.receives.is_some() { count } else { most };
        let completions = lane.add_queue(Ends::Receives, capacity, &self.device)?;
        if let Some(first) = lane.queues.first_mut()
            && lane.receives.is_some()
        {
            first.free = 0;
        }
        let in_capsule = if lane.receives.is_some() {
            shared.config.in_capsule_data
        } else {
            let most = Receives::own_data_bytes(shared.config.queue_depth.into());
            shared.config.in_capsule_data.min(u32::try_from(most).unwrap_or(u32::MAX))
        };
        let parts = LaneParts {
            id,
            name: self.device.name().to_owned(),
            memory: Arc::clone(&self.memory),
            channel: lane.channel.clone(),
            completions,
            receives: lane.receives.clone().map(|queue| (queue, count)),
            in_capsule,
            invalidates: attributes.send_with_invalidate,
            max_message: self.max_message,
            counters: shared.counters(self.device.name(), reactor),
        };
        shared.note(reactor, Note::Open(parts));
        self.lanes.push(lane);
        Ok(self.lanes.len() - 1)
    }

    /// A lane is broken: its queues end, and the next one gets a new lane.
    pub(super) fn close_lane(&mut self, id: LaneId, shared: &Shared) {
        let broken = self.lanes.extract_if(.., |lane| lane.id == id);
        for lane in broken {
            shared.note(lane.reactor, Note::Close(lane.id));
        }
    }

    /// The device is not to be used any more: every reactor gives its lane back.
    pub(super) fn close(&self, shared: &Shared) {
        for lane in &self.lanes {
            shared.note(lane.reactor, Note::Close(lane.id));
        }
    }
}

impl Lane {
    /// Free places in a completion queue; in a new one, if need be.
    fn places(
        &mut self,
        of: Ends,
        count: u32,
        device: &Device,
        shared: &Shared,
    ) -> Result<Places, VerbsError> {
        let fits = |it: &CompletionPlaces| it.of == of && it.free >= count;
        if let Some(queue) = self.queues.iter().position(fits) {
            return Ok(Places { queue, count });
        }
        // One that is too small all the same would stay.
        let capacity = completions(device, shared);
        if capacity < count {
            return Err(VerbsError::Misuse("the device's completion queues are too small"));
        }
        let new = self.add_queue(of, capacity, device)?;
        shared.note(self.reactor, Note::Extend(self.id, new, of));
        Ok(Places { queue: self.queues.len() - 1, count })
    }

    /// Gives the last completion queue back if nobody has a place in it nor in another of its kind, which stays for those who come next.
    fn shrink(&mut self, shared: &Shared) {
        while let [others @ .., last] = &self.queues[..]
            && last.is_free()
            && others.iter().any(|it| it.of == last.of && it.is_free())
        {
            // Its reactor has it still, and sends it here to be destroyed.
            self.queues.pop();
            shared.note(self.reactor, Note::Shrink(self.id));
        }
    }

    fn add_queue(
        &mut self,
        of: Ends,
        capacity: u32,
        device: &Device,
    ) -> Result<CompletionQueue, VerbsError> {
        let reactor = u32::try_from(self.reactor).unwrap_or(0);
        let vector = reactor.checked_rem(device.attributes().completion_vectors).unwrap_or(0);
        let (token, channel) = (token(self.id, self.queues.len()), Some(&self.channel));
        let queue = CompletionQueue::new(device, capacity, token, channel, vector)?;
        self.queues.push(CompletionPlaces { of, free: queue.capacity(), queue: queue.clone() });
        Ok(queue)
    }
}
