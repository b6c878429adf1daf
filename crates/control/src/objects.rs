//! The objects that a client or a configuration file names, in the form in which they are stored: what was asked
//! for, nothing that the running node found out. The store keeps them as JSON, so a field that is added gets a
//! default.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// All objects there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// Devices by name.
    pub devices: BTreeMap<String, Device>,
    /// Transports by type.
    pub transports: BTreeMap<Trtype, Transport>,
    /// Subsystems by name.
    pub subsystems: BTreeMap<Nqn, Subsystem>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The UUID by which clients know it, and that of a namespace over it unless that has its own. None for a
    /// device of a configuration file: its namespaces then have UUIDs derived from where they stand.
    pub uuid: Option<Uuid>,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a block device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Stores nothing (`bdev_null_create`).
    Null {
        /// Bytes in it.
        size: u64,
        /// Bytes in a logical block.
        block_size: u32,
    },
    /// In memory (`bdev_malloc_create`).
    Ram {
        /// Bytes in it.
        size: u64,
        /// Bytes in a logical block.
        block_size: u32,
        /// Hosts may only read.
        #[serde(default)]
        read_only: bool,
    },
    /// A file or block device.
    File {
        /// Where it is.
        path: PathBuf,
        /// Bytes in a logical block; None: the smallest that the medium allows.
        block_size: Option<u32>,
        /// If there is no such file: make it this many bytes long, sparse.
        #[serde(default)]
        create_size: Option<u64>,
        /// Whether the page cache is bypassed.
        #[serde(default)]
        direct: Direct,
        /// Hosts may only read.
        #[serde(default)]
        read_only: bool,
        /// Which method made it: clients see it again as the same product.
        made_as: FileMethod,
    },
    /// Another device, slow on purpose (`bdev_delay_create`).
    Delay {
        /// The name of the device below.
        base: String,
        /// How slow.
        latencies: Latencies,
    },
    /// Another device, which fails when it is told to (`bdev_error_create`). What it is told is not kept.
    Error {
        /// The name of the device below.
        base: String,
    },
}

/// How long completions are held, in microseconds, under SPDK's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Of 99 reads in 100.
    pub avg_read: u64,
    /// Of the others.
    pub p99_read: u64,
    /// Of 99 writes in 100.
    pub avg_write: u64,
    /// Of the others.
    pub p99_write: u64,
}

/// Whether the page cache is bypassed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direct {
    /// Where the file system can.
    #[default]
    Auto,
    /// Always; what cannot is refused.
    Always,
    /// Never.
    Never,
}

/// The two methods of SPDK that make what is one device here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileMethod {
    /// `bdev_aio_create`
    Aio,
    /// `bdev_uring_create`
    Uring,
}

/// A transport: it has to be created before there are listeners, as in SPDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// The only one so far: TCP.
    pub trtype: Trtype,
    /// Commands in flight on one queue; None, as in what follows: what the process settings say, which no client
    /// exceeds.
    #[serde(default)]
    pub max_queue_depth: Option<u16>,
    /// I/O queues of one controller.
    #[serde(default)]
    pub max_io_qpairs_per_ctrlr: Option<u16>,
    /// Bytes of data in a write command's capsule.
    #[serde(default)]
    pub in_capsule_data_size: Option<u32>,
    /// Bytes of data of one command.
    #[serde(default)]
    pub max_io_size: Option<u32>,
}

/// A type of transport, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Trtype {
    /// NVMe/TCP
    Tcp,
}

impl Trtype {
    /// As clients are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
        }
    }
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsystem {
    /// Its name.
    #[serde(with = "text")]
    pub nqn: Nqn,
    /// Serial number; None: derived from the name.
    pub serial: Option<String>,
    /// Model number; None: our own.
    pub model: Option<String>,
    /// Whether every host may connect.
    pub allow_any_host: bool,
    /// The hosts that may, otherwise.
    #[serde(default)]
    pub hosts: BTreeSet<String>,
    /// Highest NSID.
    pub max_namespaces: u32,
    /// Lowest controller identifier.
    pub min_cntlid: u16,
    /// Highest controller identifier.
    pub max_cntlid: u16,
    /// Kept for clients that ask for it; there are no groups yet.
    #[serde(default)]
    pub ana_reporting: bool,
    /// Its namespaces by NSID.
    #[serde(default)]
    pub namespaces: BTreeMap<u32, Namespace>,
    /// Where it can be reached.
    #[serde(default)]
    pub listeners: BTreeSet<Address>,
}

/// A namespace of a subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The device behind it.
    pub device: String,
    /// Its UUID; None: the device's.
    pub uuid: Option<Uuid>,
    /// Its NGUID; None: derived.
    pub nguid: Option<Uuid>,
}

/// Where a listener listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Over which transport.
    pub trtype: Trtype,
    /// The address.
    pub traddr: IpAddr,
    /// The port.
    pub trsvcid: u16,
}

impl From<Address> for TransportAddress {
    fn from(address: Address) -> Self {
        let trtype = match address.trtype {
            Trtype::Tcp => TransportType::Tcp,
        };
        Self { trtype, traddr: address.traddr, trsvcid: address.trsvcid }
    }
}

/// A value stored as its text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
