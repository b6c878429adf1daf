//! The transport on software devices and on a clock that stands still: one thread steps the node, its manager and the fabric.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, missing_docs)]

mod admission;
mod ends;
mod hostile;
mod limits;
mod support;
