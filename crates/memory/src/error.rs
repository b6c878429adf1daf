//! What can go wrong when memory is set up. Nothing here happens per I/O.

use std::io;

/// A failure to obtain memory from the system.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The arena's configured capacity has been handed out.
    #[error(
        "memory: {wanted} bytes wanted, {left} of {capacity} left in the arena: lower memory.per_reactor"
    )]
    Exhausted {
        /// What was asked for, in bytes.
        wanted: usize,
        /// What was left, in bytes.
        left: usize,
        /// The arena's configured capacity, in bytes.
        capacity: usize,
    },
    /// The system refused a mapping.
    #[error("memory: cannot map {bytes} bytes")]
    Map {
        /// Size of the mapping, in bytes.
        bytes: usize,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
