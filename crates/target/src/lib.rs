//! The NVMe-oF target itself, free of I/O: subsystems, namespaces, hosts, controllers, queues, discovery.
//!
//! A [`Shard`] is what one reactor owns of the target: a state machine with events in (a capsule arrived,
//! data arrived, a block operation finished, time passed, the configuration changed, another shard
//! says something) and [`Action`]s and [`Message`]s out. It knows no socket and no clock.
//!
//! ```text
//!   transport                        Shard                            block queues
//!   open_queue ------------------->  queues   --+
//!   command, data_received ------->  requests --+--> namespaces ----> submit
//!   response_sent, close_queue --->             |                  <- poll
//!   <------- next_action ----------  actions    |
//!                                               +--> controllers (cntlid % shards == this shard)
//!   other shards <-- next_message / deliver -->
//! ```
//!
//! What is exported is a [`configuration::Configuration`]: an immutable snapshot that each shard is handed.

#![forbid(unsafe_code)]

pub mod action;
pub mod block_status;
pub mod configuration;
pub mod discovery;
pub mod feature;
pub mod handle;
pub mod identify;
pub mod io;
pub mod log_page;
mod obligation;
pub mod rate_limit;
pub mod shard;
pub mod statistics;

pub use action::{ADMIN_IN_CAPSULE, Action, Borrows, CommandRefused, DisconnectReason, QueueInfo};
pub use handle::{PortId, QueueId, RequestId, ShardIndex};
pub use obligation::forgotten_commands;
pub use reactor::Instant;
pub use shard::lending::Lease;
pub use shard::message::Message;
pub use shard::{Shard, ShardConfig, ShardLimits};
