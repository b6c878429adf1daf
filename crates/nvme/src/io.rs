//! Commands of I/O queues: the NVM command set.
//!
//! NVM Command Set Specification 1.0c, section 3.2. The namespace is [`Sqe::nsid`]; everything else
//! that a command says is in the types here.

use crate::codes::{codes, layout, wire};
use crate::command::Sqe;
use crate::status::Status;
use zerocopy::little_endian::{U32, U64};

codes! {
    /// Opcodes of I/O queues.
    pub enum Opcode {
        Flush = 0x00, "Flush";
        Write = 0x01, "Write";
        Read = 0x02, "Read";
        WriteUncorrectable = 0x04, "Write Uncorrectable";
        Compare = 0x05, "Compare";
        WriteZeroes = 0x08, "Write Zeroes";
        DatasetManagement = 0x09, "Dataset Management";
        Verify = 0x0c, "Verify";
        ReservationRegister = 0x0d, "Reservation Register";
        ReservationReport = 0x0e, "Reservation Report";
        ReservationAcquire = 0x11, "Reservation Acquire";
        ReservationRelease = 0x15, "Reservation Release";
        Copy = 0x19, "Copy";
    }
}

/// A command of the NVM command set; [`crate::copy::Copy`] is apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Flush: what completed before is to survive power loss. every namespace (`FFFFFFFFh`): all
    /// namespaces.
    Flush,
    /// Write.
    Write(Transfer),
    /// Read.
    Read(Transfer),
    /// Compare: fails with `COMPARE_FAILURE` unless the data equals what is stored.
    Compare(Transfer),
    /// Write Zeroes.
    WriteZeroes(WriteZeroes),
    /// Dataset Management; its data are [`DatasetManagement::ranges`] times [`DsmRange`].
    DatasetManagement(DatasetManagement),
    /// Verify: reads without a transfer.
    Verify(Transfer),
}

impl Command {
    /// The command in an SQE of an I/O queue. `INVALID_OPCODE` for opcodes that are not known, and
    /// for those in [`Opcode`] that have no typed form yet.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        match Opcode::try_from(sqe.opcode).map_err(|_| Status::INVALID_OPCODE)? {
            Opcode::Flush => Ok(Self::Flush),
            Opcode::Write => Ok(Self::Write(Transfer::parse(sqe))),
            Opcode::Read => Ok(Self::Read(Transfer::parse(sqe))),
            Opcode::Compare => Ok(Self::Compare(Transfer::parse(sqe))),
            Opcode::Verify => Ok(Self::Verify(Transfer::parse(sqe))),
            Opcode::WriteZeroes => Ok(Self::WriteZeroes(WriteZeroes::parse(sqe))),
            Opcode::DatasetManagement => Ok(Self::DatasetManagement(DatasetManagement::parse(sqe))),
            Opcode::WriteUncorrectable
            | Opcode::ReservationRegister
            | Opcode::ReservationReport
            | Opcode::ReservationAcquire
            | Opcode::ReservationRelease
            | Opcode::Copy => Err(Status::INVALID_OPCODE),
        }
    }

    /// The command for this namespace, without data pointer and CID.
    pub fn to_sqe(&self, nsid: u32) -> Sqe {
        let opcode = self.opcode().code();
        match self {
            Self::Flush => Sqe::new(opcode, nsid),
            Self::Write(transfer)
            | Self::Read(transfer)
            | Self::Compare(transfer)
            | Self::Verify(transfer) => transfer.to_sqe(opcode, nsid),
            Self::WriteZeroes(zeroes) => zeroes.to_sqe(nsid),
            Self::DatasetManagement(dsm) => dsm.to_sqe(nsid),
        }
    }

    /// Opcode.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::Flush => Opcode::Flush,
            Self::Write(_) => Opcode::Write,
            Self::Read(_) => Opcode::Read,
            Self::Compare(_) => Opcode::Compare,
            Self::WriteZeroes(_) => Opcode::WriteZeroes,
            Self::DatasetManagement(_) => Opcode::DatasetManagement,
            Self::Verify(_) => Opcode::Verify,
        }
    }
}

/// Logical blocks `slba .. slba + blocks`. Never empty when it comes from a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// Starting LBA (SLBA).
    pub slba: u64,
    /// Number of Logical Blocks (NLB), counted from 1: 1..=65,536 from the wire's 0's based field.
    pub blocks: u32,
}

impl BlockRange {
    /// The LBA behind the last; `None` beyond 2^64.
    pub fn end(&self) -> Option<u64> {
        self.slba.checked_add(u64::from(self.blocks))
    }

    /// `LBA_OUT_OF_RANGE` unless all blocks are below `capacity` blocks.
    pub fn check(&self, capacity: u64) -> Result<(), Status> {
        match self.end() {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Length in bytes; cannot overflow.
    pub fn bytes(&self, block_size: u32) -> u64 {
        u64::from(self.blocks) * u64::from(block_size)
    }

    fn parse(sqe: &Sqe) -> Self {
        let [n0, n1, ..] = sqe.cdw12.to_bytes();
        Self {
            slba: u64::from(sqe.cdw10.get()) | u64::from(sqe.cdw11.get()) << 32,
            blocks: u32::from(u16::from_le_bytes([n0, n1])).saturating_add(1),
        }
    }

    /// Puts the range into dwords 10 to 12, whose other bits stay. More than 65,536 blocks become
    /// 65,536, none becomes one: the field has no other values.
    fn put(&self, sqe: &mut Sqe) {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.slba.to_le_bytes();
        sqe.cdw10 = U32::from_bytes([s0, s1, s2, s3]);
        sqe.cdw11 = U32::from_bytes([s4, s5, s6, s7]);
        let nlb = self.blocks.saturating_sub(1).min(0xffff);
        sqe.cdw12 = U32::new(sqe.cdw12.get() & 0xffff_0000 | nlb);
    }
}

const STORAGE_TAG_CHECK: u32 = 1 << 24;
const DEALLOCATE: u32 = 1 << 25;
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
const LIMITED_RETRY: u32 = 1 << 31;

/// Protection Information (PRINFO, STC) and the tags that go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// Protection Information Action (PRACT).
    pub action: bool,
    /// Protection Information Check (PRCHK), bits 2:0: guard, application tag, reference tag.
    pub check: u8,
    /// Storage Tag Check (STC).
    pub storage_tag_check: bool,
    /// (Expected) Initial Logical Block Reference Tag, lower 32 bits (ILBRT or EILBRT).
    pub reference_tag: u32,
    /// (Expected) Logical Block Application Tag (LBAT or ELBAT).
    pub application_tag: u16,
    /// (Expected) Logical Block Application Tag Mask (LBATM or ELBATM).
    pub application_tag_mask: u16,
}

impl Protection {
    /// Whether the command asks for nothing of protection information: what a namespace formatted
    /// without it may demand.
    pub fn is_none(&self) -> bool {
        !self.action && self.check == 0 && !self.storage_tag_check
    }

    pub(crate) fn parse(sqe: &Sqe) -> Self {
        let dw12 = sqe.cdw12.get();
        let [.., top] = dw12.to_le_bytes();
        let prinfo = (top >> 2) & 0xf;
        let [t0, t1, m0, m1] = sqe.cdw15.to_bytes();
        Self {
            action: prinfo & 0x8 != 0,
            check: prinfo & 0x7,
            storage_tag_check: dw12 & STORAGE_TAG_CHECK != 0,
            reference_tag: sqe.cdw14.get(),
            application_tag: u16::from_le_bytes([t0, t1]),
            application_tag_mask: u16::from_le_bytes([m0, m1]),
        }
    }

    pub(crate) fn put(&self, sqe: &mut Sqe) {
        let prinfo = u32::from(self.action) << 3 | u32::from(self.check & 0x7);
        let stc = if self.storage_tag_check { STORAGE_TAG_CHECK } else { 0 };
        sqe.cdw12 = U32::new(sqe.cdw12.get() | prinfo << 26 | stc);
        sqe.cdw14 = U32::new(self.reference_tag);
        let [t0, t1] = self.application_tag.to_le_bytes();
        let [m0, m1] = self.application_tag_mask.to_le_bytes();
        sqe.cdw15 = U32::from_bytes([t0, t1, m0, m1]);
    }
}

/// What Read, Write, Compare and Verify have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The blocks.
    pub range: BlockRange,
    /// Force Unit Access (FUA): a write is on non-volatile media before it completes; a read comes
    /// from there.
    pub fua: bool,
    /// Limited Retry (LR): the host has other means of recovery.
    pub limited_retry: bool,
    /// Protection information.
    pub protection: Protection,
    /// Directive Type (DTYPE), bits 3:0; Write only.
    pub directive_type: u8,
    /// Directive Specific (DSPEC); Write only.
    pub directive: u16,
    /// Dataset Management (DSM): hints on how the blocks are used; Read and Write only.
    pub dataset: u8,
}

impl Transfer {
    /// Blocks `slba .. slba + blocks`, nothing special.
    pub fn new(slba: u64, blocks: u32) -> Self {
        Self {
            range: BlockRange { slba, blocks },
            fua: false,
            limited_retry: false,
            protection: Protection::default(),
            directive_type: 0,
            directive: 0,
            dataset: 0,
        }
    }

    fn parse(sqe: &Sqe) -> Self {
        let dw12 = sqe.cdw12.get();
        let [_, _, directive_type, _] = dw12.to_le_bytes();
        let [dataset, _, d0, d1] = sqe.cdw13.to_bytes();
        Self {
            range: BlockRange::parse(sqe),
            fua: dw12 & FORCE_UNIT_ACCESS != 0,
            limited_retry: dw12 & LIMITED_RETRY != 0,
            protection: Protection::parse(sqe),
            directive_type: directive_type >> 4,
            directive: u16::from_le_bytes([d0, d1]),
            dataset,
        }
    }

    fn to_sqe(self, opcode: u8, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(opcode, nsid);
        let mut dw12 = u32::from(self.directive_type & 0xf) << 20;
        if self.fua {
            dw12 |= FORCE_UNIT_ACCESS;
        }
        if self.limited_retry {
            dw12 |= LIMITED_RETRY;
        }
        sqe.cdw12 = U32::new(dw12);
        self.range.put(&mut sqe);
        self.protection.put(&mut sqe);
        let [d0, d1] = self.directive.to_le_bytes();
        sqe.cdw13 = U32::from_bytes([self.dataset, 0, d0, d1]);
        sqe
    }
}

/// Write Zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteZeroes {
    /// The blocks.
    pub range: BlockRange,
    /// Deallocate (DEAC): the controller should deallocate them if they then read as zeroes.
    pub deallocate: bool,
    /// Force Unit Access (FUA).
    pub fua: bool,
    /// Limited Retry (LR).
    pub limited_retry: bool,
    /// Protection information.
    pub protection: Protection,
}

impl WriteZeroes {
    /// Blocks `slba .. slba + blocks`, nothing special.
    pub fn new(slba: u64, blocks: u32) -> Self {
        Self {
            range: BlockRange { slba, blocks },
            deallocate: false,
            fua: false,
            limited_retry: false,
            protection: Protection::default(),
        }
    }

    fn parse(sqe: &Sqe) -> Self {
        let dw12 = sqe.cdw12.get();
        Self {
            range: BlockRange::parse(sqe),
            deallocate: dw12 & DEALLOCATE != 0,
            fua: dw12 & FORCE_UNIT_ACCESS != 0,
            limited_retry: dw12 & LIMITED_RETRY != 0,
            protection: Protection::parse(sqe),
        }
    }

    fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(Opcode::WriteZeroes.code(), nsid);
        let mut dw12 = 0;
        for (set, bit) in [
            (self.deallocate, DEALLOCATE),
            (self.fua, FORCE_UNIT_ACCESS),
            (self.limited_retry, LIMITED_RETRY),
        ] {
            if set {
                dw12 |= bit;
            }
        }
        sqe.cdw12 = U32::new(dw12);
        self.range.put(&mut sqe);
        self.protection.put(&mut sqe);
        sqe
    }
}

/// Most ranges of a Dataset Management command.
pub const DSM_RANGES_MAX: u16 = 256;

/// Dataset Management.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetManagement {
    /// Number of Ranges (NR), counted from 1: 1..=256.
    pub ranges: u16,
    /// Attribute – Deallocate (AD). Without it the command is a hint.
    pub deallocate: bool,
    /// Attribute – Integral Dataset for Write (IDW).
    pub integral_write: bool,
    /// Attribute – Integral Dataset for Read (IDR).
    pub integral_read: bool,
}

impl DatasetManagement {
    /// Deallocates `ranges` ranges.
    pub const fn deallocate(ranges: u16) -> Self {
        Self { ranges, deallocate: true, integral_write: false, integral_read: false }
    }

    /// Bytes of data that the command comes with.
    pub fn data_length(&self) -> u32 {
        u32::from(self.ranges) * 16
    }

    fn parse(sqe: &Sqe) -> Self {
        let [nr, ..] = sqe.cdw10.to_bytes();
        let attributes = sqe.cdw11.get();
        Self {
            ranges: u16::from(nr).saturating_add(1),
            integral_read: attributes & 0x1 != 0,
            integral_write: attributes & 0x2 != 0,
            deallocate: attributes & 0x4 != 0,
        }
    }

    fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(Opcode::DatasetManagement.code(), nsid);
        sqe.cdw10 = U32::new(u32::from(self.ranges.clamp(1, DSM_RANGES_MAX).saturating_sub(1)));
        sqe.cdw11 = U32::new(
            u32::from(self.integral_read)
                | u32::from(self.integral_write) << 1
                | u32::from(self.deallocate) << 2,
        );
        sqe
    }
}

wire! {
    /// One range of a Dataset Management command.
    pub struct DsmRange {
        /// Context Attributes (CATTR): hints.
        pub cattr: U32,
        /// Length in logical blocks, counted from 1; 0 means none.
        pub nlb: U32,
        /// Starting LBA (SLBA).
        pub slba: U64,
    }
}
layout!(DsmRange, 16, cattr @ 0, nlb @ 4, slba @ 8);

impl DsmRange {
    /// `blocks` blocks from `slba`.
    pub fn new(slba: u64, blocks: u32) -> Self {
        Self { cattr: U32::new(0), nlb: U32::new(blocks), slba: U64::new(slba) }
    }

    /// The blocks; may be none.
    pub fn range(&self) -> BlockRange {
        BlockRange { slba: self.slba.get(), blocks: self.nlb.get() }
    }
}
