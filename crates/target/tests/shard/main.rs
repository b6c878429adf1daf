//! The shard, driven through its public interface: scripted hosts, transports without sockets, devices
//! that do what the test says, and as many shards as the test wants.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays
)]

mod abort;
mod access;
mod buffers;
mod change;
mod connect;
mod device;
mod discovery;
mod drain;
mod event;
mod ghosts;
mod harness;
mod health;
mod hostile;
mod identify;
mod io;
mod lending;
mod lifecycle;
mod limit;
mod pause;
mod pledges;
mod report;
mod shutdown;
mod statistics;
