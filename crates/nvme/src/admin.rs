//! Commands of the admin queue, other than fabrics commands.
//!
//! NVMe Base 2.0c, section 5 "Admin Command Set".

use crate::codes::codes;
use crate::command::{Cqe, Sqe};
use crate::status::Status;
use zerocopy::little_endian::U32;

codes! {
    /// Opcodes of the admin queue.
    pub enum Opcode {
        DeleteIoSubmissionQueue = 0x00, "Delete I/O Submission Queue";
        CreateIoSubmissionQueue = 0x01, "Create I/O Submission Queue";
        GetLogPage = 0x02, "Get Log Page";
        DeleteIoCompletionQueue = 0x04, "Delete I/O Completion Queue";
        CreateIoCompletionQueue = 0x05, "Create I/O Completion Queue";
        Identify = 0x06, "Identify";
        Abort = 0x08, "Abort";
        SetFeatures = 0x09, "Set Features";
        GetFeatures = 0x0a, "Get Features";
        AsynchronousEventRequest = 0x0c, "Asynchronous Event Request";
        NamespaceManagement = 0x0d, "Namespace Management";
        FirmwareCommit = 0x10, "Firmware Commit";
        FirmwareImageDownload = 0x11, "Firmware Image Download";
        DeviceSelfTest = 0x14, "Device Self-test";
        NamespaceAttachment = 0x15, "Namespace Attachment";
        KeepAlive = 0x18, "Keep Alive";
        DirectiveSend = 0x19, "Directive Send";
        DirectiveReceive = 0x1a, "Directive Receive";
        VirtualizationManagement = 0x1c, "Virtualization Management";
        NvmeMiSend = 0x1d, "NVMe-MI Send";
        NvmeMiReceive = 0x1e, "NVMe-MI Receive";
        CapacityManagement = 0x20, "Capacity Management";
        Lockdown = 0x24, "Lockdown";
        DoorbellBufferConfig = 0x7c, "Doorbell Buffer Config";
        FormatNvm = 0x80, "Format NVM";
        SecuritySend = 0x81, "Security Send";
        SecurityReceive = 0x82, "Security Receive";
        Sanitize = 0x84, "Sanitize";
        GetLbaStatus = 0x86, "Get LBA Status";
    }
}

/// An admin command; those that only controllers on PCIe have are in [`crate::pcie`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Get Log Page.
    GetLogPage(GetLogPage),
    /// Identify.
    Identify(Identify),
    /// Abort.
    Abort(Abort),
    /// Set Features.
    SetFeatures(SetFeatures),
    /// Get Features.
    GetFeatures(GetFeatures),
    /// Asynchronous Event Request.
    AsynchronousEventRequest,
    /// Keep Alive.
    KeepAlive,
}

impl Command {
    /// The command in an SQE of the admin queue. `INVALID_OPCODE` for opcodes that are not known,
    /// and for those in [`Opcode`] that no fabrics controller of ours has (queue creation,
    /// firmware, formatting, ...).
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        match Opcode::try_from(sqe.opcode) {
            Ok(Opcode::GetLogPage) => Ok(Self::GetLogPage(GetLogPage::parse(sqe))),
            Ok(Opcode::Identify) => Ok(Self::Identify(Identify::parse(sqe))),
            Ok(Opcode::Abort) => Ok(Self::Abort(Abort::parse(sqe))),
            Ok(Opcode::SetFeatures) => Ok(Self::SetFeatures(SetFeatures::parse(sqe))),
            Ok(Opcode::GetFeatures) => Ok(Self::GetFeatures(GetFeatures::parse(sqe)?)),
            Ok(Opcode::AsynchronousEventRequest) => Ok(Self::AsynchronousEventRequest),
            Ok(Opcode::KeepAlive) => Ok(Self::KeepAlive),
            Ok(_) | Err(_) => Err(Status::INVALID_OPCODE),
        }
    }

    /// Opcode.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::GetLogPage(_) => Opcode::GetLogPage,
            Self::Identify(_) => Opcode::Identify,
            Self::Abort(_) => Opcode::Abort,
            Self::SetFeatures(_) => Opcode::SetFeatures,
            Self::GetFeatures(_) => Opcode::GetFeatures,
            Self::AsynchronousEventRequest => Opcode::AsynchronousEventRequest,
            Self::KeepAlive => Opcode::KeepAlive,
        }
    }

    /// The command for this namespace (0 where none is meant), without data pointer and CID.
    pub fn to_sqe(&self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(self.opcode().code(), nsid);
        match self {
            Self::GetLogPage(command) => command.put(&mut sqe),
            Self::Identify(command) => command.put(&mut sqe),
            Self::Abort(command) => command.put(&mut sqe),
            Self::SetFeatures(command) => command.put(&mut sqe),
            Self::GetFeatures(command) => command.put(&mut sqe),
            Self::AsynchronousEventRequest | Self::KeepAlive => {}
        }
        sqe
    }
}

fn low_byte(dword: U32) -> u8 {
    let [low, ..] = dword.to_bytes();
    low
}

fn halves(dword: U32) -> (u16, u16) {
    let [l0, l1, h0, h1] = dword.to_bytes();
    (u16::from_le_bytes([l0, l1]), u16::from_le_bytes([h0, h1]))
}

/// Bytes that every Identify returns.
pub const IDENTIFY_LENGTH: usize = 4096;

/// Identify. NVMe Base 2.0c, section 5.17.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identify {
    /// Controller or Namespace Structure (CNS); see [`crate::identify::Cns`].
    pub cns: u8,
    /// Controller Identifier (CNTID).
    pub cntid: u16,
    /// CNS Specific Identifier: the NVM set (NVMSETID), domain, endurance group, or index of the user
    /// data format that some CNS values want.
    pub cnssid: u16,
    /// Command Set Identifier (CSI).
    pub csi: u8,
    /// UUID Index, 7 bits.
    pub uuid_index: u8,
}

impl Identify {
    /// Identify of this CNS value, all else 0.
    pub fn new(cns: crate::identify::Cns) -> Self {
        Self { cns: cns.code(), ..Self::default() }
    }

    fn parse(sqe: &Sqe) -> Self {
        let (_, cntid) = halves(sqe.cdw10);
        let (cnssid, _) = halves(sqe.cdw11);
        let [.., csi] = sqe.cdw11.to_bytes();
        Self {
            cns: low_byte(sqe.cdw10),
            cntid,
            cnssid,
            csi,
            uuid_index: low_byte(sqe.cdw14) & 0x7f,
        }
    }

    fn put(self, sqe: &mut Sqe) {
        sqe.cdw10 = U32::new(u32::from(self.cns) | u32::from(self.cntid) << 16);
        sqe.cdw11 = U32::new(u32::from(self.cnssid) | u32::from(self.csi) << 24);
        sqe.cdw14 = U32::new(u32::from(self.uuid_index & 0x7f));
    }
}

/// Get Log Page. NVMe Base 2.0c, section 5.16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GetLogPage {
    /// Log Page Identifier (LID); see [`crate::log::LogPage`].
    pub lid: u8,
    /// Log Specific Field (LSP), 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event (RAE): reading does not re-arm the event.
    pub rae: bool,
    /// Number of Dwords (NUMD), 0's based as on the wire; see [`GetLogPage::length`].
    pub numd: u32,
    /// Log Specific Identifier (LSI).
    pub lsi: u16,
    /// Log Page Offset (LPO): bytes, or an index if `offset_is_index`.
    pub offset: u64,
    /// UUID Index, 7 bits.
    pub uuid_index: u8,
    /// Offset Type (OT).
    pub offset_is_index: bool,
    /// Command Set Identifier (CSI).
    pub csi: u8,
}

impl GetLogPage {
    /// `length` bytes, a multiple of four from 4 to 2^34, from byte `offset` of a page. A length in
    /// between is rounded up, one outside cut.
    pub fn new(lid: crate::log::LogPage, offset: u64, length: u64) -> Self {
        let dwords = length.div_ceil(4).saturating_sub(1);
        Self {
            lid: lid.code(),
            offset,
            numd: u32::try_from(dwords).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }

    /// Bytes asked for, 4..=2^34.
    pub fn length(&self) -> u64 {
        (u64::from(self.numd) + 1) * 4
    }

    /// Byte offset: `INVALID_FIELD` if it is an index or not a multiple of four.
    pub fn byte_offset(&self) -> Result<u64, Status> {
        if self.offset_is_index || !self.offset.is_multiple_of(4) {
            Err(Status::INVALID_FIELD)
        } else {
            Ok(self.offset)
        }
    }

    fn parse(sqe: &Sqe) -> Self {
        let [lid, lsp, ..] = sqe.cdw10.to_bytes();
        let (_, numdl) = halves(sqe.cdw10);
        let (numdu, lsi) = halves(sqe.cdw11);
        let [uuid_index, _, flags, csi] = sqe.cdw14.to_bytes();
        Self {
            lid,
            lsp: lsp & 0x7f,
            rae: lsp & 0x80 != 0,
            numd: u32::from(numdl) | u32::from(numdu) << 16,
            lsi,
            offset: u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32,
            uuid_index: uuid_index & 0x7f,
            offset_is_index: flags & 0x80 != 0,
            csi,
        }
    }

    fn put(self, sqe: &mut Sqe) {
        let [n0, n1, n2, n3] = self.numd.to_le_bytes();
        let [i0, i1] = self.lsi.to_le_bytes();
        let lsp = (self.lsp & 0x7f) | u8::from(self.rae) << 7;
        sqe.cdw10 = U32::from_bytes([self.lid, lsp, n0, n1]);
        sqe.cdw11 = U32::from_bytes([n2, n3, i0, i1]);
        let [a0, a1, a2, a3, b0, b1, b2, b3] = self.offset.to_le_bytes();
        sqe.cdw12 = U32::from_bytes([a0, a1, a2, a3]);
        sqe.cdw13 = U32::from_bytes([b0, b1, b2, b3]);
        let flags = u8::from(self.offset_is_index) << 7;
        sqe.cdw14 = U32::from_bytes([self.uuid_index & 0x7f, 0, flags, self.csi]);
    }
}

/// Select (SEL) of Get Features: which of a feature's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Select {
    /// 000b: the value in effect.
    #[default]
    Current,
    /// 001b: the value after a reset if none was saved.
    Default,
    /// 010b: the saved value.
    Saved,
    /// 011b: what can be done to the feature; see [`Select::SAVEABLE`] and its neighbours.
    SupportedCapabilities,
}

impl Select {
    /// Supported capabilities, bit 0: the value can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// Supported capabilities, bit 1: the value belongs to a namespace.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// Supported capabilities, bit 2: the value can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// Get Features. NVMe Base 2.0c, section 5.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GetFeatures {
    /// Feature Identifier (FID); see [`crate::feature::Feature`].
    pub fid: u8,
    /// Select (SEL).
    pub select: Select,
    /// Command dword 11, which a few features look at.
    pub cdw11: u32,
    /// UUID Index, 7 bits.
    pub uuid_index: u8,
}

impl GetFeatures {
    /// The current value of a feature.
    pub fn new(fid: crate::feature::Feature) -> Self {
        Self { fid: fid.code(), ..Self::default() }
    }

    fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let [fid, select, ..] = sqe.cdw10.to_bytes();
        Ok(Self {
            fid,
            select: match select & 0x7 {
                0 => Select::Current,
                1 => Select::Default,
                2 => Select::Saved,
                3 => Select::SupportedCapabilities,
                _ => return Err(Status::INVALID_FIELD),
            },
            cdw11: sqe.cdw11.get(),
            uuid_index: low_byte(sqe.cdw14) & 0x7f,
        })
    }

    fn put(self, sqe: &mut Sqe) {
        let select = match self.select {
            Select::Current => 0,
            Select::Default => 1,
            Select::Saved => 2,
            Select::SupportedCapabilities => 3,
        };
        sqe.cdw10 = U32::from_bytes([self.fid, select, 0, 0]);
        sqe.cdw11 = U32::new(self.cdw11);
        sqe.cdw14 = U32::new(u32::from(self.uuid_index & 0x7f));
    }
}

/// Set Features. NVMe Base 2.0c, section 5.27.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetFeatures {
    /// Feature Identifier (FID); see [`crate::feature::Feature`].
    pub fid: u8,
    /// Save (SV): the value is to survive resets and power loss.
    pub save: bool,
    /// Command dword 11: the value of most features.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 15.
    pub cdw15: u32,
    /// UUID Index, 7 bits.
    pub uuid_index: u8,
}

impl SetFeatures {
    /// Sets a feature whose value is all in dword 11.
    pub fn new(fid: crate::feature::Feature, cdw11: u32) -> Self {
        Self { fid: fid.code(), cdw11, ..Self::default() }
    }

    fn parse(sqe: &Sqe) -> Self {
        let [fid, _, _, save] = sqe.cdw10.to_bytes();
        Self {
            fid,
            save: save & 0x80 != 0,
            cdw11: sqe.cdw11.get(),
            cdw12: sqe.cdw12.get(),
            cdw13: sqe.cdw13.get(),
            cdw15: sqe.cdw15.get(),
            uuid_index: low_byte(sqe.cdw14) & 0x7f,
        }
    }

    fn put(self, sqe: &mut Sqe) {
        sqe.cdw10 = U32::from_bytes([self.fid, 0, 0, u8::from(self.save) << 7]);
        sqe.cdw11 = U32::new(self.cdw11);
        sqe.cdw12 = U32::new(self.cdw12);
        sqe.cdw13 = U32::new(self.cdw13);
        sqe.cdw14 = U32::new(u32::from(self.uuid_index & 0x7f));
        sqe.cdw15 = U32::new(self.cdw15);
    }
}

/// Abort. NVMe Base 2.0c, section 5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abort {
    /// Submission Queue Identifier (SQID) of the command to abort: over fabrics, the queue's QID.
    pub sqid: u16,
    /// Command Identifier (CID) of the command to abort.
    pub cid: u16,
}

impl Abort {
    fn parse(sqe: &Sqe) -> Self {
        let (sqid, cid) = halves(sqe.cdw10);
        Self { sqid, cid }
    }

    fn put(self, sqe: &mut Sqe) {
        sqe.cdw10 = U32::new(u32::from(self.sqid) | u32::from(self.cid) << 16);
    }

    /// Dword 0 of the completion: bit 0 is 0 exactly if the command was aborted.
    pub const fn dw0(aborted: bool) -> u32 {
        if aborted { 0 } else { 1 }
    }

    /// Whether a completion of Abort says that the command was aborted.
    pub const fn aborted(cqe: &Cqe) -> bool {
        cqe.dw0() & 1 == 0
    }
}
