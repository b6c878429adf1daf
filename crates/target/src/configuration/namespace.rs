//! A namespace: a block device under a number.

use std::fmt;
use std::sync::Arc;

use block::BlockDevice;
use nvme::{Nqn, Status};
use uuid::Uuid;

use super::identity::NamespaceIdentity;
use super::{ConfigurationError, Hosts};
use crate::rate_limit::RateLimits;
use crate::statistics::Statistics;

/// What a namespace is made of.
#[derive(Clone, Debug)]
pub struct NamespaceOptions {
    /// Its number: 1 to the subsystem's `max_namespaces`.
    pub nsid: u32,
    /// The name of its device in the configuration. Part of the derived identity, so known even while
    /// the device is not there.
    pub device_name: String,
    /// What stands behind it.
    pub state: NamespaceState,
    /// Its UUID; None: the medium's own, or a derived one.
    pub uuid: Option<Uuid>,
    /// Its NGUID; None: the medium's own, or a derived one.
    pub nguid: Option<[u8; 16]>,
    /// Whether hosts may only read, though the device may be writable.
    pub read_only: bool,
    /// Its ANA group (ANAGRPID): 1 to the subsystem's `max_namespaces`.
    pub ana_group: u32,
    /// Which of the subsystem's hosts see it.
    pub visible_to: Hosts,
    /// Where the operations of its device are counted; namespaces over the same device share it.
    pub statistics: Arc<Statistics>,
    /// How much its device may do; shared like the statistics. Changed without a new configuration, which hosts would be
    /// told of.
    pub rate_limits: Arc<RateLimits>,
}

impl NamespaceOptions {
    /// A writable namespace over `device`, its identity derived.
    pub fn new(nsid: u32, device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device_name: device.name().to_owned(),
            state: NamespaceState::Ready(device),
            ..Self::waiting(nsid, String::new())
        }
    }

    /// A namespace whose device is not there yet, in an ANA group of its own and seen by all hosts.
    pub fn waiting(nsid: u32, device_name: String) -> Self {
        Self {
            nsid,
            device_name,
            state: NamespaceState::Waiting,
            uuid: None,
            nguid: None,
            read_only: false,
            ana_group: nsid,
            visible_to: Hosts::Any,
            statistics: Arc::default(),
            rate_limits: Arc::default(),
        }
    }
}

/// What stands behind a namespace.
#[derive(Clone)]
pub enum NamespaceState {
    /// The device is missing and being retried. The namespace stays in the active list, since a host that
    /// no longer finds it there takes the disk away from under a file system; commands fail with a
    /// status that says "try again".
    Waiting,
    /// In service.
    Ready(Arc<dyn BlockDevice>),
    /// Taken away: no longer listed, new commands are refused for good. What the device still holds
    /// finishes, which is why it stays here.
    Removing(Arc<dyn BlockDevice>),
}

impl fmt::Debug for NamespaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("Waiting"),
            Self::Ready(device) => write!(f, "Ready({})", device.name()),
            Self::Removing(device) => write!(f, "Removing({})", device.name()),
        }
    }
}

/// One namespace of a [`Subsystem`](super::Subsystem).
#[derive(Clone, Debug)]
pub struct Namespace {
    options: NamespaceOptions,
    identity: NamespaceIdentity,
}

impl Namespace {
    pub(super) fn new(
        subsystem: &Nqn,
        max_nsid: u32,
        options: NamespaceOptions,
    ) -> Result<Self, ConfigurationError> {
        let nsid = options.nsid;
        if nsid == 0 || nsid > max_nsid {
            let subsystem = subsystem.clone();
            return Err(ConfigurationError::NamespaceId { subsystem, nsid, most: max_nsid });
        }
        let group = options.ana_group;
        if group == 0 || group > max_nsid {
            let subsystem = subsystem.clone();
            return Err(ConfigurationError::AnaGroup { subsystem, nsid, group, most: max_nsid });
        }
        let zero = |field| ConfigurationError::ZeroIdentifier {
            subsystem: subsystem.clone(),
            nsid,
            field,
        };
        if options.uuid.is_some_and(|uuid| uuid.is_nil()) {
            return Err(zero("UUID"));
        }
        if options.nguid == Some([0; 16]) {
            return Err(zero("NGUID"));
        }
        let device = match &options.state {
            NamespaceState::Waiting => None,
            NamespaceState::Ready(device) | NamespaceState::Removing(device) => Some(device),
        };
        if let Some(device) = device
            && let Some(problem) = problem_with(device.as_ref())
        {
            return Err(ConfigurationError::Device {
                subsystem: subsystem.clone(),
                nsid,
                device: options.device_name,
                problem,
            });
        }
        let medium = device.map(|device| device.identity()).unwrap_or_default();
        // What is configured for either identifier outweighs what the medium carries for both: the
        // other one then follows from it, the same on each node that is configured so.
        let configured = options.uuid.is_some() || options.nguid.is_some();
        let (uuid, nguid) =
            if configured { (options.uuid, options.nguid) } else { (medium.uuid, medium.nguid) };
        let identity = NamespaceIdentity::complete(
            uuid,
            nguid,
            subsystem.as_str(),
            nsid,
            &options.device_name,
        );
        Ok(Self { options, identity })
    }

    /// Namespace identifier (NSID).
    pub fn nsid(&self) -> u32 {
        self.options.nsid
    }

    /// The name of its device in the configuration.
    pub fn device_name(&self) -> &str {
        &self.options.device_name
    }

    /// What it was made of.
    pub fn options(&self) -> &NamespaceOptions {
        &self.options
    }

    /// What stands behind it.
    pub fn state(&self) -> &NamespaceState {
        &self.options.state
    }

    /// Its UUID and NGUID. While the device is missing, those that would do without a medium.
    pub fn identity(&self) -> NamespaceIdentity {
        self.identity
    }

    /// Where the operations of its device are counted.
    pub fn statistics(&self) -> &Statistics {
        &self.options.statistics
    }

    /// How much its device may do.
    pub fn rate_limits(&self) -> &Arc<RateLimits> {
        &self.options.rate_limits
    }

    /// Whether it is in the list of active namespaces.
    pub fn is_active(&self) -> bool {
        !matches!(self.options.state, NamespaceState::Removing(_))
    }

    /// Whether a host finds it in its list of active namespaces.
    pub fn is_active_for(&self, host: &Nqn) -> bool {
        self.is_active() && self.is_visible_to(host)
    }

    /// Whether a host may see it.
    pub fn is_visible_to(&self, host: &Nqn) -> bool {
        self.options.visible_to.allow(host)
    }

    /// Its ANA group.
    pub fn ana_group(&self) -> u32 {
        self.options.ana_group
    }

    /// Whether hosts that see both find no difference between them, apart from the ANA group.
    pub fn looks_like(&self, other: &Self) -> bool {
        let same_device = match (self.state(), other.state()) {
            (NamespaceState::Waiting, NamespaceState::Waiting) => true,
            (NamespaceState::Ready(one), NamespaceState::Ready(other))
            | (NamespaceState::Removing(one), NamespaceState::Removing(other)) => {
                Arc::ptr_eq(one, other)
            }
            _ => false,
        };
        same_device
            && self.identity == other.identity
            && self.options.read_only == other.options.read_only
    }

    /// Whether hosts may only read: configured so, or the device is.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only || self.device().is_some_and(|device| device.properties().read_only)
    }

    /// Whether what it acknowledges may be lost without a flush. So for a missing device, of which it is
    /// not known.
    pub fn has_volatile_write_cache(&self) -> bool {
        match &self.options.state {
            NamespaceState::Waiting => true,
            NamespaceState::Ready(device) => device.properties().volatile_write_cache,
            NamespaceState::Removing(_) => false,
        }
    }

    /// Its device, if it is in service.
    pub fn device(&self) -> Option<&Arc<dyn BlockDevice>> {
        self.ready().ok()
    }

    /// Its device, or the status of a command that wants it: retryable while the device is missing,
    /// final once the namespace is being removed.
    pub fn ready(&self) -> Result<&Arc<dyn BlockDevice>, Status> {
        match &self.options.state {
            NamespaceState::Ready(device) => Ok(device),
            NamespaceState::Waiting => Err(Status::NAMESPACE_NOT_READY),
            NamespaceState::Removing(_) => Err(Status::INVALID_NAMESPACE.with_dnr()),
        }
    }
}

/// What makes a device unfit, as the rest of a sentence that begins with its name.
fn problem_with(device: &dyn BlockDevice) -> Option<&'static str> {
    let geometry = device.geometry();
    if !matches!(geometry.block_size, 512 | 4096) {
        return Some("must have a block size of 512 or 4096 bytes");
    }
    if geometry.blocks == 0 {
        return Some("has no blocks; make it larger");
    }
    // Byte offsets in files are signed 64-bit numbers.
    let bytes = geometry.blocks.checked_mul(u64::from(geometry.block_size));
    match bytes {
        Some(bytes) if i64::try_from(bytes).is_ok() => None,
        _ => Some("is larger than 8 EiB"),
    }
}
