//! Features: what the host sets, and gets back.

use std::collections::BTreeMap;

use nvme::admin::{GetFeatures, Select, SetFeatures};
use nvme::feature::{
    AsynchronousEvents, EXTENDED_HOST_IDENTIFIER, Feature, InterruptVector, NumberOfQueues,
    PowerManagement, TemperatureThreshold, Timestamp, VolatileWriteCache,
};
use nvme::identify::OptionalCommands;
use nvme::{NSID_ALL, Sqe, Status};
use zerocopy::IntoBytes;

use super::world::World;

/// What a threshold for high temperature is until it is set: kelvin.
const WARM: u32 = 343;

/// Features whose value is a dword, with what it is at first.
const PLAIN: [(Feature, u32); 8] = [
    (Feature::Arbitration, 0),
    (Feature::PowerManagement, 0),
    (Feature::TemperatureThreshold, WARM),
    (Feature::VolatileWriteCache, 1),
    (Feature::InterruptCoalescing, 0),
    (Feature::InterruptVector, 0),
    (Feature::WriteAtomicity, 0),
    (Feature::AsynchronousEvents, 0),
];

#[derive(Debug)]
pub(super) struct Features {
    /// Values by feature, and by what else they belong to: namespace, vector, threshold.
    values: BTreeMap<(u8, u32), u32>,
    timestamp: Timestamp,
    host: Vec<u8>,
}

impl Features {
    pub(super) fn new() -> Features {
        Features { values: BTreeMap::new(), timestamp: Timestamp::default(), host: Vec::new() }
    }

    pub(super) fn reset(&mut self) {
        *self = Features::new();
    }

    fn value(&self, feature: Feature, part: u32) -> u32 {
        let first = PLAIN.iter().find(|(other, _)| *other == feature);
        let first = if part == 0 { first.map_or(0, |&(_, value)| value) } else { 0 };
        self.values.get(&(feature.code(), part)).copied().unwrap_or(first)
    }

    pub(super) fn of_namespace(&self, feature: Feature, nsid: u32) -> u32 {
        self.value(feature, nsid)
    }

    pub(super) fn write_cache(&self) -> bool {
        VolatileWriteCache::from(self.value(Feature::VolatileWriteCache, 0)).enabled
    }

    /// Whether the host wants to be told of these.
    pub(super) fn wants(&self, events: AsynchronousEvents) -> bool {
        let wanted = self.value(Feature::AsynchronousEvents, 0);
        AsynchronousEvents::from_bits_retain(wanted).contains(events)
    }

    /// Whether a temperature is beyond a threshold of the composite one.
    pub(super) fn is_too_hot_or_cold(&self, kelvin: u16) -> bool {
        let threshold = |part| {
            TemperatureThreshold::from(self.value(Feature::TemperatureThreshold, part)).kelvin
        };
        kelvin >= threshold(0) || kelvin <= threshold(UNDER)
    }
}

/// The part of [`Feature::TemperatureThreshold`] that is the lower one of the composite temperature.
const UNDER: u32 = 0x10;

/// The events that it can send.
pub(super) const EVENTS: AsynchronousEvents = AsynchronousEvents::SPARE
    .union(AsynchronousEvents::TEMPERATURE)
    .union(AsynchronousEvents::RELIABILITY)
    .union(AsynchronousEvents::READ_ONLY)
    .union(AsynchronousEvents::BACKUP)
    .union(AsynchronousEvents::NAMESPACE)
    .union(AsynchronousEvents::FIRMWARE);

impl World {
    /// Whether it has a feature, and what else the feature's value belongs to.
    fn part_of(&mut self, fid: u8, nsid: u32, cdw11: u32) -> Result<(Feature, u32), Status> {
        let feature = Feature::try_from(fid).map_err(|_| Status::INVALID_FIELD)?;
        let part = match feature {
            Feature::ErrorRecovery if nsid == NSID_ALL => NSID_ALL,
            Feature::ErrorRecovery => self.named(nsid)?,
            Feature::TemperatureThreshold => {
                let threshold = TemperatureThreshold::from(cdw11);
                if threshold.kind > 1 || threshold.sensor > 0 && threshold.sensor != 0xf {
                    return Err(Status::INVALID_FIELD);
                }
                if threshold.kind == 1 { UNDER } else { 0 }
            }
            Feature::InterruptVector => {
                let vector = InterruptVector::from(cdw11).vector;
                if usize::from(vector) >= self.interrupts.len() {
                    let what = format!("configuration of vector {vector}");
                    return self.refuse(Status::INVALID_FIELD, what);
                }
                // The admin queue's is not coalesced, and the part after it is 1.
                u32::from(vector)
            }
            Feature::VolatileWriteCache if !self.options.volatile_write_cache => {
                return Err(Status::INVALID_FIELD);
            }
            Feature::Timestamp if !self.options.oncs.contains(OptionalCommands::TIMESTAMP) => {
                return Err(Status::INVALID_FIELD);
            }
            Feature::NumberOfQueues | Feature::Timestamp | Feature::HostIdentifier => 0,
            plain if PLAIN.iter().any(|(other, _)| *other == plain) => 0,
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok((feature, part))
    }

    pub(super) fn set_features(&mut self, sqe: &Sqe, set: &SetFeatures) -> Result<u32, Status> {
        let nsid = sqe.nsid.get();
        let (feature, part) = self.part_of(set.fid, nsid, set.cdw11)?;
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        match feature {
            Feature::NumberOfQueues => return self.grant_queues(set.cdw11),
            Feature::Timestamp => {
                let mut timestamp = Timestamp::default();
                self.ask_for(sqe, timestamp.as_mut_bytes())?;
                let milliseconds = timestamp.milliseconds();
                self.features.timestamp = Timestamp::new(milliseconds, Timestamp::ORIGIN_HOST);
            }
            Feature::HostIdentifier => {
                let mut id =
                    vec![0; if set.cdw11 & EXTENDED_HOST_IDENTIFIER != 0 { 16 } else { 8 }];
                self.ask_for(sqe, &mut id)?;
                self.features.host = id;
            }
            Feature::PowerManagement if PowerManagement::from(set.cdw11).power_state > 0 => {
                return Err(Status::INVALID_FIELD);
            }
            Feature::AsynchronousEvents => {
                if AsynchronousEvents::from_bits_retain(set.cdw11).difference(EVENTS).bits() != 0 {
                    let what = format!("events {:#x} asked for, which are not in OAES", set.cdw11);
                    return self.refuse(Status::INVALID_FIELD, what);
                }
                self.features.values.insert((set.fid, part), set.cdw11);
                self.watch_temperature();
            }
            Feature::ErrorRecovery if part == NSID_ALL => {
                for &nsid in self.namespaces.all.keys() {
                    self.features.values.insert((set.fid, nsid), set.cdw11);
                }
            }
            _ => {
                self.features.values.insert((set.fid, part), set.cdw11);
                self.watch_temperature();
            }
        }
        Ok(0)
    }

    fn grant_queues(&mut self, value: u32) -> Result<u32, Status> {
        let asked = NumberOfQueues::from(value);
        if asked.submission == u16::MAX || asked.completion == u16::MAX {
            let what = "65,536 queues asked for".to_owned();
            return self.refuse(Status::INVALID_FIELD, what);
        }
        if self.queues.submission.len() > 1 || self.queues.completion.len() > 1 {
            let what = "number of queues set after some were created".to_owned();
            return self.refuse(Status::COMMAND_SEQUENCE_ERROR, what);
        }
        let most = self.options.queues.max(1);
        // What was granted once stays until the next reset.
        let granted = (asked.submission.saturating_add(1), asked.completion.saturating_add(1));
        let granted = (granted.0.min(most), granted.1.min(most));
        let granted = *self.queues.granted.get_or_insert(granted);
        Ok(NumberOfQueues { submission: granted.0 - 1, completion: granted.1 - 1 }.into())
    }

    pub(super) fn get_features(&mut self, sqe: &Sqe, get: GetFeatures) -> Result<u32, Status> {
        let (feature, part) = self.part_of(get.fid, sqe.nsid.get(), get.cdw11)?;
        if get.select != Select::Current
            && !self.options.oncs.contains(OptionalCommands::FEATURE_SAVE)
        {
            return Err(Status::INVALID_FIELD);
        }
        match get.select {
            Select::Current => {}
            Select::Default | Select::Saved => return Ok(Features::new().value(feature, part)),
            Select::SupportedCapabilities => {
                let of_namespace = feature == Feature::ErrorRecovery;
                let of_namespace = if of_namespace { Select::NAMESPACE_SPECIFIC } else { 0 };
                return Ok(Select::CHANGEABLE | of_namespace);
            }
        }
        match feature {
            Feature::NumberOfQueues => {
                let most = self.options.queues.max(1);
                let (submission, completion) = self.queues.granted.unwrap_or((most, most));
                let (submission, completion) = (submission - 1, completion - 1);
                Ok(NumberOfQueues { submission, completion }.into())
            }
            Feature::Timestamp => {
                let timestamp = self.features.timestamp;
                self.answer_with(sqe, timestamp.as_bytes(), 8).map(|()| 0)
            }
            Feature::HostIdentifier => {
                let length = if get.cdw11 & EXTENDED_HOST_IDENTIFIER != 0 { 16 } else { 8 };
                let id = self.features.host.clone();
                self.answer_with(sqe, &id, length).map(|()| 0)
            }
            _ => Ok(self.features.value(feature, part)),
        }
    }
}
