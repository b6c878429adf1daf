//! What the software provider consists of: plain data under one lock.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::acknowledgement::Told;
use super::{DeviceOptions, Step};
use crate::sys;

/// Pieces of memory in one work request at most.
pub(crate) const MAX_PIECES: usize = 16;

/// Numbers from a seed (`SplitMix64`).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bound = bound.max(1) as u64;
        usize::try_from((mixed ^ (mixed >> 31)) % bound).unwrap_or(0)
    }
}

/// A queue of events and the descriptor that is readable while it is not empty.
#[derive(Debug)]
pub(crate) struct Notices<T> {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) queue: VecDeque<T>,
}

impl<T> Notices<T> {
    pub(crate) fn new() -> rustix::io::Result<Notices<T>> {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Notices { fd, queue: VecDeque::new() })
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(crate) fn push(&mut self, event: T) {
        if self.queue.is_empty() {
            // An eventfd that is not full takes it; a full one is readable already.
            let _ = rustix::io::write(&*self.fd, &1_u64.to_ne_bytes());
        }
        self.queue.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let event = self.queue.pop_front()?;
        self.settle();
        Some(event)
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if !self.queue.is_empty() {
            self.queue.retain(keep);
            self.settle();
        }
    }

    /// After something was taken out.
    fn settle(&self) {
        if self.queue.is_empty() {
            // Nothing to read is as good.
            let _ = rustix::io::read(&*self.fd, &mut [0_u8; 8]);
        }
    }
}

/// An asynchronous event: its type, and the address or number of what it concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) kind: u32,
    pub(crate) element: usize,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) reports: Notices<Report>,
}

#[derive(Debug)]
pub(crate) struct DeviceState {
    pub(crate) options: DeviceOptions,
    pub(crate) removed: bool,
    pub(crate) port_up: bool,
    /// The address of its description.
    pub(crate) address: usize,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) context: u32,
    /// Of a thread's: the domain of protection and the thread domain that it joins.
    pub(crate) joins: Option<(u32, u32)>,
}

#[derive(Debug)]
pub(crate) struct CompletionChannel {
    pub(crate) context: u32,
    /// Addresses of completion queues.
    pub(crate) notices: Notices<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) domain: u32,
    pub(crate) base: u64,
    pub(crate) length: u64,
    pub(crate) access: i32,
    pub(crate) valid: bool,
}

#[derive(Debug)]
pub(crate) struct CompletionQueue {
    pub(crate) address: usize,
    pub(crate) context: u32,
    pub(crate) channel: Option<u32>,
    pub(crate) capacity: usize,
    /// Each with the number of work requests that it tells of.
    pub(crate) entries: VecDeque<(sys::Wc, u32)>,
    pub(crate) armed: bool,
    pub(crate) broken: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) pieces: Pieces,
}

#[derive(Debug)]
pub(crate) struct SharedReceives {
    pub(crate) address: usize,
    pub(crate) context: u32,
    pub(crate) domain: u32,
    pub(crate) capacity: usize,
    pub(crate) limit: usize,
    pub(crate) queue: VecDeque<Receive>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pieces {
    pub(crate) all: [sys::Sge; MAX_PIECES],
    pub(crate) count: usize,
}

impl Pieces {
    pub(crate) fn used(&self) -> &[sys::Sge] {
        self.all.get(..self.count).unwrap_or_default()
    }

    pub(crate) fn length(&self) -> u64 {
        self.used().iter().map(|piece| u64::from(piece.length)).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Queued,
    /// It has reached the peer; its end is not known here yet.
    Sent,
    /// It has failed.
    Failed(u32),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Send {
    pub(crate) wr_id: u64,
    pub(crate) opcode: u32,
    pub(crate) flags: u32,
    pub(crate) pieces: Pieces,
    pub(crate) inline: [u8; crate::MAX_INLINE],
    pub(crate) remote: u64,
    pub(crate) key: u32,
    pub(crate) phase: Phase,
}

impl Send {
    pub(crate) fn is_inline(&self) -> bool {
        self.flags & sys::SEND_INLINE != 0
    }
}

#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) address: usize,
    pub(crate) context: u32,
    pub(crate) device: usize,
    pub(crate) domain: u32,
    pub(crate) send_queue: u32,
    pub(crate) receive_queue: u32,
    pub(crate) shared: Option<u32>,
    pub(crate) max_sends: u32,
    pub(crate) max_receives: u32,
    pub(crate) state: u32,
    pub(crate) peer: u32,
    /// What the peer may do to memory at all.
    pub(crate) access: u32,
    pub(crate) max_reads_out: u8,
    pub(crate) max_reads_in: u8,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    pub(crate) sends: VecDeque<Send>,
    /// Sends that have been started, from the front.
    pub(crate) started: usize,
    pub(crate) reads_out: u8,
    pub(crate) reads_in: u8,
    /// Places of the send queue that no polled completion has told of.
    pub(crate) occupied: u32,
    /// Successes since the last completion.
    pub(crate) silent: u32,
    pub(crate) receives: VecDeque<Receive>,
    /// Retries left of the work request that is next.
    pub(crate) retries_left: u8,
    pub(crate) rnr_left: u8,
    pub(crate) last_wqe_told: bool,
    pub(crate) faults: Faults,
}

/// What a test has ordered for a queue pair.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) held: bool,
    pub(crate) cut: bool,
    pub(crate) not_ready: u32,
    pub(crate) fail_next: Option<u32>,
}

/// A message of the connection manager on its way to an identifier.
#[derive(Debug, Clone)]
pub(crate) struct CmMessage {
    pub(crate) kind: u32,
    pub(crate) status: i32,
    pub(crate) private_data: Vec<u8>,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) rnr_retries: u8,
    pub(crate) retries: u8,
    pub(crate) qp_num: u32,
    /// Of a request: who asks, and by which device and addresses.
    pub(crate) from: u32,
    pub(crate) device: usize,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
}

impl CmMessage {
    pub(crate) fn new(kind: u32, status: i32) -> CmMessage {
        CmMessage {
            kind,
            status,
            private_data: Vec::new(),
            responder_resources: 0,
            initiator_depth: 0,
            rnr_retries: 0,
            retries: 0,
            qp_num: 0,
            from: 0,
            device: 0,
            local: None,
            remote: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Idle,
    Listening,
    Resolved,
    Connecting,
    /// A request that has not been answered.
    Asked,
    Responded,
    Accepted,
    Connected,
    Over,
}

#[derive(Debug)]
pub(crate) struct Identifier {
    pub(crate) address: usize,
    pub(crate) channel: u32,
    pub(crate) device: Option<usize>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) stage: Stage,
    pub(crate) peer: Option<u32>,
    pub(crate) peer_qp: u32,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    pub(crate) inbox: VecDeque<CmMessage>,
}

/// Numbers in their order: those of whom something may be due. Whoever gives somebody something to do lists him; he is taken off
/// when he is found to have nothing left.
#[derive(Debug, Default)]
pub(crate) struct Busy(Vec<u32>);

impl Busy {
    pub(crate) fn add(&mut self, number: u32) {
        if let Err(place) = self.0.binary_search(&number) {
            self.0.insert(place, number);
        }
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) next: u32,
    pub(crate) devices: Vec<DeviceState>,
    pub(crate) contexts: BTreeMap<u32, Context>,
    pub(crate) domains: BTreeMap<u32, Domain>,
    /// Each with its context.
    pub(crate) thread_domains: BTreeMap<u32, u32>,
    pub(crate) regions: BTreeMap<u32, Region>,
    pub(crate) completion_channels: BTreeMap<u32, CompletionChannel>,
    pub(crate) completion_queues: BTreeMap<u32, CompletionQueue>,
    pub(crate) shared_receives: BTreeMap<u32, SharedReceives>,
    pub(crate) pairs: BTreeMap<u32, Pair>,
    pub(crate) channels: BTreeMap<u32, Notices<(u32, CmMessage)>>,
    pub(crate) identifiers: BTreeMap<u32, Identifier>,
    pub(crate) told: Told,
    pub(crate) refusals: u64,
    pub(crate) busy_pairs: Busy,
    pub(crate) busy_identifiers: Busy,
    pub(crate) candidates: Vec<Step>,
    pub(crate) requests_lost: u32,
    pub(crate) requests_refused: VecDeque<i32>,
    pub(crate) not_ready: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        World {
            random: Random(seed),
            next: 1,
            devices: Vec::new(),
            contexts: BTreeMap::new(),
            domains: BTreeMap::new(),
            thread_domains: BTreeMap::new(),
            regions: BTreeMap::new(),
            completion_channels: BTreeMap::new(),
            completion_queues: BTreeMap::new(),
            shared_receives: BTreeMap::new(),
            pairs: BTreeMap::new(),
            channels: BTreeMap::new(),
            identifiers: BTreeMap::new(),
            told: Told::default(),
            refusals: 0,
            busy_pairs: Busy::default(),
            busy_identifiers: Busy::default(),
            candidates: Vec::new(),
            requests_lost: 0,
            requests_refused: VecDeque::new(),
            not_ready: 0,
        }
    }

    /// A number that nothing else has.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Chooses among all that could happen next; none if nothing could.
    pub(crate) fn choose(&mut self) -> Option<Step> {
        let mut candidates = mem::take(&mut self.candidates);
        candidates.clear();
        let mut busy = mem::take(&mut self.busy_pairs);
        busy.0.retain(|&number| {
            let Some(pair) = self.pairs.get(&number) else { return false };
            if self.can_start(pair) {
                candidates.push(Step::Start(number));
            }
            if pair.can_finish() {
                candidates.push(Step::Finish(number));
            }
            if pair.can_flush() {
                candidates.push(Step::Flush(number));
            }
            pair.has_work()
        });
        self.busy_pairs = busy;
        let mut busy = mem::take(&mut self.busy_identifiers);
        busy.0.retain(|number| {
            let waits = self.identifiers.get(number).is_some_and(|id| !id.inbox.is_empty());
            candidates.extend(waits.then_some(Step::Deliver(*number)));
            waits
        });
        self.busy_identifiers = busy;
        let choice = self.random.below(candidates.len());
        let step = candidates.get(choice).copied();
        self.candidates = candidates;
        step
    }

    /// Whether everything on this device has ended.
    pub(crate) fn is_removed(&self, device: usize) -> bool {
        self.devices.get(device).is_none_or(|device| device.removed)
    }

    pub(crate) fn report(&mut self, context: u32, kind: u32, element: usize) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.reports.push(Report { kind, element });
        }
    }

    pub(crate) fn report_all(&mut self, device: usize, kind: u32, element: usize) {
        for context in self.contexts.values_mut().filter(|context| context.device == device) {
            context.reports.push(Report { kind, element });
        }
    }

    /// Something is not destroyed, because something else is made of it.
    pub(crate) fn refuse_to_destroy(&mut self) -> c_int {
        self.refusals += 1;
        libc::EBUSY
    }

    /// An object is gone: nothing reports on it any more.
    pub(crate) fn forget(&mut self, context: u32, address: usize) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.reports.retain(|report| report.element != address);
        }
    }
}
