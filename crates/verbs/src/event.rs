//! What happens to connections.

use std::fmt;

use crate::{Connection, sys};

/// What events call a connection; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The reason of a refusal by a listener's own decision; the private data says more.
pub const REJECTED_BY_CONSUMER: i32 = 28;
/// The reason of a refusal where nobody listens.
pub const REJECTED_NOBODY_LISTENS: i32 = 8;

/// An event of a connection.
#[derive(Debug)]
pub struct Event {
    /// Whose. Of a request: the new connection's.
    pub connection: ConnectionId,
    /// What happened.
    pub kind: Kind,
    /// What the peer said. On InfiniBand and RoCE the tail is padded with zeros to the message's full length.
    pub private_data: PrivateData,
}

/// What the peer of a request or of a response wants, seen from here: no more may be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// RDMA reads that the peer wants us to answer at a time.
    pub responder_resources: u8,
    /// RDMA reads of ours that the peer would answer at a time.
    pub initiator_depth: u8,
}

/// The kinds of events.
#[derive(Debug)]
pub enum Kind {
    /// Somebody wants to connect; dropping the connection refuses it.
    ConnectRequest {
        /// Who was asked.
        listener: ConnectionId,
        /// The new connection.
        connection: Connection,
        /// What the peer wants.
        wishes: Wishes,
    },
    /// The address leads to a device.
    AddressResolved,
    /// There is a way.
    RouteResolved,
    /// The request was granted.
    ConnectResponse(Wishes),
    /// Both ends are connected.
    Established,
    /// Neither address nor route could be resolved, nobody answers, or the connection failed; the error's number.
    Failed(i32),
    /// The peer refuses: a reason of the specification, [`REJECTED_BY_CONSUMER`] for one.
    Rejected(i32),
    /// The connection is over.
    Disconnected,
    /// The device is being removed; everything on it has to be destroyed, for which a kernel may be waiting. Whoever has opened it
    /// finds that it [is](crate::Device::is_removed).
    DeviceRemoved,
    /// The address moved to another device or port.
    AddressChanged,
    /// A connection's number may be used again.
    TimeWaitExit,
    /// Another one, by its number.
    Other(u32),
}

impl Kind {
    pub(crate) fn read(
        number: u32,
        status: i32,
        conn: &sys::ConnParam,
        request: Option<(ConnectionId, Connection)>,
    ) -> Kind {
        let wishes = Wishes {
            responder_resources: conn.responder_resources,
            initiator_depth: conn.initiator_depth,
        };
        if let Some((listener, connection)) = request {
            return Kind::ConnectRequest { listener, connection, wishes };
        }
        match number {
            sys::CM_EVENT_ADDR_RESOLVED => Kind::AddressResolved,
            sys::CM_EVENT_ROUTE_RESOLVED => Kind::RouteResolved,
            sys::CM_EVENT_CONNECT_RESPONSE => Kind::ConnectResponse(wishes),
            sys::CM_EVENT_ESTABLISHED => Kind::Established,
            sys::CM_EVENT_ADDR_ERROR
            | sys::CM_EVENT_ROUTE_ERROR
            | sys::CM_EVENT_CONNECT_ERROR
            | sys::CM_EVENT_UNREACHABLE => Kind::Failed(status),
            sys::CM_EVENT_REJECTED => Kind::Rejected(status),
            sys::CM_EVENT_DISCONNECTED => Kind::Disconnected,
            sys::CM_EVENT_DEVICE_REMOVAL => Kind::DeviceRemoved,
            sys::CM_EVENT_ADDR_CHANGE => Kind::AddressChanged,
            sys::CM_EVENT_TIMEWAIT_EXIT => Kind::TimeWaitExit,
            other => Kind::Other(other),
        }
    }
}

/// What one end tells the other while connecting.
#[derive(Clone, Copy)]
pub struct PrivateData {
    length: u8,
    bytes: [u8; 255],
}

impl PrivateData {
    /// # Safety
    /// `length` bytes at `from`, unless that is null.
    pub(crate) unsafe fn copy(from: *const u8, length: u8) -> PrivateData {
        let mut data = PrivateData { length: 0, bytes: [0; 255] };
        if !from.is_null() {
            data.length = length;
            // SAFETY: the caller's word; there is room for whatever fits a u8.
            unsafe { from.copy_to_nonoverlapping(data.bytes.as_mut_ptr(), length.into()) };
        }
        data
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.length)
    }
}
