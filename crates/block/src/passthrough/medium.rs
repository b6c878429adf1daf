//! An open namespace: what all its queues and workers share, and the commands for it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use nvme::io::{BlockRange, Command, DatasetManagement, DsmRange, Transfer, WriteZeroes};
use reactor::ring::Features;
use reactor::ring::nvme::Namespace;
use rustix::io::Errno;

use crate::fault::Fault;
use crate::geometry::SharedGeometry;
use crate::namespace::{Identified, Limits, may_pass};
use crate::{BlockError, Geometry, Identity, Kind, Properties};

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) namespace: Namespace,
    /// Its block device, if it is held.
    pub(super) claim: Option<Arc<OwnedFd>>,
    /// Its entry in sysfs, which is there as long as the device is.
    pub(super) entry: PathBuf,
    pub(super) identified: Identified,
    pub(super) limits: Limits,
    pub(super) geometry: SharedGeometry,
    pub(super) properties: Properties,
    pub(super) identity: Identity,
    /// What of the ring for commands works with it.
    pub(super) features: Features,
    /// It was found to be gone.
    pub(super) removed: AtomicBool,
    /// What its first queue has to say was said.
    pub(super) said: Once,
}

impl Medium {
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry.geometry()
    }

    /// Asks the namespace for its size again. Blocks.
    pub(super) fn rescan(&self) -> Result<Geometry, BlockError> {
        let said = self.namespace.identify().map_err(|problem| BlockError::Unsuitable {
            device: self.name.clone(),
            problem: format!("{}: {problem}", self.path.display()),
        })?;
        let size = u64::from(self.namespace.block_size());
        Ok(self.geometry.update(said.nsze.get().saturating_mul(size)))
    }

    /// Whether the device is no longer there. May block.
    pub(super) fn is_gone(&self) -> bool {
        // Anything but a plain answer says nothing about the device.
        matches!(self.entry.try_exists(), Ok(false))
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// It was found to be gone.
    pub(super) fn remove(&self) {
        if !self.removed.swap(true, Ordering::AcqRel) {
            tracing::error!("device {}: {} is gone", self.name, self.path.display());
        }
    }

    /// The command for a part of an operation of this kind.
    pub(super) fn command(&self, kind: Kind, range: BlockRange, fua: bool) -> Command {
        let transfer = Transfer::new(range.slba, range.blocks);
        match kind {
            Kind::Read => Command::Read(transfer),
            Kind::Write => Command::Write(Transfer { fua, ..transfer }),
            Kind::Compare => Command::Compare(transfer),
            Kind::Verify => Command::Verify(transfer),
            Kind::Flush => Command::Flush,
            Kind::WriteZeroes { deallocate } => Command::WriteZeroes(WriteZeroes {
                deallocate: deallocate && self.identified.write_zeroes_deallocates(),
                fua,
                ..WriteZeroes::new(range.slba, range.blocks)
            }),
            Kind::Deallocate => Command::DatasetManagement(DatasetManagement::deallocate(1)),
        }
    }
}

/// The list of a Dataset Management command for one range.
pub(super) fn list(range: BlockRange) -> DsmRange {
    DsmRange::new(range.slba, range.blocks)
}

/// Whether what failed so may succeed in a while.
pub(super) fn is_passing(fault: Fault) -> bool {
    match fault {
        Fault::Status(status) => may_pass(status),
        // The kernel gave the command up because it reset the controller, or had no room for it.
        Fault::System(errno) => matches!(errno, Errno::INTR | Errno::AGAIN),
        _ => false,
    }
}

/// Whether this may be how a device that was pulled out shows.
pub(super) fn is_doubtful(fault: Fault) -> bool {
    matches!(fault, Fault::System(Errno::NODEV | Errno::NXIO)) || is_passing(fault)
}
