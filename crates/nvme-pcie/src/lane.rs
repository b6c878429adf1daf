//! One reactor's way to a controller: operations of all namespaces become commands of one queue pair, and their completions operations again.
//!
//! Runs on its reactor. Namespaces' queues ([`crate::namespace`]) put operations in and take their ends out; the reactor calls it once more at the end of
//! every turn, as a poller, when it rings for what the turn has brought.
//!
//! # Invariants
//! * A slot is a command that the device may have. Its memory (the operation's, and the slot's own page) is kept until a completion of it has been seen
//!   or the controller's thread has said that the device reaches no memory any more.
//! * A command identifier is a slot and a number that changes with each use of it: a completion that comes twice, or late, is of no command.
//! * An operation ends once, when none of its parts is with the device or waits to be sent again.
//! * After a reset, what was out is sent again: reads, writes and the like may be carried out twice, as nobody has been told of the first time and
//!   nobody may rely on their order. An operation that has been through [`Settings::retries`] of these, but for those that somebody
//!   asked for, is answered with an error.
//!
//! Nothing here allocates once the tables have grown to the depth that is used.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use block::{Completion, ErrorKind, Kind, Operation, Token};
use nvme::{Cqe, Status};
use reactor::Instant;
use slab::Slab;

use crate::counters::Counters;
use crate::link::{Link, Report, State};
use crate::namespace::Shared as Namespace;
use crate::operation::{Op, kind_of, may_retry};
use crate::plan::{Limits, Part, Way};
use crate::seat::Seat;

/// Completions that are taken in at a time.
const COMPLETIONS_PER_POLL: usize = 256;

/// How often overdue commands are looked for, as a fraction of the time that they have.
const WATCHES_PER_TIMEOUT: u32 = 8;

/// What governs the commands of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// A command that takes longer is aborted; if it takes as long again, the controller is reset.
    pub(crate) timeout: Duration,
    /// How often a command is carried out again.
    pub(crate) retries: u8,
    /// How long to wait when the controller says so: Command Retry Delay Times 1 to 3.
    pub(crate) delays: [Duration; 3],
}

/// A command that the device may have.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    op: usize,
    part: Part,
    cid: u16,
    since: Instant,
    reports: u8,
}

/// One place for a command.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    uses: u16,
    command: Option<InFlight>,
}

/// A command to be sent again, not before `at`.
#[derive(Debug, Clone, Copy)]
struct Again {
    op: usize,
    part: Part,
    at: Instant,
}

/// A namespace's queue.
#[derive(Debug)]
struct Member {
    namespace: Arc<Namespace>,
    /// Its namespace's, as of the session.
    limits: Limits,
    /// Operations taken and not yet given back.
    outstanding: usize,
    done: VecDeque<Completion>,
    /// The queue is gone; what is out ends unheard.
    left: bool,
}

#[derive(Debug)]
pub(crate) struct Lane {
    link: Arc<Link>,
    reactor: usize,
    settings: Settings,
    epoch: u64,
    /// The controller is not there: what comes is refused.
    gone: bool,
    /// The last pause was nobody's fault.
    blameless: bool,
    pub(crate) seat: Option<Seat>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    ops: Slab<Op>,
    /// Operations of which commands are still to be made, in their order.
    waiting: VecDeque<usize>,
    again: VecDeque<Again>,
    members: Slab<Member>,
    watch_at: Instant,
    counters: Arc<Counters>,
}

impl Lane {
    pub(crate) fn new(link: &Arc<Link>, reactor: usize, settings: Settings) -> Lane {
        Lane {
            link: Arc::clone(link),
            reactor,
            settings,
            epoch: 0,
            gone: false,
            blameless: false,
            seat: None,
            slots: Vec::new(),
            free: Vec::new(),
            ops: Slab::new(),
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            members: Slab::new(),
            watch_at: Instant::ZERO,
            counters: link.counters(reactor).map(Arc::clone).unwrap_or_default(),
        }
    }

    // Members.

    pub(crate) fn join(&mut self, namespace: &Arc<Namespace>) -> usize {
        let (namespace, limits) = (Arc::clone(namespace), namespace.limits());
        let done = VecDeque::new();
        self.members.insert(Member { namespace, limits, outstanding: 0, done, left: false })
    }

    pub(crate) fn leave(&mut self, member: usize) {
        let Some(leaving) = self.members.get_mut(member) else { return };
        leaving.left = true;
        leaving.outstanding -= leaving.done.len();
        leaving.done.clear();
        self.forget(member);
    }

    /// Drops a member that has left and has nothing out.
    fn forget(&mut self, member: usize) {
        if self.members.get(member).is_some_and(|member| member.left && member.outstanding == 0) {
            self.members.remove(member);
        }
    }

    /// Whether there is neither a namespace nor anything of one that has left.
    pub(crate) fn is_deserted(&self) -> bool {
        self.members.is_empty()
    }

    /// Operations of a namespace that it has not got back.
    pub(crate) fn outstanding(&self, member: usize) -> usize {
        self.members.get(member).map_or(0, |member| member.outstanding)
    }

    /// Whether the end of one waits to be taken.
    pub(crate) fn has_done(&self, member: usize) -> bool {
        self.members.get(member).is_some_and(|member| !member.done.is_empty())
    }

    /// The next end of one.
    pub(crate) fn take_done(&mut self, member: usize) -> Option<Completion> {
        let member = self.members.get_mut(member)?;
        let done = member.done.pop_front()?;
        member.outstanding -= 1;
        Some(done)
    }

    // Operations.

    /// Takes an operation of a member.
    pub(crate) fn submit(&mut self, member: usize, operation: &Operation, now: Instant) {
        let Some(owner) = self.members.get_mut(member) else { return };
        owner.outstanding += 1;
        // Now, not when they end, perhaps all at once.
        owner.done.reserve(owner.outstanding - owner.done.len());
        let (limits, nsid) = (owner.limits, owner.namespace.nsid());
        let verdict = match owner.namespace.admit(operation) {
            Ok(()) if self.gone => Err(ErrorKind::Removed),
            verdict => verdict,
        };
        let (token, kind) = (operation.token, operation.kind);
        if let Err(error) = verdict {
            return self.say(member, token, Err(error));
        }
        if limits.way(kind) == Way::Nothing || operation.blocks == 0 && kind != Kind::Flush {
            return self.say(member, token, Ok(()));
        }
        let Some(op) = Op::new(member, nsid, limits, operation) else {
            return self.say(member, token, Err(ErrorKind::Internal));
        };
        let op = self.ops.insert(op);
        self.waiting.push_back(op);
        self.issue(now);
    }

    /// Gives up an operation of which the device has had nothing.
    pub(crate) fn cancel(&mut self, member: usize, token: Token) -> bool {
        let named = |op: &Op| op.member == member && op.token == token && !op.begun;
        let Some(place) = self.waiting.iter().position(|op| self.ops.get(*op).is_some_and(named))
        else {
            return false;
        };
        if let Some(op) = self.waiting.remove(place) {
            self.ops.remove(op);
            self.say(member, token, Err(ErrorKind::Aborted));
        }
        true
    }

    /// Sends what can be sent.
    fn issue(&mut self, now: Instant) {
        if self.seat.is_none() {
            return;
        }
        for _ in 0..self.again.len() {
            if self.free.is_empty() {
                return;
            }
            let Some(again) = self.again.pop_front() else { break };
            let failed = self.ops.get(again.op).is_some_and(|op| op.result.is_err());
            if failed {
                self.ended(again.op, Ok(()));
            } else if again.at > now {
                self.again.push_back(again);
            } else {
                self.send(again.op, again.part, now);
            }
        }
        while !self.free.is_empty()
            && let Some(&index) = self.waiting.front()
        {
            let Some(op) = self.ops.get_mut(index) else { break };
            let part = op.plan();
            if op.complete {
                self.waiting.pop_front();
            }
            self.send(index, part, now);
        }
    }

    /// Gives the device a command. There is a free slot.
    fn send(&mut self, index: usize, part: Part, now: Instant) {
        let (Some(seat), Some(op)) = (&mut self.seat, self.ops.get_mut(index)) else { return };
        let Some(slot) = self.free.pop() else { return };
        let Some(place) = self.slots.get_mut(usize::from(slot)) else { return };
        place.uses = place.uses.wrapping_add(1);
        let cid = seat.identifiers.of(seat.first() + slot, place.uses);
        let sqe = op.command(part, seat, slot).with_cid(cid);
        if self.watch_at == Instant::ZERO {
            self.watch_at = now + self.settings.timeout / WATCHES_PER_TIMEOUT;
        }
        place.command = Some(InFlight { op: index, part, cid, since: now, reports: 0 });
        op.begun = true;
        seat.push(&sqe);
        self.counters.commands.add(1);
        self.counters.bounced.add(u64::from(part.bounced));
    }

    // Turns.

    /// Takes in what the device has finished, and sends what waited for it. Whether there was anything.
    pub(crate) fn poll(&mut self, now: Instant) -> bool {
        let is_new = self.link.epoch() != self.epoch;
        if is_new {
            self.take_in();
        }
        let mut worked = 0;
        if let Some(seat) = &mut self.seat {
            seat.disarm();
        }
        while worked < COMPLETIONS_PER_POLL
            && let Some(completion) = self.seat.as_mut().and_then(Seat::next)
        {
            worked += 1;
            self.completed(completion, now);
        }
        if is_new || worked > 0 || !self.again.is_empty() {
            self.issue(now);
        }
        if self.watch_at != Instant::ZERO && self.watch_at <= now {
            self.watch(now);
        }
        worked > 0
    }

    /// Tells the device what the turn has brought.
    pub(crate) fn flush(&mut self) {
        let Some(seat) = &mut self.seat else { return };
        self.counters.submission_doorbells.add(u64::from(seat.ring()));
        let idle = self.free.len() == self.slots.len();
        self.counters.completion_doorbells.add(u64::from(seat.acknowledge(idle)));
    }

    /// Whether an interrupt, the thread or [`Lane::next_deadline`] tell of all that may happen next.
    pub(crate) fn ready_to_sleep(&mut self) -> bool {
        if self.link.epoch() != self.epoch {
            return false;
        }
        let idle = self.free.len() == self.slots.len();
        let Some(seat) = &mut self.seat else { return true };
        self.counters.completion_doorbells.add(u64::from(seat.acknowledge(true)));
        idle || seat.arm()
    }

    /// When to poll at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let watch = (self.watch_at != Instant::ZERO).then_some(self.watch_at);
        let again = self.again.iter().map(|again| again.at).filter(|_| self.seat.is_some());
        watch.into_iter().chain(again).min()
    }

    /// Whether all slots are free.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Looks for commands that take too long.
    fn watch(&mut self, now: Instant) {
        let Some(qid) = self.seat.as_ref().map(Seat::qid) else { return };
        let mut busy = false;
        for slot in &mut self.slots {
            let Some(command) = &mut slot.command else { continue };
            busy = true;
            if now.since(command.since) < self.settings.timeout || command.reports > 1 {
                continue;
            }
            let cid = command.cid;
            let report = if command.reports == 0 {
                self.counters.timeouts.add(1);
                Report::Overdue { qid, cid }
            } else {
                Report::Stuck { qid, cid }
            };
            (command.reports, command.since) = (command.reports + 1, now);
            self.link.report(report);
        }
        let step = self.settings.timeout / WATCHES_PER_TIMEOUT;
        self.watch_at = if busy { now + step } else { Instant::ZERO };
    }

    fn completed(&mut self, completion: Cqe, now: Instant) {
        let Some(command) = self.take_command(completion) else {
            self.counters.stray_completions.add(1);
            return;
        };
        let status = completion.status();
        let Some(op) = self.ops.get_mut(command.op) else { return };
        if !status.is_success()
            && op.result.is_ok()
            && may_retry(status)
            && op.retries < self.settings.retries
        {
            op.retries += 1;
            self.counters.retries.add(1);
            let delay = usize::from(status.retry_delay())
                .checked_sub(1)
                .and_then(|at| self.settings.delays.get(at));
            let at = now + delay.copied().unwrap_or_default();
            self.again.push_back(Again { op: command.op, part: command.part, at });
            return;
        }
        let result = match status.into_result() {
            Ok(()) => match &self.seat {
                Some(seat) if command.part.bounced => op.bounce_back(
                    command.part,
                    seat,
                    seat.identifiers.slot(command.cid) - seat.first(),
                ),
                _ => Ok(()),
            },
            Err(status) => Err(kind_of(status)),
        };
        self.ended(command.op, result);
    }

    /// The command that a completion is of; its slot is free then.
    fn take_command(&mut self, completion: Cqe) -> Option<InFlight> {
        let seat = self.seat.as_ref()?;
        let cid = completion.cid.get();
        let slot = seat.identifiers.slot(cid).checked_sub(seat.first())?;
        let place = self.slots.get_mut(usize::from(slot))?;
        let command =
            place.command.take_if(|it| it.cid == cid && completion.sqid.get() == seat.qid())?;
        self.free.push(slot);
        Some(command)
    }

    /// A part of an operation has ended.
    fn ended(&mut self, index: usize, result: Result<(), ErrorKind>) {
        let Some(op) = self.ops.get_mut(index) else { return };
        op.out -= 1;
        if op.result.is_ok() {
            op.result = result;
        }
        if op.result.is_err() && !op.complete {
            // The rest of it is not even tried.
            op.complete = true;
            self.waiting.retain(|waiting| *waiting != index);
        }
        if op.complete && op.out == 0 {
            let op = self.ops.remove(index);
            self.say(op.member, op.token, op.result);
        }
    }

    fn say(&mut self, member: usize, token: Token, result: Result<(), ErrorKind>) {
        let Some(owner) = self.members.get_mut(member) else { return };
        if owner.left {
            owner.outstanding -= 1;
            self.forget(member);
        } else {
            owner.done.push_back(Completion::new(token, result));
        }
    }

    // What the controller's thread says.

    /// Goes by what has been published.
    pub(crate) fn take_in(&mut self) {
        let (epoch, state) = self.link.state();
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        self.park();
        self.gone = false;
        match &*state {
            State::Paused { asked_for } => self.blameless = *asked_for,
            State::Running(seats) => self.sit(seats.take(self.reactor)),
            State::Gone => self.give_up(),
        }
        self.link.acknowledge(self.reactor, epoch);
    }

    /// Leaves the seat. What the device may have is in doubt, and keeps its memory.
    fn park(&mut self) {
        self.seat = None;
        self.watch_at = Instant::ZERO;
        for slot in &mut self.slots {
            if let Some(InFlight { op, part, .. }) = slot.command.take() {
                self.again.push_back(Again { op, part, at: Instant::ZERO });
            }
        }
        self.slots.clear();
        self.free.clear();
    }

    /// Takes a seat, and sends again what was in doubt.
    fn sit(&mut self, seat: Option<Seat>) {
        let Some(seat) = seat else { return };
        self.slots.resize(seat.slots().into(), Slot { uses: seat.uses, command: None });
        self.free.extend((0..seat.slots()).rev());
        self.seat = Some(seat);
        for (_, member) in &mut self.members {
            member.limits = member.namespace.limits();
        }
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            if self.is_lost(index) {
                self.give_up_rest(index);
            } else {
                self.waiting.push_back(index);
            }
        }
        let most = if self.blameless { u8::MAX } else { self.settings.retries };
        for _ in 0..self.again.len() {
            let Some(mut again) = self.again.pop_front() else { break };
            if self.is_lost(again.op) {
                self.ended(again.op, Err(ErrorKind::Removed));
                continue;
            }
            let Some(op) = self.ops.get_mut(again.op) else { continue };
            if op.retries >= most {
                let interrupted = kind_of(Status::COMMAND_INTERRUPTED);
                self.ended(again.op, Err(interrupted));
                continue;
            }
            self.counters.retries.add(1);
            again.at = Instant::ZERO;
            self.again.push_back(again);
        }
        // Once for each operation, however many commands it had out.
        let counted = if self.blameless { 0 } else { self.again.len() };
        for index in 0..counted {
            let Some(again) = self.again.get(index).copied() else { continue };
            let first = self.again.iter().position(|other| other.op == again.op) == Some(index);
            if first && let Some(op) = self.ops.get_mut(again.op) {
                op.retries += 1;
            }
        }
    }

    /// Whether an operation's namespace is gone. Another one may be in its place.
    fn is_lost(&self, op: usize) -> bool {
        let member = self.ops.get(op).and_then(|op| self.members.get(op.member));
        member.is_some_and(|member| member.namespace.is_gone())
    }

    /// What has not been sent of an operation will not be.
    fn give_up_rest(&mut self, index: usize) {
        let Some(op) = self.ops.get_mut(index) else { return };
        op.complete = true;
        op.result = op.result.and(Err(ErrorKind::Removed));
        if op.out == 0 {
            let op = self.ops.remove(index);
            self.say(op.member, op.token, op.result);
        }
    }

    /// Nothing will come any more, and the device reaches no memory.
    fn give_up(&mut self) {
        self.gone = true;
        self.again.clear();
        self.waiting.clear();
        for op in self.ops.drain() {
            let Some(owner) = self.members.get_mut(op.member) else { continue };
            if owner.left {
                owner.outstanding -= 1;
            } else {
                let result = op.result.and(Err(ErrorKind::Removed));
                owner.done.push_back(Completion::new(op.token, result));
            }
        }
        self.members.retain(|_, member| !(member.left && member.outstanding == 0));
    }
}

impl Drop for Lane {
    /// Whoever opens a namespace on this reactor next takes the seat; not with commands that nobody knows of any more.
    fn drop(&mut self) {
        let idle = self.is_idle();
        if let Some(mut seat) = self.seat.take().filter(|_| idle) {
            seat.acknowledge(true);
            seat.uses = self.slots.iter().map(|slot| slot.uses).max().unwrap_or(0);
            let (epoch, state) = self.link.state();
            if epoch == self.epoch
                && let State::Running(seats) = &*state
            {
                seats.give_back(self.reactor, seat);
            }
        }
        self.link.leave(self.reactor);
    }
}
