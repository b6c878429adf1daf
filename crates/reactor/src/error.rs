//! What can go wrong when a reactor is made, and afterwards with its descriptors.

use std::io;

use thiserror::Error;

/// Why a reactor could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReactorError {
    /// A system object that a reactor cannot do without was refused.
    #[error("reactor {reactor}: cannot create its {object}; raise the limit on open files")]
    Create {
        /// The reactor's index.
        reactor: usize,
        /// What was refused.
        object: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A thread was refused.
    #[error("cannot start thread {thread}; raise the limit on threads")]
    Thread {
        /// The thread's name.
        thread: String,
        /// The system's reason.
        source: io::Error,
    },
    /// There is nothing to start.
    #[error("no reactor is configured; name at least one core")]
    NoReactor,
}
