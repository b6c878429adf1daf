//! What goes wrong with an I/O, and the one table that says what it means.

use nvme::Status;
use rustix::io::Errno;

use crate::namespace::error_kind;
use crate::{ErrorKind, Kind};

/// Why an operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The system said so.
    System(Errno),
    /// A read met the end of the file, or a write made no progress.
    End,
    /// A compare found a difference.
    Miscompare,
    /// Given up on request, before it had any effect.
    Aborted,
    /// The controller of an NVMe device said so.
    Status(Status),
    /// An earlier failure to make data durable forbids to promise it now.
    NotDurable,
    /// Something of ours is wrong.
    Internal,
}

impl Fault {
    /// What to answer when an operation of this kind meets this fault.
    pub(crate) fn kind(self, operation: Kind) -> ErrorKind {
        match self {
            Fault::System(errno) => of_errno(errno, operation),
            Fault::End => ErrorKind::OutOfRange,
            Fault::Miscompare => ErrorKind::Miscompare,
            Fault::Aborted => ErrorKind::Aborted,
            Fault::Status(status) => error_kind(status),
            Fault::NotDurable => ErrorKind::MediumWrite,
            Fault::Internal => ErrorKind::Internal,
        }
    }

    /// Whether this may be how a block device that was pulled out shows: its I/O fails, and as its
    /// size drops to zero, reads end at once and writes find no space.
    pub(crate) fn may_mean_removal(self) -> bool {
        matches!(self, Fault::End | Fault::System(Errno::IO | Errno::NOSPC))
    }

    /// Whether data that had been written may be lost, so that no later flush may claim that they
    /// are durable. Not so if the call was refused before it did anything; nor, if writes bypass the
    /// page cache, if there was no space for this write: that says nothing of others.
    pub(crate) fn loses_data(self, direct: bool) -> bool {
        match self {
            Fault::System(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ROFS)
            | Fault::Miscompare
            | Fault::Aborted
            | Fault::NotDurable
            | Fault::Internal => false,
            Fault::System(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) | Fault::End => !direct,
            Fault::System(_) | Fault::Status(_) => true,
        }
    }
}

/// The system's error numbers as the block layer's errors.
fn of_errno(errno: Errno, operation: Kind) -> ErrorKind {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorKind::NoSpace,
        Errno::NODEV | Errno::NXIO | Errno::SHUTDOWN | Errno::STALE | Errno::NOMEDIUM => {
            ErrorKind::Removed
        }
        Errno::ROFS | Errno::PERM | Errno::ACCESS => ErrorKind::ReadOnly,
        Errno::OPNOTSUPP | Errno::NOSYS => ErrorKind::Unsupported,
        // Wrong arguments are our mistake. Lack of memory, or interruptions that would not end, are
        // nobody's; nothing better can be said of them.
        Errno::INVAL
        | Errno::BADF
        | Errno::FAULT
        | Errno::NOMEM
        | Errno::AGAIN
        | Errno::INTR
        | Errno::CANCELED => ErrorKind::Internal,
        // EIO, and what the block layer makes of other errors of devices and paths to them:
        // ENODATA, EILSEQ, EREMOTEIO, ETIMEDOUT, ENOLINK, EBADE, EUCLEAN, ...
        _ => match operation {
            Kind::Read | Kind::Compare | Kind::Verify => ErrorKind::MediumRead,
            Kind::Write | Kind::Flush | Kind::WriteZeroes { .. } | Kind::Deallocate => {
                ErrorKind::MediumWrite
            }
        },
    }
}
