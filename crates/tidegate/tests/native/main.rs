//! The whole node end to end on this machine: real reactors, sockets and files, the `host` crate
//! on the other side, and the binary itself.
//!
//! Nothing here sleeps in order to wait: conditions are polled until a deadline, and each deadline is
//! far beyond what a loaded machine needs, so that passing one is a fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc, missing_docs)]

mod adversity;
mod command_line;
mod exports;
mod idle;
mod integrity;
mod isolation;
mod perf;
mod recovery;
mod shutdown;
mod support;
