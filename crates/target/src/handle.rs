//! The names by which the shard and its surroundings speak of things: plain numbers, never references.
//!
//! A handle may outlive what it names. Each carries the generation of its slot, so that a late one is
//! recognised, ignored and counted; it never reaches the thing that took the slot after.

use std::fmt;

/// A transport instance of one shard: the one that opened a queue gets that queue's actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u8);

/// One shard of the target: the same number as its reactor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(pub u16);

/// A queue: one connection of a host, from [`Shard::open_queue`](crate::Shard::open_queue) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId {
    /// Place in the shard's table of queues.
    pub slot: u32,
    /// How often the place had been given away before.
    pub generation: u32,
}

/// A command in flight, from [`Shard::command`](crate::Shard::command) to
/// [`Shard::response_sent`](crate::Shard::response_sent).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Place in the shard's table of requests: below [`ShardLimits::requests`](crate::ShardLimits::requests), so a
    /// transport can keep an array beside it.
    pub slot: u32,
    /// How often the place had been given away before.
    pub generation: u32,
}

/// A host as long as it has a queue on a shard; all queues without a Connect have one together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}.{}", self.slot, self.generation)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}.{}", self.slot, self.generation)
    }
}
