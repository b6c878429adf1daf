//! A namespace of a controller as a block device, and its queue on a reactor.
//!
//! What the controller's thread finds out (size, limits, that it is gone) it writes here; reactors read it. A namespace whose block size has changed is
//! another one: the device that was opened is gone.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::{
    BlockDevice, BlockError, BlockQueue, Completion, ErrorKind, Geometry, Identity, Operation,
    Properties, Token,
};
use reactor::{EventSource, Instant, Interest, Local, Poller, PollerId, Progress};

use crate::lane::{Lane, Settings};
use crate::link::Link;
use crate::plan::Limits;
use crate::scan;

/// What the thread and the reactors know of a namespace.
#[derive(Debug)]
pub(crate) struct Shared {
    nsid: u32,
    block_size: u32,
    blocks: AtomicU64,
    /// Differs with every size.
    generation: AtomicU64,
    gone: AtomicBool,
    limits: Mutex<Limits>,
    properties: Properties,
    identity: Identity,
    shareable: bool,
}

impl Shared {
    pub(crate) fn new(nsid: u32, found: scan::Namespace) -> Shared {
        let scan::Namespace { blocks, limits, properties, identity, shareable } = found;
        Shared {
            nsid,
            block_size: 1 << limits.shift,
            blocks: AtomicU64::new(blocks),
            generation: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            limits: Mutex::new(limits),
            properties,
            identity,
            shareable,
        }
    }

    /// Whether what was found is this one, perhaps of another size.
    pub(crate) fn is_same(&self, found: &scan::Namespace) -> bool {
        1 << found.limits.shift == self.block_size
            && found.identity == self.identity
            && found.properties == self.properties
    }

    pub(crate) fn nsid(&self) -> u32 {
        self.nsid
    }

    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            blocks: self.blocks.load(Ordering::Acquire),
            generation: self.generation.load(Ordering::Acquire),
        }
    }

    /// It has been found again, with these limits; whether it is of another size.
    pub(crate) fn update(&self, blocks: u64, limits: Limits) -> bool {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        let resized = self.blocks.swap(blocks, Ordering::AcqRel) != blocks;
        if resized {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.gone.store(false, Ordering::Release);
        resized
    }

    /// It is not there any more.
    pub(crate) fn lose(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether the operation can be carried out as it stands.
    #[inline]
    pub(crate) fn admit(&self, operation: &Operation) -> Result<(), ErrorKind> {
        if self.is_gone() {
            return Err(ErrorKind::Removed);
        }
        operation.admit(self.geometry(), &self.properties)
    }
}

/// A namespace under a name.
#[derive(Debug)]
pub struct NamespaceDevice {
    name: String,
    pub(crate) shared: Arc<Shared>,
    link: Arc<Link>,
    controller: u64,
    settings: Settings,
}

impl NamespaceDevice {
    pub(crate) fn new(
        name: &str,
        shared: &Arc<Shared>,
        link: &Arc<Link>,
        controller: u64,
        settings: Settings,
    ) -> NamespaceDevice {
        let (name, shared, link) = (name.to_owned(), Arc::clone(shared), Arc::clone(link));
        NamespaceDevice { name, shared, link, controller, settings }
    }

    /// Its number.
    pub fn nsid(&self) -> u32 {
        self.shared.nsid()
    }

    /// Whether the namespace is there no more, or is another one now.
    pub fn is_gone(&self) -> bool {
        self.shared.is_gone()
    }

    /// Whether other controllers may have it too (NMIC).
    pub fn is_shareable(&self) -> bool {
        self.shared.shareable
    }
}

impl BlockDevice for NamespaceDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry()
    }

    fn properties(&self) -> &Properties {
        self.shared.properties()
    }

    fn identity(&self) -> Identity {
        self.shared.identity()
    }

    fn open_queue(&self, local: &Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let refuse = |problem: &str| BlockError::Unsuitable {
            device: self.name.clone(),
            problem: problem.to_owned(),
        };
        let handle = local.handle(local.index()).filter(|_| local.index() < self.link.reactors());
        let handle =
            handle.ok_or_else(|| refuse("its controller was attached for fewer reactors"))?;
        let home: Rc<Home> = local.resident(self.controller, || {
            self.link.join(local.index(), handle);
            let mut lane = Lane::new(&self.link, local.index(), self.settings);
            lane.take_in();
            let (lane, source) = (RefCell::new(lane), local.source());
            Ok::<_, BlockError>(Home {
                lane,
                local: local.clone(),
                source,
                watched: RefCell::default(),
                poller: Cell::new(None),
            })
        })?;
        home.attend();
        let member = home.lane.borrow_mut().join(&self.shared);
        Ok(Box::new(Queue { home, member }))
    }
}

/// The lane of a reactor, with what the reactor knows of it.
#[derive(Debug)]
struct Home {
    lane: RefCell<Lane>,
    local: Local,
    source: EventSource,
    /// What is registered with the source.
    watched: RefCell<Option<Arc<OwnedFd>>>,
    /// Absent as long as the reactor does not call it.
    poller: Cell<Option<PollerId>>,
}

impl Home {
    /// Has the reactor call the lane every turn.
    fn attend(self: &Rc<Home>) {
        if self.poller.get().is_none() {
            let poller = LanePoller { home: Rc::clone(self) };
            self.poller.set(Some(self.local.add_poller(Box::new(poller))));
        }
    }

    fn now(&self) -> Instant {
        self.local.now()
    }

    /// Has the seat's interrupts wake the reactor; whether there are any.
    fn watch(&self) -> bool {
        let lane = self.lane.borrow();
        let wanted =
            lane.seat.as_ref().and_then(|seat| seat.vector.as_ref()).map(|vector| &vector.eventfd);
        let mut watched = self.watched.borrow_mut();
        let same = match (&*watched, wanted) {
            (Some(watched), Some(wanted)) => Arc::ptr_eq(watched, wanted),
            (watched, wanted) => watched.is_none() && wanted.is_none(),
        };
        if !same {
            if let Some(old) = watched.take() {
                // It is open as long as it is here, so it can be taken out.
                let _ = self.source.deregister(&*old, 0);
            }
            if let Some(wanted) = wanted
                && self.source.register(&**wanted, 0, Interest::READ | Interest::SLEEP).is_ok()
            {
                *watched = Some(Arc::clone(wanted));
            }
        }
        watched.is_some()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(watched) = self.watched.get_mut().take() {
            let _ = self.source.deregister(&*watched, 0);
        }
    }
}

/// Calls the lane at the end of every turn.
#[derive(Debug)]
struct LanePoller {
    home: Rc<Home>,
}

impl Poller for LanePoller {
    fn poll(&mut self) -> Progress {
        self.home.source.drain(|_, _| ());
        let mut lane = self.home.lane.borrow_mut();
        let worked = lane.poll(self.home.now());
        if lane.is_deserted()
            && let Some(own) = self.home.poller.take()
        {
            self.home.local.remove_poller(own);
        }
        Progress::from_worked(worked)
    }

    fn flush(&mut self) {
        self.home.lane.borrow_mut().flush();
    }

    fn ready_to_sleep(&mut self) -> bool {
        let interrupts = self.home.watch();
        let mut lane = self.home.lane.borrow_mut();
        lane.ready_to_sleep() && (interrupts || lane.is_idle())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.home.lane.borrow().next_deadline()
    }

    fn name(&self) -> &'static str {
        "nvme queue pair"
    }
}

/// A reactor's queue of one namespace.
#[derive(Debug)]
struct Queue {
    home: Rc<Home>,
    member: usize,
}

impl BlockQueue for Queue {
    fn submit(&mut self, operation: Operation) {
        self.home.lane.borrow_mut().submit(self.member, &operation, self.home.now());
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.home.lane.borrow_mut().poll(self.home.now());
        let mut count = 0;
        while count < max {
            let next = self.home.lane.borrow_mut().take_done(self.member);
            let Some(completion) = next else { break };
            count += 1;
            done(completion);
        }
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        self.home.lane.borrow_mut().cancel(self.member, token)
    }

    fn outstanding(&self) -> usize {
        self.home.lane.borrow().outstanding(self.member)
    }

    fn needs_poll(&self) -> bool {
        self.home.lane.borrow().has_done(self.member)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.home.lane.borrow_mut().leave(self.member);
    }
}
