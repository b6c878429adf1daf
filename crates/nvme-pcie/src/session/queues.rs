//! The I/O queues of a session, and who uses which.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme::admin::{Command, SetFeatures};
use nvme::command::Prps;
use nvme::feature::{Feature, NumberOfQueues};
use nvme::identify::OptionalAdminCommands;
use nvme::pcie::{self, CreateIoCompletionQueue, CreateIoSubmissionQueue, Priority};
use nvme::register::offset;

use super::{End, QUEUES_IOVA, SCRATCH_IOVA, SHADOW_IOVA, Session, WINDOW};
use crate::admin::{AdminError, Data};
use crate::doorbell::Shadow;
use crate::pages::PAGE_SIZE;
use crate::pointers::Scratch;
use crate::queue_pair::{QueuePair, Shape};
use crate::scan;
use crate::seat::{SLOTS_MOST, Seat, SharedPair, Vector};

impl Session<'_> {
    /// Has the controller take doorbells from memory, if it can.
    pub(super) async fn shadow_doorbells(
        &self,
        controller: &scan::Controller,
    ) -> Result<Option<Shadow>, End> {
        let commands = OptionalAdminCommands::from_bits_truncate(controller.identify.oacs.get());
        if !self.options.shadow_doorbells
            || self.shared.without_shadow.load(Ordering::Relaxed)
            || !commands.contains(OptionalAdminCommands::DOORBELL_BUFFER)
        {
            return Ok(None);
        }
        let doorbells = self.map(PAGE_SIZE, SHADOW_IOVA)?;
        let indices = self.map(PAGE_SIZE, SHADOW_IOVA + WINDOW)?;
        let prps = Prps { first: doorbells.iova(), second: indices.iova() };
        let configure =
            self.admin.command(pcie::Command::DoorbellBufferConfig.to_sqe(prps), Data::None);
        let answer: Result<_, AdminError> =
            self.admin_step("", async { Ok(configure.await) }).await?;
        if let Err(error) = answer {
            // It may look there all the same: only a reset makes sure that it does not.
            self.shared.without_shadow.store(true, Ordering::Relaxed);
            return Err(End::Reset(format!("it does not take shadow doorbells: {error}")));
        }
        Ok(Some(Shadow { doorbells, indices }))
    }

    /// Makes the I/O queues: a place for each reactor.
    pub(super) async fn seats(&self, shadow: Option<&Shadow>) -> Result<Vec<Seat>, End> {
        let reactors = self.shared.link.reactors();
        let most = self.options.io_queues.clamp(1, 4096);
        let wanted = u16::try_from(reactors).unwrap_or(u16::MAX).clamp(1, most) - 1;
        let number = NumberOfQueues { submission: wanted, completion: wanted };
        let set = Command::SetFeatures(SetFeatures::new(Feature::NumberOfQueues, number.into()))
            .to_sqe(0);
        let answer = self
            .admin_step("setting the number of queues", self.admin.command(set, Data::None))
            .await?;
        let granted = NumberOfQueues::from(answer.completion.dw0());
        // Doorbells that are not in the registers cannot be rung.
        let end = |qid: u16| offset::head_doorbell(qid, self.capabilities.dstrd) + 4;
        let reachable = (1..=wanted.saturating_add(1))
            .take_while(|qid| end(*qid) <= self.function.registers().len())
            .count();
        let reachable = u16::try_from(reachable).unwrap_or(u16::MAX);
        let least = granted.submission.min(granted.completion).saturating_add(1);
        let pairs = least.min(wanted.saturating_add(1)).min(reachable);
        if pairs == 0 {
            return Err(End::Failed("it has no I/O queues".to_owned()));
        }
        if usize::from(pairs) < reactors {
            tracing::warn!(
                "{}: {pairs} queue pairs for {reactors} reactors: they share them",
                self.shared.name()
            );
        }
        let shape = Shape::new(
            self.options.queue_depth.clamp(1, SLOTS_MOST),
            u32::from(self.capabilities.mqes) + 1,
        );
        let mut made = Vec::new();
        for qid in 1..=pairs {
            let vector = self.vector(qid, pairs);
            made.push((self.queue_pair(qid, shape, shadow, vector.as_ref()).await?, vector));
        }
        self.assign(made, reactors)
    }

    /// The vector of an I/O queue pair, of so many.
    fn vector(&self, qid: u16, pairs: u16) -> Option<Vector> {
        let others = u16::try_from(self.vectors.len()).ok()?.checked_sub(1)?;
        // The first is the admin queue's, and everybody's if there is no other.
        let number = if others == 0 { 0 } else { 1 + (qid - 1) % others };
        let eventfd = Arc::clone(self.vectors.get(usize::from(number))?);
        Some(Vector { number, eventfd, own: pairs <= others })
    }

    async fn queue_pair(
        &self,
        qid: u16,
        shape: Shape,
        shadow: Option<&Shadow>,
        vector: Option<&Vector>,
    ) -> Result<QueuePair, End> {
        let memory = self.map(shape.bytes(), QUEUES_IOVA + u64::from(qid) * WINDOW)?;
        let entries = u32::from(shape.completions);
        let vector = vector.map(|vector| vector.number);
        let create = CreateIoCompletionQueue { qid, entries, contiguous: true, vector };
        let completions_at = u64::try_from(shape.completions_at()).unwrap_or(u64::MAX);
        let at = |offset: u64| Prps { first: memory.iova() + offset, second: 0 };
        let sqe = pcie::Command::CreateIoCompletionQueue(create).to_sqe(at(completions_at));
        self.admin_step("creating a completion queue", self.admin.command(sqe, Data::None)).await?;
        let entries = u32::from(shape.submissions);
        let create = CreateIoSubmissionQueue {
            qid,
            entries,
            contiguous: true,
            priority: Priority::Medium,
            cqid: qid,
            nvmsetid: 0,
        };
        let sqe = pcie::Command::CreateIoSubmissionQueue(create).to_sqe(at(0));
        self.admin_step("creating a submission queue", self.admin.command(sqe, Data::None)).await?;
        Ok(QueuePair::new(self.function, &memory, qid, shape, self.capabilities.dstrd, shadow))
    }

    /// Gives every reactor its place.
    fn assign(
        &self,
        pairs: Vec<(QueuePair, Option<Vector>)>,
        reactors: usize,
    ) -> Result<Vec<Seat>, End> {
        let scratch = |reactor: usize, slots: u16| {
            let iova = SCRATCH_IOVA + u64::try_from(reactor).unwrap_or(0) * WINDOW;
            self.map(Scratch::bytes(slots), iova).map(Scratch::new)
        };
        let count = pairs.len();
        if count >= reactors {
            let each = pairs.into_iter().enumerate();
            let seat = |(reactor, (pair, vector)): (usize, (QueuePair, Option<Vector>))| {
                let scratch = scratch(reactor, pair.slots().min(SLOTS_MOST))?;
                Ok(Seat::own(self.function, pair, scratch, vector))
            };
            return each.map(seat).collect();
        }
        let members = u16::try_from(reactors.div_ceil(count)).unwrap_or(u16::MAX);
        if let Some((pair, _)) = pairs.iter().find(|(pair, _)| pair.slots() < members) {
            let entries = pair.shape().submissions;
            return Err(End::Failed(format!(
                "its {count} queues of {entries} entries are too few for {reactors} reactors: run fewer"
            )));
        }
        let share = |(pair, vector)| (Arc::new(SharedPair::new(pair, members)), vector);
        let shared: Vec<_> = pairs.into_iter().map(share).collect();
        let seat = |reactor: usize| {
            let Some((pair, vector)) = shared.get(reactor % count) else {
                return Err(End::Failed("a reactor without a queue".to_owned()));
            };
            let member = u16::try_from(reactor / count).unwrap_or(u16::MAX);
            let scratch = scratch(reactor, pair.share())?;
            Ok(Seat::shared(self.function, pair, member, scratch, vector.clone()))
        };
        (0..reactors).map(seat).collect()
    }
}
