//! Queues: doorbells, shadow doorbells, entries that are taken, completions that are posted.
//!
//! Of a submission queue's entries the driver may use those again that a completion reported as taken, and no others, however many
//! the controller has taken meanwhile. A completion queue's entries are the controller's again when the head doorbell says so.
//!
//! Shadow doorbells are looked at when the driver has to expect it and at no other time: when the register was rung, and once when
//! there is nothing left to take (or no room left to post), after the event index was set to where that is. A driver that does
//! not ring when it passes that index is not heard.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use nvme::event::Event;
use nvme::register::offset;
use nvme::{Cqe, Sqe, Status};
use zerocopy::IntoBytes;

use super::world::{After, Answer, Command, Stage, Step, Stray, World};

#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) base: u64,
    pub(super) entries: u32,
    pub(super) cqid: u16,
    /// The next entry to take.
    pub(super) head: u32,
    /// The head that the driver has been told.
    reported: u32,
    /// Behind the last entry that was submitted.
    pub(super) tail: u32,
    /// Nothing more is taken.
    pub(super) deleting: bool,
    /// The event index says where the tail is, and the shadow has been looked at since.
    armed: bool,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, entries: u32, cqid: u16) -> SubmissionQueue {
        let (head, reported, tail) = (0, 0, 0);
        SubmissionQueue { base, entries, cqid, head, reported, tail, deleting: false, armed: false }
    }
}

#[derive(Debug)]
pub(super) struct CompletionQueue {
    pub(super) base: u64,
    pub(super) entries: u32,
    /// The first entry that the driver has not yet given back.
    head: u32,
    /// The next entry to post to.
    tail: u32,
    phase: bool,
    pub(super) vector: Option<u16>,
    armed: bool,
    /// A fault: nothing is posted.
    pub(super) stuck: bool,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, entries: u32, vector: Option<u16>) -> CompletionQueue {
        let (head, tail, phase) = (0, 0, true);
        CompletionQueue { base, entries, head, tail, phase, vector, armed: false, stuck: false }
    }

    fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

/// From one place of a queue to another.
fn distance(from: u32, to: u32, entries: u32) -> u32 {
    (to + entries - from) % entries
}

/// All queues there are.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) submission: BTreeMap<u16, SubmissionQueue>,
    pub(super) completion: BTreeMap<u16, CompletionQueue>,
    /// Submission and completion queues that may be created, once that was asked for.
    pub(super) granted: Option<(u16, u16)>,
    /// Pages of shadow doorbells and event indices.
    pub(super) shadow: Option<(u64, u64)>,
    /// The submission queue whose turn was last.
    turn: u16,
}

impl Queues {
    pub(super) fn clear(&mut self) {
        *self = Queues::default();
    }

    pub(super) fn has_room(&self, cqid: u16) -> bool {
        self.completion.get(&cqid).is_some_and(|queue| !queue.is_full() && !queue.stuck)
    }
}

impl World {
    /// What could happen to queues next.
    pub(super) fn list_queues(&self, steps: &mut Vec<Step>) {
        let queues = &self.queues;
        let waiting = |queue: &SubmissionQueue| queue.head != queue.tail && !queue.deleting;
        if self.options.round_robin {
            let all = || queues.submission.iter().filter(|(_, queue)| waiting(queue));
            let next = all().find(|&(&sqid, _)| sqid > queues.turn).or_else(|| all().next());
            steps.extend(next.map(|(&sqid, _)| Step::Fetch(sqid)));
        } else {
            let all = queues.submission.iter().filter(|(_, queue)| waiting(queue));
            steps.extend(all.map(|(&sqid, _)| Step::Fetch(sqid)));
        }
        if queues.shadow.is_some() {
            for (&qid, queue) in &queues.submission {
                if !queue.armed && queue.head == queue.tail && !queue.deleting {
                    steps.push(Step::Shadow { qid, head: false });
                }
            }
            for (&qid, queue) in queues.completion.range(1..) {
                if !queue.armed && queue.is_full() {
                    steps.push(Step::Shadow { qid, head: true });
                }
            }
        }
    }

    /// A submission queue's doorbell was rung.
    pub(super) fn take_tail(&mut self, sqid: u16) {
        let Some(value) = self.bar.take(self.doorbell(sqid, false)) else { return };
        self.counters.tail_doorbells += 1;
        if self.control.csts.shst != nvme::register::ShutdownStatus::Normal {
            self.violate(format!("tail doorbell of queue {sqid} rung after CC.SHN was set"));
        }
        if !self.queues.submission.contains_key(&sqid) {
            self.events.push(Event::INVALID_DOORBELL);
            return self.violate(format!("tail doorbell of queue {sqid}, which does not exist"));
        }
        let shadow = self.shadow(sqid, false).filter(|_| sqid > 0);
        let entries = self.queues.submission.get_mut(&sqid).map_or(0, |queue| {
            queue.armed = false;
            queue.entries
        });
        if let Some(shadow) = shadow.filter(|_| value < entries) {
            // What is rung may be less: the shadow may have been looked at, and have gone on, before the register was.
            return self.move_tail(sqid, shadow, false);
        }
        self.move_tail(sqid, value, true);
    }

    /// The tail of a submission queue is there now.
    fn move_tail(&mut self, sqid: u16, value: u32, rung: bool) {
        let Some(queue) = self.queues.submission.get_mut(&sqid) else { return };
        let (entries, old) = (queue.entries, queue.tail);
        let new = distance(old, value % entries, entries);
        let room = entries - 1 - distance(queue.reported, old, entries);
        let wrong = if value >= entries {
            format!("tail of queue {sqid} is {value}, and it has {entries} entries")
        } else if new > room {
            format!("tail of queue {sqid} went from {old} to {value}, and only {room} were free")
        } else if new == 0 && rung {
            format!("tail doorbell of queue {sqid} rung with the value that it had")
        } else {
            queue.tail = value;
            return;
        };
        self.events.push(Event::INVALID_DOORBELL_VALUE);
        self.violate(wrong);
    }

    /// A completion queue's doorbell was rung.
    pub(super) fn take_head(&mut self, cqid: u16) {
        let Some(value) = self.bar.take(self.doorbell(cqid, true)) else { return };
        self.counters.head_doorbells += 1;
        if !self.queues.completion.contains_key(&cqid) {
            self.events.push(Event::INVALID_DOORBELL);
            return self.violate(format!("head doorbell of queue {cqid}, which does not exist"));
        }
        let shadow = self.shadow(cqid, true).filter(|_| cqid > 0);
        if let Some(queue) = self.queues.completion.get_mut(&cqid) {
            queue.armed = false;
        }
        self.move_head(cqid, shadow.unwrap_or(value), shadow.is_none());
    }

    /// Queues begin at entry 0, and so must the shadows of their doorbells.
    pub(super) fn check_shadow(&mut self, qid: u16, head: bool) {
        if let Some(shadow) = self.shadow(qid, head).filter(|&shadow| shadow != 0) {
            self.violate(format!(
                "queue {qid} created while a shadow of its doorbells is {shadow}"
            ));
        }
    }

    /// The driver has given back all entries of a completion queue up to there.
    fn move_head(&mut self, cqid: u16, value: u32, rung: bool) {
        let Some(queue) = self.queues.completion.get_mut(&cqid) else { return };
        let (entries, old, tail) = (queue.entries, queue.head, queue.tail);
        let posted = distance(old, tail, entries);
        let new = distance(old, value % entries, entries);
        let wrong = if value >= entries {
            format!("head of queue {cqid} is {value}, and it has {entries} entries")
        } else if new > posted {
            format!("head of queue {cqid} went from {old} to {value}, and its tail is {tail}")
        } else if new == 0 && rung {
            format!("head doorbell of queue {cqid} rung with the value that it had")
        } else {
            queue.head = value;
            return;
        };
        self.events.push(Event::INVALID_DOORBELL_VALUE);
        self.violate(wrong);
    }

    /// The shadow of a doorbell, if there are shadows.
    fn shadow(&self, qid: u16, head: bool) -> Option<u32> {
        let (shadows, _) = self.queues.shadow?;
        let word = self.reach.word32(shadows + self.place_in_page(qid, head))?;
        Some(u32::from_le(word.load(Ordering::Acquire)))
    }

    fn place_in_page(&self, qid: u16, head: bool) -> u64 {
        (self.doorbell(qid, head) - offset::DOORBELLS) as u64
    }

    /// Tells the driver from where on the controller has to be told of changes.
    fn set_event_index(&self, qid: u16, head: bool, value: u32) {
        let Some((_, indices)) = self.queues.shadow else { return };
        if let Some(word) = self.reach.word32(indices + self.place_in_page(qid, head)) {
            word.store(value.to_le(), Ordering::Release);
        }
        // The driver changes the shadow, then looks at the index. Here it is the other way round, and one of both sees the other's.
        fence(Ordering::SeqCst);
    }

    /// There is nothing left to take.
    pub(super) fn look_at_tail(&mut self, sqid: u16) {
        let Some(queue) = self.queues.submission.get_mut(&sqid) else { return };
        queue.armed = true;
        let tail = queue.tail;
        self.set_event_index(sqid, false, tail);
        // Drivers may leave the admin queue out of this, so its register is what counts.
        let Some(shadow) = self.shadow(sqid, false).filter(|&shadow| sqid > 0 && shadow != tail)
        else {
            return;
        };
        if let Some(queue) = self.queues.submission.get_mut(&sqid) {
            queue.armed = false;
        }
        self.move_tail(sqid, shadow, false);
    }

    /// There is no room left to post.
    pub(super) fn look_at_head(&mut self, cqid: u16) {
        let Some(queue) = self.queues.completion.get_mut(&cqid) else { return };
        queue.armed = true;
        let head = queue.head;
        self.set_event_index(cqid, true, head);
        let Some(shadow) = self.shadow(cqid, true).filter(|&shadow| shadow != head) else { return };
        if let Some(queue) = self.queues.completion.get_mut(&cqid) {
            queue.armed = false;
        }
        self.move_head(cqid, shadow, false);
    }

    /// Takes the next entry of a submission queue.
    pub(super) fn fetch(&mut self, sqid: u16) {
        self.queues.turn = sqid;
        let Some(queue) = self.queues.submission.get_mut(&sqid) else { return };
        let (at, cqid) = (queue.base + u64::from(queue.head) * 64, queue.cqid);
        queue.head = (queue.head + 1) % queue.entries;
        if queue.head == queue.tail {
            queue.armed = false;
        }
        let mut sqe = Sqe::default();
        if !self.reach.read(at, sqe.as_mut_bytes()) {
            return self.iommu_fault(at, 64, "submission queue");
        }
        let mut command = Command {
            number: self.number,
            sqid,
            cqid,
            sqe,
            stage: Stage::Taken,
            after: After::Nothing,
            fail: None,
            duplicate: false,
            wrong_queue: None,
        };
        self.number += 1;
        let cid = sqe.cid.get();
        let same = |other: &Command| other.sqid == sqid && other.sqe.cid.get() == cid;
        if cid == u16::MAX {
            self.violate(format!("command FFFFh of queue {sqid}"));
        }
        if self.commands.iter().any(same) {
            self.violate(format!("command {cid} of queue {sqid} is outstanding already"));
            let status = Status::COMMAND_ID_CONFLICT.with_dnr();
            command.stage = Stage::Done(Answer { status, dw0: 0 });
        } else if let Err(status) = self.check_entry(sqid == 0, &sqe) {
            command.stage = Stage::Done(Answer { status: status.with_dnr(), dw0: 0 });
        } else {
            self.afflict(&mut command);
        }
        self.commands.push(command);
    }

    /// Whether a command's completion could be posted now.
    pub(super) fn may_post(&self, command: &Command) -> bool {
        let before = |test: &dyn Fn(&Command) -> bool| self.commands.iter().any(test);
        let waits = match command.after {
            After::Nothing => false,
            After::Command(number) => before(&|other| other.number == number),
            After::Queue(sqid) => before(&|other| other.sqid == sqid),
        };
        !waits && self.queues.has_room(command.cqid)
    }

    /// Posts a command's completion.
    pub(super) fn post(&mut self, index: usize) {
        let Some(command) = self.commands.get(index).copied() else { return };
        let Stage::Done(answer) = command.stage else { return };
        self.commands.swap_remove(index);
        let mut sqhd = 0;
        if let Some(queue) = self.queues.submission.get_mut(&command.sqid) {
            queue.reported = queue.head;
            sqhd = u16::try_from(queue.head).unwrap_or(u16::MAX);
        }
        let mut cqe = Cqe::new(command.sqe.cid.get(), sqhd, answer.status).with_dw0(answer.dw0);
        cqe.sqid.set(command.wrong_queue.unwrap_or(command.sqid));
        self.put(command.cqid, cqe);
        if command.duplicate {
            self.strays.push(Stray { cqid: command.cqid, cqe });
        }
        if let After::Queue(sqid) = command.after {
            self.queues.submission.remove(&sqid);
        }
        if self.random.million(self.options.chaos.ghost) {
            let cid = u16::try_from(self.random.number() & 0xffff).unwrap_or(0);
            self.add_stray(command.sqid, cid);
        }
    }

    /// A completion of a command that is not there comes some time, unless that one is there after all.
    pub(super) fn add_stray(&mut self, sqid: u16, cid: u16) {
        let same = |other: &Command| other.sqid == sqid && other.sqe.cid.get() == cid;
        let Some(queue) = self.queues.submission.get(&sqid) else { return };
        if !self.commands.iter().any(same) {
            let sqhd = u16::try_from(queue.reported).unwrap_or(u16::MAX);
            let mut cqe = Cqe::new(cid, sqhd, Status::SUCCESS);
            cqe.sqid.set(sqid);
            self.strays.push(Stray { cqid: queue.cqid, cqe });
        }
    }

    /// Puts an entry into a completion queue that has room for it.
    pub(super) fn put(&mut self, cqid: u16, mut cqe: Cqe) {
        let Some(queue) = self.queues.completion.get_mut(&cqid) else { return };
        let at = queue.base + u64::from(queue.tail) * 16;
        let field = cqe.status_field.get() | u16::from(queue.phase);
        cqe.status_field.set(field);
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= queue.tail == 0;
        let vector = queue.vector;
        let head = cqe.as_bytes().get(..14).unwrap_or_default();
        let word = self.reach.word16(at + 14);
        let Some(word) = word.filter(|_| self.reach.write(at, head)) else {
            return self.iommu_fault(at, 16, "completion queue");
        };
        // The driver takes the rest for granted once it sees this.
        word.store(field.to_le(), Ordering::Release);
        self.counters.completions += 1;
        if let Some(vector) = vector {
            self.interrupts.raise(vector);
        }
    }

    /// Memory that is to be a completion queue must not look as if completions were in it.
    pub(super) fn check_phases(&mut self, cqid: u16, base: u64, entries: u32) {
        let mut entry = [0; 16];
        let set = (0..u64::from(entries)).find(|index| {
            let read = self.reach.read(base + index * 16, &mut entry);
            read && matches!(entry, [.., field, _] if field & 1 != 0)
        });
        if let Some(index) = set {
            self.violate(format!("entry {index} of new completion queue {cqid} has phase tag 1"));
        }
    }
}
