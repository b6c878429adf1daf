//! Controller properties: what a local SSD has as registers and a fabrics controller lets the host
//! read and write by Property Get and Set.
//!
//! NVMe Base 2.0c, section 3.1.3 "Controller Properties".

use crate::fabrics::PropertySize;
use std::fmt;

/// The properties that a fabrics controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Property {
    /// 0h: Controller Capabilities (CAP), 8 bytes.
    Capabilities,
    /// 8h: Version (VS).
    Version,
    /// 14h: Controller Configuration (CC), the only one besides NSSR that a host writes.
    Configuration,
    /// 1Ch: Controller Status (CSTS).
    Status,
    /// 20h: NVM Subsystem Reset (NSSR).
    SubsystemReset,
    /// 68h: Controller Ready Timeouts (CRTO).
    ReadyTimeouts,
}

/// Where the registers of a controller on PCIe are, in bytes: those of [`Property`], and what only PCIe has. NVMe over PCIe Transport
/// 1.0c, section 3.1.
pub mod offset {
    /// Controller Capabilities (CAP), 8 bytes.
    pub const CAP: usize = 0x00;
    /// Version (VS).
    pub const VS: usize = 0x08;
    /// Interrupt Mask Set (INTMS): not with MSI-X.
    pub const INTMS: usize = 0x0c;
    /// Interrupt Mask Clear (INTMC): not with MSI-X.
    pub const INTMC: usize = 0x10;
    /// Controller Configuration (CC).
    pub const CC: usize = 0x14;
    /// Controller Status (CSTS).
    pub const CSTS: usize = 0x1c;
    /// NVM Subsystem Reset (NSSR).
    pub const NSSR: usize = 0x20;
    /// Admin Queue Attributes (AQA).
    pub const AQA: usize = 0x24;
    /// Admin Submission Queue Base Address (ASQ), 8 bytes.
    pub const ASQ: usize = 0x28;
    /// Admin Completion Queue Base Address (ACQ), 8 bytes.
    pub const ACQ: usize = 0x30;
    /// Controller Memory Buffer Location (CMBLOC).
    pub const CMBLOC: usize = 0x38;
    /// Controller Memory Buffer Size (CMBSZ).
    pub const CMBSZ: usize = 0x3c;
    /// Controller Ready Timeouts (CRTO).
    pub const CRTO: usize = 0x68;
    /// The first doorbell: the tail of the admin submission queue.
    pub const DOORBELLS: usize = 0x1000;

    /// Submission Queue y Tail Doorbell, 4 bytes, of a controller with this CAP.DSTRD.
    pub const fn tail_doorbell(qid: u16, dstrd: u8) -> usize {
        DOORBELLS + 2 * (qid as usize) * stride(dstrd)
    }

    /// Completion Queue y Head Doorbell, 4 bytes, of a controller with this CAP.DSTRD.
    pub const fn head_doorbell(qid: u16, dstrd: u8) -> usize {
        DOORBELLS + (2 * (qid as usize) + 1) * stride(dstrd)
    }

    /// Bytes from a doorbell to the next, of a controller with this CAP.DSTRD.
    pub const fn stride(dstrd: u8) -> usize {
        4 << (dstrd & 0xf)
    }
}

/// The value that, written to NSSR, resets the subsystem: "NVMe".
pub const SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

impl Property {
    /// The property at this offset.
    pub const fn from_offset(offset: u32) -> Option<Self> {
        match offset {
            0x00 => Some(Self::Capabilities),
            0x08 => Some(Self::Version),
            0x14 => Some(Self::Configuration),
            0x1c => Some(Self::Status),
            0x20 => Some(Self::SubsystemReset),
            0x68 => Some(Self::ReadyTimeouts),
            _ => None,
        }
    }

    /// Offset in bytes.
    pub const fn offset(self) -> u32 {
        match self {
            Self::Capabilities => 0x00,
            Self::Version => 0x08,
            Self::Configuration => 0x14,
            Self::Status => 0x1c,
            Self::SubsystemReset => 0x20,
            Self::ReadyTimeouts => 0x68,
        }
    }

    /// Size.
    pub const fn size(self) -> PropertySize {
        match self {
            Self::Capabilities => PropertySize::Eight,
            _ => PropertySize::Four,
        }
    }
}

const fn field64(value: u64, shift: u32, bits: u32) -> u64 {
    (value >> shift) & ((1 << bits) - 1)
}

const fn low8(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// Controller Capabilities (CAP) by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Maximum Queue Entries Supported (MQES), bits 15:0, 0's based.
    pub mqes: u16,
    /// Contiguous Queues Required (CQR), bit 16: always set over fabrics.
    pub cqr: bool,
    /// Arbitration Mechanism Supported (AMS), bits 18:17.
    pub ams: u8,
    /// Timeout (TO), bits 31:24: longest time from CC.EN to CSTS.RDY, in 500 ms.
    pub to: u8,
    /// Doorbell Stride (DSTRD), bits 35:32: 0 over fabrics.
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported (NSSRS), bit 36.
    pub nssrs: bool,
    /// Command Sets Supported (CSS), bits 44:37; see `CSS_NVM` and its neighbours.
    pub css: u8,
    /// Memory Page Size Minimum (MPSMIN), bits 51:48: 2 ^ (12 + this) bytes, the unit of MDTS.
    pub mpsmin: u8,
    /// Memory Page Size Maximum (MPSMAX), bits 55:52: 2 ^ (12 + this) bytes.
    pub mpsmax: u8,
    /// Controller Ready Modes Supported (CRMS), bits 60:59; bit 0: Ready With Media, which 2.0
    /// makes mandatory.
    pub crms: u8,
}

impl Capabilities {
    /// CSS: the NVM command set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// CSS: one or more I/O command sets, chosen by CC.CSS = 110b.
    pub const CSS_IO_COMMAND_SETS: u8 = 1 << 6;
    /// CSS: no I/O command set.
    pub const CSS_NONE: u8 = 1 << 7;

    /// From the property.
    pub const fn from_bits(bits: u64) -> Self {
        let [q0, q1, ..] = bits.to_le_bytes();
        Self {
            mqes: u16::from_le_bytes([q0, q1]),
            cqr: field64(bits, 16, 1) != 0,
            ams: low8(field64(bits, 17, 2)),
            to: low8(field64(bits, 24, 8)),
            dstrd: low8(field64(bits, 32, 4)),
            nssrs: field64(bits, 36, 1) != 0,
            css: low8(field64(bits, 37, 8)),
            mpsmin: low8(field64(bits, 48, 4)),
            mpsmax: low8(field64(bits, 52, 4)),
            crms: low8(field64(bits, 59, 2)),
        }
    }

    /// The property. Fields are cut to their width.
    pub fn bits(&self) -> u64 {
        u64::from(self.mqes)
            | u64::from(self.cqr) << 16
            | u64::from(self.ams & 0x3) << 17
            | u64::from(self.to) << 24
            | u64::from(self.dstrd & 0xf) << 32
            | u64::from(self.nssrs) << 36
            | u64::from(self.css) << 37
            | u64::from(self.mpsmin & 0xf) << 48
            | u64::from(self.mpsmax & 0xf) << 52
            | u64::from(self.crms & 0x3) << 59
    }
}

/// Version (VS) of the base specification that a controller follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major (MJR).
    pub major: u16,
    /// Minor (MNR).
    pub minor: u8,
    /// Tertiary (TER).
    pub tertiary: u8,
}

impl Version {
    /// 1.2.
    pub const V1_2: Self = Self { major: 1, minor: 2, tertiary: 0 };
    /// 1.3.
    pub const V1_3: Self = Self { major: 1, minor: 3, tertiary: 0 };
    /// 1.4.
    pub const V1_4: Self = Self { major: 1, minor: 4, tertiary: 0 };
    /// 2.0.
    pub const V2_0: Self = Self { major: 2, minor: 0, tertiary: 0 };

    /// From the property.
    pub const fn from_bits(bits: u32) -> Self {
        let [tertiary, minor, m0, m1] = bits.to_le_bytes();
        Self { major: u16::from_le_bytes([m0, m1]), minor, tertiary }
    }

    /// The property.
    pub const fn bits(self) -> u32 {
        let [m0, m1] = self.major.to_le_bytes();
        u32::from_le_bytes([self.tertiary, self.minor, m0, m1])
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.tertiary != 0 {
            write!(f, ".{}", self.tertiary)?;
        }
        Ok(())
    }
}

/// Shutdown Notification (CC.SHN).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShutdownNotification {
    /// 00b.
    #[default]
    None,
    /// 01b.
    Normal,
    /// 10b.
    Abrupt,
    /// 11b.
    Reserved,
}

/// Controller Configuration (CC) by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Configuration {
    /// Enable (EN), bit 0.
    pub en: bool,
    /// I/O Command Set Selected (CSS), bits 6:4: 000b NVM, 110b all supported, 111b admin only.
    pub css: u8,
    /// Memory Page Size (MPS), bits 10:7: 2 ^ (12 + this) bytes.
    pub mps: u8,
    /// Arbitration Mechanism Selected (AMS), bits 13:11: 000b round robin.
    pub ams: u8,
    /// Shutdown Notification (SHN), bits 15:14.
    pub shn: ShutdownNotification,
    /// I/O Submission Queue Entry Size (IOSQES), bits 19:16: 2 ^ this bytes, 6 for the NVM command
    /// set.
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size (IOCQES), bits 23:20: 2 ^ this bytes, 4 for the NVM command
    /// set.
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable (CRIME), bit 24.
    pub crime: bool,
}

impl Configuration {
    /// From the property.
    pub const fn from_bits(bits: u32) -> Self {
        let [b0, b1, b2, b3] = bits.to_le_bytes();
        Self {
            en: b0 & 1 != 0,
            css: (b0 >> 4) & 0x7,
            mps: (b0 >> 7) | ((b1 & 0x7) << 1),
            ams: (b1 >> 3) & 0x7,
            shn: match b1 >> 6 {
                0 => ShutdownNotification::None,
                1 => ShutdownNotification::Normal,
                2 => ShutdownNotification::Abrupt,
                _ => ShutdownNotification::Reserved,
            },
            iosqes: b2 & 0xf,
            iocqes: b2 >> 4,
            crime: b3 & 1 != 0,
        }
    }

    /// The property. Fields are cut to their width.
    pub fn bits(&self) -> u32 {
        let shn: u32 = match self.shn {
            ShutdownNotification::None => 0,
            ShutdownNotification::Normal => 1,
            ShutdownNotification::Abrupt => 2,
            ShutdownNotification::Reserved => 3,
        };
        u32::from(self.en)
            | u32::from(self.css & 0x7) << 4
            | u32::from(self.mps & 0xf) << 7
            | u32::from(self.ams & 0x7) << 11
            | shn << 14
            | u32::from(self.iosqes & 0xf) << 16
            | u32::from(self.iocqes & 0xf) << 20
            | u32::from(self.crime) << 24
    }
}

/// Shutdown Status (CSTS.SHST).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShutdownStatus {
    /// 00b: no shutdown asked for.
    #[default]
    Normal,
    /// 01b: shutting down.
    Occurring,
    /// 10b: shut down.
    Complete,
    /// 11b.
    Reserved,
}

/// Controller Status (CSTS) by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControllerStatus {
    /// Ready (RDY), bit 0.
    pub rdy: bool,
    /// Controller Fatal Status (CFS), bit 1.
    pub cfs: bool,
    /// Shutdown Status (SHST), bits 3:2.
    pub shst: ShutdownStatus,
    /// NVM Subsystem Reset Occurred (NSSRO), bit 4.
    pub nssro: bool,
    /// Processing Paused (PP), bit 5.
    pub pp: bool,
}

impl ControllerStatus {
    /// From the property.
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            rdy: bits & 1 != 0,
            cfs: bits & 2 != 0,
            shst: match (bits >> 2) & 3 {
                0 => ShutdownStatus::Normal,
                1 => ShutdownStatus::Occurring,
                2 => ShutdownStatus::Complete,
                _ => ShutdownStatus::Reserved,
            },
            nssro: bits & 0x10 != 0,
            pp: bits & 0x20 != 0,
        }
    }

    /// The property.
    pub fn bits(&self) -> u32 {
        let shst: u32 = match self.shst {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
            ShutdownStatus::Reserved => 3,
        };
        u32::from(self.rdy)
            | u32::from(self.cfs) << 1
            | shst << 2
            | u32::from(self.nssro) << 4
            | u32::from(self.pp) << 5
    }
}

/// Admin Queue Attributes (AQA): entries of the two admin queues, 0's based, 12 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdminQueueAttributes {
    /// Admin Submission Queue Size (ASQS), bits 11:0, 0's based.
    pub asqs: u16,
    /// Admin Completion Queue Size (ACQS), bits 27:16, 0's based.
    pub acqs: u16,
}

impl AdminQueueAttributes {
    /// From the register.
    pub const fn from_bits(bits: u32) -> Self {
        let [s0, s1, c0, c1] = bits.to_le_bytes();
        Self { asqs: u16::from_le_bytes([s0, s1 & 0xf]), acqs: u16::from_le_bytes([c0, c1 & 0xf]) }
    }

    /// The register. Fields are cut to their width.
    pub fn bits(&self) -> u32 {
        u32::from(self.asqs & 0xfff) | u32::from(self.acqs & 0xfff) << 16
    }
}

/// Controller Ready Timeouts (CRTO), in units of 500 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadyTimeouts {
    /// Controller Ready With Media Timeout (CRWMT), bits 15:0.
    pub crwmt: u16,
    /// Controller Ready Independent of Media Timeout (CRIMT), bits 31:16.
    pub crimt: u16,
}

impl ReadyTimeouts {
    /// From the property.
    pub const fn from_bits(bits: u32) -> Self {
        let [a, b, c, d] = bits.to_le_bytes();
        Self { crwmt: u16::from_le_bytes([a, b]), crimt: u16::from_le_bytes([c, d]) }
    }

    /// The property.
    pub fn bits(&self) -> u32 {
        u32::from(self.crwmt) | u32::from(self.crimt) << 16
    }
}
