//! One command in flight.
//!
//! ```text
//!       no room in the pool, or a limit     paused namespace
//!   command ---> Buffer ---> Receive ---+---> Held ---> Device ---> Respond ---> free
//!      |            (from the host)     |                 |  ^         ^
//!      +--------------------------------+                 +--+ parts   |
//!      +---> Elsewhere (another shard is asked) ---------------------- +
//!      +---> Event (Asynchronous Event Request, parked) ---------------+
//! ```
//!
//! When the queue dies, a request in `Device` stays until the last of its block operations has come back,
//! with nobody to answer; every other stage is freed at once.

use block::Token;
use memory::Buffer;
use nvme::command::CommandId;
use nvme::{Sqe, Status};

use super::table::{Key, Table};
use crate::obligation::Obligation;
use crate::rate_limit::Way;
use crate::{Instant, QueueId, RequestId, ShardIndex};

/// The shard's requests.
pub(crate) type Requests = Table<RequestId, Request>;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Being looked at: never seen between two calls of the shard.
    New,
    /// Waits for a buffer, or for the limits of its device, in its queue's line for the device.
    Buffer,
    /// The transport brings the host's data.
    Receive,
    /// Waits, in the list of its namespace, for the end of a pause; it has the buffer that it needs.
    Held,
    /// Block operations are out.
    Device,
    /// Another shard has been asked.
    Elsewhere,
    /// An Asynchronous Event Request that waits for an event.
    Event,
    /// The transport sends the completion.
    Respond,
}

/// What is to be done once the request has its buffer and the host's data.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// A Connect with its data.
    Connect(nvme::fabrics::Connect),
    /// Property Set.
    PropertySet,
    /// Disconnect.
    Disconnect,
    /// An admin command.
    Admin(nvme::admin::Command),
    /// One operation on the namespace.
    Operation(crate::io::Request),
    /// A list of ranges to deallocate; the first `next` of them are done or out.
    Deallocate {
        /// Bytes of the list.
        length: u32,
        /// Ranges passed on so far.
        next: u32,
    },
    /// Every namespace of the subsystem is flushed; those with an NSID below `next` are done or out.
    FlushAll {
        /// The NSID to go on with.
        next: u32,
    },
    /// Nothing that needs a second look.
    None,
}

/// One command in flight.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) queue: QueueId,
    pub(crate) sqe: Sqe,
    pub(crate) stage: Stage,
    pub(crate) task: Task,
    /// Bytes of data to move.
    pub(crate) length: u32,
    /// Bytes of the buffer that it is given: no fewer.
    pub(crate) room: u32,
    /// They are in the capsule.
    pub(crate) in_capsule: bool,
    /// They come from the host.
    pub(crate) from_host: bool,
    /// The limits of its device have not let it through yet.
    pub(crate) limited: bool,
    pub(crate) buffer: Option<Buffer>,
    /// Its device lends what it reads; see [`super::lending`].
    pub(crate) borrows: bool,
    /// Bytes of the pool, or of what it is lent, that the queue and the host are charged for; the device for the former.
    pub(crate) charge: u32,
    /// The namespace that it names and whose share of slots and memory it counts against; None for admin
    /// commands and those that are for every namespace.
    pub(crate) device: Option<Key>,
    /// The namespace that it works on.
    pub(crate) backend: Option<Key>,
    /// Part numbers of the block operations that are out.
    pub(crate) parts: u16,
    /// A flush goes first; the operation itself is still to be submitted.
    pub(crate) flush_first: bool,
    /// What the first part that failed said.
    pub(crate) failure: Option<Status>,
    /// It is to end without doing what has not been done.
    pub(crate) give_up: Option<Status>,
    /// Who wants to know whether it was aborted: an Abort of the controller's owner.
    pub(crate) aborter: Option<(ShardIndex, RequestId)>,
    /// When it entered its stage.
    pub(crate) since: Instant,
    /// Its command identifier is in the queue's table.
    pub(crate) listed: bool,
    pub(crate) obligation: Option<Obligation>,
    /// The one behind it in the list that it waits in.
    pub(crate) behind: Option<RequestId>,
    /// Neighbours among all requests of its queue.
    pub(crate) previous: Option<RequestId>,
    pub(crate) next: Option<RequestId>,
}

impl Request {
    pub(crate) fn new(queue: QueueId, sqe: &Sqe, now: Instant) -> Self {
        Self {
            queue,
            sqe: *sqe,
            stage: Stage::New,
            task: Task::None,
            length: 0,
            room: 0,
            in_capsule: false,
            from_host: false,
            limited: false,
            buffer: None,
            borrows: false,
            charge: 0,
            device: None,
            backend: None,
            parts: 0,
            flush_first: false,
            failure: None,
            give_up: None,
            aborter: None,
            since: now,
            listed: false,
            obligation: Some(Obligation::new()),
            behind: None,
            previous: None,
            next: None,
        }
    }

    /// Which way it moves data, as limits see it: a Compare reads.
    pub(crate) fn way(&self) -> Way {
        match self.task {
            Task::Operation(operation) if operation.kind == block::Kind::Write => Way::Write,
            _ => Way::Read,
        }
    }

    /// Which of its queue's lines for the device it waits in.
    pub(crate) fn line(&self) -> Way {
        // Nothing but a limit gives a reason to overtake.
        if self.limited { self.way() } else { Way::Read }
    }

    /// Whether it needs nothing of the pool, or has it.
    pub(crate) fn has_memory(&self) -> bool {
        self.buffer.is_some() || self.borrows
    }

    pub(crate) fn cid(&self) -> CommandId {
        self.sqe.cid.get()
    }

    /// Whether another block operation may go out.
    pub(crate) fn has_free_part(&self) -> bool {
        self.parts != u16::MAX
    }

    /// A number for the next block operation.
    pub(crate) fn take_part(&mut self) -> u32 {
        let part = self.parts.trailing_ones();
        self.parts |= 1_u16.checked_shl(part).unwrap_or(0);
        part
    }

    /// An operation has come back; false if it was not out.
    pub(crate) fn return_part(&mut self, part: u32) -> bool {
        let bit = 1_u16.checked_shl(part).unwrap_or(0);
        let out = self.parts & bit != 0;
        self.parts &= !bit;
        out
    }
}

/// Bits of a token: part in 3:0, slot in 27:4, generation above.
const PART_BITS: u32 = 4;

/// Most block operations of a request that are out at a time.
pub(crate) const MAX_PARTS: u32 = 1 << PART_BITS;

const SLOT_BITS: u32 = 24;

/// Most requests of a shard, by the bits that a token has for the slot; the highest slot stays free for
/// tokens that are no request's.
pub(crate) const MAX_REQUESTS: u32 = (1 << SLOT_BITS) - 1;

/// The token of one block operation of a request: unique while it is out.
pub(crate) fn token(request: RequestId, part: u32) -> Token {
    Token(
        u64::from(part)
            | u64::from(request.slot) << PART_BITS
            | u64::from(request.generation) << (PART_BITS + SLOT_BITS),
    )
}

/// The request and part of a token; the generation's highest bits do not fit and are taken from `requests`.
pub(crate) fn of_token(token: Token, requests: &Requests) -> Option<(RequestId, u32)> {
    let field = |value: u64, bits: u32| u32::try_from(value & ((1 << bits) - 1)).unwrap_or(0);
    let part = field(token.0, PART_BITS);
    let slot = field(token.0 >> PART_BITS, SLOT_BITS);
    let (request, _) = requests.at(slot)?;
    (self::token(request, part) == token).then_some((request, part))
}

/// Where the operation with this token stands among all that can be out: [`MAX_PARTS`] of each request.
pub(crate) fn place(token: Token) -> usize {
    usize::try_from(token.0 & ((1 << (PART_BITS + SLOT_BITS)) - 1)).unwrap_or(usize::MAX)
}

/// A first-in-first-out list of requests that is threaded through them. A request is in one at most.
#[derive(Debug, Default)]
pub(crate) struct Fifo {
    first: Option<RequestId>,
    last: Option<RequestId>,
}

impl Fifo {
    pub(crate) fn first(&self) -> Option<RequestId> {
        self.first
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn push(&mut self, requests: &mut Requests, id: RequestId) {
        if let Some(request) = requests.get_mut(id) {
            request.behind = None;
        }
        match self.last.and_then(|last| requests.get_mut(last)) {
            Some(last) => last.behind = Some(id),
            None => self.first = Some(id),
        }
        self.last = Some(id);
    }

    pub(crate) fn push_front(&mut self, requests: &mut Requests, id: RequestId) {
        if let Some(request) = requests.get_mut(id) {
            request.behind = self.first;
        }
        self.first = Some(id);
        self.last = self.last.or(self.first);
    }

    pub(crate) fn pop(&mut self, requests: &mut Requests) -> Option<RequestId> {
        let id = self.first?;
        self.first = requests.get_mut(id).and_then(|request| request.behind.take());
        if self.first.is_none() {
            self.last = None;
        }
        Some(id)
    }

    /// Takes one out of the middle: a walk, for aborts and dying queues only.
    pub(crate) fn remove(&mut self, requests: &mut Requests, id: RequestId) {
        if self.first == Some(id) {
            self.pop(requests);
            return;
        }
        let mut before = self.first;
        while let Some(at) = before {
            let Some(behind) = requests.get(at).map(|request| request.behind) else { return };
            if behind == Some(id) {
                let after = requests.get_mut(id).and_then(|request| request.behind.take());
                if let Some(request) = requests.get_mut(at) {
                    request.behind = after;
                }
                if after.is_none() {
                    self.last = before;
                }
                return;
            }
            before = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn requests(count: u32) -> (Requests, Vec<RequestId>) {
        let queue = QueueId { slot: 0, generation: 0 };
        let mut table = Requests::preallocated(count);
        let ids = (0..count)
            .map(|_| {
                let mut request = Request::new(queue, &Sqe::default(), Instant::default());
                request.obligation.take().unwrap().excused();
                table.insert(request).unwrap()
            })
            .collect();
        (table, ids)
    }

    proptest! {
        #[test]
        fn a_fifo_behaves_like_a_deque(steps in prop::collection::vec((0_u8..4, 0_usize..6), 0..100)) {
            let (mut table, ids) = requests(6);
            let mut fifo = Fifo::default();
            let mut oracle = VecDeque::new();
            for (action, which) in steps {
                match action {
                    0 if !oracle.contains(&ids[which]) => {
                        fifo.push(&mut table, ids[which]);
                        oracle.push_back(ids[which]);
                    }
                    3 if !oracle.contains(&ids[which]) => {
                        fifo.push_front(&mut table, ids[which]);
                        oracle.push_front(ids[which]);
                    }
                    1 => prop_assert_eq!(fifo.pop(&mut table), oracle.pop_front()),
                    _ => {
                        fifo.remove(&mut table, ids[which]);
                        oracle.retain(|id| *id != ids[which]);
                    }
                }
                prop_assert_eq!(fifo.first(), oracle.front().copied());
                prop_assert_eq!(fifo.is_empty(), oracle.is_empty());
            }
        }

        #[test]
        fn a_token_names_its_request_and_part(part in 0..u16::BITS, slot in 0_u32..4) {
            let (mut table, ids) = requests(4);
            let id = ids[slot as usize];
            let token = token(id, part);
            prop_assert_eq!(of_token(token, &table), Some((id, part)));
            table.remove(id);
            prop_assert_eq!(of_token(token, &table), None);
        }
    }

    #[test]
    fn parts_are_distinct_while_they_are_out() {
        let (mut table, ids) = requests(1);
        let request = table.get_mut(ids[0]).unwrap();
        for expected in 0..u16::BITS {
            assert!(request.has_free_part());
            assert_eq!(request.take_part(), expected);
        }
        assert!(!request.has_free_part());
        assert!(request.return_part(7));
        assert!(!request.return_part(7));
        assert_eq!(request.take_part(), 7);
    }
}
