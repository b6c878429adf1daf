//! The software controller against a driver of the plainest kind: that it is an NVMe controller, and that it notices what a driver does
//! wrong.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::match_bool
)]

mod admin;
mod basics;
mod faults;
mod hostile;
mod raw;
mod shadow;
mod violations;
