//! The size of a device that may change while it is in use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Geometry;

/// A geometry that is read on every operation and changed once in a blue moon.
///
/// `version` is odd while a change is under way; a reader that meets one, or sees two versions,
/// reads again. All accesses are sequentially consistent, so the numbers belong together.
#[derive(Debug)]
pub(crate) struct SharedGeometry {
    block_size: u32,
    blocks: AtomicU64,
    version: AtomicU64,
    changing: Mutex<()>,
}

impl SharedGeometry {
    pub(crate) fn new(block_size: u32, bytes: u64) -> SharedGeometry {
        SharedGeometry {
            block_size,
            blocks: AtomicU64::new(bytes / u64::from(block_size)),
            version: AtomicU64::new(0),
            changing: Mutex::new(()),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        loop {
            let version = self.version.load(Ordering::SeqCst);
            let blocks = self.blocks.load(Ordering::SeqCst);
            if version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version {
                return Geometry { block_size: self.block_size, blocks, generation: version / 2 };
            }
            std::hint::spin_loop();
        }
    }

    /// Called off the reactors, by any thread.
    pub(crate) fn update(&self, bytes: u64) -> Geometry {
        let _only_one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = bytes / u64::from(self.block_size);
        if blocks != self.blocks.load(Ordering::SeqCst) {
            self.version.fetch_add(1, Ordering::SeqCst);
            self.blocks.store(blocks, Ordering::SeqCst);
            self.version.fetch_add(1, Ordering::SeqCst);
        }
        self.geometry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_changes_with_the_size_alone() {
        let size = SharedGeometry::new(512, 5000);
        let first = size.geometry();
        assert_eq!(first, Geometry { block_size: 512, blocks: 9, generation: 0 });
        assert_eq!(size.update(5100), first);
        let second = size.update(51_200);
        assert_eq!((second.blocks, second.generation), (100, 1));
        let third = size.update(5000);
        assert_eq!((third.blocks, third.generation), (9, 2));
    }
}
