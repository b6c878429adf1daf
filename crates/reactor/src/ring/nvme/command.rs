//! An NVMe command with its data, as it is given to the kernel.
//!
//! **Lengths.** The kernel maps as much memory as it is told, the controller transfers as much as the command says, and
//! nobody compares the two. If they differed, the controller could read or write memory that is anybody's. So a command
//! exists only with exactly as much memory as it asks for, by the block size that the controller itself has named.

use std::rc::Rc;

use io_uring::opcode;
use io_uring::squeue::{Entry128, Flags};
use nvme::io::{Command, DsmRange};
use zerocopy::{Immutable, IntoBytes};

use crate::ring::buffers::Buffers;
use crate::ring::core::{Layout, layout};
use crate::ring::files::FileTable;
use crate::ring::op::{IoVec, MAX_SEGMENTS, Segments, Writes};

use super::RingNamespace;

/// What a command of the kernel's is numbered: reads and writes its argument, of so many bytes, type `N`.
pub(super) const fn request(number: u32, length: u32) -> u32 {
    3 << 30 | length << 16 | 0x4e << 8 | number
}

/// `NVME_URING_CMD_IO` and `NVME_URING_CMD_IO_VEC`.
const IO: u32 = request(0x80, 72);
const IO_VEC: u32 = request(0x81, 72);

/// `struct nvme_passthru_cmd64` of `linux/nvme_ioctl.h`; its first 72 bytes are `struct nvme_uring_cmd`.
#[derive(Debug, Default, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved2: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    /// Bytes, or the number of elements of the list at `address`.
    length: u32,
    cdw10: [u32; 6],
    /// 0: the driver's own.
    timeout: u32,
    reserved68: u32,
    result: u64,
}

const _: () = assert!(size_of::<Passthrough>() == 80);
const _: () = assert!(std::mem::offset_of!(Passthrough, address) == 24);
const _: () = assert!(std::mem::offset_of!(Passthrough, cdw10) == 40);
const _: () = assert!(std::mem::offset_of!(Passthrough, timeout) == 64);

impl Passthrough {
    /// The command with its data there.
    pub(super) fn new(sqe: &nvme::Sqe, address: u64, length: u32) -> Passthrough {
        let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15];
        Passthrough {
            opcode: sqe.opcode,
            nsid: sqe.nsid.get(),
            cdw2: sqe.cdw2.get(),
            cdw3: sqe.cdw3.get(),
            address,
            length,
            cdw10: dwords.map(nvme::U32::get),
            ..Passthrough::default()
        }
    }
}

/// The bytes that the controller transfers for a command.
pub(super) fn length(command: &Command, block_size: u32) -> u64 {
    match command {
        Command::Read(transfer) | Command::Write(transfer) | Command::Compare(transfer) => {
            // As in the wire's field, which has no other values.
            u64::from(transfer.range.blocks.clamp(1, 1 << 16)) * u64::from(block_size)
        }
        Command::DatasetManagement(dsm) => u64::from(dsm.ranges.clamp(1, 256)) * 16,
        Command::Flush | Command::WriteZeroes(_) | Command::Verify(_) => 0,
    }
}

/// The data of a command.
#[derive(Debug, Clone, Default)]
pub enum Payload {
    /// There is none.
    #[default]
    None,
    /// Where it is or goes.
    Memory(Segments),
    /// The list of a Dataset Management command.
    Range(DsmRange),
}

/// One command to a namespace. Its result is 0, an NVMe status without the phase tag, or a negated
/// error number.
#[derive(Debug)]
pub struct NvmeOp {
    pub(super) namespace: RingNamespace,
    command: Command,
    payload: Payload,
}

impl NvmeOp {
    /// `None` if the payload is not as long as the command says.
    pub fn new(namespace: RingNamespace, command: Command, payload: Payload) -> Option<NvmeOp> {
        let brought = match &payload {
            Payload::None => 0,
            Payload::Memory(segments) => segments.bytes(),
            Payload::Range(range) => size_of_val(range),
        };
        let wanted = length(&command, namespace.block_size);
        let fits = u64::try_from(brought) == Ok(wanted);
        fits.then_some(NvmeOp { namespace, command, payload })
    }
}

/// An operation that the kernel may be working on, with the leave to write it needs.
pub(super) struct Held {
    pub(super) op: NvmeOp,
    _writes: Writes,
}

impl Held {
    /// Takes the operation over.
    ///
    /// # Errors
    /// The operation, if it would write to a buffer that somebody is looking into.
    #[expect(clippy::result_large_err, reason = "a refused operation goes back to its owner")]
    pub(super) fn new(op: NvmeOp) -> Result<Held, NvmeOp> {
        let writes = match (&op.command, &op.payload) {
            (Command::Read(_), Payload::Memory(data)) => Writes::to(data),
            _ => Some(Writes::default()),
        };
        match writes {
            Some(writes) => Ok(Held { op, _writes: writes }),
            None => Err(op),
        }
    }
}

/// A slot's own memory, for what the kernel reads of a command beside its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    vector: [IoVec; MAX_SEGMENTS],
    range: DsmRange,
}

impl Place {
    pub(super) fn new() -> Place {
        Place { vector: [IoVec::EMPTY; MAX_SEGMENTS], range: DsmRange::new(0, 0) }
    }
}

/// Writes the submission entry for a command, using `place` for a list.
pub(super) fn prepare(
    op: &NvmeOp,
    place: &mut Place,
    files: &Rc<FileTable>,
    buffers: &Buffers,
) -> Entry128 {
    let (request, address, length, fixed) = match &op.payload {
        Payload::None => (IO, 0, 0, None),
        Payload::Range(range) => {
            place.range = *range;
            (IO, (&raw const place.range).addr(), 16, None)
        }
        Payload::Memory(segments) => match layout(segments, &mut place.vector, buffers) {
            Layout::Fixed(base, len, buffer) => (IO, base.addr(), len, Some(buffer)),
            Layout::Plain(base, len) => (IO, base.addr(), len, None),
            Layout::Vector(list, count) => (IO_VEC, list.addr(), count, None),
        },
    };
    let sqe = op.command.to_sqe(op.namespace.nsid);
    let command = Passthrough::new(&sqe, u64::try_from(address).unwrap_or_default(), length);
    let (fd, registered) = op.namespace.file.target(files);
    let entry = opcode::UringCmd80::new(fd, request)
        .cmd(zerocopy::transmute!(command))
        .buf_index(fixed)
        .build();
    if registered { entry.flags(Flags::FIXED_FILE) } else { entry }
}
