//! NVMe/RDMA: carries command capsules and data between queue pairs and the target.
//!
//! ```text
//!   rdma_cm --events--> Manager: admits, connects, ends --queue pairs--> a reactor's RdmaTransport
//!                                                                          | Lane: a device's completion queues and
//!                                                                          |       shared receive queue here
//!   host <== capsules, RDMA ==> QueuePair <== posted chains ==> Session <== commands, actions ==> Shard
//! ```
//!
//! A connection lives on one reactor from its request to its end. Its life: a request of the connection manager with
//! NVMe/RDMA's private data, judged by the [`Manager`]; a queue pair, made there and handed over; capsules that arrive in a
//! shared receive queue, RDMA reads and writes, and responses; an end that either side begins, upon which everything posted is
//! flushed, and only then is the queue pair destroyed, by the manager again.
//!
//! Threads: the manager has one of its own, for all that may block. [`RdmaNetwork`] may be used anywhere, everything else
//! belongs to its reactor. Per I/O nothing is allocated, locked, logged or copied, and there is no system call: commands are parsed where they
//! were received, data moves between the host's memory and the buffers that devices fill, and data in a capsule becomes the
//! command's buffer by exchange. All that a turn has to post to a queue goes out in one call.
//!
//! Rejected: rdma_cm's events on the reactors (accepting blocks for the length of a round trip to the kernel, and a
//! flood of requests would be felt by every queue); an event channel per listener (nothing is gained: one thread reads them
//! all); a completion queue per connection (each costs a look per turn).

#![forbid(unsafe_code)]

mod command;
mod config;
mod counters;
mod descriptor;
mod error;
mod lane;
mod manager;
mod network;
mod receives;
mod session;
mod transport;

pub use config::{MIN_QUEUE_DEPTH, RdmaConfig};
pub use counters::{CounterValues, Counters};
pub use error::{BindError, RdmaError};
pub use manager::Manager;
pub use network::{DeviceCounters, DeviceReport, PortReport, RdmaNetwork};
pub use transport::RdmaTransport;
