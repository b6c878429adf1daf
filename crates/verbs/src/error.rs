//! What can go wrong: opening the libraries, and calling them.

use std::io;

use thiserror::Error;

/// Why RDMA cannot be used on this machine; the message says what to do about it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The loader did not find or could not load a library.
    #[error(
        "RDMA needs {library}, which cannot be loaded ({reason}): install rdma-core's libraries (Debian: libibverbs1 \
         librdmacm1 ibverbs-providers; Fedora: libibverbs librdmacm)"
    )]
    Missing {
        /// The library.
        library: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{library} lacks {function} ({version}): install rdma-core 23 or newer")]
    TooOld {
        /// The library.
        library: &'static str,
        /// The function.
        function: &'static str,
        /// The version asked for.
        version: &'static str,
    },
}

/// A call that failed.
#[derive(Debug, Error)]
pub enum VerbsError {
    /// The library, the kernel or the device refused.
    #[error("{call}: {source}")]
    Call {
        /// The C function.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// There is no room for that many work requests until completions have been retired.
    #[error("the queue has no room for {wanted} more work requests (room for {room})")]
    Full {
        /// How many were to be posted.
        wanted: usize,
        /// How many fit.
        room: usize,
    },
    /// There is no memory to be registered.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The call does not fit what it was called on.
    #[error("{0}")]
    Misuse(&'static str),
}

impl VerbsError {
    /// The error number, where the system gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            VerbsError::Call { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// The error of `call` as the thread's errno has it.
pub(crate) fn last(call: &'static str) -> VerbsError {
    VerbsError::Call { call, source: io::Error::last_os_error() }
}

/// Judges a result: 0 is success, a positive one is the error number itself, a negative one points to errno.
pub(crate) fn check(call: &'static str, result: i32) -> Result<(), VerbsError> {
    match result {
        0 => Ok(()),
        1.. => Err(VerbsError::Call { call, source: io::Error::from_raw_os_error(result) }),
        _ => Err(last(call)),
    }
}

/// Like [`check`] for calls on a descriptor that does not block: nothing there yet is no error.
pub(crate) fn check_ready(call: &'static str, result: i32) -> Result<bool, VerbsError> {
    match check(call, result) {
        Ok(()) => Ok(true),
        Err(VerbsError::Call { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
