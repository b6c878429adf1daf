//! NVMe/TCP: the protocol data units that carry capsules and data over a byte stream.
//!
//! NVMe/TCP Transport Specification 1.0c. Every PDU begins with a [`CommonHeader`] of
//! eight bytes; [`CommonHeader::check`] says, before anything else is read, how the rest is laid
//! out or with what fatal error the connection ends. Then come the rest of the header (its
//! structure is in `pdu`), a header digest if negotiated, padding, data, and a data digest if
//! negotiated.

mod digest;
mod header;
mod pdu;
mod termination;

pub use digest::{Crc32c, DIGEST_LENGTH, crc32c};
pub use header::{
    CommonHeader, Flags, HEADER_MAX, HeaderError, Layout, PduType, Receiver, Rules, header_length,
};
pub use pdu::{
    ALIGNMENT_MAX, C2hData, CapsuleCmd, CapsuleResp, DigestFlags, H2cData, IC_LENGTH, IcReq,
    IcResp, MAXH2CDATA_MIN, PFV, R2t,
};
pub use termination::{
    FatalErrorStatus, TERMINATION_DATA_MAX, TERMINATION_MAX, TermReq, Termination,
};
