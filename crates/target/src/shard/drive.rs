//! I/O commands: what they ask of the namespace's block queue, and what becomes of it.
//!
//! A request has up to sixteen block operations out at a time and goes on as they come
//! back: ranges of a Dataset Management command, namespaces of a Flush of all, a flush before a forced
//! read. The first failure is the command's; what has not been submitted by then is not.

use block::{Completion, Data, ErrorKind, Kind, Operation};
use nvme::{NSID_ALL, Sqe, Status};

use super::Shard;
use super::backend::{Backend, Entry};
use super::controller::Kind as ControllerKind;
use super::intake::{Classified, Outcome};
use super::outstanding::Started;
use super::queue::{Queue, Role};
use super::request::{self, Stage, Task};
use super::sgl::Transfer;
use super::table::Key;
use crate::configuration::View;
use crate::io::{self, Ranges, Work};
use crate::{Instant, RequestId, block_status};

/// Most bytes of a list of ranges: 256 of 16 bytes. Linux describes as many however few it uses.
const RANGE_LIST_MOST: u32 = 4096;

/// What a request has to do next.
enum Next {
    Submit(Step),
    /// Nothing now: wait for what is out.
    Wait,
    /// Nothing any more.
    Done,
    Stop(Stop),
}

/// Why a request cannot go on.
enum Stop {
    Fail(Status),
    /// This backend is paused.
    Paused(Key),
}

/// One operation for a backend.
struct Step {
    backend: Key,
    kind: Kind,
    lba: u64,
    blocks: u64,
    fua: bool,
    data: Data,
}

impl Step {
    fn flush(backend: Key) -> Next {
        let data = Data::none();
        Next::Submit(Self { backend, kind: Kind::Flush, lba: 0, blocks: 0, fua: false, data })
    }
}

fn fail(status: Status) -> Next {
    Next::Stop(Stop::Fail(status))
}

/// What is left when nothing more is to be submitted.
fn rest(out: bool) -> Next {
    if out { Next::Wait } else { Next::Done }
}

/// Counts an operation of the backend's device that has come back.
fn count(backend: &Backend, started: Started, result: Result<(), ErrorKind>, now: Instant) {
    let Started { at, class, blocks } = started;
    match result {
        Ok(()) => {
            let bytes = u64::from(blocks) << backend.bounds.block_shift;
            let nanos = now.as_nanos().saturating_sub(at.as_nanos());
            backend.counters.succeeded(class, bytes, nanos);
        }
        Err(kind) => backend.counters.failed(kind),
    }
}

impl Shard {
    /// Why a command of this queue to this namespace is refused, whatever its device; None: it may be carried out.
    fn refusal(&self, entry: &Entry, queue: &Queue, nsid: u32) -> Option<Status> {
        entry.refusal(nsid, |subsystem| {
            let host = self.hosts.name(queue.host)?;
            Some(View { subsystem, host, listener: queue.listener })
        })
    }

    pub(super) fn classify_io(&self, subsystem: Key, queue: &Queue, sqe: &Sqe) -> Classified {
        let Some(entry) = self.subsystems.get(subsystem) else {
            return Err(Status::INVALID_NAMESPACE.with_dnr().into());
        };
        let nsid = sqe.nsid.get();
        if nsid == NSID_ALL && sqe.opcode == nvme::io::Opcode::Flush.code() {
            if sqe.fuse() != nvme::command::Fuse::Normal {
                return Err(Status::INVALID_FIELD.with_dnr().into());
            }
            return Ok((Task::FlushAll { next: 1 }, Transfer::None));
        }
        if let Some(status) = self.refusal(entry, queue, nsid) {
            return Err(status.into());
        }
        let Some(backend) = entry.backend(nsid).and_then(|key| self.subsystems.backends.get(key))
        else {
            // Known but without a device yet: its own status says whether to try again.
            return Err(
                match entry.subsystem().namespace(nsid).map(|namespace| namespace.ready()) {
                    Some(Err(status)) => status.into(),
                    Some(Ok(_)) => Status::NAMESPACE_NOT_READY.into(),
                    None => Status::INVALID_NAMESPACE.with_dnr().into(),
                },
            );
        };
        backend.check()?;
        match io::parse(sqe, &backend.bounds, queue.share.write_through())? {
            Work::Nothing => Err(Outcome::SUCCESS),
            Work::Deallocate { length } => Ok((
                Task::Deallocate { length, next: 0 },
                Transfer::FromHost { least: length, most: RANGE_LIST_MOST },
            )),
            Work::Operation(operation) => {
                let transfer = match operation.direction {
                    nvme::command::Direction::HostToController => {
                        Transfer::from_host(operation.length)
                    }
                    nvme::command::Direction::ControllerToHost => {
                        Transfer::ToHostExactly { length: operation.length }
                    }
                    _ => Transfer::None,
                };
                Ok((Task::Operation(operation), transfer))
            }
        }
    }

    /// Begins, or goes on with, an I/O command whose buffer and data are there.
    pub(super) fn drive(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if request.stage != Stage::Device {
            let queue = request.queue;
            request.stage = Stage::Device;
            request.since = self.now;
            request.backend = None;
            if let Task::Operation(operation) = request.task {
                request.flush_first = operation.flush_first;
            }
            if let Some(queue) = self.queues.get_mut(queue) {
                queue.in_device += 1;
            }
        }
        self.go_on(id);
    }

    /// Submits what can be submitted; ends the command when nothing is left.
    pub(super) fn go_on(&mut self, id: RequestId) {
        loop {
            match self.next_operation(id) {
                Next::Submit(step) => self.submit(id, step),
                Next::Wait => return,
                Next::Done => return self.finish(id),
                Next::Stop(Stop::Paused(backend)) => return self.hold(id, backend),
                Next::Stop(Stop::Fail(status)) => {
                    let Some(request) = self.requests.get_mut(id) else { return };
                    request.failure.get_or_insert(status);
                }
            }
        }
    }

    fn next_operation(&mut self, id: RequestId) -> Next {
        let Some(request) = self.requests.get(id) else { return Next::Wait };
        let out = request.parts != 0;
        if request.failure.is_some() || request.give_up.is_some() {
            return rest(out);
        }
        if !request.has_free_part() {
            return Next::Wait;
        }
        match request.task {
            Task::Operation(operation) => self.next_single(id, operation, out),
            Task::Deallocate { length, next } => self.next_range(id, length, next, out),
            Task::FlushAll { next } => self.next_flush(id, next, out),
            _ => rest(out),
        }
    }

    /// The backend that a command names, if it can be used now.
    fn usable(&self, id: RequestId) -> Result<Key, Stop> {
        let lost = Stop::Fail(Status::INVALID_NAMESPACE.with_dnr());
        let request = self.requests.get(id);
        let queue = request.and_then(|request| self.queues.get(request.queue));
        let (Some(request), Some(queue)) = (request, queue) else { return Err(lost) };
        let Role::Io { subsystem, .. } = queue.role else { return Err(lost) };
        let Some(entry) = self.subsystems.get(subsystem) else { return Err(lost) };
        let nsid = request.sqe.nsid.get();
        // Once more: what may be done may have changed while the command waited for memory, data or a pause's end.
        if let Some(status) = self.refusal(entry, queue, nsid) {
            return Err(Stop::Fail(status));
        }
        let key = entry.backend(nsid);
        let backend = key.and_then(|key| Some((key, self.subsystems.backends.get(key)?)));
        let Some((key, backend)) = backend else { return Err(lost) };
        backend.check().map_err(Stop::Fail)?;
        if backend.is_paused() { Err(Stop::Paused(key)) } else { Ok(key) }
    }

    fn next_single(&mut self, id: RequestId, operation: io::Request, out: bool) -> Next {
        if out {
            // The flush that goes first.
            return Next::Wait;
        }
        let backend = match self.usable(id) {
            Ok(backend) => backend,
            Err(stop) => return Next::Stop(stop),
        };
        // The range was good when the command arrived; the device may have shrunk since.
        let blocks = u64::from(operation.blocks);
        let inside = self.subsystems.backends.get(backend).is_some_and(|backend| {
            operation.lba.checked_add(blocks).is_some_and(|end| end <= backend.bounds.blocks)
        });
        if !inside {
            return fail(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        let Some(request) = self.requests.get_mut(id) else { return Next::Wait };
        if request.flush_first {
            request.flush_first = false;
            return Step::flush(backend);
        }
        let length = usize::try_from(request.length).unwrap_or(usize::MAX);
        let data = match &request.buffer {
            Some(buffer) => match buffer.segment(0, length) {
                Some(segment) => Data::from(segment),
                None => return fail(Status::INTERNAL_ERROR),
            },
            None if request.borrows => Data::lent(),
            None => Data::none(),
        };
        if !data.is_lent() {
            // Otherwise it may have to be done anew.
            request.task = Task::None;
        }
        let io::Request { kind, lba, fua, .. } = operation;
        Next::Submit(Step { backend, kind, lba, blocks, fua, data })
    }

    fn next_range(&mut self, id: RequestId, length: u32, next: u32, out: bool) -> Next {
        let backend = match self.usable(id) {
            Ok(backend) => backend,
            // What is out comes back before a pause is honoured.
            Err(Stop::Paused(_)) if out => return Next::Wait,
            Err(stop) => return Next::Stop(stop),
        };
        let bounds = self.subsystems.backends.get(backend).map(|backend| backend.bounds);
        let request = self.requests.get_mut(id);
        let (Some(bounds), Some(request)) = (bounds, request) else { return Next::Wait };
        let (length, at) = (usize::try_from(length), usize::try_from(next));
        let (Ok(length), Ok(at)) = (length, at) else { return Next::Wait };
        let list = request.buffer.as_ref().and_then(|buffer| buffer.segment(0, length));
        // Checked as a whole before the first is carried out, and never looked at unchecked later: the
        // device may have shrunk in between.
        let range = list.and_then(|list| {
            list.view(|list| Ranges::parse(list, &bounds).map(|ranges| ranges.iter().nth(at)))
        });
        match range {
            Some(Ok(Some(range))) => {
                if let Task::Deallocate { next, .. } = &mut request.task {
                    *next += 1;
                }
                Next::Submit(Step {
                    backend,
                    kind: Kind::Deallocate,
                    lba: range.slba,
                    blocks: range.blocks.into(),
                    fua: false,
                    data: Data::none(),
                })
            }
            Some(Ok(None)) => rest(out),
            Some(Err(status)) => fail(status),
            None => fail(Status::INTERNAL_ERROR),
        }
    }

    /// The subsystem whose namespaces a flush of all is about.
    fn flushed_subsystem(&self, id: RequestId) -> Option<(&Queue, &Entry)> {
        let queue = self.queues.get(self.requests.get(id)?.queue)?;
        let subsystem = match queue.role {
            Role::Io { subsystem, .. } => subsystem,
            // Set Features that turns the write cache off.
            Role::Admin { cntlid } => match self.controllers.get(&cntlid)?.kind {
                ControllerKind::Nvm(subsystem) => subsystem,
                ControllerKind::Discovery => return None,
            },
            Role::Unconnected | Role::Connecting { .. } => return None,
        };
        Some((queue, self.subsystems.get(subsystem)?))
    }

    fn next_flush(&mut self, id: RequestId, mut from: u32, out: bool) -> Next {
        let Some((queue, entry)) = self.flushed_subsystem(id) else { return rest(out) };
        if entry.retired {
            // What is to be kept is not known here any more.
            return fail(Status::INTERNAL_PATH_ERROR);
        }
        while let Some((nsid, key)) = entry.next_backend(from) {
            from = nsid.saturating_add(1);
            // What was acknowledged while the cache was on has to be kept, whatever the host may do now.
            if queue.is_io()
                && let Some(status) = self.refusal(entry, queue, nsid)
            {
                // One that is hidden is none of all.
                if status.same_code(Status::INVALID_NAMESPACE) {
                    continue;
                }
                return fail(status);
            }
            let Some(backend) = self.subsystems.backends.get(key) else { continue };
            if !backend.bounds.volatile_write_cache {
                continue;
            }
            if let Err(status) = backend.check() {
                return fail(status);
            }
            if backend.is_paused() {
                return if out { Next::Wait } else { Next::Stop(Stop::Paused(key)) };
            }
            if let Some(request) = self.requests.get_mut(id) {
                request.task = Task::FlushAll { next: from };
            }
            return Step::flush(key);
        }
        rest(out)
    }

    fn submit(&mut self, id: RequestId, step: Step) {
        let Step { backend: key, kind, lba, blocks, fua, data } = step;
        let Some(request) = self.requests.get_mut(id) else { return };
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return };
        let Some(queue) = backend.queue.as_mut() else { return };
        let token = request::token(id, request.take_part());
        request.backend = Some(key);
        backend.in_flight += 1;
        backend.counters.submitted();
        self.outstanding.note(token, kind, blocks, self.now);
        self.counters.operations += 1;
        queue.submit(Operation { token, kind, lba, blocks, data, fua });
        self.subsystems.activate(key);
    }

    /// A block operation has come back.
    pub(super) fn completed(&mut self, key: Key, completion: Completion) {
        let backend = self.subsystems.backends.get_mut(key);
        let backend = backend.map(|backend| {
            backend.in_flight = backend.in_flight.saturating_sub(1);
            &*backend
        });
        if let Some((id, part)) = request::of_token(completion.token, &self.requests)
            && let Some(request) = self.requests.get_mut(id)
            && request.return_part(part)
        {
            if let (Some(backend), Some(started)) =
                (backend, self.outstanding.get(completion.token))
                && completion.result != Err(ErrorKind::NotLent)
            {
                count(backend, started, completion.result, self.now);
            }
            if completion.result == Err(ErrorKind::NotLent) && request.borrows {
                self.not_lent(id, key);
                return self.backend_settled(key);
            }
            if let Some(lent) = completion.lent {
                request.task = Task::None;
                self.lent.put(id, lent);
                self.counters.lent += 1;
            }
            if let Err(kind) = completion.result {
                let status = match (kind, request.give_up) {
                    (block::ErrorKind::Aborted, Some(status)) => status,
                    _ => block_status::status(kind),
                };
                request.failure.get_or_insert(status);
            }
            self.go_on(id);
        } else {
            self.counters.stale_handles += 1;
        }
        self.backend_settled(key);
    }

    /// Everything the command asked of the device has come back.
    fn finish(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let status = request.failure.or(match request.task {
            // Given up, yet all of it had been done before: then it is done, and the host is told so.
            Task::None => None,
            _ => request.give_up,
        });
        let (opcode, length, from_host) = (request.sqe.opcode, request.length, request.from_host);
        if let Some(queue) = self.queues.get(request.queue) {
            match status {
                None if opcode == nvme::io::Opcode::Read.code() => queue.share.count_read(length),
                None if opcode == nvme::io::Opcode::Write.code() => queue.share.count_write(length),
                Some(status) if status.status_type() == nvme::status::StatusType::Media => {
                    queue.share.count_media_error();
                }
                _ => {}
            }
        }
        let outcome = match status {
            Some(status) => status.into(),
            None if from_host => Outcome::SUCCESS,
            None => Outcome::data(length),
        };
        self.answer(id, outcome);
    }
}
