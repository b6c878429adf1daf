//! The driver on the software controller: all of it, stepped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod choices;
mod faults;
mod operations;
mod rig;
mod simulation;
