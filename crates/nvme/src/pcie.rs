//! What controllers on PCIe have and fabrics controllers have not: queues that are created by commands, doorbells whose values may lie
//! in memory, firmware that the host loads.
//!
//! NVMe Base 2.0c, chapter 5 "Admin Command Set". The commands are apart from [`crate::admin::Command`] because a fabrics
//! controller of ours answers every one of them with Invalid Opcode.

use crate::admin::Opcode;
use crate::codes::codes;
use crate::command::{Prps, Sqe};
use crate::status::Status;
use zerocopy::little_endian::U32;

/// A command of the admin queue that only a controller on PCIe has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Delete I/O Submission Queue, by its identifier. Not before the command is complete may the host use its memory again.
    DeleteIoSubmissionQueue(u16),
    /// Create I/O Submission Queue. PRP Entry 1 is where the queue is.
    CreateIoSubmissionQueue(CreateIoSubmissionQueue),
    /// Delete I/O Completion Queue, by its identifier: after all submission queues that use it.
    DeleteIoCompletionQueue(u16),
    /// Create I/O Completion Queue. PRP Entry 1 is where the queue is.
    CreateIoCompletionQueue(CreateIoCompletionQueue),
    /// Firmware Commit.
    FirmwareCommit(FirmwareCommit),
    /// Firmware Image Download; its data are [`FirmwareImageDownload::length`] bytes.
    FirmwareImageDownload(FirmwareImageDownload),
    /// Doorbell Buffer Config. PRP Entry 1 is the page of the shadow doorbells, PRP Entry 2 that of the event indices, each laid out
    /// as the doorbell registers are from [`crate::register::offset::DOORBELLS`] on.
    DoorbellBufferConfig,
}

impl Command {
    /// The command in an SQE of the admin queue. `INVALID_OPCODE` for all others, also those of [`crate::admin::Command`];
    /// `INVALID_FIELD` for a commit action that is reserved.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let (qid, high) = halves(sqe.cdw10);
        let entries = u32::from(high).saturating_add(1);
        let (flags, other) = halves(sqe.cdw11);
        let contiguous = flags & 1 != 0;
        Ok(match Opcode::try_from(sqe.opcode).map_err(|_| Status::INVALID_OPCODE)? {
            Opcode::DeleteIoSubmissionQueue => Self::DeleteIoSubmissionQueue(qid),
            Opcode::DeleteIoCompletionQueue => Self::DeleteIoCompletionQueue(qid),
            Opcode::CreateIoSubmissionQueue => {
                Self::CreateIoSubmissionQueue(CreateIoSubmissionQueue {
                    qid,
                    entries,
                    contiguous,
                    priority: Priority::from_bits(flags >> 1),
                    cqid: other,
                    nvmsetid: halves(sqe.cdw12).0,
                })
            }
            Opcode::CreateIoCompletionQueue => {
                Self::CreateIoCompletionQueue(CreateIoCompletionQueue {
                    qid,
                    entries,
                    contiguous,
                    vector: (flags & 2 != 0).then_some(other),
                })
            }
            Opcode::FirmwareCommit => Self::FirmwareCommit(FirmwareCommit::parse(sqe)?),
            Opcode::FirmwareImageDownload => Self::FirmwareImageDownload(FirmwareImageDownload {
                numd: sqe.cdw10.get(),
                offset: sqe.cdw11.get(),
            }),
            Opcode::DoorbellBufferConfig => Self::DoorbellBufferConfig,
            _ => return Err(Status::INVALID_OPCODE),
        })
    }

    /// Opcode.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::DeleteIoSubmissionQueue(_) => Opcode::DeleteIoSubmissionQueue,
            Self::CreateIoSubmissionQueue(_) => Opcode::CreateIoSubmissionQueue,
            Self::DeleteIoCompletionQueue(_) => Opcode::DeleteIoCompletionQueue,
            Self::CreateIoCompletionQueue(_) => Opcode::CreateIoCompletionQueue,
            Self::FirmwareCommit(_) => Opcode::FirmwareCommit,
            Self::FirmwareImageDownload(_) => Opcode::FirmwareImageDownload,
            Self::DoorbellBufferConfig => Opcode::DoorbellBufferConfig,
        }
    }

    /// The command with this data pointer, without CID. None of them concerns a namespace.
    pub fn to_sqe(&self, prps: Prps) -> Sqe {
        let mut sqe = Sqe::new(self.opcode().code(), 0).with_prps(prps);
        match *self {
            Self::DeleteIoSubmissionQueue(qid) | Self::DeleteIoCompletionQueue(qid) => {
                sqe.cdw10 = dword(qid, 0);
            }
            Self::CreateIoSubmissionQueue(queue) => {
                sqe.cdw10 = dword(queue.qid, zero_based(queue.entries));
                let flags = u16::from(queue.contiguous) | queue.priority.bits() << 1;
                sqe.cdw11 = dword(flags, queue.cqid);
                sqe.cdw12 = dword(queue.nvmsetid, 0);
            }
            Self::CreateIoCompletionQueue(queue) => {
                sqe.cdw10 = dword(queue.qid, zero_based(queue.entries));
                let flags = u16::from(queue.contiguous) | u16::from(queue.vector.is_some()) << 1;
                sqe.cdw11 = dword(flags, queue.vector.unwrap_or(0));
            }
            Self::FirmwareCommit(commit) => sqe.cdw10 = commit.dword(),
            Self::FirmwareImageDownload(download) => {
                sqe.cdw10 = U32::new(download.numd);
                sqe.cdw11 = U32::new(download.offset);
            }
            Self::DoorbellBufferConfig => {}
        }
        sqe
    }
}

fn halves(dword: U32) -> (u16, u16) {
    let [l0, l1, h0, h1] = dword.to_bytes();
    (u16::from_le_bytes([l0, l1]), u16::from_le_bytes([h0, h1]))
}

fn dword(low: u16, high: u16) -> U32 {
    U32::new(u32::from(low) | u32::from(high) << 16)
}

/// 0 becomes one entry, more than there can be as many as there can be.
fn zero_based(entries: u32) -> u16 {
    u16::try_from(entries.saturating_sub(1)).unwrap_or(u16::MAX)
}

/// Queue Priority (QPRIO): of effect where CC.AMS asks for weighted round robin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// 00b.
    #[default]
    Urgent,
    /// 01b.
    High,
    /// 10b.
    Medium,
    /// 11b.
    Low,
}

impl Priority {
    const fn from_bits(bits: u16) -> Self {
        match bits & 3 {
            0 => Self::Urgent,
            1 => Self::High,
            2 => Self::Medium,
            _ => Self::Low,
        }
    }

    const fn bits(self) -> u16 {
        match self {
            Self::Urgent => 0,
            Self::High => 1,
            Self::Medium => 2,
            Self::Low => 3,
        }
    }
}

/// Create I/O Submission Queue. NVMe Base 2.0c, section 5.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateIoSubmissionQueue {
    /// Queue Identifier (QID), not 0.
    pub qid: u16,
    /// Queue Size (QSIZE), counted from 1: 2..=65,536 entries.
    pub entries: u32,
    /// Physically Contiguous (PC): PRP Entry 1 is the queue, not a list of its pages.
    pub contiguous: bool,
    /// Queue Priority (QPRIO).
    pub priority: Priority,
    /// Completion Queue Identifier (CQID).
    pub cqid: u16,
    /// NVM Set Identifier (NVMSETID); 0 for none.
    pub nvmsetid: u16,
}

/// Create I/O Completion Queue. NVMe Base 2.0c, section 5.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateIoCompletionQueue {
    /// Queue Identifier (QID), not 0.
    pub qid: u16,
    /// Queue Size (QSIZE), counted from 1: 2..=65,536 entries.
    pub entries: u32,
    /// Physically Contiguous (PC): PRP Entry 1 is the queue, not a list of its pages.
    pub contiguous: bool,
    /// Interrupt Vector (IV) if interrupts are enabled (IEN).
    pub vector: Option<u16>,
}

codes! {
    /// Commit Action (CA) of Firmware Commit.
    pub enum CommitAction {
        Replace = 0x0, "Replace the image in the slot, do not activate it";
        ReplaceActivateAtReset = 0x1, "Replace the image in the slot, activate it at the next reset";
        ActivateAtReset = 0x2, "Activate the image in the slot at the next reset";
        ActivateNow = 0x3, "Activate the image at once";
        ReplaceBootPartition = 0x6, "Replace the boot partition";
        ActivateBootPartition = 0x7, "Mark the boot partition as active";
    }
}

/// Firmware Commit. NVMe Base 2.0c, section 5.12.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareCommit {
    /// Firmware Slot (FS), 3 bits; 0: the controller chooses.
    pub slot: u8,
    /// Commit Action (CA).
    pub action: CommitAction,
    /// Boot Partition ID (BPID).
    pub boot_partition: bool,
}

impl FirmwareCommit {
    fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let [low, _, _, top] = sqe.cdw10.to_bytes();
        let action = CommitAction::try_from((low >> 3) & 0x7).map_err(|_| Status::INVALID_FIELD)?;
        Ok(Self { slot: low & 0x7, action, boot_partition: top & 0x80 != 0 })
    }

    fn dword(self) -> U32 {
        let low = (self.slot & 0x7) | self.action.code() << 3;
        U32::from_bytes([low, 0, 0, u8::from(self.boot_partition) << 7])
    }
}

/// Firmware Image Download: a piece of an image. NVMe Base 2.0c, section 5.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareImageDownload {
    /// Number of Dwords (NUMD), 0's based as on the wire; see [`FirmwareImageDownload::length`].
    pub numd: u32,
    /// Offset (OFST) of the piece in the image, in dwords.
    pub offset: u32,
}

impl FirmwareImageDownload {
    /// `length` bytes for byte `offset` of the image: both multiples of four, of at most 2^34. `None` if not, or if there are no bytes.
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        let numd = (length / 4).checked_sub(1)?;
        let aligned = length.is_multiple_of(4) && offset.is_multiple_of(4);
        Some(Self { numd: u32::try_from(numd).ok()?, offset: u32::try_from(offset / 4).ok()? })
            .filter(|_| aligned)
    }

    /// Bytes of data.
    pub fn length(&self) -> u64 {
        (u64::from(self.numd) + 1) * 4
    }

    /// Where the piece begins in the image, in bytes.
    pub fn byte_offset(&self) -> u64 {
        u64::from(self.offset) * 4
    }
}
