//! A PDU that ends the connection.

use crate::error::ProtocolError;
use nvme::tcp::{FatalErrorStatus, PduType};

/// What to say of it to the caller, and to the controller.
pub(crate) struct Violation {
    pub(crate) error: ProtocolError,
    pub(crate) status: FatalErrorStatus,
    /// The Fatal Error Information (FEI) of the termination request: an offset in the header, or a digest.
    pub(crate) information: u32,
}

impl Violation {
    /// A PDU that has no place here.
    pub(crate) fn sequence(pdu: PduType, what: &'static str) -> Self {
        Self {
            error: ProtocolError::Sequence { pdu, what },
            status: FatalErrorStatus::PduSequence,
            information: 0,
        }
    }

    /// An ICResp that asks too much, in its field at `offset`.
    pub(crate) fn greeting(what: &'static str, offset: u32) -> Self {
        Self {
            error: ProtocolError::Greeting { what },
            status: FatalErrorStatus::UnsupportedParameter,
            information: offset,
        }
    }

    /// A PDU for a command that is not outstanding.
    pub(crate) fn unknown_command(pdu: PduType, cid: u16) -> Self {
        Self {
            error: ProtocolError::UnknownCommand { pdu, cid },
            status: FatalErrorStatus::InvalidHeaderField,
            information: match pdu {
                // The CID of a response is in the completion queue entry.
                PduType::CapsuleResp => 20,
                _ => 8,
            },
        }
    }

    /// A success with too little data.
    pub(crate) fn short(cid: u16, moved: u32, expected: u32) -> Self {
        Self {
            error: ProtocolError::Short { cid, moved, expected },
            status: FatalErrorStatus::PduSequence,
            information: 0,
        }
    }
}
