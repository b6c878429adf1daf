//! How a connection ends, and what the peer is told.
//!
//! A peer that broke the protocol gets a `C2HTermReq` with the fatal error status, the field or
//! digest concerned and a copy of the header. Then we close our half and read away what still
//! comes until the peer closes too, or a grace has passed: to close at once would reset the
//! connection, and a reset may overtake the request that explains it.

use std::fmt;
use std::io;

use nvme::tcp::{CommonHeader, FatalErrorStatus, HeaderError, Receiver, Termination};
use target::DisconnectReason;
use zerocopy::IntoBytes;

use crate::deadline::Timeout;

/// A breach of the protocol by the peer.
#[derive(Debug)]
pub(crate) struct Violation {
    /// What we send.
    pub(crate) termination: Box<Termination>,
    /// What it was, for the log.
    pub(crate) what: Breach,
}

/// The breaches, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// The common header is wrong in itself.
    Header(HeaderError),
    /// A PDU before `ICReq`.
    NotNegotiated,
    /// A second `ICReq`.
    NegotiatedTwice,
    /// PFV is not 0.
    FormatVersion(u16),
    /// HPDA is above 31.
    Alignment(u8),
    /// The header digest is wrong.
    HeaderDigest,
    /// TTAG of no R2T that is outstanding.
    TransferTag(u16),
    /// CCCID is not the command of the R2T.
    CommandId(u16),
    /// DATAO is not where the data before ended.
    DataOffset(u32),
    /// DATAL is 0 or not the length of the data in the PDU.
    DataLength(u32),
    /// More data than the R2T asked for.
    TooMuchData,
    /// LAST where data is still to come, or none where nothing is.
    LastFlag,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Breach::Header(error) => error.fmt(f),
            Breach::NotNegotiated => f.write_str("a PDU came before ICReq"),
            Breach::NegotiatedTwice => f.write_str("a second ICReq came"),
            Breach::FormatVersion(version) => write!(f, "ICReq has PFV {version}"),
            Breach::Alignment(hpda) => write!(f, "ICReq has HPDA {hpda}"),
            Breach::HeaderDigest => f.write_str("a header digest is wrong"),
            Breach::TransferTag(ttag) => write!(f, "no R2T is outstanding with TTAG {ttag}"),
            Breach::CommandId(cid) => write!(f, "the R2T is not of command {cid}"),
            Breach::DataOffset(offset) => write!(f, "data out of order at offset {offset}"),
            Breach::DataLength(length) => write!(f, "H2CData has DATAL {length}"),
            Breach::TooMuchData => f.write_str("more data than the R2T asked for"),
            Breach::LastFlag => f.write_str("the LAST flag is not where the data ends"),
        }
    }
}

impl Breach {
    /// Fatal error status and information. The information is the offset of the field for the
    /// statuses that name a field; for a header digest the caller has it.
    fn status(self) -> (FatalErrorStatus, u32) {
        use FatalErrorStatus as Fes;
        match self {
            Breach::Header(error) => (error.status(), error.field_offset()),
            Breach::NotNegotiated | Breach::NegotiatedTwice => (Fes::PduSequence, 0),
            Breach::FormatVersion(_) => (Fes::UnsupportedParameter, 8),
            Breach::HeaderDigest => (Fes::HeaderDigest, 0),
            Breach::CommandId(_) => (Fes::InvalidHeaderField, 8),
            // HPDA of ICReq and TTAG of H2CData lie at the same place.
            Breach::Alignment(_) | Breach::TransferTag(_) => (Fes::InvalidHeaderField, 10),
            Breach::DataLength(_) => (Fes::InvalidHeaderField, 16),
            Breach::LastFlag => (Fes::InvalidHeaderField, 1),
            Breach::DataOffset(_) | Breach::TooMuchData => (Fes::DataTransferOutOfRange, 0),
        }
    }
}

impl Violation {
    /// `header`: as much of the PDU's header as there is.
    pub(crate) fn new(what: Breach, header: &[u8]) -> Violation {
        let (status, information) = what.status();
        let termination = Termination::new(Receiver::Controller, status, information, header);
        Violation { termination: Box::new(termination), what }
    }

    /// A common header that is wrong in itself.
    pub(crate) fn header(error: HeaderError, header: CommonHeader) -> Violation {
        Violation::new(Breach::Header(error), header.as_bytes())
    }

    /// A header whose digest is not `received`.
    pub(crate) fn digest(received: u32, header: &[u8]) -> Violation {
        let status = FatalErrorStatus::HeaderDigest;
        let termination = Termination::new(Receiver::Controller, status, received, header);
        Violation { termination: Box::new(termination), what: Breach::HeaderDigest }
    }

    /// The fatal error status it is answered with.
    pub(crate) fn status(&self) -> FatalErrorStatus {
        self.termination.header().status()
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub enum CloseReason {
    /// The peer closed it.
    ByPeer,
    /// The peer sent a termination request with this status.
    TerminatedByPeer(FatalErrorStatus),
    /// The peer broke the protocol and was told so.
    Violation(Breach),
    /// The target asked for it.
    ByTarget(DisconnectReason),
    /// The target has all the queues that it may have.
    NoQueue,
    /// A deadline passed.
    Timeout(Timeout),
    /// The socket failed.
    Socket(io::Error),
    /// The transport stops.
    Shutdown,
    /// The target did not have what it had announced: a bug that costs this connection only.
    Inconsistent(&'static str),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::ByPeer => f.write_str("the host closed it"),
            CloseReason::TerminatedByPeer(status) => write!(f, "the host ended it: {status}"),
            CloseReason::Violation(breach) => write!(f, "protocol error: {breach}"),
            CloseReason::ByTarget(reason) => reason.fmt(f),
            CloseReason::NoQueue => f.write_str("the target has all the queues it may have"),
            CloseReason::Timeout(timeout) => timeout.fmt(f),
            CloseReason::Socket(error) => write!(f, "socket error: {error}"),
            CloseReason::Shutdown => f.write_str("the target shuts down"),
            CloseReason::Inconsistent(what) => write!(f, "internal error: {what}"),
        }
    }
}
