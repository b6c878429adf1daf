//! Addresses between Rust's form and the C libraries'.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::{mem, ptr};

use libc::{AF_INET, AF_INET6, sa_family_t, sockaddr_in, sockaddr_in6, sockaddr_storage};

/// The C form of an address.
pub(crate) fn encode(address: SocketAddr) -> sockaddr_storage {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut storage: sockaddr_storage = unsafe { mem::zeroed() };
    let to = ptr::from_mut(&mut storage);
    match address {
        SocketAddr::V4(v4) => {
            let own = sockaddr_in {
                sin_family: sa_family_t::try_from(AF_INET).unwrap_or_default(),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is as large and as aligned as any address.
            unsafe { to.cast::<sockaddr_in>().write(own) };
        }
        SocketAddr::V6(v6) => {
            let own = sockaddr_in6 {
                sin6_family: sa_family_t::try_from(AF_INET6).unwrap_or_default(),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { to.cast::<sockaddr_in6>().write(own) };
        }
    }
    storage
}

/// Rust's form of an address; none if it is of another family than IP.
pub(crate) fn decode(storage: &sockaddr_storage) -> Option<SocketAddr> {
    let from = ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        AF_INET => {
            // SAFETY: the family says which structure it is; the storage is large and aligned enough for any.
            let own = unsafe { from.cast::<sockaddr_in>().read() };
            let ip = own.sin_addr.s_addr.to_ne_bytes().into();
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(own.sin_port))))
        }
        AF_INET6 => {
            // SAFETY: as above.
            let own = unsafe { from.cast::<sockaddr_in6>().read() };
            let IpAddr::V6(ip) = IpAddr::from(own.sin6_addr.s6_addr) else { return None };
            let port = u16::from_be(own.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, own.sin6_flowinfo, own.sin6_scope_id)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["192.0.2.7:4420", "[2001:db8::9]:4420", "0.0.0.0:0", "[::]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode(&encode(address)), Some(address));
        }
    }
}
