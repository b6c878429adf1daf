//! Queue pairs: made and connected by a thread that may block, then handed to the reactor that posts to them.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use memory::Segment;

use crate::error::{check, last, let_go};
use crate::receive::{MAX_RECEIVE_PIECES, OwnReceives, Receives};
use crate::work::{Loan, WorkId, first_place};
use crate::{
    Completion, CompletionQueue, Domain, RegisteredArena, SendChain, SharedReceiveQueue,
    VerbsError, sys,
};

/// What a queue pair is to have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Work requests posted and not retired, receives aside.
    pub sends: u32,
    /// Receives; ignored with a shared receive queue.
    pub receives: u32,
    /// Pieces of memory in one work request.
    pub pieces: u32,
    /// Bytes of inline data; a device may give more.
    pub inline: u32,
}

/// The state of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the states of the specification")]
pub enum State {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
    Other(u32),
}

impl State {
    pub(crate) fn raw(self) -> u32 {
        match self {
            State::Reset => sys::QPS_RESET,
            State::Init => sys::QPS_INIT,
            State::ReadyToReceive => sys::QPS_RTR,
            State::ReadyToSend => sys::QPS_RTS,
            State::Error => sys::QPS_ERR,
            State::Other(raw) => raw,
        }
    }

    pub(crate) fn from_raw(raw: u32) -> State {
        let known =
            [State::Reset, State::Init, State::ReadyToReceive, State::ReadyToSend, State::Error];
        known.into_iter().find(|state| state.raw() == raw).unwrap_or(State::Other(raw))
    }
}

/// The queue pair as its connection knows it, which may outlive it.
#[derive(Clone)]
pub(crate) struct Lifeline(Arc<Mutex<Life>>);

struct Life {
    /// None once it has been destroyed, or could not be.
    pointer: Option<Pointer>,
    /// It could not be: the device may still reach what it was lent.
    stays: bool,
    /// Of a thread's domain: the thread that may be posting.
    poster: Option<ThreadId>,
}

#[derive(Clone, Copy)]
struct Pointer(NonNull<sys::Qp>);

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Pointer {}

impl Lifeline {
    fn lock(&self) -> MutexGuard<'_, Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes attributes of the queue pair; nothing if it is gone.
    pub(crate) fn modify(
        &self,
        domain: &Domain,
        attributes: &mut sys::QpAttr,
        mask: i32,
    ) -> Result<(), VerbsError> {
        let life = self.lock();
        let Some(Pointer(raw)) = life.pointer else { return Ok(()) };
        let posts = life.poster.is_some_and(|poster| poster != thread::current().id());
        if posts && attributes.qp_state == sys::QPS_ERR {
            return Err(VerbsError::Misuse("the thread of the queue pair has not ceased to post"));
        }
        let api = domain.device().library().api();
        // SAFETY: a live queue pair, which cannot be destroyed while the lock is held.
        check("ibv_modify_qp", unsafe { (api.ibv_modify_qp)(raw.as_ptr(), attributes, mask) })
    }
}

/// A reliable-connected queue pair, not posted to yet.
pub struct QueuePair {
    raw: NonNull<sys::Qp>,
    number: u32,
    capacity: Capacity,
    lifeline: Lifeline,
    domain: Domain,
    shared: Option<SharedReceiveQueue>,
    completions: [CompletionQueue; 2],
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread; nothing is posted here.
unsafe impl Send for QueuePair {}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("number", &self.number).finish_non_exhaustive()
    }
}

impl QueuePair {
    /// A queue pair in the state Reset. Its sends and its receives report to one completion queue each, or to the same. It is
    /// for the caller to see that all of their completions have room there.
    ///
    /// # Errors
    /// If the device has no more, or not so large ones.
    pub fn new(
        domain: &Domain,
        sends: &CompletionQueue,
        receives: &CompletionQueue,
        shared: Option<&SharedReceiveQueue>,
        capacity: Capacity,
    ) -> Result<QueuePair, VerbsError> {
        let device = domain.device();
        let foreign = sends.device() != device
            || receives.device() != device
            || shared.is_some_and(|shared| shared.domain().device() != device);
        if foreign {
            return Err(VerbsError::Misuse("the queue pair's parts are of different devices"));
        }
        let receive = u32::from(shared.is_none());
        let max_recv_sge = u32::try_from(MAX_RECEIVE_PIECES).unwrap_or(u32::MAX) * receive;
        let mut options = sys::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: sends.raw(),
            recv_cq: receives.raw(),
            srq: shared.map_or(ptr::null_mut(), SharedReceiveQueue::raw),
            cap: sys::QpCap {
                max_send_wr: capacity.sends,
                max_recv_wr: capacity.receives * receive,
                max_send_sge: capacity.pieces,
                max_recv_sge,
                max_inline_data: capacity.inline,
            },
            qp_type: sys::QPT_RC,
            sq_sig_all: 0,
        };
        let api = device.library().api();
        // SAFETY: live objects of one device, which the queue pair keeps.
        let raw = unsafe { (api.ibv_create_qp)(domain.pd(), &raw mut options) };
        let raw = NonNull::new(raw).ok_or_else(|| last("ibv_create_qp"))?;
        let given = options.cap;
        let capacity = Capacity { inline: given.max_inline_data.max(capacity.inline), ..capacity };
        Ok(QueuePair {
            raw,
            // SAFETY: a queue pair just made, whose number does not change.
            number: unsafe { (*raw.as_ptr()).qp_num },
            capacity,
            lifeline: Lifeline(Arc::new(Mutex::new(Life {
                pointer: Some(Pointer(raw)),
                stays: false,
                poster: None,
            }))),
            domain: domain.clone(),
            shared: shared.cloned(),
            completions: [sends.clone(), receives.clone()],
        })
    }

    /// Its number, by which completions and events name it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it has room for.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Its domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    pub(crate) fn lifeline(&self) -> &Lifeline {
        &self.lifeline
    }

    /// Asks the device for the state.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn state(&self) -> Result<State, VerbsError> {
        let mut attributes = sys::QpAttr::default();
        let mut options = sys::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: ptr::null_mut(),
            recv_cq: ptr::null_mut(),
            srq: ptr::null_mut(),
            cap: sys::QpCap::default(),
            qp_type: 0,
            sq_sig_all: 0,
        };
        let api = self.domain.device().library().api();
        // SAFETY: a live queue pair, and room for the answers.
        let result = unsafe {
            (api.ibv_query_qp)(
                self.raw.as_ptr(),
                &raw mut attributes,
                sys::QP_STATE,
                &raw mut options,
            )
        };
        check("ibv_query_qp", result)?;
        Ok(State::from_raw(attributes.qp_state))
    }

    /// Ends it: everything posted is flushed.
    ///
    /// # Errors
    /// If the device is gone; if it is of another thread's domain, which has not [ceased](WorkQueue::cease) to post.
    pub fn fail(&self) -> Result<(), VerbsError> {
        fail(&self.lifeline, &self.domain)
    }
}

pub(crate) fn fail(lifeline: &Lifeline, domain: &Domain) -> Result<(), VerbsError> {
    let mut attributes = sys::QpAttr { qp_state: sys::QPS_ERR, ..sys::QpAttr::default() };
    lifeline.modify(domain, &mut attributes, sys::QP_STATE)
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let mut life = self.lifeline.lock();
        life.pointer = None;
        // SAFETY: our own queue pair, which nobody can reach any more: its connection asks under the lock.
        let result =
            unsafe { (self.domain.device().library().api().ibv_destroy_qp)(self.raw.as_ptr()) };
        life.stays = !let_go("ibv_destroy_qp", result, || {
            (self.domain.clone(), self.shared.clone(), self.completions.clone())
        });
    }
}

/// What a queue pair has on loan.
struct Loans {
    /// Of its sends, by their places.
    sends: VecDeque<(u32, Loan)>,
    own: Option<OwnReceives>,
    lifeline: Lifeline,
}

impl Drop for Loans {
    fn drop(&mut self) {
        if self.lifeline.lock().stays {
            // As for a shared receive queue: rather lost than corrupted.
            mem::forget((mem::take(&mut self.sends), self.own.take()));
        }
    }
}

/// A queue pair on the thread that posts to it. It holds the loans of what is posted until that has ended; dropped, it
/// destroys the queue pair first.
pub struct WorkQueue {
    // Dropped first: from then on the device leaves the memory below alone.
    pair: QueuePair,
    post: sys::PostSend,
    /// The place of the next work request, and the first that has not been retired.
    next: u32,
    oldest: u32,
    lent: Loans,
    ceased: bool,
}

impl fmt::Debug for WorkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("WorkQueue");
        debug.field("number", &self.pair.number).field("outstanding", &self.outstanding());
        debug.finish_non_exhaustive()
    }
}

impl WorkQueue {
    /// The half that posts.
    ///
    /// # Errors
    /// If the device's driver cannot, or the queue pair's domain belongs to another thread.
    pub fn new(pair: QueuePair) -> Result<WorkQueue, VerbsError> {
        // SAFETY: an open context, whose operations do not change.
        let (post, post_recv) = unsafe {
            let ops = &(*pair.domain.device().context()).ops;
            (ops.post_send, ops.post_recv)
        };
        let unable = || VerbsError::Misuse("the device's driver cannot post");
        let own = if pair.is_shared() {
            None
        } else {
            let receives = Receives::new(pair.capacity.receives as usize);
            Some(OwnReceives { post: post_recv.ok_or_else(unable)?, receives })
        };
        let sends = VecDeque::with_capacity(pair.capacity.sends as usize);
        let lent = Loans { sends, own, lifeline: pair.lifeline.clone() };
        let post = post.ok_or_else(unable)?;
        if pair.domain.claim()? {
            pair.lifeline.lock().poster = Some(thread::current().id());
        }
        let first = first_place();
        Ok(WorkQueue { post, pair, next: first, oldest: first, lent, ceased: false })
    }

    /// The queue pair.
    pub fn pair(&self) -> &QueuePair {
        &self.pair
    }

    /// Work requests posted and not retired.
    pub fn outstanding(&self) -> usize {
        (self.next.wrapping_sub(self.oldest) % WorkId::PLACES) as usize
    }

    /// Receives of its own queue posted or about to be.
    pub fn receiving(&self) -> usize {
        self.lent.own.as_ref().map_or(0, |own| own.receives.outstanding())
    }

    /// Whether somebody waits for memory that is on loan to it ([`Segment::is_wanted`]).
    pub fn is_wanted(&self) -> bool {
        self.lent.sends.iter().any(|(_, loan)| loan.segment().is_wanted())
    }

    /// How many more may be posted.
    pub fn room(&self) -> usize {
        (self.pair.capacity.sends as usize).saturating_sub(self.outstanding())
    }

    /// The queue pair, which may leave this thread again, to be destroyed where that may take its time. None if something
    /// is still on loan: then it has been destroyed here.
    pub fn into_pair(mut self) -> Option<QueuePair> {
        self.cease();
        (self.outstanding() == 0 && self.receiving() == 0).then_some(self.pair)
    }

    /// Posts nothing any more; what is posted is still to be retired. From now on another thread may fail the queue pair, which has
    /// to wait for this if it is of a thread's domain.
    pub fn cease(&mut self) {
        self.ceased = true;
        self.pair.lifeline.lock().poster = None;
    }

    fn may_post(&self) -> Result<(), VerbsError> {
        if self.ceased {
            Err(VerbsError::Misuse("the work queue has ceased to post"))
        } else {
            Ok(())
        }
    }

    /// Posts the whole chain and empties it.
    ///
    /// # Errors
    /// [`VerbsError::Full`] if it does not fit; then nothing was posted and the chain is as it was. Whatever else the device
    /// refuses is the end of the queue pair: some of the chain may have been posted, the rest is dropped.
    #[inline]
    pub fn post(&mut self, chain: &mut SendChain) -> Result<(), VerbsError> {
        self.may_post()?;
        let (wanted, room) = (chain.len(), self.room());
        if wanted > room {
            return Err(VerbsError::Full { wanted, room });
        }
        let first = chain.link(self.next);
        if first.is_null() {
            return Ok(());
        }
        let mut bad = ptr::null_mut();
        // SAFETY: a live queue pair, and a chain of requests over inline data, which is copied now, or over registered memory
        // whose loans are kept below until they have ended.
        let result = check("ibv_post_send", unsafe {
            (self.post)(self.pair.raw.as_ptr(), first, &raw mut bad)
        });
        let posted = if result.is_ok() { wanted } else { chain.before(bad) };
        for (index, loan) in chain.lent.drain(..) {
            if (index as usize) < posted {
                self.lent.sends.push_back((self.next.wrapping_add(index) % WorkId::PLACES, loan));
            }
        }
        self.next =
            self.next.wrapping_add(u32::try_from(posted).unwrap_or_default()) % WorkId::PLACES;
        chain.clear();
        result
    }

    /// Takes note of a completion of this queue pair's sends: it and all before it have ended, and what they had on loan is
    /// free. Has to be called for each of them; what is none of them, or was handed in before, is without effect.
    #[inline]
    pub fn retire(&mut self, completion: &Completion) {
        let id = completion.id();
        if id.is_receive() || completion.qp_num() != self.pair.number {
            return;
        }
        let ended = id.place().wrapping_add(1).wrapping_sub(self.oldest) % WorkId::PLACES;
        if ended as usize > self.outstanding() {
            return;
        }
        self.oldest = self.oldest.wrapping_add(ended) % WorkId::PLACES;
        let outstanding = self.outstanding();
        while let Some((place, _)) = self.lent.sends.front() {
            if ((place.wrapping_sub(self.oldest) % WorkId::PLACES) as usize) < outstanding {
                break;
            }
            self.lent.sends.pop_front();
        }
    }

    /// Adds a receive to the queue pair's own queue, to be posted by the next [`WorkQueue::flush_receives`].
    ///
    /// # Errors
    /// [`VerbsError::Misuse`] if it has none, the tag is in use or too large, or the memory is not registered or being looked at.
    pub fn push_receive(
        &mut self,
        tag: u32,
        memory: &RegisteredArena,
        segments: [Option<Segment>; MAX_RECEIVE_PIECES],
    ) -> Result<(), VerbsError> {
        self.may_post()?;
        let own = self.lent.own.as_mut();
        let own = own.ok_or(VerbsError::Misuse("the queue pair receives by a shared queue"))?;
        own.push(tag, memory, segments)
    }

    /// Posts everything pushed since. The queue pair has to be in the state Init or beyond.
    ///
    /// # Errors
    /// If the device refuses; those refused are dropped.
    pub fn flush_receives(&mut self) -> Result<(), VerbsError> {
        self.may_post()?;
        let raw = self.pair.raw.as_ptr();
        self.lent.own.as_mut().map_or(Ok(()), |own| own.flush(raw))
    }

    /// The memory of a receive of its own queue that has ended, whatever its status; none if it is not one of these, or no more.
    pub fn take_receive(
        &mut self,
        completion: &Completion,
    ) -> Option<[Option<Segment>; MAX_RECEIVE_PIECES]> {
        if completion.qp_num() != self.pair.number {
            return None;
        }
        self.lent.own.as_mut()?.take(completion)
    }
}
