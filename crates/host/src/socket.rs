//! The one place that knows a queue's bytes travel over a TCP socket.
//!
//! The socket never blocks: what cannot be sent or received now is reported as zero bytes, and
//! [`Socket::wait`] sleeps until that changes. Every system call is counted, since `perf` reports them.

use crate::error::HostError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// System calls that a queue has made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SystemCalls {
    /// Calls that asked for bytes, those that found none included.
    pub receive: u64,
    /// Of these, the calls that found none.
    pub receive_empty: u64,
    /// Calls that sent bytes.
    pub send: u64,
    /// Calls that slept, and those that only make sleeping possible.
    pub wait: u64,
}

impl std::ops::AddAssign for SystemCalls {
    fn add_assign(&mut self, other: Self) {
        self.receive += other.receive;
        self.receive_empty += other.receive_empty;
        self.send += other.send;
        self.wait += other.wait;
    }
}

/// A connected, non-blocking TCP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
    pub(crate) calls: SystemCalls,
}

impl Socket {
    /// Connects within `timeout`.
    pub(crate) fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, HostError> {
        let stream = TcpStream::connect_timeout(&address, timeout)
            .map_err(|source| HostError::Unreachable { address, source })?;
        // A command must not wait for the acknowledgement of the one before it.
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_nonblocking(true))
            .map_err(|source| HostError::Socket { address, source })?;
        Ok(Self { stream, peer: address, calls: SystemCalls::default() })
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Reads what has arrived, into `first` and then into `second`. `Ok(None)`: nothing has.
    /// `Ok(Some(0))`: the peer has closed.
    pub(crate) fn receive(
        &mut self,
        first: &mut [u8],
        second: &mut [u8],
    ) -> Result<Option<usize>, HostError> {
        self.calls.receive += 1;
        let result = if first.is_empty() {
            self.stream.read(second)
        } else {
            self.stream.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)])
        };
        match result {
            Ok(count) => Ok(Some(count)),
            Err(error) if nothing_now(&error) => {
                self.calls.receive_empty += 1;
                Ok(None)
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Sends as much of `slices` as the kernel takes now; 0 if none.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, HostError> {
        self.calls.send += 1;
        let result = match slices {
            [one] => self.stream.write(one),
            many => self.stream.write_vectored(many),
        };
        match result {
            Ok(count) => Ok(count),
            Err(error) if nothing_now(&error) => Ok(0),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Sleeps until there is something to read (or, if `sending`, room to send), at most `timeout`.
    /// False if the time passed.
    pub(crate) fn wait(&mut self, sending: bool, timeout: Duration) -> Result<bool, HostError> {
        self.calls.wait += 1;
        let mut descriptors = [self.interest(sending)];
        sleep(&mut descriptors, timeout).map_err(|source| self.failed(source))
    }

    /// What [`sleep`] is to wake for.
    pub(crate) fn interest(&self, sending: bool) -> PollFd<'_> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, sending);
        PollFd::new(&self.stream, flags)
    }

    fn failed(&self, source: io::Error) -> HostError {
        let address = self.peer;
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                HostError::Closed { address, during: "while commands were outstanding" }
            }
            _ => HostError::Socket { address, source },
        }
    }
}

/// Sleeps until one of `descriptors` is ready; false if `timeout` passed or a signal came first.
pub(crate) fn sleep(descriptors: &mut [PollFd<'_>], timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match poll(descriptors, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn nothing_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
