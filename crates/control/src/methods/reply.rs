//! How methods fail: the codes and texts that SPDK's clients match, with what was wrong behind them.

use std::fmt::Display;

use block::BlockError;

use crate::jsonrpc::RpcError;
use crate::plane::ChangeError;

const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL: i64 = -32603;

/// Errno values that clients know, with SPDK's text for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errno {
    NotPermitted,
    NoEntry,
    Io,
    NoAddress,
    NoMemory,
    Busy,
    Exists,
    NoDevice,
    Invalid,
    NoSpace,
    Range,
    Already,
}

impl Errno {
    fn parts(self) -> (i64, &'static str) {
        match self {
            Self::NotPermitted => (-1, "Operation not permitted"),
            Self::NoEntry => (-2, "No such file or directory"),
            Self::Io => (-5, "Input/output error"),
            Self::NoAddress => (-6, "No such device or address"),
            Self::NoMemory => (-12, "Cannot allocate memory"),
            Self::Busy => (-16, "Device or resource busy"),
            Self::Exists => (-17, "File exists"),
            Self::NoDevice => (-19, "No such device"),
            Self::Invalid => (-22, "Invalid argument"),
            Self::NoSpace => (-28, "No space left on device"),
            Self::Range => (-34, "Numerical result out of range"),
            Self::Already => (-114, "Operation already in progress"),
        }
    }

    /// The reply, with what it is about.
    pub(super) fn about(self, what: impl Display) -> RpcError {
        let (code, text) = self.parts();
        RpcError { code, message: format!("{text}: {what}") }
    }

    /// The reply where SPDK has words of its own for it.
    pub(super) fn says(self, what: impl Display) -> RpcError {
        RpcError { code: self.parts().0, message: what.to_string() }
    }
}

pub(super) fn unknown_method() -> RpcError {
    RpcError { code: METHOD_NOT_FOUND, message: "Method not found".to_owned() }
}

pub(super) fn invalid(what: impl Display) -> RpcError {
    RpcError { code: INVALID_PARAMS, message: format!("Invalid parameters: {what}") }
}

pub(super) fn internal(what: impl Display) -> RpcError {
    RpcError { code: INTERNAL, message: what.to_string() }
}

/// A change that was not refused by its method, but failed.
pub(super) fn failed<E: Display>(error: ChangeError<E>) -> RpcError {
    match error {
        ChangeError::Invalid(error) => invalid(error),
        other => internal(other),
    }
}

/// A device that cannot be opened.
pub(super) fn unopened(error: &BlockError) -> RpcError {
    let errno = match error {
        BlockError::System { source, .. } => match source.raw_os_error() {
            Some(2) => Some(Errno::NoEntry),
            Some(16) => Some(Errno::Busy),
            Some(28) => Some(Errno::NoSpace),
            _ => None,
        },
        BlockError::Locked { .. } => Some(Errno::Busy),
        BlockError::NoMemory { .. } => Some(Errno::NoMemory),
        BlockError::Unsuitable { .. } => None,
    };
    errno.map_or_else(|| invalid(error), |errno| errno.about(error))
}
