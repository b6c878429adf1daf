//! Command capsules: from the receive buffer to the target, and what the target says to them.
//!
//! A capsule is taken whole: its data, at most a few KiB, waits in the receive buffer until the
//! request has a buffer to copy it to. Meanwhile nothing behind it is taken, unless it is set aside
//! (see `parking`).

use nvme::Cqe;
use nvme::tcp::{CapsuleCmd, Layout, crc32c};
use target::{CommandRefused, RequestId};
use zerocopy::FromBytes;

use super::output::Entry;
use super::parking::Parked;
use super::terminate::CloseReason;
use super::{Connection, Core, Step, Stop, Turn, read_digest, to_usize, verdict};

/// Why the capsule at the front of the receive buffer stays there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// The target has taken the command and owes a buffer for its data.
    Buffer(RequestId),
    /// The target has no room for the command.
    Refused,
}

/// A capsule at the front of the receive buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capsule {
    layout: Layout,
    /// The data digest is wrong.
    damaged: bool,
}

impl Connection {
    /// Takes a capsule that has come whole.
    pub(super) fn capsule<C: Core>(&mut self, layout: Layout, turn: &mut Turn<'_, C>) -> Step {
        // Its header is checked before its data is there: garbage is not waited for.
        let head = self.head(&layout, layout.data_offset)?;
        if self.input.bytes().len() < to_usize(layout.length) {
            return Err(Stop::Starved);
        }
        let damaged = layout.data_digest && !self.capsule_data_is_intact(&layout);
        if damaged {
            turn.counters.data_digest_errors.add(1);
        }
        let capsule = Capsule { layout, damaged };
        if self.parking.has_refused() {
            return self.park(Stall::Refused, capsule, turn);
        }
        let Some(queue) = self.queue else {
            let what = "an open connection without a queue";
            return Err(Stop::Closed(CloseReason::Inconsistent(what)));
        };
        let Ok((pdu, _)) = CapsuleCmd::ref_from_prefix(head) else { return Err(Stop::Starved) };
        match turn.core.command(queue, &pdu.sqe, layout.data_length) {
            Ok(request) => {
                turn.counters.commands.add(1);
                turn.command_ids.set(request, pdu.sqe.cid.get());
                if layout.data_length > 0 {
                    self.stalled = Some((Stall::Buffer(request), capsule));
                    return Err(Stop::Offered);
                }
                self.input.consume(to_usize(layout.length));
                Ok(())
            }
            Err(CommandRefused::Busy) => {
                turn.counters.commands_held.add(1);
                self.stalled = Some((Stall::Refused, capsule));
                Err(Stop::Offered)
            }
            Err(CommandRefused::Closed) => {
                // The reason comes, or came, as an action of its own.
                self.input.consume(to_usize(layout.length));
                Ok(())
            }
        }
    }

    /// Sets the capsule at the front aside if the host owes data behind it, else waits.
    pub(super) fn park<C: Core>(
        &mut self,
        stall: Stall,
        capsule: Capsule,
        turn: &mut Turn<'_, C>,
    ) -> Step {
        if self.transfers.is_empty() || self.parking.len() >= turn.config.parked_capsules {
            self.stalled = Some((stall, capsule));
            return Err(Stop::Stalled);
        }
        let request = match stall {
            Stall::Buffer(request) => Some(request),
            Stall::Refused => None,
        };
        let Capsule { layout, damaged } = capsule;
        let Ok((pdu, _)) = CapsuleCmd::ref_from_prefix(self.input.bytes()) else {
            return Err(Stop::Starved);
        };
        let data = self.capsule_data(&layout).into();
        self.parking.push(Parked { sqe: pdu.sqe, request, data, damaged });
        turn.counters.capsules_parked.add(1);
        self.stalled = None;
        self.input.consume(to_usize(layout.length));
        Ok(())
    }

    /// The data of the capsule at the front.
    fn capsule_data(&self, layout: &Layout) -> &[u8] {
        let start = to_usize(layout.data_offset);
        let end = start.saturating_add(to_usize(layout.data_length));
        self.input.bytes().get(start..end).unwrap_or(&[])
    }

    fn capsule_data_is_intact(&self, layout: &Layout) -> bool {
        let end = layout.data_offset.saturating_add(layout.data_length);
        let digest = self.input.bytes().get(to_usize(end)..).and_then(read_digest);
        digest == Some(crc32c(self.capsule_data(layout)))
    }

    /// The target has room again: what it refused is offered once more, in order.
    pub(super) fn resume<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        let Some(queue) = self.queue else { return };
        while let Some((index, capsule)) = self.parking.first_refused() {
            let data = u32::try_from(capsule.data.len()).unwrap_or(u32::MAX);
            let sqe = capsule.sqe;
            let Ok(request) = turn.core.command(queue, &sqe, data) else { return };
            turn.counters.commands.add(1);
            turn.command_ids.set(request, sqe.cid.get());
            self.parking.taken(index, request);
        }
        if let Some((Stall::Refused, _)) = self.stalled {
            self.stalled = None;
        }
    }

    /// Copies a capsule's data to where it belongs: the one copy of in-capsule data.
    pub(super) fn deliver<C: Core>(
        &mut self,
        request: RequestId,
        length: u32,
        turn: &mut Turn<'_, C>,
    ) {
        let parked;
        let mut consumed = 0;
        let (data, damaged) = match self.stalled {
            Some((Stall::Buffer(waiting), capsule)) if waiting == request => {
                self.stalled = None;
                consumed = to_usize(capsule.layout.length);
                (self.capsule_data(&capsule.layout), capsule.damaged)
            }
            _ => match self.parking.remove(request) {
                Some(capsule) => {
                    parked = capsule;
                    (&*parked.data, parked.damaged)
                }
                None => return,
            },
        };
        let segment = turn.core.segment(request, 0, length);
        let copied = segment.map_or(0, |segment| segment.copy_from(0, data));
        turn.counters.bytes_copied.add_len(copied);
        let whole = copied == to_usize(length);
        self.input.consume(consumed);
        if consumed > 0 {
            turn.counters.pdus_received.add(1);
        }
        turn.core.data_received(request, verdict(damaged || !whole));
    }

    /// The answer to a command: `data` bytes of its buffer, then `cqe`.
    pub(super) fn respond<C: Core>(
        &mut self,
        request: RequestId,
        cqe: Cqe,
        data: u32,
        flow_control: bool,
        turn: &mut Turn<'_, C>,
    ) {
        if self.is_ending() {
            return;
        }
        self.disown(request, !cqe.status().is_success(), turn);
        self.output.push(Entry::Response { request, cqe, data, sent: 0, flow_control });
    }

    /// The data of `request`, if it has not been asked for or (when it failed) has not all come,
    /// goes nowhere.
    fn disown<C: Core>(&mut self, request: RequestId, failed: bool, turn: &mut Turn<'_, C>) {
        if let Some((Stall::Buffer(waiting), capsule)) = self.stalled
            && waiting == request
        {
            self.stalled = None;
            self.input.consume(to_usize(capsule.layout.length));
            turn.counters.pdus_received.add(1);
            return;
        }
        if self.parking.len() > 0 {
            self.parking.remove(request);
        }
        if failed {
            self.transfers.forget(request);
        }
    }
}
