//! Identify Namespace: the NVM command set's (CNS 00h), and the one that every command set shares
//! (CNS 08h).

use crate::codes::{codes, layout, wire};
use zerocopy::little_endian::{U16, U32, U64, U128};

bitflags::bitflags! {
    /// Namespace Features (NSFEAT) of CNS 00h.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct NamespaceFeatures: u8 {
        /// Thin provisioning (THINP): NUSE and NCAP mean something.
        const THIN = 1 << 0;
        /// NAWUN, NAWUPF and NACWU are defined for this namespace (NSABP).
        const ATOMIC = 1 << 1;
        /// Deallocated or Unwritten Logical Block error supported (DAE).
        const DEALLOCATED_ERROR = 1 << 2;
        /// UIDREUSE: NGUID and EUI64 are never reused.
        const UNIQUE_NEVER_REUSED = 1 << 3;
        /// OPTPERF: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
        const OPTIMAL_PERFORMANCE = 1 << 4;
    }
}

bitflags::bitflags! {
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct NamespaceSharing: u8 {
        /// More than one controller may have the namespace attached.
        const SHARED = 1 << 0;
        /// The namespace is dispersed over several NVM subsystems.
        const DISPERSED = 1 << 1;
    }
}

codes! {
    /// What a deallocated block reads as: bits 2:0 of DLFEAT.
    pub enum DeallocatedRead {
        NotReported = 0x0, "not reported";
        Zeroes = 0x1, "zeroes";
        Ones = 0x2, "ones";
    }
}

wire! {
    /// An LBA format.
    pub struct LbaFormat {
        /// Metadata Size (MS) in bytes.
        pub ms: U16,
        /// LBA Data Size (LBADS): 2 ^ this bytes, at least 9; 0 if the format is not there.
        pub lbads: u8,
        /// Relative Performance (RP), bits 1:0: 0 best, 3 degraded.
        pub rp: u8,
    }
}
layout!(LbaFormat, 4, ms @ 0, lbads @ 2, rp @ 3);

impl LbaFormat {
    /// Without metadata, best performance; `None` if `block_size` is not a power of two of at least
    /// 512.
    pub fn plain(block_size: u32) -> Option<Self> {
        if !block_size.is_power_of_two() || block_size < 512 {
            return None;
        }
        Some(Self {
            ms: U16::new(0),
            lbads: u8::try_from(block_size.trailing_zeros()).ok()?,
            rp: 0,
        })
    }

    /// Bytes of data in a block; `None` if the format is not there or its size does not fit.
    pub fn block_size(&self) -> Option<u32> {
        if self.lbads < 9 {
            return None;
        }
        1_u32.checked_shl(u32::from(self.lbads))
    }
}

wire! {
    /// Identify Namespace of the NVM command set. NVM Command Set Specification 1.0c, section
    /// 4.1.5.1.
    pub struct IdentifyNamespace {
        /// Namespace Size (NSZE), logical blocks.
        pub nsze: U64,
        /// Namespace Capacity (NCAP), logical blocks.
        pub ncap: U64,
        /// Namespace Utilization (NUSE), logical blocks.
        pub nuse: U64,
        /// Namespace Features (NSFEAT); see [`NamespaceFeatures`].
        pub nsfeat: u8,
        /// Number of LBA Formats (NLBAF), 0's based.
        pub nlbaf: u8,
        /// Formatted LBA Size (FLBAS): format index in bits 3:0 and 6:5, bit 4 metadata behind the
        /// data.
        pub flbas: u8,
        /// Metadata Capabilities (MC).
        pub mc: u8,
        /// End-to-end Data Protection Capabilities (DPC).
        pub dpc: u8,
        /// End-to-end Data Protection Type Settings (DPS).
        pub dps: u8,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC); see
        /// [`NamespaceSharing`].
        pub nmic: u8,
        /// Reservation Capabilities (RESCAP).
        pub rescap: u8,
        /// Format Progress Indicator (FPI).
        pub fpi: u8,
        /// Deallocate Logical Block Features (DLFEAT): bits 2:0 [`DeallocatedRead`], bit 3 Write
        /// Zeroes may deallocate, bit 4 guard of deallocated blocks is their CRC.
        pub dlfeat: u8,
        /// Namespace Atomic Write Unit Normal (NAWUN), logical blocks, 0's based.
        pub nawun: U16,
        /// Namespace Atomic Write Unit Power Fail (NAWUPF), logical blocks, 0's based.
        pub nawupf: U16,
        /// Namespace Atomic Compare & Write Unit (NACWU), logical blocks, 0's based.
        pub nacwu: U16,
        /// Namespace Atomic Boundary Size Normal (NABSN), logical blocks, 0's based.
        pub nabsn: U16,
        /// Namespace Atomic Boundary Offset (NABO), logical blocks.
        pub nabo: U16,
        /// Namespace Atomic Boundary Size Power Fail (NABSPF), logical blocks, 0's based.
        pub nabspf: U16,
        /// Namespace Optimal I/O Boundary (NOIOB), logical blocks; 0 for none.
        pub noiob: U16,
        /// NVM Capacity (NVMCAP), bytes.
        pub nvmcap: U128,
        /// Namespace Preferred Write Granularity (NPWG), logical blocks, 0's based.
        pub npwg: U16,
        /// Namespace Preferred Write Alignment (NPWA), logical blocks, 0's based.
        pub npwa: U16,
        /// Namespace Preferred Deallocate Granularity (NPDG), logical blocks, 0's based.
        pub npdg: U16,
        /// Namespace Preferred Deallocate Alignment (NPDA), logical blocks, 0's based.
        pub npda: U16,
        /// Namespace Optimal Write Size (NOWS), logical blocks, 0's based.
        pub nows: U16,
        /// Maximum Single Source Range Length (MSSRL) of Copy, logical blocks.
        pub mssrl: U16,
        /// Maximum Copy Length (MCL), logical blocks.
        pub mcl: U32,
        /// Maximum Source Range Count (MSRC) of Copy, 0's based.
        pub msrc: u8,
        /// Reserved.
        pub reserved81: [u8; 11],
        /// ANA Group Identifier (ANAGRPID).
        pub anagrpid: U32,
        /// Reserved.
        pub reserved96: [u8; 3],
        /// Namespace Attributes (NSATTR): bit 0 write protected.
        pub nsattr: u8,
        /// NVM Set Identifier (NVMSETID).
        pub nvmsetid: U16,
        /// Endurance Group Identifier (ENDGID).
        pub endgid: U16,
        /// Namespace Globally Unique Identifier (NGUID), first byte first.
        pub nguid: [u8; 16],
        /// IEEE Extended Unique Identifier (EUI64), first byte first.
        pub eui64: [u8; 8],
        /// LBA Format 0..63 (LBAF).
        pub lbaf: [LbaFormat; 64],
        /// Vendor Specific.
        pub vendor: [u8; 3712],
    }
}
layout!(
    IdentifyNamespace, 4096,
    nsze @ 0, ncap @ 8, nuse @ 16, nsfeat @ 24, nlbaf @ 25, flbas @ 26, mc @ 27, dpc @ 28, dps @ 29,
    nmic @ 30, rescap @ 31, fpi @ 32, dlfeat @ 33, nawun @ 34, nawupf @ 36, nacwu @ 38, nabsn @ 40,
    nabo @ 42, nabspf @ 44, noiob @ 46, nvmcap @ 48, npwg @ 64, npwa @ 66, npdg @ 68, npda @ 70,
    nows @ 72, mssrl @ 74, mcl @ 76, msrc @ 80, anagrpid @ 92, nsattr @ 99, nvmsetid @ 100,
    endgid @ 102, nguid @ 104, eui64 @ 120, lbaf @ 128, vendor @ 384,
);

impl IdentifyNamespace {
    /// NSATTR bit 0: the namespace is write protected at present.
    pub const WRITE_PROTECTED: u8 = 1 << 0;
    /// DLFEAT bit 3: DEAC of Write Zeroes is supported.
    pub const WRITE_ZEROES_DEALLOCATES: u8 = 1 << 3;

    /// The LBA format in use.
    pub fn format(&self) -> Option<&LbaFormat> {
        let index = (self.flbas & 0xf) | ((self.flbas & 0x60) >> 1);
        self.lbaf.get(usize::from(index))
    }
}

wire! {
    /// I/O Command Set Independent Identify Namespace. NVMe Base 2.0c, section 5.17.2 "CNS 08h".
    pub struct IndependentNamespace {
        /// Common Namespace Features (NSFEAT): bit 3 UIDREUSE, bit 4 RMEDIA.
        pub nsfeat: u8,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC); see
        /// [`NamespaceSharing`].
        pub nmic: u8,
        /// Reservation Capabilities (RESCAP).
        pub rescap: u8,
        /// Format Progress Indicator (FPI).
        pub fpi: u8,
        /// ANA Group Identifier (ANAGRPID).
        pub anagrpid: U32,
        /// Namespace Attributes (NSATTR): bit 0 write protected.
        pub nsattr: u8,
        /// Reserved.
        pub reserved9: u8,
        /// NVM Set Identifier (NVMSETID).
        pub nvmsetid: U16,
        /// Endurance Group Identifier (ENDGID).
        pub endgid: U16,
        /// Namespace Status (NSTAT): bit 0 ready (NRDY).
        pub nstat: u8,
        /// Reserved.
        pub reserved15: [u8; 4081],
    }
}
layout!(
    IndependentNamespace, 4096,
    nsfeat @ 0, nmic @ 1, rescap @ 2, fpi @ 3, anagrpid @ 4, nsattr @ 8, nvmsetid @ 10, endgid @ 12,
    nstat @ 14,
);

impl IndependentNamespace {
    /// NSFEAT bit 3: NGUID and EUI64 are never reused.
    pub const UNIQUE_NEVER_REUSED: u8 = 1 << 3;
    /// NSTAT bit 0: the namespace is ready.
    pub const READY: u8 = 1 << 0;
}
