//! The commands of the admin queue: queues, aborts, and which of the other modules answers the rest.

use nvme::admin::{Abort, Command as AdminCommand, Opcode};
use nvme::pcie::{self, CreateIoCompletionQueue, CreateIoSubmissionQueue};
use nvme::register::offset;
use nvme::{NSID_ALL, Prps, Status};

use super::queue::{CompletionQueue, SubmissionQueue};
use super::world::{After, Answer, Command, Stage, World};

impl World {
    /// Carries an admin command out; none if it is not to be answered now.
    pub(super) fn admin(&mut self, command: &Command) -> Option<Result<u32, Status>> {
        let sqe = &command.sqe;
        if let Ok(Opcode::AsynchronousEventRequest) = Opcode::try_from(sqe.opcode) {
            return self.listen(command);
        }
        let result = match AdminCommand::parse(sqe) {
            Ok(AdminCommand::Identify(identify)) => self.identify(sqe, identify),
            Ok(AdminCommand::GetLogPage(page)) => self.get_log_page(sqe, &page),
            Ok(AdminCommand::GetFeatures(get)) => self.get_features(sqe, get),
            Ok(AdminCommand::SetFeatures(set)) => self.set_features(sqe, &set),
            Ok(AdminCommand::Abort(abort)) => self.abort(command, abort),
            Ok(AdminCommand::AsynchronousEventRequest) => Ok(0),
            Ok(AdminCommand::KeepAlive) => Err(Status::INVALID_OPCODE),
            Err(_) => self.pcie_command(command),
        };
        Some(result.map_err(|status| {
            if status.same_code(Status::DATA_TRANSFER_ERROR) { status } else { status.with_dnr() }
        }))
    }

    fn pcie_command(&mut self, command: &Command) -> Result<u32, Status> {
        let prps = command.sqe.prps();
        match pcie::Command::parse(&command.sqe)? {
            pcie::Command::CreateIoCompletionQueue(create) => self.create_cq(create, prps),
            pcie::Command::CreateIoSubmissionQueue(create) => self.create_sq(create, prps),
            pcie::Command::DeleteIoCompletionQueue(qid) => self.delete_cq(qid),
            pcie::Command::DeleteIoSubmissionQueue(qid) => self.delete_sq(command.number, qid),
            pcie::Command::DoorbellBufferConfig => self.use_shadow_doorbells(prps),
            pcie::Command::FirmwareImageDownload(download) => {
                self.download_firmware(&command.sqe, download)
            }
            pcie::Command::FirmwareCommit(commit) => self.commit_firmware(commit),
        }
    }

    /// What the two creations have in common: identifier, size, place.
    fn check_creation(
        &mut self,
        (name, qid, exists): (&str, u16, bool),
        granted: Option<u16>,
        (entries, entry_size, configured): (u32, u64, u8),
        contiguous: bool,
        prps: Prps,
    ) -> Result<(), Status> {
        let name = format!("{name} queue {qid}");
        let Some(granted) = granted else {
            let what = format!("{name} created before the number of queues was set");
            return self.refuse(Status::INVALID_QUEUE_ID, what);
        };
        if qid == 0 || qid > granted || exists {
            let what = format!("{name} created: 0, more than {granted}, or there");
            return self.refuse(Status::INVALID_QUEUE_ID, what);
        }
        if entries < 2 || entries > u32::from(self.options.mqes) + 1 {
            let what = format!("{name} created with {entries} entries");
            return self.refuse(Status::INVALID_QUEUE_SIZE, what);
        }
        if 1 << configured != entry_size {
            let what = format!("{name} created, and CC gives entries 2^{configured} bytes");
            return self.refuse(Status::INVALID_QUEUE_SIZE, what);
        }
        if !contiguous {
            let what = format!("{name} is not contiguous, and CAP.CQR demands it");
            return self.refuse(Status::INVALID_FIELD, what);
        }
        if !prps.first.is_multiple_of(self.control.page()) {
            let what = format!("{name} at {:#x} does not begin a page", prps.first);
            return self.refuse(Status::PRP_OFFSET_INVALID, what);
        }
        if prps.second != 0 {
            self.violate(format!("{name} created with PRP Entry 2"));
        }
        let len = u64::from(entries) * entry_size;
        if !self.reach.covers(prps.first, len) {
            self.iommu_fault(prps.first, len, &name);
            return Err(Status::DATA_TRANSFER_ERROR);
        }
        Ok(())
    }

    fn create_cq(&mut self, create: CreateIoCompletionQueue, prps: Prps) -> Result<u32, Status> {
        let CreateIoCompletionQueue { qid, entries, contiguous, vector } = create;
        let exists = self.queues.completion.contains_key(&qid);
        let granted = self.queues.granted.map(|(_, completion)| completion);
        let size = (entries, 16, self.control.cc.iocqes);
        self.check_creation(("completion", qid, exists), granted, size, contiguous, prps)?;
        if vector.is_some_and(|vector| usize::from(vector) >= self.interrupts.len()) {
            let what = format!("completion queue {qid} with vector {vector:?}");
            return self.refuse(Status::INVALID_INTERRUPT_VECTOR, what);
        }
        self.check_phases(qid, prps.first, entries);
        if self.bar.rung(self.doorbell(qid, true)) {
            self.take_head(qid);
        }
        self.check_shadow(qid, true);
        self.queues.completion.insert(qid, CompletionQueue::new(prps.first, entries, vector));
        Ok(0)
    }

    fn create_sq(&mut self, create: CreateIoSubmissionQueue, prps: Prps) -> Result<u32, Status> {
        let CreateIoSubmissionQueue { qid, entries, contiguous, cqid, nvmsetid, .. } = create;
        let exists = self.queues.submission.contains_key(&qid);
        let granted = self.queues.granted.map(|(submission, _)| submission);
        let size = (entries, 64, self.control.cc.iosqes);
        self.check_creation(("submission", qid, exists), granted, size, contiguous, prps)?;
        if cqid == 0 || !self.queues.completion.contains_key(&cqid) {
            let what = format!("submission queue {qid} with completion queue {cqid}");
            let beyond = granted.is_some_and(|granted| cqid > granted);
            let status = if cqid == 0 || beyond {
                Status::INVALID_QUEUE_ID
            } else {
                Status::INVALID_COMPLETION_QUEUE
            };
            return self.refuse(status, what);
        }
        if nvmsetid != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if self.bar.rung(self.doorbell(qid, false)) {
            self.take_tail(qid);
        }
        self.check_shadow(qid, false);
        self.queues.submission.insert(qid, SubmissionQueue::new(prps.first, entries, cqid));
        Ok(0)
    }

    fn delete_cq(&mut self, qid: u16) -> Result<u32, Status> {
        if qid == 0 || !self.queues.completion.contains_key(&qid) {
            let what = format!("completion queue {qid} deleted, which does not exist");
            return self.refuse(Status::INVALID_QUEUE_ID, what);
        }
        if self.queues.submission.values().any(|queue| queue.cqid == qid) {
            let what = format!("completion queue {qid} deleted before its submission queues");
            return self.refuse(Status::INVALID_QUEUE_DELETION, what);
        }
        self.queues.completion.remove(&qid);
        self.bar.take(self.doorbell(qid, true));
        self.strays.retain(|stray| stray.cqid != qid);
        Ok(0)
    }

    /// Commands that are outstanding end now: with a completion that says so before that of the deletion, or without any.
    fn delete_sq(&mut self, number: u64, qid: u16) -> Result<u32, Status> {
        let exists = self.queues.submission.get_mut(&qid).filter(|_| qid > 0);
        let Some(queue) = exists.filter(|queue| !queue.deleting) else {
            let what = format!("submission queue {qid} deleted, which does not exist");
            return self.refuse(Status::INVALID_QUEUE_ID, what);
        };
        queue.deleting = true;
        let cqid = queue.cqid;
        self.bar.take(self.doorbell(qid, false));
        let random = &mut self.random;
        self.commands.retain(|command| command.sqid != qid || random.coin());
        let aborted = Stage::Done(Answer { status: Status::ABORTED_SQ_DELETION, dw0: 0 });
        for command in &mut self.commands {
            if command.sqid == qid && !matches!(command.stage, Stage::Done(_)) {
                command.stage = aborted;
            }
            if command.number == number {
                command.after = After::Queue(qid);
            }
        }
        self.strays.retain(|stray| stray.cqid != cqid || stray.cqe.sqid.get() != qid);
        Ok(0)
    }

    /// Dword 0 says whether the command was aborted.
    fn abort(&mut self, command: &Command, abort: Abort) -> Result<u32, Status> {
        let aborts = |other: &&Command| other.sqid == 0 && other.sqe.opcode == Opcode::Abort.code();
        if self.commands.iter().filter(aborts).count() > usize::from(self.options.acl) + 1 {
            return Err(Status::ABORT_LIMIT_EXCEEDED);
        }
        if !self.queues.submission.contains_key(&abort.sqid) {
            let what = format!("abort of a command of queue {}, which does not exist", abort.sqid);
            return self.refuse(Status::INVALID_FIELD, what);
        }
        let works = self.random.number() % 1000 < u64::from(self.options.aborts);
        let victim = self.commands.iter_mut().find(|other| {
            let same = other.sqid == abort.sqid && other.sqe.cid.get() == abort.cid;
            same && other.number != command.number && !matches!(other.stage, Stage::Done(_))
        });
        let Some(victim) = victim.filter(|_| works) else { return Ok(Abort::dw0(false)) };
        victim.stage = Stage::Done(Answer { status: Status::ABORT_REQUESTED, dw0: 0 });
        let after = After::Command(victim.number);
        for other in &mut self.commands {
            if other.number == command.number {
                other.after = after;
            }
        }
        Ok(Abort::dw0(true))
    }

    fn use_shadow_doorbells(&mut self, prps: Prps) -> Result<u32, Status> {
        if !self.options.shadow_doorbells {
            let what = "Doorbell Buffer Config sent, which is not in OACS".to_owned();
            return self.refuse(Status::INVALID_OPCODE, what);
        }
        let page = self.control.page();
        for place in [prps.first, prps.second] {
            if !place.is_multiple_of(page) {
                let what = format!("doorbell buffer {place:#x} does not begin a page");
                return self.refuse(Status::INVALID_FIELD, what);
            }
            if !self.reach.covers(place, page) {
                self.iommu_fault(place, page, "doorbell buffer");
                return Err(Status::DATA_TRANSFER_ERROR);
            }
        }
        let end = self.doorbell(self.options.queues, true) + offset::stride(self.options.dstrd);
        if (end - offset::DOORBELLS) as u64 > page {
            return Err(Status::INTERNAL_ERROR);
        }
        self.queues.shadow = Some((prps.first, prps.second));
        Ok(0)
    }

    /// The namespace that a command names, which has to be there.
    pub(super) fn named(&mut self, nsid: u32) -> Result<u32, Status> {
        if nsid == 0 || nsid == NSID_ALL {
            let what = format!("admin command for namespace {nsid:x}h");
            return self.refuse(Status::INVALID_NAMESPACE, what);
        }
        let found = self.namespaces.all.get(&nsid);
        found.map(|_| nsid).ok_or(Status::INVALID_NAMESPACE)
    }
}
