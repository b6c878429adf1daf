//! What a software controller is like: everything that differs between the controllers there are.

use nvme::identify::{DeallocatedRead, OptionalCommands, SglSupport};
use nvme::register::Version;
use uuid::Uuid;

/// What a controller is like. Plain values, named as the specification names them.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Where it is, as messages name it.
    pub address: String,
    /// Version (VS): 1.2 has no names of namespaces (CNS 03h), those before 2.0 no identify data by command set.
    pub version: Version,
    /// Serial Number (SN).
    pub serial: String,
    /// Model Number (MN).
    pub model: String,
    /// Firmware Revision (FR) in slot 1.
    pub firmware: String,
    /// CAP.MQES: entries of an I/O queue, 0's based.
    pub mqes: u16,
    /// CAP.TO, in 500 ms.
    pub to: u8,
    /// CAP.DSTRD: doorbells are 4 << this bytes apart.
    pub dstrd: u8,
    /// CAP.MPSMIN.
    pub mpsmin: u8,
    /// CAP.MPSMAX.
    pub mpsmax: u8,
    /// Maximum Data Transfer Size (MDTS), as a power of two of pages of CAP.MPSMIN; 0: no limit.
    pub mdts: u8,
    /// I/O queues of each kind that it has, whatever is asked for.
    pub queues: u16,
    /// MSI-X vectors; 0: it cannot interrupt.
    pub vectors: u16,
    /// Steps that it takes to become ready, and not ready, and to shut down.
    pub ready_steps: u32,
    /// Abort Command Limit (ACL), 0's based.
    pub acl: u8,
    /// Of a thousand aborts of commands that could be aborted so many succeed.
    pub aborts: u16,
    /// Asynchronous Event Request Limit (AERL), 0's based.
    pub aerl: u8,
    /// SGL Support (SGLS).
    pub sgls: SglSupport,
    /// Optional NVM commands (ONCS) that it has.
    pub oncs: OptionalCommands,
    /// Whether it has Doorbell Buffer Config.
    pub shadow_doorbells: bool,
    /// Whether firmware can be loaded, and how many slots there are; 0: it cannot.
    pub firmware_slots: u8,
    /// Whether firmware can be activated without a reset (FRMW bit 4).
    pub activates_at_once: bool,
    /// Whether there is a volatile write cache (VWC).
    pub volatile_write_cache: bool,
    /// Whether Flush of all namespaces (NSID `FFFFFFFFh`) is known.
    pub flush_all: bool,
    /// Whether the system can reset the function.
    pub function_reset: bool,
    /// Whether it takes entries of submission queues by turns, not at random.
    pub round_robin: bool,
    /// Composite temperature in kelvin, to begin with.
    pub temperature: u16,
    /// The namespaces, to begin with.
    pub namespaces: Vec<NamespaceOptions>,
    /// What goes wrong by itself.
    pub chaos: Chaos,
}

impl Default for Options {
    /// A capable controller of version 2.0 with one namespace of 64 MiB in blocks of 512 bytes.
    fn default() -> Options {
        Options {
            address: "0000:5e:00.0".to_owned(),
            version: Version::V2_0,
            serial: "SOFT0001".to_owned(),
            model: "Software Controller".to_owned(),
            firmware: "1.0".to_owned(),
            mqes: 1023,
            to: 20,
            dstrd: 0,
            mpsmin: 0,
            mpsmax: 4,
            mdts: 5,
            queues: 16,
            vectors: 17,
            ready_steps: 3,
            acl: 3,
            aborts: 1000,
            aerl: 3,
            sgls: SglSupport::empty(),
            oncs: OptionalCommands::COMPARE
                | OptionalCommands::DATASET_MANAGEMENT
                | OptionalCommands::WRITE_ZEROES
                | OptionalCommands::TIMESTAMP
                | OptionalCommands::VERIFY
                | OptionalCommands::COPY,
            shadow_doorbells: false,
            firmware_slots: 3,
            activates_at_once: true,
            volatile_write_cache: true,
            flush_all: true,
            function_reset: true,
            round_robin: false,
            temperature: 310,
            namespaces: vec![NamespaceOptions::new(1, 512, 128 << 10)],
            chaos: Chaos::default(),
        }
    }
}

impl Options {
    /// CAP.MPSMIN's page, the unit of MDTS and the like, in bytes.
    pub(super) fn least_page(&self) -> u64 {
        4096 << (self.mpsmin & 0xf)
    }

    /// Bytes that a command may transfer.
    pub(super) fn largest_transfer(&self) -> u64 {
        match self.mdts {
            0 => u64::MAX,
            mdts => self.least_page().checked_shl(u32::from(mdts)).unwrap_or(u64::MAX),
        }
    }
}

/// What a namespace is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Namespace Identifier.
    pub nsid: u32,
    /// Bytes of data in a block: 512, 4,096 or another power of two of at least 512.
    pub block_size: u32,
    /// Namespace Size (NSZE) in blocks.
    pub blocks: u64,
    /// Metadata Size (MS) of the format; I/O of a namespace with any is refused.
    pub metadata: u16,
    /// Whether metadata follows the data of each block (FLBAS bit 4).
    pub extended: bool,
    /// Namespace Optimal I/O Boundary (NOIOB) in blocks; 0: none.
    pub noiob: u16,
    /// NPWG, NPWA, NPDG, NPDA and NOWS, 0's based, if reported.
    pub preferred: Option<Preferred>,
    /// NGUID; zero: none.
    pub nguid: [u8; 16],
    /// EUI64; zero: none.
    pub eui64: [u8; 8],
    /// UUID; nil: none.
    pub uuid: Uuid,
    /// Whether it is write protected.
    pub write_protected: bool,
    /// What deallocated blocks read as; not reported: what they held.
    pub deallocated: DeallocatedRead,
    /// Whether DEAC of Write Zeroes deallocates (DLFEAT bit 3).
    pub zeroes_deallocate: bool,
    /// Maximum Single Source Range Length (MSSRL) of Copy in blocks.
    pub mssrl: u16,
    /// Maximum Copy Length (MCL) in blocks.
    pub mcl: u32,
    /// Maximum Source Range Count (MSRC) of Copy, 0's based.
    pub msrc: u8,
}

/// What a namespace prefers, in blocks and 0's based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preferred {
    /// Namespace Preferred Write Granularity (NPWG).
    pub npwg: u16,
    /// Namespace Preferred Write Alignment (NPWA).
    pub npwa: u16,
    /// Namespace Preferred Deallocate Granularity (NPDG).
    pub npdg: u16,
    /// Namespace Preferred Deallocate Alignment (NPDA).
    pub npda: u16,
    /// Namespace Optimal Write Size (NOWS).
    pub nows: u16,
}

impl NamespaceOptions {
    /// `blocks` blocks without metadata; deallocated ones read as zeroes.
    pub fn new(nsid: u32, block_size: u32, blocks: u64) -> NamespaceOptions {
        let [a, b, c, d] = nsid.to_be_bytes();
        NamespaceOptions {
            nsid,
            block_size,
            blocks,
            metadata: 0,
            extended: false,
            noiob: 0,
            preferred: None,
            nguid: [0x1b, 0xad, 0x50, 0xf7, 0, 0, 0, 1, 0x00, 0x25, 0x38, 0, a, b, c, d],
            eui64: [0x00, 0x25, 0x38, 0, a, b, c, d],
            uuid: Uuid::from_u128(0x50f7_0000_0000_4000_8000_0000_0000_0000 + u128::from(nsid)),
            write_protected: false,
            deallocated: DeallocatedRead::Zeroes,
            zeroes_deallocate: true,
            mssrl: 256,
            mcl: 1024,
            msrc: 15,
        }
    }
}

/// How often something goes wrong by itself, each in a million of what it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chaos {
    /// Commands that end with a status that says to try again.
    pub transient: u32,
    /// Commands that end with a status that says not to.
    pub permanent: u32,
    /// Commands that are never completed, unless aborted.
    pub hang: u32,
    /// Commands that are completed late.
    pub late: u32,
    /// Completions that come twice.
    pub duplicate: u32,
    /// Completions after which there is one of no command.
    pub ghost: u32,
    /// Completions with the identifier of another submission queue, instead of the command's.
    pub wrong_queue: u32,
    /// Interrupts that are lost.
    pub lost_interrupt: u32,
    /// Commands upon which the controller fails for good: CSTS.CFS.
    pub fatal: u32,
    /// Attempts at becoming ready that fail.
    pub not_ready: u32,
    /// Aborts that are never completed.
    pub lost_abort: u32,
}
