//! How the rest of the process reaches a shard: a bounded queue of letters per reactor.
//!
//! Any thread may post; only the reactor that owns the shard reads. Letters of one sender stay in
//! order. Posting wakes a sleeping reactor through its mailbox, so a letter is never slept on.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crossbeam::queue::ArrayQueue;
use reactor::Handle;
use target::Message;
use target::configuration::Configuration;
use target::shard::counters::Counters;
use target::shard::report::{ControllerReport, Page, QueueReport};
use transport_rdma::RdmaNetwork;

/// Letters that wait for one shard. A sender that finds it full keeps its letter.
const CAPACITY: usize = 4096;

/// Something for a shard.
#[derive(Debug)]
pub(super) enum Letter {
    /// From another shard.
    Shard(Message),
    /// The configuration to serve from now on; acknowledged when it is in force here.
    Configure(Arc<Configuration>, Sender<Result<(), String>>),
    /// Serve hosts over RDMA, too; acknowledged when the transport is there.
    AddRdma(RdmaNetwork, Sender<Result<(), String>>),
    /// Refuse what is new, finish what is in flight.
    BeginShutdown,
    /// What is still in flight, if anything.
    Drained(Sender<Result<(), Vec<String>>>),
    /// What is in use now.
    Census(Sender<Census>),
    /// The controllers from an identifier on.
    Controllers(u32, Sender<Page<ControllerReport>>),
    /// The queues from a slot on.
    Queues(u32, Sender<Page<QueueReport>>),
}

/// What one shard has in use at a moment, and what it has counted.
#[derive(Debug, Clone, Copy)]
pub struct Census {
    /// Queues, those included that wait for their last operations.
    pub queues: u32,
    /// Requests, whatever their state.
    pub requests: u32,
    /// Controllers that live on this shard.
    pub controllers: usize,
    /// Bytes of the pool.
    pub pool: usize,
    /// Those that somebody holds.
    pub memory: usize,
    /// Counted since the start.
    pub counters: Counters,
}

/// The way to one shard.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    letters: Arc<ArrayQueue<Letter>>,
    reactor: Handle,
}

impl Inbox {
    pub(super) fn new(reactor: Handle) -> Inbox {
        Inbox { letters: Arc::new(ArrayQueue::new(CAPACITY)), reactor }
    }

    /// Posts a letter, or gives it back if there is no room.
    pub(super) fn post(&self, letter: Letter) -> Result<(), Letter> {
        self.letters.push(letter)?;
        // A full mailbox belongs to a reactor that is awake and will look here.
        let _ = self.reactor.send(|_| ());
        Ok(())
    }

    /// The reactor of the shard.
    pub(super) fn reactor(&self) -> &Handle {
        &self.reactor
    }

    /// The oldest letter.
    pub(super) fn take(&self) -> Option<Letter> {
        self.letters.pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }
}
