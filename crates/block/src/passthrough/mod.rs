//! NVMe namespaces by their generic character devices, `/dev/ngXnY`: the kernel keeps the controller, and the way of the
//! data skips its block layer.
//!
//! ```text
//!   PassthroughQueue --+-- CommandEngine  the reactor's ring for NVMe commands
//!                      +-- WorkerEngine   what the controller has no command for; everything, where there is no ring
//! ```
//!
//! An operation becomes one command, or several if it is larger than the controller or the kernel allows or crosses a
//! boundary that the namespace states; they are out at the same time. It completes once, after the last of them, with
//! the first error. A queue has a fixed number of commands in flight and holds the rest itself.
//!
//! **The lock.** A generic device cannot be opened exclusively. So the namespace's block device is opened, with `O_EXCL`, by
//! whoever writes: what is mounted, swapped to or part of an array is refused, and nobody mounts it meanwhile. Each ring
//! holds that descriptor until its last command is done, so what a killed process left in flight is fenced.
//!
//! **Errors.** The controller's status reaches the submitter by the table in [`namespace`](crate::namespace). What may
//! pass (the kernel resets the controller, and fails commands meanwhile) is tried again for some seconds. A device whose
//! entry in sysfs is gone has been removed, and everything fails from then on.
//!
//! **Durability** is the controller's own business: FUA is its FUA, a flush its Flush. There is no page cache that could lose
//! data in between, so nothing of what `file` does about that is needed.
//!
//! Rejected: cancelling commands in flight (neither the kernel nor io_uring can); merging or scheduling (the host has done
//! so); the block device itself as a fallback (two ways to the same data, one of them through a cache).

mod blocking;
mod engine;
mod medium;
mod open;
mod queue;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::workers::Workers;
use crate::{BlockDevice, BlockError, BlockQueue, Geometry, Identity, Properties};

use medium::Medium;
use queue::PassthroughQueue;

/// How often a command is tried again.
const RETRIES: u8 = 16;

/// How long to wait before the next attempt, the `tries`-th: seconds in all, as a reset takes some.
fn patience(tries: u8) -> Duration {
    Duration::from_millis(1 << tries.min(10))
}

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct PassthroughOptions {
    /// The name the configuration gives it.
    pub name: String,
    /// The generic character device.
    pub path: PathBuf,
    /// Bytes in a block, if it is to have no other.
    pub block_size: Option<u32>,
    /// Open for reading only, and refuse writes.
    pub read_only: bool,
    /// How long to wait for another process to let go of it.
    pub lock_wait: Duration,
}

impl PassthroughOptions {
    /// Options for the generic device at `path`, with everything else as is usual.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> PassthroughOptions {
        PassthroughOptions {
            name: name.to_owned(),
            path: path.into(),
            block_size: None,
            read_only: false,
            lock_wait: Duration::from_secs(10),
        }
    }
}

/// A namespace.
#[derive(Debug)]
pub struct PassthroughDevice {
    medium: Arc<Medium>,
    workers: Arc<Workers<Medium>>,
}

impl PassthroughDevice {
    /// Whether there is such a device at the path, by whatever name.
    pub fn is_meant_by(path: &Path) -> bool {
        open::is_meant_by(path)
    }

    /// Opens and locks it, and finds out what controller and kernel can do. Blocks for up to
    /// [`lock_wait`](PassthroughOptions::lock_wait), so not on a reactor.
    ///
    /// # Errors
    /// [`BlockError::Locked`] if it is in use, [`BlockError::System`] for what the system refuses,
    /// [`BlockError::Unsuitable`] for what cannot be served.
    pub fn open(options: &PassthroughOptions) -> Result<PassthroughDevice, BlockError> {
        let medium = Arc::new(open::open(options)?);
        let workers = Arc::new(Workers::new(Arc::clone(&medium)));
        Ok(PassthroughDevice { medium, workers })
    }
}

impl BlockDevice for PassthroughDevice {
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

    fn identity(&self) -> Identity {
        self.medium.identity
    }

    fn open_queue(&self, local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let (medium, workers) = (Arc::clone(&self.medium), Arc::clone(&self.workers));
        Ok(Box::new(PassthroughQueue::new(medium, workers, local)?))
    }
}
