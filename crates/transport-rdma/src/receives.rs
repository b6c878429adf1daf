//! The memory of receives, by tag: where a capsule's SQE goes, and where the data goes that comes with it.
//!
//! On a shared receive queue the data of each receive has a buffer of its own, which becomes the command's, in exchange for
//! the command's. On a queue pair's own receives all share one small buffer, in which the device is always writing somewhere: the data is
//! copied out of it before anybody looks at it.
//!
//! The shared queues of all devices together leave the target's commands half of the reactor's pool at least. Each takes its part when it
//! is made, half of what the others have left of theirs at most, so that there is something for the next device, whichever comes.
//! Rejected: equal parts, since nobody knows how many devices will be used.
//!
//! A receive's memory is lent to the device from its post to its completion; whoever holds the capsule after that says when it may be
//! posted again.

use memory::{Buffer, Pool, Segment};
use nvme::Sqe;
use verbs::MAX_RECEIVE_PIECES;

/// Bytes of an SQE.
pub(crate) const SQE_BYTES: usize = size_of::<Sqe>();
/// Bytes of all receives of a queue pair that has its own: what an idle queue may cost.
pub(crate) const OWN_BYTES: usize = 64 * 1024;
/// The unit of the pool.
const CHUNK: usize = 4096;

/// How many of the receives that a shared queue is `wanted` to have it gets, from a pool of `capacity` bytes of which others
/// have `taken` so many: one at least, or its device would be of no use.
pub(crate) fn shared_count(
    wanted: usize,
    data_bytes: usize,
    capacity: usize,
    taken: usize,
) -> usize {
    let room = (capacity / 2).saturating_sub(taken) / 2;
    wanted.min(room / shared_bytes(data_bytes)).max(1)
}

/// Bytes of the pool that a receive of a shared queue takes; buffers of the pool are powers of two.
fn shared_bytes(data_bytes: usize) -> usize {
    let data = if data_bytes == 0 { 0 } else { data_bytes.next_power_of_two().max(CHUNK) };
    data.saturating_add(SQE_BYTES)
}

#[derive(Debug)]
struct Slot {
    /// None while there is no memory to be had.
    sqe: Option<Segment>,
    data: Data,
    /// The session that holds the capsule.
    holder: Option<usize>,
}

#[derive(Debug)]
enum Data {
    /// A buffer of its own; none while there is none to be had.
    Own(Option<Buffer>),
    /// A part of the common one.
    Part(Segment),
    /// No data comes with capsules.
    None,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receives {
    slots: Vec<Slot>,
    /// Bytes of data in a capsule.
    data_bytes: usize,
    /// Where data is looked at that lies in the common buffer.
    copy: Box<[u8]>,
}

impl Receives {
    /// Receives for a shared queue. Each gets its memory when it is [lent](Receives::lend) first, since the pool may have none at this
    /// moment.
    pub(crate) fn shared(count: usize, data_bytes: usize) -> Receives {
        let slot = |_| {
            let data = if data_bytes == 0 { Data::None } else { Data::Own(None) };
            Slot { sqe: None, data, holder: None }
        };
        Receives { slots: (0..count).map(slot).collect(), data_bytes, copy: Box::default() }
    }

    /// Bytes of the pool that those of a shared queue take.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.slots.len().saturating_mul(shared_bytes(self.data_bytes))
    }

    /// Receives of one queue pair.
    pub(crate) fn own(pool: &Pool, count: usize, data_bytes: usize) -> Option<Receives> {
        let each = SQE_BYTES.checked_add(data_bytes)?;
        let all = pool.take(each.checked_mul(count)?)?;
        let slot = |index: usize| {
            let start = index * each;
            let data = all.segment(start + SQE_BYTES, data_bytes)?;
            let data = if data_bytes == 0 { Data::None } else { Data::Part(data) };
            Some(Slot { sqe: Some(all.segment(start, SQE_BYTES)?), data, holder: None })
        };
        let slots = (0..count).map(slot).collect::<Option<_>>()?;
        Some(Receives { slots, data_bytes, copy: vec![0; data_bytes].into() })
    }

    /// Bytes of data in a capsule of a queue pair with `depth` receives of its own.
    pub(crate) fn own_data_bytes(depth: usize) -> usize {
        (OWN_BYTES / depth.max(1)).saturating_sub(SQE_BYTES) & !15
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The memory for the next receive with this tag. None: there is none now.
    pub(crate) fn lend(
        &mut self,
        tag: u32,
        pool: &Pool,
    ) -> Option<[Option<Segment>; MAX_RECEIVE_PIECES]> {
        let index = tag as usize;
        if self.slots.get(index)?.sqe.is_none() {
            self.furnish(index, pool)?;
        }
        let slot = self.slots.get_mut(index)?;
        slot.holder = None;
        let data = match &mut slot.data {
            Data::None => None,
            Data::Part(part) => Some(part.clone()),
            Data::Own(buffer) => {
                if buffer.is_none() {
                    *buffer = pool.take(self.data_bytes);
                }
                Some(buffer.as_ref()?.segment(0, self.data_bytes)?)
            }
        };
        Some([slot.sqe.clone(), data])
    }

    /// Gives a slot and its neighbours their places for SQEs, which share a chunk.
    fn furnish(&mut self, index: usize, pool: &Pool) -> Option<()> {
        let chunk = pool.take(CHUNK)?;
        let neighbours = self.slots.chunks_mut(CHUNK / SQE_BYTES).nth(index / (CHUNK / SQE_BYTES));
        for (place, slot) in neighbours?.iter_mut().enumerate() {
            slot.sqe = chunk.segment(place * SQE_BYTES, SQE_BYTES);
        }
        Some(())
    }

    /// The SQE of a capsule that has been received.
    pub(crate) fn sqe(&self, tag: u32) -> Option<Sqe> {
        let slot = self.slots.get(tag as usize)?;
        let mut sqe = Sqe::default();
        let copied = slot.sqe.as_ref()?.copy_to(0, zerocopy::IntoBytes::as_mut_bytes(&mut sqe));
        (copied == SQE_BYTES).then_some(sqe)
    }

    /// Lets `look` see the first `length` bytes of what came with it.
    pub(crate) fn view<R>(
        &mut self,
        tag: u32,
        length: usize,
        look: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        if length == 0 {
            return Some(look(&[]));
        }
        match &self.slots.get(tag as usize)?.data {
            Data::None | Data::Own(None) => None,
            Data::Part(part) => {
                let copy = self.copy.get_mut(..length)?;
                (part.copy_to(0, copy) == length).then(|| look(copy))
            }
            Data::Own(Some(buffer)) => buffer.segment(0, length)?.view(look),
        }
    }

    /// Notes who holds the capsule.
    pub(crate) fn hold(&mut self, tag: u32, session: usize) {
        if let Some(slot) = self.slots.get_mut(tag as usize) {
            slot.holder = Some(session);
        }
    }

    /// The next capsule from `from` on that this session holds.
    pub(crate) fn held_by(&self, session: usize, from: usize) -> Option<u32> {
        let slots = self.slots.iter().enumerate().skip(from);
        let mut held = slots.filter(|(_, slot)| slot.holder == Some(session));
        held.next().and_then(|(tag, _)| u32::try_from(tag).ok())
    }

    /// The session of each capsule that is held.
    pub(crate) fn holders(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().filter_map(|slot| slot.holder)
    }

    /// The data's buffer, to become a command's. None if it is none by itself.
    pub(crate) fn take_buffer(&mut self, tag: u32) -> Option<Buffer> {
        match &mut self.slots.get_mut(tag as usize)?.data {
            Data::Own(buffer) => buffer.take(),
            Data::None | Data::Part(_) => None,
        }
    }

    /// What was got in exchange for it.
    pub(crate) fn put_buffer(&mut self, tag: u32, got: Buffer) {
        if let Some(Slot { data: Data::Own(buffer), .. }) = self.slots.get_mut(tag as usize) {
            *buffer = Some(got);
        }
    }
}
