//! A queue: commands in, completions out, over whichever transport it was connected by.
//!
//! Nothing here blocks but connecting, [`Queue::call`] and [`Queue::wait`]. A turn of a caller with many
//! commands under way is: [`Queue::receive`], [`Queue::next_completion`] until there is none, [`Queue::submit`] for
//! each that follows, [`Queue::flush`]; over TCP that is one receiving and one sending system call for all of them, over RDMA
//! none. A queue belongs to one thread at a time and may be sent to another.

mod data;
mod incoming;
mod machine;
mod outgoing;
mod rdma;
mod slots;
mod tcp;
mod violation;

pub use machine::{Machine, Settings};
pub use slots::{Completion, DEPTH_MAX, SlotId, Transfer};

use crate::error::{HostError, RequestError};
use crate::socket::{SystemCalls, sleep};
use nvme::Sqe;
use nvme::rdma::Request;
use rdma::RdmaQueue;
use rustix::event::PollFd;
use slots::Slots;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tcp::TcpQueue;
use verbs::Library;

/// When a wait that begins now ends. One that the clock cannot count ends in a century instead.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    let now = Instant::now();
    let century = Duration::from_hours(100 * 365 * 24);
    now.checked_add(timeout).or_else(|| now.checked_add(century)).unwrap_or(now)
}

/// Copies as much as there is and fits.
fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let count = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

#[derive(Debug)]
enum Transport {
    Tcp(Box<TcpQueue>),
    Rdma(Box<RdmaQueue>),
}

/// See the module's description.
#[derive(Debug)]
pub struct Queue(Transport);

impl Queue {
    /// Connects a socket and exchanges ICReq and ICResp within `timeout`. The Connect command is the caller's
    /// ([`Controller`](crate::Controller) does it all).
    pub fn connect(
        address: SocketAddr,
        settings: Settings,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        let deadline = deadline_after(timeout);
        let tcp = TcpQueue::connect(address, settings, timeout)?;
        let mut queue = Self(Transport::Tcp(Box::new(tcp)));
        while matches!(&queue.0, Transport::Tcp(tcp) if !tcp.machine.is_open()) {
            queue.turn_until(deadline, timeout, "the connection request (ICReq)")?;
        }
        Ok(queue)
    }

    /// Makes an RDMA connection with `request` as its private data, within `timeout`. The Connect command is the
    /// caller's. The queue has fewer slots than asked for if the controller cannot receive so many commands.
    pub fn connect_rdma(
        library: &Library,
        address: SocketAddr,
        settings: Settings,
        request: Request,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        let rdma = RdmaQueue::connect(library, address, settings, request, timeout)?;
        Ok(Self(Transport::Rdma(Box::new(rdma))))
    }

    /// The controller's address.
    pub fn peer(&self) -> SocketAddr {
        match &self.0 {
            Transport::Tcp(tcp) => tcp.socket.peer(),
            Transport::Rdma(rdma) => rdma.peer(),
        }
    }

    /// Digests that the controller granted: of headers, of data. RDMA has none, and needs none.
    pub fn digests(&self) -> (bool, bool) {
        match &self.0 {
            Transport::Tcp(tcp) => tcp.machine.digests(),
            Transport::Rdma(_) => (false, false),
        }
    }

    /// System calls made so far.
    pub fn system_calls(&self) -> SystemCalls {
        match &self.0 {
            Transport::Tcp(tcp) => tcp.socket.calls,
            Transport::Rdma(rdma) => rdma.calls,
        }
    }

    fn slots(&self) -> &Slots {
        match &self.0 {
            Transport::Tcp(tcp) => tcp.machine.slots(),
            Transport::Rdma(rdma) => &rdma.slots,
        }
    }

    fn slots_mut(&mut self) -> &mut Slots {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.machine.slots_mut(),
            Transport::Rdma(rdma) => &mut rdma.slots,
        }
    }

    /// Commands submitted and not completed.
    pub fn outstanding(&self) -> usize {
        self.slots().outstanding()
    }

    /// A free slot, now the caller's; `None` if all are in use.
    pub fn reserve(&mut self) -> Option<SlotId> {
        self.slots_mut().reserve()
    }

    /// Gives a reserved slot back.
    pub fn release(&mut self, slot: SlotId) {
        self.slots_mut().release(slot);
    }

    /// Copies what a read brought out of the memory of a slot, from `offset` into `out`; the number of bytes there were. Over RDMA
    /// none while a command is using the slot. It is copied since a controller that it was shown to might go on writing it.
    pub fn copy_to(&self, slot: SlotId, offset: usize, out: &mut [u8]) -> usize {
        match &self.0 {
            Transport::Tcp(tcp) => {
                let there = tcp.machine.data(slot).get(offset..).unwrap_or_default();
                copy(out, there)
            }
            Transport::Rdma(rdma) => rdma.copy_to(slot, offset, out),
        }
    }

    /// Copies what a write will send into the memory of a reserved slot, at `offset`; the number of bytes that fitted. None
    /// while a command is using the slot.
    pub fn copy_from(&mut self, slot: SlotId, offset: usize, data: &[u8]) -> usize {
        match &mut self.0 {
            Transport::Tcp(tcp) => {
                let there = tcp.machine.data_mut(slot).get_mut(offset..).unwrap_or_default();
                copy(there, data)
            }
            Transport::Rdma(rdma) => rdma.copy_from(slot, offset, data),
        }
    }

    /// Puts a command into a reserved slot; [`Queue::flush`] sends it. Command identifier and data pointer of `sqe`
    /// are set by the queue.
    pub fn submit(
        &mut self,
        slot: SlotId,
        sqe: Sqe,
        transfer: Transfer,
    ) -> Result<(), RequestError> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.machine.submit(slot, sqe, transfer),
            Transport::Rdma(rdma) => rdma.submit(slot, sqe, transfer),
        }
    }

    /// The next command that ended. Its slot is the caller's again.
    pub fn next_completion(&mut self) -> Option<Completion> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.machine.next_completion(),
            Transport::Rdma(rdma) => rdma.next_completion(),
        }
    }

    fn take_completion(&mut self, slot: SlotId) -> Option<Completion> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.machine.take_completion(slot),
            Transport::Rdma(rdma) => rdma.take_completion(slot),
        }
    }

    /// Sends what there is to send, as far as the kernel or the device takes it.
    pub fn flush(&mut self) -> Result<(), HostError> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.flush(),
            Transport::Rdma(rdma) => rdma.flush(),
        }
    }

    /// Whether [`Queue::flush`] has left something unsent.
    pub fn wants_to_send(&self) -> bool {
        match &self.0 {
            Transport::Tcp(tcp) => tcp.machine.wants_to_send(),
            Transport::Rdma(rdma) => rdma.wants_to_send(),
        }
    }

    /// Takes in what has arrived. False: nothing has.
    pub fn receive(&mut self) -> Result<bool, HostError> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.receive(),
            Transport::Rdma(rdma) => rdma.receive(),
        }
    }

    /// Sleeps until something arrives, or can be sent if there is something to send, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, HostError> {
        match &mut self.0 {
            Transport::Tcp(tcp) => tcp.wait(timeout),
            Transport::Rdma(rdma) => rdma.wait(timeout),
        }
    }

    /// [`Queue::wait`] for several queues at once.
    pub fn wait_any(queues: &mut [Self], timeout: Duration) -> Result<bool, HostError> {
        if let [queue] = queues {
            return queue.wait(timeout);
        }
        let Some(address) = queues.first().map(Self::peer) else {
            return Ok(false);
        };
        let mut ready = false;
        for queue in &mut *queues {
            if let Transport::Rdma(rdma) = &mut queue.0 {
                ready |= rdma.prepare_to_sleep()?;
            }
        }
        if ready {
            return Ok(true);
        }
        let mut descriptors = Vec::new();
        for queue in &*queues {
            match &queue.0 {
                Transport::Tcp(tcp) => {
                    descriptors.push(tcp.socket.interest(tcp.machine.wants_to_send()));
                }
                Transport::Rdma(rdma) => descriptors.extend(rdma.interests()),
            }
        }
        let woken = sleep(&mut descriptors, timeout)
            .map_err(|source| HostError::Socket { address, source })?;
        let is_ready = |descriptor: PollFd<'_>| !descriptor.revents().is_empty();
        let ready: Vec<bool> = descriptors.into_iter().map(is_ready).collect();
        let mut ready = ready.into_iter();
        for (number, queue) in queues.iter_mut().enumerate() {
            let calls = match &mut queue.0 {
                Transport::Tcp(tcp) => {
                    ready.next();
                    &mut tcp.socket.calls
                }
                Transport::Rdma(rdma) => {
                    let mut next = || ready.next().unwrap_or(false);
                    rdma.woken([next(), next()])?;
                    &mut rdma.calls
                }
            };
            // One call for all of them.
            calls.wait += u64::from(number == 0);
        }
        Ok(woken)
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
            if let Some(completion) = self.take_completion(slot) {
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
