//! A queue: a [`Machine`] and the socket it talks through.
//!
//! Nothing here blocks but [`Queue::connect`], [`Queue::call`] and [`Queue::wait`]. A turn of a caller with many
//! commands under way is: [`Queue::receive`], [`Queue::next_completion`] until there is none, [`Queue::submit`] for
//! each that follows, [`Queue::flush`]; that is one receiving and one sending system call for all of them. A queue belongs
//! to one thread at a time and may be sent to another.

mod data;
mod incoming;
mod machine;
mod outgoing;
mod slots;
mod violation;

pub use machine::{Machine, Settings};
pub use slots::{Completion, DEPTH_MAX, SlotId, Transfer};

use crate::error::{HostError, ProtocolError, RequestError};
use crate::socket::{Socket, SystemCalls, sleep};
use nvme::Sqe;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Slices handed to the kernel in one call at most.
const SLICES: usize = 128;
/// Slices of a call that sends one or two commands, or any number without data.
const FEW_SLICES: usize = 4;

/// When a wait that begins now ends. One that the clock cannot count ends in a century instead.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    let now = Instant::now();
    let century = Duration::from_hours(100 * 365 * 24);
    now.checked_add(timeout).or_else(|| now.checked_add(century)).unwrap_or(now)
}

/// See the module's description.
#[derive(Debug)]
pub struct Queue {
    machine: Machine,
    socket: Socket,
}

impl Queue {
    /// Connects a socket and exchanges ICReq and ICResp within `timeout`. The Connect command is the caller's
    /// ([`Controller`](crate::Controller) does it all).
    pub fn connect(
        address: SocketAddr,
        settings: Settings,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        let deadline = deadline_after(timeout);
        let Settings { depth, slot_bytes, .. } = settings;
        let machine =
            Machine::new(settings).map_err(|_| HostError::Memory { depth, slot_bytes })?;
        let mut queue = Self { machine, socket: Socket::connect(address, timeout)? };
        while !queue.machine.is_open() {
            queue.turn_until(deadline, timeout, "the connection request (ICReq)")?;
        }
        Ok(queue)
    }

    /// The controller's address.
    pub fn peer(&self) -> SocketAddr {
        self.socket.peer()
    }

    /// Digests that the controller granted: of headers, of data.
    pub fn digests(&self) -> (bool, bool) {
        self.machine.digests()
    }

    /// System calls made so far.
    pub fn system_calls(&self) -> SystemCalls {
        self.socket.calls
    }

    /// Commands submitted and not completed.
    pub fn outstanding(&self) -> usize {
        self.machine.outstanding()
    }

    /// A free slot, now the caller's; `None` if all are in use.
    pub fn reserve(&mut self) -> Option<SlotId> {
        self.machine.reserve()
    }

    /// Gives a reserved slot back.
    pub fn release(&mut self, slot: SlotId) {
        self.machine.release(slot);
    }

    /// The memory of a slot: what a read brought.
    pub fn data(&self, slot: SlotId) -> &[u8] {
        self.machine.data(slot)
    }

    /// The memory of a reserved slot: what a write will send. Empty while a command is using the slot.
    pub fn data_mut(&mut self, slot: SlotId) -> &mut [u8] {
        self.machine.data_mut(slot)
    }

    /// Puts a command into a reserved slot; [`Queue::flush`] sends it. Command identifier and data pointer of `sqe`
    /// are set by the queue.
    pub fn submit(
        &mut self,
        slot: SlotId,
        sqe: Sqe,
        transfer: Transfer,
    ) -> Result<(), RequestError> {
        self.machine.submit(slot, sqe, transfer)
    }

    /// The next command that ended. Its slot is the caller's again.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.machine.next_completion()
    }

    /// Sends what there is to send, with one system call, as far as the kernel takes it.
    pub fn flush(&mut self) -> Result<(), HostError> {
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

    /// Whether [`Queue::flush`] has left something unsent.
    pub fn wants_to_send(&self) -> bool {
        self.machine.wants_to_send()
    }

    /// Takes in what has arrived, with one system call. False: nothing has.
    pub fn receive(&mut self) -> Result<bool, HostError> {
        let (first, second) = self.machine.space();
        match self.socket.receive(first, second)? {
            None => Ok(false),
            Some(0) => Err(HostError::Closed {
                address: self.peer(),
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
                let address = self.peer();
                Err(match source {
                    ProtocolError::Header(_) | ProtocolError::Sequence { .. } if !is_open => {
                        HostError::NotNvme { address, source }
                    }
                    _ => HostError::Protocol { address, source },
                })
            }
        }
    }

    /// Sleeps until something arrives, or can be sent if there is something to send, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, HostError> {
        let sending = self.machine.wants_to_send();
        self.socket.wait(sending, timeout)
    }

    /// [`Queue::wait`] for several queues at once.
    pub fn wait_any(queues: &mut [Self], timeout: Duration) -> Result<bool, HostError> {
        if let [queue] = queues {
            return queue.wait(timeout);
        }
        let Some(address) = queues.first().map(Self::peer) else {
            return Ok(false);
        };
        let mut descriptors: Vec<_> = queues
            .iter()
            .map(|queue| queue.socket.interest(queue.machine.wants_to_send()))
            .collect();
        let woken = sleep(&mut descriptors, timeout)
            .map_err(|source| HostError::Socket { address, source });
        drop(descriptors);
        if let Some(queue) = queues.first_mut() {
            queue.socket.calls.wait += 1;
        }
        woken
    }

    /// Submits a command in a reserved slot and waits for its end, at most `timeout`. Other commands that end meanwhile are kept
    /// for [`Queue::next_completion`].
    pub fn call(
        &mut self,
        slot: SlotId,
        sqe: Sqe,
        transfer: Transfer,
        timeout: Duration,
        what: &'static str,
    ) -> Result<Completion, HostError> {
        let deadline = deadline_after(timeout);
        self.submit(slot, sqe, transfer)?;
        loop {
            if let Some(completion) = self.machine.take_completion(slot) {
                return Ok(completion);
            }
            self.turn_until(deadline, timeout, what)?;
        }
    }

    /// Sends and receives once, sleeping if there is nothing to receive.
    fn turn_until(
        &mut self,
        deadline: Instant,
        timeout: Duration,
        what: &'static str,
    ) -> Result<(), HostError> {
        self.flush()?;
        if self.receive()? {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HostError::Timeout { address: self.peer(), what, after: timeout });
        }
        self.wait(left)?;
        Ok(())
    }
}
