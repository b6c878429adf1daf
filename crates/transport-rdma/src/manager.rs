//! The manager of connections: everything about RDMA that may block, on a thread of its own.
//!
//! ```text
//!   request --judge--> reject with the specification's code   (once its listener admits hosts: see `early`)
//!              |
//!              +--> queue pair, prepared --Note::Serve--> reactor --Order::Accept--> accept --> established
//!                                                           |  ^
//!                                       Order::End: disconnect  Note::Over, Note::Ended, Note::LastReceive
//!                                                           |
//!                                       Order::Bury: destroy both
//! ```
//!
//! A queue pair is known at its reactor before the host is told that it may send. One that ends is left by its reactor, which posts
//! nothing more, flushed by the manager (it fails the queue pair), emptied by its reactor, and destroyed by the manager. The manager waits for nobody: it
//! takes orders, events of the connection manager and events of devices as they come.
//!
//! Rejected: letting rdma_cm own the queue pairs (see [`verbs`]); accepting first and telling the reactor then (its
//! completions would come before it knows what they are).

mod adapter;
mod early;
mod listener;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use memory::SharedMemory;
use nvme::fabrics::CNTLID_MAX;
use nvme::rdma::{Accept, Reject, RejectStatus, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, info, warn};
use verbs::{
    AsyncEvent, Connection, ConnectionId, Device, Event, EventChannel, Kind, Library, Parameters,
    Wishes,
};
use zerocopy::IntoBytes;

use crate::error::RdmaError;
use crate::lane::lane_of;
use crate::network::{Arrival, Note, Order, Shared};
use adapter::{Adapter, AdapterId, Berth};
use early::{Caller, Early};
use listener::{Door, Listeners};

/// Events of each kind taken in a turn.
const EVENTS_PER_TURN: usize = 64;
/// How long a device that turned out to be of no use is not tried again: registering memory up to where it fails takes its time.
const UNUSABLE: Duration = Duration::from_secs(10);
/// The most commands that a host may announce for a queue.
const COMMANDS_MOST: u32 = 4096;

/// See the module.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
    library: Library,
    // Connections go before the channel that they are of.
    links: HashMap<ConnectionId, Link>,
    early: Early,
    listeners: Listeners,
    adapters: Vec<Adapter>,
    /// Devices that could not be used: when that was, and why.
    unusable: HashMap<String, (Instant, String)>,
    events: EventChannel,
    /// What devices of the target consist of.
    media: Vec<Weak<SharedMemory>>,
    next_lane: u32,
    next_adapter: u32,
    stopped: bool,
}

/// A connection, from its request to its burial.
#[derive(Debug)]
struct Link {
    connection: Connection,
    berth: Berth,
    crqsize: u16,
    reads: u8,
    /// RDMA reads of the host's that we answer at a time.
    answers: u8,
    /// The reactor has been told that it is over.
    over: bool,
}

/// Why a request is refused: the specification's code, and what the log says.
struct Refusal(RejectStatus, String);

impl Manager {
    pub(crate) fn new(shared: Arc<Shared>, library: Library) -> Result<Manager, RdmaError> {
        let events = EventChannel::new(&library).map_err(RdmaError::ConnectionManager)?;
        Ok(Manager {
            early: Early::new(shared.config.admission),
            shared,
            library,
            links: HashMap::new(),
            listeners: Listeners::default(),
            adapters: Vec::new(),
            unusable: HashMap::new(),
            events,
            media: Vec::new(),
            next_lane: 0,
            next_adapter: 0,
            stopped: false,
        })
    }

    /// Works until it is told to stop.
    pub(crate) fn run(&mut self) {
        while !self.stopped {
            if !self.turn() {
                self.sleep();
            }
        }
    }

    /// Does what there is to do, without waiting for anything; whether there was.
    pub fn turn(&mut self) -> bool {
        let mut worked = self.take_orders();
        worked |= self.answer_early();
        worked |= self.take_events();
        worked |= self.take_device_events();
        worked |= self.listeners.retry(&self.events);
        if worked {
            self.open_listened_devices();
            self.shared.publish(self.adapters.iter().map(Adapter::report).collect());
            self.listeners.answer();
        }
        worked
    }

    /// Until something comes, a listener is to be tried again, or a host has waited for one long enough.
    fn sleep(&self) {
        let next = self.listeners.retry_in().into_iter().chain(self.early.due_in()).min();
        let timeout = next.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let devices: Vec<_> = self.adapters.iter().map(Adapter::device).collect();
        let sources = [self.shared.bell.as_fd(), self.events.as_fd()];
        let sources = sources.into_iter().chain(devices.iter().map(|device| device.as_fd()));
        let mut sources: Vec<_> =
            sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)).collect();
        // A signal, or no memory for a moment: looked again.
        if poll(&mut sources, timeout.as_ref()).is_err() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn take_orders(&mut self) -> bool {
        let orders = self.shared.take_orders();
        let worked = !orders.is_empty();
        for order in orders {
            match order {
                Order::Bind(address, patience, reply) => {
                    self.listeners.bind(address, patience, reply, &self.events);
                }
                Order::Admit(address) => self.listeners.admit(address),
                Order::Unlisten(address) => self.listeners.remove(address),
                Order::Accept(id) => self.accept(id),
                Order::Refuse(id, pair) => {
                    drop(pair);
                    if let Some(link) = self.links.remove(&id) {
                        reject(&link.connection, RejectStatus::NoResources);
                        self.leave(&link);
                    }
                }
                Order::End(id) => {
                    if let Some(link) = self.links.get_mut(&id) {
                        // Whoever began: everything posted is flushed. The host has ended it already, or the device is gone, if it
                        // fails.
                        let _ = link.connection.disconnect();
                        self.shared.note(link.berth.reactor, Note::Ended(id));
                    }
                }
                Order::Bury(id, pair) => {
                    drop(pair);
                    if let Some(link) = self.links.remove(&id) {
                        self.leave(&link);
                    }
                }
                Order::Broken(lane) => {
                    for adapter in &mut self.adapters {
                        adapter.close_lane(lane, &self.shared);
                    }
                }
                Order::Destroy(remains) => drop(remains),
                Order::Lend(media) => self.lend(media),
                Order::Shutdown => self.listeners.clear(),
                Order::Stop => self.stopped = true,
            }
        }
        worked
    }

    /// Registers media that are new with all devices.
    fn lend(&mut self, media: Vec<Arc<SharedMemory>>) {
        self.media.retain(|known| media.iter().any(|medium| known.as_ptr() == Arc::as_ptr(medium)));
        for medium in media {
            if !self.media.iter().any(|known| known.as_ptr() == Arc::as_ptr(&medium)) {
                for adapter in &self.adapters {
                    adapter.lend(&medium);
                }
                self.media.push(Arc::downgrade(&medium));
            }
        }
    }

    /// A connection's place with its device is free again.
    fn leave(&mut self, link: &Link) {
        let of_it = |adapter: &&mut Adapter| adapter.id() == link.berth.adapter;
        if let Some(adapter) = self.adapters.iter_mut().find(of_it) {
            adapter.leave(&link.berth, link.connection.id(), &self.shared);
        }
    }

    fn take_events(&mut self) -> bool {
        for taken in 0..EVENTS_PER_TURN {
            match self.events.next_event() {
                Ok(Some(event)) => self.event(event),
                Ok(None) => return taken > 0,
                Err(error) => {
                    warn!("RDMA connections cannot be managed: {error}");
                    return false;
                }
            }
        }
        true
    }

    fn event(&mut self, event: Event) {
        let Event { connection: id, kind, private_data } = event;
        match kind {
            Kind::ConnectRequest { listener, connection, wishes } => {
                let caller = Caller { listener, connection, wishes, private_data };
                match self.listeners.door(listener) {
                    Door::Shut => {
                        if let Some(caller) = self.early.keep(caller) {
                            self.answer(caller);
                        }
                    }
                    Door::Open | Door::Gone => self.answer(caller),
                }
            }
            Kind::Established => debug!("a connection is established"),
            Kind::Disconnected | Kind::Failed(_) | Kind::Rejected(_) => self.over(id),
            Kind::DeviceRemoved => {
                self.listeners.device_removed(id);
                self.over(id);
            }
            _ => {}
        }
    }

    /// Answers those who have waited for their listener; whether there were any.
    fn answer_early(&mut self) -> bool {
        let due = self.early.take_due(&self.listeners);
        let worked = !due.is_empty();
        for caller in due {
            self.answer(caller);
        }
        worked
    }

    /// Judges a request: either it gets its queue pair, or it is refused.
    fn answer(&mut self, caller: Caller) {
        let peer = caller.connection.peer_address();
        if let Err((connection, Refusal(status, why))) = self.request(caller) {
            let peer = peer.map_or_else(String::new, |peer| format!("{peer}: "));
            info!("{peer}a connection is refused: {why}");
            reject(&connection, status);
        }
    }

    /// The connection is over: its reactor is told, once. It may be posting, so the queue pair is left alone until it orders the end.
    fn over(&mut self, id: ConnectionId) {
        self.early.forget(id);
        if let Some(link) = self.links.get_mut(&id)
            && !std::mem::replace(&mut link.over, true)
        {
            self.shared.note(link.berth.reactor, Note::Over(id));
        }
    }

    /// Judges a request for a connection, and makes its queue pair.
    fn request(&mut self, caller: Caller) -> Result<(), (Connection, Refusal)> {
        let Caller { listener, connection, wishes, private_data } = caller;
        let no_resources = |why: String| Refusal(RejectStatus::NoResources, why);
        match self.listeners.door(listener) {
            Door::Open => {}
            Door::Shut => {
                return Err((connection, no_resources("nobody is admitted yet".to_owned())));
            }
            Door::Gone => {
                return Err((connection, no_resources("its listener is gone".to_owned())));
            }
        }
        let request = match judge(private_data.bytes(), wishes) {
            Ok(request) => request,
            Err(status) => return Err((connection, Refusal(status, status.to_string()))),
        };
        let addresses = connection.local_address().zip(connection.peer_address());
        let Some((local, peer)) = addresses else {
            return Err((connection, no_resources("it has no addresses".to_owned())));
        };
        let made = self.seat(&connection, &request, wishes, local, peer);
        let (mut arrival, berth) = match made {
            Ok(made) => made,
            Err(why) => return Err((connection, no_resources(why))),
        };
        let id = connection.id();
        arrival.connection = id;
        let link = Link {
            connection,
            crqsize: arrival.depth,
            reads: arrival.reads,
            answers: wishes.responder_resources,
            over: false,
            berth,
        };
        let reactor = link.berth.reactor;
        self.links.insert(id, link);
        self.shared.note(reactor, Note::Serve(arrival));
        Ok(())
    }

    /// Finds a reactor and makes a queue pair there.
    fn seat(
        &mut self,
        connection: &Connection,
        request: &Request,
        wishes: Wishes,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<(Arrival, Berth), String> {
        let device = connection.device().map_err(|error| error.to_string())?;
        let device = device.ok_or_else(|| "it has no device".to_owned())?;
        let adapter = self.adapter(&device)?;
        let place = self.shared.placement.place(peer.ip());
        let place = place.ok_or_else(|| "there is no reactor".to_owned())?;
        let commands = request.commands().min(COMMANDS_MOST);
        let wanted = commands.min(request.hrqsize.get().into());
        let shared = Arc::clone(&self.shared);
        let Some(adapter) = self.adapters.get_mut(adapter) else {
            return Err("the device is gone".to_owned());
        };
        let reactor = place.reactor();
        let made = adapter.queue_pair(reactor, wanted, wishes.initiator_depth, &shared, || {
            self.next_lane = self.next_lane.wrapping_add(1);
            self.next_lane
        });
        let made = made.map_err(|error| error.to_string())?;
        if let Err(error) = connection.prepare(&made.pair) {
            adapter.leave(&made.berth, connection.id(), &shared);
            return Err(error.to_string());
        }
        adapter.connected(&made.berth, connection.id());
        let arrival = Arrival {
            lane: made.berth.lane,
            connection: connection.id(),
            pair: made.pair,
            place,
            local,
            peer,
            depth: made.depth,
            commands,
            reads: made.reads,
        };
        Ok((arrival, made.berth))
    }

    /// The reactor knows the queue pair: the host may send.
    fn accept(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get(&id) else { return };
        let granted = Accept::new(link.crqsize);
        let most = self.adapters.iter().find(|adapter| adapter.id() == link.berth.adapter);
        let most = most.map_or(0, |adapter| adapter.device().attributes().max_qp_rd_atom);
        let parameters = Parameters {
            private_data: granted.as_bytes(),
            responder_resources: link.answers.min(most),
            initiator_depth: link.reads,
            // A host has a receive for the answer before it sends a command. One that has none would otherwise keep what is
            // sent to it, and what was lent for that, for ever.
            own_rnr_retries: 6,
            ..Parameters::default()
        };
        if let Err(error) = link.connection.accept(&parameters) {
            debug!("a connection could not be accepted: {error}");
            self.over(id);
        }
    }

    /// The adapter of a device, made unless it is there: its place among the adapters. Or why there is none, which is found out
    /// anew every [`UNUSABLE`] at most.
    fn adapter(&mut self, device: &Device) -> Result<usize, String> {
        let known = self.adapters.iter().position(|adapter| adapter.device() == device);
        if let Some(known) = known {
            return Ok(known);
        }
        self.unusable.retain(|_, (since, _)| since.elapsed() < UNUSABLE);
        if let Some((_, why)) = self.unusable.get(device.name()) {
            return Err(why.clone());
        }
        self.next_adapter += 1;
        let id = AdapterId(self.next_adapter);
        let adapter = match Adapter::new(id, device, &self.shared, &self.events) {
            Ok(adapter) => adapter,
            Err(error) => {
                let (name, why) = (device.name(), error.to_string());
                warn!("RDMA device {name} cannot be used: {why}");
                self.unusable.insert(name.to_owned(), (Instant::now(), why.clone()));
                return Err(why);
            }
        };
        info!("RDMA device {}", adapter.describe());
        for medium in self.media.iter().filter_map(Weak::upgrade) {
            adapter.lend(&medium);
        }
        self.adapters.push(adapter);
        Ok(self.adapters.len() - 1)
    }

    /// Registers memory with the devices that are listened on before the first host comes by them.
    fn open_listened_devices(&mut self) {
        for device in self.listeners.unopened_devices(&self.library) {
            // What stands in the way has been said.
            let _ = self.adapter(&device);
        }
    }

    fn take_device_events(&mut self) -> bool {
        let mut worked = false;
        for index in 0..self.adapters.len() {
            for _ in 0..EVENTS_PER_TURN {
                let Some(adapter) = self.adapters.get_mut(index) else { break };
                let Ok(Some(event)) = adapter.device().next_event() else { break };
                worked = true;
                self.device_event(index, event);
            }
        }
        let gone: Vec<_> = self.adapters.extract_if(.., |adapter| adapter.is_gone()).collect();
        for adapter in gone {
            warn!("RDMA device {} is gone: its queues end", adapter.device().name());
            adapter.close(&self.shared);
            for id in adapter.connections() {
                self.over(id);
            }
        }
        worked
    }

    fn device_event(&mut self, index: usize, event: AsyncEvent) {
        let Some(adapter) = self.adapters.get_mut(index) else { return };
        let name = adapter.device().name().to_owned();
        match event {
            AsyncEvent::LastWqeReached { qp_num } => {
                if let Some((id, reactor)) = adapter.connection(qp_num) {
                    self.shared.note(reactor, Note::LastReceive(id));
                }
            }
            AsyncEvent::QueuePairError { qp_num } => {
                if let Some((id, _)) = adapter.connection(qp_num) {
                    self.over(id);
                }
            }
            AsyncEvent::CompletionQueueError { token }
            | AsyncEvent::SharedReceiveQueueError { token } => {
                warn!("RDMA device {name}: a queue that its connections share is broken: they end");
                adapter.close_lane(lane_of(token), &self.shared);
            }
            AsyncEvent::PortError(port) => warn!("RDMA device {name}: port {port} is down"),
            AsyncEvent::PortActive(port) => info!("RDMA device {name}: port {port} is up"),
            // Not asked for, or nothing that changes anything; of a removed device the state is looked at.
            _ => {}
        }
    }
}

/// Whether a host's private data and wishes can be met. How many RDMA reads it would send (ORD) is none of our concern: no key is
/// given to it, and it is granted what the device can.
fn judge(private_data: &[u8], wishes: Wishes) -> Result<Request, RejectStatus> {
    let request = Request::parse(private_data)?;
    // The last one of a controller is FFFEh.
    if request.qid.get() == u16::MAX {
        return Err(RejectStatus::InvalidQueueId);
    }
    // Whether the controller is there is for the target to say, upon Connect. An admin queue should name none, but SPDK's hosts
    // name the one that they had when they connect again.
    if request.qid.get() != 0 && request.cntlid.get() > CNTLID_MAX {
        return Err(RejectStatus::InvalidCntlid);
    }
    if request.hsqsize.get() == 0 {
        return Err(RejectStatus::InvalidHsqsize);
    }
    if request.hrqsize.get() == 0 {
        return Err(RejectStatus::InvalidHrqsize);
    }
    // Without RDMA reads no data of the host's could be fetched.
    if wishes.initiator_depth == 0 {
        return Err(RejectStatus::InvalidIrd);
    }
    Ok(request)
}

fn reject(connection: &Connection, status: RejectStatus) {
    // The host is gone already: it need not be told.
    let _ = connection.reject(Reject::new(status).as_bytes());
}
