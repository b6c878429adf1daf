//! The vocabulary of NVMe and NVMe over Fabrics: commands, completions, registers, identify data,
//! log pages, NVMe/TCP PDUs, private data of NVMe/RDMA. Pure data: no I/O, no clock, no thread of its own, nothing allocated
//! except by names.
//!
//! Three kinds of things live here:
//!
//! * **Wire structures** ([`Sqe`], [`Cqe`], [`fabrics::ConnectData`], everything in [`identify`],
//!   [`log`], [`tcp`] and [`rdma`]): bytes exactly as they travel, little-endian fields, no alignment, read
//!   and written in place through `zerocopy`. Size and offsets are asserted at compile time beside
//!   each.
//! * **Typed commands** ([`admin::Command`], [`io::Command`], [`fabrics::Command`], [`pcie::Command`], [`copy::Copy`]): what an SQE
//!   means. `parse` never panics and returns the [`Status`] with which to complete a command that
//!   cannot be parsed; `to_sqe` is the way back, for hosts. Reserved fields are ignored, as the
//!   specification asks of a controller, unless it demands an error.
//! * **Values** ([`Status`], [`Nqn`], [`register`], [`feature`], [`event`], [`address`]): numbers
//!   with a meaning.
//!
//! Sections and figures cited are those of NVM Express Base Specification 2.0c, NVM Command Set
//! Specification 1.0c and NVMe/TCP Transport Specification 1.0c.

#![forbid(unsafe_code)]

mod codes;

pub mod address;
pub mod admin;
pub mod command;
pub mod copy;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod io;
pub mod log;
pub mod nqn;
pub mod pcie;
pub mod rdma;
pub mod register;
pub mod sgl;
pub mod status;
pub mod tcp;

pub use command::{Cqe, NSID_ALL, Prps, Sqe};
pub use nqn::{HostId, Nqn};
pub use sgl::{LocalSgl, Sgl, SglDescriptor};
pub use status::Status;
pub use zerocopy::little_endian::{U16, U32, U64, U128};
