//! NVMe commands to generic character devices (`/dev/ngXnY`), by a ring of their own.
//!
//! A command fills an entry of 128 bytes and its completion one of 32. Such a ring is made when the first device on a
//! reactor wants one, and shared by all devices there. A poller of its own gives the kernel what a turn has queued, by
//! one `io_uring_enter` at the end of the turn, and stays until the last command has come back, whatever became of
//! those who sent them.
//!
//! **Polled** is the ring where the device can be asked for completions and the reactor never sleeps: interrupts are then
//! not used at all, and the kernel is entered every turn while there are commands in flight. Otherwise the device
//! interrupts, and a sleeping reactor is woken by the ring's descriptor in its epoll set; for that to be reliable, the
//! ring does without deferred task work (see `Core::sleep`) unless the reactor never sleeps.
//!
//! **Pinned memory**: the pools that the reactor's own ring knows are registered here too, a slab per turn, as each
//! takes milliseconds. Until then they are used as plain memory. They are registered in pieces of [`PINNED`] bytes, which a
//! command must not exceed to profit: kernels before 6.12 hold all that remains of a registered piece, not only what
//! a command uses of it, against the number of segments that the driver takes, which is some 127 pages.
//!
//! Rejected: large entries on the reactor's only ring (twice the memory traffic for every other operation, refused by
//! kernels before 5.19, and a polled ring takes no other operations at all); a ring per device (an `io_uring_enter` and
//! a registration of all buffers for each); cancelling (the kernel has no way to).

mod command;
mod core;
mod namespace;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Once};

use memory::Pool;

use self::core::CommandCore;
use super::{Features, RingFile};
use crate::{EventSource, Interest, Local, Poller, PollerId, Progress};

pub use self::command::{NvmeOp, Payload};
pub use self::namespace::{Data, Namespace, NamespaceError, is_generic_device};

/// The bytes in which memory is pinned: data of one command that crosses no multiple of it is used so.
pub const PINNED: usize = 256 << 10;

/// The ring's descriptor among the driver's events.
const RING: u32 = 0;

/// The ring for NVMe commands on a reactor; one for each set of features that devices there have.
pub struct CommandRing {
    core: Rc<RefCell<CommandCore>>,
}

impl CommandRing {
    /// The ring on this reactor for devices that can do so much ([`Namespace::try_commands`]); `None` if there is none.
    /// If that is the kernel's doing, a line says so, once.
    pub fn of(local: &Local, device: Features) -> Option<Rc<CommandRing>> {
        let ring = local.ring()?;
        let mut wanted = device - ring.without();
        if !wanted.contains(Features::FOR_COMMANDS) {
            return None;
        }
        let mut setup = Features::all() - Features::OF_COMMANDS - ring.without();
        if local.may_sleep() {
            wanted.remove(Features::POLLED_COMMANDS);
            setup.remove(Features::DEFER_TASKRUN);
        }
        let entries = u32::try_from(ring.capacity()).unwrap_or(u32::MAX);
        let made = local.resident(u64::from(wanted.bits()), || {
            let core = CommandCore::new(local.index(), entries, wanted | setup)?;
            CommandRing::start(local, core, ring.pools())
        });
        made.inspect_err(|error| {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    "io_uring cannot be used for NVMe commands ({error}); \
                     they are sent by worker threads instead, which is slower"
                );
            });
        })
        .ok()
    }

    fn start(local: &Local, core: CommandCore, pools: Vec<Pool>) -> io::Result<CommandRing> {
        let source = local.source();
        source.register(&core, RING, Interest::READ | Interest::SLEEP)?;
        let core = Rc::new(RefCell::new(core));
        let id = Rc::new(Cell::new(None));
        let driver = Driver {
            core: Rc::clone(&core),
            source,
            pools,
            local: local.clone(),
            id: Rc::clone(&id),
        };
        id.set(Some(local.add_poller(Box::new(driver))));
        Ok(CommandRing { core })
    }

    /// A new port, for one component.
    pub fn port(self: &Rc<Self>) -> CommandPort {
        let index = self.core.borrow_mut().open_port();
        CommandPort { ring: Rc::clone(self), index }
    }

    /// Makes a namespace known to the ring.
    pub fn register(&self, namespace: &Namespace) -> RingNamespace {
        RingNamespace::new(namespace, self.register_file(Arc::clone(namespace.file())))
    }

    /// Has the ring keep a file open until the last command is done, even if the process is killed before.
    pub fn register_file(&self, file: Arc<OwnedFd>) -> RingFile {
        self.core.borrow_mut().register_file(file)
    }

    /// The features in use.
    pub fn features(&self) -> Features {
        self.core.borrow().features()
    }

    /// Commands in flight now, those submitted this turn included.
    pub fn in_flight(&self) -> usize {
        self.core.borrow().in_flight()
    }

    /// Slabs of the reactor's pools that are registered so far.
    pub fn registered_slabs(&self) -> usize {
        self.core.borrow().registered_slabs()
    }
}

impl fmt::Debug for CommandRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandRing").finish_non_exhaustive()
    }
}

/// A namespace that a ring knows.
#[derive(Debug, Clone)]
pub struct RingNamespace {
    file: RingFile,
    nsid: u32,
    block_size: u32,
}

impl RingNamespace {
    fn new(namespace: &Namespace, file: RingFile) -> RingNamespace {
        RingNamespace { file, nsid: namespace.nsid(), block_size: namespace.block_size() }
    }
}

/// One component's access to the ring. Dropped, its commands go on to their end and their results are discarded.
pub struct CommandPort {
    ring: Rc<CommandRing>,
    index: usize,
}

impl CommandPort {
    /// Queues a command; it starts at the end of the turn. Its result will carry `tag`.
    ///
    /// # Errors
    /// The command itself when the ring is full (try again next turn) or closed.
    #[expect(clippy::result_large_err, reason = "the caller gets back what it would have to keep")]
    pub fn submit(&self, op: NvmeOp, tag: u64) -> Result<(), NvmeOp> {
        self.ring.core.borrow_mut().push(self.index, op, tag)
    }

    /// Calls `done` with the tag and the result of up to `max` finished commands; the port may be used from within. The
    /// number of calls.
    pub fn drain(&self, max: usize, mut done: impl FnMut(u64, i32)) -> usize {
        self.ring.core.borrow_mut().reap();
        let mut count = 0;
        while count < max {
            let Some((tag, result)) = self.ring.core.borrow_mut().pop(self.index) else {
                break;
            };
            count += 1;
            done(tag, result);
        }
        count
    }
}

impl Drop for CommandPort {
    fn drop(&mut self) {
        self.ring.core.borrow_mut().close_port(self.index);
    }
}

impl fmt::Debug for CommandPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandPort").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Drives a ring from its first turn until nobody has it and nothing is in flight.
struct Driver {
    core: Rc<RefCell<CommandCore>>,
    source: EventSource,
    /// Pools whose slabs are not all registered yet.
    pools: Vec<Pool>,
    local: Local,
    /// Its own.
    id: Rc<Cell<Option<PollerId>>>,
}

impl Driver {
    fn is_finished(&self) -> bool {
        Rc::strong_count(&self.core) == 1 && self.core.borrow().in_flight() == 0
    }

    /// Registers one more slab.
    fn register(&mut self) {
        if let Some(pool) = self.pools.last() {
            let mut core = self.core.borrow_mut();
            let before = core.registered_slabs();
            if core.register_pool(pool, 1) == before {
                self.pools.pop();
            }
        }
    }
}

impl Poller for Driver {
    fn poll(&mut self) -> Progress {
        self.source.drain(|_, _| {});
        let reaped = self.core.borrow_mut().reap();
        if self.is_finished()
            && let Some(id) = self.id.take()
        {
            self.local.remove_poller(id);
        }
        Progress::from_worked(reaped > 0 || !self.pools.is_empty())
    }

    fn flush(&mut self) {
        self.register();
        let entered = self.core.borrow_mut().submit();
        self.local.count_ring_enter(entered);
    }

    fn ready_to_sleep(&mut self) -> bool {
        self.pools.is_empty() && !self.is_finished() && self.core.borrow_mut().is_quiet()
    }

    fn name(&self) -> &'static str {
        "nvme command ring"
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut core = self.core.borrow_mut();
        // Whether it worked is of no interest: it ends with the descriptor at the latest.
        let _ = self.source.deregister(&*core, RING);
        core.close();
    }
}
