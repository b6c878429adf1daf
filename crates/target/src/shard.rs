//! One shard of the target: what one reactor owns of it.
//!
//! # Who owns what
//! A controller lives on the shard `cntlid % shards`, which is where its admin queue is. Its I/O queues are
//! wherever their connections are; they and the controller talk by [`Message`]s. A command touches nothing
//! outside the shard of its queue, apart from the last-traffic tick in [`queue::QueueShare`].
//!
//! # Rules
//! * Nothing that arrives may panic: handles are looked up, never indexed; a stale one is counted and ignored.
//! * Every command carries a token that only an answer, or the death of its queue, consumes.
//! * A buffer is held by the request until its block operations are back and the transport has let go,
//!   whatever became of the queue. (The memory itself is counted once more below, by the segments.)
//! * A command holds all the buffer it needs or none; the host's data is asked for only once it is held.
//! * Work per call is bounded; what is left is done in the next turn, which [`Shard::has_work`] announces.
//! * All tables are as large as they get when the shard is made, or grow by connections only: a command in
//!   the steady state allocates nothing.
//!
//! Rejected: a shared table of controllers under a lock (a hop per Connect is cheaper than a lock per
//! command); tasks per command (an allocation each, no bound on a turn); owning the sockets (then neither a
//! simulator nor a second transport could drive the same code).

mod abort;
mod admin;
mod backend;
mod buffers;
mod command_table;
pub mod configure;
mod connect;
mod controller;
pub mod counters;
mod device_share;
mod drain;
mod drive;
mod event;
mod fence;
mod hosts;
mod intake;
mod keep_alive;
pub mod lending;
mod limit;
pub mod message;
mod outstanding;
mod pause;
mod pledges;
mod property;
pub mod queue;
pub mod report;
mod request;
mod roll;
mod sgl;
mod shutdown;
mod table;
mod turn;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use block::Completion;
use memory::{Pool, Segment};

use crate::configuration::Configuration;
use crate::{Action, HostKey, Instant, Message, PortId, QueueId, QueueInfo, RequestId, ShardIndex};
use backend::Subsystems;
use controller::Controller;
use counters::Counters;
use hosts::Hosts;
use message::Body;
use outstanding::Outstanding;
pub use pause::{PauseId, PauseStatus};
use queue::{Queue, Queues};
use request::{MAX_REQUESTS, Requests};
use table::Key;

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardConfig {
    /// Its number.
    pub index: ShardIndex,
    /// How many shards there are, at least 1.
    pub shards: u16,
    /// The reactor's supply of buffers.
    pub pool: Pool,
    /// Bounds.
    pub limits: ShardLimits,
    /// The time now.
    pub now: Instant,
}

/// Bounds of one shard. All memory for requests is taken when the shard is made.
#[derive(Debug, Clone)]
pub struct ShardLimits {
    /// Commands in flight at a time, 32 to 2^24 - 1. A sixteenth of them is kept for queues other than I/O queues.
    pub requests: u32,
    /// Queues at a time, those without a Connect included.
    pub queues: u32,
    /// How long a queue may stay without a Connect.
    pub connect_timeout: Duration,
    /// How long a Connect waits for the old writes of the same host before it is answered "busy".
    pub drain_wait: Duration,
    /// How long operations of a dead queue may stay in a device before its namespace is fenced.
    pub fence_after: Duration,
    /// How long a command may stay in a device before it is given up, if the device lets go of it.
    pub command_deadline: Duration,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            requests: 4096,
            queues: 4096,
            connect_timeout: Duration::from_secs(10),
            drain_wait: Duration::from_secs(5),
            fence_after: Duration::from_secs(15),
            command_deadline: Duration::from_mins(1),
        }
    }
}

/// Actions of a port that it has room for from the start.
const ACTIONS: usize = 1024;

/// One shard. See the [module](self).
#[derive(Debug)]
pub struct Shard {
    index: ShardIndex,
    shards: u16,
    pool: Pool,
    limits: ShardLimits,
    now: Instant,
    configuration: Arc<Configuration>,
    requests: Requests,
    outstanding: Outstanding,
    lent: lending::Lent,
    queues: Queues,
    pledges: pledges::Pledges,
    hosts: Hosts,
    subsystems: Subsystems,
    controllers: BTreeMap<u16, Controller>,
    /// Where the search for a free controller identifier goes on: identifiers are reused late.
    next_cntlid: u16,
    /// By port.
    actions: Vec<VecDeque<Action>>,
    /// Queues with requests that wait for a buffer, in the order in which they are served.
    ring: VecDeque<QueueId>,
    /// One of them waits because the pool is empty, and not only because of somebody's share.
    dry: bool,
    /// Rounds of the ring so far.
    round: u64,
    /// Those served in a round, who go behind the others; empty in between, kept for its memory.
    served: VecDeque<QueueId>,
    /// Backends in which somebody waits for a limit or for others to have had their turn, in this round.
    limited: Vec<Key>,
    /// When a limit may let somebody through.
    limited_until: Option<Instant>,
    /// Queues that are owed a Resume.
    stalled: VecDeque<QueueId>,
    /// Those of them that have not been looked at since there was room last.
    unlooked: usize,
    /// Emptied in every turn; kept for its memory.
    completions: Vec<Completion>,
    /// Messages to this shard, its own among them.
    inbox: VecDeque<Message>,
    outbox: VecDeque<(ShardIndex, Message)>,
    /// Admin Connects that wait for the host's old writes, or for the configuration.
    connecting: Vec<connect::Pending>,
    /// Other shards' questions about old writes that cannot be answered yet.
    quiescing: Vec<drain::Question>,
    fences: fence::Fences,
    pauses: pause::Pauses,
    /// The version of the configuration that each shard runs.
    versions: Vec<u64>,
    /// Events that wait until every shard runs the configuration they tell of.
    announcements: Vec<event::Announcement>,
    shutdown: Option<shutdown::Shutdown>,
    /// When the next round of housekeeping is due.
    next_tick: Instant,
    /// When it was last looked which controllers are busy.
    sampled: Instant,
    /// The last tick was left out because of a stall.
    stalled_tick: bool,
    /// Where the watch over commands in devices goes on.
    watch: u32,
    /// Memory, a slot or a message has become free since the last turn.
    woken: bool,
    /// When it was made.
    started: Instant,
    counters: Counters,
}

impl Shard {
    /// A shard that exports nothing until it is [configured](Shard::configure).
    pub fn new(config: ShardConfig) -> Self {
        let ShardConfig { index, shards, pool, mut limits, now } = config;
        limits.requests = limits.requests.clamp(32, MAX_REQUESTS);
        let shards = shards.max(1);
        Self {
            index,
            shards,
            pool,
            now,
            configuration: Configuration::empty(),
            requests: Requests::preallocated(limits.requests),
            outstanding: Outstanding::new(limits.requests),
            lent: lending::Lent::new(limits.requests),
            queues: Queues::growing(limits.queues),
            pledges: pledges::Pledges::default(),
            hosts: Hosts::new(limits.queues),
            subsystems: Subsystems::new(),
            controllers: BTreeMap::new(),
            next_cntlid: 1,
            actions: Vec::new(),
            ring: VecDeque::with_capacity(256),
            dry: false,
            round: 0,
            served: VecDeque::with_capacity(256),
            limited: Vec::with_capacity(64),
            limited_until: None,
            stalled: VecDeque::with_capacity(256),
            unlooked: 0,
            completions: Vec::with_capacity(turn::COMPLETIONS_PER_TURN),
            inbox: VecDeque::with_capacity(64),
            outbox: VecDeque::with_capacity(64),
            connecting: Vec::new(),
            quiescing: Vec::new(),
            fences: fence::Fences::default(),
            pauses: pause::Pauses::default(),
            versions: vec![0; usize::from(shards)],
            announcements: Vec::new(),
            shutdown: None,
            next_tick: now,
            sampled: now,
            stalled_tick: false,
            watch: 0,
            woken: false,
            started: now,
            counters: Counters::default(),
            limits,
        }
    }

    /// Its number.
    pub fn index(&self) -> ShardIndex {
        self.index
    }

    /// What it exports.
    pub fn configuration(&self) -> &Arc<Configuration> {
        &self.configuration
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Requests that exist now, whatever their state.
    pub fn requests_in_use(&self) -> u32 {
        self.requests.len()
    }

    /// Queues that exist now, those that wait for their last operations included.
    pub fn queues_in_use(&self) -> u32 {
        self.queues.len()
    }

    /// Controllers that live on this shard now.
    pub fn controllers_in_use(&self) -> usize {
        self.controllers.len()
    }

    /// A connection is there. None: the shard has all the queues it may have; close the connection.
    pub fn open_queue(&mut self, port: PortId, info: QueueInfo) -> Option<QueueId> {
        let ports = usize::from(port.0).saturating_add(1);
        while self.actions.len() < ports {
            self.actions.push(VecDeque::with_capacity(ACTIONS));
        }
        let queue = Queue::new(port, info, self.hosts.anonymous(), self.now);
        let id = self.queues.insert(queue).ok();
        if id.is_none() {
            self.counters.queues_refused += 1;
        }
        id
    }

    /// How many commands the host may have outstanding on this queue: before Connect, that one.
    pub fn entries_of(&self, queue: QueueId) -> Option<u16> {
        Some(self.queues.get(queue)?.entries)
    }

    /// Whose queue this is.
    pub fn host_of(&self, queue: QueueId) -> Option<HostKey> {
        let Key { slot, generation } = self.queues.get(queue)?.host;
        Some(HostKey { slot, generation })
    }

    /// The next thing for this port to do.
    pub fn next_action(&mut self, port: PortId) -> Option<Action> {
        loop {
            let action = self.actions.get_mut(usize::from(port.0))?.pop_front()?;
            // The transport has forgotten a queue that it closed; and a queue that we end has dropped the
            // requests that waited for data.
            let queue = self.queues.get(action.queue()).is_some_and(|queue| !queue.gone);
            let request = match action {
                Action::Receive { request, .. } | Action::Respond { request, .. } => {
                    self.requests.get(request).is_some()
                }
                Action::Resume { .. } | Action::Disconnect { .. } => true,
            };
            if queue && request {
                return Some(action);
            }
        }
    }

    /// Whether this port has something to do.
    pub fn has_actions(&self, port: PortId) -> bool {
        self.actions.get(usize::from(port.0)).is_some_and(|actions| !actions.is_empty())
    }

    /// A loan of part of the request's buffer, or of what its device has lent it; None if the request is unknown, holds
    /// neither, or the range lies outside.
    pub fn segment(&self, id: RequestId, offset: u32, length: u32) -> Option<Segment> {
        let request = self.requests.get(id)?;
        let end = offset.checked_add(length)?;
        if end > request.length {
            return None;
        }
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        match &request.buffer {
            Some(buffer) => buffer.segment(offset, length),
            None => self.lent.get(id)?.part(offset, length),
        }
    }

    /// A message of another shard. It is looked at in the next [`Shard::poll`].
    pub fn deliver(&mut self, message: Message) {
        self.inbox.push_back(message);
    }

    /// The next message for another shard. The driver keeps the messages between two shards in order and
    /// loses none: one that does not fit the other's mailbox now is kept and sent later.
    pub fn next_message(&mut self) -> Option<(ShardIndex, Message)> {
        self.outbox.pop_front()
    }

    fn act(&mut self, port: PortId, action: Action) {
        if let Some(actions) = self.actions.get_mut(usize::from(port.0)) {
            actions.push_back(action);
        }
    }

    fn send(&mut self, to: ShardIndex, body: Body) {
        let message = Message { from: self.index, body };
        if to == self.index {
            self.inbox.push_back(message);
        } else if to.0 < self.shards {
            self.counters.messages_sent += 1;
            self.outbox.push_back((to, message));
        }
    }

    /// Sends to every shard, this one included.
    fn broadcast(&mut self, body: impl Fn() -> Body) {
        for shard in 0..self.shards {
            self.send(ShardIndex(shard), body());
        }
    }

    /// The shard of a controller.
    fn owner(&self, cntlid: u16) -> ShardIndex {
        ShardIndex(cntlid.checked_rem(self.shards).unwrap_or(0))
    }
}

impl Drop for Shard {
    /// Whoever drops a shard has dropped its connections: nobody is left to answer.
    fn drop(&mut self) {
        for request in self.requests.values_mut() {
            if let Some(obligation) = request.obligation.take() {
                obligation.excused();
            }
        }
    }
}
