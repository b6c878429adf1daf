//! The daemon and programs that tell it by JSON-RPC what to serve.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc, missing_docs)]

mod access;
mod client;
mod connections;
mod documents;
mod durability;
mod errors;
mod faults;
mod full;
mod limits;
mod log;
mod methods;
mod metrics;
mod parameters;
mod provisioning;
mod racing;
mod rdma;
mod removals;
mod resizing;
mod seeding;
mod statistics;
mod terminal;
mod top;
mod waiting;

#[allow(dead_code)]
#[path = "../native/support/mod.rs"]
mod support;
