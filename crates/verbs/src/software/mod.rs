//! The software provider: devices in memory, behind the same C interface as the machine's own.
//!
//! To the layer above it is one more driver: it fills in the table of functions that otherwise comes out of the libraries, so
//! the code of this crate runs in tests as it does on hardware, but for what opens libraries, lists devices and takes a removed one from librdmacm. Queue pairs behave as
//! reliable-connected ones do, only that **nothing happens unless it is stepped**: each [`Fabric::step`] starts, finishes or
//! flushes one work request of one queue pair, or delivers one message of the connection manager, chosen at random among
//! all that could come next. The seed determines everything.
//!
//! What it is strict about, where hardware leaves it open: the send queue's places are free only when a completion that
//! tells of them was polled; everything but tag, queue pair and status of a failed completion is rubbish; arming a
//! completion queue tells of later completions only; an event is there before the flushes that belong to it, or after; a queue
//! pair's completions stay when it is destroyed; keys are checked when a request is carried out, not when it is posted; a completion
//! queue that overflows is broken, and with it all its queue pairs; what something else is made of cannot be destroyed
//! ([`Fabric::refusals`] counts who tried); to destroy what an event is of waits until that is acknowledged.
//!
//! It takes one lock and no system call per call (a completion that was waited for writes to an eventfd), and allocates
//! nothing for a work request once its queues have grown.
//!
//! Rejected: a trait with two implementations (every type of the transport would be generic, or every post a virtual call on
//! top of the driver's own), and an enum in each object (two code paths, of which tests see one).

mod acknowledgement;
mod bytes;
mod cm;
mod connection;
mod device;
mod domains;
mod objects;
mod transfer;
mod world;

use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::completion::Status;
use crate::{Device, Library, State, sys};
pub(crate) use device::SoftDevice;
use world::{DeviceState, World};

/// What a device of the fabric is like.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of ibv_device_attr")]
pub struct DeviceOptions {
    pub name: String,
    /// The addresses that connections find it by.
    pub addresses: Vec<IpAddr>,
    pub max_qp: u32,
    pub max_qp_wr: u32,
    pub max_cqe: u32,
    pub max_mr: u32,
    /// 0: it has no shared receive queues.
    pub max_srq: u32,
    pub max_srq_wr: u32,
    pub max_sge: u32,
    pub max_inline: u32,
    pub max_qp_rd_atom: u8,
    pub max_qp_init_rd_atom: u8,
    pub send_with_invalidate: bool,
    /// Whether it reports that a queue pair has taken its last receive; rxe of kernel 6.1 does not.
    pub reports_last_wqe: bool,
    /// Whether it has domains of one thread.
    pub thread_domains: bool,
    /// Whether it reports its removal itself, and ends everything on it; rxe leaves that to rdma_cm, and waits for all who have it open.
    pub reports_removal: bool,
}

impl DeviceOptions {
    /// A capable device with one address.
    pub fn new(name: &str, address: IpAddr) -> DeviceOptions {
        DeviceOptions {
            name: name.to_owned(),
            addresses: vec![address],
            max_qp: 4096,
            max_qp_wr: 8192,
            max_cqe: 1 << 20,
            max_mr: 1 << 16,
            max_srq: 256,
            max_srq_wr: 16384,
            max_sge: 16,
            max_inline: 64,
            max_qp_rd_atom: 16,
            max_qp_init_rd_atom: 16,
            send_with_invalidate: true,
            reports_last_wqe: true,
            thread_domains: true,
            reports_removal: true,
        }
    }
}

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Start(u32),
    Finish(u32),
    Flush(u32),
    Deliver(u32),
}

/// The world behind its lock, as the C interface's objects refer to it.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// Told whenever an event was acknowledged.
    acknowledged: Condvar,
    #[allow(clippy::vec_box, reason = "pointers to them are out: they must not move")]
    devices: Mutex<Vec<Box<SoftDevice>>>,
}

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptions of all devices that are there.
    pub(crate) fn device_list(&self) -> Vec<*mut sys::Device> {
        let world = self.world();
        let there = world.devices.iter().filter(|device| !device.removed);
        there.map(|device| std::ptr::with_exposed_provenance_mut(device.address)).collect()
    }
}

/// A network of software devices; clones refer to the same.
#[derive(Debug, Clone)]
pub struct Fabric(Arc<Shared>);

impl Fabric {
    /// An empty network, in which chance follows from `seed`.
    pub fn new(seed: u64) -> Fabric {
        let (world, devices) = (Mutex::new(World::new(seed)), Mutex::new(Vec::new()));
        Fabric(Arc::new(Shared { world, acknowledged: Condvar::new(), devices }))
    }

    /// Adds a device.
    pub fn add_device(&self, options: DeviceOptions) {
        let mut world = self.0.world();
        let device = SoftDevice::new(&self.0, world.devices.len(), &options.name);
        let address = std::ptr::from_ref(&*device).expose_provenance();
        world.devices.push(DeviceState { options, removed: false, port_up: true, address });
        self.0.devices.lock().unwrap_or_else(PoisonError::into_inner).push(device);
    }

    /// The provider's entrance: what [`Library::open`] is for hardware. Each is a process of its own, as it were.
    pub fn library(&self) -> Library {
        Library::new(&device::API, Some(Arc::clone(&self.0)))
    }

    /// Lets one thing happen; false if nothing can.
    pub fn step(&self) -> bool {
        let mut world = self.0.world();
        match world.choose() {
            None => return false,
            Some(Step::Start(number)) => world.start(number),
            Some(Step::Finish(number)) => world.finish(number),
            Some(Step::Flush(number)) => world.flush(number),
            Some(Step::Deliver(number)) => world.deliver_message(number),
        }
        true
    }

    /// Steps until nothing can happen any more, at most `bound` times; the number of steps.
    pub fn run(&self, bound: usize) -> usize {
        (0..bound).take_while(|_| self.step()).count()
    }

    /// Attempts that found the receiver not ready.
    pub fn not_ready(&self) -> u64 {
        self.0.world().not_ready
    }

    /// How often something was to be destroyed that something else was made of. It stays then, whether or not the C interface can
    /// say so.
    pub fn refusals(&self) -> u64 {
        self.0.world().refusals
    }

    fn pair<R>(&self, number: u32, change: impl FnOnce(&mut world::Pair) -> R) -> Option<R> {
        self.0.world().pairs.get_mut(&number).map(change)
    }

    /// The state of a queue pair; none if there is none.
    pub fn state(&self, qp_num: u32) -> Option<State> {
        self.pair(qp_num, |pair| State::from_raw(pair.state))
    }

    /// The queue pair that this one is connected to.
    pub fn peer(&self, qp_num: u32) -> Option<u32> {
        self.pair(qp_num, |pair| pair.peer).filter(|&peer| peer != 0)
    }

    /// Holds a queue pair: nothing of it happens until it is let go, whatever others do meanwhile.
    pub fn hold(&self, qp_num: u32, held: bool) {
        self.pair(qp_num, |pair| pair.faults.held = held);
    }

    /// Cuts a queue pair off, or joins it again: its messages and its peer's run out of retries.
    pub fn cut(&self, qp_num: u32, cut: bool) {
        self.pair(qp_num, |pair| pair.faults.cut = cut);
    }

    /// The next work request that the queue pair starts ends like this.
    pub fn fail_next(&self, qp_num: u32, status: Status) {
        self.pair(qp_num, |pair| pair.faults.fail_next = Some(status.0));
    }

    /// The queue pair answers so many messages with receiver-not-ready, whatever is posted.
    pub fn not_ready_for(&self, qp_num: u32, messages: u32) {
        self.pair(qp_num, |pair| pair.faults.not_ready = messages);
    }

    /// A queue pair breaks, as if its device had found a fault.
    pub fn break_pair(&self, qp_num: u32) {
        let mut world = self.0.world();
        let Some(pair) = world.pairs.get(&qp_num) else { return };
        let (context, address) = (pair.context, pair.address);
        world.report(context, sys::EVENT_QP_FATAL, address);
        world.fail_pair(qp_num);
    }

    /// The next `requests` for a connection get lost: whoever asked is told that nobody answers.
    pub fn lose_requests(&self, requests: u32) {
        self.0.world().requests_lost = requests;
    }

    /// The next request for a connection is refused with this reason, by nobody in particular.
    pub fn refuse_request(&self, reason: i32) {
        self.0.world().requests_refused.push_back(reason);
    }

    /// A device's port goes up or down. While it is down its messages and those for it run out of retries.
    pub fn set_port(&self, device: &Device, up: bool) {
        let mut world = self.0.world();
        let named = |state: &DeviceState| state.options.name == device.name() && !state.removed;
        let Some(index) = world.devices.iter().position(named) else { return };
        if let Some(state) = world.devices.get_mut(index) {
            state.port_up = up;
        }
        let kind = if up { sys::EVENT_PORT_ACTIVE } else { sys::EVENT_PORT_ERR };
        world.report_all(index, kind, 1);
    }

    /// A device is pulled out: rdma_cm tells everybody, and nothing new can be made of it. Everything of it is flushed, unless the device
    /// does not [report](DeviceOptions::reports_removal) it.
    pub fn remove_device(&self, device: &Device) {
        let mut world = self.0.world();
        let named = |state: &DeviceState| state.options.name == device.name() && !state.removed;
        let Some(index) = world.devices.iter().position(named) else { return };
        let Some(state) = world.devices.get_mut(index) else { return };
        state.removed = true;
        if state.options.reports_removal {
            world.report_all(index, sys::EVENT_DEVICE_FATAL, 0);
            let of_it = world.pairs.iter().filter(|(_, pair)| pair.device == index);
            for number in of_it.map(|(&number, _)| number).collect::<Vec<_>>() {
                world.fail_pair(number);
            }
        }
        world.remove_from_identifiers(index);
    }

    /// Contexts of removed devices that are open still: a kernel may be waiting for each.
    pub fn lingering(&self) -> usize {
        let world = self.0.world();
        world.contexts.values().filter(|context| world.is_removed(context.device)).count()
    }

    /// What exists, for tests that look for leaks: queue pairs, completion queues, shared receive queues, regions, domains of any
    /// kind, identifiers.
    pub fn census(&self) -> [usize; 6] {
        let world = self.0.world();
        [
            world.pairs.len(),
            world.completion_queues.len(),
            world.shared_receives.len(),
            world.regions.len(),
            world.domains.len() + world.thread_domains.len(),
            world.identifiers.len(),
        ]
    }
}
