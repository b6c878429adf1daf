//! What a controller can do: Supported Log Pages (00h), and Commands Supported and Effects (05h).

use super::LogPage;
use crate::codes::{layout, wire};
use zerocopy::little_endian::U32;

bitflags::bitflags! {
    /// LID Supported and Effects, one for each log page.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct SupportedPage: u32 {
        /// LID Supported (LSUPP).
        const SUPPORTED = 1 << 0;
        /// Index Offset Supported (IOS): OT may be 1.
        const INDEX_OFFSET = 1 << 1;
    }
}

wire! {
    /// Supported Log Pages log page: 256 entries of [`SupportedPage`], by LID.
    pub struct SupportedLogPages {
        /// LID Supported and Effects.
        pub lids: [U32; 256],
    }
}
layout!(SupportedLogPages, 1024);

impl SupportedLogPages {
    /// Sets the entry of one page.
    pub fn set(&mut self, page: LogPage, value: SupportedPage) {
        if let Some(entry) = self.lids.get_mut(usize::from(page.code())) {
            *entry = U32::new(value.bits());
        }
    }

    /// The entry of one page.
    pub fn get(&self, page: LogPage) -> SupportedPage {
        let entry = self.lids.get(usize::from(page.code()));
        SupportedPage::from_bits_retain(entry.map_or(0, |entry| entry.get()))
    }
}

bitflags::bitflags! {
    /// Commands Supported and Effects data structure, one for each opcode.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Effects: u32 {
        /// Command Supported (CSUPP).
        const SUPPORTED = 1 << 0;
        /// Logical Block Content Change (LBCC).
        const CONTENT_CHANGE = 1 << 1;
        /// Namespace Capability Change (NCC).
        const NAMESPACE_CAPABILITY_CHANGE = 1 << 2;
        /// Namespace Inventory Change (NIC).
        const NAMESPACE_INVENTORY_CHANGE = 1 << 3;
        /// Controller Capability Change (CCC).
        const CONTROLLER_CAPABILITY_CHANGE = 1 << 4;
        /// UUID Selection Supported.
        const UUID_SELECTION = 1 << 19;
        /// Scope: namespace.
        const SCOPE_NAMESPACE = 1 << 20;
        /// Scope: controller.
        const SCOPE_CONTROLLER = 1 << 21;
    }
}

wire! {
    /// Commands Supported and Effects log page: 256 entries of [`Effects`] for the admin queue, by
    /// opcode, and 256 for I/O queues.
    pub struct CommandEffects {
        /// Admin Command Supported (ACS).
        pub acs: [U32; 256],
        /// I/O Command Supported (IOCS).
        pub iocs: [U32; 256],
        /// Reserved.
        pub reserved2048: [u8; 2048],
    }
}
layout!(CommandEffects, 4096, acs @ 0, iocs @ 1024);

impl CommandEffects {
    /// Sets the entry of an admin command, or with 7Fh of fabrics commands.
    pub fn set_admin(&mut self, opcode: u8, value: Effects) {
        if let Some(entry) = self.acs.get_mut(usize::from(opcode)) {
            *entry = U32::new(value.bits());
        }
    }

    /// Sets the entry of an I/O command.
    pub fn set_io(&mut self, opcode: u8, value: Effects) {
        if let Some(entry) = self.iocs.get_mut(usize::from(opcode)) {
            *entry = U32::new(value.bits());
        }
    }
}
