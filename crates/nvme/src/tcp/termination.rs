//! Termination requests: the last PDU that either end sends when the other broke the protocol.

use super::header::{CommonHeader, HeaderError, PduType, Receiver};
use crate::codes::{layout, wire};
use std::fmt;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

/// Most bytes of the offending PDU's header that a termination request carries.
pub const TERMINATION_DATA_MAX: usize = 128;
/// Longest termination request.
pub const TERMINATION_MAX: u32 = 152;

/// Fatal Error Status (FES).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FatalErrorStatus {
    /// 01h: a field of a PDU header is wrong; FEI is its offset in bytes.
    InvalidHeaderField,
    /// 02h: a PDU that must not come now.
    PduSequence,
    /// 03h: the header digest is wrong; FEI is the digest that was received.
    HeaderDigest,
    /// 04h: data outside of what the command or R2T covers.
    DataTransferOutOfRange,
    /// 05h: more data in a PDU than the controller takes; to a controller: too many R2Ts (R2T Limit
    /// Exceeded).
    DataTransferLimit,
    /// 06h: a parameter that is not supported; FEI is its offset in bytes.
    UnsupportedParameter,
    /// Any other value.
    Unknown(u16),
}

impl From<u16> for FatalErrorStatus {
    fn from(code: u16) -> Self {
        match code {
            1 => Self::InvalidHeaderField,
            2 => Self::PduSequence,
            3 => Self::HeaderDigest,
            4 => Self::DataTransferOutOfRange,
            5 => Self::DataTransferLimit,
            6 => Self::UnsupportedParameter,
            other => Self::Unknown(other),
        }
    }
}

impl From<FatalErrorStatus> for u16 {
    fn from(status: FatalErrorStatus) -> u16 {
        match status {
            FatalErrorStatus::InvalidHeaderField => 1,
            FatalErrorStatus::PduSequence => 2,
            FatalErrorStatus::HeaderDigest => 3,
            FatalErrorStatus::DataTransferOutOfRange => 4,
            FatalErrorStatus::DataTransferLimit => 5,
            FatalErrorStatus::UnsupportedParameter => 6,
            FatalErrorStatus::Unknown(other) => other,
        }
    }
}

impl fmt::Display for FatalErrorStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidHeaderField => "Invalid PDU Header Field",
            Self::PduSequence => "PDU Sequence Error",
            Self::HeaderDigest => "Header Digest Error",
            Self::DataTransferOutOfRange => "Data Transfer Out of Range",
            Self::DataTransferLimit => "Data Transfer Limit or R2T Limit Exceeded",
            Self::UnsupportedParameter => "Unsupported Parameter",
            Self::Unknown(code) => return write!(f, "unknown fatal error {code:04x}h"),
        })
    }
}

wire! {
    /// Header of H2CTermReq and C2HTermReq. Its data is the header of the PDU that was wrong.
    pub struct TermReq {
        /// Common header.
        pub header: CommonHeader,
        /// Fatal Error Status (FES).
        pub fes: U16,
        /// Fatal Error Information (FEI).
        pub fei: U32,
        /// Reserved.
        pub reserved14: [u8; 10],
    }
}
layout!(TermReq, 24, header @ 0, fes @ 8, fei @ 10, reserved14 @ 14);

impl TermReq {
    /// Fatal Error Status.
    pub fn status(&self) -> FatalErrorStatus {
        self.fes.get().into()
    }
}

/// A whole termination request, ready to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Termination {
    header: TermReq,
    data: [u8; TERMINATION_DATA_MAX],
    data_length: usize,
}

impl Termination {
    /// What `sender` says about a PDU whose header began with `offender`; at most
    /// [`TERMINATION_DATA_MAX`] bytes of it are sent back.
    pub fn new(
        sender: Receiver,
        status: FatalErrorStatus,
        information: u32,
        offender: &[u8],
    ) -> Self {
        let pdu_type = match sender {
            Receiver::Controller => PduType::C2hTermReq,
            Receiver::Host => PduType::H2cTermReq,
        };
        let mut data = [0; TERMINATION_DATA_MAX];
        let mut data_length: u8 = 0;
        for (to, from) in data.iter_mut().zip(offender) {
            *to = *from;
            data_length = data_length.saturating_add(1);
        }
        let mut header = CommonHeader::new(pdu_type, super::Flags::empty());
        header.plen = U32::new(header.plen.get().saturating_add(u32::from(data_length)));
        Self {
            header: TermReq {
                header,
                fes: U16::new(status.into()),
                fei: U32::new(information),
                reserved14: [0; 10],
            },
            data,
            data_length: usize::from(data_length),
        }
    }

    /// For a common header that [`CommonHeader::check`] refused.
    pub fn for_header(sender: Receiver, error: &HeaderError, offender: &CommonHeader) -> Self {
        Self::new(sender, error.status(), error.field_offset(), offender.as_bytes())
    }

    /// The header of the request.
    pub const fn header(&self) -> &TermReq {
        &self.header
    }

    /// Bytes to send: the header and the copy of the wrong one.
    pub fn parts(&self) -> [&[u8]; 2] {
        let data = self.data.get(..self.data_length).unwrap_or_default();
        [self.header.as_bytes(), data]
    }
}
