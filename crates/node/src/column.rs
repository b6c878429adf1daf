//! What stands on one reactor: the shard of the target, and the transports that feed it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use memory::Pool;
use reactor::{Instant, Local, Poller, Progress};
use target::{Message, Shard, ShardIndex};
use transport_rdma::RdmaTransport;

use super::RDMA;
use super::inbox::{Census, Inbox, Letter};

/// Letters opened in a turn.
const LETTERS_PER_TURN: usize = 64;

/// Drives the shard of this reactor: its letters, its own work, its messages to other shards. Runs
/// before the transports in every turn, so that what devices have finished leaves in the same turn.
pub(super) struct ShardPoller {
    shard: Rc<RefCell<Shard>>,
    /// The shard's, to say how much of it is in use.
    pool: Pool,
    local: Local,
    /// To every shard, in order of their indices.
    inboxes: Rc<[Inbox]>,
    /// A message that its receiver had no room for. Everything behind it waits inside the shard,
    /// so that messages stay in order.
    held: Option<(ShardIndex, Message)>,
}

impl fmt::Debug for ShardPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardPoller").field("held", &self.held).finish_non_exhaustive()
    }
}

impl ShardPoller {
    pub(super) fn new(
        shard: Rc<RefCell<Shard>>,
        pool: Pool,
        local: Local,
        inboxes: Rc<[Inbox]>,
    ) -> ShardPoller {
        ShardPoller { shard, pool, local, inboxes, held: None }
    }

    fn inbox(&self) -> Option<&Inbox> {
        self.inboxes.get(self.local.index())
    }

    fn open_letters(&mut self) -> bool {
        let mut any = false;
        for _ in 0..LETTERS_PER_TURN {
            let Some(letter) = self.inbox().and_then(Inbox::take) else { break };
            any = true;
            let mut shard = self.shard.borrow_mut();
            match letter {
                Letter::Shard(message) => shard.deliver(message),
                Letter::Configure(configuration, done) => {
                    let local = &self.local;
                    let errors =
                        shard.configure(configuration, &mut |device| device.open_queue(local));
                    let result = match errors.first() {
                        None => Ok(()),
                        Some(error) => Err(error.to_string()),
                    };
                    // Whoever asked may have given up waiting.
                    let _ = done.send(result);
                }
                Letter::AddRdma(network, done) => {
                    drop(shard);
                    let shard = Rc::clone(&self.shard);
                    RdmaTransport::start(&network, &self.local, shard, &self.pool, RDMA);
                    let _ = done.send(Ok(()));
                }
                Letter::BeginShutdown => shard.begin_shutdown(),
                Letter::Drained(answer) => {
                    let _ = answer.send(shard.drained());
                }
                Letter::Controllers(from, answer) => {
                    let _ = answer.send(shard.controllers(from));
                }
                Letter::Queues(from, answer) => {
                    let _ = answer.send(shard.queues(from));
                }
                Letter::Census(answer) => {
                    let _ = answer.send(Census {
                        queues: shard.queues_in_use(),
                        requests: shard.requests_in_use(),
                        controllers: shard.controllers_in_use(),
                        pool: self.pool.capacity(),
                        memory: self.pool.capacity().saturating_sub(self.pool.available()),
                        counters: *shard.counters(),
                    });
                }
            }
        }
        any
    }

    fn send_messages(&mut self) {
        let mut shard = self.shard.borrow_mut();
        while let Some((to, message)) = self.held.take().or_else(|| shard.next_message()) {
            let Some(inbox) = self.inboxes.get(usize::from(to.0)) else { continue };
            if let Err(Letter::Shard(message)) = inbox.post(Letter::Shard(message)) {
                self.held = Some((to, message));
                break;
            }
        }
    }
}

impl Poller for ShardPoller {
    fn poll(&mut self) -> Progress {
        let letters = self.open_letters();
        let worked = self.shard.borrow_mut().poll(shard_time(self.local.now()));
        Progress::from_worked(letters || worked)
    }

    fn flush(&mut self) {
        self.send_messages();
    }

    fn ready_to_sleep(&mut self) -> bool {
        self.held.is_none()
            && !self.shard.borrow().has_work()
            && self.inbox().is_none_or(Inbox::is_empty)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shard.borrow().next_deadline().map(|at| Instant::from_nanos(at.as_nanos()))
    }

    fn name(&self) -> &'static str {
        "target shard"
    }
}

/// The reactor's time as the shard counts it.
pub(super) fn shard_time(now: Instant) -> target::Instant {
    target::Instant::from_nanos(now.as_nanos())
}
