//! A subsystem: namespaces, and who may reach them where.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use nvme::Nqn;

use super::identity::derive_serial;
use super::{Ana, ConfigurationError, ListenerId, Namespace, Reach};

/// The most namespaces in a subsystem, and so the highest NSID. Bounded so that the list of active
/// namespaces fits one Identify (1,024 entries of 4 bytes) and the same holds for the changed ones.
pub const MAX_NAMESPACES: u32 = 1024;

/// The highest controller identifier (NVMe Base 2.0, "Connect command": FFF0h and above are reserved;
/// Linux and SPDK stop at FFEFh less one). The identifier is never zero.
pub const MAX_CONTROLLER_ID: u16 = 0xffee;

/// Bytes of one unit of MDTS: the smallest memory page, CAP.MPSMIN = 0.
pub const MINIMUM_PAGE: u32 = 4096;

/// The firmware revision unless another is configured. It must fit its eight characters.
pub(crate) const FIRMWARE: &str = env!("CARGO_PKG_VERSION");
const _: () = assert!(FIRMWARE.len() <= 8);

/// The model number unless another is configured.
pub(crate) const MODEL: &str = "Tidegate";

/// Which hosts: may connect to a subsystem, see a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// All.
    Any,
    /// These; an empty list means nobody.
    Listed(Arc<BTreeSet<Nqn>>),
}

impl Hosts {
    /// Whether this host is one of them.
    pub fn allow(&self, host: &Nqn) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(hosts) => hosts.contains(host),
        }
    }
}

impl FromIterator<Nqn> for Hosts {
    fn from_iter<I: IntoIterator<Item = Nqn>>(hosts: I) -> Self {
        Self::Listed(Arc::new(hosts.into_iter().collect()))
    }
}

/// Bounds on what one controller of a subsystem takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// I/O queues of one controller, at least 1.
    pub io_queues: u16,
    /// Entries of a queue, admin queue included: 32, which every host may count on, to 4096.
    pub queue_depth: u16,
    /// Bytes that one command may transfer: a power of two, 4 KiB to 2 MiB, the largest buffer there is.
    pub max_transfer: u32,
    /// Bytes of data in an I/O command capsule: a multiple of 16, up to 64 KiB.
    pub in_capsule: u32,
    /// Highest NSID.
    pub max_namespaces: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            io_queues: 128,
            queue_depth: 128,
            max_transfer: 1 << 20,
            in_capsule: 8 << 10,
            max_namespaces: MAX_NAMESPACES,
        }
    }
}

impl Limits {
    /// Maximum Data Transfer Size (MDTS): the limit as a power of two of [`MINIMUM_PAGE`].
    pub fn mdts(&self) -> u8 {
        let pages = (self.max_transfer / MINIMUM_PAGE).max(1);
        // At most 31, since `pages` has 32 bits.
        u8::try_from(pages.ilog2()).unwrap_or(u8::MAX)
    }

    fn check(&self, subsystem: &Nqn) -> Result<(), ConfigurationError> {
        let refuse = |limit, value: u64, allowed| {
            let subsystem = subsystem.clone();
            Err(ConfigurationError::Limit { subsystem, limit, value, allowed })
        };
        let Self { io_queues, queue_depth, max_transfer, in_capsule, max_namespaces } = *self;
        if io_queues == 0 || io_queues == u16::MAX {
            return refuse("io_queues", io_queues.into(), "1 to 65534");
        }
        if !(32..=4096).contains(&queue_depth) {
            return refuse("queue_depth", queue_depth.into(), "32 to 4096");
        }
        if !max_transfer.is_power_of_two() || !(MINIMUM_PAGE..=2 << 20).contains(&max_transfer) {
            let allowed = "a power of two from 4096 to 2097152 bytes";
            return refuse("max_transfer", max_transfer.into(), allowed);
        }
        if !in_capsule.is_multiple_of(16) || in_capsule > 64 << 10 {
            let allowed = "a multiple of 16 up to 65536 bytes";
            return refuse("in_capsule", in_capsule.into(), allowed);
        }
        if !(1..=MAX_NAMESPACES).contains(&max_namespaces) {
            return refuse("max_namespaces", max_namespaces.into(), "1 to 1024");
        }
        Ok(())
    }
}

/// What a subsystem is made of, apart from its namespaces. `Default` admits no host: access is granted,
/// never assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemOptions {
    /// Serial number, up to 20 characters; None: derived from the NQN.
    pub serial: Option<String>,
    /// Model number, up to 40 characters.
    pub model: String,
    /// Firmware revision, up to 8 characters.
    pub firmware: String,
    /// Controller identifiers that this node may give out. Nodes that serve the same subsystem take
    /// disjoint ranges, or a host refuses the second path.
    pub controller_ids: RangeInclusive<u16>,
    /// Who may connect.
    pub hosts: Hosts,
    /// Where.
    pub reach: Reach,
    /// The states of its ANA groups on the listeners; None: ANA is not reported, every path is as good as the other.
    pub ana: Option<Ana>,
    /// How much.
    pub limits: Limits,
}

impl Default for SubsystemOptions {
    fn default() -> Self {
        Self {
            serial: None,
            model: MODEL.to_owned(),
            firmware: FIRMWARE.to_owned(),
            controller_ids: 1..=MAX_CONTROLLER_ID,
            hosts: Hosts::from_iter([]),
            reach: Reach::Everywhere,
            ana: None,
            limits: Limits::default(),
        }
    }
}

/// One NVM subsystem. Its parts are shared with the snapshots before and after, as far as they are the same.
#[derive(Clone, Debug)]
pub struct Subsystem {
    nqn: Nqn,
    /// Shared apart from the namespaces: those change more often than the rest.
    options: Arc<SubsystemOptions>,
    serial: Arc<str>,
    /// In the order of the NSIDs.
    namespaces: Vec<Arc<Namespace>>,
}

impl Subsystem {
    /// The same without its namespaces.
    pub(crate) fn without_namespaces(&self) -> Self {
        Self {
            nqn: self.nqn.clone(),
            options: Arc::clone(&self.options),
            serial: Arc::clone(&self.serial),
            namespaces: Vec::new(),
        }
    }

    pub(super) fn new(nqn: Nqn, options: SubsystemOptions) -> Result<Self, ConfigurationError> {
        if nqn.is_discovery() {
            return Err(ConfigurationError::ReservedName(nqn));
        }
        let serial = match &options.serial {
            Some(serial) => serial.clone(),
            None => derive_serial(nqn.as_str()),
        };
        for (field, value, most) in [
            ("serial number", &serial, 20),
            ("model number", &options.model, 40),
            ("firmware revision", &options.firmware, 8),
        ] {
            if !is_identify_text(value, most) {
                let value = value.clone();
                return Err(ConfigurationError::Text { subsystem: nqn, field, value, most });
            }
        }
        let (min, max) = (*options.controller_ids.start(), *options.controller_ids.end());
        if min == 0 || max > MAX_CONTROLLER_ID || min > max {
            return Err(ConfigurationError::ControllerRange { subsystem: nqn, min, max });
        }
        options.limits.check(&nqn)?;
        let (serial, options) = (serial.into(), Arc::new(options));
        Ok(Self { nqn, options, serial, namespaces: Vec::new() })
    }

    /// The same namespaces under other options.
    pub(super) fn with_options(
        &self,
        options: SubsystemOptions,
    ) -> Result<Self, ConfigurationError> {
        let mut changed = Self::new(self.nqn.clone(), options)?;
        let most = changed.limits().max_namespaces;
        if let Some(last) = self.namespaces.last().filter(|last| last.nsid() > most) {
            let (subsystem, nsid) = (self.nqn.clone(), last.nsid());
            return Err(ConfigurationError::NamespaceId { subsystem, nsid, most });
        }
        let beyond = self.namespaces.iter().find(|namespace| namespace.ana_group() > most);
        if let Some(namespace) = beyond {
            let (subsystem, nsid, group) =
                (self.nqn.clone(), namespace.nsid(), namespace.ana_group());
            return Err(ConfigurationError::AnaGroup { subsystem, nsid, group, most });
        }
        changed.namespaces.clone_from(&self.namespaces);
        Ok(changed)
    }

    /// Puts in a namespace; `replace` says whether its NSID must be there already or must not.
    pub(super) fn put(
        &mut self,
        namespace: Namespace,
        replace: bool,
    ) -> Result<(), ConfigurationError> {
        let (subsystem, nsid) = (|| self.nqn.clone(), namespace.nsid());
        let place = self.position(nsid);
        match place {
            Ok(_) if !replace => {
                return Err(ConfigurationError::DuplicateNamespace {
                    subsystem: subsystem(),
                    nsid,
                });
            }
            Err(_) if replace => {
                return Err(ConfigurationError::UnknownNamespace { subsystem: subsystem(), nsid });
            }
            _ => {}
        }
        let identity = namespace.identity();
        for other in self.namespaces.iter().filter(|other| other.nsid() != nsid) {
            let (one, two) = (nsid.min(other.nsid()), nsid.max(other.nsid()));
            if other.identity().uuid == identity.uuid {
                return Err(ConfigurationError::DuplicateUuid {
                    subsystem: subsystem(),
                    one,
                    other: two,
                    uuid: identity.uuid,
                });
            }
            if other.identity().nguid == identity.nguid {
                return Err(ConfigurationError::DuplicateNguid {
                    subsystem: subsystem(),
                    one,
                    other: two,
                    nguid: identity.nguid,
                });
            }
        }
        let namespace = Arc::new(namespace);
        match place {
            Ok(at) => {
                if let Some(slot) = self.namespaces.get_mut(at) {
                    *slot = namespace;
                }
            }
            Err(at) => self.namespaces.insert(at, namespace),
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, nsid: u32) -> Result<(), ConfigurationError> {
        let at = self.position(nsid).map_err(|_| {
            let subsystem = self.nqn.clone();
            ConfigurationError::UnknownNamespace { subsystem, nsid }
        })?;
        self.namespaces.remove(at);
        Ok(())
    }

    fn position(&self, nsid: u32) -> Result<usize, usize> {
        self.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid())
    }

    /// Its NQN.
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    /// What it was made of.
    pub fn options(&self) -> &SubsystemOptions {
        &self.options
    }

    /// Serial number, configured or derived.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Bounds on what one controller takes.
    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// Whether this host may connect.
    pub fn allows(&self, host: &Nqn) -> bool {
        self.options.hosts.allow(host)
    }

    /// Whether it can be reached on this listener.
    pub fn is_reachable_on(&self, listener: ListenerId) -> bool {
        self.options.reach.includes(listener)
    }

    /// All its namespaces in the order of their NSIDs, those being removed among them.
    pub fn namespaces(&self) -> &[Arc<Namespace>] {
        &self.namespaces
    }

    /// The namespace of this number, if there is one, in whatever state.
    pub fn namespace(&self, nsid: u32) -> Option<&Arc<Namespace>> {
        self.namespaces.get(self.position(nsid).ok()?)
    }

    /// The active namespaces whose NSID is greater than `after`, in order.
    pub fn active_after(&self, after: u32) -> impl Iterator<Item = &Arc<Namespace>> {
        let from = self.namespaces.partition_point(|namespace| namespace.nsid() <= after);
        self.namespaces.iter().skip(from).filter(|namespace| namespace.is_active())
    }

    /// Whether some host sees less than all of it, or some path does not serve: every command has to be asked.
    pub fn is_guarded(&self) -> bool {
        self.options.ana.as_ref().is_some_and(Ana::bars)
            || self.namespaces.iter().any(|it| it.options().visible_to != Hosts::Any)
    }

    /// What a new controller reports as its volatile write cache: true unless every namespace there is,
    /// and there is one, keeps what it acknowledged. A controller's answer never changes afterwards, as a
    /// host asks once: if it was false and a device with a cache comes, writes become FUA (see
    /// [`io::parse`](crate::io)).
    pub fn has_volatile_write_cache(&self) -> bool {
        self.namespaces.is_empty()
            || self.namespaces.iter().any(|namespace| namespace.has_volatile_write_cache())
    }
}

/// Whether the identify data can carry it: ASCII, padded with blanks at the end.
fn is_identify_text(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
}
