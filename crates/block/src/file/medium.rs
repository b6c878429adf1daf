//! An open file or block device: what all its queues and workers share.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fstat, seek};

use super::durability::Durability;
use crate::geometry::SharedGeometry;
use crate::{BlockError, Geometry, Properties};

/// What kind of thing was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Regular,
    BlockDevice,
}

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: Arc<OwnedFd>,
    pub(super) sort: Sort,
    pub(super) properties: Properties,
    pub(super) durability: Durability,
    pub(super) geometry: SharedGeometry,
    pub(super) zeroing: Zeroing,
    /// A block device that was found to be gone.
    pub(super) removed: AtomicBool,
}

impl Medium {
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry.geometry()
    }

    pub(super) fn rescan(&self) -> Result<Geometry, BlockError> {
        let bytes = size_of(&self.file, self.sort).map_err(|errno| BlockError::System {
            device: self.name.clone(),
            action: "ask the size of",
            path: self.path.display().to_string(),
            source: errno.into(),
        })?;
        Ok(self.geometry.update(bytes))
    }

    /// Whether a block device is no longer there: the kernel sets the size of a removed disk to
    /// zero. May block.
    pub(super) fn is_gone(&self) -> bool {
        self.sort == Sort::BlockDevice && size_of(&self.file, self.sort).unwrap_or(0) == 0
    }
}

/// The size of an open file or block device, in bytes.
pub(super) fn size_of(file: &OwnedFd, sort: Sort) -> rustix::io::Result<u64> {
    match sort {
        Sort::Regular => Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0)),
        // All I/O here is positional: nobody minds where the descriptor's own position is.
        Sort::BlockDevice => seek(file, SeekFrom::End(0)),
    }
}

/// Which ways of zeroing a range the system has. Punching was tried when the medium was opened;
/// whether the others work is learnt when they are first used.
#[derive(Debug)]
pub(super) struct Zeroing {
    punch: AtomicBool,
    zero: AtomicBool,
}

/// Frees the range; it reads as zeroes.
pub(super) const PUNCH: FallocateFlags =
    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Zeroes the range and keeps its space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

impl Zeroing {
    pub(super) fn new(punch: bool) -> Zeroing {
        Zeroing { punch: AtomicBool::new(punch), zero: AtomicBool::new(true) }
    }

    /// The way to zero a range; `None`: by writing zeroes.
    pub(super) fn mode(&self, deallocate: bool) -> Option<FallocateFlags> {
        if deallocate && self.punch.load(Ordering::Relaxed) {
            Some(PUNCH)
        } else if self.zero.load(Ordering::Relaxed) {
            Some(ZERO)
        } else {
            None
        }
    }

    /// This way does not work here.
    pub(super) fn rule_out(&self, mode: FallocateFlags) {
        let works = if mode == PUNCH { &self.punch } else { &self.zero };
        works.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_that_fail_are_not_tried_again() {
        let zeroing = Zeroing::new(true);
        assert_eq!(zeroing.mode(true), Some(PUNCH));
        assert_eq!(zeroing.mode(false), Some(ZERO));
        zeroing.rule_out(ZERO);
        assert_eq!(zeroing.mode(false), None);
        zeroing.rule_out(PUNCH);
        assert_eq!(zeroing.mode(true), None);
    }
}
