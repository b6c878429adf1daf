//! Memory regions: slabs of an arena that a device may read and write, and media of RAM devices that it may read.
//!
//! A region holds its domain and the arena, so the memory stays mapped as long as a device may reach it.
//!
//! A key opens a slab as a whole, for as long as it is registered: a peer that was given one may write to what it was shown long ago, or
//! never. So peers may write only to arenas that were made for that ([`Arena::for_peers`]), to whose bytes nobody ever has a
//! reference.
//!
//! A medium is registered as one region, and keeps its registration itself: a [`Segment`] that is a lease of it leads to the
//! key without a table that reactors would share. The region ends with the medium, hence after the last lease that
//! a work request may name; or with the [`RegisteredArena`] that made it, when its device has gone. No peer is ever given a
//! key to a medium, and the device itself has no right to write it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bitflags::bitflags;
use memory::{Arena, DeviceId, RegionId, SLAB_SIZE, Segment, SharedMemory, Slab};

use crate::error::{last, let_go};
use crate::{Domain, VerbsError, sys};

bitflags! {
    /// What may be done with a region besides reading it locally.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: i32 {
        /// The device writes received messages and the results of RDMA reads.
        const LOCAL_WRITE = sys::ACCESS_LOCAL_WRITE;
        /// Peers that know the key write; needs `LOCAL_WRITE`, and an arena for it ([`Arena::for_peers`]).
        const REMOTE_WRITE = sys::ACCESS_REMOTE_WRITE;
        /// Peers that know the key read.
        const REMOTE_READ = sys::ACCESS_REMOTE_READ;
    }
}

/// Memory of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The address of its first byte, as the peer sees it.
    pub address: u64,
    /// The key that opens it.
    pub key: u32,
}

/// One slab or one medium, registered.
struct Region {
    mr: NonNull<sys::Mr>,
    base: usize,
    length: usize,
    local: u32,
    remote: u32,
    domain: Domain,
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn register(
        domain: &Domain,
        base: *mut u8,
        length: usize,
        access: Access,
    ) -> Result<Region, VerbsError> {
        let api = domain.device().library().api();
        // SAFETY: a live domain and mapped memory, which the caller keeps mapped as long as the region.
        let mr = unsafe { (api.ibv_reg_mr)(domain.pd(), base.cast(), length, access.bits()) };
        let mr = NonNull::new(mr).ok_or_else(|| last("ibv_reg_mr"))?;
        // SAFETY: a region just made, whose keys do not change.
        let (local, remote) = unsafe { ((*mr.as_ptr()).lkey, (*mr.as_ptr()).rkey) };
        Ok(Region { mr, base: base.addr(), length, local, remote, domain: domain.clone() })
    }

    /// Where `segment` lies, if it lies inside.
    fn locate(&self, segment: &Segment) -> Option<u64> {
        let address = segment.as_ptr().addr();
        let offset = address.checked_sub(self.base)?;
        (offset.checked_add(segment.len())? <= self.length).then_some(address as u64)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own region, whose domain is still there.
        let result =
            unsafe { (self.domain.device().library().api().ibv_dereg_mr)(self.mr.as_ptr()) };
        // The memory need not be kept: a region that stays has its pages pinned, and they are nobody else's until it goes.
        let_go("ibv_dereg_mr", result, || self.domain.clone());
    }
}

/// The slabs of an arena, and any media, registered with a domain: finds the keys of a segment.
pub struct RegisteredArena {
    /// What media know its domain by.
    id: DeviceId,
    /// Those that it has registered.
    media: Mutex<Vec<Weak<SharedMemory>>>,
    // Dropped in this order: the mapping goes last.
    regions: Vec<Region>,
    domain: Domain,
    _arena: Arena,
}

impl fmt::Debug for RegisteredArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredArena")
            .field("slabs", &self.regions.len())
            .finish_non_exhaustive()
    }
}

impl RegisteredArena {
    /// Registers every slab that the arena has by now. This may take long; it is no work for a reactor.
    ///
    /// # Errors
    /// If the device or the limit on locked memory does not allow so much; if peers are to write and the arena is not for that.
    pub fn new(
        domain: &Domain,
        arena: &Arena,
        access: Access,
    ) -> Result<RegisteredArena, VerbsError> {
        if access.contains(Access::REMOTE_WRITE) && !arena.is_for_peers() {
            return Err(VerbsError::Misuse("the arena is not there for peers to write to"));
        }
        let (domain, arena) = (domain.clone(), arena.clone());
        let id = DeviceId::new().ok_or(VerbsError::Misuse("no number is left for a domain"))?;
        let register = |slab: &Slab| Region::register(&domain, slab.base(), SLAB_SIZE, access);
        let regions = arena.slabs().iter().map(register).collect::<Result<_, _>>()?;
        Ok(RegisteredArena { id, media: Mutex::default(), regions, domain, _arena: arena })
    }

    /// What a medium knows its domain by.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Registers a medium, for reading, until it or this is dropped; nothing to do if it is registered. All its pages are
    /// pinned, those never written among them. This may take long; it is no work for a reactor.
    ///
    /// # Errors
    /// If the device or the limit on locked memory does not allow so much: what is read there is to be copied then.
    pub fn register_medium(&self, medium: &Arc<SharedMemory>) -> Result<(), VerbsError> {
        let mut media = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        if medium.key(self.id).is_some() {
            return Ok(());
        }
        if medium.len() as u64 > self.domain.device().attributes().max_mr_size {
            return Err(VerbsError::Misuse("the medium is larger than a region may be"));
        }
        let registered = medium.register(self.id, |base, length| -> Result<_, VerbsError> {
            let region = Region::register(&self.domain, base.as_ptr(), length, Access::empty())?;
            Ok((region.local, Box::new(region)))
        })?;
        if !registered {
            return Err(VerbsError::Misuse("the medium is registered with too many devices"));
        }
        media.retain(|medium| medium.strong_count() > 0);
        media.push(Arc::downgrade(medium));
        Ok(())
    }

    fn find(&self, segment: &Segment) -> Option<(&Region, u64)> {
        let RegionId(index) = segment.region()?;
        let region = self.regions.get(usize::from(index))?;
        Some((region, region.locate(segment)?))
    }

    /// How a peer names this segment; none if it is of another arena or of a slab that has not been registered.
    pub fn remote(&self, segment: &Segment) -> Option<Remote> {
        let (region, address) = self.find(segment)?;
        Some(Remote { address, key: region.remote })
    }

    /// How the device is told to read from this segment.
    pub(crate) fn source(&self, segment: &Segment) -> Option<sys::Sge> {
        let Some(medium) = segment.medium() else { return self.sge(segment) };
        let lkey = medium.key(self.id)?;
        let length = u32::try_from(segment.len()).ok()?;
        Some(sys::Sge { addr: segment.as_ptr().addr() as u64, length, lkey })
    }

    /// How the device is told of this segment of a buffer.
    pub(crate) fn sge(&self, segment: &Segment) -> Option<sys::Sge> {
        let (region, addr) = self.find(segment)?;
        let length = u32::try_from(segment.len()).ok()?;
        Some(sys::Sge { addr, length, lkey: region.local })
    }
}

impl Drop for RegisteredArena {
    fn drop(&mut self) {
        let media = self.media.get_mut().unwrap_or_else(PoisonError::into_inner);
        for medium in media.iter().filter_map(Weak::upgrade) {
            medium.unregister(self.id);
        }
    }
}
