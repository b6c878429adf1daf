//! One turn of the shard's own work, and the housekeeping that is due now and then.

use std::time::Duration;

use nvme::Status;

use super::Shard;
use super::message::Body;
use super::queue::Role;
use super::request::Stage;
use super::table::Key;
use crate::{Action, DisconnectReason, Instant, Message};

/// Completions of block operations that one turn takes in.
pub(super) const COMPLETIONS_PER_TURN: usize = 256;

/// Of those, from one backend: a fast device does not keep a turn to itself.
const COMPLETIONS_PER_BACKEND: usize = 64;

/// Messages that one turn looks at.
const MESSAGES_PER_TURN: usize = 256;

/// Stalled queues that one turn looks at.
const RESUMES_PER_TURN: usize = 64;

/// How often timeouts are looked at. Everything that is timed here is timed in seconds.
const TICK: Duration = Duration::from_millis(250);

/// A gap between turns that is not the hosts' fault: the machine or the process was suspended.
const STALL: Duration = Duration::from_secs(1);

/// The fraction of request slots that one tick looks at for commands that are overdue.
const WATCH_FRACTION: u32 = 8;

impl Shard {
    /// One turn of the shard's own work; whether there was any. Drive it before the transports read (so
    /// that completions go out in the same turn) and again before they send.
    pub fn poll(&mut self, now: Instant) -> bool {
        let asleep = now.since(self.now) > STALL;
        self.now = now.max(self.now);
        self.woken = false;
        if self.next_tick <= self.now {
            self.sample_busy();
        }
        let mut worked = self.read_messages();
        worked |= self.poll_backends();
        worked |= self.serve_waiting();
        self.resume_stalled();
        if self.next_tick <= self.now {
            self.next_tick = self.now + TICK;
            // After a stall of our own, hosts get the chance to be heard first, once.
            self.stalled_tick = asleep && !self.stalled_tick;
            if !self.stalled_tick {
                self.tick();
            }
        }
        if self.shutdown.is_some() {
            self.continue_shutdown();
        }
        worked
    }

    /// Controller Busy Time: what is outstanding at a tick was so since the last. The time during which any of
    /// a controller's queues, on several shards, has a command outstanding cannot be added up without something
    /// that they all write; samples cost no I/O anything and err by seconds where minutes are reported.
    ///
    /// At the start of a turn, when everything still is as it was between the turns, which is where time passes.
    fn sample_busy(&mut self) {
        let since_last = self.now.since(self.sampled);
        self.sampled = self.now;
        for controller in self.controllers.values_mut().filter(|controller| controller.is_busy()) {
            controller.busy = controller.busy.saturating_add(since_last);
        }
    }

    /// When `poll` has to be called again at the latest, whatever happens; None: nothing is timed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timed = self.queues.len() > 0
            || !self.controllers.is_empty()
            || self.subsystems.backends.len() > 0;
        let device =
            |key: &Key| self.subsystems.backends.get(*key)?.queue.as_ref()?.next_deadline();
        let devices = self.subsystems.active.iter().filter_map(device);
        timed.then_some(self.next_tick).into_iter().chain(self.limited_until).chain(devices).min()
    }

    /// Whether there is work that no message, completion or transport event will announce.
    pub fn has_work(&self) -> bool {
        let device = |key: &Key| {
            let backend = self.subsystems.backends.get(*key);
            backend
                .and_then(|backend| backend.queue.as_ref())
                .is_some_and(|queue| queue.needs_poll())
        };
        self.woken
            || self.unlooked > 0
            || !self.inbox.is_empty()
            || !self.outbox.is_empty()
            || self.subsystems.active.iter().any(device)
    }

    fn read_messages(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.inbox.pop_front() else { break };
            worked = true;
            self.read(message);
        }
        worked
    }

    fn read(&mut self, message: Message) {
        let from = message.from;
        match message.body {
            Body::Attach(attach) => self.attach(from, attach),
            Body::Attached { attach, result } => self.attached(&attach, result),
            Body::Detached { cntlid, qid, queue } => self.detached(from, cntlid, qid, queue),
            Body::Drop { queue, reason } => self.end_queue(queue, reason),
            Body::Abort { queue, cid, request } => self.abort_asked(from, queue, cid, request),
            Body::Aborted { request, aborted } => self.aborted(request, aborted),
            Body::Quiesce { request, host, subsystem } => {
                self.asked(from, request, host, subsystem);
            }
            Body::Quiet { request } => self.quiet(request),
            Body::Configured { version } => self.configured(from, version),
            Body::Fence { device, number } => self.raise_fence(from, device, number),
            Body::Fenced { number } => self.fenced(number),
            Body::Unfence { device } => self.lower_fence(&device),
            Body::Pause { pause, subsystem, nsid, deadline } => {
                self.pause_asked(pause, &subsystem, nsid, deadline);
            }
            Body::Paused { pause } => self.paused(pause),
            Body::Resume { pause, subsystem, nsid } => self.resumed(pause, &subsystem, nsid),
            Body::CallRoll(roll) => self.call_roll(roll),
            Body::RollCalled(roll) => self.roll_called(&roll),
            Body::Failed { cntlid, failure } => self.failed(cntlid, &failure),
        }
    }

    /// Takes in what devices have finished.
    fn poll_backends(&mut self) -> bool {
        let mut worked = false;
        let mut left = COMPLETIONS_PER_TURN;
        let mut completions = std::mem::take(&mut self.completions);
        // Round the list from where the last turn stopped: what is looked at goes to its end.
        for _ in 0..self.subsystems.active.len() {
            if left == 0 {
                break;
            }
            let Some(key) = self.subsystems.active.pop_front() else { break };
            let Some(backend) = self.subsystems.backends.get_mut(key) else { continue };
            let most = left.min(COMPLETIONS_PER_BACKEND);
            let mut count = 0;
            if let Some(queue) = backend.queue.as_mut() {
                count = queue.poll(most, &mut |completion| completions.push(completion));
            }
            if backend.in_flight > u32::try_from(completions.len()).unwrap_or(u32::MAX) {
                self.subsystems.active.push_back(key);
            } else {
                backend.active = false;
            }
            left = left.saturating_sub(completions.len());
            // Not everything it had: the next turn comes without being called.
            self.woken |= count >= most;
            worked |= !completions.is_empty();
            for completion in completions.drain(..) {
                if completion.token == super::shutdown::TOKEN {
                    self.last_flush_done(key, completion.result);
                }
                self.completed(key, completion);
            }
        }
        self.completions = completions;
        worked
    }

    /// There may be room again for any of the stalled queues: the turns that follow look at each of them once more. Not at
    /// the first alone, since what one has no use for may be what another waits for.
    pub(super) fn look_at_stalled(&mut self) {
        self.unlooked = self.stalled.len();
    }

    /// Tells stalled queues to go on, as far as there is room.
    fn resume_stalled(&mut self) {
        let looked = self.stalled.len().min(RESUMES_PER_TURN);
        self.unlooked = self.unlooked.min(self.stalled.len()).saturating_sub(looked);
        for _ in 0..looked {
            let Some(id) = self.stalled.pop_front() else { break };
            let Some(queue) = self.queues.get(id) else { continue };
            let room = queue.has_room(&self.requests, &self.hosts, &self.pledges);
            let stopping = queue.is_io() && self.shutdown.is_some() && !queue.pledge.is_owing();
            let kept_out = queue.stalled_by.is_some_and(|key| self.is_kept_out(queue, key));
            if !room || stopping || kept_out {
                self.stalled.push_back(id);
                continue;
            }
            let Some(queue) = self.queues.get_mut(id) else { continue };
            queue.stalled = false;
            queue.stalled_by = None;
            let port = queue.port;
            if queue.is_live() {
                self.act(port, Action::Resume { queue: id });
            }
        }
    }

    fn tick(&mut self) {
        self.expire_controllers();
        self.expire_connects();
        self.expire_unconnected();
        self.fence_overdue();
        self.answer_questions();
        self.expire_pauses();
        self.watch_geometry();
        self.watch_devices();
        self.forget_subsystems();
    }

    /// Ends the queues on which nobody has connected.
    fn expire_unconnected(&mut self) {
        let (now, limit) = (self.now, self.limits.connect_timeout);
        for slot in 0..self.queues.slots() {
            let Some((id, queue)) = self.queues.at(slot) else { continue };
            let silent = queue.role == Role::Unconnected && queue.is_live();
            if silent && now.since(queue.since) >= limit {
                self.counters.queues_unconnected += 1;
                self.end_queue(id, DisconnectReason::NoConnect);
            }
        }
    }

    /// Gives up commands that have been in a device too long. One that the device does not let go of is
    /// not answered: it might still be carried out, after the host has tried again.
    fn watch_devices(&mut self) {
        let slots = self.requests.slots();
        let limit = self.limits.command_deadline;
        for _ in 0..slots.div_ceil(WATCH_FRACTION) {
            let slot = self.watch;
            self.watch = if slot + 1 < slots { slot + 1 } else { 0 };
            let overdue = self.requests.at(slot).and_then(|(id, request)| {
                let late = request.stage == Stage::Device
                    && request.give_up.is_none()
                    && self.now.since(request.since) >= limit;
                late.then_some((id, request.backend))
            });
            let Some((id, backend)) = overdue else { continue };
            self.counters.overdue += 1;
            if let Some((subsystem, nsid)) = backend.and_then(|key| self.name_of(key)) {
                tracing::warn!(%subsystem, nsid, "a command is overdue in its device: giving it up");
            }
            self.give_up(id, Status::COMMAND_INTERRUPTED);
        }
    }
}
