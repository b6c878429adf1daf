//! The storage node as a library: what the binary's `serve` runs, and what tests and benches start
//! in their own process.

pub mod node;
