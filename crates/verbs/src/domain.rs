//! The protection domain: what belongs together, and may not be reached from elsewhere; and one thread's share of it.
//!
//! # A thread's domain
//! Drivers guard each queue pair with a lock, and share the doorbells of a device among all of them. They leave the locks out, and
//! give doorbells of their own, for what is made with a *parent domain*: a protection domain joined with a *thread domain*.
//! [`Domain::for_thread`] is both at once. It opens the same memory: keys are those of the protection domain.
//!
//! What drivers want in return is that no two threads call them at the same time on one such object, nor post to two objects of
//! one such domain. mlx5 ends the process if it notices. Threads may take turns, if something orders them. So:
//!
//! * The first thread to make a [`WorkQueue`](crate::WorkQueue) of such a domain is the only one that can. Work queues do not leave their
//!   thread, so it is the only one that posts.
//! * A queue pair is made, connected and destroyed by whoever owns the [`QueuePair`](crate::QueuePair), which is either there or in a work queue.
//! * Its connection may fail it from another thread, which some drivers (hns) guard with the lock of posting. That is refused until
//!   the work queue [has ceased](crate::WorkQueue::cease) to post.
//! * A shared receive queue is made with the protection domain, and has its lock. A queue pair that is destroyed gives receives that it
//!   left in a completion queue back to it (mlx5, hns), on the destroyer's thread.
//! * Completion queues have their locks, too: they would have to be made by `ibv_create_cq_ex`, and destroying a queue pair looks
//!   through them.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use crate::error::{last, let_go};
use crate::{Device, VerbsError, sys};

struct Allocated {
    pd: NonNull<sys::Pd>,
    // Dropped after the domain itself: a thread domain, and the protection domain in which it is joined.
    thread: Option<Thread>,
    device: Device,
}

// SAFETY: an address that is only handed to the verbs, which may be called from any thread.
unsafe impl Send for Allocated {}
// SAFETY: as above.
unsafe impl Sync for Allocated {}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: our own domain; every region and queue of it held this, so none is left, nor a thread's domain of it.
        let result = unsafe { (self.device.library().api().ibv_dealloc_pd)(self.pd.as_ptr()) };
        let_go("ibv_dealloc_pd", result, || (self.thread.take(), self.device.clone()));
    }
}

/// A thread domain of a device that has such a thing.
struct Thread {
    td: NonNull<sys::Td>,
    calls: sys::ThreadDomains,
    /// Whose it is, once somebody posts.
    owner: OnceLock<ThreadId>,
    protection: Domain,
}

impl Thread {
    fn new(protection: &Domain) -> Option<Thread> {
        let context = protection.device().context();
        // SAFETY: an open context.
        let calls = unsafe { sys::thread_domains(context) }?;
        let mut options = sys::TdInitAttr::default();
        // SAFETY: the context that the call is of, and options without any demand.
        let td = NonNull::new(unsafe { (calls.alloc_td)(context, &raw mut options) })?;
        Some(Thread { td, calls, owner: OnceLock::new(), protection: protection.clone() })
    }

    fn join(&self) -> Option<NonNull<sys::Pd>> {
        let mut options = sys::ParentDomainInitAttr {
            pd: self.protection.pd(),
            td: self.td.as_ptr(),
            comp_mask: 0,
            alloc: ptr::null_mut(),
            free: ptr::null_mut(),
            pd_context: ptr::null_mut(),
        };
        let context = self.protection.device().context();
        // SAFETY: two live domains of this context.
        NonNull::new(unsafe { (self.calls.alloc_parent_domain)(context, &raw mut options) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: our own thread domain; what it was joined in is gone.
        let result = unsafe { (self.calls.dealloc_td)(self.td.as_ptr()) };
        let_go("ibv_dealloc_td", result, || self.protection.clone());
    }
}

/// A handle to a protection domain, or to a thread's share of one; clones refer to the same.
#[derive(Clone)]
pub struct Domain(Arc<Allocated>);

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("device", self.device())
            .field("for_thread", &self.is_for_thread())
            .finish_non_exhaustive()
    }
}

impl Domain {
    /// A new domain of a device.
    ///
    /// # Errors
    /// If the device has none left.
    pub fn new(device: &Device) -> Result<Domain, VerbsError> {
        // SAFETY: an open context.
        let pd = unsafe { (device.library().api().ibv_alloc_pd)(device.context()) };
        let pd = NonNull::new(pd).ok_or_else(|| last("ibv_alloc_pd"))?;
        Ok(Domain(Arc::new(Allocated { pd, thread: None, device: device.clone() })))
    }

    /// The same domain for the queue pairs of one thread, see the module. Where the device has no such thing, or none left, it
    /// is the domain itself, which is as good but for the locks; [`Domain::is_for_thread`] tells.
    #[must_use]
    pub fn for_thread(&self) -> Domain {
        let protection = self.protection();
        let joined = Thread::new(protection).and_then(|thread| Some((thread.join()?, thread)));
        let Some((pd, thread)) = joined else { return protection.clone() };
        let device = self.device().clone();
        Domain(Arc::new(Allocated { pd, thread: Some(thread), device }))
    }

    /// Whether its queue pairs belong to one thread.
    pub fn is_for_thread(&self) -> bool {
        self.0.thread.is_some()
    }

    /// The protection domain that it is, or is a thread's share of.
    pub(crate) fn protection(&self) -> &Domain {
        self.0.thread.as_ref().map_or(self, |thread| &thread.protection)
    }

    /// This thread is about to post to what is made of it. Whether it may, and nobody else may.
    pub(crate) fn claim(&self) -> Result<bool, VerbsError> {
        let Some(thread) = &self.0.thread else { return Ok(false) };
        let this = thread::current().id();
        if *thread.owner.get_or_init(|| this) != this {
            return Err(VerbsError::Misuse(
                "the domain of the queue pair belongs to another thread",
            ));
        }
        Ok(true)
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn pd(&self) -> *mut sys::Pd {
        self.0.pd.as_ptr()
    }
}
