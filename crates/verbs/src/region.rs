//! Memory regions: slabs of an arena that a device may read and write.
//!
//! A region holds its domain and the arena, so the memory stays mapped as long as a device may reach it. What a peer does
//! with a key it was given is beyond any type: it changes bytes that nobody has a reference to, as long as only buffers
//! that are lent out carry keys to it.

use std::fmt;
use std::ptr::NonNull;

use bitflags::bitflags;
use memory::{Arena, RegionId, SLAB_SIZE, Segment};

use crate::error::last;
use crate::{Domain, VerbsError, sys};

bitflags! {
    /// What may be done with a region besides reading it locally.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: i32 {
        /// The device writes received messages and the results of RDMA reads.
        const LOCAL_WRITE = sys::ACCESS_LOCAL_WRITE;
        /// Peers that know the key write; needs `LOCAL_WRITE`.
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

/// One slab, registered.
struct Region {
    mr: NonNull<sys::Mr>,
    base: usize,
    local: u32,
    remote: u32,
    domain: Domain,
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn register(domain: &Domain, base: *mut u8, access: Access) -> Result<Region, VerbsError> {
        let api = domain.device().library().api();
        // SAFETY: a live domain and a mapped slab, which the caller keeps mapped as long as the region.
        let mr = unsafe { (api.ibv_reg_mr)(domain.pd(), base.cast(), SLAB_SIZE, access.bits()) };
        let mr = NonNull::new(mr).ok_or_else(|| last("ibv_reg_mr"))?;
        // SAFETY: a region just made, whose keys do not change.
        let (local, remote) = unsafe { ((*mr.as_ptr()).lkey, (*mr.as_ptr()).rkey) };
        Ok(Region { mr, base: base.addr(), local, remote, domain: domain.clone() })
    }

    /// Where `segment` lies, if it lies inside.
    fn locate(&self, segment: &Segment) -> Option<u64> {
        let address = segment.as_ptr().addr();
        let offset = address.checked_sub(self.base)?;
        (offset.checked_add(segment.len())? <= SLAB_SIZE).then_some(address as u64)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own region, whose domain is still there.
        unsafe { (self.domain.device().library().api().ibv_dereg_mr)(self.mr.as_ptr()) };
    }
}

/// The slabs of an arena, registered with a domain: finds the keys of a segment.
pub struct RegisteredArena {
    // Dropped in this order: the mapping goes last.
    regions: Vec<Region>,
    domain: Domain,
    arena: Arena,
    access: Access,
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
    /// If the device or the limit on locked memory does not allow so much.
    pub fn new(
        domain: &Domain,
        arena: &Arena,
        access: Access,
    ) -> Result<RegisteredArena, VerbsError> {
        let (domain, arena) = (domain.clone(), arena.clone());
        let mut registered = RegisteredArena { regions: Vec::new(), domain, arena, access };
        registered.extend()?;
        Ok(registered)
    }

    /// Registers the slabs that the arena has got since.
    ///
    /// # Errors
    /// As [`RegisteredArena::new`]; those registered before the error stay.
    pub fn extend(&mut self) -> Result<(), VerbsError> {
        for slab in self.arena.slabs().into_iter().skip(self.regions.len()) {
            self.regions.push(Region::register(&self.domain, slab.base(), self.access)?);
        }
        Ok(())
    }

    /// The domain that they are registered with.
    pub fn domain(&self) -> &Domain {
        &self.domain
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

    /// How the device is told of this segment.
    pub(crate) fn sge(&self, segment: &Segment) -> Option<sys::Sge> {
        let (region, addr) = self.find(segment)?;
        let length = u32::try_from(segment.len()).ok()?;
        Some(sys::Sge { addr, length, lkey: region.local })
    }
}
