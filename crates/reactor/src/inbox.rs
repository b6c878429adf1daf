//! How other threads reach a reactor: two queues and, if it sleeps, an eventfd.
//!
//! # The race between sending and falling asleep
//!
//! ```text
//!   sender                          reactor
//!   S1 push the item                R1 sleeping = true
//!   S2 fence(SeqCst)                R2 fence(SeqCst)
//!   S3 if sleeping.swap(false)      R3 if a queue has an item: sleeping = false, do not sleep
//!        write the eventfd          R4 epoll_wait (the eventfd is in the set, level-triggered)
//!                                   R5 sleeping = false; if the eventfd is set: read it
//! ```
//!
//! The two fences are totally ordered. If S2 comes before R2, R3 sees the item of S1 and the
//! reactor does not sleep. If R2 comes before S2, S3 sees the `true` of R1, unless another sender
//! has swapped it away (then that one writes the eventfd, and the reactor wakes all the same) or
//! the reactor has cleared it at R3 or R5 (then it is awake and looks into the queues before it
//! sets it again). The eventfd keeps its count, so a write before R4 ends R4 at once. So no item is
//! left behind by a reactor that sleeps, and a busy reactor costs a sender no system call.
//!
//! A write that comes after R5 (the sender swapped just before) makes one later sleep end at once,
//! which is harmless.
//!
//! The message queue is lock-free but for one window: a sender preempted between claiming a place
//! and filling it holds up whoever pops that place. Messages are control traffic, so that is rare.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;

use crossbeam::queue::{ArrayQueue, SegQueue};
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};

use crate::Message;

/// The outcome of an offloaded job on its way home.
pub(crate) struct Return {
    /// Which job, as the reactor numbered it.
    pub(crate) job: usize,
    pub(crate) outcome: thread::Result<Box<dyn Any + Send>>,
}

/// The queues of one reactor.
pub(crate) struct Inbox {
    messages: ArrayQueue<Message>,
    /// Unbounded by type, bounded in fact: never more than the jobs this reactor has under way. A
    /// result must not be lost, so it cannot compete with the messages for room.
    returns: SegQueue<Return>,
    sleeping: CachePadded<AtomicBool>,
    eventfd: OwnedFd,
}

impl Inbox {
    pub(crate) fn new(capacity: usize) -> io::Result<Inbox> {
        Ok(Inbox {
            messages: ArrayQueue::new(capacity.max(1)),
            returns: SegQueue::new(),
            sleeping: CachePadded::new(AtomicBool::new(false)),
            eventfd: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// Any thread. Gives the message back if the mailbox is full.
    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        self.messages.push(message)?;
        self.wake();
        Ok(())
    }

    /// Any thread.
    pub(crate) fn give_back(&self, item: Return) {
        self.returns.push(item);
        self.wake();
    }

    /// Any thread: after something was put where the reactor looks before it sleeps.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        // Read first: the swap would take the cache line away from a busy reactor each time.
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // It can only fail when the count would overflow, and then it is set anyway.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn pop_message(&self) -> Option<Message> {
        self.messages.pop()
    }

    pub(crate) fn pop_return(&self) -> Option<Return> {
        self.returns.pop()
    }

    /// R1 to R3. `also` is looked at together with the queues; `true`: sleep now, and call
    /// [`Inbox::awake`] afterwards.
    pub(crate) fn may_sleep(&self, also: impl FnOnce() -> bool) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let nothing = self.messages.is_empty() && self.returns.is_empty() && also();
        if !nothing {
            self.sleeping.store(false, Ordering::Relaxed);
        }
        nothing
    }

    /// R5. `signalled`: epoll reported the eventfd.
    pub(crate) fn awake(&self, signalled: bool) {
        self.sleeping.store(false, Ordering::Relaxed);
        if signalled {
            let mut count = [0; 8];
            // Non-blocking: a count that was already read is no error.
            let _ = rustix::io::read(&self.eventfd, &mut count);
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
