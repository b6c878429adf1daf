//! Memory that devices and sockets read and write: an arena of slabs, per-reactor pools of
//! buffers cut from it, and loans of those buffers to whatever is doing I/O.
//!
//! ```text
//!   Arena (process)  --slabs-->  Pool (one reactor)  --take-->  Buffer  --segment-->  Segment
//!   mmap, hugepages              buddy, size classes            one owner             counted loans
//! ```
//!
//! An [`Arena`] is the process's whole supply: slabs of 2 MiB, hugepages where there are some. A
//! [`Pool`] owns some of those slabs for one reactor; everything below it lives on that thread and
//! uses no atomics. A [`Buffer`] is one contiguous piece, a [`Segment`] a counted loan of part of
//! it. **The piece returns to its pool when the buffer and every loan of it are gone**, so a device
//! that still writes into it keeps it alive, whatever became of the command that asked.
//!
//! The bytes of a piece may be changing under us while a device has them. So there is no
//! `&[u8]` to a [`Segment`]; there are copies, and [`Segment::view`], which refuses while a
//! [`DeviceWrite`] is out. Memory that peers may write whenever they like is an arena of its own ([`Arena::for_peers`]):
//! of that there are copies only.
//!
//! A [`SharedMemory`] is the medium of a RAM device. Part of it is lent to the wire as a [`Segment`], too: a *lease*,
//! for which writes wait (see [`lease`]). System calls that take many segments at once are in [`vectored`], so
//! that raw pointers stay in this crate and in the ring.
//!
//! Rejected: reference-counted heap blocks (an allocation per command, and nothing to register
//! with a device); fixed chunks of one size with scatter lists (every 1 MiB command would carry 16
//! to 256 entries to the device and the socket).

mod arena;
mod buddy;
mod buffer;
mod error;
pub mod lease;
mod pool;
mod registration;
mod shared;
pub mod vectored;

pub use arena::{Arena, ArenaConfig, ArenaReport, Hugepages, RegionId, SLAB_SIZE, Slab};
pub use buffer::{Buffer, DeviceWrite, Segment};
pub use error::MemoryError;
pub use lease::{Claim, Lender};
pub use pool::Pool;
pub use registration::DeviceId;
pub use shared::SharedMemory;
