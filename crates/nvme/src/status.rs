//! Status of a completed command.
//!
//! NVMe Base 2.0c, section 3.3.3.2 "Completion Queue Entry: Status Field Definition". [`Status`]
//! holds the fifteen bits that mean something; the phase tag belongs to the queue, is not used over
//! fabrics, and exists only in the wire form ([`Status::to_wire`], [`Status::from_wire`]).

use std::fmt;

/// Status field of a completion, without the phase tag.
///
/// | bits | field |
/// | --- | --- |
/// | 7:0 | Status Code (SC) |
/// | 10:8 | Status Code Type (SCT) |
/// | 12:11 | Command Retry Delay (CRD): 0 = at once, 1..3 = Identify Controller CRDT1..CRDT3 |
/// | 13 | More (M): details in the error information log |
/// | 14 | Do Not Retry (DNR) |
///
/// Equality compares all of it; [`Status::same_code`] compares type and code only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub struct Status(u16);

/// Status Code Type (SCT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusType {
    /// 0h: Generic Command Status.
    Generic,
    /// 1h: Command Specific Status.
    CommandSpecific,
    /// 2h: Media and Data Integrity Errors.
    Media,
    /// 3h: Path Related Status.
    Path,
    /// 4h to 6h.
    Reserved(u8),
    /// 7h: Vendor Specific.
    Vendor,
}

const CODE_MASK: u16 = 0x07ff;
const RETRY_DELAY_SHIFT: u16 = 11;
const MORE: u16 = 1 << 13;
const DO_NOT_RETRY: u16 = 1 << 14;
const ALL_BITS: u16 = 0x7fff;

impl Status {
    /// From a status code type (low three bits count) and a status code.
    pub const fn new(status_type: u8, code: u8) -> Self {
        // Widening u8 -> u16 in a const function: `From` is not const.
        Self((((status_type & 0x7) as u16) << 8) | code as u16)
    }

    /// The fifteen bits as they are; bit 15 is dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & ALL_BITS)
    }

    /// The fifteen bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The 16-bit field of a completion queue entry, phase tag 0.
    pub const fn to_wire(self) -> u16 {
        self.0 << 1
    }

    /// From the 16-bit field of a completion queue entry; the phase tag is ignored.
    pub const fn from_wire(field: u16) -> Self {
        Self(field >> 1)
    }

    /// Status Code (SC).
    pub const fn code(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Status Code Type (SCT).
    pub const fn status_type(self) -> StatusType {
        match (self.0 >> 8) & 0x7 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            7 => StatusType::Vendor,
            4 => StatusType::Reserved(4),
            5 => StatusType::Reserved(5),
            _ => StatusType::Reserved(6),
        }
    }

    /// Whether the command succeeded: type 0, code 0.
    pub const fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }

    /// Whether type and code are those of `other`, whatever DNR, More and CRD say.
    pub const fn same_code(self, other: Status) -> bool {
        self.0 & CODE_MASK == other.0 & CODE_MASK
    }

    /// With Do Not Retry set: the same command would fail again.
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// Do Not Retry (DNR).
    pub const fn dnr(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// With More set: the error information log has an entry for this command.
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// More (M).
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// With a Command Retry Delay (CRD): 0 none, 1..3 for CRDT1..CRDT3; only the low two bits
    /// count.
    pub const fn with_retry_delay(self, crd: u8) -> Self {
        let cleared = self.0 & !(0x3 << RETRY_DELAY_SHIFT);
        Self(cleared | (((crd & 0x3) as u16) << RETRY_DELAY_SHIFT))
    }

    /// Command Retry Delay (CRD), 0..=3.
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> RETRY_DELAY_SHIFT).to_le_bytes()[0] & 0x3
    }

    /// `Ok` for success, otherwise the status as an error.
    pub const fn into_result(self) -> Result<(), Status> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sct = (self.0 >> 8) & 0x7;
        match self.name() {
            Some(name) => write!(f, "{name} ({sct:x}h/{:02x}h", self.code())?,
            None => write!(f, "unknown status ({sct:x}h/{:02x}h", self.code())?,
        }
        if self.dnr() {
            f.write_str(", do not retry")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x} {self})", self.0)
    }
}

impl std::error::Error for Status {}

macro_rules! statuses {
    ( $( $sct:literal { $( $constant:ident = $code:literal, $text:literal; )+ } )+ ) => {
        impl Status {
            $( $(
                #[doc = concat!($text, " (", stringify!($sct), "/", stringify!($code), ").")]
                pub const $constant: Status = Status::new($sct, $code);
            )+ )+

            /// Every constant above, for tables and tests.
            pub const KNOWN: &'static [Status] = &[ $( $( Status::$constant, )+ )+ ];
        }

        /// Names in the order of `KNOWN`; some codes have one meaning per command and share an
        /// entry.
        const NAMES: &[&str] = &[ $( $( $text, )+ )+ ];
    };
}

impl Status {
    /// The specification's name. Command-specific codes 80h to 84h mean one thing to a Connect
    /// command and another to a command of the NVM command set; both are named.
    pub fn name(self) -> Option<&'static str> {
        match self.0 & CODE_MASK {
            0x180 => return Some("Connect Incompatible Format or Conflicting Attributes"),
            0x181 => return Some("Connect Controller Busy or Invalid Protection Information"),
            0x182 => {
                return Some("Connect Invalid Parameters or Attempted Write to Read Only Range");
            }
            0x183 => return Some("Connect Restart Discovery or Command Size Limit Exceeded"),
            _ => {}
        }
        Self::KNOWN
            .iter()
            .zip(NAMES)
            .find_map(|(status, name)| status.same_code(self).then_some(*name))
    }
}

statuses! {
    // Generic Command Status.
    0x0 {
        SUCCESS = 0x00, "Successful Completion";
        INVALID_OPCODE = 0x01, "Invalid Command Opcode";
        INVALID_FIELD = 0x02, "Invalid Field in Command";
        COMMAND_ID_CONFLICT = 0x03, "Command ID Conflict";
        DATA_TRANSFER_ERROR = 0x04, "Data Transfer Error";
        ABORTED_POWER_LOSS = 0x05, "Commands Aborted due to Power Loss Notification";
        INTERNAL_ERROR = 0x06, "Internal Error";
        ABORT_REQUESTED = 0x07, "Command Abort Requested";
        ABORTED_SQ_DELETION = 0x08, "Command Aborted due to SQ Deletion";
        ABORTED_FAILED_FUSED = 0x09, "Command Aborted due to Failed Fused Command";
        ABORTED_MISSING_FUSED = 0x0a, "Command Aborted due to Missing Fused Command";
        INVALID_NAMESPACE = 0x0b, "Invalid Namespace or Format";
        COMMAND_SEQUENCE_ERROR = 0x0c, "Command Sequence Error";
        INVALID_SGL_SEGMENT = 0x0d, "Invalid SGL Segment Descriptor";
        INVALID_SGL_COUNT = 0x0e, "Invalid Number of SGL Descriptors";
        SGL_DATA_LENGTH_INVALID = 0x0f, "Data SGL Length Invalid";
        SGL_METADATA_LENGTH_INVALID = 0x10, "Metadata SGL Length Invalid";
        SGL_TYPE_INVALID = 0x11, "SGL Descriptor Type Invalid";
        CMB_INVALID_USE = 0x12, "Invalid Use of Controller Memory Buffer";
        PRP_OFFSET_INVALID = 0x13, "PRP Offset Invalid";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14, "Atomic Write Unit Exceeded";
        OPERATION_DENIED = 0x15, "Operation Denied";
        SGL_OFFSET_INVALID = 0x16, "SGL Offset Invalid";
        HOST_ID_INCONSISTENT_FORMAT = 0x18, "Host Identifier Inconsistent Format";
        KEEP_ALIVE_EXPIRED = 0x19, "Keep Alive Timer Expired";
        KEEP_ALIVE_INVALID = 0x1a, "Keep Alive Timeout Invalid";
        ABORTED_PREEMPT = 0x1b, "Command Aborted due to Preempt and Abort";
        SANITIZE_FAILED = 0x1c, "Sanitize Failed";
        SANITIZE_IN_PROGRESS = 0x1d, "Sanitize In Progress";
        SGL_GRANULARITY_INVALID = 0x1e, "SGL Data Block Granularity Invalid";
        COMMAND_NOT_SUPPORTED_IN_CMB = 0x1f, "Command Not Supported for Queue in CMB";
        NAMESPACE_WRITE_PROTECTED = 0x20, "Namespace is Write Protected";
        COMMAND_INTERRUPTED = 0x21, "Command Interrupted";
        TRANSIENT_TRANSPORT_ERROR = 0x22, "Transient Transport Error";
        PROHIBITED_BY_LOCKDOWN = 0x23, "Command Prohibited by Command and Feature Lockdown";
        ADMIN_MEDIA_NOT_READY = 0x24, "Admin Command Media Not Ready";
        LBA_OUT_OF_RANGE = 0x80, "LBA Out of Range";
        CAPACITY_EXCEEDED = 0x81, "Capacity Exceeded";
        NAMESPACE_NOT_READY = 0x82, "Namespace Not Ready";
        RESERVATION_CONFLICT = 0x83, "Reservation Conflict";
        FORMAT_IN_PROGRESS = 0x84, "Format In Progress";
    }
    // Command Specific Status.
    0x1 {
        INVALID_COMPLETION_QUEUE = 0x00, "Completion Queue Invalid";
        INVALID_QUEUE_ID = 0x01, "Invalid Queue Identifier";
        INVALID_QUEUE_SIZE = 0x02, "Invalid Queue Size";
        ABORT_LIMIT_EXCEEDED = 0x03, "Abort Command Limit Exceeded";
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x05, "Asynchronous Event Request Limit Exceeded";
        INVALID_FIRMWARE_SLOT = 0x06, "Invalid Firmware Slot";
        INVALID_FIRMWARE_IMAGE = 0x07, "Invalid Firmware Image";
        INVALID_INTERRUPT_VECTOR = 0x08, "Invalid Interrupt Vector";
        INVALID_LOG_PAGE = 0x09, "Invalid Log Page";
        INVALID_FORMAT = 0x0a, "Invalid Format";
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b, "Firmware Activation Requires Conventional Reset";
        INVALID_QUEUE_DELETION = 0x0c, "Invalid Queue Deletion";
        FEATURE_NOT_SAVEABLE = 0x0d, "Feature Identifier Not Saveable";
        FEATURE_NOT_CHANGEABLE = 0x0e, "Feature Not Changeable";
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f, "Feature Not Namespace Specific";
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10, "Firmware Activation Requires NVM Subsystem Reset";
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11, "Firmware Activation Requires Controller Level Reset";
        FIRMWARE_MAX_TIME_VIOLATION = 0x12, "Firmware Activation Requires Maximum Time Violation";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13, "Firmware Activation Prohibited";
        OVERLAPPING_RANGE = 0x14, "Overlapping Range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15, "Namespace Insufficient Capacity";
        NAMESPACE_ID_UNAVAILABLE = 0x16, "Namespace Identifier Unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x18, "Namespace Already Attached";
        NAMESPACE_IS_PRIVATE = 0x19, "Namespace Is Private";
        NAMESPACE_NOT_ATTACHED = 0x1a, "Namespace Not Attached";
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b, "Thin Provisioning Not Supported";
        CONTROLLER_LIST_INVALID = 0x1c, "Controller List Invalid";
        SELF_TEST_IN_PROGRESS = 0x1d, "Device Self-test In Progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e, "Boot Partition Write Prohibited";
        INVALID_CONTROLLER_ID = 0x1f, "Invalid Controller Identifier";
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20, "Invalid Secondary Controller State";
        INVALID_CONTROLLER_RESOURCES = 0x21, "Invalid Number of Controller Resources";
        INVALID_RESOURCE_ID = 0x22, "Invalid Resource Identifier";
        SANITIZE_PROHIBITED = 0x23, "Sanitize Prohibited While Persistent Memory Region is Enabled";
        ANA_GROUP_ID_INVALID = 0x24, "ANA Group Identifier Invalid";
        ANA_ATTACH_FAILED = 0x25, "ANA Attach Failed";
        INSUFFICIENT_CAPACITY = 0x26, "Insufficient Capacity";
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27, "Namespace Attachment Limit Exceeded";
        COMMAND_SET_NOT_SUPPORTED = 0x29, "I/O Command Set Not Supported";
        COMMAND_SET_NOT_ENABLED = 0x2a, "I/O Command Set Not Enabled";
        COMMAND_SET_COMBINATION_REJECTED = 0x2b, "I/O Command Set Combination Rejected";
        INVALID_COMMAND_SET = 0x2c, "Invalid I/O Command Set";
        IDENTIFIER_UNAVAILABLE = 0x2d, "Identifier Unavailable";
        // NVM command set. Same codes as those of Connect below.
        CONFLICTING_ATTRIBUTES = 0x80, "Conflicting Attributes";
        INVALID_PROTECTION_INFORMATION = 0x81, "Invalid Protection Information";
        WRITE_TO_READ_ONLY_RANGE = 0x82, "Attempted Write to Read Only Range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83, "Command Size Limit Exceeded";
        // Fabrics.
        CONNECT_INCOMPATIBLE_FORMAT = 0x80, "Connect Incompatible Format";
        CONNECT_CONTROLLER_BUSY = 0x81, "Connect Controller Busy";
        CONNECT_INVALID_PARAMETERS = 0x82, "Connect Invalid Parameters";
        CONNECT_RESTART_DISCOVERY = 0x83, "Connect Restart Discovery";
        CONNECT_INVALID_HOST = 0x84, "Connect Invalid Host";
        DISCONNECT_INVALID_QUEUE_TYPE = 0x85, "Disconnect Invalid Queue Type";
        DISCOVERY_RESTART = 0x90, "Discover Restart";
        AUTHENTICATION_REQUIRED = 0x91, "Authentication Required";
    }
    // Media and Data Integrity Errors.
    0x2 {
        WRITE_FAULT = 0x80, "Write Fault";
        UNRECOVERED_READ_ERROR = 0x81, "Unrecovered Read Error";
        GUARD_CHECK_ERROR = 0x82, "End-to-end Guard Check Error";
        APPLICATION_TAG_CHECK_ERROR = 0x83, "End-to-end Application Tag Check Error";
        REFERENCE_TAG_CHECK_ERROR = 0x84, "End-to-end Reference Tag Check Error";
        COMPARE_FAILURE = 0x85, "Compare Failure";
        ACCESS_DENIED = 0x86, "Access Denied";
        DEALLOCATED_OR_UNWRITTEN = 0x87, "Deallocated or Unwritten Logical Block";
        STORAGE_TAG_CHECK_ERROR = 0x88, "End-to-End Storage Tag Check Error";
    }
    // Path Related Status.
    0x3 {
        INTERNAL_PATH_ERROR = 0x00, "Internal Path Error";
        ANA_PERSISTENT_LOSS = 0x01, "Asymmetric Access Persistent Loss";
        ANA_INACCESSIBLE = 0x02, "Asymmetric Access Inaccessible";
        ANA_TRANSITION = 0x03, "Asymmetric Access Transition";
        CONTROLLER_PATHING_ERROR = 0x60, "Controller Pathing Error";
        HOST_PATHING_ERROR = 0x70, "Host Pathing Error";
        ABORTED_BY_HOST = 0x71, "Command Aborted By Host";
    }
}
