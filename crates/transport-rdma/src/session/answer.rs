//! What is posted at the end of a turn: RDMA reads that fetch data, RDMA writes that bring it, and responses.

use memory::{Buffer, Pool, Segment};
use nvme::Cqe;
use target::RequestId;
use verbs::{Flags, VerbsError, Work, WorkQueue};
use zerocopy::IntoBytes;

use super::{Answer, CloseReason, Purpose, Session, Turn};
use crate::command::Capsule;
use crate::descriptor::Data;

/// Bytes of a response.
const CQE_BYTES: usize = size_of::<Cqe>();

/// Room for responses where a device takes nothing inline: one place for each send that may be out, used in turn.
#[derive(Debug)]
pub(super) struct ResponseRoom {
    memory: Buffer,
    next: usize,
}

impl ResponseRoom {
    /// None if the device takes responses inline.
    pub(super) fn needed(
        work: &WorkQueue,
        pool: &Pool,
    ) -> Result<Option<ResponseRoom>, VerbsError> {
        let capacity = work.pair().capacity();
        if usize::try_from(capacity.inline).is_ok_and(|inline| inline >= CQE_BYTES) {
            return Ok(None);
        }
        let sends = usize::try_from(capacity.sends).unwrap_or(usize::MAX);
        let memory = pool.take(sends.saturating_mul(CQE_BYTES));
        let memory = memory.ok_or(VerbsError::Misuse("there is no memory for its responses"))?;
        Ok(Some(ResponseRoom { memory, next: 0 }))
    }

    /// No more are out than there are places, so the next one is free. It stays the next one until it is
    /// [taken](ResponseRoom::take).
    fn put(&mut self, cqe: &Cqe) -> Option<Segment> {
        if self.next + CQE_BYTES > self.memory.len() {
            self.next = 0;
        }
        let place = self.memory.segment(self.next, CQE_BYTES)?;
        (place.copy_from(0, cqe.as_bytes()) == CQE_BYTES).then_some(place)
    }

    fn take(&mut self) {
        self.next += CQE_BYTES;
    }
}

/// Why nothing more is posted now.
enum Stop {
    /// There is no more room.
    Full,
    Broken(CloseReason),
}

impl Session {
    /// The target answers a command.
    pub(crate) fn respond(&mut self, request: RequestId, cqe: Cqe, data: u32) {
        if self.is_open() {
            self.answers.push_back(Answer { request, cqe, data, written: 0 });
            self.dirty = true;
        }
    }

    /// Posts what the turn has brought, as far as there is room.
    pub(crate) fn flush(&mut self, turn: &mut Turn<'_>) {
        if self.is_open() {
            self.flush_sends(turn);
        }
        if self.is_open()
            && let Err(error) = self.flush_receives()
        {
            self.close(CloseReason::Device(error.to_string()), turn);
        }
        self.dirty = false;
    }

    pub(super) fn flush_receives(&mut self) -> Result<(), VerbsError> {
        if self.own.is_some() { self.work.flush_receives() } else { Ok(()) }
    }

    /// All in one post: the chain has room for whatever the queue pair has. The rest goes when work has ended.
    fn flush_sends(&mut self, turn: &mut Turn<'_>) {
        let filled = self.fill(turn);
        let posted = self.post(turn);
        let stop = posted.map_err(Stop::Broken).and(filled);
        if let Err(Stop::Broken(reason)) = stop {
            self.close(reason, turn);
        }
    }

    fn post(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        if turn.chain.is_empty() {
            return Ok(());
        }
        if self.work.outstanding() == 0 {
            self.progress = turn.now;
        }
        turn.lane.counters.posts.add(1);
        // First what a host may use that has its answer.
        let posted = self.flush_receives().and_then(|()| self.work.post(turn.chain));
        turn.chain.clear();
        posted.map_err(|error| CloseReason::Device(error.to_string()))
    }

    fn fill(&mut self, turn: &mut Turn<'_>) -> Result<(), Stop> {
        self.fill_reads(turn)?;
        while let Some(answer) = self.answers.front().copied() {
            self.fill_answer(answer, turn)?;
            self.answers.pop_front();
        }
        Ok(())
    }

    fn has_room(&self, turn: &Turn<'_>) -> Result<(), Stop> {
        if turn.chain.len() < self.work.room() { Ok(()) } else { Err(Stop::Full) }
    }

    /// Fetches data, as many pieces at a time as the host answers.
    fn fill_reads(&mut self, turn: &mut Turn<'_>) -> Result<(), Stop> {
        while let Some(fetch) = self.fetches.front_mut() {
            if self.reads >= self.reads_most {
                let waits = !std::mem::replace(&mut fetch.waited, true);
                turn.lane.counters.reads_delayed.add(waits.into());
                return Ok(());
            }
            let fetch = *fetch;
            self.has_room(turn)?;
            let piece = self.piece(fetch.request, fetch.asked, fetch.length, turn);
            let Some((remote, segment)) = piece else {
                return Err(Stop::Broken(CloseReason::NoData));
            };
            let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
            let tag = Purpose::Read.tag(fetch.request);
            push(turn, Work::Read(remote), Flags::SIGNALED, tag, segment)?;
            turn.lane.counters.reads.add(1);
            turn.lane.counters.bytes_received.add(length.into());
            self.reads += 1;
            let asked = fetch.asked.saturating_add(length);
            let all = asked >= fetch.length;
            if let Some(command) = turn.commands.get(fetch.request) {
                command.reads += 1;
                command.asked_for_all = all;
            }
            if all {
                self.fetches.pop_front();
            } else if let Some(front) = self.fetches.front_mut() {
                front.asked = asked;
            }
        }
        Ok(())
    }

    /// The data of an answer, then the response.
    fn fill_answer(&mut self, answer: Answer, turn: &mut Turn<'_>) -> Result<(), Stop> {
        let mut written = answer.written;
        while written < answer.data {
            self.has_room(turn)?;
            let piece = self.piece(answer.request, written, answer.data, turn);
            let Some((remote, segment)) = piece else {
                return Err(Stop::Broken(CloseReason::NoData));
            };
            let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
            let tag = Purpose::Write.tag(answer.request);
            // The response tells of it, unless that has to wait for the place that this takes.
            let last = turn.chain.len() + 1 >= self.work.room();
            let flags = if last { Flags::SIGNALED } else { Flags::empty() };
            push(turn, Work::Write(remote), flags, tag, segment)?;
            turn.lane.counters.writes.add(1);
            turn.lane.counters.bytes_sent.add(length.into());
            written = written.saturating_add(length);
            if let Some(front) = self.answers.front_mut() {
                front.written = written;
            }
        }
        self.has_room(turn)?;
        let work = match self.key_to_invalidate(answer.request, turn) {
            Some(key) => Work::SendWithInvalidate(key),
            None => Work::Send,
        };
        let tag = Purpose::Response.tag(answer.request);
        match &mut self.responses {
            None => turn
                .chain
                .push_inline(work, Flags::SIGNALED, tag, answer.cqe.as_bytes())
                .map_err(refused)?,
            Some(room) => {
                let place = room.put(&answer.cqe);
                let place = place.ok_or(Stop::Broken(CloseReason::NoData))?;
                push(turn, work, Flags::SIGNALED, tag, place)?;
                room.take();
            }
        }
        turn.lane.counters.responses.add(1);
        turn.lane.counters.invalidations.add(matches!(work, Work::SendWithInvalidate(_)).into());
        self.accepted = self.accepted.saturating_sub(1);
        self.let_go(answer.request, turn);
        Ok(())
    }

    /// The next piece of a command's data: the host's memory, and as much of ours as lies together on both sides.
    fn piece(
        &mut self,
        request: RequestId,
        offset: u32,
        length: u32,
        turn: &mut Turn<'_>,
    ) -> Option<(verbs::Remote, Segment)> {
        let command = turn.commands.get(request)?;
        let (data, capsule) = (command.data, command.capsule);
        let (remote, there) =
            self.described(data, capsule, turn, |data, bytes| data.remote(bytes, offset))?;
        let length = length.checked_sub(offset)?.min(there).min(turn.lane.max_message);
        Some((remote, Session::segment(turn, request, offset, length)?))
    }

    /// Looks at descriptors, with the capsule that they may lie in.
    fn described<R>(
        &mut self,
        data: Data,
        capsule: Option<Capsule>,
        turn: &mut Turn<'_>,
        look: impl FnOnce(&Data, &[u8]) -> Option<R>,
    ) -> Option<R> {
        match (data, capsule) {
            (Data::List { .. }, Some(Capsule { tag, length })) => {
                let receives = Session::receives(&mut self.own, turn.lane)?;
                receives.view(tag, length, |bytes| look(&data, bytes))?
            }
            _ => look(&data, &[]),
        }
    }

    fn key_to_invalidate(&mut self, request: RequestId, turn: &mut Turn<'_>) -> Option<u32> {
        if !turn.lane.invalidates {
            return None;
        }
        let command = turn.commands.get(request)?;
        let (data, capsule) = (command.data, command.capsule);
        self.described(data, capsule, turn, Data::invalidate)
    }

    /// The response is made: nothing in the command's capsule is needed any more.
    fn let_go(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        let capsule = turn.commands.get(request).and_then(|command| command.capsule.take());
        if let Some(capsule) = capsule {
            self.release(capsule.tag, turn);
        }
    }
}

fn push(
    turn: &mut Turn<'_>,
    work: Work,
    flags: Flags,
    tag: u32,
    segment: Segment,
) -> Result<(), Stop> {
    turn.chain.push(work, flags, tag, &turn.lane.memory, [segment]).map_err(refused)
}

fn refused(error: VerbsError) -> Stop {
    match error {
        VerbsError::Full { .. } => Stop::Full,
        error => Stop::Broken(CloseReason::Device(error.to_string())),
    }
}
