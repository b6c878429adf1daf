//! How an operation fails, and how opening a device fails.

use std::io;

/// Why an operation failed: what the target turns into an NVMe status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// The range lies outside the device (it may just have shrunk).
    #[error("range outside the device")]
    OutOfRange,
    /// The device is read-only.
    #[error("device is read-only")]
    ReadOnly,
    /// The device cannot do this.
    #[error("operation not supported by the device")]
    Unsupported,
    /// A compare found a difference.
    #[error("data differ")]
    Miscompare,
    /// No room is left under the device (a sparse file on a full file system).
    #[error("no space left under the device")]
    NoSpace,
    /// The medium could not be read.
    #[error("medium read error")]
    MediumRead,
    /// The medium could not be written, or made durable.
    #[error("medium write error")]
    MediumWrite,
    /// The device is gone.
    #[error("device is gone")]
    Removed,
    /// What was to be lent is being written, or about to be: bring memory that it can be read into.
    #[error("memory cannot be lent now")]
    NotLent,
    /// Given up on request, without effect on the medium.
    #[error("aborted")]
    Aborted,
    /// What an NVMe device said itself, or what is said in the name of one: status code type and status code.
    #[error("NVMe status {sct:#x}/{sc:#04x}")]
    Status {
        /// Status Code Type, 0 to 7.
        sct: u8,
        /// Status Code; not 0 if the type is.
        sc: u8,
    },
    /// Something of ours is wrong; counted and logged where it happens.
    #[error("internal error")]
    Internal,
}

/// Why a device could not be opened or set up: what, which, and what to do, in one line.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A system call failed.
    #[error("device {device}: cannot {action} {path}: {source}")]
    System {
        /// The device's name.
        device: String,
        /// What was tried: "open", "lock", ...
        action: &'static str,
        /// On what.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process holds the medium.
    #[error(
        "device {device}: {path} is in use by another process: stop it, or choose another path"
    )]
    Locked {
        /// The device's name.
        device: String,
        /// On what.
        path: String,
    },
    /// The system has no memory for it.
    #[error("device {device}: no memory for {bytes} bytes: {source}")]
    NoMemory {
        /// The device's name.
        device: String,
        /// What it needs.
        bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The configuration asks for what the device cannot be.
    #[error("device {device}: {problem}")]
    Unsuitable {
        /// The device's name.
        device: String,
        /// What is wrong and what to do.
        problem: String,
    },
}
