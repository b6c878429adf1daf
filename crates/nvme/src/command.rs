//! The two entries that every command consists of: the submission queue entry that the host sends
//! and the completion queue entry that it gets back.
//!
//! NVMe Base 2.0c, sections 3.3.3.1 and 3.3.3.2. Here an SQE is only its sixty-four bytes; `admin`,
//! `io` and `fabrics` turn it into a typed command.

use crate::codes::{layout, wire};
use crate::sgl::{LocalSgl, Sgl, SglDescriptor};
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

/// The NSID that means every namespace.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// The identifier of a command: unique among those outstanding on its submission queue.
pub type CommandId = u16;

/// Opcode of every fabrics command, on admin and I/O queues alike.
pub const OPCODE_FABRICS: u8 = 0x7f;

wire! {
    /// Submission Queue Entry: the command itself.
    pub struct Sqe {
        /// Opcode (OPC). Its meaning depends on the queue, except 7Fh: a fabrics command.
        pub opcode: u8,
        /// FUSE in bits 1:0, PSDT in bits 7:6.
        pub flags: u8,
        /// Command Identifier (CID).
        pub cid: U16,
        /// Namespace Identifier (NSID); in a fabrics command its first byte is the type (FCTYPE).
        pub nsid: U32,
        /// Command dword 2.
        pub cdw2: U32,
        /// Command dword 3.
        pub cdw3: U32,
        /// Metadata Pointer (MPTR); reserved over fabrics.
        pub mptr: U64,
        /// Data Pointer (DPTR): over fabrics always one SGL descriptor, otherwise that or [`Prps`].
        pub dptr: SglDescriptor,
        /// Command dword 10.
        pub cdw10: U32,
        /// Command dword 11.
        pub cdw11: U32,
        /// Command dword 12.
        pub cdw12: U32,
        /// Command dword 13.
        pub cdw13: U32,
        /// Command dword 14.
        pub cdw14: U32,
        /// Command dword 15.
        pub cdw15: U32,
    }
}
layout!(
    Sqe, 64,
    opcode @ 0, flags @ 1, cid @ 2, nsid @ 4, mptr @ 16, dptr @ 24, cdw10 @ 40, cdw15 @ 60,
);

/// Fused Operation (FUSE), bits 1:0 of the SQE flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: a command of its own.
    Normal,
    /// 01b: first of a fused pair.
    First,
    /// 10b: second of a fused pair.
    Second,
    /// 11b.
    Reserved,
}

/// PRP or SGL for Data Transfer (PSDT), bits 7:6 of the SQE flags. Over fabrics it is
/// [`DataPointer::Sgl`] in every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPointer {
    /// 00b: PRPs.
    Prp,
    /// 01b: SGLs; the metadata pointer, where used, is one contiguous buffer.
    Sgl,
    /// 10b: SGLs; the metadata pointer is an SGL too.
    SglMetadata,
    /// 11b.
    Reserved,
}

/// [`Sqe::flags`] with PSDT 01b, as every command over fabrics has them.
pub const FLAGS_SGL: u8 = 0x40;

/// PSDT in [`Sqe::flags`].
const PSDT: u8 = 0xc0;

/// Two Physical Region Page entries: a data pointer where PSDT is 00b. NVMe Base 2.0c, section 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prps {
    /// PRP Entry 1: where the data begins; what follows is up to the end of that memory page.
    pub first: u64,
    /// PRP Entry 2: the second page of the data, or a list of all further pages; 0 if there are none.
    pub second: u64,
}

impl Sqe {
    /// A command with this opcode and namespace, PSDT set for SGLs, all else zero.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self { opcode, flags: FLAGS_SGL, nsid: U32::new(nsid), ..Self::default() }
    }

    /// With this data pointer.
    #[must_use]
    pub fn with_sgl(mut self, sgl: Sgl) -> Self {
        self.dptr = sgl.into();
        self
    }

    /// With these PRP entries, PSDT set for them.
    #[must_use]
    pub fn with_prps(mut self, prps: Prps) -> Self {
        self.flags &= !PSDT;
        self.dptr = prps.into();
        self
    }

    /// With an SGL in memory that both sides know by address, PSDT set for it.
    #[must_use]
    pub fn with_local_sgl(mut self, sgl: LocalSgl) -> Self {
        self.flags = self.flags & !PSDT | FLAGS_SGL;
        self.dptr = sgl.into();
        self
    }

    /// The data pointer, read as PRP entries.
    pub fn prps(&self) -> Prps {
        self.dptr.into()
    }

    /// With this command identifier.
    #[must_use]
    pub fn with_cid(mut self, cid: CommandId) -> Self {
        self.cid = U16::new(cid);
        self
    }

    /// FUSE.
    pub const fn fuse(&self) -> Fuse {
        match self.flags & 0x3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// PSDT.
    pub const fn data_pointer(&self) -> DataPointer {
        match self.flags >> 6 {
            0 => DataPointer::Prp,
            1 => DataPointer::Sgl,
            2 => DataPointer::SglMetadata,
            _ => DataPointer::Reserved,
        }
    }

    /// Whether this is a fabrics command, whatever the queue.
    pub const fn is_fabrics(&self) -> bool {
        self.opcode == OPCODE_FABRICS
    }

    /// The data pointer by its meaning.
    pub fn sgl(&self) -> Sgl {
        self.dptr.sgl()
    }

    /// Which way the data of this command goes, by bits 1:0 of its opcode (of FCTYPE for a fabrics
    /// command). What a command of our own command sets really does is for the typed command to
    /// say.
    pub const fn direction(&self) -> Direction {
        let code = if self.is_fabrics() { self.fctype() } else { self.opcode };
        match code & 0x3 {
            0 => Direction::None,
            1 => Direction::HostToController,
            2 => Direction::ControllerToHost,
            _ => Direction::Bidirectional,
        }
    }

    /// Fabrics Command Type (FCTYPE): byte 4. Meaningful if [`Sqe::is_fabrics`].
    pub const fn fctype(&self) -> u8 {
        let [fctype, ..] = self.nsid.to_bytes();
        fctype
    }
}

/// Data Transfer Direction, bits 1:0 of an opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// 00b: no data.
    None,
    /// 01b: the host sends data.
    HostToController,
    /// 10b: the host receives data.
    ControllerToHost,
    /// 11b.
    Bidirectional,
}

/// SQHD of every completion on a queue without submission queue flow control.
pub const SQHD_NO_FLOW_CONTROL: u16 = 0xffff;

wire! {
    /// Completion Queue Entry.
    pub struct Cqe {
        /// Dwords 0 and 1: the result, as the command defines it.
        pub result: U64,
        /// Submission Queue Head Pointer (SQHD); [`SQHD_NO_FLOW_CONTROL`] if flow control is off.
        pub sqhd: U16,
        /// Submission Queue Identifier; reserved over fabrics.
        pub sqid: U16,
        /// Command Identifier (CID) of the command completed.
        pub cid: U16,
        /// Status field with the phase tag in bit 0; see [`Cqe::status`].
        pub status_field: U16,
    }
}
layout!(Cqe, 16, result @ 0, sqhd @ 8, sqid @ 10, cid @ 12, status_field @ 14);

impl Cqe {
    /// A completion without a result, SQID and phase tag 0.
    pub fn new(cid: CommandId, sqhd: u16, status: Status) -> Self {
        Self {
            sqhd: U16::new(sqhd),
            cid: U16::new(cid),
            status_field: U16::new(status.to_wire()),
            ..Self::default()
        }
    }

    /// With dword 0 of the result.
    #[must_use]
    pub fn with_dw0(mut self, dw0: u32) -> Self {
        let high = self.result.get() & !u64::from(u32::MAX);
        self.result = U64::new(high | u64::from(dw0));
        self
    }

    /// With both dwords of the result, dword 0 in the low half.
    #[must_use]
    pub fn with_result(mut self, result: u64) -> Self {
        self.result = U64::new(result);
        self
    }

    /// Dword 0.
    pub const fn dw0(&self) -> u32 {
        let [a, b, c, d, ..] = self.result.to_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Dword 1.
    pub const fn dw1(&self) -> u32 {
        let [_, _, _, _, a, b, c, d] = self.result.to_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The status, without the phase tag.
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status_field.get())
    }
}
