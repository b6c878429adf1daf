//! The common header of every PDU, and what a receiver checks in it.

use super::digest::DIGEST_LENGTH;
use super::termination::{FatalErrorStatus, TERMINATION_MAX};
use crate::codes::{codes, layout, wire};
use zerocopy::little_endian::U32;

codes! {
    /// PDU-Type.
    pub enum PduType {
        IcReq = 0x00, "ICReq";
        IcResp = 0x01, "ICResp";
        H2cTermReq = 0x02, "H2CTermReq";
        C2hTermReq = 0x03, "C2HTermReq";
        CapsuleCmd = 0x04, "CapsuleCmd";
        CapsuleResp = 0x05, "CapsuleResp";
        H2cData = 0x06, "H2CData";
        C2hData = 0x07, "C2HData";
        R2t = 0x09, "R2T";
    }
}

/// The longest header that any PDU has: that of ICReq and ICResp.
pub const HEADER_MAX: usize = 128;

/// Header Length (HLEN) of each type, without the digest.
pub const fn header_length(pdu_type: PduType) -> u8 {
    match pdu_type {
        PduType::IcReq | PduType::IcResp => 128,
        PduType::CapsuleCmd => 72,
        PduType::H2cTermReq
        | PduType::C2hTermReq
        | PduType::CapsuleResp
        | PduType::H2cData
        | PduType::C2hData
        | PduType::R2t => 24,
    }
}

bitflags::bitflags! {
    /// FLAGS of the common header.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u8 {
        /// HDGSTF: a header digest follows the header.
        const HEADER_DIGEST = 1 << 0;
        /// DDGSTF: a data digest follows the data.
        const DATA_DIGEST = 1 << 1;
        /// LAST_PDU (H2CData, C2HData): the last data of an R2T or of a command.
        const LAST = 1 << 2;
        /// SUCCESS (C2HData): the command has succeeded and no CapsuleResp follows.
        const SUCCESS = 1 << 3;
    }
}

wire! {
    /// The eight bytes that begin every PDU.
    pub struct CommonHeader {
        /// PDU-Type.
        pub pdu_type: u8,
        /// FLAGS; see [`Flags`].
        pub flags: u8,
        /// PDU Header Length (HLEN) in bytes, digest not included.
        pub hlen: u8,
        /// PDU Data Offset (PDO) in bytes from the start of the PDU.
        pub pdo: u8,
        /// PDU Length (PLEN) in bytes, all included.
        pub plen: U32,
    }
}
layout!(CommonHeader, 8, pdu_type @ 0, flags @ 1, hlen @ 2, pdo @ 3, plen @ 4);

/// Which end of the connection receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// The controller: PDUs from the host.
    Controller,
    /// The host: PDUs from the controller.
    Host,
}

impl Receiver {
    /// Whether this end may be sent PDUs of this type.
    pub const fn accepts(self, pdu_type: PduType) -> bool {
        let from_host = matches!(
            pdu_type,
            PduType::IcReq | PduType::H2cTermReq | PduType::CapsuleCmd | PduType::H2cData
        );
        match self {
            Self::Controller => from_host,
            Self::Host => !from_host,
        }
    }
}

/// What a receiver has negotiated, and how much it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which end receives.
    pub receiver: Receiver,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// What this end said as CPDA (controller) or HPDA (host): data begins at a multiple of (this +
    /// 1) * 4 bytes from the start of the PDU. 0..=31.
    pub alignment: u8,
    /// Most bytes of data in one command capsule.
    pub max_capsule_data: u32,
    /// Most bytes of data in one H2CData (MAXH2CDATA) or C2HData.
    pub max_data: u32,
}

impl Rules {
    /// Before anything is negotiated: no digests, no alignment, no data in capsules.
    pub const fn new(receiver: Receiver, max_data: u32) -> Self {
        Self {
            receiver,
            header_digest: false,
            data_digest: false,
            alignment: 0,
            max_capsule_data: 0,
            max_data,
        }
    }
}

/// How a PDU is laid out; all offsets are from its first byte. Header, digest, padding, data,
/// digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Type.
    pub pdu_type: PduType,
    /// Flags; unknown bits are kept.
    pub flags: Flags,
    /// Bytes of header, common header included.
    pub header_length: u32,
    /// Whether four bytes of digest follow the header.
    pub header_digest: bool,
    /// Where data begins; where the PDU ends if there is no data.
    pub data_offset: u32,
    /// Bytes of data, digest not included.
    pub data_length: u32,
    /// Whether four bytes of digest follow the data.
    pub data_digest: bool,
    /// Bytes of the whole PDU.
    pub length: u32,
}

/// What is wrong with a common header, and how the termination request says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A type that does not exist.
    #[error("PDU type {0:02x}h does not exist")]
    UnknownType(u8),
    /// A type that only this end sends.
    #[error("{0} PDU went the wrong way")]
    Direction(PduType),
    /// HDGSTF or DDGSTF differs from what was negotiated.
    #[error("{0} PDU with flags {1:02x}h contradicts the digests negotiated")]
    Flags(PduType, u8),
    /// HLEN is not that of the type.
    #[error("{0} PDU with HLEN {1}")]
    HeaderLength(PduType, u8),
    /// PDO points into the header, beyond the PDU, or is not aligned.
    #[error("{0} PDU with PDO {1}")]
    DataOffset(PduType, u8),
    /// PLEN does not suit the type.
    #[error("{0} PDU with PLEN {1}")]
    Length(PduType, u32),
    /// More data than this end takes in one PDU.
    #[error("{0} PDU with {1} bytes of data")]
    DataLimit(PduType, u32),
}

impl HeaderError {
    /// Fatal Error Status (FES) of the termination request.
    pub const fn status(&self) -> FatalErrorStatus {
        match self {
            Self::DataLimit(..) => FatalErrorStatus::DataTransferLimit,
            Self::UnknownType(_)
            | Self::Direction(_)
            | Self::Flags(..)
            | Self::HeaderLength(..)
            | Self::DataOffset(..)
            | Self::Length(..) => FatalErrorStatus::InvalidHeaderField,
        }
    }

    /// Fatal Error Information (FEI): the offset in bytes of the wrong field, for
    /// [`FatalErrorStatus::InvalidHeaderField`]; otherwise 0.
    pub const fn field_offset(&self) -> u32 {
        match self {
            Self::UnknownType(_) | Self::Direction(_) | Self::DataLimit(..) => 0,
            Self::Flags(..) => 1,
            Self::HeaderLength(..) => 2,
            Self::DataOffset(..) => 3,
            Self::Length(..) => 4,
        }
    }
}

impl CommonHeader {
    /// Header of a PDU without data.
    pub fn new(pdu_type: PduType, flags: Flags) -> Self {
        Self::with_data(pdu_type, flags, 0, 0)
    }

    /// Header of a PDU with `data` bytes of data at a multiple of (`alignment` + 1) * 4 bytes,
    /// where `alignment` is the PDA of the receiving end, at most 31. Digests are counted as
    /// `flags` say; PDO is 0 without data. PLEN saturates: `data` within a few bytes of 4 GiB,
    /// which no PDU limit allows, makes a header that no receiver accepts.
    pub fn with_data(pdu_type: PduType, flags: Flags, alignment: u8, data: u32) -> Self {
        let hlen = header_length(pdu_type);
        let digest = if flags.contains(Flags::HEADER_DIGEST) { 4 } else { 0 };
        let header = hlen.saturating_add(digest);
        let (pdo, plen) = if data == 0 {
            (0, u32::from(header))
        } else {
            let unit = alignment.min(31).saturating_add(1).saturating_mul(4);
            let pdo = header.checked_next_multiple_of(unit).unwrap_or(header);
            let trailer = if flags.contains(Flags::DATA_DIGEST) { DIGEST_LENGTH } else { 0 };
            let plen = u32::from(pdo).saturating_add(data).saturating_add(trailer);
            (pdo, plen)
        };
        Self { pdu_type: pdu_type.code(), flags: flags.bits(), hlen, pdo, plen: U32::new(plen) }
    }

    /// Type, if it exists.
    pub fn kind(&self) -> Result<PduType, u8> {
        PduType::try_from(self.pdu_type)
    }

    /// Flags; unknown bits are kept.
    pub const fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags)
    }

    /// Whether a PDU that begins like this may be received, and how it is laid out.
    ///
    /// Types: only those that the other end sends. Which type may come when is the connection's to
    /// say. HLEN and PLEN: as the type demands. HDGSTF: set exactly if negotiated; DDGSTF likewise
    /// where there is data; both are ignored in ICReq, ICResp and termination requests, which have
    /// no digests. PDO: behind the header, aligned, inside the PDU; ignored where there is no data.
    pub fn check(&self, rules: &Rules) -> Result<Layout, HeaderError> {
        let pdu_type = self.kind().map_err(HeaderError::UnknownType)?;
        if !rules.receiver.accepts(pdu_type) {
            return Err(HeaderError::Direction(pdu_type));
        }
        if self.hlen != header_length(pdu_type) {
            return Err(HeaderError::HeaderLength(pdu_type, self.hlen));
        }
        let flags = self.flags();
        let header_length = u32::from(self.hlen);
        let length = self.plen.get();
        let bare = Layout {
            pdu_type,
            flags,
            header_length,
            header_digest: false,
            data_offset: header_length,
            data_length: 0,
            data_digest: false,
            length,
        };
        let wrong_length = HeaderError::Length(pdu_type, length);

        let limit = match pdu_type {
            PduType::IcReq | PduType::IcResp => {
                return if length == header_length { Ok(bare) } else { Err(wrong_length) };
            }
            PduType::H2cTermReq | PduType::C2hTermReq => {
                let data_length = length.checked_sub(header_length).ok_or(wrong_length)?;
                return if length <= TERMINATION_MAX {
                    Ok(Layout { data_length, ..bare })
                } else {
                    Err(wrong_length)
                };
            }
            PduType::CapsuleResp | PduType::R2t => None,
            PduType::CapsuleCmd => Some(rules.max_capsule_data),
            PduType::H2cData | PduType::C2hData => Some(rules.max_data),
        };

        if flags.contains(Flags::HEADER_DIGEST) != rules.header_digest {
            return Err(HeaderError::Flags(pdu_type, self.flags));
        }
        let digest = if rules.header_digest { DIGEST_LENGTH } else { 0 };
        let header_end = header_length.saturating_add(digest);
        if length == header_end {
            return Ok(Layout {
                header_digest: rules.header_digest,
                data_offset: header_end,
                ..bare
            });
        }
        let Some(limit) = limit.filter(|_| length > header_end) else {
            return Err(wrong_length);
        };

        if flags.contains(Flags::DATA_DIGEST) != rules.data_digest {
            return Err(HeaderError::Flags(pdu_type, self.flags));
        }
        let data_offset = u32::from(self.pdo);
        let unit = (u32::from(rules.alignment).saturating_add(1)).saturating_mul(4);
        if data_offset < header_end || !data_offset.is_multiple_of(unit) {
            return Err(HeaderError::DataOffset(pdu_type, self.pdo));
        }
        let trailer = if rules.data_digest { DIGEST_LENGTH } else { 0 };
        let data_length = length
            .checked_sub(data_offset)
            .and_then(|rest| rest.checked_sub(trailer))
            .ok_or(wrong_length)?;
        if data_length > limit {
            return Err(HeaderError::DataLimit(pdu_type, data_length));
        }
        Ok(Layout {
            header_digest: rules.header_digest,
            data_offset,
            data_length,
            data_digest: rules.data_digest,
            ..bare
        })
    }
}
