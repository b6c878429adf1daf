//! An allocator that counts, and a way to tell it which threads matter: a device's queue is opened on the
//! reactor that will use it, so a [`Counted`] device has that reactor's thread counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use block::{BlockDevice, BlockError, BlockQueue, Geometry, Identity, Properties};
use memory::SharedMemory;
use reactor::Local;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COUNTED_BYTES: AtomicI64 = AtomicI64::new(0);
static ALL_BYTES: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Allocations of the counted threads.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes that the counted threads have allocated and not freed.
pub(crate) fn counted_bytes() -> i64 {
    COUNTED_BYTES.load(Ordering::Relaxed)
}

/// Bytes that the process has allocated and not freed.
pub(crate) fn all_bytes() -> i64 {
    ALL_BYTES.load(Ordering::Relaxed)
}

fn count(allocations: u64, bytes: i64) {
    ALL_BYTES.fetch_add(bytes, Ordering::Relaxed);
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(allocations, Ordering::Relaxed);
        COUNTED_BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are atomics and the flag a
// plain cell of this thread, neither of which needs an allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Counted(pub(crate) Arc<dyn BlockDevice>);

impl BlockDevice for Counted {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn properties(&self) -> &Properties {
        self.0.properties()
    }

    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn medium(&self) -> Option<&Arc<SharedMemory>> {
        self.0.medium()
    }

    fn open_queue(&self, local: &Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        COUNTED.set(true);
        self.0.open_queue(local)
    }
}
