//! A queue over NVMe/TCP: a [`Machine`] and the socket it talks through.
//!
//! A turn with many commands is one receiving and one sending system call for all of them.

use super::machine::{Machine, Settings};
use crate::error::{HostError, ProtocolError};
use crate::socket::Socket;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

/// Slices handed to the kernel in one call at most.
const SLICES: usize = 128;
/// Slices of a call that sends one or two commands, or any number without data.
const FEW_SLICES: usize = 4;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct TcpQueue {
    pub(crate) machine: Machine,
    pub(crate) socket: Socket,
}

impl TcpQueue {
    /// A connected socket with the ICReq ready to be sent.
    pub(crate) fn connect(
        address: SocketAddr,
        settings: Settings,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        let Settings { depth, slot_bytes, .. } = settings;
        let machine =
            Machine::new(settings).map_err(|_| HostError::Memory { depth, slot_bytes })?;
        Ok(Self { machine, socket: Socket::connect(address, timeout)? })
    }

    pub(crate) fn flush(&mut self) -> Result<(), HostError> {
        match self.machine.slice_count() {
            0 => Ok(()),
            // An array as large as it may have to be costs more to prepare than a few commands to send.
            1..=FEW_SLICES => self.send::<FEW_SLICES>(),
            _ => self.send::<SLICES>(),
        }
    }

    fn send<const COUNT: usize>(&mut self) -> Result<(), HostError> {
        let mut slices = [IoSlice::new(&[]); COUNT];
        let count = self.machine.slices(&mut slices);
        let sent = self.socket.send(slices.get(..count).unwrap_or_default())?;
        self.machine.sent(sent);
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> Result<bool, HostError> {
        let (first, second) = self.machine.space();
        match self.socket.receive(first, second)? {
            None => Ok(false),
            Some(0) => Err(HostError::Closed {
                address: self.socket.peer(),
                during: if self.machine.is_open() {
                    "while commands were outstanding"
                } else {
                    "before it was initialised"
                },
            }),
            Some(count) => {
                let is_open = self.machine.is_open();
                let Err(source) = self.machine.received(count) else {
                    return Ok(true);
                };
                // The termination request; whether it arrives makes no difference any more.
                let _ = self.flush();
                let address = self.socket.peer();
                Err(match source {
                    ProtocolError::Header(_) | ProtocolError::Sequence { .. } if !is_open => {
                        HostError::NotNvme { address, source }
                    }
                    _ => HostError::Protocol { address, source },
                })
            }
        }
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<bool, HostError> {
        let sending = self.machine.wants_to_send();
        self.socket.wait(sending, timeout)
    }
}
