//! Tests of features.

use proptest::prelude::*;

use super::*;

const SETUP: FeatureSetup = FeatureSetup {
    kind: ControllerType::Io,
    volatile_write_cache: true,
    ana: false,
    io_queues: 128,
    host: HostId([7; 16]),
    keep_alive: 15_000,
};
const DISCOVERY: FeatureSetup =
    FeatureSetup { kind: ControllerType::Discovery, volatile_write_cache: false, ..SETUP };

fn get(features: &Features, feature: Feature, cdw11: u32) -> Result<u32, Status> {
    let command = GetFeatures { cdw11, ..GetFeatures::new(feature) };
    features.get(&command).map(|value| value.dw0)
}

fn set(features: &mut Features, feature: Feature, cdw11: u32) -> Result<(u32, Effect), Status> {
    features.set(&SetFeatures::new(feature, cdw11), 0, &[], false)
}

#[test]
fn what_is_set_is_kept_until_a_reset() {
    let over = 0x0150;
    let under = 0x0110 | 1 << 20;
    let every = 0x0150 | 0xf << 16;
    for (feature, value, ask, answer) in [
        (Feature::Arbitration, 0x0403_0207, 0, 0x0403_0207),
        (Feature::PowerManagement, 3 << 5, 0, 3 << 5),
        (Feature::TemperatureThreshold, over, 0, 0x0150),
        (Feature::TemperatureThreshold, every, 0, 0x0150),
        (Feature::TemperatureThreshold, under, 1 << 20, 0x0110),
        (Feature::VolatileWriteCache, 0, 0, 0),
        (Feature::WriteAtomicity, 1, 0, 1),
        (Feature::AsynchronousEvents, 0x1f, 0, 0x1f),
    ] {
        let mut features = Features::new(SETUP);
        let default = get(&features, feature, ask).unwrap();
        set(&mut features, feature, value).unwrap();
        assert_eq!(get(&features, feature, ask), Ok(answer), "{feature:?}");
        for select in [Select::Default, Select::Saved] {
            let command = GetFeatures { select, cdw11: ask, ..GetFeatures::new(feature) };
            assert_eq!(features.get(&command).unwrap().dw0, default, "{feature:?}");
        }
        features.reset();
        assert_eq!(features, Features::new(SETUP));
    }
}

#[test]
fn every_supported_feature_can_be_read_and_no_other() {
    for (setup, cdw11) in [(SETUP, 1), (DISCOVERY, 1)] {
        let features = Features::new(setup);
        for fid in 0..=u8::MAX {
            // Bit 0 asks for the long host identifier; a threshold has no such bit.
            let known = Feature::try_from(fid).ok();
            let listed = supported(setup.kind, setup.volatile_write_cache)
                .any(|feature| Some(feature) == known);
            let command = GetFeatures { fid, cdw11, ..GetFeatures::default() };
            let value = features.get(&command);
            assert_eq!(value.is_ok(), listed, "{fid:#x}");
            match value {
                Ok(value) => {
                    let length = Features::get_length(&command) as usize;
                    assert_eq!(value.data.bytes().len(), length);
                }
                Err(status) => assert_eq!(status, Status::INVALID_FIELD.with_dnr()),
            }
            let select = Select::SupportedCapabilities;
            let asked = features.get(&GetFeatures { select, ..command });
            assert_eq!(asked.is_ok(), listed);
        }
    }
}

#[test]
fn capabilities_are_true() {
    let features = Features::new(SETUP);
    for feature in supported(ControllerType::Io, true) {
        let select = Select::SupportedCapabilities;
        let command = GetFeatures { select, ..GetFeatures::new(feature) };
        let capabilities = features.get(&command).unwrap().dw0;
        assert_eq!(capabilities & Select::SAVEABLE, 0);
        // The value that it has can be set again exactly if it says that it can be changed.
        let mut changed = features.clone();
        let dw0 = get(&features, feature, EXTENDED_HOST_IDENTIFIER).unwrap();
        let data = HostBehavior::default();
        let command = SetFeatures::new(feature, dw0);
        let result = changed.set(&command, NSID_ALL, data.as_bytes(), false);
        let changeable = capabilities & Select::CHANGEABLE != 0;
        assert_eq!(result.is_ok(), changeable, "{feature:?}");
        let of_a_namespace = changed.set(&command, 1, data.as_bytes(), false);
        let refused = Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        let specific = capabilities & Select::NAMESPACE_SPECIFIC != 0;
        assert_eq!(of_a_namespace == refused, !specific, "{feature:?}");
    }
}

#[test]
fn nothing_can_be_saved() {
    for feature in supported(ControllerType::Io, true) {
        let command = SetFeatures { save: true, ..SetFeatures::new(feature, 0) };
        let refused = Features::new(SETUP).set(&command, 0, &[], false);
        assert_eq!(refused, Err(Status::FEATURE_NOT_SAVEABLE.with_dnr()));
    }
}

#[test]
fn a_cache_that_is_off_makes_writes_durable() {
    let mut features = Features::new(SETUP);
    assert!(!features.is_write_through());
    let off = set(&mut features, Feature::VolatileWriteCache, 0).unwrap();
    assert_eq!(off.1, Effect::WriteThrough(true));
    assert!(features.is_write_through());
    let again = set(&mut features, Feature::VolatileWriteCache, 0).unwrap();
    assert_eq!(again.1, Effect::None);
    let on = set(&mut features, Feature::VolatileWriteCache, 1).unwrap();
    assert_eq!(on.1, Effect::WriteThrough(false));
    // A controller that reports no cache has nothing to turn off, and must never lose a write.
    let mut features = Features::new(FeatureSetup { volatile_write_cache: false, ..SETUP });
    assert!(features.is_write_through());
    let refused = set(&mut features, Feature::VolatileWriteCache, 1);
    assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
}

#[test]
fn queues_are_asked_for_before_they_are_made() {
    let mut features = Features::new(SETUP);
    let all = 127 | 127 << 16;
    let granted = set(&mut features, Feature::NumberOfQueues, 3 | 3 << 16);
    assert_eq!(granted, Ok((all, Effect::None)));
    assert_eq!(get(&features, Feature::NumberOfQueues, 0), Ok(all));
    for wrong in [0xffff, 0xffff_0000] {
        let refused = set(&mut features, Feature::NumberOfQueues, wrong);
        assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
    }
    let command = SetFeatures::new(Feature::NumberOfQueues, 0);
    let late = features.set(&command, 0, &[], true);
    assert_eq!(late, Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
}

#[test]
fn events_that_are_never_sent_cannot_be_asked_for() {
    let namespace = AsynchronousEvents::NAMESPACE;
    let discovery = AsynchronousEvents::DISCOVERY;
    for (setup, own, other) in [(SETUP, namespace, discovery), (DISCOVERY, discovery, namespace)] {
        let mut features = Features::new(setup);
        assert_eq!(features.events(), own);
        let set = set(&mut features, Feature::AsynchronousEvents, own.bits() | 1);
        assert_eq!(set, Ok((0, Effect::Events)));
        assert_eq!(features.events(), own | AsynchronousEvents::SPARE);
        let refused = super::tests::set(&mut features, Feature::AsynchronousEvents, other.bits());
        assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
    }
}

#[test]
fn keep_alive_is_rounded_up_to_its_granularity() {
    for (asked, kept) in [(0, 0), (1, 100), (100, 100), (4001, 4100), (u32::MAX, u32::MAX)] {
        let mut features = Features::new(FeatureSetup { keep_alive: asked, ..DISCOVERY });
        assert_eq!(features.keep_alive(), kept);
        let set = set(&mut features, Feature::KeepAlive, asked);
        assert_eq!(set, Ok((0, Effect::KeepAlive(kept))));
        assert_eq!(get(&features, Feature::KeepAlive, 0), Ok(kept));
    }
}

#[test]
fn the_host_identifier_is_the_one_of_connect() {
    let mut features = Features::new(SETUP);
    let value = features.get(&GetFeatures {
        cdw11: EXTENDED_HOST_IDENTIFIER,
        ..GetFeatures::new(Feature::HostIdentifier)
    });
    assert_eq!(value.unwrap().data.bytes(), [7; 16]);
    let short = get(&features, Feature::HostIdentifier, 0);
    assert_eq!(short, Err(Status::INVALID_FIELD.with_dnr()));
    let refused = set(&mut features, Feature::HostIdentifier, 1);
    assert_eq!(refused, Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
}

#[test]
fn host_behavior_is_checked() {
    let mut features = Features::new(SETUP);
    let command = SetFeatures::new(Feature::HostBehavior, 0);
    let good = HostBehavior { acre: 1, ..HostBehavior::default() };
    assert_eq!(features.set(&command, 0, good.as_bytes(), false), Ok((0, Effect::None)));
    assert!(features.heeds_retry_delay());
    let value = features.get(&GetFeatures::new(Feature::HostBehavior)).unwrap();
    assert_eq!(value.data.bytes(), good.as_bytes());
    for wrong in [
        HostBehavior { acre: 2, ..HostBehavior::default() },
        HostBehavior { etdas: 2, ..HostBehavior::default() },
        HostBehavior { lbafee: 1, ..HostBehavior::default() },
    ] {
        let refused = features.set(&command, 0, wrong.as_bytes(), false);
        assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
    }
    let short = features.set(&command, 0, &[0; 511], false);
    assert_eq!(short, Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr()));
    assert!(features.heeds_retry_delay());
}

proptest! {
    #[test]
    fn a_refused_set_changes_nothing(
        fid in prop_oneof![0_u8..0x20, 0x80_u8..0x88, any::<u8>()],
        cdw11 in prop_oneof![any::<u32>(), 0_u32..4],
        nsid in prop_oneof![Just(0), Just(1), Just(NSID_ALL), any::<u32>()],
        [save, io_queues, discovery]: [bool; 3],
        data in prop_oneof![Just(vec![0; 512]), prop::collection::vec(any::<u8>(), 0..20)],
    ) {
        let mut features = Features::new(if discovery { DISCOVERY } else { SETUP });
        let before = features.clone();
        let command = SetFeatures { fid, save, cdw11, ..SetFeatures::default() };
        if let Err(status) = features.set(&command, nsid, &data, io_queues) {
            prop_assert!(status.dnr());
            prop_assert_eq!(features, before);
        }
    }
}
