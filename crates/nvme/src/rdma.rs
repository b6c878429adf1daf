//! NVMe/RDMA: the private data with which two ends open the connection of a queue.
//!
//! NVMe over Fabrics RDMA Transport, section "Connection Establishment". What follows needs no structure of its own: a
//! capsule is an [`Sqe`](crate::Sqe) with its data or a [`Cqe`](crate::Cqe), data is named by [`Sgl`](crate::Sgl).
//!
//! rdma_cm delivers private data with zeros behind it, so only the first bytes count, and none at all means that the peer
//! sent none. The request names the queue before any capsule does; a controller that does not like it rejects the connection
//! with a [`RejectStatus`].

use crate::codes::{codes, layout, wire};
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// Record Format (RECFMT) of all private data.
pub const RECFMT: u16 = 0;
/// Most commands of an admin queue that a host may ask for and that every controller takes (HRQSIZE); HSQSIZE is one less.
pub const ADMIN_QUEUE_SIZE: u16 = 32;

codes! {
    /// Status (STS) of a rejected connection.
    pub enum RejectStatus {
        InvalidLength = 0x01, "invalid private data length";
        InvalidRecordFormat = 0x02, "invalid record format";
        InvalidQueueId = 0x03, "invalid queue ID";
        InvalidHsqsize = 0x04, "invalid HSQSIZE";
        InvalidHrqsize = 0x05, "invalid HRQSIZE";
        NoResources = 0x06, "no resources";
        InvalidIrd = 0x07, "invalid IRD";
        InvalidOrd = 0x08, "invalid ORD";
        InvalidCntlid = 0x09, "invalid CNTLID";
    }
}

wire! {
    /// Private data of a connection request.
    pub struct Request {
        /// Record Format (RECFMT).
        pub recfmt: U16,
        /// Queue Identifier (QID): 0 is the admin queue.
        pub qid: U16,
        /// RDMA QP Host Receive Queue Size (HRQSIZE): responses that the host can receive at a time. Not zero-based.
        pub hrqsize: U16,
        /// RDMA QP Host Send Queue Size (HSQSIZE): commands that the host sends at a time. Zero-based, as SQSIZE of the
        /// Connect command.
        pub hsqsize: U16,
        /// Controller ID (CNTLID) that an I/O queue belongs to; 0 from hosts that do not say, such as Linux before 6.12.
        pub cntlid: U16,
        /// Reserved.
        pub reserved10: [u8; 22],
    }
}
layout!(Request, 32, recfmt @ 0, qid @ 2, hrqsize @ 4, hsqsize @ 6, cntlid @ 8, reserved10 @ 10);

impl Request {
    /// Request for queue `qid` with `size` entries (at least 1) of the controller `cntlid`.
    pub fn new(qid: u16, size: u16, cntlid: u16) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            qid: U16::new(qid),
            hrqsize: U16::new(size),
            hsqsize: U16::new(size.saturating_sub(1)),
            cntlid: U16::new(cntlid),
            reserved10: [0; 22],
        }
    }

    /// What a host has sent.
    ///
    /// # Errors
    /// The status with which to reject it: too short, or of a format that does not exist. Whether queue identifier and
    /// sizes are to be had is for the controller to say.
    pub fn parse(private_data: &[u8]) -> Result<Self, RejectStatus> {
        let (request, _) =
            Self::read_from_prefix(private_data).map_err(|_| RejectStatus::InvalidLength)?;
        match request.recfmt.get() {
            RECFMT => Ok(request),
            _ => Err(RejectStatus::InvalidRecordFormat),
        }
    }

    /// Commands that the host sends at a time, so receives that the controller needs: HSQSIZE, not zero-based.
    pub fn commands(&self) -> u32 {
        u32::from(self.hsqsize.get()).saturating_add(1)
    }
}

wire! {
    /// Private data of an accepted connection.
    pub struct Accept {
        /// Record Format (RECFMT).
        pub recfmt: U16,
        /// RDMA QP Controller Receive Queue Size (CRQSIZE): commands that the controller can receive at a time. Not
        /// zero-based.
        pub crqsize: U16,
        /// Reserved.
        pub reserved4: [u8; 28],
    }
}
layout!(Accept, 32, recfmt @ 0, crqsize @ 2, reserved4 @ 4);

impl Accept {
    /// The answer of a controller that receives `crqsize` commands at a time.
    pub fn new(crqsize: u16) -> Self {
        Self { recfmt: U16::new(RECFMT), crqsize: U16::new(crqsize), reserved4: [0; 28] }
    }

    /// What a controller has answered; none if it is not an answer of NVMe/RDMA.
    pub fn parse(private_data: &[u8]) -> Option<Self> {
        let (accept, _) = Self::read_from_prefix(private_data).ok()?;
        (accept.recfmt.get() == RECFMT).then_some(accept)
    }
}

wire! {
    /// Private data of a rejected connection.
    pub struct Reject {
        /// Record Format (RECFMT).
        pub recfmt: U16,
        /// Status (STS); see [`RejectStatus`].
        pub sts: U16,
    }
}
layout!(Reject, 4, recfmt @ 0, sts @ 2);

impl Reject {
    /// The rejection for this reason.
    pub fn new(status: RejectStatus) -> Self {
        Self { recfmt: U16::new(RECFMT), sts: U16::new(status.code().into()) }
    }

    /// What a controller has answered; none if it is not an answer of NVMe/RDMA.
    pub fn parse(private_data: &[u8]) -> Option<Self> {
        let (reject, _) = Self::read_from_prefix(private_data).ok()?;
        (reject.recfmt.get() == RECFMT).then_some(reject)
    }

    /// The reason.
    ///
    /// # Errors
    /// The code itself, if it is none that is known here.
    pub fn status(&self) -> Result<RejectStatus, u16> {
        let code = self.sts.get();
        u8::try_from(code).ok().and_then(|code| RejectStatus::try_from(code).ok()).ok_or(code)
    }
}
