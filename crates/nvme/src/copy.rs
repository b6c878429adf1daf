//! The Copy command, and the source ranges that come with it as data.
//!
//! NVM Command Set Specification 1.0c, section 3.2.2. Apart from [`crate::io::Command`], since no fabrics controller of ours has it.

use crate::codes::{codes, layout, wire};
use crate::command::Sqe;
use crate::io::{BlockRange, Opcode, Protection};
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

codes! {
    /// Copy Descriptor Format (DESFMT).
    pub enum Format {
        Short = 0x0, "Source Range Entries Copy Descriptor Format 0h";
        LongTags = 0x1, "Source Range Entries Copy Descriptor Format 1h";
    }
}

impl Format {
    /// Bytes of one source range.
    pub const fn range_bytes(self) -> u32 {
        match self {
            Self::Short => 32,
            Self::LongTags => 40,
        }
    }
}

/// Most source ranges of a Copy command.
pub const RANGES_MAX: u16 = 256;

/// Copy: source ranges, one after the other, to consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Starting Destination LBA (SDLBA).
    pub sdlba: u64,
    /// Number of Ranges (NR), counted from 1: 1..=256.
    pub ranges: u16,
    /// Copy Descriptor Format (DESFMT), 4 bits: see [`Format`].
    pub format: u8,
    /// Protection Information Read (PRINFOR), 4 bits.
    pub prinfor: u8,
    /// Storage Tag Check Read (STCR).
    pub stcr: bool,
    /// Force Unit Access (FUA) of what is written.
    pub fua: bool,
    /// Limited Retry (LR).
    pub limited_retry: bool,
    /// Directive Type (DTYPE), 4 bits.
    pub directive_type: u8,
    /// Directive Specific (DSPEC).
    pub directive: u16,
    /// Protection information of what is written (PRINFOW, STCW, ILBRT, LBAT, LBATM).
    pub protection: Protection,
}

impl Copy {
    /// `ranges` ranges of format 0 to the blocks from `sdlba` on, nothing special.
    pub fn new(sdlba: u64, ranges: u16) -> Self {
        Self {
            sdlba,
            ranges,
            format: Format::Short.code(),
            prinfor: 0,
            stcr: false,
            fua: false,
            limited_retry: false,
            directive_type: 0,
            directive: 0,
            protection: Protection::default(),
        }
    }

    /// Bytes of data that the command comes with. `INVALID_FIELD` if the format is reserved.
    pub fn data_length(&self) -> Result<u32, Status> {
        let format = Format::try_from(self.format).map_err(|_| Status::INVALID_FIELD)?;
        Ok(u32::from(self.ranges).saturating_mul(format.range_bytes()))
    }

    /// The command in an SQE of an I/O queue. `INVALID_OPCODE` for any other.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        if sqe.opcode != Opcode::Copy.code() {
            return Err(Status::INVALID_OPCODE);
        }
        let [ranges, second, third, top] = sqe.cdw12.to_bytes();
        let [_, _, d0, d1] = sqe.cdw13.to_bytes();
        Ok(Self {
            sdlba: u64::from(sqe.cdw10.get()) | u64::from(sqe.cdw11.get()) << 32,
            ranges: u16::from(ranges).saturating_add(1),
            format: second & 0xf,
            prinfor: second >> 4,
            stcr: top & 0x02 != 0,
            fua: top & 0x40 != 0,
            limited_retry: top & 0x80 != 0,
            directive_type: third >> 4,
            directive: u16::from_le_bytes([d0, d1]),
            protection: Protection::parse(sqe),
        })
    }

    /// The command for this namespace, without data pointer and CID.
    pub fn to_sqe(&self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(Opcode::Copy.code(), nsid);
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.sdlba.to_le_bytes();
        sqe.cdw10 = U32::from_bytes([s0, s1, s2, s3]);
        sqe.cdw11 = U32::from_bytes([s4, s5, s6, s7]);
        let ranges = self.ranges.clamp(1, RANGES_MAX).saturating_sub(1);
        let [ranges, _] = ranges.to_le_bytes();
        let second = (self.format & 0xf) | self.prinfor << 4;
        let third = self.directive_type << 4;
        let top =
            u8::from(self.stcr) << 1 | u8::from(self.fua) << 6 | u8::from(self.limited_retry) << 7;
        sqe.cdw12 = U32::from_bytes([ranges, second, third, top]);
        let [d0, d1] = self.directive.to_le_bytes();
        sqe.cdw13 = U32::from_bytes([0, 0, d0, d1]);
        self.protection.put(&mut sqe);
        sqe
    }
}

wire! {
    /// A source range of format 0.
    pub struct Range {
        /// Reserved.
        pub reserved0: U64,
        /// Starting LBA (SLBA).
        pub slba: U64,
        /// Number of Logical Blocks (NLB), 0's based.
        pub nlb: U16,
        /// Reserved.
        pub reserved18: [u8; 6],
        /// Expected Initial Logical Block Reference Tag (EILBRT).
        pub eilbrt: U32,
        /// Expected Logical Block Application Tag (ELBAT).
        pub elbat: U16,
        /// Expected Logical Block Application Tag Mask (ELBATM).
        pub elbatm: U16,
    }
}
layout!(Range, 32, slba @ 8, nlb @ 16, eilbrt @ 24, elbat @ 28, elbatm @ 30);

impl Range {
    /// `blocks` blocks from `slba`: 1..=65,536, others are cut.
    pub fn new(slba: u64, blocks: u32) -> Self {
        let nlb = u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX);
        Self { slba: U64::new(slba), nlb: U16::new(nlb), ..Self::default() }
    }

    /// The blocks.
    pub fn range(&self) -> BlockRange {
        let blocks = u32::from(self.nlb.get()).saturating_add(1);
        BlockRange { slba: self.slba.get(), blocks }
    }
}

wire! {
    /// A source range of format 1, for protection information with longer guards.
    pub struct LongRange {
        /// Reserved.
        pub reserved0: U64,
        /// Starting LBA (SLBA).
        pub slba: U64,
        /// Number of Logical Blocks (NLB), 0's based.
        pub nlb: U16,
        /// Reserved.
        pub reserved18: [u8; 8],
        /// Expected Logical Block Storage Tag and Initial Reference Tag (ELBST, EILBRT).
        pub tags: [u8; 10],
        /// Expected Logical Block Application Tag (ELBAT).
        pub elbat: U16,
        /// Expected Logical Block Application Tag Mask (ELBATM).
        pub elbatm: U16,
    }
}
layout!(LongRange, 40, slba @ 8, nlb @ 16, tags @ 26, elbat @ 36, elbatm @ 38);
