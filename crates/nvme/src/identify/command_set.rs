//! Identify data that belongs to one I/O command set, here NVM, and the list of command sets.

use crate::codes::{layout, wire};
use zerocopy::little_endian::{U32, U64};

wire! {
    /// Identify Controller of the NVM command set (CNS 06h, CSI 00h): limits of single commands.
    pub struct NvmController {
        /// Verify Size Limit (VSL): 2 ^ this units of CAP.MPSMIN; 0 for no limit.
        pub vsl: u8,
        /// Write Zeroes Size Limit (WZSL): as VSL.
        pub wzsl: u8,
        /// Write Uncorrectable Size Limit (WUSL): as VSL.
        pub wusl: u8,
        /// Dataset Management Ranges Limit (DMRL): ranges in a command; 0 for no limit.
        pub dmrl: u8,
        /// Dataset Management Range Size Limit (DMRSL): logical blocks in a range; 0 for no limit.
        pub dmrsl: U32,
        /// Dataset Management Size Limit (DMSL): logical blocks in a command; 0 for no limit.
        pub dmsl: U64,
        /// Reserved.
        pub reserved16: [u8; 4080],
    }
}
layout!(NvmController, 4096, vsl @ 0, wzsl @ 1, wusl @ 2, dmrl @ 3, dmrsl @ 4, dmsl @ 8);

wire! {
    /// Identify Namespace of the NVM command set (CNS 05h, CSI 00h): extended LBA formats.
    pub struct NvmNamespace {
        /// Logical Block Storage Tag Mask (LBSTM).
        pub lbstm: U64,
        /// Protection Information Capabilities (PIC).
        pub pic: u8,
        /// Reserved.
        pub reserved9: [u8; 3],
        /// Extended LBA Format 0..63 (ELBAF): bits 6:0 storage tag size, bits 8:7 protection
        /// information format.
        pub elbaf: [U32; 64],
        /// Reserved.
        pub reserved268: [u8; 3828],
    }
}
layout!(NvmNamespace, 4096, lbstm @ 0, pic @ 8, elbaf @ 12, reserved268 @ 268);

wire! {
    /// Identify I/O Command Set (CNS 1Ch): the combinations of command sets that a controller can
    /// enable.
    pub struct CommandSets {
        /// I/O Command Set Vectors: one bit per CSI; the list ends with the first that is zero.
        pub vectors: [U64; 512],
    }
}
layout!(CommandSets, 4096);

impl CommandSets {
    /// Bit of the NVM command set in a vector.
    pub const NVM: u64 = 1 << 0;

    /// The list of one vector.
    pub fn one(vector: u64) -> Self {
        let mut list = Self::default();
        if let Some(first) = list.vectors.first_mut() {
            *first = U64::new(vector);
        }
        list
    }
}
