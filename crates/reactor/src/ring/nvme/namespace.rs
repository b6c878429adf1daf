//! A namespace behind its generic character device: the calls to it that block, and what of the ring works for it.

use std::ffi::{c_int, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{Arena, ArenaConfig, Hugepages, SLAB_SIZE};
use nvme::Status;
use nvme::admin::{self, IDENTIFY_LENGTH, Identify};
use nvme::identify::{Cns, IdentifyNamespace};
use nvme::io::{Command, Transfer};
use rustix::fs::{Dev, FileType, fstat, major, minor};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::command::{self, NvmeOp, Passthrough, Payload};
use super::core::CommandCore;
use super::{PINNED, RingNamespace};
use crate::ring::Features;
use crate::ring::op::Segments;

/// `NVME_IOCTL_ID`, `NVME_IOCTL_ADMIN64_CMD` and `NVME_IOCTL_IO64_CMD` of `linux/nvme_ioctl.h`.
const ID: Opcode = 0x4e40;
const ADMIN: Opcode = command::request(0x47, 80);
const IO: Opcode = command::request(0x48, 80);

/// How long a command that is tried out may take; longer than the driver gives it.
const TRIAL: Duration = Duration::from_secs(40);

/// Why a file is no namespace that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NamespaceError {
    /// It is something else.
    #[error("it is no NVMe generic character device")]
    NotNvme,
    /// The system refused a call.
    #[error("{0}")]
    System(Errno),
    /// The controller refused a command.
    #[error("the controller says: {0}")]
    Status(Status),
    /// Its format has metadata.
    #[error(
        "it is formatted with {0} bytes of metadata per block, which is not supported: format it without"
    )]
    Metadata(u16),
    /// Its blocks have another size, 2 to the power of this.
    #[error("its blocks have 2^{0} bytes, and 512 or 4096 are supported: format it so")]
    BlockSize(u8),
}

/// The data of a command that blocks.
#[derive(Debug)]
pub enum Data<'a> {
    /// There is none.
    None,
    /// What the controller writes.
    In(&'a mut [u8]),
    /// What it reads.
    Out(&'a [u8]),
}

/// An NVMe namespace. Any thread.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<OwnedFd>,
    nsid: u32,
    block_size: u32,
}

impl Namespace {
    /// The namespace behind this file, and what it says of itself. Blocks.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn new(file: OwnedFd) -> Result<(Namespace, Box<IdentifyNamespace>), NamespaceError> {
        let facts = fstat(&file).map_err(NamespaceError::System)?;
        let is_character = FileType::from_raw_mode(facts.st_mode) == FileType::CharacterDevice;
        if !is_character || !is_generic_device(facts.st_rdev) {
            return Err(NamespaceError::NotNvme);
        }
        // SAFETY: the file is such a device, and the call takes no argument.
        let nsid = unsafe { ioctl(&file, NamespaceId) }.map_err(NamespaceError::System)?;
        let mut namespace = Namespace { file: Arc::new(file), nsid, block_size: 0 };
        let said = namespace.identify()?;
        namespace.block_size = block_size(&said)?;
        Ok((namespace, said))
    }

    /// One for tests, with blocks of 512 bytes: every command to it by a ring ends with 0 at once, and nothing is
    /// transferred. Commands that block are refused.
    ///
    /// # Errors
    /// If there is no `/dev/null`.
    pub fn stand_in() -> io::Result<Namespace> {
        let file = fs::File::open("/dev/null")?;
        Ok(Namespace { file: Arc::new(file.into()), nsid: 1, block_size: 512 })
    }

    /// Namespace Identifier.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Bytes in a block, 512 or 4096.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Identify Namespace, now. Blocks.
    ///
    /// # Errors
    /// If it cannot be had, or is that of a format that cannot be used or is another than it was.
    pub fn identify(&self) -> Result<Box<IdentifyNamespace>, NamespaceError> {
        let said = self.ask::<IdentifyNamespace>(&Identify::new(Cns::Namespace), self.nsid)?;
        let block_size = block_size(&said)?;
        if self.block_size != 0 && self.block_size != block_size {
            let [.., shift] = block_size.trailing_zeros().to_be_bytes();
            return Err(NamespaceError::BlockSize(shift));
        }
        Ok(said)
    }

    /// Any data of Identify, all zeroes if `T` has another length than those. Blocks.
    ///
    /// # Errors
    /// If the system or the controller refuses it.
    pub fn ask<T: FromBytes + IntoBytes>(
        &self,
        identify: &Identify,
        nsid: u32,
    ) -> Result<Box<T>, NamespaceError> {
        let mut data = Box::new(T::new_zeroed());
        let sqe = admin::Command::Identify(*identify).to_sqe(nsid);
        let bytes = data.as_mut_bytes();
        if bytes.len() == IDENTIFY_LENGTH {
            let status = self.call(ADMIN, &sqe, &mut Data::In(bytes));
            match status.map_err(NamespaceError::System)? {
                status if status.is_success() => {}
                status => return Err(NamespaceError::Status(status)),
            }
        }
        Ok(data)
    }

    /// Carries out a command. Blocks until the controller has answered.
    ///
    /// # Errors
    /// The system's; `EINVAL` if the data is not as long, or goes another way, than the command says.
    pub fn execute(&self, command: &Command, data: &mut Data<'_>) -> Result<Status, Errno> {
        let len = match data {
            Data::None => 0,
            Data::In(bytes) => bytes.len(),
            Data::Out(bytes) => bytes.len(),
        };
        let fits = u64::try_from(len) == Ok(command::length(command, self.block_size));
        let inwards = matches!(command, Command::Read(_));
        let right_way = match data {
            Data::None => true,
            Data::In(_) => inwards,
            Data::Out(_) => !inwards,
        };
        if !fits || !right_way {
            return Err(Errno::INVAL);
        }
        self.call(IO, &command.to_sqe(self.nsid), data)
    }

    fn call(&self, request: Opcode, sqe: &nvme::Sqe, data: &mut Data<'_>) -> Result<Status, Errno> {
        let (address, len) = match data {
            Data::None => (0, 0),
            Data::In(bytes) => (bytes.as_mut_ptr().expose_provenance(), bytes.len()),
            Data::Out(bytes) => (bytes.as_ptr().expose_provenance(), bytes.len()),
        };
        let len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        let command = Passthrough::new(sqe, u64::try_from(address).unwrap_or_default(), len);
        // SAFETY: the argument is the structure that these calls take. The controller transfers as much as the caller
        // has seen to that the command says, which is the length of `data`, borrowed through the call, in the
        // direction that this borrow allows.
        unsafe { ioctl(&self.file, Call { request, command }) }
    }

    /// What of the ring for commands works for this namespace: each is used once, to read the first block. With
    /// `polled`, whether it can be read without an interrupt is tried too. Blocks.
    pub fn try_commands(&self, polled: bool) -> Features {
        let mut works = Features::empty();
        let mut try_out = |more: Features| {
            let wanted = (Features::all() - Features::OF_COMMANDS) | works | more;
            let worked = self.read_first_block(wanted);
            match &worked {
                Ok(()) => works |= more,
                Err(error) => tracing::debug!("namespace {}: {more:?}: {error}", self.nsid),
            }
            worked.is_ok()
        };
        if try_out(Features::FOR_COMMANDS) {
            try_out(Features::FIXED_COMMANDS);
            if polled {
                try_out(Features::POLLED_COMMANDS);
            }
        }
        works
    }

    fn read_first_block(&self, features: Features) -> io::Result<()> {
        let mut core = CommandCore::new(0, 8, features)?;
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).map_err(io::Error::other)?;
        if features.contains(Features::FIXED_COMMANDS) && core.register_pool(&pool, 1) == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let len = usize::try_from(self.block_size).unwrap_or_default();
        // The beginning of a piece, of which most is left.
        let segment = pool.take(PINNED).and_then(|buffer| buffer.segment(0, len));
        let segment = segment.ok_or(io::ErrorKind::OutOfMemory)?;
        let namespace = RingNamespace::new(self, core.register_file(Arc::clone(&self.file)));
        let read = Command::Read(Transfer::new(0, 1));
        let op = NvmeOp::new(namespace, read, Payload::Memory(Segments::from(segment)));
        let port = core.open_port();
        let op = op.ok_or(io::ErrorKind::InvalidInput)?;
        core.push(port, op, 0).map_err(|_| io::ErrorKind::WouldBlock)?;
        let deadline = Instant::now() + TRIAL;
        loop {
            core.wait();
            core.reap();
            match core.pop(port) {
                Some((_, result @ ..0)) => return Err(io::Error::from_raw_os_error(-result)),
                // Whatever the controller thinks of it, the command has reached it.
                Some(_) => return Ok(()),
                None if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                None => {}
            }
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether this character device is a namespace's, by what the kernel calls its class.
pub fn is_generic_device(device: Dev) -> bool {
    let (major, minor) = (major(device), minor(device));
    let class = fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    class.is_ok_and(|class| class.file_name().is_some_and(|name| name == "nvme-generic"))
}

/// The block size, if the format can be used.
fn block_size(said: &IdentifyNamespace) -> Result<u32, NamespaceError> {
    let format = said.format().copied().unwrap_or_default();
    if format.ms.get() != 0 {
        return Err(NamespaceError::Metadata(format.ms.get()));
    }
    let size = format.block_size().filter(|size| matches!(size, 512 | 4096));
    size.ok_or(NamespaceError::BlockSize(format.lbads))
}

/// The call that says which namespace it is.
struct NamespaceId;

// SAFETY: the call takes no argument and returns a number.
unsafe impl Ioctl for NamespaceId {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        ID
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        // An identifier takes all the bits.
        Ok(output.cast_unsigned())
    }
}

/// A call with a command.
struct Call {
    request: Opcode,
    command: Passthrough,
}

// SAFETY: the calls take a pointer to such a structure, which they may write to, and return 0, an error number, or the
// status that the controller answered with.
unsafe impl Ioctl for Call {
    type Output = Status;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.request
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.command).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<Status> {
        Ok(status(output))
    }
}

/// The status in a result of the kernel's that is not negative.
pub(super) fn status(result: c_int) -> Status {
    Status::from_bits(u16::try_from(result).unwrap_or(Status::INTERNAL_ERROR.bits()))
}
