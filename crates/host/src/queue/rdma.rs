//! A queue over NVMe/RDMA: an endpoint, the connection that it has, and the slots of its commands.
//!
//! A command capsule is a message, its data lies in the slot: the controller reads or writes it there, by the key in the SQE's
//! keyed descriptor, or a small write takes it along in the capsule. A response capsule is a message back. All commands of
//! a turn are posted at once, and neither that nor looking for responses is a system call; only sleeping is.
//!
//! Whoever owns the queue handles its connection's events, too, when they matter: before and after it sleeps, when something
//! fails, and once in a while when nothing comes. After the end everything but [`RdmaQueue::receive`] is without effect, and that
//! says what the end was: no call waits for what cannot come.

mod connect;

use super::machine::Settings;
use super::slots::{Completion, SlotId, Slots, Transfer};
use crate::error::{HostError, ProtocolError, RequestError};
use crate::socket::{SystemCalls, sleep};
use nvme::{Cqe, Sgl, Sqe};
use rustix::event::{PollFd, PollFlags};
use std::net::SocketAddr;
use std::time::Duration;
use verbs::endpoint::Arrival;
use verbs::{Connection, Endpoint, EventChannel, Kind, Status, VerbsError};
use zerocopy::{FromBytes, IntoBytes};

/// So often nothing has come when it is time to see whether the connection is still there.
const LOOK_EVERY: u32 = 4096;

/// What became of the device.
const DEVICE_REMOVED: &str = "its RDMA device was removed";

/// Why there will be nothing more.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The peer took leave, or the connection was lost.
    Closed,
    /// A work request failed, or was flushed by another's failure.
    Failed(Status),
    /// The device is gone.
    Removed,
    /// The controller does not keep to the protocol.
    Protocol(ProtocolError),
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct RdmaQueue {
    pub(crate) slots: Slots,
    endpoint: Endpoint,
    /// Tells the controller when it is dropped.
    _connection: Connection,
    events: EventChannel,
    peer: SocketAddr,
    /// Bytes of data that a capsule may carry.
    in_capsule: u32,
    /// Something has arrived that [`RdmaQueue::receive`] has not told of.
    arrived: bool,
    /// How often nothing has since something did.
    nothing: u32,
    end: Option<End>,
    pub(crate) calls: SystemCalls,
}

impl RdmaQueue {
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn copy_to(&self, slot: SlotId, offset: usize, out: &mut [u8]) -> usize {
        self.endpoint.copy_to(slot.0.into(), offset, out)
    }

    pub(crate) fn copy_from(&mut self, slot: SlotId, offset: usize, data: &[u8]) -> usize {
        if !self.slots.is_reserved(slot) {
            return 0;
        }
        self.endpoint.copy_from(slot.0.into(), offset, data)
    }

    pub(crate) fn submit(
        &mut self,
        slot: SlotId,
        mut sqe: Sqe,
        transfer: Transfer,
    ) -> Result<(), RequestError> {
        if self.end.is_some() {
            return Err(RequestError::Ended);
        }
        sqe.cid = self.slots.begin(slot, transfer)?.into();
        let number = u32::from(slot.0);
        let length = transfer.length();
        // What a controller takes in the capsule of a fabrics command is not known before it has been identified.
        let carried = matches!(transfer, Transfer::Write(_))
            && length <= self.in_capsule
            && !sqe.is_fabrics();
        let remote = if carried || length == 0 { None } else { self.endpoint.expose(number) };
        let (address, key) = remote.map_or((0, 0), |remote| (remote.address, remote.key));
        sqe.dptr = if carried {
            Sgl::InCapsule { offset: 0, length }
        } else {
            Sgl::Keyed { address, length, key, invalidate: false }
        }
        .into();
        let data = if carried { usize::try_from(length).unwrap_or(usize::MAX) } else { 0 };
        let mut header = [0; verbs::endpoint::HEADER_BYTES];
        header.copy_from_slice(sqe.as_bytes());
        let Ok(busy) = self.endpoint.send(number, &header, data) else {
            // Every slot has room for its command, so this is the end of all order.
            self.end = Some(End::Failed(Status::FATAL));
            return Err(RequestError::Ended);
        };
        if busy {
            self.slots.data_queued(slot);
        }
        Ok(())
    }

    /// The next command that ended; from then on the controller is done with its slot.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        let completion = self.slots.next_completion()?;
        self.endpoint.conceal(completion.slot.0.into());
        Some(completion)
    }

    pub(crate) fn take_completion(&mut self, slot: SlotId) -> Option<Completion> {
        let completion = self.slots.take_completion(slot)?;
        self.endpoint.conceal(slot.0.into());
        Some(completion)
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        self.endpoint.wants_to_send()
    }

    pub(crate) fn flush(&mut self) -> Result<(), HostError> {
        if self.end.is_some() {
            return Ok(());
        }
        let result = self.endpoint.flush();
        result.map_err(|source| self.failed(source))
    }

    pub(crate) fn receive(&mut self) -> Result<bool, HostError> {
        let any = self.take_in()?;
        if std::mem::take(&mut self.arrived) || any {
            self.nothing = 0;
            return Ok(true);
        }
        self.nothing += 1;
        if self.nothing == LOOK_EVERY {
            self.nothing = 0;
            self.look()?;
        }
        if self.end.is_some() {
            self.look()?;
        }
        match self.end {
            None => Ok(false),
            Some(end) => Err(self.ended(end)),
        }
    }

    /// Takes in what has arrived. The end, if there is one, is told once nothing else is left.
    fn take_in(&mut self) -> Result<bool, HostError> {
        let Self { endpoint, slots, end, .. } = self;
        let mut any = false;
        let polled = endpoint.poll(|arrival| match arrival {
            Arrival::Message(capsule) => match respond(slots, capsule) {
                Ok(()) => any = true,
                Err(error) => *end = end.or(Some(End::Protocol(error))),
            },
            Arrival::Sent(slot) => {
                any = true;
                slots.data_sent(SlotId(u16::try_from(slot).unwrap_or(u16::MAX)));
            }
            Arrival::Failed(status) => match end {
                // Of what was flushed the cause is elsewhere.
                None | Some(End::Failed(Status::FLUSHED)) => *end = Some(End::Failed(status)),
                Some(_) => {}
            },
        });
        if let Err(source) = polled {
            return Err(self.failed(source));
        }
        Ok(any)
    }

    /// Sees what has become of the connection.
    fn look(&mut self) -> Result<(), HostError> {
        loop {
            self.calls.wait += 1;
            let event = self.events.next_event();
            match event.map_err(|source| self.failed(source))?.map(|event| event.kind) {
                None => return Ok(()),
                Some(Kind::Disconnected) => {
                    // Why requests failed, if any did.
                    if matches!(self.end, None | Some(End::Failed(_))) {
                        self.end = Some(End::Closed);
                    }
                }
                Some(Kind::DeviceRemoved) => self.end = Some(End::Removed),
                Some(_) => {}
            }
        }
    }

    fn ended(&self, end: End) -> HostError {
        let address = self.peer;
        match end {
            End::Closed => HostError::Closed { address, during: "while commands were outstanding" },
            End::Failed(Status::FLUSHED) => {
                HostError::Broken { address, reason: "its queue pair failed" }
            }
            End::Failed(status) => HostError::Broken { address, reason: status.text() },
            End::Removed => HostError::Broken { address, reason: DEVICE_REMOVED },
            End::Protocol(source) => HostError::Protocol { address, source },
        }
    }

    fn failed(&mut self, source: VerbsError) -> HostError {
        self.end = self.end.or(Some(End::Failed(Status::FATAL)));
        HostError::Rdma { address: self.peer, source }
    }

    /// Makes sure that whatever comes from now on wakes a sleeper. True: there is no need to sleep.
    pub(crate) fn prepare_to_sleep(&mut self) -> Result<bool, HostError> {
        if self.end.is_none() {
            let armed = self.endpoint.arm();
            armed.map_err(|source| self.failed(source))?;
            self.arrived |= self.take_in()?;
        }
        Ok(self.arrived || self.end.is_some())
    }

    /// What a sleeper is to wake for: something that arrives, and an event of the connection.
    pub(crate) fn interests(&self) -> [PollFd<'_>; 2] {
        let flags = PollFlags::IN;
        [PollFd::new(self.endpoint.channel(), flags), PollFd::new(&self.events, flags)]
    }

    /// Takes note of what a sleeper was woken by.
    pub(crate) fn woken(&mut self, [arrival, event]: [bool; 2]) -> Result<(), HostError> {
        if arrival {
            self.calls.wait += 1;
            let told = self.endpoint.channel().next_event();
            told.map_err(|source| self.failed(source))?;
        }
        if event {
            self.look()?;
        }
        Ok(())
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<bool, HostError> {
        if self.prepare_to_sleep()? {
            return Ok(true);
        }
        self.calls.wait += 1;
        let mut descriptors = self.interests();
        let woken = sleep(&mut descriptors, timeout);
        let ready = descriptors.map(|descriptor| !descriptor.revents().is_empty());
        let woken = woken.map_err(|source| HostError::Socket { address: self.peer, source })?;
        self.woken(ready)?;
        Ok(woken)
    }
}

/// Ends the command that a response capsule answers.
fn respond(slots: &mut Slots, capsule: &[u8]) -> Result<(), ProtocolError> {
    let Ok(cqe) = Cqe::read_from_bytes(capsule) else {
        return Err(ProtocolError::ResponseLength { length: capsule.len() });
    };
    let cid = cqe.cid.get();
    let Some((slot, state)) = slots.find(cid) else {
        return Err(ProtocolError::UnknownResponse { cid });
    };
    // All data has moved before the response, or none is of any use.
    state.moved = if cqe.status().is_success() { state.transfer.length() } else { 0 };
    slots.complete(slot, cqe);
    Ok(())
}
