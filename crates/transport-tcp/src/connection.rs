//! One connection: a state machine between bytes and the target, without a socket.
//!
//! ```text
//!             ICReq                 violation, or the target's wish
//!  Negotiating -----> Open ------------------------------------------> Ending ----> Closed
//!       |              |  EOF, socket error, deadline                    ^ | EOF, deadline
//!       +--------------+-------------------------------------------------|-+
//! ```
//!
//! Bytes in: the caller asks for [`Connection::spaces`], puts bytes there, says
//! [`Connection::filled`] and then [`Connection::advance`], which takes PDU after PDU until there
//! is none left, or the target has to act first. Bytes out: the target's actions become entries
//! ([`Connection::receive`], [`Connection::respond`]), and [`Connection::batch`] makes PDUs of them.
//! Between two PDUs a connection is plain data; nothing in it knows what kind of stream carries it.
//!
//! It runs on its reactor's thread alone. Nothing that a peer sends makes it panic, wait without a
//! deadline or grow without a bound: what waits for the target is at most one capsule in the
//! receive buffer and a bounded number set aside (see `parking`), what waits for the peer is one
//! short entry per command that the target has admitted.
//!
//! Rejected: a task per connection (a stack or a future each, and a wake-up per PDU); reading each
//! PDU's header and data by calls of their own (three system calls for a write where one serves
//! several commands).

mod batch;
mod command;
mod data;
mod ending;
mod input;
mod negotiate;
mod output;
mod parking;
mod terminate;
#[cfg(test)]
mod tests;
mod transfers;

use std::net::SocketAddr;
use std::time::Duration;

use memory::Segment;
use memory::vectored::Space;
use nvme::tcp::{CommonHeader, IcReq, Layout, PduType, TermReq, crc32c};
use nvme::{Sqe, Status};
use reactor::Instant;
use target::{Action, CommandRefused, Lease, QueueId, RequestId};
use zerocopy::FromBytes;

use crate::buffers::Buffers;
use crate::config::TcpConfig;
use crate::counters::Counters;

pub(crate) use batch::Batch;
pub use terminate::{Breach, CloseReason};

use command::{Capsule, Stall};
use input::Input;
use negotiate::Terms;
use output::{Entry, NoData, Output};
use parking::Parking;
use terminate::Violation;
use transfers::Transfers;

/// How long a host may leave lent memory to a socket that is full before it is looked whether a write waits for it, and
/// between two looks.
const LOOK_AT_LEASES: Duration = Duration::from_millis(10);
/// The same where nothing was lent at the last look.
const LOOK_FOR_LEASES: Duration = Duration::from_millis(100);

/// What a connection needs of the target: the shard, by the names that the shard uses.
pub(crate) trait Core {
    fn open_queue(&mut self, addresses: &Addresses, in_capsule_limit: u32) -> Option<QueueId>;
    fn command(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        data: u32,
    ) -> Result<RequestId, CommandRefused>;
    fn data_received(&mut self, request: RequestId, result: Result<(), Status>);
    fn response_sent(&mut self, request: RequestId);
    fn close_queue(&mut self, queue: QueueId);
    fn segment(&self, request: RequestId, offset: u32, length: u32) -> Option<Segment>;
    fn give_back(&mut self, request: RequestId) -> Lease;
    fn next_action(&mut self) -> Option<Action>;
}

/// Everything that a connection may use in a turn of its reactor.
#[derive(Debug)]
pub(crate) struct Turn<'a, C> {
    pub(crate) core: &'a mut C,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) command_ids: &'a mut CommandIds,
    pub(crate) config: &'a TcpConfig,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Instant,
}

/// The command identifier of each request of the shard, by its slot: R2Ts carry it.
#[derive(Debug, Default)]
pub(crate) struct CommandIds(Vec<u16>);

impl CommandIds {
    fn set(&mut self, request: RequestId, cid: u16) {
        let slot = usize::try_from(request.slot).unwrap_or(usize::MAX);
        if slot >= self.0.len() {
            // Grows to the number of slots that the shard has, and then never again.
            self.0.resize(slot.saturating_add(1), 0);
        }
        if let Some(entry) = self.0.get_mut(slot) {
            *entry = cid;
        }
    }

    fn get(&self, request: RequestId) -> u16 {
        let slot = usize::try_from(request.slot).unwrap_or(usize::MAX);
        self.0.get(slot).copied().unwrap_or(0)
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

/// How far [`Connection::advance`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// Every whole PDU is taken: more bytes are needed.
    Starved,
    /// The budget is spent; there may be more.
    Spent,
    /// A capsule's data waits for a buffer, which the target may be offering already: look at its
    /// actions, then advance again.
    Offered,
    /// Nothing can be taken before the target acts.
    Stalled,
    /// No more is taken from this peer.
    Ended,
}

#[derive(Debug)]
enum Phase {
    Negotiating {
        deadline: Instant,
    },
    Open,
    /// What is queued goes out; what comes in is thrown away.
    Ending {
        deadline: Instant,
    },
    Closed,
}

/// A connection of a host.
#[derive(Debug)]
pub(crate) struct Connection {
    addresses: Addresses,
    phase: Phase,
    terms: Terms,
    queue: Option<QueueId>,
    input: Input,
    output: Output,
    transfers: Transfers,
    parking: Parking,
    /// The capsule at the front of the receive buffer, if the target has to act before it goes on.
    stalled: Option<(Stall, Capsule)>,
    /// When the PDU that is arriving has to be whole.
    pdu_deadline: Option<Instant>,
    /// No later than the earliest deadline.
    wake_at: Option<Instant>,
    /// Why it ends: the first reason there was.
    reason: Option<CloseReason>,
}

type Step = Result<(), Stop>;

/// Why no further PDU is taken now.
#[derive(Debug)]
enum Stop {
    Starved,
    Offered,
    Stalled,
    Violation(Violation),
    Closed(CloseReason),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Stop {
        Stop::Violation(violation)
    }
}

impl Connection {
    /// A connection that has just been accepted.
    pub(crate) fn new(addresses: Addresses, config: &TcpConfig, now: Instant) -> Connection {
        let deadline = now + config.timeouts.negotiation;
        Connection {
            addresses,
            phase: Phase::Negotiating { deadline },
            terms: Terms::before(config),
            queue: None,
            input: Input::default(),
            output: Output::default(),
            transfers: Transfers::default(),
            parking: Parking::default(),
            stalled: None,
            pdu_deadline: None,
            wake_at: Some(deadline),
            reason: None,
        }
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The target's name for it, from `ICReq` to the end.
    pub(crate) fn queue(&self) -> Option<QueueId> {
        self.queue
    }

    /// Whether bytes that arrive can be put somewhere now.
    pub(crate) fn wants_bytes(&self) -> bool {
        self.stalled.is_none() && !matches!(self.phase, Phase::Closed)
    }

    /// Whether there is something to send.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether all has been said: our half of the stream is to be closed.
    pub(crate) fn has_said_all(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. }) && self.output.is_empty()
    }

    // ---- bytes in ----

    /// Where the next bytes go: some straight into a request's buffer, then the receive buffer.
    pub(crate) fn spaces(&mut self, buffers: &mut Buffers) -> (Option<Space<'_>>, Space<'_>) {
        self.input.spaces(buffers)
    }

    /// `count` bytes were put into the spaces; 0 if there were none to put.
    pub(crate) fn filled(&mut self, count: usize, buffers: &mut Buffers) {
        self.input.filled(count);
        self.input.rest(buffers);
    }

    /// Takes PDUs from what has come, at most `budget` of them, which is lowered.
    pub(crate) fn advance<C: Core>(&mut self, turn: &mut Turn<'_, C>, budget: &mut u32) -> Advance {
        let outcome = loop {
            if self.is_ending() {
                self.input.discard();
                break Advance::Ended;
            }
            if *budget == 0 {
                break Advance::Spent;
            }
            match self.step(turn) {
                Ok(()) => {
                    *budget -= 1;
                    turn.counters.pdus_received.add(1);
                    self.pdu_deadline = None;
                }
                Err(Stop::Starved) => break Advance::Starved,
                Err(Stop::Offered) => {
                    *budget -= 1;
                    break Advance::Offered;
                }
                Err(Stop::Stalled) => break Advance::Stalled,
                Err(Stop::Violation(violation)) => self.terminate(violation, turn),
                Err(Stop::Closed(reason)) => self.end(reason, turn),
            }
        };
        self.input.rest(turn.buffers);
        match outcome {
            // Only while we were reading is the peer the one who is late.
            Advance::Starved if !self.input.at_boundary() => {
                let deadline = turn.now + turn.config.timeouts.pdu;
                self.pdu_deadline.get_or_insert(deadline);
                self.wake_by(deadline);
            }
            _ => self.pdu_deadline = None,
        }
        outcome
    }

    /// Takes one PDU, or says why not.
    fn step<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> Step {
        if self.input.has_data() {
            return self.data(turn);
        }
        if let Some((stall, capsule)) = self.stalled {
            return self.park(stall, capsule, turn);
        }
        let Some(&known) = self.input.bytes().first_chunk() else { return Err(Stop::Starved) };
        if let Some(usual) = &self.terms.usual
            && usual.header == known
        {
            return self.capsule(usual.layout, turn);
        }
        let layout = self.layout(known)?;
        match layout.pdu_type {
            PduType::IcReq => self.negotiate(turn),
            PduType::CapsuleCmd => self.capsule(layout, turn),
            PduType::H2cData => self.data_header(layout, turn),
            // `CommonHeader::check` has let nothing else through that a host may not send.
            _ => self.terminated(),
        }
    }

    /// Checks the common header, and that its PDU may come now.
    fn layout(&self, known: [u8; 8]) -> Result<Layout, Violation> {
        let common: CommonHeader = zerocopy::transmute!(known);
        let negotiating = matches!(self.phase, Phase::Negotiating { .. });
        match (common.kind(), negotiating) {
            (Ok(PduType::IcReq), false) => Err(Violation::new(Breach::NegotiatedTwice, &known)),
            (Ok(PduType::CapsuleCmd | PduType::H2cData), true) => {
                Err(Violation::new(Breach::NotNegotiated, &known))
            }
            _ => common.check(&self.terms.rules).map_err(|error| Violation::header(error, common)),
        }
    }

    /// The first `length` bytes of the PDU, with the header digest checked.
    fn head(&self, layout: &Layout, length: u32) -> Result<&[u8], Stop> {
        let head = self.input.bytes().get(..to_usize(length)).ok_or(Stop::Starved)?;
        if layout.header_digest {
            let (header, rest) =
                head.split_at_checked(to_usize(layout.header_length)).ok_or(Stop::Starved)?;
            let digest = read_digest(rest).ok_or(Stop::Starved)?;
            if crc32c(header) != digest {
                return Err(Violation::digest(digest, header).into());
            }
        }
        Ok(head)
    }

    fn negotiate<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> Step {
        let Ok((request, _)) = IcReq::ref_from_prefix(self.input.bytes()) else {
            return Err(Stop::Starved);
        };
        self.terms = Terms::agree(turn.config, request)?;
        self.input.consume(size_of::<IcReq>());
        self.queue = turn.core.open_queue(&self.addresses, turn.config.in_capsule_data);
        if self.queue.is_none() {
            return Err(Stop::Closed(CloseReason::NoQueue));
        }
        self.output.push(Entry::Agreement);
        self.phase = Phase::Open;
        Ok(())
    }

    fn terminated(&mut self) -> Step {
        let Ok((request, _)) = TermReq::ref_from_prefix(self.input.bytes()) else {
            return Err(Stop::Starved);
        };
        Err(Stop::Closed(CloseReason::TerminatedByPeer(request.status())))
    }

    /// Carries out what the target asks for.
    pub(crate) fn act<C: Core>(&mut self, action: Action, turn: &mut Turn<'_, C>) {
        match action {
            Action::Receive { request, length, in_capsule: true, .. } => {
                self.deliver(request, length, turn);
            }
            Action::Receive { request, length, in_capsule: false, .. } => {
                self.ask(request, length, turn);
            }
            Action::Respond { request, cqe, data, flow_control, .. } => {
                self.respond(request, cqe, data, flow_control, turn);
            }
            Action::Resume { .. } => self.resume(turn),
            Action::Disconnect { reason, .. } => {
                self.wind_up(CloseReason::ByTarget(reason), turn);
            }
        }
    }

    // ---- bytes out ----

    /// The batch to send now. `None`: there is nothing to send.
    pub(crate) fn batch<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> Option<&Batch> {
        let fresh = self.output.current().is_none();
        if let Err(NoData) = self.output.batch(&self.terms, turn).map(|_| ()) {
            self.end(CloseReason::Inconsistent("a response without its data"), turn);
            return None;
        }
        if fresh && self.output.current().is_some() {
            self.wake_by(turn.now + turn.config.timeouts.send);
        }
        self.output.current()
    }

    /// The socket has taken `count` bytes of the batch.
    pub(crate) fn sent<C: Core>(&mut self, count: usize, turn: &mut Turn<'_, C>) {
        self.output.sent(count, self.queue.is_some(), turn);
        if self.has_said_all() {
            self.said_all(turn);
        }
    }

    /// The socket takes no more now: looks after a while whether somebody waits for what was lent.
    pub(crate) fn blocked<C: Core>(&mut self, turn: &Turn<'_, C>) {
        self.wake_by(turn.now + LOOK_AT_LEASES);
    }
}

/// The first four bytes as a digest.
fn read_digest(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_le_bytes)
}

/// What the target is told about data that has come.
fn verdict(damaged: bool) -> Result<(), Status> {
    if damaged { Err(Status::TRANSIENT_TRANSPORT_ERROR) } else { Ok(()) }
}

/// Lengths on the wire are 32 bits; no machine that this runs on has fewer.
fn to_usize(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
