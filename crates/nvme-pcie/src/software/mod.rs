//! The software controller: an NVMe controller on PCIe in memory, on which all tests of the driver run.
//!
//! To the driver it is one more [`Function`]: it rings doorbells of memory that is BAR 0 and hears eventfds. **Nothing happens
//! unless it is stepped**: each [`Controller::step`] takes a register write or a doorbell, takes one entry of a submission queue, carries out
//! one command, posts one completion, tells one event, signals one interrupt, or goes on in becoming ready; which, is chosen at
//! random among all that could come next, so commands overtake each other. The seed determines everything, as long as one thread
//! drives and steps it. Whichever thread steps it; one lock is taken per step, and none by a driver at work.
//!
//! It follows NVM Express Base Specification 2.0c, NVM Command Set Specification 1.0c and NVMe over PCIe Transport Specification 1.0c,
//! and is strict: what a driver must not do ends with the status that the specification has for it, if any, and is in
//! [`Controller::violations`] besides, which a test expects to be empty. What a driver cannot know before (a namespace that is gone, an LBA
//! beyond a namespace that has shrunk, a limit that is only reported by a status) is no violation. In particular:
//!
//! * An entry of a submission queue is free when a completion has told of a head beyond it, whatever was taken before.
//! * Doorbells are never readable, and whoever writes one that has no queue, or the value that it has, is wrong.
//! * A command that is reset away may have been carried out or not; so may one whose status is a fault's.
//! * Until a disabled controller is not ready any more it goes on transferring data.
//! * Shadow doorbells are looked at when a driver has to expect it, not more often.
//! * Memory of a new completion queue must not hold phase tags that are set.
//! * Every reserved field of a command is looked at.
//!
//! What it cannot notice, since registers are memory: a register that is read too early, one that is written twice between two looks.
//! [`Controller::doorbells`] counts what it has seen, which is at most what was written.
//!
//! It allocates nothing for reads and writes of blocks that were written before, once its queues have grown.
//!
//! Rejected: a thread of its own (no seed could replay it), trapping accesses to registers (page faults in every test), and a
//! trait in place of BAR 0 (the driver's hottest path would not be what runs on hardware).

mod admin;
mod bytes;
mod control;
mod entry;
mod event;
mod faults;
mod feature;
mod firmware;
mod function;
mod identify;
mod inspection;
mod interrupt;
mod io;
mod log;
mod medium;
mod namespace;
mod options;
mod pointer;
mod queue;
mod random;
mod world;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::log::CriticalWarning;
use rustix::event::{EventfdFlags, eventfd};

use crate::function::{Function, Slot};
pub use faults::{Fault, Target};
use function::SoftFunction;
pub use inspection::{Doorbells, QueueIds};
pub use options::{Chaos, NamespaceOptions, Options, Preferred};
use world::World;

/// What a controller and who refers to it share.
#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    /// The eventfd of whoever has the function.
    wanted: Mutex<Option<Arc<OwnedFd>>>,
}

/// A software controller in its place; clones refer to the same.
#[derive(Debug, Clone)]
pub struct Controller(Arc<Shared>);

impl Controller {
    /// A controller in which chance follows from `seed`.
    pub fn new(seed: u64, options: Options) -> Controller {
        let (world, wanted) = (Mutex::new(World::new(seed, options)), Mutex::new(None));
        Controller(Arc::new(Shared { world, wanted }))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one thing happen; false if nothing can.
    pub fn step(&self) -> bool {
        self.world().step()
    }

    /// Steps until nothing can happen any more, at most `max` times; the number of steps.
    pub fn run(&self, max: usize) -> usize {
        (0..max).take_while(|_| self.step()).count()
    }

    /// Steps until nothing can happen any more.
    pub fn settle(&self) {
        while self.step() {}
    }

    /// The next command of this kind meets with a fault; several of them are met in the order of the calls.
    pub fn plan(&self, target: Target, fault: Fault) {
        self.world().faults.planned.push((target, fault));
    }

    /// Replaces what goes wrong by itself.
    pub fn set_chaos(&self, chaos: Chaos) {
        self.world().options.chaos = chaos;
    }

    /// Of a thousand aborts so many succeed from now on.
    pub fn set_aborts(&self, share: u16) {
        self.world().options.aborts = share;
    }

    /// Posts a completion of a command that is not there; nothing if it is.
    pub fn ghost(&self, sqid: u16, cid: u16) {
        self.world().add_stray(sqid, cid);
    }

    /// Nothing is posted to a completion queue, or it goes on; false if there is none.
    pub fn set_stuck(&self, cqid: u16, stuck: bool) -> bool {
        let mut world = self.world();
        world.queues.completion.get_mut(&cqid).map(|queue| queue.stuck = stuck).is_some()
    }

    /// The controller fails for good, until it is reset: CSTS.CFS.
    pub fn fail(&self) {
        self.world().fail();
    }

    /// Whether it does not become ready any more.
    pub fn set_never_ready(&self, never: bool) {
        self.world().faults.never_ready = never;
    }

    /// Whether it does not become not ready any more: a reset of the function helps.
    pub fn set_never_not_ready(&self, never: bool) {
        self.world().faults.never_not_ready = never;
    }

    /// The next so many interrupts get lost.
    pub fn lose_interrupts(&self, count: u32) {
        self.world().faults.lost_interrupts = count;
    }

    /// The system wants the function back: whoever has it is told, and nothing else happens yet.
    pub fn want_back(&self) {
        let wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = wanted.as_ref() {
            // An eventfd that is full is readable already.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    /// Takes the controller out, and tells whoever has it: registers read as ones, memory is not touched any more. It keeps its power, and so
    /// what is in its cache; [`Controller::power_cut`] takes both.
    pub fn remove(&self) {
        self.want_back();
        self.remove_by_surprise();
    }

    /// Takes the controller out and tells nobody.
    pub fn remove_by_surprise(&self) {
        self.world().take_out();
    }

    /// Puts the controller back in. It can be opened once whoever had it has dropped it.
    pub fn insert(&self) {
        self.world().present = true;
    }

    /// Power fails: what was not durable may be lost, as the seed has it, and of writes that are under way each block may be there
    /// or not. The controller is out afterwards, until it is [inserted](Self::insert).
    pub fn power_cut(&self) {
        let mut world = self.world();
        world.tear_writes();
        let World { namespaces, random, .. } = &mut *world;
        for namespace in namespaces.all.values_mut() {
            namespace.medium.power_cut(random);
        }
        world.commands.clear();
        world.take_out();
    }

    /// A namespace is there from now on, in place of one that had its NSID; the host is told.
    pub fn add_namespace(&self, options: &NamespaceOptions) {
        let mut world = self.world();
        world.namespaces.add(options);
        world.tell_of_namespace(options.nsid);
    }

    /// A namespace is gone, with all that it held; the host is told.
    pub fn remove_namespace(&self, nsid: u32) {
        let mut world = self.world();
        if world.namespaces.all.remove(&nsid).is_some() {
            world.tell_of_namespace(nsid);
        }
    }

    /// A namespace has so many blocks from now on; the host is told.
    pub fn resize_namespace(&self, nsid: u32, blocks: u64) {
        let mut world = self.world();
        let World { namespaces, random, .. } = &mut *world;
        if let Some(namespace) = namespaces.all.get_mut(&nsid) {
            namespace.options.blocks = blocks;
            namespace.medium.truncate(blocks, random);
            world.tell_of_namespace(nsid);
        }
    }

    /// A namespace is write protected from now on, or is not any more; the host is told.
    pub fn set_write_protected(&self, nsid: u32, write_protected: bool) {
        let mut world = self.world();
        if let Some(namespace) = world.namespaces.all.get_mut(&nsid) {
            namespace.options.write_protected = write_protected;
            world.tell_of_namespace(nsid);
        }
    }

    /// The composite temperature is this from now on, in kelvin; beyond a threshold the host is told.
    pub fn set_temperature(&self, kelvin: u16) {
        let mut world = self.world();
        world.options.temperature = kelvin;
        world.watch_temperature();
    }

    /// Critical warnings that are not about temperature; the host is told of new ones.
    pub fn set_warning(&self, warning: CriticalWarning) {
        let mut world = self.world();
        let new = warning.difference(world.errors.warning);
        world.errors.warning = warning;
        for (bit, wanted, event) in [
            (CriticalWarning::SPARE, AsynchronousEvents::SPARE, Event::SPARE),
            (CriticalWarning::RELIABILITY, AsynchronousEvents::RELIABILITY, Event::RELIABILITY),
            (CriticalWarning::READ_ONLY, AsynchronousEvents::READ_ONLY, Event::RELIABILITY),
            (CriticalWarning::BACKUP, AsynchronousEvents::BACKUP, Event::RELIABILITY),
        ] {
            if new.contains(bit) && world.features.wants(wanted) {
                world.events.push(event);
            }
        }
    }

    /// Something happened that a host is told of, whether or not it asked to be: errors are not to be chosen.
    pub fn raise(&self, event: Event) {
        self.world().events.push(event);
    }
}

impl Slot for Controller {
    fn name(&self) -> String {
        self.world().options.address.clone()
    }

    fn open(&self) -> std::io::Result<Arc<dyn Function>> {
        let wanted = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut world = self.world();
        let address = world.options.address.clone();
        let busy = |why| Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, why));
        if world.open {
            return busy(format!("{address} is open already; close it there"));
        }
        if !world.present {
            let why = format!("there is nothing at {address}; put a controller in");
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, why));
        }
        (world.open, world.alive) = (true, true);
        world.power_on();
        let (registers, vectors) = (world.bar.registers(), world.options.vectors);
        drop(world);
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&wanted));
        let controller = self.clone();
        Ok(Arc::new(SoftFunction { controller, address, registers, vectors, wanted }))
    }
}
