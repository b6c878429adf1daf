//! NVMe/TCP: carries command capsules and data between sockets and the target.
//!
//! ```text
//!   Listener --accept--> reactor 0 --fewest queues--> a reactor's TcpTransport
//!                                                        | Sessions: sockets, readiness, timers
//!   host <== bytes ==> Socket <== readv / sendmsg ==> Connection <== commands, actions ==> Shard
//! ```
//!
//! A connection lives on one reactor from accept to close. Its life: `ICReq` and `ICResp`, then
//! capsules, R2Ts and data in both directions, and at the end either side closes; a host that
//! breaks the protocol is told why first. The state machine, in `connection`, knows no
//! socket: [`InMemoryConnection`] is the same without one.
//!
//! Threads: [`Listener::bind`] and [`TcpNetwork`] may be used anywhere, everything else belongs to
//! its reactor. Per I/O nothing is allocated, locked or logged; the only system calls are one
//! `readv` per batch of commands that has come and one `sendmsg` per batch of answers.
//!
//! Rejected: `io_uring` for sockets (to be decided by measurement; the state machine would not
//! notice); a listener per reactor with `SO_REUSEPORT` (the kernel spreads connections by hash, so
//! a host's queues crowd on some reactors).

#![forbid(unsafe_code)]

mod buffers;
mod config;
mod connection;
mod counters;
mod deadline;
mod in_memory;
mod listener;
mod network;
mod sessions;
mod socket;
mod transport;

pub use config::{SuccessFlag, TcpConfig, Timeouts};
pub use connection::{Breach, CloseReason};
pub use counters::{CounterValues, Counters};
pub use deadline::Timeout;
pub use in_memory::InMemoryConnection;
pub use listener::{BindError, Listener};
pub use network::TcpNetwork;
pub use transport::TcpTransport;
