//! The headers of the PDU types, common header included. NVMe/TCP Transport Specification 1.0c,
//! "PDU Definitions".

use super::header::{CommonHeader, Flags, PduType};
use crate::codes::{layout, wire};
use crate::command::{Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};

/// PDU Format Version (PFV): the only one there is.
pub const PFV: u16 = 0;
/// Length of ICReq and ICResp.
pub const IC_LENGTH: usize = 128;
/// Largest HPDA and CPDA.
pub const ALIGNMENT_MAX: u8 = 31;
/// Least MAXH2CDATA that a controller may offer; it is also a multiple of four.
pub const MAXH2CDATA_MIN: u32 = 4096;

bitflags::bitflags! {
    /// DGST of ICReq (wishes) and ICResp (grants).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct DigestFlags: u8 {
        /// HDGST_ENABLE: digests of headers.
        const HEADER = 1 << 0;
        /// DDGST_ENABLE: digests of data.
        const DATA = 1 << 1;
    }
}

wire! {
    /// Initialize Connection Request: the host's first PDU.
    pub struct IcReq {
        /// Common header.
        pub header: CommonHeader,
        /// PDU Format Version (PFV): [`PFV`].
        pub pfv: U16,
        /// Host PDU Data Alignment (HPDA), 0's based in dwords, for data sent to the host.
        pub hpda: u8,
        /// Digest wishes (DGST).
        pub dgst: u8,
        /// Maximum Number of Outstanding R2Ts (MAXR2T) per command, 0's based.
        pub maxr2t: U32,
        /// Reserved.
        pub reserved16: [u8; 112],
    }
}
layout!(IcReq, 128, header @ 0, pfv @ 8, hpda @ 10, dgst @ 11, maxr2t @ 12);

impl IcReq {
    /// A request; `maxr2t` is 0's based.
    pub fn new(hpda: u8, digests: DigestFlags, maxr2t: u32) -> Self {
        Self {
            header: CommonHeader::new(PduType::IcReq, Flags::empty()),
            pfv: U16::new(PFV),
            hpda,
            dgst: digests.bits(),
            maxr2t: U32::new(maxr2t),
            ..Self::default()
        }
    }

    /// Digest wishes; reserved bits are dropped.
    pub const fn digests(&self) -> DigestFlags {
        DigestFlags::from_bits_truncate(self.dgst)
    }
}

wire! {
    /// Initialize Connection Response: the controller's first PDU.
    pub struct IcResp {
        /// Common header.
        pub header: CommonHeader,
        /// PDU Format Version (PFV): [`PFV`].
        pub pfv: U16,
        /// Controller PDU Data Alignment (CPDA), 0's based in dwords, for data sent to the
        /// controller.
        pub cpda: u8,
        /// Digests granted (DGST).
        pub dgst: u8,
        /// Maximum Host to Controller Data length (MAXH2CDATA): bytes in one H2CData.
        pub maxh2cdata: U32,
        /// Reserved.
        pub reserved16: [u8; 112],
    }
}
layout!(IcResp, 128, header @ 0, pfv @ 8, cpda @ 10, dgst @ 11, maxh2cdata @ 12);

impl IcResp {
    /// A response; `maxh2cdata` in bytes.
    pub fn new(cpda: u8, digests: DigestFlags, maxh2cdata: u32) -> Self {
        Self {
            header: CommonHeader::new(PduType::IcResp, Flags::empty()),
            pfv: U16::new(PFV),
            cpda,
            dgst: digests.bits(),
            maxh2cdata: U32::new(maxh2cdata),
            ..Self::default()
        }
    }

    /// Digests granted; reserved bits are dropped.
    pub const fn digests(&self) -> DigestFlags {
        DigestFlags::from_bits_truncate(self.dgst)
    }
}

wire! {
    /// Command Capsule: a command, perhaps with data.
    pub struct CapsuleCmd {
        /// Common header.
        pub header: CommonHeader,
        /// Submission queue entry (CCSQE).
        pub sqe: Sqe,
    }
}
layout!(CapsuleCmd, 72, header @ 0, sqe @ 8);

impl CapsuleCmd {
    /// A capsule with `data` bytes of data in it, aligned for the controller's CPDA. `flags`:
    /// digests.
    pub fn new(sqe: Sqe, flags: Flags, cpda: u8, data: u32) -> Self {
        Self { header: CommonHeader::with_data(PduType::CapsuleCmd, flags, cpda, data), sqe }
    }
}

wire! {
    /// Response Capsule: a completion.
    pub struct CapsuleResp {
        /// Common header.
        pub header: CommonHeader,
        /// Completion queue entry (RCCQE).
        pub cqe: Cqe,
    }
}
layout!(CapsuleResp, 24, header @ 0, cqe @ 8);

impl CapsuleResp {
    /// A response. `flags`: header digest or none.
    pub fn new(cqe: Cqe, flags: Flags) -> Self {
        Self { header: CommonHeader::new(PduType::CapsuleResp, flags), cqe }
    }
}

wire! {
    /// Host To Controller Data: part of the data that an R2T asked for.
    pub struct H2cData {
        /// Common header.
        pub header: CommonHeader,
        /// Command Capsule CID (CCCID).
        pub cccid: U16,
        /// Transfer Tag (TTAG) of the R2T.
        pub ttag: U16,
        /// Data Offset (DATAO): bytes from the start of the command's data.
        pub datao: U32,
        /// Data Length (DATAL) in bytes.
        pub datal: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
    }
}
layout!(H2cData, 24, header @ 0, cccid @ 8, ttag @ 10, datao @ 12, datal @ 16);

impl H2cData {
    /// Header of `length` bytes of data at `offset` of the command's data. `flags`: digests, LAST.
    pub fn new(cid: u16, ttag: u16, offset: u32, length: u32, flags: Flags, cpda: u8) -> Self {
        Self {
            header: CommonHeader::with_data(PduType::H2cData, flags, cpda, length),
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            datao: U32::new(offset),
            datal: U32::new(length),
            reserved20: [0; 4],
        }
    }
}

wire! {
    /// Controller To Host Data: part of the data of a command.
    pub struct C2hData {
        /// Common header.
        pub header: CommonHeader,
        /// Command Capsule CID (CCCID).
        pub cccid: U16,
        /// Reserved.
        pub reserved10: [u8; 2],
        /// Data Offset (DATAO): bytes from the start of the command's data.
        pub datao: U32,
        /// Data Length (DATAL) in bytes.
        pub datal: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
    }
}
layout!(C2hData, 24, header @ 0, cccid @ 8, reserved10 @ 10, datao @ 12, datal @ 16);

impl C2hData {
    /// Header of `length` bytes of data at `offset` of the command's data. `flags`: digests, LAST,
    /// SUCCESS.
    pub fn new(cid: u16, offset: u32, length: u32, flags: Flags, hpda: u8) -> Self {
        Self {
            header: CommonHeader::with_data(PduType::C2hData, flags, hpda, length),
            cccid: U16::new(cid),
            reserved10: [0; 2],
            datao: U32::new(offset),
            datal: U32::new(length),
            reserved20: [0; 4],
        }
    }
}

wire! {
    /// Ready To Transfer: the controller asks for data.
    pub struct R2t {
        /// Common header.
        pub header: CommonHeader,
        /// Command Capsule CID (CCCID).
        pub cccid: U16,
        /// Transfer Tag (TTAG), which comes back with the data.
        pub ttag: U16,
        /// Requested Data Offset (R2TO): bytes from the start of the command's data.
        pub r2to: U32,
        /// Requested Data Length (R2TL) in bytes.
        pub r2tl: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
    }
}
layout!(R2t, 24, header @ 0, cccid @ 8, ttag @ 10, r2to @ 12, r2tl @ 16);

impl R2t {
    /// Asks for `length` bytes at `offset` of the command's data. `flags`: header digest or none.
    pub fn new(cid: u16, ttag: u16, offset: u32, length: u32, flags: Flags) -> Self {
        Self {
            header: CommonHeader::new(PduType::R2t, flags),
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            r2to: U32::new(offset),
            r2tl: U32::new(length),
            reserved20: [0; 4],
        }
    }
}
