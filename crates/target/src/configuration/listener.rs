//! Addresses that hosts connect to.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nvme::address::{TransportAddress, TransportType};

/// Number of a listener: also its PORTID in the discovery log. Chosen by the configuration, so that it
/// stays the same when another listener goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One transport address. All subsystems that are reachable on it share its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its number.
    pub id: ListenerId,
    /// Where it listens. An unspecified address (`0.0.0.0`, `[::]`) stands for every address of the machine.
    pub address: TransportAddress,
}

impl Listener {
    /// Whether it stands for every address of the machine.
    pub fn is_wildcard(&self) -> bool {
        self.address.traddr.is_unspecified()
    }

    /// Whether a wildcard of IPv6 stands for this address: over TCP it takes IPv4 connections too, over RDMA it does not.
    pub(crate) fn takes(&self, local: IpAddr) -> bool {
        local.is_ipv6() || self.address.trtype == TransportType::Tcp
    }

    /// How specifically this listener stands for a connection that arrived at `local`: 0 is the very
    /// address, then a wildcard of the family, then the IPv6 wildcard that takes IPv4 connections too.
    /// None: it does not.
    fn distance(&self, local: &TransportAddress) -> Option<u8> {
        if self.address.trtype != local.trtype || self.address.trsvcid != local.trsvcid {
            return None;
        }
        match (self.address.traddr.to_canonical(), local.traddr.to_canonical()) {
            (own, local) if own == local => Some(0),
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(_))
            | (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(_)) => Some(1),
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), v4) if self.takes(v4) => Some(2),
            _ => None,
        }
    }
}

/// The listener that a connection to the local address `local` came in by.
pub(super) fn find<'a>(
    listeners: &'a [Listener],
    local: &TransportAddress,
) -> Option<&'a Listener> {
    listeners
        .iter()
        .filter_map(|listener| Some((listener.distance(local)?, listener)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, listener)| listener)
}

/// On which listeners a subsystem can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// On every listener there is, and every one that comes.
    #[default]
    Everywhere,
    /// On these alone.
    On(Arc<BTreeSet<ListenerId>>),
}

impl Reach {
    /// Whether `listener` is one of them.
    pub fn includes(&self, listener: ListenerId) -> bool {
        match self {
            Self::Everywhere => true,
            Self::On(listeners) => listeners.contains(&listener),
        }
    }
}

impl FromIterator<ListenerId> for Reach {
    fn from_iter<I: IntoIterator<Item = ListenerId>>(listeners: I) -> Self {
        Self::On(Arc::new(listeners.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use nvme::address::TransportType;

    use super::*;

    fn at(trtype: TransportType, address: &str) -> TransportAddress {
        let address: SocketAddr = address.parse().unwrap();
        TransportAddress { trtype, traddr: address.ip(), trsvcid: address.port() }
    }

    fn listener(id: u16, address: &str) -> Listener {
        Listener { id: ListenerId(id), address: at(TransportType::Tcp, address) }
    }

    #[test]
    fn the_most_specific_listener_is_found() {
        let all = [
            listener(1, "[::]:4420"),
            listener(2, "0.0.0.0:4420"),
            listener(3, "192.0.2.1:4420"),
            listener(4, "192.0.2.1:4421"),
        ];
        let found = |listeners: &[Listener], local: &str| {
            find(listeners, &at(TransportType::Tcp, local)).map(|listener| listener.id.0)
        };
        assert_eq!(found(&all, "192.0.2.1:4420"), Some(3));
        assert_eq!(found(&all, "192.0.2.1:4421"), Some(4));
        assert_eq!(found(&all, "192.0.2.9:4420"), Some(2));
        assert_eq!(found(&all, "[::ffff:192.0.2.1]:4420"), Some(3));
        assert_eq!(found(&all, "[2001:db8::1]:4420"), Some(1));
        assert_eq!(found(&all[..1], "192.0.2.9:4420"), Some(1));
        assert_eq!(found(&all[1..2], "[2001:db8::1]:4420"), None);
        assert_eq!(found(&all, "192.0.2.1:4422"), None);
        assert_eq!(find(&all, &at(TransportType::Rdma, "192.0.2.1:4420")), None);
    }
}
