//! Receives: posted as loans, given back by their completions; shared receive queues.

use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use memory::{DeviceWrite, Segment};

use crate::error::{check, last, let_go};
use crate::work::{NOT_REGISTERED, NOT_WRITABLE, Serials, WorkId};
use crate::{Completion, Domain, RegisteredArena, VerbsError, sys};

/// Pieces of memory of one receive at most: a capsule and the data in it.
pub const MAX_RECEIVE_PIECES: usize = 2;

type Lent = [Option<Segment>; MAX_RECEIVE_PIECES];

/// A receive, and what the device may be writing because of it.
struct Posted {
    id: WorkId,
    lent: [Option<DeviceWrite>; MAX_RECEIVE_PIECES],
}

/// What is posted, by tag, and what is about to be.
pub(crate) struct Receives {
    posted: Vec<Option<Posted>>,
    serials: Serials,
    outstanding: usize,
    requests: Vec<sys::RecvWr>,
    pieces: Box<[[sys::Sge; MAX_RECEIVE_PIECES]]>,
}

impl Receives {
    pub(crate) fn new(capacity: usize) -> Receives {
        Receives {
            posted: (0..capacity).map(|_| None).collect(),
            serials: Serials::default(),
            outstanding: 0,
            requests: Vec::with_capacity(capacity),
            pieces: vec![<[sys::Sge; MAX_RECEIVE_PIECES]>::default(); capacity].into_boxed_slice(),
        }
    }

    fn push(
        &mut self,
        tag: u32,
        memory: &RegisteredArena,
        segments: Lent,
    ) -> Result<(), VerbsError> {
        let slot = self.posted.get_mut(tag as usize);
        let id = WorkId::receive(tag, self.serials.next());
        let beyond = VerbsError::Misuse("a receive's tag is beyond the queue's capacity");
        let (Some(slot), Some(id)) = (slot, id) else { return Err(beyond) };
        if slot.is_some() {
            return Err(VerbsError::Misuse("a receive with this tag is posted already"));
        }
        let mut pieces = <[sys::Sge; MAX_RECEIVE_PIECES]>::default();
        let mut count = 0;
        let (mut lent, mut free) = ([None, None], pieces.iter_mut());
        for (lent, segment) in lent.iter_mut().zip(segments) {
            if let Some(segment) = segment
                && let Some(piece) = free.next()
            {
                *piece = memory.sge(&segment).ok_or(NOT_REGISTERED)?;
                *lent = Some(segment.device_write().ok_or(NOT_WRITABLE)?);
                count += 1;
            }
        }
        let room = self.pieces.get_mut(self.requests.len());
        *room.ok_or(VerbsError::Full { wanted: 1, room: 0 })? = pieces;
        *slot = Some(Posted { id, lent });
        self.outstanding += 1;
        let (next, sg_list) = (ptr::null_mut(), ptr::null_mut());
        self.requests.push(sys::RecvWr { wr_id: id.0, next, sg_list, num_sge: count });
        Ok(())
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    fn link(&mut self) -> *mut sys::RecvWr {
        let count = self.requests.len();
        let first = self.requests.as_mut_ptr();
        for (index, pieces) in self.pieces.iter_mut().take(count).enumerate() {
            // SAFETY: below the number of requests; all accesses go through the one pointer that the links are made of.
            unsafe {
                (*first.add(index)).sg_list = pieces.as_mut_ptr();
                (*first.add(index)).next =
                    if index + 1 < count { first.add(index + 1) } else { ptr::null_mut() };
            }
        }
        if count == 0 { ptr::null_mut() } else { first }
    }

    /// Posts what was pushed by `post`; what was refused is given back.
    fn flush(
        &mut self,
        call: &'static str,
        post: impl FnOnce(*mut sys::RecvWr, *mut *mut sys::RecvWr) -> i32,
    ) -> Result<(), VerbsError> {
        let first = self.link();
        if first.is_null() {
            return Ok(());
        }
        let mut bad = ptr::null_mut();
        let result = check(call, post(first, &raw mut bad));
        if result.is_err() {
            let refused = self.requests.iter().skip_while(|request| !ptr::eq(*request, bad));
            for request in refused {
                if let Some(slot) = self.posted.get_mut(WorkId(request.wr_id).tag() as usize) {
                    *slot = None;
                    self.outstanding -= 1;
                }
            }
        }
        self.requests.clear();
        result
    }

    /// The loans of a receive that has ended. None if it is of another queue, or was handed in before: then there may be another one
    /// with this tag, which the device still has.
    #[inline]
    fn take(&mut self, completion: &Completion) -> Option<Lent> {
        let slot = self.posted.get_mut(completion.tag() as usize)?;
        let Posted { lent, .. } = slot.take_if(|posted| posted.id == completion.id())?;
        self.outstanding -= 1;
        let [first, second] = lent;
        Some([first.map(DeviceWrite::end), second.map(DeviceWrite::end)])
    }
}

struct Created {
    /// None once it has been destroyed, or could not be.
    raw: Option<NonNull<sys::Srq>>,
    post: sys::PostSrqRecv,
    capacity: u32,
    domain: Domain,
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Created {}
// SAFETY: as above.
unsafe impl Sync for Created {}

impl Created {
    /// Whether it is gone, and with it the device's access to what is posted.
    fn destroy(&mut self) -> bool {
        let Some(raw) = self.raw.take() else { return false };
        // SAFETY: our own queue; every queue pair of it held this, so none is left.
        let result =
            unsafe { (self.domain.device().library().api().ibv_destroy_srq)(raw.as_ptr()) };
        let_go("ibv_destroy_srq", result, || self.domain.clone())
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// A handle to a shared receive queue, for queue pairs to be made with; clones refer to the same.
#[derive(Clone)]
pub struct SharedReceiveQueue(Arc<Created>);

impl fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue")
            .field("capacity", &self.0.capacity)
            .finish_non_exhaustive()
    }
}

impl SharedReceiveQueue {
    /// A queue for `capacity` receives. `token` is what events call it. It belongs to no thread, though the domain may.
    ///
    /// # Errors
    /// If the device has none, or not so large ones.
    pub fn new(
        domain: &Domain,
        capacity: u32,
        token: u64,
    ) -> Result<SharedReceiveQueue, VerbsError> {
        let domain = domain.protection();
        let max_sge = u32::try_from(MAX_RECEIVE_PIECES).unwrap_or(u32::MAX);
        let token = usize::try_from(token).unwrap_or(usize::MAX);
        let mut options = sys::SrqInitAttr {
            srq_context: ptr::without_provenance_mut(token),
            attr: sys::SrqAttr { max_wr: capacity, max_sge, srq_limit: 0 },
        };
        // SAFETY: a live domain; the token is never followed.
        let raw = unsafe {
            (domain.device().library().api().ibv_create_srq)(domain.pd(), &raw mut options)
        };
        let raw = NonNull::new(raw).ok_or_else(|| last("ibv_create_srq"))?;
        // SAFETY: an open context, whose operations do not change.
        let post = unsafe { (*domain.device().context()).ops.post_srq_recv };
        let Some(post) = post else {
            // SAFETY: the queue just made, which nobody has seen.
            unsafe { (domain.device().library().api().ibv_destroy_srq)(raw.as_ptr()) };
            return Err(VerbsError::Misuse("the device's driver has no shared receive queues"));
        };
        let (raw, domain) = (Some(raw), domain.clone());
        Ok(SharedReceiveQueue(Arc::new(Created { raw, post, capacity, domain })))
    }

    pub(crate) fn raw(&self) -> *mut sys::Srq {
        self.0.raw.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    pub(crate) fn domain(&self) -> &Domain {
        &self.0.domain
    }

    /// Asks for one event when fewer than `limit` receives are left.
    ///
    /// # Errors
    /// If the device cannot do it.
    pub fn arm_limit(&self, limit: u32) -> Result<(), VerbsError> {
        let mut attr = sys::SrqAttr { srq_limit: limit, ..sys::SrqAttr::default() };
        let api = self.0.domain.device().library().api();
        // SAFETY: a live queue.
        let result = unsafe { (api.ibv_modify_srq)(self.raw(), &raw mut attr, sys::SRQ_LIMIT) };
        check("ibv_modify_srq", result)
    }
}

/// The receives of a shared receive queue: the reactor's half of it, which posts and takes back.
pub struct SharedReceives {
    queue: SharedReceiveQueue,
    receives: Receives,
}

impl fmt::Debug for SharedReceives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceives")
            .field("outstanding", &self.receives.outstanding)
            .finish_non_exhaustive()
    }
}

impl SharedReceives {
    /// The half that posts to `queue`. Tags are below the queue's capacity.
    pub fn new(queue: SharedReceiveQueue) -> SharedReceives {
        let receives = Receives::new(queue.0.capacity as usize);
        SharedReceives { queue, receives }
    }

    /// The queue.
    pub fn queue(&self) -> &SharedReceiveQueue {
        &self.queue
    }

    /// Receives posted or about to be.
    pub fn outstanding(&self) -> usize {
        self.receives.outstanding
    }

    /// Whether nobody else has the queue, no queue pair above all: dropped now, it gives back everything that is posted.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.queue.0) == 1
    }

    /// Adds a receive into these segments, to be posted by the next [`SharedReceives::flush`].
    ///
    /// # Errors
    /// [`VerbsError::Misuse`] if the tag is in use or too large, or the memory is not registered or being looked at.
    pub fn push(
        &mut self,
        tag: u32,
        memory: &RegisteredArena,
        segments: [Option<Segment>; MAX_RECEIVE_PIECES],
    ) -> Result<(), VerbsError> {
        self.receives.push(tag, memory, segments)
    }

    /// Posts everything pushed since.
    ///
    /// # Errors
    /// If the device refuses; those refused are dropped.
    pub fn flush(&mut self) -> Result<(), VerbsError> {
        let (queue, post) = (self.queue.raw(), self.queue.0.post);
        // SAFETY: a live queue, and a chain of requests over memory that is lent to us and registered.
        self.receives.flush("ibv_post_srq_recv", |first, bad| unsafe { post(queue, first, bad) })
    }

    /// The memory of a receive that has ended, whatever its status; none if it is not one of these, or no more.
    pub fn take(
        &mut self,
        completion: &Completion,
    ) -> Option<[Option<Segment>; MAX_RECEIVE_PIECES]> {
        self.receives.take(completion)
    }
}

impl Drop for SharedReceives {
    fn drop(&mut self) {
        if !Arc::get_mut(&mut self.queue.0).is_some_and(Created::destroy) {
            // Somebody can still receive into what is posted, so it must never be used again: rather lost than corrupted.
            mem::forget(mem::take(&mut self.receives.posted));
        }
    }
}

/// The receives of one queue pair without a shared receive queue; dropped after the queue pair.
pub(crate) struct OwnReceives {
    pub(crate) post: sys::PostRecv,
    pub(crate) receives: Receives,
}

impl OwnReceives {
    pub(crate) fn push(
        &mut self,
        tag: u32,
        memory: &RegisteredArena,
        segments: Lent,
    ) -> Result<(), VerbsError> {
        self.receives.push(tag, memory, segments)
    }

    pub(crate) fn flush(&mut self, pair: *mut sys::Qp) -> Result<(), VerbsError> {
        let post = self.post;
        // SAFETY: the caller's live queue pair, and a chain of requests over memory that is lent to us and registered.
        self.receives.flush("ibv_post_recv", |first, bad| unsafe { post(pair, first, bad) })
    }

    pub(crate) fn take(&mut self, completion: &Completion) -> Option<Lent> {
        self.receives.take(completion)
    }
}
