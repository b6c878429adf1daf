//! One reactor's transport: the poller that ties completion queues to the shard of the target on its thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memory::Pool;
use nvme::address::TransportType;
use reactor::{EventSource, Instant, Interest, Local, Poller, PollerId, Progress};
use slab::Slab;
use target::{Action, Borrows, PortId, QueueId, QueueInfo, Shard};
use tracing::{debug, warn};
use verbs::{Completion, ConnectionId, SendChain, WorkQueue};

use crate::command::Commands;
use crate::config::sends;
use crate::lane::{Lane, LaneId, LaneParts};
use crate::network::{Arrival, Note, Order, RdmaNetwork, Seat, Shared};
use crate::session::{CloseReason, Flushed, Session, Suspense, Terms, Turn};

/// Completions taken from one completion queue in a turn.
const COMPLETIONS_PER_TURN: usize = 256;
/// How long a reactor that has gone to sleep leaves alone what it sent and nothing depends on.
const SENT_ALONE: Duration = Duration::from_millis(1);
/// How often it is looked what time has done. Everything timed here is timed in seconds.
const TICK: Duration = Duration::from_millis(100);

/// NVMe/RDMA on one reactor. It polls after the shard, whose answers it sends at the turn's end.
pub struct RdmaTransport {
    local: Local,
    shared: Arc<Shared>,
    shard: Rc<RefCell<Shard>>,
    pool: Pool,
    port: PortId,
    source: EventSource,
    // Before the lanes: queue pairs are destroyed before what they receive into.
    sessions: Slab<Served>,
    lanes: Slab<Lane>,
    connections: HashMap<ConnectionId, usize>,
    /// The session of each queue of the target, by the queue's slot.
    by_queue: Vec<Option<(QueueId, usize)>>,
    commands: Commands,
    chain: SendChain,
    completions: Box<[Completion]>,
    /// Sessions with something to post, and those that are closing.
    dirty: Vec<usize>,
    closing: Vec<usize>,
    next_tick: Instant,
    /// Until when what it has sent, and nothing depends on, is left alone while it sleeps: completion queues for sends are not armed.
    /// Set by the first sleep since any of that ended.
    reap_at: Option<Instant>,
    /// How long it may sleep.
    sleep_until: Option<Instant>,
    stopping: bool,
}

/// A session and the lane that it belongs to.
#[derive(Debug)]
struct Served {
    session: Session,
    lane: usize,
    /// It is in the list of those that are closing.
    leaving: bool,
}

/// Who may use what in a turn.
struct Parts<'a> {
    shard: &'a mut Shard,
    sessions: &'a mut Slab<Served>,
    commands: &'a mut Commands,
    chain: &'a mut SendChain,
    pool: &'a Pool,
    network: &'a Shared,
    dirty: &'a mut Vec<usize>,
    closing: &'a mut Vec<usize>,
    now: Instant,
}

impl Parts<'_> {
    /// Lets `act` work on a session, and notes what became of it.
    fn with(
        &mut self,
        lane: &mut Lane,
        index: usize,
        act: impl FnOnce(&mut Session, &mut Turn<'_>),
    ) {
        let Some(served) = self.sessions.get_mut(index) else { return };
        let mut turn = Turn {
            shard: self.shard,
            lane,
            commands: self.commands,
            chain: self.chain,
            pool: self.pool,
            network: self.network,
            now: self.now,
        };
        let session = &mut served.session;
        act(session, &mut turn);
        if session.dirty && !session.listed {
            session.listed = true;
            self.dirty.push(index);
        }
        if !session.is_open() && !served.leaving {
            served.leaving = true;
            self.closing.push(index);
        }
    }
}

impl RdmaTransport {
    /// Adds the transport of `network` to this reactor, whose `shard` it serves as `port`. To be called on the
    /// reactor's thread, after the shard's own poller was added; `pool` is the shard's.
    pub fn start(
        network: &RdmaNetwork,
        local: &Local,
        shard: Rc<RefCell<Shard>>,
        pool: &Pool,
        port: PortId,
    ) -> PollerId {
        // All that the deepest queue has room for.
        let most = sends(network.shared.config.queue_depth.into());
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        local.add_poller(Box::new(RdmaTransport {
            local: local.clone(),
            shared: Arc::clone(&network.shared),
            shard,
            pool: pool.clone(),
            port,
            source: local.source(),
            sessions: Slab::new(),
            lanes: Slab::new(),
            connections: HashMap::new(),
            by_queue: Vec::new(),
            commands: Commands::default(),
            chain: SendChain::new(most, most),
            completions: vec![Completion::default(); COMPLETIONS_PER_TURN].into_boxed_slice(),
            dirty: Vec::new(),
            closing: Vec::new(),
            next_tick: Instant::ZERO,
            reap_at: None,
            sleep_until: None,
            stopping: false,
        }))
    }

    fn seat(&self) -> Option<&Seat> {
        self.shared.seats.get(self.local.index())
    }

    /// Runs `act` with the lanes and everything else that it may use this turn.
    fn turn<R>(&mut self, act: impl FnOnce(&mut Parts<'_>, &mut Slab<Lane>) -> R) -> R {
        let mut shard = self.shard.borrow_mut();
        let mut parts = Parts {
            shard: &mut shard,
            sessions: &mut self.sessions,
            commands: &mut self.commands,
            chain: &mut self.chain,
            pool: &self.pool,
            network: &self.shared,
            dirty: &mut self.dirty,
            closing: &mut self.closing,
            now: self.local.now(),
        };
        act(&mut parts, &mut self.lanes)
    }

    fn on_session(&mut self, index: usize, act: impl FnOnce(&mut Session, &mut Turn<'_>)) {
        let Some(lane) = self.sessions.get(index).map(|served| served.lane) else { return };
        self.turn(|parts, lanes| {
            if let Some(lane) = lanes.get_mut(lane) {
                parts.with(lane, index, act);
            }
        });
    }

    fn lane_index(&self, id: LaneId) -> Option<usize> {
        self.lanes.iter().find(|(_, lane)| lane.id == id).map(|(index, _)| index)
    }

    /// Does what the manager has asked for; whether it has.
    fn take_notes(&mut self) -> bool {
        let Some(seat) = self.seat() else { return false };
        let notes = seat.notes.take();
        let worked = !notes.is_empty();
        for note in notes {
            match note {
                Note::Open(parts) => self.open(parts),
                Note::Extend(id, queue, of) => {
                    if let Some(lane) = self.lane_index(id).and_then(|it| self.lanes.get_mut(it)) {
                        lane.extend(queue, of);
                    }
                }
                Note::Shrink(id) => {
                    if let Some(lane) = self.lane_index(id).and_then(|it| self.lanes.get_mut(it)) {
                        self.shared.order(Order::Destroy(lane.shrink()));
                    }
                }
                Note::Serve(arrival) => self.serve(arrival),
                Note::Over(connection) => {
                    if let Some(&index) = self.connections.get(&connection) {
                        self.on_session(index, |it, turn| it.close(CloseReason::Over, turn));
                    }
                }
                Note::Ended(connection) => {
                    if let Some(&index) = self.connections.get(&connection) {
                        self.on_session(index, |it, turn| it.was_ended(turn.now));
                    }
                }
                Note::LastReceive(connection) => {
                    if let Some(&index) = self.connections.get(&connection) {
                        self.on_session(index, Session::took_last_receive);
                    }
                }
                Note::Close(id) => self.close_lane(id),
                Note::Shutdown => {
                    self.stopping = true;
                    let all: Vec<_> = self.sessions.iter().map(|(index, _)| index).collect();
                    for index in all {
                        self.on_session(index, |it, turn| it.end(CloseReason::Shutdown, turn));
                    }
                }
            }
        }
        worked
    }

    fn open(&mut self, parts: LaneParts) {
        let taken = self.lanes.iter().map(|(_, lane)| lane.shared_bytes()).sum();
        let lane = Lane::new(parts, &self.pool, taken);
        let index = self.lanes.insert(lane);
        let (Some(lane), Ok(key)) = (self.lanes.get(index), u32::try_from(index)) else { return };
        if let Err(error) =
            self.source.register(lane.descriptor(), key, Interest::READ | Interest::SLEEP)
        {
            warn!("RDMA completions are noticed late on this reactor: {error}");
        }
    }

    /// The lane goes when its last queue has gone and the manager has destroyed it.
    fn close_lane(&mut self, id: LaneId) {
        let Some(index) = self.lane_index(id) else { return };
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.closing = true;
        }
        let of_it = self.sessions.iter().filter(|(_, served)| served.lane == index);
        for session in of_it.map(|(index, _)| index).collect::<Vec<_>>() {
            self.on_session(session, |it, turn| it.close(CloseReason::Over, turn));
        }
    }

    fn drop_closed_lanes(&mut self) {
        let closed = |lanes: &Slab<Lane>| {
            lanes.iter().find(|(_, lane)| lane.may_go()).map(|(index, _)| index)
        };
        while let Some(index) = closed(&self.lanes) {
            let lane = self.lanes.remove(index);
            if let Ok(key) = u32::try_from(index) {
                // The descriptor leaves the epoll instance when it is closed, at the latest.
                let _ = self.source.deregister(lane.descriptor(), key);
            }
            self.shared.order(Order::Destroy(lane.into_remains()));
        }
    }

    /// Seats a queue pair that is about to be connected.
    fn serve(&mut self, arrival: Arrival) {
        let Arrival { lane, connection, pair, place, local, peer, depth, commands, reads } =
            arrival;
        let most = self.shared.config.max_connections;
        let refuse = |pair| self.shared.order(Order::Refuse(connection, pair));
        let index = self.lane_index(lane).filter(|_| !self.stopping && self.sessions.len() < most);
        let open = index.and_then(|index| self.lanes.get(index).filter(|lane| !lane.closing));
        let (Some(index), Some(lane)) = (index, open) else { return refuse(Some(pair)) };
        let in_capsule_limit = lane.in_capsule;
        let borrows = Borrows::Registered(lane.memory.id());
        let transport = TransportType::Rdma;
        let info = QueueInfo { transport, local, peer, in_capsule_limit, borrows };
        let work = match WorkQueue::new(pair) {
            Ok(work) => work,
            Err(error) => {
                warn!("{peer}: {error}");
                return refuse(None);
            }
        };
        let Some(queue) = self.shard.borrow_mut().open_queue(self.port, info) else {
            return refuse(work.into_pair());
        };
        let terms = Terms { connection, peer, place, depth, commands, reads };
        let entry = self.sessions.vacant_key();
        let made = self.turn(|parts, lanes| {
            let lane = lanes.get_mut(index)?;
            let mut turn = Turn {
                shard: parts.shard,
                lane,
                commands: parts.commands,
                chain: parts.chain,
                pool: parts.pool,
                network: parts.network,
                now: parts.now,
            };
            match Session::new(entry, queue, terms, work, &mut turn) {
                Ok(session) => Some(session),
                Err(error) => {
                    warn!("{peer}: {error}");
                    parts.shard.close_queue(queue);
                    parts.network.order(Order::Refuse(connection, None));
                    None
                }
            }
        });
        let Some(session) = made else { return };
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.sessions.insert(session.number(), entry);
            lane.counters.opened.add(1);
        }
        let slot = usize::try_from(queue.slot).unwrap_or(usize::MAX);
        if slot >= self.by_queue.len() {
            self.by_queue.resize(slot.saturating_add(1), None);
        }
        if let Some(place) = self.by_queue.get_mut(slot) {
            *place = Some((queue, entry));
        }
        self.connections.insert(connection, entry);
        self.sessions.insert(Served { session, lane: index, leaving: false });
        if let Some(seat) = self.seat() {
            seat.joined();
        }
        debug!("{peer}: a queue of {depth} commands on {local}");
        self.shared.order(Order::Accept(connection));
    }

    /// Takes what has ended on every lane; whether anything had.
    fn poll_lanes(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let pool = self.pool.clone();
        let (mut worked, mut heard) = (false, false);
        self.turn(|parts, lanes| {
            for (_, lane) in lanes.iter_mut() {
                worked |= lane.poll(&mut completions, |lane, completion| {
                    heard |= !completion.is_receive();
                    take(parts, lane, completion, &pool);
                });
            }
        });
        self.completions = completions;
        if heard {
            self.reap_at = None;
        }
        worked
    }

    /// Sees to it that no host keeps the receives of a lane to itself: capsules with data keep theirs until the target has
    /// room for them. When hardly any have been left for a while, others are there, and one host's capsules take more
    /// than half, its queues that have some are ended.
    fn share_receives(&mut self) {
        let (now, patience) = (self.local.now(), self.shared.config.lease);
        for index in 0..self.lanes.capacity() {
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            if lane.is_short_since(now).is_none_or(|since| now.since(since) < patience) {
                continue;
            }
            for session in self.greedy(index) {
                self.on_session(session, |it, turn| it.close(CloseReason::TooManyReceives, turn));
            }
        }
    }

    /// The sessions with capsules in receives of a lane, if they are one host's and it has more than half.
    fn greedy(&self, index: usize) -> Vec<usize> {
        let Some(receives) = self.lanes.get(index).and_then(Lane::receives_now) else {
            return Vec::new();
        };
        let shard = self.shard.borrow();
        let host = |session: usize| shard.host_of(self.sessions.get(session)?.session.queue?);
        let mut hosts = HashMap::<_, usize>::new();
        for session in receives.holders() {
            *hosts.entry(host(session)).or_default() += 1;
        }
        let most = hosts.into_iter().max_by_key(|(_, count)| *count);
        let Some((most, _)) = most.filter(|(_, count)| *count > receives.len() / 2) else {
            return Vec::new();
        };
        let mut here = self.sessions.iter().filter(|(_, served)| served.lane == index);
        if !here.any(|(session, _)| host(session) != most) {
            return Vec::new();
        }
        receives.holders().filter(|session| host(*session) == most).collect()
    }

    /// Does what the target wants; whether it wanted anything.
    fn act(&mut self) -> bool {
        let (by_queue, port) = (std::mem::take(&mut self.by_queue), self.port);
        let worked = self.turn(|parts, lanes| {
            let mut worked = false;
            while let Some(action) = parts.shard.next_action(port) {
                worked = true;
                let queue = action.queue();
                let slot = usize::try_from(queue.slot).unwrap_or(usize::MAX);
                let known = by_queue.get(slot).copied().flatten();
                let Some((_, index)) = known.filter(|(known, _)| *known == queue) else { continue };
                let Some(lane) = parts.sessions.get(index).map(|served| served.lane) else {
                    continue;
                };
                let Some(lane) = lanes.get_mut(lane) else { continue };
                parts.with(lane, index, |session, turn| match action {
                    Action::Receive { request, length, in_capsule, .. } => {
                        session.receive(request, length, in_capsule, turn);
                    }
                    Action::Respond { request, cqe, data, .. } => {
                        session.respond(request, cqe, data);
                    }
                    Action::Resume { .. } => session.resume(turn),
                    Action::Disconnect { reason, .. } => {
                        session.end(CloseReason::Target(reason), turn);
                    }
                });
            }
            worked
        });
        self.by_queue = by_queue;
        worked
    }

    /// Looks what time has done, and lets go of what is over.
    fn watch(&mut self) -> bool {
        let now = self.local.now();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.turn(|parts, lanes| {
                for index in 0..parts.sessions.capacity() {
                    let Some(served) = parts.sessions.get(index) else { continue };
                    if served.session.is_watched()
                        && let Some(lane) = lanes.get_mut(served.lane)
                    {
                        parts.with(lane, index, Session::watch);
                    }
                }
            });
            self.share_receives();
            self.drop_closed_lanes();
        }
        let mut closing = std::mem::take(&mut self.closing);
        let before = closing.len();
        closing.retain(|&index| !self.let_go(index));
        let worked = closing.len() < before;
        self.closing.append(&mut closing);
        worked
    }

    /// Hands a session that is over to the manager; whether it was.
    fn let_go(&mut self, index: usize) -> bool {
        let mut flushed = Flushed::NotYet;
        self.on_session(index, |session, turn| flushed = session.flushed(turn));
        if flushed == Flushed::NotYet {
            return false;
        }
        let Some(Served { session, lane, .. }) = self.sessions.try_remove(index) else {
            return true;
        };
        let (connection, number) = (session.connection, session.number());
        self.connections.remove(&connection);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.sessions.remove(&number);
            lane.counters.closed.add(1);
        }
        let pair = session.into_pair();
        if pair.is_none() {
            warn!("queue pair {number}: the device did not end what was posted");
        }
        self.shared.order(Order::Bury(connection, pair));
        if let Some(seat) = self.seat() {
            seat.left();
        }
        true
    }

    fn post_receives(&mut self) {
        for (_, lane) in &mut self.lanes {
            lane.post_receives(&self.pool);
            if lane.take_broken() {
                self.shared.order(Order::Broken(lane.id));
            }
        }
    }
}

/// One completion.
fn take(parts: &mut Parts<'_>, lane: &mut Lane, completion: &Completion, pool: &Pool) {
    let session = lane.sessions.get(&completion.qp_num()).copied();
    if completion.is_receive() && lane.is_shared() {
        let Some(tag) = lane.received(completion) else { return };
        match session {
            Some(index) => {
                parts.with(lane, index, |session, turn| session.received(completion, tag, turn));
            }
            None => lane.release(tag, pool),
        }
    } else if let Some(index) = session {
        parts.with(lane, index, |session, turn| session.ended(completion, turn));
    }
}

impl Poller for RdmaTransport {
    fn poll(&mut self) -> Progress {
        let mut worked = self.take_notes();
        let lanes = &mut self.lanes;
        self.source.drain(|key, _| {
            let lane = usize::try_from(key).ok().and_then(|key| lanes.get_mut(key));
            if let Some(lane) = lane {
                lane.take_events();
            }
        });
        worked |= self.poll_lanes();
        worked |= self.act();
        worked |= self.watch();
        Progress::from_worked(worked)
    }

    fn flush(&mut self) {
        self.act();
        let mut dirty = std::mem::take(&mut self.dirty);
        self.turn(|parts, lanes| {
            for &index in &dirty {
                let Some(served) = parts.sessions.get_mut(index) else { continue };
                served.session.listed = false;
                let lane = served.lane;
                if let Some(lane) = lanes.get_mut(lane) {
                    parts.with(lane, index, Session::flush);
                }
            }
        });
        dirty.clear();
        self.dirty = dirty;
        self.post_receives();
    }

    fn ready_to_sleep(&mut self) -> bool {
        // Others may have let go of memory that receives wait for since the turn was flushed.
        self.post_receives();
        let has_notes = self.seat().is_some_and(|seat| !seat.notes.is_empty());
        if has_notes || !self.dirty.is_empty() || self.shard.borrow().has_actions(self.port) {
            return false;
        }
        let suspense = self.sessions.iter().map(|(_, served)| served.session.suspense()).max();
        let suspense = suspense.unwrap_or(Suspense::None);
        let watched = suspense > Suspense::None || self.lanes.iter().any(|(_, lane)| lane.closing);
        let now = self.local.now();
        let alone =
            suspense == Suspense::Idle && now < *self.reap_at.get_or_insert(now + SENT_ALONE);
        let until = [self.reap_at.filter(|_| alone), watched.then_some(self.next_tick)];
        self.sleep_until = until.into_iter().flatten().min();
        let all = suspense > Suspense::None && !alone;
        let mut armed = false;
        for (_, lane) in &mut self.lanes {
            armed |= lane.arm(all);
        }
        // What has ended before it was armed will not be announced.
        !(armed && self.poll_lanes())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.sleep_until
    }

    fn name(&self) -> &'static str {
        "transport-rdma"
    }
}

impl fmt::Debug for RdmaTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaTransport")
            .field("queues", &self.sessions.len())
            .finish_non_exhaustive()
    }
}
