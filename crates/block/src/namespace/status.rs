//! What a device's status means here: the one table.

use nvme::Status;
use nvme::status::StatusType;

use crate::ErrorKind;

/// The error of an operation whose command ended with this status, which is not success.
///
/// What has a kind of its own gets it; the rest is passed on as it is, but for what only makes sense on the way
/// between device and node: that our command was at fault is our mistake, and that the device's path or queue is
/// gone is a reason to try again for a host whose own path is in order.
pub fn error_kind(status: Status) -> ErrorKind {
    let is = |others: &[Status]| others.iter().any(|other| status.same_code(*other));
    if is(&[Status::LBA_OUT_OF_RANGE]) {
        ErrorKind::OutOfRange
    } else if is(&[Status::NAMESPACE_WRITE_PROTECTED, Status::WRITE_TO_READ_ONLY_RANGE]) {
        ErrorKind::ReadOnly
    } else if is(&[Status::INVALID_OPCODE]) {
        ErrorKind::Unsupported
    } else if is(&[Status::COMPARE_FAILURE]) {
        ErrorKind::Miscompare
    } else if is(&[Status::CAPACITY_EXCEEDED]) {
        ErrorKind::NoSpace
    } else if is(&[Status::UNRECOVERED_READ_ERROR]) {
        ErrorKind::MediumRead
    } else if is(&[Status::WRITE_FAULT]) {
        ErrorKind::MediumWrite
    } else if is(&[Status::INVALID_NAMESPACE]) {
        ErrorKind::Removed
    } else if is(&[
        Status::INVALID_FIELD,
        Status::COMMAND_ID_CONFLICT,
        Status::COMMAND_SEQUENCE_ERROR,
        Status::INVALID_SGL_SEGMENT,
        Status::INVALID_SGL_COUNT,
        Status::SGL_DATA_LENGTH_INVALID,
        Status::SGL_TYPE_INVALID,
        Status::PRP_OFFSET_INVALID,
        Status::SGL_OFFSET_INVALID,
        Status::SGL_GRANULARITY_INVALID,
        Status::SUCCESS,
    ]) {
        ErrorKind::Internal
    } else if status.status_type() == StatusType::Path
        || is(&[Status::ABORT_REQUESTED, Status::ABORTED_SQ_DELETION])
    {
        of(Status::TRANSIENT_TRANSPORT_ERROR)
    } else {
        of(status)
    }
}

fn of(status: Status) -> ErrorKind {
    let [_, high] = status.bits().to_le_bytes();
    ErrorKind::Status { sct: high & 0x7, sc: status.code() }
}

/// Whether the same command may well succeed in a while: the way to the device is being restored, or the device asks
/// for patience.
pub fn may_pass(status: Status) -> bool {
    let passing = [
        Status::ABORTED_SQ_DELETION,
        Status::COMMAND_INTERRUPTED,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::NAMESPACE_NOT_READY,
    ];
    let passing = passing.iter().any(|other| status.same_code(*other));
    !status.dnr() && (passing || status.status_type() == StatusType::Path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_with_a_kind_of_their_own() {
        for (status, kind) in [
            (Status::LBA_OUT_OF_RANGE, ErrorKind::OutOfRange),
            (Status::NAMESPACE_WRITE_PROTECTED.with_dnr(), ErrorKind::ReadOnly),
            (Status::INVALID_OPCODE.with_dnr(), ErrorKind::Unsupported),
            (Status::COMPARE_FAILURE.with_more(), ErrorKind::Miscompare),
            (Status::CAPACITY_EXCEEDED, ErrorKind::NoSpace),
            (Status::UNRECOVERED_READ_ERROR, ErrorKind::MediumRead),
            (Status::WRITE_FAULT, ErrorKind::MediumWrite),
            (Status::INVALID_NAMESPACE.with_dnr(), ErrorKind::Removed),
            (Status::INVALID_FIELD.with_dnr(), ErrorKind::Internal),
            (Status::RESERVATION_CONFLICT, ErrorKind::Status { sct: 0, sc: 0x83 }),
            (Status::DEALLOCATED_OR_UNWRITTEN, ErrorKind::Status { sct: 2, sc: 0x87 }),
            (Status::new(7, 0xc3).with_more(), ErrorKind::Status { sct: 7, sc: 0xc3 }),
        ] {
            assert_eq!(error_kind(status), kind, "{status}");
        }
    }

    #[test]
    fn no_host_hears_of_our_way_to_the_device() {
        for status in Status::KNOWN.iter().filter(|status| !status.is_success()) {
            let kind = error_kind(*status);
            assert!(!matches!(kind, ErrorKind::Status { sct: 3, .. }), "{status}");
            assert_ne!(kind, ErrorKind::Aborted, "nobody here has asked for that: {status}");
            if status.status_type() == StatusType::Path {
                assert_eq!(kind, ErrorKind::Status { sct: 0, sc: 0x22 });
                assert!(may_pass(*status) && !may_pass(status.with_dnr()));
            }
        }
        assert!(!may_pass(Status::WRITE_FAULT));
    }
}
