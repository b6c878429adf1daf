//! Features of a controller: their values, and what Get Features and Set Features may do with them.
//!
//! Plain data owned by the controller, on its reactor. What has to happen elsewhere when a value changes comes
//! back from [`Features::set`] as an [`Effect`].
//!
//! No value can be saved: a controller over fabrics is made anew at each Connect, so there is nothing
//! that a saved value would belong to. The saved value of a feature is therefore its default.
//!
//! Some features must exist though a storage daemon has nothing for them to act on (arbitration, power,
//! temperature, atomicity). They keep what the host sets, which then has no effect. Error recovery
//! can be read but not changed: a time limit that is not kept would be a promise broken.
//!
//! NVMe Base 2.0c, section "Feature Specific Information".

use nvme::admin::{GetFeatures, Select, SetFeatures};
use nvme::feature::{
    Arbitration, AsynchronousEvents, EXTENDED_HOST_IDENTIFIER, Feature, HostBehavior, KeepAlive,
    NumberOfQueues, PowerManagement, TemperatureThreshold, VolatileWriteCache, WriteAtomicity,
};
use nvme::identify::ControllerType;
use nvme::{HostId, NSID_ALL, Status};
use zerocopy::{FromBytes, IntoBytes};

/// Granularity of the keep-alive timeout in milliseconds; Identify reports it in units of 100 ms (KAS).
pub const KEEP_ALIVE_GRANULARITY: u32 = 100;

/// Warning Composite Temperature Threshold in kelvin (WCTEMP): the value that the specification recommends,
/// and the default of the over-temperature threshold.
pub const WARNING_TEMPERATURE: u16 = 0x0157;

/// The SMART events that a host may ask to be notified of; none of them is ever sent, but every controller
/// must take their bits.
const HEALTH_EVENTS: AsynchronousEvents = AsynchronousEvents::SPARE
    .union(AsynchronousEvents::TEMPERATURE)
    .union(AsynchronousEvents::RELIABILITY)
    .union(AsynchronousEvents::READ_ONLY)
    .union(AsynchronousEvents::BACKUP)
    .union(AsynchronousEvents::PERSISTENT_MEMORY);

/// Rounds a keep-alive timeout up to the granularity; 0 stays 0.
pub fn round_keep_alive(milliseconds: u32) -> u32 {
    milliseconds.checked_next_multiple_of(KEEP_ALIVE_GRANULARITY).unwrap_or(u32::MAX)
}

/// The optional events that a controller of this type sends: OAES of Identify Controller. `ana`: whether it
/// reports asymmetric access.
pub fn optional_events(kind: ControllerType, ana: bool) -> AsynchronousEvents {
    match kind {
        ControllerType::Discovery => AsynchronousEvents::DISCOVERY,
        ControllerType::Io | ControllerType::Administrative if ana => {
            AsynchronousEvents::NAMESPACE | AsynchronousEvents::ANA
        }
        ControllerType::Io | ControllerType::Administrative => AsynchronousEvents::NAMESPACE,
    }
}

/// The features that a controller of this type has.
pub fn supported(
    kind: ControllerType,
    volatile_write_cache: bool,
) -> impl Iterator<Item = Feature> {
    let features: &[Feature] = match kind {
        ControllerType::Discovery => {
            &[Feature::AsynchronousEvents, Feature::KeepAlive, Feature::HostIdentifier]
        }
        ControllerType::Io | ControllerType::Administrative => &[
            Feature::Arbitration,
            Feature::PowerManagement,
            Feature::TemperatureThreshold,
            Feature::ErrorRecovery,
            Feature::VolatileWriteCache,
            Feature::NumberOfQueues,
            Feature::WriteAtomicity,
            Feature::AsynchronousEvents,
            Feature::KeepAlive,
            Feature::HostBehavior,
            Feature::HostIdentifier,
        ],
    };
    let features = features.iter().copied();
    features.filter(move |feature| *feature != Feature::VolatileWriteCache || volatile_write_cache)
}

/// Whether a feature has a value for each namespace.
pub fn is_namespace_specific(feature: Feature) -> bool {
    feature == Feature::ErrorRecovery
}

/// Whether a feature cannot be had while the namespace that is named is out of reach by ANA: the specification's list,
/// as far as it exists here.
pub fn needs_access(feature: Feature) -> bool {
    matches!(feature, Feature::ErrorRecovery | Feature::WriteAtomicity)
}

fn is_changeable(feature: Feature) -> bool {
    !matches!(feature, Feature::ErrorRecovery | Feature::HostIdentifier)
}

/// What a controller's features begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSetup {
    /// What kind of controller it is.
    pub kind: ControllerType,
    /// Whether it reports a volatile write cache, now and for as long as it lives.
    pub volatile_write_cache: bool,
    /// Whether it reports asymmetric namespace access.
    pub ana: bool,
    /// I/O queues that it may have, at least 1.
    pub io_queues: u16,
    /// The host's identifier, from Connect.
    pub host: HostId,
    /// The keep-alive timeout of Connect, in milliseconds.
    pub keep_alive: u32,
}

/// The values of a controller's features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    setup: FeatureSetup,
    arbitration: Arbitration,
    workload_hint: u8,
    over_temperature: u16,
    under_temperature: u16,
    write_cache: VolatileWriteCache,
    atomicity: WriteAtomicity,
    events: AsynchronousEvents,
    keep_alive: u32,
    behavior: HostBehavior,
}

/// What else has to happen because a feature was set. The command completes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The keep-alive timer runs anew with this timeout in milliseconds; 0: not at all.
    KeepAlive(u32),
    /// Writes are to be durable when they complete (true), after a flush of all namespaces for those
    /// that have completed already; or no longer (false).
    WriteThrough(bool),
    /// The host wants other events than before.
    Events,
}

/// A feature's value as Get Features returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Dword 0 of the completion.
    pub dw0: u32,
    /// Data, for the few features that have some.
    pub data: Data,
}

/// Data of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives for one admin command, on the stack")]
pub enum Data {
    /// None.
    None,
    /// Of feature 16h.
    HostBehavior(HostBehavior),
    /// Of feature 81h.
    HostIdentifier([u8; 16]),
}

impl Data {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::HostBehavior(behavior) => behavior.as_bytes(),
            Self::HostIdentifier(host) => host,
        }
    }
}

impl Features {
    /// The features of a new controller.
    pub fn new(setup: FeatureSetup) -> Self {
        Self {
            setup,
            arbitration: Arbitration::default(),
            workload_hint: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            write_cache: VolatileWriteCache { enabled: true },
            atomicity: WriteAtomicity::default(),
            // As the Linux and SPDK targets do: a host that never sets the feature hears of changes.
            events: optional_events(setup.kind, setup.ana),
            keep_alive: round_keep_alive(setup.keep_alive),
            behavior: HostBehavior::default(),
        }
    }

    /// The controller was reset: what the host had set is gone, what Connect said stays.
    pub fn reset(&mut self) {
        *self = Self::new(self.setup);
    }

    /// Whether the controller reports a volatile write cache.
    pub fn has_volatile_write_cache(&self) -> bool {
        self.setup.volatile_write_cache
    }

    /// Whether writes must be durable when they complete: the host knows of no cache, or turned it off.
    pub fn is_write_through(&self) -> bool {
        !self.setup.volatile_write_cache || !self.write_cache.enabled
    }

    /// The events that the host wants.
    pub fn events(&self) -> AsynchronousEvents {
        self.events
    }

    /// The keep-alive timeout in milliseconds, a multiple of the granularity; 0: none.
    pub fn keep_alive(&self) -> u32 {
        self.keep_alive
    }

    /// Whether the host heeds the Command Retry Delay of a status.
    pub fn heeds_retry_delay(&self) -> bool {
        self.behavior.acre == 1
    }

    fn find(&self, fid: u8) -> Result<Feature, Status> {
        supported(self.setup.kind, self.setup.volatile_write_cache)
            .find(|feature| feature.code() == fid)
            .ok_or(Status::INVALID_FIELD.with_dnr())
    }

    /// Bytes of data that Get Features returns: what the data pointer must describe.
    pub fn get_length(command: &GetFeatures) -> u32 {
        match Feature::try_from(command.fid) {
            _ if command.select == Select::SupportedCapabilities => 0,
            Ok(Feature::HostBehavior) => 512,
            Ok(Feature::HostIdentifier) => 16,
            _ => 0,
        }
    }

    /// Bytes of data that come with Set Features.
    pub fn set_length(command: &SetFeatures) -> u32 {
        match Feature::try_from(command.fid) {
            Ok(Feature::HostBehavior) => 512,
            Ok(Feature::HostIdentifier) => 16,
            _ => 0,
        }
    }

    /// Get Features.
    pub fn get(&self, command: &GetFeatures) -> Result<Value, Status> {
        let feature = self.find(command.fid)?;
        match command.select {
            Select::Current => self.value(feature, command.cdw11),
            Select::Default | Select::Saved => Self::new(self.setup).value(feature, command.cdw11),
            Select::SupportedCapabilities => {
                let mut dw0 = 0;
                if is_changeable(feature) {
                    dw0 |= Select::CHANGEABLE;
                }
                if is_namespace_specific(feature) {
                    dw0 |= Select::NAMESPACE_SPECIFIC;
                }
                Ok(Value { dw0, data: Data::None })
            }
        }
    }

    fn value(&self, feature: Feature, cdw11: u32) -> Result<Value, Status> {
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        let mut data = Data::None;
        let dw0 = match feature {
            Feature::Arbitration => self.arbitration.into(),
            Feature::PowerManagement => {
                PowerManagement { power_state: 0, workload_hint: self.workload_hint }.into()
            }
            Feature::TemperatureThreshold => {
                let asked = TemperatureThreshold::from(cdw11);
                let kelvin = match (asked.sensor, asked.kind) {
                    (0, OVER) => self.over_temperature,
                    (0, UNDER) => self.under_temperature,
                    _ => return invalid,
                };
                u32::from(kelvin)
            }
            Feature::VolatileWriteCache => self.write_cache.into(),
            Feature::NumberOfQueues => self.number_of_queues(),
            Feature::WriteAtomicity => self.atomicity.into(),
            Feature::AsynchronousEvents => self.events.bits(),
            Feature::KeepAlive => KeepAlive { milliseconds: self.keep_alive }.into(),
            Feature::HostBehavior => {
                data = Data::HostBehavior(self.behavior);
                0
            }
            Feature::HostIdentifier => {
                if cdw11 & EXTENDED_HOST_IDENTIFIER == 0 {
                    return invalid;
                }
                data = Data::HostIdentifier(self.setup.host.0);
                EXTENDED_HOST_IDENTIFIER
            }
            // Error recovery: no time limit, no errors for deallocated blocks. Nothing else is supported.
            _ => 0,
        };
        Ok(Value { dw0, data })
    }

    /// Both numbers are the same, and 0's based. Always all of them, whatever was asked for.
    fn number_of_queues(&self) -> u32 {
        let most = self.setup.io_queues.saturating_sub(1);
        NumberOfQueues { submission: most, completion: most }.into()
    }

    /// Set Features. `data` is what [`Self::set_length`] asked for; `has_io_queues`: whether an I/O queue has
    /// been connected since the controller was enabled. Dword 0 of the completion, and what else has to happen.
    pub fn set(
        &mut self,
        command: &SetFeatures,
        nsid: u32,
        data: &[u8],
        has_io_queues: bool,
    ) -> Result<(u32, Effect), Status> {
        let feature = self.find(command.fid)?;
        if command.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        if !is_namespace_specific(feature) && !matches!(nsid, 0 | NSID_ALL) {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        }
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        let cdw11 = command.cdw11;
        let mut dw0 = 0;
        let mut effect = Effect::None;
        match feature {
            Feature::Arbitration => self.arbitration = cdw11.into(),
            Feature::PowerManagement => {
                let wanted = PowerManagement::from(cdw11);
                if wanted.power_state != 0 {
                    return invalid;
                }
                self.workload_hint = wanted.workload_hint;
            }
            Feature::TemperatureThreshold => {
                let wanted = TemperatureThreshold::from(cdw11);
                match (wanted.sensor, wanted.kind) {
                    (0 | ALL_SENSORS, OVER) => self.over_temperature = wanted.kelvin,
                    (0 | ALL_SENSORS, UNDER) => self.under_temperature = wanted.kelvin,
                    _ => return invalid,
                }
            }
            Feature::VolatileWriteCache => {
                let before = self.is_write_through();
                self.write_cache = cdw11.into();
                if self.is_write_through() != before {
                    effect = Effect::WriteThrough(self.is_write_through());
                }
            }
            Feature::NumberOfQueues => {
                let wanted = NumberOfQueues::from(cdw11);
                if wanted.submission == u16::MAX || wanted.completion == u16::MAX {
                    return invalid;
                }
                if has_io_queues {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                }
                dw0 = self.number_of_queues();
            }
            Feature::WriteAtomicity => self.atomicity = cdw11.into(),
            Feature::AsynchronousEvents => {
                let possible = HEALTH_EVENTS | optional_events(self.setup.kind, self.setup.ana);
                // Reserved bits are ignored; those of events that exist but are not ours are refused.
                let wanted = AsynchronousEvents::from_bits_truncate(cdw11);
                if !possible.contains(wanted) {
                    return invalid;
                }
                self.events = wanted;
                effect = Effect::Events;
            }
            Feature::KeepAlive => {
                let KeepAlive { milliseconds } = cdw11.into();
                self.keep_alive = round_keep_alive(milliseconds);
                effect = Effect::KeepAlive(self.keep_alive);
            }
            Feature::HostBehavior => {
                let behavior = HostBehavior::read_from_bytes(data);
                let behavior = behavior.map_err(|_| Status::SGL_DATA_LENGTH_INVALID.with_dnr())?;
                // LBAFEE needs extended LBA formats, which are not offered.
                if behavior.acre > 1 || behavior.etdas > 1 || behavior.lbafee != 0 {
                    return invalid;
                }
                let HostBehavior { acre, etdas, .. } = behavior;
                self.behavior = HostBehavior { acre, etdas, ..HostBehavior::default() };
            }
            // Over fabrics Connect has said it already.
            Feature::HostIdentifier => return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
            _ => return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr()),
        }
        Ok((dw0, effect))
    }
}

/// THSEL: over temperature.
const OVER: u8 = 0;
/// THSEL: under temperature.
const UNDER: u8 = 1;
/// TMPSEL of Set Features: every sensor there is.
const ALL_SENSORS: u8 = 0xf;

#[cfg(test)]
mod tests;
