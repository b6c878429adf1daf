//! Sockets. This module alone knows that a connection is a plain TCP socket: what carries the bytes
//! otherwise (TLS) replaces [`Socket`] and nothing else.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use memory::vectored::{self, Piece, Space};
use rustix::net::{SocketFlags, acceptfrom_with, getpeername, getsockname};
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

/// Connections that the kernel keeps for us to accept; a node with many hosts that all reconnect at
/// once needs them.
const BACKLOG: i32 = 4096;
/// A peer that is gone without a word is found out after 60 + 3 * 10 seconds, even if its host
/// asked for no keep-alive by NVMe.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connected socket, non-blocking.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Receives into the spaces in order; 0 is the end of the stream.
    pub(crate) fn receive(
        &self,
        direct: Option<Space<'_>>,
        buffer: Space<'_>,
    ) -> io::Result<usize> {
        match direct {
            Some(direct) => vectored::receive(self.fd.as_fd(), &mut [direct, buffer]),
            None => vectored::receive(self.fd.as_fd(), &mut [buffer]),
        }
    }

    /// Sends the pieces in order, as far as the socket takes them.
    pub(crate) fn send<'a>(&self, pieces: impl Iterator<Item = Piece<'a>>) -> io::Result<usize> {
        vectored::send(self.fd.as_fd(), pieces)
    }

    /// Says that nothing more is sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        SockRef::from(&self.fd).shutdown(Shutdown::Write)
    }

    /// Our address and the peer's.
    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let local = getsockname(&self.fd)?.try_into()?;
        let peer = getpeername(&self.fd)?.ok_or(io::ErrorKind::NotConnected)?.try_into()?;
        Ok((local, peer))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A listening socket, non-blocking.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    fd: OwnedFd,
}

impl ListeningSocket {
    /// Binds and listens. What accepted sockets are to have is set here, and inherited by them.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<ListeningSocket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // [::] and 0.0.0.0 are two listeners.
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(ListeningSocket { fd: socket.into() })
    }

    /// The address it is bound to, with the port that the system chose if it was 0.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        Ok(getsockname(&self.fd)?.try_into()?)
    }

    /// The next connection; `WouldBlock` if there is none.
    pub(crate) fn accept(&self) -> io::Result<Socket> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (fd, _) = acceptfrom_with(&self.fd, flags)?;
        Ok(Socket { fd })
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether accepting failed because descriptors or memory have run out, which passes.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn accepted_sockets_inherit_what_the_listener_was_given() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = ListeningSocket::bind(address.parse().unwrap()).unwrap();
            let address = listener.address().unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let mut peer = TcpStream::connect(address).unwrap();
            let socket = listener.accept().unwrap();
            let options = SockRef::from(&socket.fd);
            assert!(options.tcp_nodelay().unwrap());
            assert!(options.keepalive().unwrap());
            assert_eq!(socket.addresses().unwrap(), (address, peer.local_addr().unwrap()));

            let mut room = [0; 8];
            let empty = socket.receive(None, Space::Bytes(&mut room));
            assert_eq!(empty.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            peer.write_all(b"abc").unwrap();
            assert_eq!(socket.receive(None, Space::Bytes(&mut room)).unwrap(), 3);
            assert_eq!(
                socket.send([Piece::Bytes(b"de"), Piece::Bytes(b"f")].into_iter()).unwrap(),
                3
            );
            socket.finish().unwrap();
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"def");
        }
    }

    #[test]
    fn both_wildcards_are_listened_on_side_by_side() {
        let first = ListeningSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = first.address().unwrap().port();
        let second = ListeningSocket::bind(SocketAddr::new("::".parse().unwrap(), port)).unwrap();
        for (listener, host) in [(&first, "127.0.0.1"), (&second, "::1")] {
            let _peer = TcpStream::connect((host, port)).unwrap();
            let (local, _) = listener.accept().unwrap().addresses().unwrap();
            // The address that the host connected to, not the wildcard.
            assert_eq!(local, SocketAddr::new(host.parse().unwrap(), port));
        }
    }
}
