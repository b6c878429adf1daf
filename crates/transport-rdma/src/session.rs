//! One queue of a host on its reactor: capsules in, RDMA and responses out.
//!
//! ```text
//!             the target's wish          sent, or deadline
//!    Open -------------------> Ending --------------------+
//!      |                                                  v
//!      +-- error, violation, end of the connection --> Closing --flushed, last receive--> destroyed by the manager
//! ```
//!
//! A capsule becomes a command at once, or waits in order while the target has no room; there are never more of both than the queue has
//! entries by its Connect: a host that sends more breaks the protocol, and would otherwise keep receives that it shares with others.
//! The target's wishes become entries (RDMA reads to fetch data, answers), and at the end of the turn as many of them as there is room
//! for become one chain of work requests. Data writes are not signalled: the response behind them on the same queue pair is, and
//! its completion tells of them.
//!
//! Once it is closing nothing is posted and no completion changes anything but what is on loan. The queue of the target is
//! closed then already; memory that the device may still touch is kept by its loans.

mod answer;
mod ending;
mod intake;

use std::collections::VecDeque;
use std::net::SocketAddr;

use memory::{Pool, Segment};
use nvme::{Cqe, Sqe};
use reactor::{Instant, Place};
use target::{QueueId, RequestId, Shard};
use verbs::{Completion, ConnectionId, SendChain, VerbsError, WorkQueue};

use crate::command::{Capsule, Commands};
use crate::lane::{Lane, Moment};
use crate::network::Shared;
use crate::receives::Receives;

use answer::ResponseRoom;
use ending::Phase;
pub(crate) use ending::{CloseReason, Flushed, Suspense};

/// Everything that a session may use in a turn of its reactor.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) shard: &'a mut Shard,
    pub(crate) lane: &'a mut Lane,
    pub(crate) commands: &'a mut Commands,
    pub(crate) chain: &'a mut SendChain,
    pub(crate) pool: &'a Pool,
    pub(crate) network: &'a Shared,
    pub(crate) now: Instant,
}

/// A queue of a host.
#[derive(Debug)]
pub(crate) struct Session {
    /// Its place in the table of sessions.
    pub(crate) index: usize,
    pub(crate) connection: ConnectionId,
    pub(crate) peer: SocketAddr,
    pub(crate) queue: Option<QueueId>,
    work: WorkQueue,
    _place: Place,
    phase: Phase,
    reason: Option<CloseReason>,
    /// Commands that it asked for with the connection. One that is granted less may use them all the same, as Linux does.
    commands_most: usize,
    /// Commands that it may have outstanding, as far as that has been looked up: the target learns it from Connect.
    commands: usize,
    /// RDMA reads of ours that may be out.
    reads_most: usize,
    /// Its own receives, where the device has no shared queue.
    own: Option<Receives>,
    /// Commands that the target has taken and that are not answered.
    accepted: usize,
    /// Commands that it has no room for.
    held: VecDeque<Held>,
    /// It will say when there is.
    stalled: bool,
    /// Commands whose data is to be fetched, in order.
    fetches: VecDeque<Fetch>,
    /// RDMA reads that are out.
    reads: usize,
    /// Answers to be sent, in order.
    answers: VecDeque<Answer>,
    /// Responses in memory, where the device takes nothing inline.
    responses: Option<ResponseRoom>,
    /// When the device said that the queue pair had taken its last receive.
    last_receive: Option<Moment>,
    /// When something that was posted last ended, or was posted to an idle queue.
    progress: Instant,
    /// Since when others wait for memory that it has on loan, and how much of what was posted then is still out.
    wanted: Option<(Instant, usize)>,
    /// There is something to post.
    pub(crate) dirty: bool,
    /// It is in the list of those that have.
    pub(crate) listed: bool,
}

/// A command that waits for room in the target.
#[derive(Debug, Clone, Copy)]
struct Held {
    sqe: Sqe,
    /// Its capsule, if there is more in it.
    capsule: Option<Capsule>,
}

#[derive(Debug, Clone, Copy)]
struct Fetch {
    request: RequestId,
    length: u32,
    /// Bytes asked for so far.
    asked: u32,
    /// It has been counted as one that waits.
    waited: bool,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    request: RequestId,
    cqe: Cqe,
    data: u32,
    /// Bytes that are in work requests already.
    written: u32,
}

/// What a work request was for, in its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
    Response,
}

impl Purpose {
    /// Requests' places have 24 bits at most.
    const SHIFT: u32 = 24;

    fn tag(self, request: RequestId) -> u32 {
        let kind: u32 = match self {
            Purpose::Read => 1,
            Purpose::Write => 2,
            Purpose::Response => 3,
        };
        kind << Purpose::SHIFT | request.slot & ((1 << Purpose::SHIFT) - 1)
    }

    fn of(tag: u32) -> Option<(Purpose, u32)> {
        let slot = tag & ((1 << Purpose::SHIFT) - 1);
        match tag >> Purpose::SHIFT {
            1 => Some((Purpose::Read, slot)),
            2 => Some((Purpose::Write, slot)),
            3 => Some((Purpose::Response, slot)),
            _ => None,
        }
    }
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Place,
    pub(crate) depth: u16,
    pub(crate) commands: u32,
    pub(crate) reads: u8,
}

impl Session {
    /// A session whose queue pair is about to be connected; receives of its own are posted.
    ///
    /// # Errors
    /// If there is no memory for it, or the device refuses.
    pub(crate) fn new(
        index: usize,
        queue: QueueId,
        terms: Terms,
        work: WorkQueue,
        turn: &mut Turn<'_>,
    ) -> Result<Session, VerbsError> {
        let Terms { connection, peer, place, depth, commands, reads } = terms;
        let own = if turn.lane.is_shared() {
            None
        } else {
            let data = usize::try_from(turn.lane.in_capsule).unwrap_or(usize::MAX);
            let receives = Receives::own(turn.pool, depth.into(), data);
            Some(receives.ok_or(VerbsError::Misuse("there is no memory for its receives"))?)
        };
        let responses = ResponseRoom::needed(&work, turn.pool)?;
        let depth = usize::from(depth);
        let mut session = Session {
            index,
            connection,
            peer,
            queue: Some(queue),
            work,
            _place: place,
            phase: Phase::Open,
            reason: None,
            commands_most: usize::try_from(commands).unwrap_or(usize::MAX).max(depth),
            commands: 1,
            reads_most: reads.into(),
            own,
            accepted: 0,
            held: VecDeque::with_capacity(depth),
            stalled: false,
            fetches: VecDeque::with_capacity(depth),
            reads: 0,
            answers: VecDeque::with_capacity(depth),
            responses,
            last_receive: None,
            progress: turn.now,
            wanted: None,
            dirty: false,
            listed: false,
        };
        session.post_own_receives(turn)?;
        Ok(session)
    }

    fn post_own_receives(&mut self, turn: &mut Turn<'_>) -> Result<(), VerbsError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        for tag in 0..u32::try_from(own.len()).unwrap_or(u32::MAX) {
            if let Some(segments) = own.lend(tag, turn.pool) {
                self.work.push_receive(tag, &turn.lane.memory, segments)?;
                turn.lane.counters.receives.add(1);
            }
        }
        turn.lane.counters.receive_posts.add(1);
        self.work.flush_receives()
    }

    /// The number of its queue pair.
    pub(crate) fn number(&self) -> u32 {
        self.work.pair().number()
    }

    /// The receives that its capsules are in.
    fn receives<'a>(own: &'a mut Option<Receives>, lane: &'a mut Lane) -> Option<&'a mut Receives> {
        match own {
            Some(own) => Some(own),
            None => lane.receives(),
        }
    }

    /// A capsule is done with: it may be received into again.
    fn release(&mut self, tag: u32, turn: &mut Turn<'_>) {
        let Some(own) = &mut self.own else { return turn.lane.release(tag, turn.pool) };
        if let Some(segments) = own.lend(tag, turn.pool) {
            let pushed = self.work.push_receive(tag, &turn.lane.memory, segments);
            debug_assert!(pushed.is_ok(), "{pushed:?}");
            turn.lane.counters.receives.add(1);
            self.dirty = true;
        }
    }

    /// A work request of its own has ended, or a receive, unless that was one of a shared queue.
    pub(crate) fn ended(&mut self, completion: &Completion, turn: &mut Turn<'_>) {
        self.progress = turn.now;
        if completion.is_receive() {
            let tag = completion.tag();
            if self.work.take_receive(completion).is_some() {
                self.received(completion, tag, turn);
            }
            return;
        }
        let before = self.work.outstanding();
        self.work.retire(completion);
        if let Some((_, left)) = &mut self.wanted {
            *left = left.saturating_sub(before.saturating_sub(self.work.outstanding()));
        }
        if !self.is_open() {
            return;
        }
        // There may be room for what waits.
        self.dirty |= !self.answers.is_empty() || !self.fetches.is_empty();
        if completion.status() != verbs::Status::SUCCESS {
            return self.failed(completion.status(), turn);
        }
        match Purpose::of(completion.tag()) {
            Some((Purpose::Read, slot)) => self.read_ended(slot, turn),
            Some((Purpose::Response, slot)) => {
                if let Some(request) = turn.commands.request(slot, self.index) {
                    turn.shard.response_sent(request);
                }
            }
            Some((Purpose::Write, _)) | None => {}
        }
    }

    fn failed(&mut self, status: verbs::Status, turn: &mut Turn<'_>) {
        if status == verbs::Status::FLUSHED {
            // Somebody has ended the queue pair, and will say so.
            return self.close(CloseReason::Over, turn);
        }
        turn.lane.counters.failed_work.add(1);
        self.close(CloseReason::Work(status), turn);
    }

    fn segment(turn: &Turn<'_>, request: RequestId, offset: u32, length: u32) -> Option<Segment> {
        turn.shard.segment(request, offset, length)
    }
}
