use target::configuration::changes;

use super::*;
use crate::objects::DeviceKind;

fn crowd(subsystems: u32, namespaces: u32) -> State {
    let mut objects = Objects::default();
    for number in 0..subsystems {
        let nqn: Nqn = format!("nqn.2026-11.io.tidegate:{number}").parse().unwrap();
        let mut subsystem = Subsystem {
            nqn: nqn.clone(),
            serial: None,
            model: None,
            allow_any_host: true,
            hosts: BTreeSet::new(),
            max_namespaces: 1024,
            min_cntlid: 1,
            max_cntlid: 100,
            ana_reporting: false,
            namespaces: BTreeMap::new(),
            listeners: BTreeMap::new(),
        };
        for nsid in 1..=namespaces {
            let name = format!("{number}-{nsid}");
            let kind = DeviceKind::Null { size: 4096, block_size: 512 };
            let limits = crate::objects::RateLimits::default();
            let device = Device { name: name.clone(), uuid: None, kind, limits };
            objects.devices.insert(name.clone(), device);
            let namespace = Namespace::over(name);
            subsystem.namespaces.insert(nsid, namespace);
        }
        objects.subsystems.insert(nqn, subsystem);
    }
    State::from(objects)
}

/// Every step is made from the one before and touches no more than it may; the last one is returned.
fn check(steps: &[Arc<Configuration>], from: &Arc<Configuration>) -> Arc<Configuration> {
    let mut before = Arc::clone(from);
    for step in steps {
        let mut touched = 0;
        for change in changes(&before, step) {
            touched += 1;
            if let target::configuration::Change::Replaced { before, after } = change {
                touched += target::configuration::changed_namespaces(before, after).count();
            }
        }
        assert!(touched <= 2 * STEP, "{touched}");
        before = Arc::clone(step);
    }
    before
}

#[test]
fn a_large_change_comes_in_small_steps_and_all_of_it_comes() {
    let (empty, nothing) = (Configuration::empty(), State::default());
    for (subsystems, namespaces) in [(1, 0), (1, 16), (1, 1024), (100, 3), (1000, 1)] {
        let state = crowd(subsystems, namespaces);
        let steps = state.steps(&nothing, &empty).unwrap();
        let objects = (subsystems * (1 + namespaces)) as usize;
        assert_eq!(steps.len(), objects.div_ceil(STEP));
        let full = check(&steps, &empty);
        let count: usize = full.subsystems().iter().map(|it| it.namespaces().len()).sum();
        assert_eq!(full.subsystems().len() + count, objects);
        let gone = check(&nothing.steps(&state, &full).unwrap(), &full);
        assert!(gone.subsystems().is_empty());
    }
}

#[test]
fn what_stands_on_a_limited_device_is_limited_with_it() {
    let device = |name: &str, base: Option<&str>, r_ios_per_sec, rw_mbytes_per_sec| {
        let limits = crate::objects::RateLimits {
            r_ios_per_sec,
            rw_mbytes_per_sec,
            ..crate::objects::RateLimits::default()
        };
        let kind = match base {
            Some(base) => DeviceKind::Error { base: base.to_owned() },
            None => DeviceKind::Null { size: 4096, block_size: 512 },
        };
        (name.to_owned(), Device { name: name.to_owned(), uuid: None, kind, limits })
    };
    let state = |ground| {
        let devices = [ground, device("m", Some("g"), 9, 0), device("t", Some("m"), 5, 3)];
        State::from(Objects { devices: devices.into(), ..Objects::default() })
    };
    let mut last = State::default();
    for (ground, top) in [((0, 0), (5, 3)), ((4, 2), (4, 2)), ((7, 9), (5, 3))] {
        let mut next = state(device("g", None, ground.0, ground.1));
        for (name, opened) in &mut next.devices {
            // As a change leaves them: the same limits, to be set otherwise.
            if let Some(old) = last.devices.get(name) {
                let limits = Arc::clone(&old.limits);
                *opened = Arc::new(Opened { limits, ..Opened::clone(opened) });
            }
        }
        next.enforce_limits(&last, 1);
        let [_, reads, _, bytes, ..] = next.devices["t"].limits.rates();
        assert_eq!((reads, bytes), (top.0, top.1 << 20));
        last = next;
    }
}

#[test]
fn what_earlier_versions_stored_is_understood() {
    let json = r#"{ "nqn": "nqn.2026-11.io.tidegate:old", "serial": null, "model": null, "allow_any_host": true,
        "max_namespaces": 32, "min_cntlid": 1, "max_cntlid": 9,
        "namespaces": { "1": { "device": "disk", "uuid": null, "nguid": null } },
        "listeners": [{ "trtype": "TCP", "traddr": "192.0.2.1", "trsvcid": 4420 }] }"#;
    let stored = [("subsystem/old".to_owned(), json.as_bytes().to_vec())];
    let (_, old) = read(&stored).unwrap().subsystems.pop_first().unwrap();
    assert_eq!(old.listeners.into_values().collect::<Vec<_>>(), [AnaStates::default()]);
    assert_eq!(old.namespaces[&1], Namespace::over("disk".to_owned()));
}

#[test]
fn what_has_not_changed_is_not_touched() {
    let state = crowd(50, 2);
    let steps = state.steps(&State::default(), &Configuration::empty()).unwrap();
    let full = steps.last().unwrap();
    let mut next = state.clone();
    let (_, first) = next.subsystems.first_key_value().unwrap();
    let mut changed = Subsystem::clone(first);
    changed.allow_any_host = false;
    next.subsystems.insert(changed.nqn.clone(), Arc::new(changed));
    let steps = next.steps(&state, full).unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(changes(full, &steps[0]).count(), 1);
}
