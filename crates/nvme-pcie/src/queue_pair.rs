//! A submission queue, its completion queue and their doorbells: the rings themselves, without any idea of what is in them.
//!
//! NVMe Base 2.0c, section 3.3.1. One user at a time. Submission entries leave when they are rung for, which the user does once per turn;
//! completions are told of when there are enough of them, or when the user has nothing better to do. What the user owes the rings: never more
//! commands outstanding than [`QueuePair::slots`], which is one less than the submission queue has entries, so it can never overrun.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme::{Cqe, Sqe};

use crate::Pages;
use crate::doorbell::{Doorbell, End, Shadow};
use crate::function::Function;

/// Bytes of a submission entry, and of a completion entry.
const SQE: usize = size_of::<Sqe>();
const CQE: usize = size_of::<Cqe>();
const _: () = assert!(SQE == 64 && CQE == 16);

/// Completions that are taken before the device is told, if the queue is long enough.
const COMPLETIONS_PER_DOORBELL: u16 = 16;

/// How long the two rings are, and where in their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Entries of the submission queue, at least 2.
    pub(crate) submissions: u16,
    /// Entries of the completion queue, at least as many.
    pub(crate) completions: u16,
}

impl Shape {
    /// Rings for `depth` commands on a controller that allows queues of `most` entries (CAP.MQES + 1). The completion queue is twice as long where
    /// it may be, so that completions need not be told of at once.
    pub(crate) fn new(depth: u16, most: u32) -> Shape {
        let cut = |entries: u32| u16::try_from(entries.min(most)).unwrap_or(u16::MAX).max(2);
        let submissions = cut(u32::from(depth) + 1);
        Shape { submissions, completions: cut(u32::from(submissions) * 2) }
    }

    /// Where the completion queue begins: on a page of its own.
    pub(crate) fn completions_at(self) -> usize {
        (usize::from(self.submissions) * SQE).next_multiple_of(crate::pages::PAGE_SIZE)
    }

    /// Bytes of both.
    pub(crate) fn bytes(self) -> usize {
        let end = self.completions_at() + usize::from(self.completions) * CQE;
        end.next_multiple_of(crate::pages::PAGE_SIZE)
    }
}

/// The rings. The queues begin at offset 0 of their memory, which is zeroed.
#[derive(Debug)]
pub(crate) struct QueuePair {
    function: Arc<dyn Function>,
    memory: Arc<Pages>,
    qid: u16,
    shape: Shape,
    tail: u16,
    tail_doorbell: Doorbell,
    head: u16,
    phase: bool,
    /// Completions taken that the device has not been told of.
    untold: u16,
    head_doorbell: Doorbell,
}

impl QueuePair {
    pub(crate) fn new(
        function: &Arc<dyn Function>,
        memory: &Arc<Pages>,
        qid: u16,
        shape: Shape,
        stride: u8,
        shadow: Option<&Shadow>,
    ) -> QueuePair {
        QueuePair {
            function: Arc::clone(function),
            memory: Arc::clone(memory),
            qid,
            shape,
            tail: 0,
            tail_doorbell: Doorbell::new(qid, End::SubmissionTail, stride, shadow),
            head: 0,
            phase: true,
            untold: 0,
            head_doorbell: Doorbell::new(qid, End::CompletionHead, stride, shadow),
        }
    }

    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Commands that may be outstanding at a time.
    pub(crate) fn slots(&self) -> u16 {
        self.shape.submissions - 1
    }

    /// Puts an entry in. The device finds it when the doorbell is rung.
    #[inline]
    pub(crate) fn push(&mut self, sqe: &Sqe) {
        let stored = self.memory.put(usize::from(self.tail) * SQE, sqe);
        debug_assert!(stored, "the queue lies in its memory");
        self.tail = next(self.tail, self.shape.submissions);
    }

    /// Tells the device of what was put in since the last time; whether that took a write to its register.
    #[inline]
    pub(crate) fn ring(&mut self) -> bool {
        self.tail != self.tail_doorbell.value()
            && self.tail_doorbell.ring(self.function.registers(), self.tail)
    }

    /// Whether the device has put a completion in.
    #[inline]
    pub(crate) fn has_completion(&self) -> bool {
        let at = self.shape.completions_at() + usize::from(self.head) * CQE + (CQE - 2);
        let status = self.memory.word16(at).map(|word| word.load(Ordering::Acquire));
        status.is_some_and(|status| (u16::from_le(status) & 1 == 1) == self.phase)
    }

    /// Takes the next completion.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Cqe> {
        if !self.has_completion() {
            return None;
        }
        let at = self.shape.completions_at() + usize::from(self.head) * CQE;
        let completion = self.memory.get::<Cqe>(at)?;
        self.head = next(self.head, self.shape.completions);
        self.phase ^= self.head == 0;
        self.untold += 1;
        Some(completion)
    }

    /// Tells the device which completions were taken, if there are enough of them; or at any rate, `idle`, since nothing more may come for long. Whether
    /// that took a write to its register.
    #[inline]
    pub(crate) fn acknowledge(&mut self, idle: bool) -> bool {
        let enough = COMPLETIONS_PER_DOORBELL.min(self.shape.completions / 4).max(1);
        if self.untold < enough && !(idle && self.untold > 0) {
            return false;
        }
        self.untold = 0;
        self.head_doorbell.ring(self.function.registers(), self.head)
    }
}

fn next(place: u16, entries: u16) -> u16 {
    if place + 1 == entries { 0 } else { place + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_as_long_as_the_controller_allows() {
        let shape = Shape::new(128, 1 << 16);
        assert_eq!((shape.submissions, shape.completions), (129, 258));
        assert_eq!(shape.completions_at(), 3 * 4096);
        assert_eq!(shape.bytes(), 5 * 4096);
        let short = Shape::new(128, 2);
        assert_eq!((short.submissions, short.completions), (2, 2));
        let long = Shape::new(u16::MAX, 1 << 16);
        assert_eq!((long.submissions, long.completions), (u16::MAX, u16::MAX));
    }
}
