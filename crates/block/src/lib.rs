//! Block devices and their per-reactor queues.
//!
//! ```text
//!   BlockDevice (shared, Send + Sync)  --open_queue-->  BlockQueue (one reactor)
//!   geometry, properties, identity                      submit(Operation) ... poll -> Completion
//! ```
//!
//! A [`BlockDevice`] is what the configuration names. Each reactor opens its own [`BlockQueue`] on
//! it, and everything on the path of an I/O happens there: no locks, no other core. A queue never
//! refuses an [`Operation`] and never blocks the reactor; it answers each one exactly once, by a
//! [`Completion`] from [`BlockQueue::poll`]. Layers (volumes, limits, mirrors) are block devices
//! over block devices.
//!
//! Ranges in an operation have been checked against the geometry by whoever submits it; a queue
//! checks them again only where a wrong one would touch memory or a neighbour's data.
//!
//! Rejected: completion callbacks inside operations (an allocation each, and re-entry into the
//! submitter); futures (a task per I/O, and no bound on the work of a turn).

mod check;
pub mod delay;
mod device;
mod disk;
mod error;
mod fault;
pub mod file;
mod geometry;
pub mod injection;
mod inquiry;
mod layer;
mod lock;
pub mod namespace;
pub mod null;
mod operation;
pub mod passthrough;
pub mod ram;
mod workers;

pub use device::{BlockDevice, BlockQueue, Deallocation, Geometry, Identity, Properties};
pub use error::{BlockError, ErrorKind};
pub use operation::{Completion, Data, Kind, MAX_SEGMENTS, Operation, Token};
