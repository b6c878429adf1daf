//! The bodies of the fuzz targets: each takes any bytes and panics where a promise is broken.
//!
//! They stand here so that the fuzzer (`fuzz/`, on a nightly toolchain) and the ordinary tests
//! (`tests/corpus.rs`, which replays `fuzz/corpus/`) run the same code.
//!
//! | target | the bytes are | what must hold |
//! | --- | --- | --- |
//! | [`pdus`] | a PDU, or a command, or data of one | parsers never panic; what they accept is consistent and survives the way back |
//! | [`capsules`] | what a transport tells a shard, step by step | every command is answered once; nothing is left when the queues are gone |
//! | [`connections`] | byte streams of two connections, cut anywhere | what goes out is well-formed; an honest host beside them is served; nothing is left |
//! | [`rdma`] | private data, capsules and descriptors of four connections, and what befalls them | an honest host beside them is served; nothing is left |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]

mod bench;
mod capsules;
mod connections;
mod pdus;
mod rdma;
mod seeds;
mod steps;

pub use capsules::capsules;
pub use connections::connections;
pub use pdus::pdus;
pub use rdma::rdma;
pub use seeds::{Seed, seeds};
