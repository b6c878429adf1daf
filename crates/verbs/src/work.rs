//! Work requests, chained so that however many a turn makes for one queue pair, they are posted by one call.
//!
//! A [`SendChain`] is written by one thread and reused for one queue pair after the other; nothing is allocated once it is
//! made. It is given the loans of the memory that its requests name, and hands them to the queue pair when it is posted.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;
use memory::{DeviceWrite, Segment};

use crate::{RegisteredArena, Remote, VerbsError, sys};

bitflags! {
    /// How a work request is carried out.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Not before the RDMA reads ahead of it have ended.
        const FENCE = sys::SEND_FENCE;
        /// A success is reported, too; it tells of all before it on the queue pair.
        const SIGNALED = sys::SEND_SIGNALED;
    }
}

/// What a work request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A message into the peer's next receive.
    Send,
    /// A message that also invalidates this key of the peer's.
    SendWithInvalidate(u32),
    /// Into the peer's memory.
    Write(Remote),
    /// Out of the peer's memory.
    Read(Remote),
}

/// What a completion is told by, which nobody outside can make up: the caller's tag, of a send its place in the queue, of a
/// receive a number that no other has had in this process for a very long time ([`Serials`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkId(pub(crate) u64);

impl WorkId {
    const RECEIVE: u64 = 1 << 63;
    /// Places are counted modulo this.
    pub(crate) const PLACES: u32 = 1 << 31;
    /// Bits of a receive's tag.
    const TAG_BITS: u32 = 20;

    /// None if the tag is too large.
    pub(crate) fn receive(tag: u32, serial: u64) -> Option<WorkId> {
        let fits = tag >> WorkId::TAG_BITS == 0;
        fits.then_some(WorkId(WorkId::RECEIVE | serial << WorkId::TAG_BITS | u64::from(tag)))
    }

    fn send(tag: u32) -> WorkId {
        WorkId(u64::from(tag))
    }

    pub(crate) fn at(self, place: u32) -> WorkId {
        WorkId(u64::from(place) << 32 | u64::from(self.tag()))
    }

    pub(crate) fn tag(self) -> u32 {
        let bits = if self.is_receive() { WorkId::TAG_BITS } else { u32::BITS };
        u32::try_from(self.0 & ((1 << bits) - 1)).unwrap_or_default()
    }

    pub(crate) fn place(self) -> u32 {
        u32::try_from(self.0 >> 32 & u64::from(WorkId::PLACES - 1)).unwrap_or_default()
    }

    pub(crate) fn is_receive(self) -> bool {
        self.0 & WorkId::RECEIVE != 0
    }
}

/// Where the places of another work queue begin: far from those of the last one whose queue pair had the same number.
pub(crate) fn first_place() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(0x9E37_79B9, Ordering::Relaxed) % WorkId::PLACES
}

/// Numbers of receives. They are had in blocks, so that threads do not share what counts them.
#[derive(Default)]
pub(crate) struct Serials {
    next: u64,
    end: u64,
}

impl Serials {
    const BLOCK: u64 = 1 << 12;

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        static BLOCKS: AtomicU64 = AtomicU64::new(0);
        if self.next == self.end {
            self.next = BLOCKS.fetch_add(Serials::BLOCK, Ordering::Relaxed);
            self.end = self.next.wrapping_add(Serials::BLOCK);
        }
        let serial = self.next;
        self.next += 1;
        serial & ((WorkId::RECEIVE >> WorkId::TAG_BITS) - 1)
    }
}

/// A segment that the device has.
pub(crate) enum Loan {
    /// It reads it.
    Read(Segment),
    /// It writes it: nobody is to look at it meanwhile.
    Written(DeviceWrite),
}

impl Loan {
    fn new(work: Work, segment: Segment) -> Result<Loan, VerbsError> {
        match work {
            Work::Read(_) => segment.device_write().map(Loan::Written).ok_or(NOT_WRITABLE),
            _ => Ok(Loan::Read(segment)),
        }
    }

    pub(crate) fn segment(&self) -> &Segment {
        match self {
            Loan::Read(segment) => segment,
            Loan::Written(segment) => segment,
        }
    }
}

pub(crate) const NOT_REGISTERED: VerbsError =
    VerbsError::Misuse("the memory is not registered with this domain");
pub(crate) const NOT_WRITABLE: VerbsError =
    VerbsError::Misuse("somebody looks at the memory that a device is to write");

/// Inline data of one request at most.
pub const MAX_INLINE: usize = 64;

/// Requests to be posted together.
pub struct SendChain {
    requests: Vec<sys::SendWr>,
    /// Pieces of all requests one after the other; `requests[i].num_sge` says how many are whose.
    pieces: Vec<sys::Sge>,
    inline: Box<[[u8; MAX_INLINE]]>,
    /// Loans, by the index of the request.
    pub(crate) lent: Vec<(u32, Loan)>,
}

impl fmt::Debug for SendChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendChain").field("requests", &self.requests.len()).finish_non_exhaustive()
    }
}

impl SendChain {
    /// Room for `requests` that name `pieces` of memory altogether.
    pub fn new(requests: usize, pieces: usize) -> SendChain {
        SendChain {
            requests: Vec::with_capacity(requests),
            pieces: Vec::with_capacity(pieces.max(requests)),
            inline: vec![[0; MAX_INLINE]; requests].into_boxed_slice(),
            lent: Vec::with_capacity(pieces),
        }
    }

    /// Requests in it.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Adds a request over memory; the segments stay lent until it has ended.
    ///
    /// # Errors
    /// [`VerbsError::Full`] when the chain is, [`VerbsError::Misuse`] if a segment's memory is not registered, or is being looked
    /// at and to be read into. The chain is as it was before.
    #[inline]
    pub fn push(
        &mut self,
        work: Work,
        flags: Flags,
        tag: u32,
        memory: &RegisteredArena,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Result<(), VerbsError> {
        self.room()?;
        let (pieces, lent) = (self.pieces.len(), self.lent.len());
        let index = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        for segment in segments {
            if let Err(error) = self.lend(index, work, memory, segment) {
                self.pieces.truncate(pieces);
                self.lent.truncate(lent);
                return Err(error);
            }
        }
        self.add(work, flags.bits(), tag, self.pieces.len() - pieces);
        Ok(())
    }

    /// Adds a piece of memory of the request with this index.
    #[inline]
    fn lend(
        &mut self,
        index: u32,
        work: Work,
        memory: &RegisteredArena,
        segment: Segment,
    ) -> Result<(), VerbsError> {
        let sge = match work {
            Work::Read(_) => memory.sge(&segment),
            _ => memory.source(&segment),
        };
        let sge = sge.ok_or(NOT_REGISTERED)?;
        let full =
            self.pieces.len() == self.pieces.capacity() || self.lent.len() == self.lent.capacity();
        if full {
            return Err(VerbsError::Full { wanted: 1, room: 0 });
        }
        self.lent.push((index, Loan::new(work, segment)?));
        self.pieces.push(sge);
        Ok(())
    }

    /// Adds a request whose data is taken along when it is posted.
    ///
    /// # Errors
    /// [`VerbsError::Full`] when the chain is, [`VerbsError::Misuse`] if there are more than [`MAX_INLINE`] bytes, or it is a
    /// read.
    #[inline]
    pub fn push_inline(
        &mut self,
        work: Work,
        flags: Flags,
        tag: u32,
        data: &[u8],
    ) -> Result<(), VerbsError> {
        self.room()?;
        if matches!(work, Work::Read(_)) {
            return Err(VerbsError::Misuse("an RDMA read has no data of its own"));
        }
        let Some(place) = self.inline.get_mut(self.requests.len()) else {
            return Err(VerbsError::Full { wanted: 1, room: 0 });
        };
        let Some(copy) = place.get_mut(..data.len()) else {
            return Err(VerbsError::Misuse("too much for inline data"));
        };
        if self.pieces.len() == self.pieces.capacity() {
            return Err(VerbsError::Full { wanted: 1, room: 0 });
        }
        copy.copy_from_slice(data);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        // Made usable as an address for whoever reads it during the post; the array does not move.
        let addr = copy.as_ptr().expose_provenance() as u64;
        self.pieces.push(sys::Sge { addr, length, lkey: 0 });
        self.add(work, flags.bits() | sys::SEND_INLINE, tag, 1);
        Ok(())
    }

    /// Takes everything back out, unposted.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.pieces.clear();
        self.lent.clear();
    }

    fn room(&self) -> Result<(), VerbsError> {
        let full = self.requests.len() == self.requests.capacity();
        if full { Err(VerbsError::Full { wanted: 1, room: 0 }) } else { Ok(()) }
    }

    fn add(&mut self, work: Work, send_flags: u32, tag: u32, pieces: usize) {
        let (opcode, invalidate_rkey, remote) = match work {
            Work::Send => (sys::WR_SEND, 0, None),
            Work::SendWithInvalidate(key) => (sys::WR_SEND_WITH_INV, key, None),
            Work::Write(remote) => (sys::WR_RDMA_WRITE, 0, Some(remote)),
            Work::Read(remote) => (sys::WR_RDMA_READ, 0, Some(remote)),
        };
        let remote = remote.unwrap_or(Remote { address: 0, key: 0 });
        self.requests.push(sys::SendWr {
            wr_id: WorkId::send(tag).0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: i32::try_from(pieces).unwrap_or(i32::MAX),
            opcode,
            send_flags,
            invalidate_rkey,
            remote_addr: remote.address,
            rkey: remote.key,
            rest_of_wr: [0; 5],
            rest: [0; 7],
        });
    }

    /// Links the requests, numbers them from `place`, and returns the first; null if there is none. The pointers hold until
    /// the chain is changed.
    #[inline]
    pub(crate) fn link(&mut self, place: u32) -> *mut sys::SendWr {
        let count = self.requests.len();
        let first = self.requests.as_mut_ptr();
        let mut pieces = self.pieces.as_mut_ptr();
        for index in 0..count {
            // SAFETY: `index` is below the number of requests; all accesses go through the one pointer that the links are
            // made of, too. `pieces` advances by what each request was given of the vector, so it stays inside.
            unsafe {
                let request = first.add(index);
                let number = u32::try_from(index).unwrap_or_default();
                (*request).wr_id =
                    WorkId((*request).wr_id).at(place.wrapping_add(number) % WorkId::PLACES).0;
                (*request).sg_list = pieces;
                (*request).next =
                    if index + 1 < count { first.add(index + 1) } else { ptr::null_mut() };
                pieces = pieces.add(usize::try_from((*request).num_sge).unwrap_or_default());
            }
        }
        if count == 0 { ptr::null_mut() } else { first }
    }

    /// How many requests lie before `bad`, which a post complained of; all if it did not.
    pub(crate) fn before(&self, bad: *const sys::SendWr) -> usize {
        let all = self.requests.as_ptr_range();
        if all.contains(&bad) {
            (bad.addr() - all.start.addr()) / size_of::<sys::SendWr>()
        } else {
            self.requests.len()
        }
    }
}
