//! Capsules: what arrives, and how the target is told.

use target::{CommandRefused, RequestId};
use verbs::Completion;

use super::{CloseReason, Fetch, Held, Session, Turn};
use crate::command::Capsule;
use crate::descriptor::{self, Data};
use crate::receives::SQE_BYTES;

impl Session {
    /// A receive of this queue pair has ended, and its memory is ours.
    pub(crate) fn received(&mut self, completion: &Completion, tag: u32, turn: &mut Turn<'_>) {
        if !self.is_open() {
            return self.give_up(tag, turn);
        }
        if completion.status() != verbs::Status::SUCCESS {
            self.give_up(tag, turn);
            return self.failed(completion.status(), turn);
        }
        if self.is_ending() {
            return self.release(tag, turn);
        }
        let length = completion.byte_len();
        turn.lane.counters.commands.add(1);
        let data = usize::try_from(length).ok().and_then(|length| length.checked_sub(SQE_BYTES));
        let Some(data) = data else {
            self.give_up(tag, turn);
            return self.close(CloseReason::ShortCapsule(length), turn);
        };
        turn.lane.counters.bytes_received.add_len(data);
        if self.accepted + self.held.len() >= self.commands && !self.has_entries(turn) {
            self.give_up(tag, turn);
            return self.close(CloseReason::TooManyCommands, turn);
        }
        let Some(receives) = Session::receives(&mut self.own, turn.lane) else { return };
        receives.hold(tag, self.index);
        let Some(sqe) = receives.sqe(tag) else { return };
        let arrived = Held { sqe, capsule: Some(Capsule { tag, length: data }) };
        if !self.held.is_empty() || !self.offer(arrived, turn) {
            turn.lane.counters.commands_held.add(1);
            self.hold(arrived, turn);
        }
    }

    /// Whether another command fits the queue after all, which may have been connected since that was looked up.
    fn has_entries(&mut self, turn: &Turn<'_>) -> bool {
        let entries = self.queue.and_then(|queue| turn.shard.entries_of(queue));
        self.commands = entries.map_or(0, usize::from).min(self.commands_most);
        self.accepted + self.held.len() < self.commands
    }

    /// Keeps a command that the target has no room for. What is not needed of its capsule is given back: however many
    /// commands a host sends too early, they do not keep the receives that it shares with others.
    fn hold(&mut self, mut held: Held, turn: &mut Turn<'_>) {
        if let Some(capsule) = held.capsule.take_if(|capsule| capsule.length == 0) {
            self.release(capsule.tag, turn);
        }
        self.held.push_back(held);
    }

    /// Offers a command to the target; false if it has no room.
    fn offer(&mut self, held: Held, turn: &mut Turn<'_>) -> bool {
        let Some(queue) = self.queue else { return true };
        let Held { sqe, capsule } = held;
        let resolved = match capsule {
            None => Some(descriptor::resolve(&sqe, &[])),
            Some(Capsule { tag, length }) => {
                let receives = Session::receives(&mut self.own, turn.lane);
                receives.and_then(|receives| {
                    receives.view(tag, length, |bytes| descriptor::resolve(&sqe, bytes))
                })
            }
        };
        let Some(resolved) = resolved else { return true };
        let (taken, data) = match resolved {
            Ok(resolved) => {
                let taken = turn.shard.command(queue, &resolved.sqe, resolved.in_capsule);
                (taken, resolved.data)
            }
            Err(status) => (turn.shard.malformed_command(queue, &sqe, status), Data::None),
        };
        match taken {
            Ok(request) => {
                self.accepted += 1;
                let needed = matches!(data, Data::InCapsule { .. } | Data::List { .. });
                let (kept, done) = if needed { (capsule, None) } else { (None, capsule) };
                turn.lane.counters.in_capsule.add(matches!(data, Data::InCapsule { .. }).into());
                turn.commands.insert(request, self.index, kept, data);
                if let Some(capsule) = done {
                    self.release(capsule.tag, turn);
                }
                true
            }
            Err(CommandRefused::Busy) => {
                self.stalled = true;
                false
            }
            Err(CommandRefused::Closed) => {
                if let Some(capsule) = capsule {
                    self.release(capsule.tag, turn);
                }
                true
            }
        }
    }

    /// The target has room again.
    pub(crate) fn resume(&mut self, turn: &mut Turn<'_>) {
        self.stalled = false;
        while self.is_open()
            && !self.stalled
            && let Some(&held) = self.held.front()
        {
            if self.offer(held, turn) {
                self.held.pop_front();
            }
        }
    }

    /// The target wants the data of a command.
    pub(crate) fn receive(
        &mut self,
        request: RequestId,
        length: u32,
        in_capsule: bool,
        turn: &mut Turn<'_>,
    ) {
        if !self.is_open() {
            return;
        }
        if in_capsule {
            self.bring_capsule(request, length, turn);
        } else {
            self.fetches.push_back(Fetch { request, length, asked: 0, waited: false });
            self.dirty = true;
        }
    }

    /// The data in a capsule becomes the command's.
    fn bring_capsule(&mut self, request: RequestId, length: u32, turn: &mut Turn<'_>) {
        let Some(command) = turn.commands.get(request) else { return };
        let (Some(capsule), Data::InCapsule { offset }) = (command.capsule.take(), command.data)
        else {
            return self.close(CloseReason::NoData, turn);
        };
        let tag = capsule.tag;
        let Some(receives) = Session::receives(&mut self.own, turn.lane) else { return };
        let mut brought = false;
        if offset == 0
            && let Some(buffer) = receives.take_buffer(tag)
        {
            let exchanged = turn.shard.exchange(request, buffer);
            brought = exchanged.is_ok();
            let (Ok(buffer) | Err(buffer)) = exchanged;
            receives.put_buffer(tag, buffer);
        }
        if !brought && let Some(into) = turn.shard.segment(request, 0, length) {
            let wanted = usize::try_from(length).unwrap_or(usize::MAX);
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            let copied = receives.view(tag, capsule.length, |bytes| {
                let end = offset.saturating_add(wanted);
                bytes.get(offset..end).map_or(0, |bytes| into.copy_from(0, bytes))
            });
            turn.lane.counters.bytes_copied.add(length.into());
            brought = copied == Some(wanted);
        }
        self.release(tag, turn);
        if brought {
            turn.shard.data_received(request, Ok(()));
        } else {
            self.close(CloseReason::NoData, turn);
        }
    }

    /// An RDMA read for the command with this place has brought its data.
    pub(super) fn read_ended(&mut self, slot: u32, turn: &mut Turn<'_>) {
        self.reads = self.reads.saturating_sub(1);
        let Some(request) = turn.commands.request(slot, self.index) else { return };
        let Some(command) = turn.commands.get(request) else { return };
        command.reads = command.reads.saturating_sub(1);
        if command.reads == 0 && command.asked_for_all {
            command.asked_for_all = false;
            turn.shard.data_received(request, Ok(()));
        }
    }
}
