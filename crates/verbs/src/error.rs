//! What can go wrong: opening the libraries, and calling them.

use std::io;
use std::mem;

use thiserror::Error;
use tracing::error;

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

/// Judges how the destruction of an object went: whether it is gone. What the device does not let go of stays for good, and what it
/// is made of (`parts`) and may still reach stays with it: rather lost than used by two.
///
/// The kernel answers everything about a device that it has taken away with EIO: it has destroyed the object itself.
pub(crate) fn let_go<T>(call: &'static str, result: i32, parts: impl FnOnce() -> T) -> bool {
    let result = check(call, result)
        .or_else(|error| if error.raw_os_error() == Some(libc::EIO) { Ok(()) } else { Err(error) });
    if let Err(error) = &result {
        error!("an RDMA object stays, and its memory is lost: {error}");
        mem::forget(parts());
    }
    result.is_ok()
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

#[cfg(test)]
mod tests {
    use memory::{Arena, ArenaConfig, Buffer, Hugepages, SLAB_SIZE};

    use crate::software::DeviceOptions;
    use crate::sys::{self, Api};
    use crate::{
        Access, Capacity, CompletionQueue, Device, Domain, Fabric, Library, QueuePair,
        RegisteredArena, SharedReceiveQueue, SharedReceives, WorkQueue,
    };

    unsafe extern "C" fn keep_pair(_: *mut sys::Qp) -> i32 {
        libc::EBUSY
    }

    unsafe extern "C" fn is_removed(_: *mut sys::Qp) -> i32 {
        libc::EIO
    }

    unsafe extern "C" fn keep_queue(_: *mut sys::Srq) -> i32 {
        libc::EBUSY
    }

    /// A device of a library that has been tampered with.
    fn device(change: impl FnOnce(&mut Api)) -> Device {
        let fabric = Fabric::new(1);
        fabric.add_device(DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap()));
        let sound = fabric.library();
        let mut api = *sound.api();
        change(&mut api);
        let library = Library::new(Box::leak(Box::new(api)), sound.0.software.clone());
        library.devices().unwrap().remove(0)
    }

    fn memory(domain: &Domain) -> (RegisteredArena, Buffer) {
        let arena = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
        let buffer = arena.pool(SLAB_SIZE).unwrap().take(64).unwrap();
        (RegisteredArena::new(domain, &arena, Access::LOCAL_WRITE).unwrap(), buffer)
    }

    /// Whether a receive of a queue pair's own is still on loan once the queue pair has been dropped; of a shared queue.
    fn stays_lent(device: &Device) -> [bool; 2] {
        let domain = Domain::new(device).unwrap();
        let cq = CompletionQueue::new(device, 8, 0, None, 0).unwrap();
        let capacity = Capacity { sends: 1, receives: 1, pieces: 1, inline: 0 };

        let (memory_of, own) = memory(&domain);
        let pair = QueuePair::new(&domain, &cq, &cq, None, capacity).unwrap();
        let mut work = WorkQueue::new(pair).unwrap();
        work.push_receive(0, &memory_of, [own.segment(0, 64), None]).unwrap();
        drop(work);

        let (memory_of, common) = memory(&domain);
        let queue = SharedReceiveQueue::new(&domain, 1, 0).unwrap();
        let pair = QueuePair::new(&domain, &cq, &cq, Some(&queue), capacity).unwrap();
        let mut shared = SharedReceives::new(queue);
        shared.push(0, &memory_of, [common.segment(0, 64), None]).unwrap();
        shared.flush().unwrap();
        drop(WorkQueue::new(pair).unwrap());
        drop(shared);
        [own.is_lent(), common.is_lent()]
    }

    #[test]
    fn what_a_device_does_not_let_go_of_stays_lent() {
        assert_eq!(stays_lent(&device(|_| {})), [false, false]);
        assert_eq!(stays_lent(&device(|api| api.ibv_destroy_srq = keep_queue)), [false, true]);
        // A shared queue can still be received into by what stays.
        assert_eq!(stays_lent(&device(|api| api.ibv_destroy_qp = keep_pair)), [true, true]);
        let [own, _] = stays_lent(&device(|api| api.ibv_destroy_qp = is_removed));
        assert!(!own);
    }
}
