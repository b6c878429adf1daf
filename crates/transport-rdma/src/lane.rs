//! A lane: what one reactor has of one device. Completion queues, the shared receive queue with the memory of its receives, and
//! which queue pair is whose.
//!
//! The manager makes the parts, which may block; the reactor makes a lane of them, and everything here runs on its thread. All completion
//! queues report to one channel. They are armed only before the reactor sleeps: a reactor that polls pays for no events.
//!
//! Receives end in completion queues of their own. What a reactor sent is done with when the host says so, which nobody waits for as a
//! rule: a reactor that sleeps is woken by capsules, and takes the ends of what it sent when it is awake anyway. Rejected: one queue for
//! both, which woke it twice for every command of a host that has one outstanding.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use memory::Pool;
use reactor::Instant;
use tracing::{error, info};
use verbs::{
    Completion, CompletionChannel, CompletionQueue, RegisteredArena, SharedReceiveQueue,
    SharedReceives, VerbsError,
};

use crate::counters::Counters;
use crate::receives::{Receives, shared_count};

/// A lane's number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneId(pub(crate) u32);

/// What ends in a completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    Receives,
    Sends,
}

/// What the events of a lane's completion queue call it: which of them it is, in the order in which they were made, and whose.
pub(crate) fn token(lane: LaneId, index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX) << 32 | u64::from(lane.0)
}

/// The lane that an event is about.
pub(crate) fn lane_of(token: u64) -> LaneId {
    LaneId(u32::try_from(token & u64::from(u32::MAX)).unwrap_or(u32::MAX))
}

/// The completion queue that an event is about.
fn index_of(token: u64) -> usize {
    usize::try_from(token >> 32).unwrap_or(usize::MAX)
}

/// A point in the order in which the receives of a shared queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    emptied: u64,
    taken: u64,
}

/// A completion queue of a lane.
#[derive(Debug)]
struct Completions {
    queue: CompletionQueue,
    of: Ends,
    /// It will announce what comes next.
    armed: bool,
}

/// What the manager makes a lane of.
#[derive(Debug)]
pub(crate) struct LaneParts {
    pub(crate) id: LaneId,
    /// The device's name.
    pub(crate) name: String,
    pub(crate) memory: Arc<RegisteredArena>,
    pub(crate) channel: CompletionChannel,
    /// The first for receives; it takes those of the shared queue.
    pub(crate) completions: CompletionQueue,
    /// The queue and how many receives it is made for. None: each queue pair has its own.
    pub(crate) receives: Option<(SharedReceiveQueue, u32)>,
    /// Bytes of data in a capsule.
    pub(crate) in_capsule: u32,
    /// The device invalidates keys as it should.
    pub(crate) invalidates: bool,
    /// Bytes of one work request at most.
    pub(crate) max_message: u32,
    pub(crate) counters: Arc<Counters>,
}

/// What is left of a lane, or of a part of it. Whoever drops it last deregisters memory and destroys completion queues.
#[derive(Debug)]
pub(crate) struct Remains {
    _queues: Vec<CompletionQueue>,
    _channel: CompletionChannel,
    _memory: Arc<RegisteredArena>,
}

/// The shared receive queue of a lane.
#[derive(Debug)]
struct Shared {
    queue: SharedReceives,
    receives: Receives,
    /// Receives that wait for memory.
    delayed: Vec<u32>,
    /// Pushed and not posted yet.
    pushed: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: LaneId,
    pub(crate) in_capsule: u32,
    pub(crate) invalidates: bool,
    pub(crate) max_message: u32,
    pub(crate) counters: Arc<Counters>,
    channel: CompletionChannel,
    queues: Vec<Completions>,
    shared: Option<Shared>,
    /// The session of each queue pair, by its number.
    pub(crate) sessions: HashMap<u32, usize, BuildHasherDefault<NumberHasher>>,
    /// How often the first completion queue, which takes the shared receives, was found empty, and how many it has had.
    emptied: u64,
    taken: u64,
    /// Since when hardly any receives have been posted.
    short_since: Option<Instant>,
    /// It has just turned out that it does not work any more.
    broken: bool,
    /// No new queues: it goes when the last of its queues has gone and been destroyed.
    pub(crate) closing: bool,
    // After what is received into it.
    pub(crate) memory: Arc<RegisteredArena>,
}

/// Spreads numbers of queue pairs, which devices give out one after the other.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Lane {
    /// The lane, with its receives posted as far as there is memory for them. Those of other lanes have `taken` so much of the pool.
    pub(crate) fn new(parts: LaneParts, pool: &Pool, taken: usize) -> Lane {
        let LaneParts {
            id,
            name,
            memory,
            channel,
            completions,
            receives,
            in_capsule,
            invalidates,
            max_message,
            counters,
        } = parts;
        let shared = receives.map(|(queue, count)| {
            let data = usize::try_from(in_capsule).unwrap_or(usize::MAX);
            let wanted = usize::try_from(count).unwrap_or(usize::MAX);
            let count = shared_count(wanted, data, pool.capacity(), taken);
            if count < wanted {
                info!(
                    "RDMA device {name} has {count} receives on this reactor, not {wanted}: memory.per_reactor is too small for more"
                );
            }
            let receives = Receives::shared(count, data);
            let delayed = (0..u32::try_from(receives.len()).unwrap_or(u32::MAX)).collect();
            Shared { queue: SharedReceives::new(queue), receives, delayed, pushed: 0 }
        });
        let mut lane = Lane {
            id,
            memory,
            in_capsule,
            invalidates,
            max_message,
            counters,
            channel,
            queues: vec![Completions { queue: completions, of: Ends::Receives, armed: false }],
            shared,
            sessions: HashMap::default(),
            emptied: 0,
            taken: 0,
            short_since: None,
            broken: false,
            closing: false,
        };
        lane.post_receives(pool);
        let delayed = lane.shared.as_ref().map_or(0, |shared| shared.delayed.len());
        lane.counters.receives_delayed.add_len(delayed);
        lane
    }

    pub(crate) fn extend(&mut self, queue: CompletionQueue, of: Ends) {
        self.queues.push(Completions { queue, of, armed: false });
    }

    /// Gives the last completion queue back, which nobody uses.
    pub(crate) fn shrink(&mut self) -> Remains {
        let last = self.queues.pop();
        self.remains(last)
    }

    /// The end of a lane that [may go](Lane::may_go): its shared receive queue is destroyed here, with which the memory of the
    /// receives is this thread's again.
    pub(crate) fn into_remains(mut self) -> Remains {
        self.shared = None;
        let queues = std::mem::take(&mut self.queues);
        self.remains(queues)
    }

    fn remains(&self, queues: impl IntoIterator<Item = Completions>) -> Remains {
        Remains {
            _queues: queues.into_iter().map(|it| it.queue).collect(),
            _channel: self.channel.clone(),
            _memory: Arc::clone(&self.memory),
        }
    }

    /// The descriptor that becomes readable when an armed completion queue has something.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Hands what has ended to `each`, at most `room` of each completion queue; whether anything had. The memory of receives has to be
    /// given back by [`Lane::received`].
    pub(crate) fn poll(
        &mut self,
        room: &mut [Completion],
        mut each: impl FnMut(&mut Lane, &Completion),
    ) -> bool {
        let mut any = false;
        // What was sent is looked at before the capsules that may have come after it.
        for index in (0..self.queues.len()).rev() {
            let Some(it) = self.queues.get(index) else { break };
            let size = room.len();
            let count = match it.queue.poll(room) {
                Ok(taken) => taken.len(),
                Err(error) => {
                    // Its queue pairs end by errors of their own, or by their deadlines.
                    if !self.closing {
                        error!("a completion queue is broken: {error}");
                        (self.closing, self.broken) = (true, true);
                    }
                    0
                }
            };
            any |= count > 0;
            if index == 0 {
                self.emptied += u64::from(count < size);
                self.taken = self.taken.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            }
            self.counters.completions.add_len(count);
            for completion in room.get(..count).unwrap_or_default() {
                each(self, completion);
            }
        }
        any
    }

    /// Now: what has ended by now may still be in the completion queue.
    pub(crate) fn moment(&self) -> Moment {
        Moment { emptied: self.emptied, taken: self.taken }
    }

    /// Whether every shared receive that had ended then has been taken. A reactor that never gets to the end of the queue has when it
    /// has taken as many since as fit in.
    pub(crate) fn is_past(&self, then: Moment) -> bool {
        let room = self.queues.first().map_or(0, |it| it.queue.capacity());
        then.emptied < self.emptied || self.taken.saturating_sub(then.taken) >= room.into()
    }

    /// Has completion queues announce what comes next, if they do not already: those for receives, or all. Whether any does that
    /// did not; what came before has to be looked for then.
    pub(crate) fn arm(&mut self, all: bool) -> bool {
        let mut new = false;
        for it in self.queues.iter_mut().filter(|it| all || it.of == Ends::Receives) {
            if !it.armed {
                it.armed = it.queue.arm().is_ok();
                new |= it.armed;
            }
        }
        new
    }

    /// Takes the events of the channel. Each armed queue has one at most: when none is armed any more, there is nothing to ask for.
    pub(crate) fn take_events(&mut self) {
        while self.queues.iter().any(|it| it.armed)
            && let Ok(Some(token)) = self.channel.next_event()
        {
            self.counters.events.add(1);
            if let Some(it) = self.queues.get_mut(index_of(token)) {
                it.armed = false;
            }
        }
    }

    /// The receives of the shared queue.
    pub(crate) fn receives(&mut self) -> Option<&mut Receives> {
        self.shared.as_mut().map(|shared| &mut shared.receives)
    }

    /// Whether it has turned out that it does not work any more; said once.
    pub(crate) fn take_broken(&mut self) -> bool {
        std::mem::take(&mut self.broken)
    }

    /// Since when hardly any receives have been posted, because capsules are held.
    pub(crate) fn is_short_since(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared.as_ref()?;
        if shared.queue.outstanding() >= shared.receives.len() / 8 {
            self.short_since = None;
        } else if self.short_since.is_none() {
            self.short_since = Some(now);
        }
        self.short_since
    }

    /// Bytes of the pool that the receives of the shared queue take.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.receives.shared_bytes())
    }

    /// The receives of the shared queue, to be looked at.
    pub(crate) fn receives_now(&self) -> Option<&Receives> {
        self.shared.as_ref().map(|shared| &shared.receives)
    }

    /// Whether it is closing, and nothing of it is in use any more, not even by the manager: what is posted to its shared queue is
    /// nobody's but ours.
    pub(crate) fn may_go(&self) -> bool {
        let alone = self.shared.as_ref().is_none_or(|shared| shared.queue.is_alone());
        self.closing && self.sessions.is_empty() && alone
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// A receive of the shared queue has ended: its memory is ours until it is [released](Lane::release). Its tag.
    pub(crate) fn received(&mut self, completion: &Completion) -> Option<u32> {
        let shared = self.shared.as_mut()?;
        shared.queue.take(completion)?;
        if shared.queue.outstanding() == 0 {
            self.counters.receives_exhausted.add(1);
        }
        Some(completion.tag())
    }

    /// The capsule in this receive of the shared queue is done with: it may be posted again.
    pub(crate) fn release(&mut self, tag: u32, pool: &Pool) {
        let Some(shared) = &mut self.shared else { return };
        if !shared.push(tag, &self.memory, pool) {
            self.counters.receives_delayed.add(1);
            shared.delayed.push(tag);
        }
    }

    /// Posts what has been released, and what waited for memory.
    pub(crate) fn post_receives(&mut self, pool: &Pool) {
        let Some(shared) = &mut self.shared else { return };
        while let Some(tag) = shared.delayed.pop() {
            if !shared.push(tag, &self.memory, pool) {
                shared.delayed.push(tag);
                break;
            }
        }
        if shared.pushed == 0 {
            return;
        }
        self.counters.receives.add(shared.pushed);
        self.counters.receive_posts.add(1);
        shared.pushed = 0;
        if let Err(error) = shared.queue.flush()
            && !self.closing
        {
            error!("receives cannot be posted: {error}");
            (self.closing, self.broken) = (true, true);
        }
    }
}

impl Shared {
    /// Whether there was memory for it.
    fn push(&mut self, tag: u32, memory: &RegisteredArena, pool: &Pool) -> bool {
        let Some(segments) = self.receives.lend(tag, pool) else { return false };
        let pushed: Result<(), VerbsError> = self.queue.push(tag, memory, segments);
        debug_assert!(pushed.is_ok(), "{pushed:?}");
        self.pushed += 1;
        true
    }
}
