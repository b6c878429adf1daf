//! What the shard asks of a transport, and what a transport tells it about a new queue.

use std::fmt;
use std::net::SocketAddr;

use memory::DeviceId;
use nvme::Cqe;
use nvme::address::TransportType;

use crate::{QueueId, RequestId};

/// What a transport knows of a connection when it opens a queue for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueInfo {
    /// How capsules travel on it; also which SGL descriptors its commands may carry.
    pub transport: TransportType,
    /// The address that the host connected to (never a wildcard).
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
    /// Most bytes of data that the transport takes in a capsule of an I/O command. Admin and fabrics
    /// commands may always carry [`ADMIN_IN_CAPSULE`].
    pub in_capsule_limit: u32,
    /// Which memory of devices it can send from.
    pub borrows: Borrows,
}

/// What a transport can send straight from the memory that a device consists of (see
/// [`BlockDevice::medium`](block::BlockDevice::medium)). What it cannot is copied into buffers of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Borrows {
    /// Nothing.
    Nothing,
    /// Whatever this device has had registered with it when the command arrives.
    Registered(DeviceId),
    /// Whatever there is.
    Anything,
}

/// In-capsule data that admin and fabrics commands may carry, whatever IOCCSZ says: NVMe/TCP transport
/// specification, section "In-Capsule Data": 8,192 bytes.
pub const ADMIN_IN_CAPSULE: u32 = 8192;

/// What a transport has to do, in this order. An action for a queue that the transport has closed is
/// never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The request now holds a buffer: bring `length` bytes of the host's data into it, then say
    /// [`Shard::data_received`](crate::Shard::data_received). Until this comes the transport leaves
    /// in-capsule data where it is, and stops reading the queue.
    Receive {
        /// The queue.
        queue: QueueId,
        /// The request.
        request: RequestId,
        /// Bytes.
        length: u32,
        /// The data is in the capsule; otherwise it has to be fetched (R2T, RDMA_READ).
        in_capsule: bool,
    },
    /// Send the first `data` bytes of the request's memory (0: none), then the completion, then say
    /// [`Shard::response_sent`](crate::Shard::response_sent). For a request whose in-capsule data was not
    /// asked for by [`Action::Receive`], that data is thrown away.
    Respond {
        /// The queue.
        queue: QueueId,
        /// The request.
        request: RequestId,
        /// The completion, with its command identifier and SQHD.
        cqe: Cqe,
        /// Bytes of data to send first.
        data: u32,
        /// Whether the host asked, by SQ flow control, to be told SQHD: where it did, a success flag in
        /// the last data PDU in place of the completion withholds it (the kernel's target therefore does
        /// not use the flag then).
        flow_control: bool,
    },
    /// Read from this queue again: [`CommandRefused::Busy`] is over.
    Resume {
        /// The queue.
        queue: QueueId,
    },
    /// Send what was queued before this (within a bound), close the connection, then say
    /// [`Shard::close_queue`](crate::Shard::close_queue).
    Disconnect {
        /// The queue.
        queue: QueueId,
        /// Why.
        reason: DisconnectReason,
    },
}

impl Action {
    /// The queue it is about.
    pub const fn queue(&self) -> QueueId {
        match *self {
            Self::Receive { queue, .. }
            | Self::Respond { queue, .. }
            | Self::Resume { queue }
            | Self::Disconnect { queue, .. } => queue,
        }
    }
}

/// Why the target ends a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisconnectReason {
    /// The host sent Disconnect.
    Asked,
    /// No Connect within the time allowed.
    NoConnect,
    /// Connect failed and its answer is on the way.
    Refused,
    /// The host did not keep its controller alive.
    KeepAlive,
    /// The controller was disabled or shut down by the host; only its admin queue stays.
    Reset,
    /// The admin queue of the controller is gone.
    ControllerGone,
    /// The configuration no longer admits the host, or no longer has the subsystem.
    Configuration,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "the host sent Disconnect",
            Self::NoConnect => "no Connect command arrived in time",
            Self::Refused => "Connect was refused",
            Self::KeepAlive => "the keep-alive timer expired",
            Self::Reset => "the host reset the controller",
            Self::ControllerGone => "the controller's admin queue is gone",
            Self::Configuration => "the configuration changed",
        })
    }
}

/// Why [`Shard::command`](crate::Shard::command) did not take a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CommandRefused {
    /// No room now. Keep the capsule, stop reading this queue until [`Action::Resume`], offer it again.
    #[error("no request slot is free; try again after Resume")]
    Busy,
    /// The queue is being ended, or is not known: drop the capsule.
    #[error("the queue is closed")]
    Closed,
}
