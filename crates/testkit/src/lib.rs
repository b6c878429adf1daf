//! For tests only: simulated disk, wire and clock, oracles, a target in a box.

pub mod column;
pub mod disk;
pub mod fabric;
pub mod fuzz;
pub mod pdus;
pub mod peer;
mod random;
pub mod rdma;
pub mod simulation;

pub use random::Random;
