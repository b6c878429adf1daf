//! What a block device's failure is called on the wire: the one table.

use block::ErrorKind;
use nvme::Status;

/// The status of a command whose block operation failed so.
///
/// Do Not Retry is set where the same command would fail again until somebody changes something. It is not
/// set for media errors and lost devices: a host with another path retries there, and one without gives
/// up after its own count of retries.
pub fn status(kind: ErrorKind) -> Status {
    match kind {
        ErrorKind::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        ErrorKind::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.with_dnr(),
        ErrorKind::Unsupported => Status::INVALID_OPCODE.with_dnr(),
        ErrorKind::Miscompare => Status::COMPARE_FAILURE.with_dnr(),
        // Linux maps it to ENOSPC, which file systems and databases understand. Space may come back, but
        // not within a host's retries.
        ErrorKind::NoSpace => Status::CAPACITY_EXCEEDED.with_dnr(),
        ErrorKind::MediumRead => Status::UNRECOVERED_READ_ERROR,
        ErrorKind::MediumWrite => Status::WRITE_FAULT,
        // Not "Invalid Namespace": that would make the host take the disk away for good, while the
        // device may be back after a retry.
        ErrorKind::Removed => Status::NAMESPACE_NOT_READY,
        ErrorKind::Aborted => Status::ABORT_REQUESTED,
        ErrorKind::Status { sct, sc } if (sct, sc) != (0, 0) => Status::new(sct, sc),
        // A failure without a status of its own, even if it brought that of success.
        // Nor may a device say that it does not lend to a command that asks for no such thing.
        ErrorKind::Status { .. } | ErrorKind::NotLent | ErrorKind::Internal => {
            Status::INTERNAL_ERROR
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_reads_as_success() {
        for kind in [
            ErrorKind::OutOfRange,
            ErrorKind::ReadOnly,
            ErrorKind::Unsupported,
            ErrorKind::Miscompare,
            ErrorKind::NoSpace,
            ErrorKind::MediumRead,
            ErrorKind::MediumWrite,
            ErrorKind::Removed,
            ErrorKind::Aborted,
            ErrorKind::NotLent,
            ErrorKind::Internal,
            ErrorKind::Status { sct: 0, sc: 0 },
            ErrorKind::Status { sct: 2, sc: 0x81 },
        ] {
            assert!(!status(kind).is_success(), "{kind:?}");
        }
    }
}
