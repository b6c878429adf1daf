//! Firmware Slot Information log page (03h).

use crate::codes::{layout, wire};

wire! {
    /// Revisions of the firmware slots.
    pub struct FirmwareSlots {
        /// Active Firmware Info (AFI): active slot in bits 2:0, slot after the next reset in bits
        /// 6:4.
        pub afi: u8,
        /// Reserved.
        pub reserved1: [u8; 7],
        /// Firmware Revision for Slot 1..7 (FRS1..FRS7): ASCII padded with spaces; zero for an
        /// empty slot.
        pub frs: [[u8; 8]; 7],
        /// Reserved.
        pub reserved64: [u8; 448],
    }
}
layout!(FirmwareSlots, 512, afi @ 0, frs @ 8, reserved64 @ 64);
