//! An end of a connection with memory of its own: messages out of and into it, and slots that a peer reads and writes.
//!
//! What a host of queues needs, and nothing that several connections share: a [`WorkQueue`] with receives of its own, a
//! completion queue, a channel to sleep on, and one arena that is registered as a whole, for good.
//!
//! **It moves between threads as one.** Segments are counted without atomics, so nothing that holds one may leave its thread
//! alone. An endpoint holds *all* segments of its pool and lends none out; whoever owns it is the only one to touch the counts.
//!
//! **Slots.** A slot is the caller's to read and write until it is [exposed](Endpoint::expose) to the peer, or is on its way in
//! a message. Its key stays the same, since registering memory for each command costs more than the command. So a peer that goes on
//! using what it was shown is not kept from it: it may spoil data of this connection, and of no other, and at any time. Hence
//! there are no references to a slot's bytes: they are copied in and out, and what was copied out stays as it was looked at.
//!
//! **Sends.** A message without data is taken along inline, if the device can, and reported only now and then: a slot need not
//! wait for it. A message with data is reported, and its slot busy until then.
//!
//! Rejected: a pool per reactor whose buffers are lent to each command, as the target has it (the caller of a host fills its
//! buffer before it submits, and reads it after the command has ended, so it needs one that it keeps).

use std::fmt;
use std::iter;

use memory::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE, Segment};

use crate::work::{Flags, MAX_INLINE, SendChain, Work};
use crate::{
    Access, Capacity, Completion, CompletionChannel, CompletionQueue, Device, Domain, QueuePair,
    RegisteredArena, Remote, Status, VerbsError, WorkQueue,
};

/// Bytes that begin every message sent.
pub const HEADER_BYTES: usize = MAX_INLINE;
/// Most bytes of a message received.
pub const MESSAGE_MAX: usize = 64;
/// Most bytes of a slot: a peer needs one key for all of it, and a slab has one.
pub const SLOT_MAX: usize = SLAB_SIZE;

/// One message without data in so many is reported, which frees the send queue's places of all before it.
const REPORT_EVERY: u32 = 16;
/// Completions taken out at a time.
const BATCH: usize = 64;
/// The tag of a message that no slot waits for.
const NO_SLOT: u32 = u32::MAX;

/// What an endpoint is to have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Slots, and so messages on their way out, and messages received at a time.
    pub slots: u32,
    /// Bytes of each, at most [`SLOT_MAX`].
    pub slot_bytes: usize,
    /// Bytes of a message received, at most [`MESSAGE_MAX`].
    pub message_bytes: usize,
}

/// What [`Endpoint::poll`] tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// A message of the peer's.
    Message(&'a [u8]),
    /// The message that this slot had data in has left; the slot is the caller's again.
    Sent(u32),
    /// A work request failed, and with it the queue pair.
    Failed(Status),
}

struct Slot {
    memory: Segment,
    header: Segment,
    remote: Remote,
    exposed: bool,
    sending: bool,
}

/// See the module's description.
pub struct Endpoint {
    // Dropped first: from then on the device leaves the memory below alone.
    queue: WorkQueue,
    chain: SendChain,
    slots: Box<[Slot]>,
    messages: Vec<Segment>,
    memory: RegisteredArena,
    completions: CompletionQueue,
    channel: CompletionChannel,
    room: Box<[Completion]>,
    /// Messages since the last that is reported.
    unreported: u32,
}

// SAFETY: two things in it may not be sent alone. Segments share counts that are not atomic; all segments with the same counts
// (the pool's) are inside, as `new` drops the pool and no method lends one out or takes one in, so they move together and one
// thread at a time uses them. Chains of work requests hold pointers, but to memory that is the endpoint's own, too, and they are
// made anew for each post. The queue pair's domain is no thread's.
unsafe impl Send for Endpoint {}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("queue", &self.queue)
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint whose queue pair is in the state Reset. All of its memory is mapped and registered here.
    ///
    /// # Errors
    /// If the system has no memory, or the device no room, for so much.
    pub fn new(device: &Device, shape: Shape) -> Result<Endpoint, VerbsError> {
        if shape.slot_bytes > SLOT_MAX || shape.message_bytes > MESSAGE_MAX || shape.slots == 0 {
            return Err(VerbsError::Misuse(
                "an endpoint of this shape is beyond what there can be",
            ));
        }
        let domain = Domain::new(device)?;
        let count = usize::try_from(shape.slots).unwrap_or(usize::MAX);
        let (pool, memory) = memory(&domain, count, shape)?;
        let headers = pieces(&pool, count, HEADER_BYTES)?;
        let messages = pieces(&pool, count, shape.message_bytes)?;
        let slot = |header| {
            let memory_of = whole(&pool, shape.slot_bytes)?;
            let remote = memory.remote(&memory_of).ok_or(NO_ROOM)?;
            Ok(Slot { memory: memory_of, header, remote, exposed: false, sending: false })
        };
        let slots = headers.into_iter().map(slot).collect::<Result<_, VerbsError>>()?;

        let sends = shape.slots.saturating_add(REPORT_EVERY);
        let channel = CompletionChannel::new(device)?;
        let all = sends.saturating_add(shape.slots);
        let completions = CompletionQueue::new(device, all, 0, Some(&channel), 0)?;
        let inline = u32::try_from(HEADER_BYTES).unwrap_or(0);
        let capacity = Capacity { sends, receives: shape.slots, pieces: 2, inline };
        let make = |capacity| QueuePair::new(&domain, &completions, &completions, None, capacity);
        // Not every device has inline data.
        let pair = make(capacity).or_else(|_| make(Capacity { inline: 0, ..capacity }))?;
        Ok(Endpoint {
            queue: WorkQueue::new(pair)?,
            chain: SendChain::new(count, count.saturating_mul(2)),
            slots,
            messages,
            memory,
            completions,
            channel,
            room: vec![Completion::default(); BATCH].into_boxed_slice(),
            unreported: 0,
        })
    }

    /// Its queue pair, to be connected.
    pub fn pair(&self) -> &QueuePair {
        self.queue.pair()
    }

    /// Becomes readable once something has arrived after [`Endpoint::arm`].
    pub fn channel(&self) -> &CompletionChannel {
        &self.channel
    }

    /// Makes ready for as many messages as there are slots; once, when the queue pair is in the state Init.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn post_receives(&mut self) -> Result<(), VerbsError> {
        for (tag, segment) in (0..).zip(self.messages.drain(..)) {
            self.queue.push_receive(tag, &self.memory, [Some(segment), None])?;
        }
        self.queue.flush_receives()
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(usize::try_from(slot).ok()?)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(slot).ok()?)
    }

    /// Copies out of a slot from `offset` into `out`; the number of bytes there were, none while it is exposed.
    pub fn copy_to(&self, slot: u32, offset: usize, out: &mut [u8]) -> usize {
        match self.slot(slot) {
            Some(Slot { memory, exposed: false, .. }) => memory.copy_to(offset, out),
            _ => 0,
        }
    }

    /// Copies `data` into a slot at `offset`; the number of bytes that fitted, none while it is exposed or on its way.
    pub fn copy_from(&mut self, slot: u32, offset: usize, data: &[u8]) -> usize {
        match self.slot(slot) {
            Some(Slot { memory, exposed: false, sending: false, .. }) => {
                memory.copy_from(offset, data)
            }
            _ => 0,
        }
    }

    /// Leaves a slot to the peer, who is to be told this of it.
    pub fn expose(&mut self, slot: u32) -> Option<Remote> {
        let slot = self.slot_mut(slot)?;
        slot.exposed = true;
        Some(slot.remote)
    }

    /// The peer is done with a slot.
    pub fn conceal(&mut self, slot: u32) {
        if let Some(slot) = self.slot_mut(slot) {
            slot.exposed = false;
        }
    }

    /// Adds a message: this header, then the first `data` bytes of the slot. The next [`Endpoint::flush`] sends it. True: the slot
    /// is busy until [`Arrival::Sent`].
    ///
    /// # Errors
    /// If there is no such slot or not so many bytes in it, or more messages than slots are yet to be flushed.
    pub fn send(
        &mut self,
        slot: u32,
        header: &[u8; HEADER_BYTES],
        data: usize,
    ) -> Result<bool, VerbsError> {
        let inline = usize::try_from(self.queue.pair().capacity().inline).unwrap_or(0);
        if data == 0 && inline >= HEADER_BYTES {
            let report = self.unreported + 1 >= REPORT_EVERY;
            let flags = if report { Flags::SIGNALED } else { Flags::empty() };
            self.chain.push_inline(Work::Send, flags, NO_SLOT, header)?;
            self.unreported = if report { 0 } else { self.unreported + 1 };
            return Ok(false);
        }
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let place = self.slots.get_mut(index).ok_or(VerbsError::Misuse("no such slot"))?;
        let part = place.memory.part(0, data);
        let part = part.ok_or(VerbsError::Misuse("more data than the slot has"))?;
        place.header.copy_from(0, header);
        let message = iter::once(place.header.clone()).chain((data > 0).then_some(part));
        self.chain.push(Work::Send, Flags::SIGNALED, slot, &self.memory, message)?;
        place.sending = true;
        self.unreported = 0;
        Ok(true)
    }

    /// Whether there are messages yet to be flushed.
    pub fn wants_to_send(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Hands all messages to the device at once, unless its queue has no room for them yet: then [`Endpoint::poll`] has to see
    /// some of those before them leave.
    ///
    /// # Errors
    /// If the device refuses; the queue pair is of no more use then.
    pub fn flush(&mut self) -> Result<(), VerbsError> {
        if self.chain.len() > self.queue.room() {
            return Ok(());
        }
        self.queue.post(&mut self.chain)
    }

    /// Tells `take` of what has arrived, and is ready for as many messages again. False: nothing has.
    ///
    /// # Errors
    /// If the device is of no more use.
    pub fn poll(&mut self, mut take: impl FnMut(Arrival<'_>)) -> Result<bool, VerbsError> {
        let Endpoint { queue, completions, room, slots, memory, .. } = self;
        let arrived = completions.poll(room)?;
        let mut message = [0; MESSAGE_MAX];
        let mut received = false;
        for completion in arrived {
            queue.retire(completion);
            if completion.status() != Status::SUCCESS {
                take(Arrival::Failed(completion.status()));
            } else if !completion.is_receive() {
                let slot = usize::try_from(completion.tag()).ok();
                if let Some(slot) = slot.and_then(|slot| slots.get_mut(slot)) {
                    slot.sending = false;
                    take(Arrival::Sent(completion.tag()));
                }
            } else if let Some([Some(segment), _]) = queue.take_receive(completion) {
                let length = usize::try_from(completion.byte_len()).unwrap_or(usize::MAX);
                let length = segment.copy_to(0, &mut message).min(length);
                take(Arrival::Message(message.get(..length).unwrap_or_default()));
                queue.push_receive(completion.tag(), memory, [Some(segment), None])?;
                received = true;
            }
        }
        if received {
            queue.flush_receives()?;
        }
        Ok(!arrived.is_empty())
    }

    /// Asks for the channel to become readable with what arrives from now on. What came before has to be polled for after this.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn arm(&self) -> Result<(), VerbsError> {
        self.completions.arm()
    }
}

const NO_ROOM: VerbsError = VerbsError::Misuse("the endpoint's memory does not hold its slots");

/// A pool for everything, registered.
fn memory(
    domain: &Domain,
    count: usize,
    shape: Shape,
) -> Result<(Pool, RegisteredArena), VerbsError> {
    // As the pool rounds it.
    let rounded = |bytes: usize| bytes.max(4096).next_power_of_two();
    let slot = rounded(shape.slot_bytes);
    let small = rounded(count.saturating_mul(HEADER_BYTES))
        .saturating_add(rounded(count.saturating_mul(shape.message_bytes)));
    let bytes =
        count.saturating_mul(slot).saturating_add(small.div_ceil(slot).saturating_mul(slot));
    let capacity = bytes.div_ceil(SLAB_SIZE).saturating_mul(SLAB_SIZE);
    // Hugepages that somebody has reserved are for a target on this machine.
    let arena = Arena::for_peers(ArenaConfig { capacity, hugepages: Hugepages::Never });
    let pool = arena.pool(bytes)?;
    let access = Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE;
    Ok((pool, RegisteredArena::new(domain, &arena, access)?))
}

/// One buffer, as the only loan of it.
fn whole(pool: &Pool, bytes: usize) -> Result<Segment, VerbsError> {
    pool.take(bytes).and_then(|buffer| buffer.segment(0, bytes)).ok_or(NO_ROOM)
}

/// One buffer in `count` pieces.
fn pieces(pool: &Pool, count: usize, bytes: usize) -> Result<Vec<Segment>, VerbsError> {
    let all = whole(pool, count.saturating_mul(bytes))?;
    (0..count).map(|index| all.part(index * bytes, bytes).ok_or(NO_ROOM)).collect()
}
