//! Tests of snapshots and of the builder.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use block::Identity;
use nvme::address::TransportType;
use nvme::{Nqn, Status};
use proptest::prelude::*;
use uuid::Uuid;

use super::test_device::TestDevice;
use super::*;

fn nqn(name: &str) -> Nqn {
    format!("nqn.2026-11.io.tidegate:{name}").parse().unwrap()
}

fn listener(id: u16, address: &str) -> Listener {
    let address: SocketAddr = address.parse().unwrap();
    let address = TransportAddress {
        trtype: TransportType::Tcp,
        traddr: address.ip(),
        trsvcid: address.port(),
    };
    Listener { id: ListenerId(id), address }
}

fn namespace(nsid: u32) -> NamespaceOptions {
    NamespaceOptions::new(nsid, TestDevice::new(&format!("disk{nsid}")).shared())
}

fn open() -> SubsystemOptions {
    SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() }
}

#[test]
fn a_change_copies_only_what_changed() {
    let mut builder = Configuration::empty().change();
    for number in 0..1000 {
        let name = nqn(&format!("{number:03}"));
        builder.add_subsystem(name.clone(), open()).unwrap();
        for nsid in 1..=8 {
            builder.add_namespace(&name, namespace(nsid)).unwrap();
        }
    }
    let before = builder.build().unwrap();
    let touched = nqn("500");
    let mut builder = before.change();
    builder.add_namespace(&touched, namespace(9)).unwrap();
    let after = builder.build().unwrap();
    for (one, other) in before.subsystems().iter().zip(after.subsystems()) {
        assert_eq!(Arc::ptr_eq(one, other), *one.nqn() != touched);
        for (one, other) in one.namespaces().iter().zip(other.namespaces()) {
            assert!(Arc::ptr_eq(one, other));
        }
    }
    let found: Vec<_> = changes(&before, &after).collect();
    let [Change::Replaced { before: one, after: other }] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(changed_namespaces(one, other).collect::<Vec<_>>(), [9]);
    // The old snapshot still says what it said.
    assert!(before.subsystem(&touched).unwrap().namespace(9).is_none());
    assert!(after.subsystem(&touched).unwrap().namespace(9).is_some());
    assert_eq!(after.version(), before.version() + 1);
    assert_eq!(after.discovery_generation(), before.discovery_generation());
}

#[test]
fn each_refusal_names_the_thing() {
    let a = nqn("a");
    let mut builder = Configuration::empty().change();
    builder.add_listener(listener(1, "192.0.2.1:4420")).unwrap();
    builder.add_subsystem(a.clone(), open()).unwrap();
    builder.add_namespace(&a, namespace(1)).unwrap();

    let mut refusals = vec![
        builder.add_subsystem(a.clone(), open()),
        builder.add_subsystem(Nqn::discovery(), open()),
        builder.remove_subsystem(&nqn("b")),
        builder.add_namespace(&nqn("b"), namespace(1)),
        builder.add_namespace(&a, namespace(1)),
        builder.add_namespace(&a, namespace(0)),
        builder.add_namespace(&a, namespace(1025)),
        builder.change_namespace(&a, namespace(2)),
        builder.remove_namespace(&a, 2),
        builder.set_namespace_state(&a, 2, NamespaceState::Waiting),
        builder.add_listener(listener(1, "192.0.2.2:4420")),
        builder.add_listener(listener(2, "192.0.2.1:4420")),
        builder.add_listener(listener(2, "[::ffff:192.0.2.1]:4420")),
        builder.add_listener(listener(2, "192.0.2.1:0")),
        builder.add_listener(listener(2, "224.0.0.1:4420")),
        builder.remove_listener(ListenerId(2)),
    ];
    for uuid in [Some(Uuid::nil()), None] {
        let nguid = uuid.is_none().then_some([0; 16]);
        refusals.push(builder.add_namespace(&a, NamespaceOptions { uuid, nguid, ..namespace(2) }));
    }
    for (block_size, blocks) in [(520, 8), (65536, 8), (4096, 0), (4096, u64::MAX), (512, 1 << 55)]
    {
        let mut device = TestDevice::new("odd");
        (device.geometry.block_size, device.geometry.blocks) = (block_size, blocks);
        refusals.push(builder.add_namespace(&a, NamespaceOptions::new(2, device.shared())));
    }
    for options in [
        SubsystemOptions { serial: Some(String::new()), ..open() },
        SubsystemOptions { serial: Some("x".repeat(21)), ..open() },
        SubsystemOptions { serial: Some(" x".to_owned()), ..open() },
        SubsystemOptions { model: "é".to_owned(), ..open() },
        SubsystemOptions { firmware: "123456789".to_owned(), ..open() },
        SubsystemOptions { controller_ids: 0..=5, ..open() },
        SubsystemOptions { controller_ids: 1..=0xffef, ..open() },
        SubsystemOptions { controller_ids: RangeInclusive::new(5, 1), ..open() },
        SubsystemOptions { limits: Limits { io_queues: 0, ..Limits::default() }, ..open() },
        SubsystemOptions { limits: Limits { queue_depth: 31, ..Limits::default() }, ..open() },
        SubsystemOptions { limits: Limits { max_transfer: 5000, ..Limits::default() }, ..open() },
        SubsystemOptions { limits: Limits { in_capsule: 8, ..Limits::default() }, ..open() },
        SubsystemOptions { limits: Limits { max_namespaces: 0, ..Limits::default() }, ..open() },
        SubsystemOptions { limits: Limits { max_namespaces: 2000, ..Limits::default() }, ..open() },
    ] {
        refusals.push(builder.add_subsystem(nqn("c"), options.clone()));
        refusals.push(builder.change_subsystem(&a, options));
    }
    for refusal in refusals {
        let message = refusal.unwrap_err().to_string();
        let named = ["tidegate:", "nvmexpress.discovery", "listener"];
        assert!(named.iter().any(|name| message.contains(name)), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    // Nothing of all that has come into effect.
    let configuration = builder.build().unwrap();
    assert_eq!(configuration.listeners(), [listener(1, "192.0.2.1:4420")]);
    let [subsystem] = configuration.subsystems() else { panic!() };
    assert_eq!(subsystem.options(), &open());
    assert_eq!(subsystem.namespaces().len(), 1);
}

#[test]
fn a_subsystem_must_not_name_a_listener_that_is_not_there() {
    let reach = Reach::from_iter([ListenerId(1), ListenerId(2)]);
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(nqn("a"), SubsystemOptions { reach, ..open() }).unwrap();
    builder.add_listener(listener(1, "192.0.2.1:4420")).unwrap();
    let mut complete = builder.clone();
    let missing =
        ConfigurationError::UnknownListenerOf { subsystem: nqn("a"), listener: ListenerId(2) };
    assert_eq!(builder.build().unwrap_err(), missing);
    complete.add_listener(listener(2, "192.0.2.2:4420")).unwrap();
    let before = complete.build().unwrap();
    let subsystem = before.subsystem(&nqn("a")).unwrap();
    assert!(subsystem.is_reachable_on(ListenerId(2)) && !subsystem.is_reachable_on(ListenerId(3)));
    let mut builder = before.change();
    builder.remove_listener(ListenerId(2)).unwrap();
    assert_eq!(builder.build().unwrap_err(), missing);
}

#[test]
fn namespaces_of_a_subsystem_have_different_names() {
    let a = nqn("a");
    let uuid = Uuid::from_u128(1);
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(a.clone(), open()).unwrap();
    builder.add_subsystem(nqn("b"), open()).unwrap();
    let named = |nsid| NamespaceOptions { uuid: Some(uuid), ..namespace(nsid) };
    builder.add_namespace(&a, named(2)).unwrap();
    let refused =
        ConfigurationError::DuplicateUuid { subsystem: a.clone(), one: 1, other: 2, uuid };
    assert_eq!(builder.add_namespace(&a, named(1)), Err(refused));
    let nguid = uuid.into_bytes();
    let same = NamespaceOptions { nguid: Some(nguid), ..namespace(3) };
    let refused =
        ConfigurationError::DuplicateNguid { subsystem: a.clone(), one: 2, other: 3, nguid };
    assert_eq!(builder.add_namespace(&a, same), Err(refused));
    // In another subsystem it may be the same disk, by another path.
    builder.add_namespace(&nqn("b"), named(1)).unwrap();
    // Replacing a namespace by itself is no duplicate.
    builder.change_namespace(&a, NamespaceOptions { read_only: true, ..named(2) }).unwrap();
}

#[test]
fn a_namespace_keeps_its_name_while_its_device_comes_and_goes() {
    let a = nqn("a");
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(a.clone(), open()).unwrap();
    builder.add_namespace(&a, NamespaceOptions::waiting(1, "disk1".to_owned())).unwrap();
    let waiting = builder.build().unwrap();
    let mut builder = waiting.change();
    let device = TestDevice::new("disk1").shared();
    builder.set_namespace_state(&a, 1, NamespaceState::Ready(Arc::clone(&device))).unwrap();
    let ready = builder.build().unwrap();
    let mut builder = ready.change();
    builder.set_namespace_state(&a, 1, NamespaceState::Removing(device)).unwrap();
    let removing = builder.build().unwrap();
    let look = |configuration: &Configuration| {
        let subsystem = configuration.subsystem(&a).unwrap();
        let namespace = Arc::clone(subsystem.namespace(1).unwrap());
        let listed = subsystem.active_after(0).count() == 1;
        (namespace.identity(), namespace.ready().err(), listed)
    };
    let identity = look(&ready).0;
    assert_eq!(look(&waiting), (identity, Some(Status::NAMESPACE_NOT_READY), true));
    assert_eq!(look(&ready), (identity, None, true));
    let gone = Status::INVALID_NAMESPACE.with_dnr();
    assert_eq!(look(&removing), (identity, Some(gone), false));
}

#[test]
fn the_medium_names_itself_unless_the_configuration_does() {
    let a = nqn("a");
    let (own, given) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut device = TestDevice::new("disk1");
    device.identity = Identity { uuid: Some(own), nguid: Some([7; 16]) };
    let device = device.shared();
    let identity = |options| {
        let mut builder = Configuration::empty().change();
        builder.add_subsystem(a.clone(), open()).unwrap();
        builder.add_namespace(&a, options).unwrap();
        let configuration = builder.build().unwrap();
        let identity = configuration.subsystem(&a).unwrap().namespace(1).unwrap().identity();
        (identity.uuid, identity.nguid)
    };
    let options = NamespaceOptions::new(1, device);
    assert_eq!(identity(options.clone()), (own, [7; 16]));
    let options = NamespaceOptions { uuid: Some(given), ..options };
    assert_eq!(identity(options), (given, given.into_bytes()));
}

#[test]
fn a_write_cache_is_reported_unless_there_is_none_for_certain() {
    let a = nqn("a");
    let mut safe = TestDevice::new("safe");
    safe.properties.volatile_write_cache = false;
    let safe = safe.shared();
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(a.clone(), open()).unwrap();
    let reported = |builder: &ConfigurationBuilder| {
        let configuration = builder.clone().build().unwrap();
        configuration.subsystem(&a).unwrap().has_volatile_write_cache()
    };
    assert!(reported(&builder));
    builder.add_namespace(&a, NamespaceOptions::new(1, safe)).unwrap();
    assert!(!reported(&builder));
    builder.add_namespace(&a, NamespaceOptions::waiting(2, "late".to_owned())).unwrap();
    assert!(reported(&builder));
}

#[test]
fn limits_are_what_identify_says_in_powers_of_two() {
    for (max_transfer, mdts) in [(4096, 0), (128 << 10, 5), (1 << 20, 8), (2 << 20, 9)] {
        assert_eq!(Limits { max_transfer, ..Limits::default() }.mdts(), mdts);
    }
}

/// One random change.
#[derive(Clone, Debug)]
enum Step {
    AddSubsystem(u8),
    RemoveSubsystem(u8),
    Admit(u8, bool),
    AddNamespace(u8, u32),
    ChangeNamespace(u8, u32),
    RemoveNamespace(u8, u32),
    AddListener(u16),
    RemoveListener(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (name, nsid, id) = (0_u8..4, 1_u32..5, 1_u16..4);
    prop_oneof![
        name.clone().prop_map(Step::AddSubsystem),
        name.clone().prop_map(Step::RemoveSubsystem),
        (name.clone(), any::<bool>()).prop_map(|(name, any)| Step::Admit(name, any)),
        (name.clone(), nsid.clone()).prop_map(|(name, nsid)| Step::AddNamespace(name, nsid)),
        (name.clone(), nsid.clone()).prop_map(|(name, nsid)| Step::ChangeNamespace(name, nsid)),
        (name, nsid).prop_map(|(name, nsid)| Step::RemoveNamespace(name, nsid)),
        id.clone().prop_map(Step::AddListener),
        id.prop_map(Step::RemoveListener),
    ]
}

/// The slow and obvious configuration: for each subsystem whether it admits any host, and for each of its
/// namespaces how often it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Oracle {
    subsystems: BTreeMap<u8, (bool, BTreeMap<u32, u32>)>,
    listeners: BTreeSet<u16>,
}

impl Oracle {
    /// Whether the step is possible.
    fn apply(&mut self, step: &Step) -> bool {
        match *step {
            Step::AddSubsystem(name) => {
                let fresh = !self.subsystems.contains_key(&name);
                self.subsystems.entry(name).or_insert((true, BTreeMap::new()));
                fresh
            }
            Step::RemoveSubsystem(name) => self.subsystems.remove(&name).is_some(),
            Step::Admit(name, any) => match self.subsystems.get_mut(&name) {
                Some(subsystem) => {
                    subsystem.0 = any;
                    true
                }
                None => false,
            },
            Step::AddNamespace(name, nsid) => match self.subsystems.get_mut(&name) {
                Some((_, all)) if !all.contains_key(&nsid) => all.insert(nsid, 0).is_none(),
                _ => false,
            },
            Step::ChangeNamespace(name, nsid) => self
                .subsystems
                .get_mut(&name)
                .and_then(|(_, all)| all.get_mut(&nsid))
                .map(|count| *count += 1)
                .is_some(),
            Step::RemoveNamespace(name, nsid) => {
                self.subsystems.get_mut(&name).is_some_and(|(_, all)| all.remove(&nsid).is_some())
            }
            Step::AddListener(id) => self.listeners.insert(id),
            Step::RemoveListener(id) => self.listeners.remove(&id),
        }
    }

    fn seen_by_discovery(&self) -> (BTreeMap<u8, bool>, &BTreeSet<u16>) {
        let admits = self.subsystems.iter().map(|(name, (any, _))| (*name, *any)).collect();
        (admits, &self.listeners)
    }
}

fn apply(builder: &mut ConfigurationBuilder, step: &Step) -> bool {
    let named = |name: u8| nqn(&name.to_string());
    let result = match *step {
        Step::AddSubsystem(name) => builder.add_subsystem(named(name), open()),
        Step::RemoveSubsystem(name) => builder.remove_subsystem(&named(name)),
        Step::Admit(name, any) => {
            let hosts = if any { Hosts::Any } else { Hosts::from_iter([]) };
            let options = SubsystemOptions { hosts, ..SubsystemOptions::default() };
            builder.change_subsystem(&named(name), options)
        }
        Step::AddNamespace(name, nsid) => builder.add_namespace(&named(name), namespace(nsid)),
        Step::ChangeNamespace(name, nsid) => {
            builder.change_namespace(&named(name), namespace(nsid))
        }
        Step::RemoveNamespace(name, nsid) => builder.remove_namespace(&named(name), nsid),
        Step::AddListener(id) => builder.add_listener(listener(id, &format!("192.0.2.{id}:4420"))),
        Step::RemoveListener(id) => builder.remove_listener(ListenerId(id)),
    };
    result.is_ok()
}

proptest! {
    #[test]
    fn changes_agree_with_an_oracle(
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..6), 1..12),
    ) {
        let mut configuration = Configuration::empty();
        let mut oracle = Oracle::default();
        for steps in rounds {
            let before = oracle.clone();
            let mut builder = configuration.change();
            for step in &steps {
                let possible = oracle.apply(step);
                prop_assert_eq!(apply(&mut builder, step), possible, "{:?}", step);
            }
            let after = builder.build().unwrap();

            let shape: BTreeMap<_, _> = after.subsystems().iter().map(|subsystem| {
                let nsids: Vec<_> = subsystem.namespaces().iter().map(|one| one.nsid()).collect();
                (subsystem.nqn().clone(), nsids)
            }).collect();
            let expected: BTreeMap<_, _> = oracle.subsystems.iter().map(|(name, (_, all))| {
                (nqn(&name.to_string()), all.keys().copied().collect::<Vec<_>>())
            }).collect();
            prop_assert_eq!(shape, expected);

            // A subsystem that no step touched is not mentioned; one that differs is.
            let mentioned: BTreeSet<_> = changes(&configuration, &after).map(|change| match change {
                Change::Added(one) | Change::Removed(one) => one.nqn().clone(),
                Change::Replaced { after, .. } => after.nqn().clone(),
            }).collect();
            for name in 0_u8..4 {
                let differs = before.subsystems.get(&name) != oracle.subsystems.get(&name);
                let touched = steps.iter().any(|step| match step {
                    Step::AddSubsystem(other) | Step::RemoveSubsystem(other) | Step::Admit(other, _)
                    | Step::AddNamespace(other, _) | Step::ChangeNamespace(other, _)
                    | Step::RemoveNamespace(other, _) => *other == name,
                    Step::AddListener(_) => false,
                    // A way into every subsystem that is reachable everywhere has gone.
                    Step::RemoveListener(_) => true,
                });
                let is_mentioned = mentioned.contains(&nqn(&name.to_string()));
                prop_assert!(!differs || is_mentioned);
                prop_assert!(touched || !is_mentioned);
            }

            let visible = before.seen_by_discovery() != oracle.seen_by_discovery();
            prop_assert_eq!(
                after.discovery_generation() - configuration.discovery_generation(),
                u64::from(visible)
            );
            configuration = after;
        }
    }
}
