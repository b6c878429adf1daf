//! `kill -9` at any moment: what was acknowledged is there, and nothing is there by half.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::Random;

use crate::client::{Client, start};
use crate::support::folder;

const CLIENTS: usize = 4;
const ROUNDS: u32 = 25;
/// Acknowledged by all clients together before the daemon is killed, at most.
const CALLS: u64 = 240;

/// What one client has been told is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    /// Devices by name, with their sizes in blocks.
    devices: BTreeMap<String, u64>,
    subsystems: BTreeMap<String, Subsystem>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Subsystem {
    any_host: bool,
    hosts: BTreeSet<String>,
    namespaces: BTreeMap<u32, String>,
}

impl Model {
    /// What the daemon says is there of this client's.
    fn read(client: &mut Client, own: &str) -> Model {
        let mut model = Model::default();
        for device in client.call("bdev_get_bdevs", &Value::Null).as_array().unwrap() {
            let name = device["name"].as_str().unwrap();
            if name.starts_with(own) {
                model.devices.insert(name.to_owned(), device["num_blocks"].as_u64().unwrap());
            }
        }
        for subsystem in client.call("nvmf_get_subsystems", &Value::Null).as_array().unwrap() {
            let nqn = subsystem["nqn"].as_str().unwrap();
            if !nqn.contains(own) {
                continue;
            }
            let list = |key: &str| subsystem[key].as_array().unwrap().clone();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let namespace =
                |it: &Value| (it["nsid"].as_u64().unwrap() as u32, text(&it["bdev_name"]));
            let found = Subsystem {
                any_host: subsystem["allow_any_host"].as_bool().unwrap(),
                hosts: list("hosts").iter().map(|host| text(&host["nqn"])).collect(),
                namespaces: list("namespaces").iter().map(namespace).collect(),
            };
            model.subsystems.insert(nqn.to_owned(), found);
        }
        model
    }

    /// Some call, its parameters, and what is there when it has been carried out.
    fn next(&self, own: &str, random: &mut Random) -> (&'static str, Value, Model) {
        let mut after = self.clone();
        let device = format!("{own}-{}", random.below(6));
        let nqn = format!("nqn.2026-11.io.tidegate:{own}-{}", random.below(4));
        let host = format!("nqn.2026-11.io.tidegate:host-{}", random.below(3));
        let blocks = 8 + random.below(8);
        let create = json!({ "name": device, "num_blocks": blocks, "block_size": 512 });
        let Some(subsystem) = after.subsystems.get_mut(&nqn) else {
            if random.below(2) == 0 {
                after.subsystems.insert(nqn.clone(), Subsystem::default());
                return ("nvmf_create_subsystem", json!({ "nqn": nqn }), after);
            }
            if after.devices.remove(&device).is_some() {
                for subsystem in after.subsystems.values_mut() {
                    subsystem.namespaces.retain(|_, used| *used != device);
                }
                return ("bdev_null_delete", json!({ "name": device }), after);
            }
            after.devices.insert(device, blocks);
            return ("bdev_null_create", create, after);
        };
        match random.below(8) {
            0 => {
                after.subsystems.remove(&nqn);
                ("nvmf_delete_subsystem", json!({ "nqn": nqn }), after)
            }
            1 => {
                subsystem.any_host = !subsystem.any_host;
                let params = json!({ "nqn": nqn, "allow_any_host": subsystem.any_host });
                ("nvmf_subsystem_allow_any_host", params, after)
            }
            2 if subsystem.hosts.remove(&host) => {
                ("nvmf_subsystem_remove_host", json!({ "nqn": nqn, "host": host }), after)
            }
            3 if !subsystem.namespaces.is_empty() => {
                let nsid = *subsystem.namespaces.keys().next().unwrap();
                subsystem.namespaces.remove(&nsid);
                ("nvmf_subsystem_remove_ns", json!({ "nqn": nqn, "nsid": nsid }), after)
            }
            4..=6 => {
                let used = |it: &Subsystem| it.namespaces.values().any(|name| *name == device);
                if let Entry::Vacant(place) = after.devices.entry(device.clone()) {
                    place.insert(blocks);
                    return ("bdev_null_create", create, after);
                }
                if after.subsystems.values().any(used) {
                    after.devices.remove(&device);
                    for subsystem in after.subsystems.values_mut() {
                        subsystem.namespaces.retain(|_, used| *used != device);
                    }
                    return ("bdev_null_delete", json!({ "name": device }), after);
                }
                let nsid = 1 + random.below(1000) as u32;
                let subsystem = after.subsystems.get_mut(&nqn).unwrap();
                if subsystem.namespaces.contains_key(&nsid) {
                    return ("nvmf_subsystem_allow_any_host", flip(&nqn, subsystem), after);
                }
                subsystem.namespaces.insert(nsid, device.clone());
                let namespace = json!({ "bdev_name": device, "nsid": nsid });
                ("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": namespace }), after)
            }
            _ => {
                subsystem.hosts.insert(host.clone());
                ("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": host }), after)
            }
        }
    }
}

fn flip(nqn: &str, subsystem: &mut Subsystem) -> Value {
    subsystem.any_host = !subsystem.any_host;
    json!({ "nqn": nqn, "allow_any_host": subsystem.any_host })
}

/// Calls until the connection ends: what was acknowledged, and what would be there if the last call had been, too.
fn mutate(
    folder: &Path,
    own: &str,
    mut random: Random,
    before: Model,
    done: &AtomicU64,
) -> Vec<Model> {
    let mut client = Client::connect(folder);
    let mut model = before;
    loop {
        let (method, params, after) = model.next(own, &mut random);
        match client.try_call(method, &params) {
            Ok(Ok(_)) => model = after,
            Ok(Err(error)) => panic!("{method} {params}: {error:?}"),
            Err(_) => return vec![model, after],
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let folder = folder();
    let mut random = Random::new(20_261_121);
    let mut possible = vec![vec![Model::default()]; CLIENTS];
    let mut total = 0;
    for round in 0..=ROUNDS {
        let daemon = start(folder.path(), &[]);
        let mut client = Client::connect(folder.path());
        let owns = (0..CLIENTS).map(|number| format!("own{number}"));
        let begun: Vec<_> = owns.map(|own| (Model::read(&mut client, &own), own)).collect();
        for ((found, own), possible) in begun.iter().zip(&possible) {
            assert!(possible.contains(found), "{round}, {own}: {found:#?}\nof {possible:#?}");
        }
        if round == ROUNDS {
            break;
        }
        let (done, until) = (AtomicU64::new(0), random.below(CALLS));
        possible = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (model, own) in begun {
                let (folder, random, done) = (folder.path(), random.split(), &done);
                threads.push(scope.spawn(move || mutate(folder, &own, random, model, done)));
            }
            while done.load(Ordering::Relaxed) < until {
                thread::park_timeout(Duration::from_micros(200));
            }
            daemon.kill();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        total += done.into_inner();
    }
    assert!(total > 1000, "too few calls to say anything: {total}");
}
