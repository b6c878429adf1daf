//! A host: a controller with I/O queues, and what is under way on them.

use std::collections::BTreeMap;
use std::rc::Rc;

use testkit::Random;
use testkit::rdma::{Controller, Machine, Queue};

use crate::command::{Bounds, Command};

/// Bytes of a host's memory.
pub(crate) const MEMORY: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) number: usize,
    pub(crate) machine: Rc<Machine>,
    pub(crate) controller: Option<Controller>,
    pub(crate) queues: Vec<IoQueue>,
    pub(crate) bounds: Bounds,
    pub(crate) next_qid: u16,
}

#[derive(Debug)]
pub(crate) struct IoQueue {
    pub(crate) queue: Queue,
    pub(crate) entries: u16,
    pub(crate) under_way: BTreeMap<u16, Command>,
    next_cid: u16,
    /// It is said goodbye to: nothing more is sent.
    pub(crate) leaving: bool,
}

impl IoQueue {
    pub(crate) fn new(queue: Queue, entries: u16) -> IoQueue {
        IoQueue { queue, entries, under_way: BTreeMap::new(), next_cid: 0, leaving: false }
    }

    /// A command identifier that is not in use, if the queue has room.
    pub(crate) fn free_cid(&mut self, random: &mut Random) -> Option<u16> {
        // One entry of a submission queue stays empty.
        let full = self.under_way.len() + 1 >= usize::from(self.entries);
        if full || self.leaving || self.queue.is_over() || self.queue.room() == 0 {
            return None;
        }
        self.next_cid = self.next_cid.wrapping_add(1 + random.below(3) as u16);
        while self.under_way.contains_key(&self.next_cid) {
            self.next_cid = self.next_cid.wrapping_add(1);
        }
        Some(self.next_cid)
    }
}

impl Guest {
    pub(crate) fn new(number: usize, machine: Rc<Machine>) -> Guest {
        let bounds = Bounds { in_capsule: 0, blocks: 8 };
        Guest { number, machine, controller: None, queues: Vec::new(), bounds, next_qid: 1 }
    }
}
