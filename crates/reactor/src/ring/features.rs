//! Which parts of `io_uring` work here: set up and tried out once, when the ring is made.
//!
//! A kernel's version says little (distributions carry patches, containers forbid parts), so each
//! feature is used once on the real thing: setup flags by setting up, operations on a file in
//! memory. What fails is left unused; what the ring cannot do without makes it unavailable. NVMe
//! commands are tried on the device that they are for, see [`super::Namespace::try_commands`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use bitflags::bitflags;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::fs::{FallocateFlags, MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::op::IoVec;
use super::{buffers, files};

/// A ring for NVMe commands.
pub(super) type CommandUring = IoUring<squeue::Entry128, cqueue::Entry32>;

bitflags! {
    /// Parts of `io_uring` that a ring uses where they work, and does without where they do not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u32 {
        /// The kernel relies on a single submitting thread (6.0).
        const SINGLE_ISSUER = 1 << 0;
        /// Completions are worked off when the reactor enters the kernel, not at random (6.1).
        const DEFER_TASKRUN = 1 << 1;
        /// Else: completions do not interrupt the reactor (5.19).
        const COOP_TASKRUN = 1 << 2;
        /// The kernel says when there are completions to be worked off (5.19).
        const TASKRUN_FLAG = 1 << 3;
        /// Submissions without an index array (6.6).
        const NO_SQARRAY = 1 << 4;
        /// A table of files, so that operations need not look them up.
        const REGISTERED_FILES = 1 << 5;
        /// A table of pinned buffers.
        const FIXED_BUFFERS = 1 << 6;
        /// Allocating and punching ranges.
        const FALLOCATE = 1 << 7;
        /// Of the ring for NVMe commands: entries that are large enough for them (5.19).
        const LARGE_ENTRIES = 1 << 8;
        /// Of that ring: NVMe commands to generic character devices (5.19).
        const COMMANDS = 1 << 9;
        /// Of that ring: pinned buffers as the data of commands (6.1).
        const FIXED_COMMANDS = 1 << 10;
        /// Of that ring: asking the controller for completions, without interrupts (6.1).
        const POLLED_COMMANDS = 1 << 11;
    }
}

impl Features {
    /// What the ring for NVMe commands needs in any case.
    pub(super) const FOR_COMMANDS: Features = Features::LARGE_ENTRIES.union(Features::COMMANDS);
    /// What only that ring has.
    pub(super) const OF_COMMANDS: Features =
        Features::FOR_COMMANDS.union(Features::FIXED_COMMANDS).union(Features::POLLED_COMMANDS);
}

/// Setup flags from the newest to the oldest: the order in which a kernel may lack them.
const SETUP: [Features; 5] = [
    Features::NO_SQARRAY,
    Features::DEFER_TASKRUN,
    Features::SINGLE_ISSUER,
    Features::TASKRUN_FLAG,
    Features::COOP_TASKRUN,
];

/// Leaves out what makes no sense without, or beside, something else.
fn consistent(mut features: Features) -> Features {
    if !features.contains(Features::SINGLE_ISSUER) {
        features.remove(Features::DEFER_TASKRUN);
    }
    if features.contains(Features::DEFER_TASKRUN) {
        features.remove(Features::COOP_TASKRUN);
    } else if !features.contains(Features::COOP_TASKRUN) {
        features.remove(Features::TASKRUN_FLAG);
    }
    features
}

/// A ring for files with everything that works; says what it has.
pub(super) fn set_up(entries: u32, without: Features) -> io::Result<(IoUring, Features)> {
    let wanted = Features::all() - Features::OF_COMMANDS - without;
    let (uring, features) = make(entries, wanted, buffers::FILES)?;
    let mut trial = Trial::new(uring)?;
    let lacking = trial.run(features)?;
    Ok((trial.uring, features - lacking))
}

/// A ring for NVMe commands, which may be `wanted`, with everything else that works.
pub(super) fn set_up_commands(
    entries: u32,
    mut wanted: Features,
) -> io::Result<(CommandUring, Features)> {
    if !wanted.contains(Features::FOR_COMMANDS) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    if !wanted.contains(Features::FIXED_COMMANDS) {
        wanted.remove(Features::FIXED_BUFFERS);
    }
    make(entries, wanted, buffers::COMMANDS)
}

/// Makes a ring with the setup flags that work, and its tables; says what it has.
fn make<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    entries: u32,
    mut wanted: Features,
    table: buffers::Table,
) -> io::Result<(IoUring<S, C>, Features)> {
    let uring = loop {
        match build(entries, consistent(wanted)) {
            Ok(uring) => break uring,
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let Some(newest) = SETUP.into_iter().find(|flag| wanted.contains(*flag)) else {
                    return Err(error);
                };
                wanted.remove(newest);
            }
            Err(error) => return Err(error),
        }
    };
    let mut features = consistent(wanted);
    if !uring.params().is_feature_submit_stable() || !uring.params().is_feature_nodrop() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let tables = uring.submitter();
    if tables.register_files_sparse(files::TABLE).is_err() {
        features.remove(Features::REGISTERED_FILES);
    }
    if features.contains(Features::FIXED_BUFFERS)
        && tables.register_buffers_sparse(table.places).is_err()
    {
        features.remove(Features::FIXED_BUFFERS);
    }
    // What blocks (a buffered write, fsync, anything on a file system that hangs) takes a kernel
    // thread. By default there are four per core at most, so one device that hangs could occupy them
    // all and stop every other. With one for each operation in flight it cannot; they are started
    // only when all others are blocked. A kernel that keeps its default is worse off, no more.
    let _ = tables.register_iowq_max_workers(&mut [entries, 0]);
    Ok((uring, features))
}

fn build<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    entries: u32,
    features: Features,
) -> io::Result<IoUring<S, C>> {
    let mut builder = IoUring::<S, C>::builder();
    // Room for the completion of every operation and of its cancellation: it cannot overflow.
    builder.dontfork().setup_clamp().setup_submit_all().setup_cqsize(entries.saturating_mul(2));
    if features.contains(Features::SINGLE_ISSUER) {
        builder.setup_single_issuer();
    }
    if features.contains(Features::DEFER_TASKRUN) {
        builder.setup_defer_taskrun();
    }
    if features.contains(Features::COOP_TASKRUN) {
        builder.setup_coop_taskrun();
    }
    if features.contains(Features::TASKRUN_FLAG) {
        builder.setup_taskrun_flag();
    }
    if features.contains(Features::NO_SQARRAY) {
        builder.setup_no_sqarray();
    }
    if features.contains(Features::POLLED_COMMANDS) {
        builder.setup_iopoll();
    }
    builder.build(entries)
}

/// A ring with nothing else in flight, a file in memory and some bytes.
struct Trial {
    uring: IoUring,
    file: OwnedFd,
    bytes: Box<[u8; 8]>,
}

const PATTERN: [u8; 8] = *b"tidegate";

impl Trial {
    fn new(uring: IoUring) -> io::Result<Trial> {
        let file = memfd_create("tidegate-probe", MemfdFlags::CLOEXEC)?;
        Ok(Trial { uring, file, bytes: Box::new(PATTERN) })
    }

    /// Tries everything; what of `features` does not work.
    ///
    /// # Errors
    /// Something does not work that there is no way around.
    fn run(&mut self, features: Features) -> io::Result<Features> {
        let mut lacking = Features::empty();
        let fd = types::Fd(self.file.as_raw_fd());
        let at = self.bytes.as_mut_ptr();
        let vector = Box::new(IoVec { base: at, len: PATTERN.len() });
        let list = std::ptr::from_ref(&*vector);

        let durable = |entry: opcode::Write| entry.rw_flags(super::core::RWF_DSYNC).build();
        self.expect(&durable(opcode::Write::new(fd, at, 8)), 8)?;
        self.expect(&opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), 0)?;
        self.bytes.fill(0);
        self.expect(&opcode::Read::new(fd, at, 8).build(), 8)?;
        self.same()?;
        self.expect(&opcode::Writev::new(fd, list.cast(), 1).offset(8).build(), 8)?;
        self.bytes.fill(0);
        self.expect(&opcode::Readv::new(fd, list.cast(), 1).offset(8).build(), 8)?;
        self.same()?;
        // Nothing is in flight: that there is nothing to cancel is the right answer.
        let cancel = opcode::AsyncCancel::new(u64::MAX - 1).build();
        self.expect(&cancel, -Errno::NOENT.raw_os_error())?;

        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let mode = i32::try_from(punch.bits()).unwrap_or_default();
        let punch = opcode::Fallocate::new(fd, 8).mode(mode).build();
        if self.expect(&punch, 0).is_err() {
            lacking |= Features::FALLOCATE;
        }
        if features.contains(Features::REGISTERED_FILES) && self.try_registered_file().is_err() {
            lacking |= Features::REGISTERED_FILES;
        }
        if features.contains(Features::FIXED_BUFFERS) && self.try_fixed_buffer().is_err() {
            lacking |= Features::FIXED_BUFFERS;
        }
        drop(vector);
        Ok(lacking)
    }

    fn try_registered_file(&mut self) -> io::Result<()> {
        self.uring.submitter().register_files_update(0, &[self.file.as_raw_fd()])?;
        let at = self.bytes.as_mut_ptr();
        self.bytes.fill(0);
        let result = self.expect(&opcode::Read::new(types::Fixed(0), at, 8).offset(8).build(), 8);
        self.uring.submitter().register_files_update(0, &[-1])?;
        result?;
        self.same()
    }

    /// Only whether it works at all; whether the limit on locked memory suffices shows later.
    fn try_fixed_buffer(&mut self) -> io::Result<()> {
        let at = self.bytes.as_mut_ptr();
        buffers::update(&self.uring.submitter(), 0, IoVec { base: at, len: self.bytes.len() })?;
        self.bytes.fill(0);
        let fd = types::Fd(self.file.as_raw_fd());
        let result = self.expect(&opcode::ReadFixed::new(fd, at, 8, 0).offset(8).build(), 8);
        buffers::update(&self.uring.submitter(), 0, IoVec::EMPTY)?;
        result?;
        self.same()
    }

    fn same(&self) -> io::Result<()> {
        if *self.bytes == PATTERN {
            Ok(())
        } else {
            Err(io::Error::other("a read brought wrong bytes"))
        }
    }

    /// Runs one operation alone, to its end.
    fn expect(&mut self, entry: &Entry, wanted: i32) -> io::Result<()> {
        let opcode = entry.get_opcode();
        // SAFETY: the entry refers to `self.file`, `self.bytes` and the caller's vector alone, which
        // live until this function has seen the completion; the ring is never left before.
        unsafe { push(&mut self.uring, entry)? };
        loop {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(completion) = self.uring.completion().next() {
                let result = completion.result();
                if result == wanted {
                    return Ok(());
                }
                let reason = match result {
                    ..0 => io::Error::from_raw_os_error(-result).to_string(),
                    _ => format!("result {result}"),
                };
                return Err(io::Error::other(format!("operation {opcode} failed: {reason}")));
            }
        }
    }
}

/// # Safety
/// As for [`squeue::SubmissionQueue::push`]: what the entry refers to outlives the operation.
unsafe fn push(uring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { uring.submission().push(entry) }.map_err(io::Error::other)
}
