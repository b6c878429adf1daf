//! A small safe layer over libibverbs and librdmacm, and a software provider in their place for tests.
//!
//! The libraries are opened at run time ([`Library::open`]); without them everything but RDMA works, and the error says in one
//! line what to install. [`software`] has devices in memory that a test steps: [`Fabric::library`] is the same [`Library`].
//!
//! ```text
//!   Library ── Device ── Domain ── RegisteredArena (memory::Arena, memory::SharedMemory)
//!      │          │         ├───── SharedReceiveQueue ── SharedReceives   (posts, on its reactor)
//!      │          │         └───── QueuePair ─────────── WorkQueue        (posts, on its reactor)
//!      │          ├── CompletionChannel ── CompletionQueue                 (polled by its reactor)
//!      │          └── AsyncEvent
//!      └── EventChannel ── Connection, Event                              (the manager's thread)
//!
//!   Endpoint: one each of domain, arena, completion queue and work queue, which move between threads as one (a host's queue)
//! ```
//!
//! # One set of calls, two providers
//! Both providers are tables of C functions: the libraries' own, or the software provider's. What is called per I/O (post, poll, arm)
//! is called through the device's `context->ops`, as the headers' inline functions do; an object keeps the
//! function's address, so a chain of requests costs one indirect call and nothing else. Work requests are written once, in
//! the form the driver reads ([`SendChain`]); completions are written by the driver into the caller's array
//! ([`Completion`] is its own structure). There is no allocation, no lock and no system call of ours on that path.
//!
//! # Which thread
//! Opening, registering, creating, connecting and destroying may block: a connection-manager's thread does it. `QueuePair` is
//! `Send`; the manager hands it over, connected, and the reactor makes it a [`WorkQueue`], which is not. Its [`Connection`]
//! stays with the manager and can still end it; where only one thread may use the queue pair ([`Domain::for_thread`]), once the work
//! queue has ceased to post. Destroying belongs off the reactor, too, but a `WorkQueue` cannot leave
//! its thread with loans in it; drop it there once all has been flushed.
//!
//! # What is posted is lent
//! A post takes the [`memory::Segment`]s that its requests name, and keeps them until they have ended: sends until
//! [`WorkQueue::retire`] sees a completion of them or of a later one, receives until their completion is traded in for them. What the
//! device writes, received or read from a peer, cannot be looked at meanwhile ([`memory::DeviceWrite`]). A work queue destroys its queue pair before it lets go of anything. A [`SharedReceives`] that is dropped while queue
//! pairs still receive by it leaks what is posted rather than have it overwritten. So does whatever the device does not let go of when
//! it is to be destroyed, and one line of the log says so. A completion that is handed in twice, or to a queue that it is not of,
//! gives nothing back: work requests have numbers, which are not used again for long.
//!
//! # What outlives what
//! Every object holds what it was made of, so whatever order they are dropped in, the device sees the right one: queue pairs
//! before the queues they report to, regions before their domain and before the arena's memory, a thread's domain before the one
//! that it is a share of, everything before its context, connections before their channel.
//!
//! # What rdma_cm does not do here
//! It neither opens devices for us nor makes queue pairs: a device that is removed would be closed under our objects, and a queue
//! pair would live and die with its identifier. We open devices ourselves, find that of an identifier by its name, and
//! change the queue pair's state with the attributes that rdma_cm gives ([`Connection`]). librdmacm opens each device once more, and
//! would keep it open when it is removed: it is closed there with the event that says so ([`Kind::DeviceRemoved`]).
//!
//! Rejected: generated bindings (they need libclang to build, and link the libraries); the crates that wrap verbs (no
//! shared receive queues, no rdma_cm, or a licence in doubt); extended verbs (`ibv_wr_*`, `ibv_start_poll`: rdma-core's older
//! drivers lack them, and what they save is unmeasured here).

mod completion;
mod connection;
mod device;
mod domain;
pub mod endpoint;
mod error;
mod event;
mod library;
mod queue_pair;
mod receive;
mod region;
pub mod software;
#[doc(hidden)]
pub mod sys;
mod work;

pub use completion::{Completion, CompletionChannel, CompletionQueue, Status};
pub use connection::{Connection, EventChannel, Parameters};
pub use device::{AsyncEvent, Device, DeviceAttributes, PortAttributes};
pub use domain::Domain;
pub use endpoint::Endpoint;
pub use error::{OpenError, VerbsError};
pub use event::{
    ConnectionId, Event, Kind, PrivateData, REJECTED_BY_CONSUMER, REJECTED_NOBODY_LISTENS, Wishes,
};
pub use library::{Library, NamedDevice};
pub use queue_pair::{Capacity, QueuePair, State, WorkQueue};
pub use receive::{MAX_RECEIVE_PIECES, SharedReceiveQueue, SharedReceives};
pub use region::{Access, RegisteredArena, Remote};
pub use software::Fabric;
pub use work::{Flags, MAX_INLINE, SendChain, Work};
