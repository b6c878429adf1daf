//! The objects that a client or a configuration file names, in the form in which they are stored: what was asked
//! for, nothing that the running node found out. The store keeps them as JSON, so a field that is added gets a
//! default.

mod nvme;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ::nvme::Nqn;
use ::nvme::address::{TransportAddress, TransportType};
use serde::{Deserialize, Serialize};
use target::rate_limit::{Limit, Rates};
use uuid::Uuid;

pub use self::nvme::{Controller, LossTimeouts, NvmeOptions, Place, TimeoutAction};

/// All objects there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// How NVMe controllers are driven.
    pub nvme_options: NvmeOptions,
    /// NVMe controllers by name.
    pub controllers: BTreeMap<String, Controller>,
    /// Devices by name.
    pub devices: BTreeMap<String, Device>,
    /// Transports by type.
    pub transports: BTreeMap<Trtype, Transport>,
    /// Subsystems by name.
    pub subsystems: BTreeMap<Nqn, Subsystem>,
    /// Referrals by where they lead.
    pub referrals: BTreeMap<(Address, Nqn), Referral>,
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
    /// How much it may do per second.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

impl Device {
    /// Whether to open it would give the same as to open the other.
    pub fn opens_as(&self, other: &Self) -> bool {
        let Self { name, uuid, kind, limits: _ } = self;
        (name, uuid, kind) == (&other.name, &other.uuid, &other.kind)
    }
}

/// How much a device may do per second (`bdev_set_qos_limit`); 0: as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Reads and writes together.
    pub rw_ios_per_sec: u64,
    /// Reads.
    pub r_ios_per_sec: u64,
    /// Writes.
    pub w_ios_per_sec: u64,
    /// Mebibytes read and written together.
    pub rw_mbytes_per_sec: u64,
    /// Mebibytes read.
    pub r_mbytes_per_sec: u64,
    /// Mebibytes written.
    pub w_mbytes_per_sec: u64,
}

impl RateLimits {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// As the target takes them.
    pub fn rates(&self) -> Rates {
        Limit::ALL.map(|limit| {
            let bytes = |mebibytes: u64| mebibytes.saturating_mul(1 << 20);
            match limit {
                Limit::ReadWriteIos => self.rw_ios_per_sec,
                Limit::ReadIos => self.r_ios_per_sec,
                Limit::WriteIos => self.w_ios_per_sec,
                Limit::ReadWriteBytes => bytes(self.rw_mbytes_per_sec),
                Limit::ReadBytes => bytes(self.r_mbytes_per_sec),
                Limit::WriteBytes => bytes(self.w_mbytes_per_sec),
            }
        })
    }
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
    /// A namespace of a controller.
    Nvme {
        /// The controller's name.
        controller: String,
        /// Its number there.
        nsid: u32,
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

/// The methods of SPDK that make what is one device here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileMethod {
    /// `bdev_aio_create`
    Aio,
    /// `bdev_uring_create`
    Uring,
    /// `bdev_xnvme_create`
    Xnvme,
}

/// A transport: it has to be created before there are listeners, as in SPDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// Of what type.
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
    /// Of RDMA: receives of a shared receive queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_srq_depth: Option<u32>,
    /// Of RDMA: completions of a completion queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_cqe: Option<u32>,
}

impl Transport {
    /// One that asks for nothing but what the process settings say.
    pub fn plain(trtype: Trtype) -> Self {
        Self {
            trtype,
            max_queue_depth: None,
            max_io_qpairs_per_ctrlr: None,
            in_capsule_data_size: None,
            max_io_size: None,
            max_srq_depth: None,
            num_cqe: None,
        }
    }
}

/// A type of transport, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Trtype {
    /// NVMe/TCP
    Tcp,
    /// NVMe/RDMA
    Rdma,
}

impl Trtype {
    /// As clients are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Rdma => "RDMA",
        }
    }

    /// The transport of this name, as clients and hosts write it.
    pub fn of_name(name: &str) -> Option<Self> {
        let mut all = [Self::Tcp, Self::Rdma].into_iter();
        all.find(|known| known.as_str().eq_ignore_ascii_case(name))
    }
}

impl From<Trtype> for TransportType {
    fn from(trtype: Trtype) -> Self {
        match trtype {
            Trtype::Tcp => Self::Tcp,
            Trtype::Rdma => Self::Rdma,
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
    /// Whether hosts are told the states of its ANA groups; if not, every path is optimized.
    #[serde(default)]
    pub ana_reporting: bool,
    /// Its namespaces by NSID.
    #[serde(default)]
    pub namespaces: BTreeMap<u32, Namespace>,
    /// Where it can be reached, and how good each of these paths is.
    #[serde(default, with = "listeners")]
    pub listeners: BTreeMap<Address, AnaStates>,
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
    /// Its ANA group; None: that of its NSID.
    #[serde(default)]
    pub anagrpid: Option<u32>,
    /// Only the hosts that are named see it.
    #[serde(default)]
    pub no_auto_visible: bool,
    /// Those.
    #[serde(default)]
    pub hosts: BTreeSet<String>,
}

impl Namespace {
    /// A namespace over this device that every host sees, its identity and group left open.
    pub fn over(device: String) -> Self {
        Self {
            device,
            uuid: None,
            nguid: None,
            anagrpid: None,
            no_auto_visible: false,
            hosts: BTreeSet::new(),
        }
    }
}

/// The state of an ANA group, as SPDK's clients call it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnaState {
    /// The best path.
    #[default]
    Optimized,
    /// A path that serves, if there is no better one.
    NonOptimized,
    /// A path that does not serve now.
    Inaccessible,
    /// A path that will not serve again.
    PersistentLoss,
    /// A path that is about to be in another state.
    Change,
}

impl AnaState {
    /// Every one, with its name.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Optimized, "optimized"),
        (Self::NonOptimized, "non_optimized"),
        (Self::Inaccessible, "inaccessible"),
        (Self::PersistentLoss, "persistent_loss"),
        (Self::Change, "change"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let all = Self::ALL.iter();
        all.filter(|(state, _)| *state == self).map(|(_, name)| *name).next().unwrap_or_default()
    }

    /// The state of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(state, _)| *state)
    }
}

/// The states of the ANA groups on one listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnaStates {
    /// Of every group,
    pub every: AnaState,
    /// apart from these.
    pub groups: BTreeMap<u32, AnaState>,
}

impl AnaStates {
    /// The state of one group.
    pub fn of(&self, group: u32) -> AnaState {
        self.groups.get(&group).copied().unwrap_or(self.every)
    }

    /// Sets the state of one group, or of every group.
    pub fn set(&mut self, group: Option<u32>, state: AnaState) {
        match group {
            None => *self = Self { every: state, groups: BTreeMap::new() },
            Some(group) if state == self.every => {
                self.groups.remove(&group);
            }
            Some(group) => {
                self.groups.insert(group, state);
            }
        }
    }
}

/// Another place where hosts may look for subsystems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Referral {
    /// Where.
    pub address: Address,
    /// What is there: the discovery subsystem, as a rule.
    #[serde(with = "text")]
    pub subnqn: Nqn,
    /// Whether a connection there has to be a secure one.
    pub secure_channel: bool,
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

impl Address {
    /// As the system knows it.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.traddr, self.trsvcid)
    }
}

impl From<Address> for TransportAddress {
    fn from(address: Address) -> Self {
        let Address { trtype, traddr, trsvcid } = address;
        Self { trtype: trtype.into(), traddr, trsvcid }
    }
}

/// Listeners stored as a list, each with its address.
mod listeners {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Address, AnaState, AnaStates};

    #[derive(Serialize, Deserialize)]
    struct Listener {
        #[serde(flatten)]
        address: Address,
        #[serde(default)]
        ana_state: AnaState,
        #[serde(default)]
        ana_groups: BTreeMap<u32, AnaState>,
    }

    pub(super) fn serialize<S: Serializer>(
        listeners: &BTreeMap<Address, AnaStates>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(listeners.iter().map(|(address, states)| {
            let AnaStates { every, groups } = states.clone();
            Listener { address: *address, ana_state: every, ana_groups: groups }
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Address, AnaStates>, D::Error> {
        let all: Vec<Listener> = Vec::deserialize(from)?;
        let states = |it: Listener| AnaStates { every: it.ana_state, groups: it.ana_groups };
        Ok(all.into_iter().map(|it| (it.address, states(it))).collect())
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
