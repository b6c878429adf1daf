//! The registers: how the controller is enabled, disabled, shut down and reset.

use std::sync::Arc;

use nvme::register::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, ReadyTimeouts,
    ShutdownNotification, ShutdownStatus, Version, offset,
};

use super::bytes::Bar;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::world::World;

/// Registers that are there, from the first on, each of four bytes.
const WORDS: usize = 28;

/// Whether it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Disabled,
    /// It becomes ready in so many steps.
    Starting(u32),
    Ready,
    /// It becomes not ready in so many steps.
    Stopping(u32),
}

/// The registers by their meaning.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) state: State,
    pub(super) cc: Configuration,
    pub(super) csts: ControllerStatus,
    /// A shutdown goes on, of which so many steps remain.
    shutdown: Option<u32>,
    /// Becoming ready fails this time.
    refuses: bool,
    /// What the registers held when they were last looked at.
    seen: [u32; WORDS],
}

impl Control {
    /// Commands are taken and answered.
    pub(super) fn is_running(&self) -> bool {
        self.state == State::Ready && !self.csts.cfs
    }

    /// Commands may be carried out: until it is not ready any more, a controller may go on with what it has.
    pub(super) fn may_transfer(&self) -> bool {
        matches!(self.state, State::Ready | State::Stopping(_)) && !self.csts.cfs
    }

    /// Bytes of a memory page (CC.MPS).
    pub(super) fn page(&self) -> u64 {
        4096 << self.cc.mps
    }

    /// A register as it was last seen.
    fn seen(&self, offset: usize) -> u32 {
        self.seen.get(offset / 4).copied().unwrap_or(u32::MAX)
    }

    fn seen64(&self, offset: usize) -> u64 {
        u64::from(self.seen(offset)) | u64::from(self.seen(offset + 4)) << 32
    }
}

impl World {
    fn capabilities(&self) -> Capabilities {
        let options = &self.options;
        let modern = options.version >= Version::V2_0;
        let sets = if modern { Capabilities::CSS_IO_COMMAND_SETS } else { 0 };
        Capabilities {
            mqes: options.mqes,
            cqr: true,
            to: options.to,
            dstrd: options.dstrd,
            css: Capabilities::CSS_NVM | sets,
            mpsmin: options.mpsmin,
            mpsmax: options.mpsmax,
            crms: u8::from(modern),
            ..Capabilities::default()
        }
    }

    /// The last queue that has doorbells. There are some more than queues, so that ringing them is noticed.
    pub(super) fn last_doorbell(&self) -> u16 {
        self.options.queues.saturating_add(3)
    }

    pub(super) fn doorbell(&self, qid: u16, head: bool) -> usize {
        let place = if head { offset::head_doorbell } else { offset::tail_doorbell };
        place(qid, self.options.dstrd)
    }

    /// Everything is as when power comes, but what is stored for good.
    pub(super) fn power_on(&mut self) {
        let len = self.doorbell(self.last_doorbell(), true) + offset::stride(self.options.dstrd);
        self.bar = Arc::new(Bar::new(offset::DOORBELLS, len.next_multiple_of(4096)));
        self.reset_registers();
    }

    /// Everything but what is stored for good and what the function is connected to is as when power comes.
    pub(super) fn reset_function(&mut self) {
        self.abandon_commands();
        self.absorb_doorbells();
        self.interrupts.reset();
        self.reset_controller();
        self.reset_registers();
    }

    fn reset_registers(&mut self) {
        self.control = Control::default();
        let capabilities = self.capabilities().bits();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = capabilities.to_le_bytes();
        for at in 0..WORDS {
            self.bar.set(at * 4, 0);
        }
        self.show(offset::CAP, u32::from_le_bytes([c0, c1, c2, c3]));
        self.show(offset::CAP + 4, u32::from_le_bytes([c4, c5, c6, c7]));
        self.show(offset::VS, self.options.version.bits());
        if self.options.version >= Version::V2_0 {
            let timeouts = ReadyTimeouts { crwmt: u16::from(self.options.to), crimt: 0 };
            self.show(offset::CRTO, timeouts.bits());
        }
        self.interrupts.reset();
    }

    /// Puts a value into a register.
    fn show(&mut self, offset: usize, value: u32) {
        self.bar.set(offset, value);
        if let Some(seen) = self.control.seen.get_mut(offset / 4) {
            *seen = value;
        }
    }

    pub(super) fn show_status(&mut self) {
        self.show(offset::CSTS, self.control.csts.bits());
    }

    /// As all registers of a device read that is not there.
    pub(super) fn read_as_ones(&self) {
        (0..self.bar.len()).step_by(4).for_each(|at| self.bar.set(at, u32::MAX));
    }

    pub(super) fn registers_changed(&self) -> bool {
        (0..).step_by(4).zip(&self.control.seen).any(|(at, &seen)| self.bar.get(at) != seen)
    }

    /// Takes what was written to registers: CC after all others, as a driver writes it.
    pub(super) fn take_registers(&mut self) {
        let enabled = self.control.cc.en;
        for at in (0..WORDS * 4).step_by(4) {
            let (value, seen) = (self.bar.get(at), self.control.seen(at));
            if value == seen || at == offset::CC {
                continue;
            }
            match at {
                offset::AQA | 0x28..=0x37 => {
                    if enabled {
                        self.violate(format!("register {at:#x} written while CC.EN is set"));
                    }
                    self.show(at, value);
                }
                offset::INTMS | offset::INTMC if self.options.vectors == 0 => {
                    let mask = if at == offset::INTMS { seen | value } else { seen & !value };
                    self.show(offset::INTMS, mask);
                    self.show(offset::INTMC, mask);
                }
                _ => {
                    self.violate(format!("register {at:#x} is not to be written"));
                    self.bar.set(at, seen);
                }
            }
        }
        let value = self.bar.get(offset::CC);
        if value != self.control.seen(offset::CC) {
            self.show(offset::CC, value);
            self.configure(value);
        }
    }

    /// CC was written.
    fn configure(&mut self, value: u32) {
        let (old, new) = (self.control.cc, Configuration::from_bits(value));
        if value != new.bits() {
            self.violate(format!("CC {value:#x} has reserved bits"));
        }
        let sizes = |cc: Configuration| (cc.iosqes, cc.iocqes);
        let fixed = |cc: Configuration| (cc.css, cc.mps, cc.ams, cc.crime);
        let io_queues = self.queues.submission.len() + self.queues.completion.len() > 2;
        if old.en && (fixed(old) != fixed(new) || io_queues && sizes(old) != sizes(new)) {
            self.violate(format!("CC changed to {value:#x} while CC.EN is set"));
        }
        self.control.cc = new;
        match (old.en, new.en) {
            (false, true) => self.enable(),
            (true, false) => self.disable(),
            _ => {}
        }
        if new.shn != old.shn {
            match new.shn {
                ShutdownNotification::None if self.control.csts.rdy && new.en => {
                    self.violate("CC.SHN cleared without a reset".to_owned());
                }
                ShutdownNotification::None => {}
                ShutdownNotification::Reserved => self.violate("CC.SHN is reserved".to_owned()),
                ShutdownNotification::Normal | ShutdownNotification::Abrupt => {
                    self.absorb_doorbells();
                    self.control.csts.shst = ShutdownStatus::Occurring;
                    self.control.shutdown = Some(self.options.ready_steps);
                    self.show_status();
                }
            }
        }
    }

    fn enable(&mut self) {
        let cc = self.control.cc;
        if self.control.state != State::Disabled || self.control.csts.rdy {
            self.violate("CC.EN set before CSTS.RDY was clear".to_owned());
            self.reset_controller();
        }
        if cc.shn != ShutdownNotification::None {
            self.violate("CC.EN and CC.SHN set together".to_owned());
        }
        self.control.csts = ControllerStatus::default();
        self.control.shutdown = None;
        let modern = self.options.version >= Version::V2_0;
        let wrong = [
            (cc.css != 0 && !(modern && cc.css == 6), "CC.CSS names no command set of CAP.CSS"),
            (
                cc.mps < self.options.mpsmin || cc.mps > self.options.mpsmax,
                "CC.MPS is not between CAP.MPSMIN and CAP.MPSMAX",
            ),
            (cc.ams != 0, "CC.AMS names no arbitration of CAP.AMS"),
            (cc.crime, "CC.CRIME is set, and CAP.CRMS does not allow it"),
        ];
        for (_, what) in wrong.into_iter().filter(|&(wrong, _)| wrong) {
            self.violate(what.to_owned());
            self.control.csts.cfs = true;
        }
        self.control.state = State::Starting(self.options.ready_steps);
        self.control.refuses = self.random.million(self.options.chaos.not_ready);
        self.show_status();
    }

    fn disable(&mut self) {
        let ready = self.control.csts.rdy || self.control.csts.cfs;
        if !ready && !self.faults.never_ready && !self.control.refuses {
            self.violate("CC.EN cleared before CSTS.RDY was set".to_owned());
        }
        self.absorb_doorbells();
        self.control.state = State::Stopping(self.options.ready_steps);
    }

    /// What was rung before a queue ceased to be is not wrong, and of no effect.
    fn absorb_doorbells(&mut self) {
        for qid in 0..=self.last_doorbell() {
            for head in [false, true] {
                self.bar.take(self.doorbell(qid, head));
            }
        }
    }

    /// Whether [`Self::advance`] has something to do.
    pub(super) fn advances(&self) -> bool {
        let goes_on = match self.control.state {
            State::Starting(_) => {
                !self.faults.never_ready && !self.control.refuses && !self.control.csts.cfs
            }
            State::Stopping(_) => !self.faults.never_not_ready,
            State::Disabled | State::Ready => false,
        };
        goes_on || self.control.shutdown.is_some() && !self.control.csts.cfs
    }

    pub(super) fn advance(&mut self) {
        match self.control.shutdown {
            Some(0) => {
                if self.control.cc.shn == ShutdownNotification::Normal {
                    self.namespaces.flush_all();
                }
                self.control.shutdown = None;
                self.control.csts.shst = ShutdownStatus::Complete;
                self.show_status();
            }
            Some(steps) => self.control.shutdown = Some(steps - 1),
            None => {}
        }
        match self.control.state {
            State::Starting(_) if self.faults.never_ready || self.control.refuses => {}
            State::Stopping(_) if self.faults.never_not_ready => {}
            State::Starting(0) => self.become_ready(),
            State::Starting(steps) => self.control.state = State::Starting(steps - 1),
            State::Stopping(0) => {
                self.abandon_commands();
                self.reset_controller();
                self.control.csts = ControllerStatus::default();
                self.show_status();
            }
            State::Stopping(steps) => self.control.state = State::Stopping(steps - 1),
            State::Disabled | State::Ready => {}
        }
    }

    /// A Controller Level Reset: queues and features are gone.
    fn reset_controller(&mut self) {
        self.commands.clear();
        self.strays.clear();
        self.queues.clear();
        self.features.reset();
        self.events.reset();
        self.firmware.reset();
        self.control.state = State::Disabled;
        self.control.shutdown = None;
        self.control.refuses = false;
    }

    fn become_ready(&mut self) {
        let sizes = AdminQueueAttributes::from_bits(self.control.seen(offset::AQA));
        let (asq, acq) = (self.control.seen64(offset::ASQ), self.control.seen64(offset::ACQ));
        let (submissions, completions) = (u32::from(sizes.asqs) + 1, u32::from(sizes.acqs) + 1);
        let before = self.violations.len();
        if self.control.seen(offset::AQA) != sizes.bits() {
            self.violate("AQA has reserved bits".to_owned());
        }
        for (name, base, entries, bytes) in
            [("ASQ", asq, submissions, 64), ("ACQ", acq, completions, 16)]
        {
            if entries < 2 {
                self.violate(format!("AQA gives {name} fewer than two entries"));
            }
            if !base.is_multiple_of(self.control.page()) {
                self.violate(format!("{name} {base:#x} is not aligned to a page"));
            }
            let len = u64::from(entries) * bytes;
            if !self.reach.covers(base, len) {
                self.iommu_fault(base, len, name);
            }
        }
        self.check_phases(0, acq, completions);
        if self.violations.len() > before {
            self.control.csts.cfs = true;
            self.show_status();
            return;
        }
        let vector = (self.options.vectors > 0).then_some(0);
        self.queues.completion.insert(0, CompletionQueue::new(acq, completions, vector));
        self.queues.submission.insert(0, SubmissionQueue::new(asq, submissions, 0));
        self.control.state = State::Ready;
        self.control.csts.rdy = true;
        self.show_status();
    }

    /// The controller fails for good, until it is reset.
    pub(super) fn fail(&mut self) {
        self.control.csts.cfs = true;
        self.show_status();
    }
}
