//! What the software controller consists of, under one lock, and what of it comes next.

use std::sync::Arc;

use nvme::{Cqe, Sqe, Status};

use super::bytes::{Bar, Reach};
use super::control::Control;
use super::event::Events;
use super::faults::Faults;
use super::feature::Features;
use super::firmware::Firmware;
use super::interrupt::Interrupts;
use super::log::Errors;
use super::namespace::Namespaces;
use super::options::Options;
use super::pointer::Piece;
use super::queue::Queues;
use super::random::Random;

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A register of a controller that is gone is found to be written, and reads as ones again.
    Gone,
    /// Registers are found to be written.
    Registers,
    /// Becoming ready or not ready, or shutting down, goes on.
    Advance,
    /// A doorbell is found to be rung: of the head of a completion queue, or the tail of a submission queue.
    Doorbell { qid: u16, head: bool },
    /// The shadow doorbell of an empty submission queue, or of a full completion queue, is looked at.
    Shadow { qid: u16, head: bool },
    /// An entry of a submission queue is taken.
    Fetch(u16),
    /// A command is carried out.
    Execute(usize),
    /// A command that is late is a step less so.
    Wait(usize),
    /// A command's completion is posted.
    Post(usize),
    /// A completion that belongs to nothing is posted.
    Stray(usize),
    /// An event is told by a command that waits for one.
    Event,
    /// A vector interrupts.
    Interrupt(u16),
}

/// How a command goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is to be carried out.
    Taken,
    /// It is to be carried out in so many steps.
    Late(u32),
    /// It never ends by itself.
    Hung,
    /// It waits for an event to tell.
    Listening,
    /// It is to be answered.
    Done(Answer),
}

/// What a completion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) dw0: u32,
}

impl From<Result<u32, Status>> for Answer {
    fn from(result: Result<u32, Status>) -> Answer {
        match result {
            Ok(dw0) => Answer { status: Status::SUCCESS, dw0 },
            Err(status) => Answer { status, dw0: 0 },
        }
    }
}

/// What has to be posted before a command's completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    /// That of the command with this number.
    Command(u64),
    /// Those of all commands of this submission queue, which then is gone.
    Queue(u16),
}

/// A command that was taken and is not yet answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    /// No other has it.
    pub(super) number: u64,
    pub(super) sqid: u16,
    pub(super) cqid: u16,
    pub(super) sqe: Sqe,
    pub(super) stage: Stage,
    pub(super) after: After,
    /// Ends with this status, carried out or not.
    pub(super) fail: Option<Status>,
    /// Its completion comes twice.
    pub(super) duplicate: bool,
    /// Its completion names this submission queue.
    pub(super) wrong_queue: Option<u16>,
}

/// A completion that belongs to nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stray {
    pub(super) cqid: u16,
    pub(super) cqe: Cqe,
}

/// What was counted for tests.
#[derive(Debug)]
pub(super) struct Counters {
    /// Commands carried out, by opcode: of the admin queue, of I/O queues.
    pub(super) admin: [u64; 256],
    pub(super) io: [u64; 256],
    pub(super) tail_doorbells: u64,
    pub(super) head_doorbells: u64,
    pub(super) completions: u64,
    pub(super) interrupts: u64,
    pub(super) by_sgl: u64,
    pub(super) across_boundaries: u64,
}

/// The controller.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) violations: Vec<String>,
    /// Accesses that were outside all mappings.
    pub(super) iommu_faults: u64,
    pub(super) counters: Counters,
    /// It is in its place.
    pub(super) present: bool,
    /// Somebody has the function.
    pub(super) open: bool,
    /// The function that somebody has is still that of the controller: it has not been taken out since.
    pub(super) alive: bool,
    pub(super) bar: Arc<Bar>,
    pub(super) reach: Reach,
    pub(super) control: Control,
    pub(super) queues: Queues,
    pub(super) commands: Vec<Command>,
    pub(super) strays: Vec<Stray>,
    /// The number of the next command.
    pub(super) number: u64,
    pub(super) interrupts: Interrupts,
    pub(super) namespaces: Namespaces,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: Errors,
    pub(super) firmware: Firmware,
    pub(super) faults: Faults,
    /// Where the data of the command is that is being carried out.
    pub(super) pieces: Vec<Piece>,
    /// A block of data, on its way.
    pub(super) block: Vec<u8>,
    steps: Vec<Step>,
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> World {
        let interrupts = Interrupts::new(options.vectors);
        let counters = Counters {
            admin: [0; 256],
            io: [0; 256],
            tail_doorbells: 0,
            head_doorbells: 0,
            completions: 0,
            interrupts: 0,
            by_sgl: 0,
            across_boundaries: 0,
        };
        let mut world = World {
            random: Random(seed),
            violations: Vec::new(),
            iommu_faults: 0,
            counters,
            present: true,
            open: false,
            alive: false,
            bar: Arc::new(Bar::new(0, 0)),
            reach: Reach::default(),
            control: Control::default(),
            queues: Queues::default(),
            commands: Vec::new(),
            strays: Vec::new(),
            number: 0,
            interrupts,
            namespaces: Namespaces::new(&options.namespaces),
            features: Features::new(),
            events: Events::default(),
            errors: Errors::default(),
            firmware: Firmware::new(&options),
            faults: Faults::default(),
            pieces: Vec::new(),
            block: Vec::new(),
            steps: Vec::new(),
            options,
        };
        world.power_on();
        world
    }

    /// The driver did what it must not.
    pub(super) fn violate(&mut self, what: String) {
        // One that does it all the time is wrong once.
        if self.violations.len() < 1000 {
            self.violations.push(what);
        }
    }

    /// The driver did what it must not, and a command says so.
    pub(super) fn refuse<T>(&mut self, status: Status, what: String) -> Result<T, Status> {
        self.violate(what);
        Err(status)
    }

    /// The controller was to reach memory that it was not given.
    pub(super) fn iommu_fault(&mut self, iova: u64, len: u64, what: &str) {
        self.iommu_faults += 1;
        self.violate(format!("{what}: {len} bytes at {iova:#x} are not mapped"));
    }

    /// Lets one thing happen; false if nothing can.
    pub(super) fn step(&mut self) -> bool {
        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        self.list(&mut steps);
        let chosen = steps.get(self.random.index(steps.len())).copied();
        self.steps = steps;
        let Some(step) = chosen else { return false };
        self.perform(step);
        true
    }

    /// Everything that could happen next.
    fn list(&self, steps: &mut Vec<Step>) {
        if !self.alive {
            let written = |offset| self.bar.get(offset) != u32::MAX;
            if self.open && (0..self.bar.len()).step_by(4).any(written) {
                steps.push(Step::Gone);
            }
            return;
        }
        if self.registers_changed() {
            steps.push(Step::Registers);
        }
        if self.advances() {
            steps.push(Step::Advance);
        }
        for qid in 0..=self.last_doorbell() {
            for head in [false, true] {
                if self.bar.rung(self.doorbell(qid, head)) {
                    steps.push(Step::Doorbell { qid, head });
                }
            }
        }
        if self.control.is_running() {
            self.list_queues(steps);
        }
        if self.control.may_transfer() {
            let posts = self.control.is_running();
            for (index, command) in self.commands.iter().enumerate() {
                match command.stage {
                    Stage::Taken if posts || command.sqid != 0 => steps.push(Step::Execute(index)),
                    Stage::Late(_) => steps.push(Step::Wait(index)),
                    Stage::Done(_) if posts && self.may_post(command) => {
                        steps.push(Step::Post(index));
                    }
                    _ => {}
                }
            }
            if posts {
                let strays = self.strays.iter().enumerate();
                let room = strays.filter(|(_, stray)| self.queues.has_room(stray.cqid));
                steps.extend(room.map(|(index, _)| Step::Stray(index)));
                if self.events.can_tell() && self.listener().is_some() {
                    steps.push(Step::Event);
                }
            }
        }
        steps.extend(self.interrupts.due().map(Step::Interrupt));
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Gone => self.read_as_ones(),
            Step::Registers => self.take_registers(),
            Step::Advance => self.advance(),
            Step::Doorbell { qid, head: false } => self.take_tail(qid),
            Step::Doorbell { qid, head: true } => self.take_head(qid),
            Step::Shadow { qid, head: false } => self.look_at_tail(qid),
            Step::Shadow { qid, head: true } => self.look_at_head(qid),
            Step::Fetch(sqid) => self.fetch(sqid),
            Step::Execute(index) => self.execute(index),
            Step::Wait(index) => {
                if let Some(command) = self.commands.get_mut(index) {
                    command.stage = match command.stage {
                        Stage::Late(steps) if steps > 1 => Stage::Late(steps - 1),
                        _ => Stage::Taken,
                    };
                }
            }
            Step::Post(index) => self.post(index),
            Step::Stray(index) => {
                if index < self.strays.len() {
                    let stray = self.strays.swap_remove(index);
                    self.put(stray.cqid, stray.cqe);
                }
            }
            Step::Event => self.tell_event(),
            Step::Interrupt(vector) => {
                let lost = self.random.million(self.options.chaos.lost_interrupt)
                    || self.faults.lose_interrupt();
                if self.interrupts.signal(vector, lost) {
                    self.counters.interrupts += 1;
                }
            }
        }
    }

    /// Carries a command out.
    fn execute(&mut self, index: usize) {
        let Some(command) = self.commands.get(index).copied() else { return };
        let admin = command.sqid == 0;
        let counters = if admin { &mut self.counters.admin } else { &mut self.counters.io };
        if let Some(count) = counters.get_mut(usize::from(command.sqe.opcode)) {
            *count += 1;
        }
        let mut answer = match command.fail {
            // What becomes of the data of a command that fails, nobody knows.
            Some(status) if admin || self.random.coin() => Answer { status, dw0: 0 },
            Some(status) => {
                let _ = self.io(&command.sqe);
                Answer { status, dw0: 0 }
            }
            None if admin => match self.admin(&command) {
                Some(result) => result.into(),
                None => return,
            },
            None => self.io(&command.sqe).map(|()| 0).into(),
        };
        if !answer.status.is_success() {
            answer.status = self.errors.record(&command, answer.status);
        }
        // Admin commands may have taken others away before this one.
        let same = |other: &&mut Command| other.number == command.number;
        if let Some(command) = self.commands.iter_mut().find(same) {
            command.stage = Stage::Done(answer);
        }
    }

    /// Nothing is answered any more. Of what was not carried out so far, some is now; an answer is never given.
    pub(super) fn abandon_commands(&mut self) {
        while let Some(command) = self.commands.pop() {
            let begun = !matches!(command.stage, Stage::Done(_)) && command.sqid != 0;
            if begun && self.random.coin() {
                let _ = self.io(&command.sqe);
            }
        }
        self.strays.clear();
    }
}
