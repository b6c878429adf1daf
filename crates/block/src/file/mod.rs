//! Regular files and block devices as devices, by `io_uring` or, where that is forbidden, by threads.
//!
//! ```text
//!   FileQueue --+-- RingEngine    read, write, flush, punch, zero: the reactor's io_uring
//!               +-- WorkerEngine  the same where there is no ring; always: compare, verify, and
//!                                 zeroes that the file system cannot make by itself
//! ```
//!
//! [`FileDevice::open`] may block and belongs on a thread that may. A queue lives on its reactor and
//! never blocks it: it has at most a fixed number of operations in each engine and holds the rest
//! itself, so a slow device takes nothing from the others on that reactor, neither places in the
//! ring nor threads (each device has its own).
//!
//! **The lock.** A regular file is locked with `flock` on the very descriptor used for I/O, a block
//! device is opened with `O_EXCL`; so whatever a killed process left in flight is fenced: the
//! kernel frees the lock only after that. A read-only regular file takes a shared lock, a read-only
//! block device none, as nothing of it needs fencing.
//!
//! **Durability.** FUA is `RWF_DSYNC`, a flush is `fdatasync`. A flush need only cover what had
//! completed before it was submitted (NVM Command Set, "Flush command"), and the kernel has by then
//! reported that; so writes in flight are not waited for. What a failure does to later flushes is in
//! `durability.rs`.
//!
//! **Size.** The size is that of the moment it was opened or rescanned. If the file is truncated
//! meanwhile, reads beyond its end fail with [`OutOfRange`](crate::ErrorKind::OutOfRange); they do
//! not return zeroes. A write there makes the file longer again, with a hole before it that reads as
//! zeroes: the lock is advisory, whoever truncates a file in use destroys it.

mod blocking;
mod direct;
mod durability;

mod medium;
mod open;
mod queue;
mod ring_engine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::{BlockDevice, BlockError, BlockQueue, Geometry, Properties};

pub use durability::DurabilityCounts;

use crate::workers::Workers;
use medium::Medium;
use queue::FileQueue;

/// Whether a file bypasses the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direct {
    /// If its file system can.
    #[default]
    Auto,
    /// Or it is not opened.
    Always,
    /// Through the page cache, whatever its file system can.
    Never,
}

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct FileOptions {
    /// The name the configuration gives it.
    pub name: String,
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Bytes in a block, 512 or 4096. `None`: the smallest that the medium allows, so 512 unless
    /// direct I/O or the block device needs more; thus images made elsewhere keep their partitions.
    pub block_size: Option<u32>,
    /// If there is no such file, or it is empty: make it this many bytes long, sparse.
    pub create_size: Option<u64>,
    /// Whether to bypass the page cache.
    pub direct: Direct,
    /// Open for reading only, and refuse writes.
    pub read_only: bool,
    /// How long to wait for another process to let go of it. A killed one's lock stays until its
    /// last writes have landed.
    pub lock_wait: Duration,
}

impl FileOptions {
    /// Options for the file or block device at `path`, with everything else as is usual.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> FileOptions {
        FileOptions {
            name: name.to_owned(),
            path: path.into(),
            block_size: None,
            create_size: None,
            direct: Direct::Auto,
            read_only: false,
            lock_wait: Duration::from_secs(10),
        }
    }
}

/// A file or block device.
#[derive(Debug)]
pub struct FileDevice {
    medium: Arc<Medium>,
    workers: Arc<Workers<Medium>>,
}

impl FileDevice {
    /// Opens and locks it, and finds out what it can do. Blocks for up to
    /// [`lock_wait`](FileOptions::lock_wait), so not on a reactor.
    ///
    /// # Errors
    /// [`BlockError::Locked`] if another process has it, [`BlockError::System`] for what the system
    /// refuses, [`BlockError::Unsuitable`] for what cannot be served.
    pub fn open(options: &FileOptions) -> Result<FileDevice, BlockError> {
        let medium = Arc::new(open::open(options)?);
        let workers = Arc::new(Workers::new(Arc::clone(&medium)));
        Ok(FileDevice { medium, workers })
    }

    /// What was done for durability so far, on all queues.
    pub fn durability(&self) -> DurabilityCounts {
        self.medium.durability.counts()
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> &str {
        &self.medium.name
    }

    fn geometry(&self) -> Geometry {
        self.medium.geometry()
    }

    fn rescan(&self) -> Result<Geometry, BlockError> {
        self.medium.rescan()
    }

    fn properties(&self) -> &Properties {
        &self.medium.properties
    }

    fn open_queue(&self, local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let (medium, workers) = (Arc::clone(&self.medium), Arc::clone(&self.workers));
        Ok(Box::new(FileQueue::new(medium, workers, local)?))
    }
}
