//! The per-core poll-mode runtime: pollers, mailbox, event sources, io_uring, offload, idle policy, clock.
//!
//! One [`Reactor`] is one thread, usually pinned to a core. Everything that serves I/O on that
//! thread is a [`Poller`]; it reaches the reactor's services through a [`Local`]. A turn is always
//! the same sequence, and every step of it is bounded:
//!
//! ```text
//!   mailbox -> results of offloaded jobs -> epoll, if due -> ring completions
//!           -> every poller's poll -> every poller's flush -> one io_uring_enter, if needed
//! ```
//!
//! So however many I/Os a turn carried, they leave in one batch. Between turns the reactor spins or
//! sleeps, as its [`IdlePolicy`] says. Other threads reach a reactor through its [`Handle`] alone.
//!
//! A test owns a reactor on its own thread and steps it: [`Reactor::turn`] never blocks, and time
//! comes from a [`Clock`] that may be simulated. Production runs the very same code from
//! [`Reactor::run`].
//!
//! Rejected: an async executor (a task and a waker per command, allocation per future, and a
//! schedule that tests cannot step); one epoll per component (a system call each per turn).

#![deny(unsafe_code)]

mod activity;
mod clock;
mod counter;
mod counters;
mod error;
mod events;
mod handle;
mod idle;
mod inbox;
mod limits;
mod local;
mod notes;
mod offload;
mod placement;
mod reactor;
mod residents;
pub mod ring;
mod threads;
mod timers;

pub use clock::{Clock, Instant, SimulatedClock};
pub use counter::Counter;
pub use counters::{CounterValues, Load};
pub use error::ReactorError;
pub use events::{EventSource, Interest, Readiness};
pub use handle::{Full, Handle, Message};
pub use idle::IdlePolicy;
pub use local::Local;
pub use notes::Notes;
pub use offload::Workers;
pub use placement::{Place, Placement};
pub use reactor::{Poller, PollerId, Progress, Reactor, ReactorConfig, RingChoice};
pub use ring::Ring;
pub use threads::{JoinError, Reactors, spawn};
pub use timers::{TimerId, Timers};
