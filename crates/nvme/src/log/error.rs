//! Error Information log page (01h): the last errors, newest first, one entry of 64 bytes each.

use crate::codes::{layout, wire};
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

/// Parameter Error Location of an error that no field of the command is to blame for.
pub const ERROR_PARAMETER_NONE: u16 = 0xffff;

wire! {
    /// One error. All zero, or `error_count` 0: no entry.
    pub struct ErrorEntry {
        /// Error Count: unique for each error of the controller, counted up, kept across resets. 1
        /// is the first.
        pub error_count: U64,
        /// Submission Queue ID; `FFFFh` if the error belongs to no command.
        pub sqid: U16,
        /// Command ID; `FFFFh` if the error belongs to no command.
        pub cid: U16,
        /// Status Field: bits 15:1 the status, bit 0 the phase tag; see [`ErrorEntry::status`].
        pub status_field: U16,
        /// Parameter Error Location: byte in bits 7:0, bit in bits 10:8; [`ERROR_PARAMETER_NONE`].
        pub parameter_error_location: U16,
        /// LBA: first that failed.
        pub lba: U64,
        /// Namespace.
        pub nsid: U32,
        /// Vendor Specific Information Available: LID of a page, or 0.
        pub vendor_log: u8,
        /// Transport Type (TRTYPE) of the command.
        pub trtype: u8,
        /// Reserved.
        pub reserved30: [u8; 2],
        /// Command Specific Information.
        pub command_specific: U64,
        /// Transport Type Specific Information.
        pub transport_specific: U16,
        /// Reserved.
        pub reserved42: [u8; 22],
    }
}
layout!(
    ErrorEntry, 64,
    error_count @ 0, sqid @ 8, cid @ 10, status_field @ 12, parameter_error_location @ 14, lba @ 16,
    nsid @ 24, vendor_log @ 28, trtype @ 29, command_specific @ 32, transport_specific @ 40,
);

impl ErrorEntry {
    /// The status.
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status_field.get())
    }

    /// Parameter Error Location of bit `bit` (0..=7) in byte `byte` of the command.
    pub const fn parameter(byte: u8, bit: u8) -> u16 {
        u16::from_le_bytes([byte, bit & 0x7])
    }
}
