//! Identify Controller (CNS 01h). NVMe Base 2.0c, section 5.17.2.1.

use crate::codes::{codes, layout, wire};
use crate::nqn::NQN_FIELD;
use zerocopy::little_endian::{U16, U32, U128};

codes! {
    /// Controller Type (CNTRLTYPE).
    pub enum ControllerType {
        Io = 0x01, "I/O";
        Discovery = 0x02, "Discovery";
        Administrative = 0x03, "Administrative";
    }
}

bitflags::bitflags! {
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct MultiPathCapabilities: u8 {
        /// The subsystem may have more than one port.
        const PORTS = 1 << 0;
        /// The subsystem may have more than one controller.
        const CONTROLLERS = 1 << 1;
        /// The controller belongs to an SR-IOV virtual function.
        const VIRTUAL_FUNCTION = 1 << 2;
        /// Asymmetric namespace access reporting.
        const ANA = 1 << 3;
    }
}

bitflags::bitflags! {
    /// Optional Admin Command Support (OACS).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct OptionalAdminCommands: u16 {
        /// Security Send and Receive.
        const SECURITY = 1 << 0;
        /// Format NVM.
        const FORMAT = 1 << 1;
        /// Firmware Commit and Image Download.
        const FIRMWARE = 1 << 2;
        /// Namespace Management and Attachment.
        const NAMESPACE_MANAGEMENT = 1 << 3;
        /// Device Self-test.
        const SELF_TEST = 1 << 4;
        /// Directives.
        const DIRECTIVES = 1 << 5;
        /// NVMe-MI Send and Receive.
        const MANAGEMENT_INTERFACE = 1 << 6;
        /// Virtualization Management.
        const VIRTUALIZATION = 1 << 7;
        /// Doorbell Buffer Config.
        const DOORBELL_BUFFER = 1 << 8;
        /// Get LBA Status.
        const LBA_STATUS = 1 << 9;
        /// Command and Feature Lockdown.
        const LOCKDOWN = 1 << 10;
    }
}

bitflags::bitflags! {
    /// Optional NVM Command Support (ONCS).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct OptionalCommands: u16 {
        /// Compare.
        const COMPARE = 1 << 0;
        /// Write Uncorrectable.
        const WRITE_UNCORRECTABLE = 1 << 1;
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 3;
        /// Save of Set Features and Select of Get Features.
        const FEATURE_SAVE = 1 << 4;
        /// Reservations.
        const RESERVATIONS = 1 << 5;
        /// Timestamp.
        const TIMESTAMP = 1 << 6;
        /// Verify.
        const VERIFY = 1 << 7;
        /// Copy.
        const COPY = 1 << 8;
    }
}

bitflags::bitflags! {
    /// SGL Support (SGLS).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct SglSupport: u32 {
        /// Bits 1:0 = 01b: supported, no alignment or granularity asked for.
        const SUPPORTED = 1 << 0;
        /// Bits 1:0 = 10b: supported, data blocks in dwords.
        const DWORD = 1 << 1;
        /// Keyed SGL Data Block descriptors (RDMA).
        const KEYED = 1 << 2;
        /// SGL Bit Bucket descriptors.
        const BIT_BUCKET = 1 << 16;
        /// A byte-aligned contiguous metadata buffer.
        const METADATA_ALIGNED = 1 << 17;
        /// An SGL longer than the data.
        const LONGER = 1 << 18;
        /// Metadata pointer to an SGL.
        const METADATA_SGL = 1 << 19;
        /// The address may be an offset: data in the capsule.
        const OFFSET = 1 << 20;
        /// Transport SGL Data Block descriptors (TCP).
        const TRANSPORT = 1 << 21;
    }
}

bitflags::bitflags! {
    /// Asymmetric Namespace Access Capabilities (ANACAP).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct AnaCapabilities: u8 {
        /// Optimized state reported.
        const OPTIMIZED = 1 << 0;
        /// Non-optimized state reported.
        const NON_OPTIMIZED = 1 << 1;
        /// Inaccessible state reported.
        const INACCESSIBLE = 1 << 2;
        /// Persistent loss state reported.
        const PERSISTENT_LOSS = 1 << 3;
        /// Change state reported.
        const CHANGE = 1 << 4;
        /// ANAGRPID of a namespace never changes while it is attached.
        const GROUP_FIXED = 1 << 6;
        /// A non-zero ANAGRPID may be given at creation.
        const GROUP_CHOSEN = 1 << 7;
    }
}

bitflags::bitflags! {
    /// Fabrics Controller Attributes (FCATT).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct FabricsAttributes: u8 {
        /// The static controller model is used; clear: the dynamic one.
        const STATIC_CONTROLLERS = 1 << 0;
    }
}

wire! {
    /// Power State Descriptor.
    pub struct PowerState {
        /// Maximum Power (MP), in units of 0.01 W (0.0001 W if MXPS).
        pub mp: U16,
        /// Reserved.
        pub reserved2: u8,
        /// Bit 0 Max Power Scale (MXPS), bit 1 Non-Operational State (NOPS).
        pub flags: u8,
        /// Entry Latency (ENLAT), µs.
        pub enlat: U32,
        /// Exit Latency (EXLAT), µs.
        pub exlat: U32,
        /// Relative Read Throughput (RRT).
        pub rrt: u8,
        /// Relative Read Latency (RRL).
        pub rrl: u8,
        /// Relative Write Throughput (RWT).
        pub rwt: u8,
        /// Relative Write Latency (RWL).
        pub rwl: u8,
        /// Idle Power (IDLP).
        pub idlp: U16,
        /// Idle Power Scale (IPS), bits 7:6.
        pub ips: u8,
        /// Reserved.
        pub reserved19: u8,
        /// Active Power (ACTP).
        pub actp: U16,
        /// Active Power Workload (APW), bits 2:0; Active Power Scale (APS), bits 7:6.
        pub apws: u8,
        /// Reserved.
        pub reserved23: [u8; 9],
    }
}
layout!(
    PowerState, 32,
    mp @ 0, flags @ 3, enlat @ 4, exlat @ 8, rrt @ 12, rwl @ 15, idlp @ 16, ips @ 18, actp @ 20,
    apws @ 22,
);

wire! {
    /// Identify Controller.
    pub struct IdentifyController {
        /// PCI Vendor ID (VID).
        pub vid: U16,
        /// PCI Subsystem Vendor ID (SSVID).
        pub ssvid: U16,
        /// Serial Number (SN), ASCII padded with spaces; see [`ascii`].
        pub sn: [u8; 20],
        /// Model Number (MN), ASCII padded with spaces.
        pub mn: [u8; 40],
        /// Firmware Revision (FR), ASCII padded with spaces.
        pub fr: [u8; 8],
        /// Recommended Arbitration Burst (RAB): 2 ^ this commands.
        pub rab: u8,
        /// IEEE OUI Identifier (IEEE), least significant byte first.
        pub ieee: [u8; 3],
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC); see
        /// [`MultiPathCapabilities`].
        pub cmic: u8,
        /// Maximum Data Transfer Size (MDTS): 2 ^ this units of CAP.MPSMIN; 0 for no limit.
        pub mdts: u8,
        /// Controller ID (CNTLID).
        pub cntlid: U16,
        /// Version (VER), as the property VS.
        pub ver: U32,
        /// RTD3 Resume Latency (RTD3R), µs.
        pub rtd3r: U32,
        /// RTD3 Entry Latency (RTD3E), µs: the time that a shutdown may take.
        pub rtd3e: U32,
        /// Optional Asynchronous Events Supported (OAES); see
        /// [`crate::feature::AsynchronousEvents`].
        pub oaes: U32,
        /// Controller Attributes (CTRATT); see `CTRATT_HOST_ID` and its neighbours.
        pub ctratt: U32,
        /// Read Recovery Levels Supported (RRLS).
        pub rrls: U16,
        /// Reserved.
        pub reserved102: [u8; 9],
        /// Controller Type (CNTRLTYPE); see [`ControllerType`].
        pub cntrltype: u8,
        /// FRU Globally Unique Identifier (FGUID).
        pub fguid: [u8; 16],
        /// Command Retry Delay Time 1 (CRDT1), 100 ms.
        pub crdt1: U16,
        /// Command Retry Delay Time 2 (CRDT2), 100 ms.
        pub crdt2: U16,
        /// Command Retry Delay Time 3 (CRDT3), 100 ms.
        pub crdt3: U16,
        /// Reserved.
        pub reserved134: [u8; 119],
        /// NVM Subsystem Report (NVMSR).
        pub nvmsr: u8,
        /// VPD Write Cycle Information (VWCI).
        pub vwci: u8,
        /// Management Endpoint Capabilities (MEC).
        pub mec: u8,
        /// Optional Admin Command Support (OACS); see [`OptionalAdminCommands`].
        pub oacs: U16,
        /// Abort Command Limit (ACL), 0's based.
        pub acl: u8,
        /// Asynchronous Event Request Limit (AERL), 0's based.
        pub aerl: u8,
        /// Firmware Updates (FRMW): bit 0 slot 1 read-only, bits 3:1 number of slots, bit 4
        /// activation without reset.
        pub frmw: u8,
        /// Log Page Attributes (LPA); see `LPA_EFFECTS` and its neighbours.
        pub lpa: u8,
        /// Error Log Page Entries (ELPE), 0's based.
        pub elpe: u8,
        /// Number of Power States Support (NPSS), 0's based.
        pub npss: u8,
        /// Admin Vendor Specific Command Configuration (AVSCC).
        pub avscc: u8,
        /// Autonomous Power State Transition Attributes (APSTA).
        pub apsta: u8,
        /// Warning Composite Temperature Threshold (WCTEMP), kelvin.
        pub wctemp: U16,
        /// Critical Composite Temperature Threshold (CCTEMP), kelvin.
        pub cctemp: U16,
        /// Maximum Time for Firmware Activation (MTFA), 100 ms.
        pub mtfa: U16,
        /// Host Memory Buffer Preferred Size (HMPRE), 4 KiB.
        pub hmpre: U32,
        /// Host Memory Buffer Minimum Size (HMMIN), 4 KiB.
        pub hmmin: U32,
        /// Total NVM Capacity (TNVMCAP), bytes.
        pub tnvmcap: U128,
        /// Unallocated NVM Capacity (UNVMCAP), bytes.
        pub unvmcap: U128,
        /// Replay Protected Memory Block Support (RPMBS).
        pub rpmbs: U32,
        /// Extended Device Self-test Time (EDSTT), minutes.
        pub edstt: U16,
        /// Device Self-test Options (DSTO).
        pub dsto: u8,
        /// Firmware Update Granularity (FWUG), 4 KiB.
        pub fwug: u8,
        /// Keep Alive Support (KAS): granularity of KATO in 100 ms; 0: no keep alive.
        pub kas: U16,
        /// Host Controlled Thermal Management Attributes (HCTMA).
        pub hctma: U16,
        /// Minimum Thermal Management Temperature (MNTMT), kelvin.
        pub mntmt: U16,
        /// Maximum Thermal Management Temperature (MXTMT), kelvin.
        pub mxtmt: U16,
        /// Sanitize Capabilities (SANICAP).
        pub sanicap: U32,
        /// Host Memory Buffer Minimum Descriptor Entry Size (HMMINDS), 4 KiB.
        pub hmminds: U32,
        /// Host Memory Maximum Descriptors Entries (HMMAXD).
        pub hmmaxd: U16,
        /// NVM Set Identifier Maximum (NSETIDMAX).
        pub nsetidmax: U16,
        /// Endurance Group Identifier Maximum (ENDGIDMAX).
        pub endgidmax: U16,
        /// ANA Transition Time (ANATT), seconds.
        pub anatt: u8,
        /// Asymmetric Namespace Access Capabilities (ANACAP); see [`AnaCapabilities`].
        pub anacap: u8,
        /// ANA Group Identifier Maximum (ANAGRPMAX).
        pub anagrpmax: U32,
        /// Number of ANA Group Identifiers (NANAGRPID).
        pub nanagrpid: U32,
        /// Persistent Event Log Size (PELS), 64 KiB.
        pub pels: U32,
        /// Domain Identifier.
        pub domainid: U16,
        /// Reserved.
        pub reserved358: [u8; 10],
        /// Max Endurance Group Capacity (MEGCAP), bytes.
        pub megcap: U128,
        /// Reserved.
        pub reserved384: [u8; 128],
        /// Submission Queue Entry Size (SQES): required in bits 3:0, maximum in bits 7:4, 2 ^ this
        /// bytes.
        pub sqes: u8,
        /// Completion Queue Entry Size (CQES): as SQES.
        pub cqes: u8,
        /// Maximum Outstanding Commands (MAXCMD) on one queue; never 0 over fabrics.
        pub maxcmd: U16,
        /// Number of Namespaces (NN): the largest NSID.
        pub nn: U32,
        /// Optional NVM Command Support (ONCS); see [`OptionalCommands`].
        pub oncs: U16,
        /// Fused Operation Support (FUSES): bit 0 Compare and Write.
        pub fuses: U16,
        /// Format NVM Attributes (FNA).
        pub fna: u8,
        /// Volatile Write Cache (VWC); see `VWC_PRESENT` and its neighbours.
        pub vwc: u8,
        /// Atomic Write Unit Normal (AWUN), logical blocks, 0's based.
        pub awun: U16,
        /// Atomic Write Unit Power Fail (AWUPF), logical blocks, 0's based.
        pub awupf: U16,
        /// I/O Command Set Vendor Specific Command Configuration (ICSVSCC).
        pub icsvscc: u8,
        /// Namespace Write Protection Capabilities (NWPC).
        pub nwpc: u8,
        /// Atomic Compare & Write Unit (ACWU), logical blocks, 0's based.
        pub acwu: U16,
        /// Optional Copy Formats Supported (OCFS): bit n for format n.
        pub ocfs: U16,
        /// SGL Support (SGLS); see [`SglSupport`].
        pub sgls: U32,
        /// Maximum Number of Allowed Namespaces (MNAN); 0: NN.
        pub mnan: U32,
        /// Maximum Domain Namespace Attachments (MAXDNA).
        pub maxdna: U128,
        /// Maximum I/O Controller Namespace Attachments (MAXCNA).
        pub maxcna: U32,
        /// Reserved.
        pub reserved564: [u8; 204],
        /// NVM Subsystem NVMe Qualified Name (SUBNQN), UTF-8, NUL terminated.
        pub subnqn: [u8; NQN_FIELD],
        /// Reserved.
        pub reserved1024: [u8; 768],
        /// I/O Queue Command Capsule Supported Size (IOCCSZ), 16 bytes; at least 4.
        pub ioccsz: U32,
        /// I/O Queue Response Capsule Supported Size (IORCSZ), 16 bytes; at least 1.
        pub iorcsz: U32,
        /// In Capsule Data Offset (ICDOFF), 16 bytes, from the end of the SQE.
        pub icdoff: U16,
        /// Fabrics Controller Attributes (FCATT); see [`FabricsAttributes`].
        pub fcatt: u8,
        /// Maximum SGL Data Block Descriptors (MSDBD) in a capsule; 0: no limit.
        pub msdbd: u8,
        /// Optional Fabric Commands Support (OFCS): bit 0 Disconnect.
        pub ofcs: U16,
        /// Reserved.
        pub reserved1806: [u8; 242],
        /// Power State 0..31 Descriptor (PSD).
        pub psd: [PowerState; 32],
        /// Vendor Specific.
        pub vendor: [u8; 1024],
    }
}
layout!(
    IdentifyController, 4096,
    vid @ 0, ssvid @ 2, sn @ 4, mn @ 24, fr @ 64, rab @ 72, ieee @ 73, cmic @ 76, mdts @ 77,
    cntlid @ 78, ver @ 80, rtd3r @ 84, rtd3e @ 88, oaes @ 92, ctratt @ 96, rrls @ 100,
    cntrltype @ 111, fguid @ 112, crdt1 @ 128, crdt3 @ 132, nvmsr @ 253, vwci @ 254, mec @ 255,
    oacs @ 256, acl @ 258, aerl @ 259, frmw @ 260, lpa @ 261, elpe @ 262, npss @ 263, avscc @ 264,
    apsta @ 265, wctemp @ 266, cctemp @ 268, mtfa @ 270, hmpre @ 272, hmmin @ 276, tnvmcap @ 280,
    unvmcap @ 296, rpmbs @ 312, edstt @ 316, dsto @ 318, fwug @ 319, kas @ 320, hctma @ 322,
    mntmt @ 324, mxtmt @ 326, sanicap @ 328, hmminds @ 332, hmmaxd @ 336, nsetidmax @ 338,
    endgidmax @ 340, anatt @ 342, anacap @ 343, anagrpmax @ 344, nanagrpid @ 348, pels @ 352,
    domainid @ 356, megcap @ 368, sqes @ 512, cqes @ 513, maxcmd @ 514, nn @ 516, oncs @ 520,
    fuses @ 522, fna @ 524, vwc @ 525, awun @ 526, awupf @ 528, icsvscc @ 530, nwpc @ 531,
    acwu @ 532, ocfs @ 534, sgls @ 536, mnan @ 540, maxdna @ 544, maxcna @ 560, subnqn @ 768,
    ioccsz @ 1792, iorcsz @ 1796, icdoff @ 1800, fcatt @ 1802, msdbd @ 1803, ofcs @ 1804,
    psd @ 2048, vendor @ 3072,
);

impl IdentifyController {
    /// CTRATT bit 0: 128-bit host identifiers.
    pub const CTRATT_HOST_ID: u32 = 1 << 0;
    /// CTRATT bit 6: Traffic Based Keep Alive Support (TBKAS).
    pub const CTRATT_TBKAS: u32 = 1 << 6;
    /// CTRATT bit 9: UUID List.
    pub const CTRATT_UUID_LIST: u32 = 1 << 9;
    /// CTRATT bit 15: Extended LBA Formats Supported (ELBAS).
    pub const CTRATT_ELBAS: u32 = 1 << 15;
    /// LPA bit 0: SMART log of each namespace.
    pub const LPA_NAMESPACE_SMART: u8 = 1 << 0;
    /// LPA bit 1: Commands Supported and Effects log.
    pub const LPA_EFFECTS: u8 = 1 << 1;
    /// LPA bit 2: extended data for Get Log Page: offset, 32-bit length.
    pub const LPA_EXTENDED: u8 = 1 << 2;
    /// LPA bit 3: telemetry logs.
    pub const LPA_TELEMETRY: u8 = 1 << 3;
    /// LPA bit 4: persistent event log.
    pub const LPA_PERSISTENT_EVENTS: u8 = 1 << 4;
    /// LPA bit 5: Supported Log Pages and its relations (00h, 12h, 13h).
    pub const LPA_SUPPORTED_PAGES: u8 = 1 << 5;
    /// VWC bit 0: there is a volatile write cache.
    pub const VWC_PRESENT: u8 = 1 << 0;
    /// VWC bits 2:1 = 10b: Flush of every namespace (`FFFFFFFFh`) fails.
    pub const VWC_FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
    /// VWC bits 2:1 = 11b: Flush of every namespace (`FFFFFFFFh`) flushes all namespaces.
    pub const VWC_FLUSH_ALL: u8 = 0b11 << 1;
    /// FUSES bit 0: Compare and Write.
    pub const FUSES_COMPARE_WRITE: u16 = 1 << 0;
    /// OFCS bit 0: Disconnect.
    pub const OFCS_DISCONNECT: u16 = 1 << 0;
    /// SQES of the NVM command set: 64 bytes, required and largest.
    pub const SQES_NVM: u8 = 0x66;
    /// CQES of the NVM command set: 16 bytes, required and largest.
    pub const CQES_NVM: u8 = 0x44;
}

/// A fixed field of ASCII, padded with spaces: SN, MN, FR. Text too long is cut; characters that
/// are not printable ASCII become `?`.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.chars()) {
        *to = match from {
            ' '..='~' => u8::try_from(from).unwrap_or(b'?'),
            _ => b'?',
        };
    }
    field
}
