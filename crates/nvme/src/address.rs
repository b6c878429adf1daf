//! Where a subsystem is to be found: transport type, address family, address, service.

use crate::codes::codes;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Port of NVMe/TCP and NVMe/RDMA I/O controllers.
pub const PORT_IO: u16 = 4420;
/// Port of NVMe/TCP discovery controllers.
pub const PORT_DISCOVERY: u16 = 8009;

codes! {
    /// Transport Type (TRTYPE).
    pub enum TransportType {
        Rdma = 0x01, "rdma";
        FibreChannel = 0x02, "fc";
        Tcp = 0x03, "tcp";
        IntraHost = 0xfe, "loop";
    }
}

codes! {
    /// Address Family (ADRFAM).
    pub enum AddressFamily {
        Ipv4 = 0x01, "ipv4";
        Ipv6 = 0x02, "ipv6";
        InfiniBand = 0x03, "ib";
        FibreChannel = 0x04, "fc";
        IntraHost = 0xfe, "loop";
    }
}

impl From<&IpAddr> for AddressFamily {
    fn from(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

/// An address by which a host reaches a subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportAddress {
    /// Transport Type (TRTYPE).
    pub trtype: TransportType,
    /// Transport Address (TRADDR); the address family (ADRFAM) follows from it.
    pub traddr: IpAddr,
    /// Transport Service Identifier (TRSVCID): the port.
    pub trsvcid: u16,
}

impl TransportAddress {
    /// Address Family (ADRFAM).
    pub fn adrfam(&self) -> AddressFamily {
        (&self.traddr).into()
    }

    /// As an address of a socket.
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.traddr, self.trsvcid)
    }
}

impl fmt::Display for TransportAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.trtype, self.socket())
    }
}
