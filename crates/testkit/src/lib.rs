//! For tests only: simulated disk, wire and clock, oracles, a target in a box.

pub mod fuzz;
pub mod peer;
mod random;
mod simulated_disk;
pub mod simulation;

pub use random::Random;
pub use simulated_disk::{DiskCounts, DiskOptions, SimulatedDisk};
