//! Many clients at once that want the same names, addresses and devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Random;

use crate::client::{Client, start};
use crate::support::daemon::{free_port, loopback};
use crate::support::folder;

const CLIENTS: usize = 8;

type Answer = Result<Value, (i64, String)>;

/// The same moment for `count` clients, each of which makes the call of its number.
fn at_once(
    folder: &Path,
    count: usize,
    call: impl Fn(usize) -> (&'static str, Value) + Sync,
) -> Vec<Answer> {
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (barrier, call) = (&barrier, &call);
                scope.spawn(move || {
                    let mut client = Client::connect(folder);
                    let (method, params) = call(number);
                    barrier.wait();
                    client.try_call(method, &params).unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn nqn(number: usize) -> String {
    format!("nqn.2026-11.io.tidegate:racing-{number}")
}

fn listener(number: usize, port: u16) -> Value {
    let address = json!({ "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
    json!({ "nqn": nqn(number), "listen_address": address })
}

/// Empty subsystems `racing-0` and so on.
fn subsystems(client: &mut Client, count: usize) {
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    for number in 0..count {
        let subsystem = json!({ "nqn": nqn(number), "allow_any_host": true });
        client.call("nvmf_create_subsystem", &subsystem);
    }
}

fn successes(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.is_ok()).count()
}

#[test]
fn of_those_who_want_one_name_one_gets_it() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let device = json!({ "name": "one", "num_blocks": 8, "block_size": 512 });
    let (subsystem, transport) = (json!({ "nqn": nqn(0) }), json!({ "trtype": "TCP" }));
    for _ in 0..10 {
        for (method, params, code) in [
            ("bdev_null_create", &device, -17),
            ("bdev_null_delete", &json!({ "name": "one" }), -19),
            ("nvmf_create_subsystem", &subsystem, -32603),
            ("nvmf_delete_subsystem", &subsystem, -32602),
        ] {
            let answers = at_once(folder.path(), CLIENTS, |_| (method, params.clone()));
            assert_eq!(successes(&answers), 1, "{answers:?}");
            assert!(answers.iter().filter_map(|it| it.as_ref().err()).all(|(it, _)| *it == code));
        }
    }
    let answers = at_once(folder.path(), CLIENTS, |_| ("nvmf_create_transport", transport.clone()));
    assert_eq!(successes(&answers), 1, "{answers:?}");
}

#[test]
fn whoever_leaves_the_name_to_us_gets_one() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let device = json!({ "num_blocks": 8, "block_size": 512 });
    let answers = at_once(folder.path(), CLIENTS, |_| ("bdev_malloc_create", device.clone()));
    let names: BTreeSet<String> =
        answers.into_iter().map(|it| it.unwrap().as_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), CLIENTS, "{names:?}");
}

#[test]
fn one_address_is_shared_by_all_that_name_it_at_once() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    subsystems(&mut client, CLIENTS);
    let port = free_port();
    let add = |number| ("nvmf_subsystem_add_listener", listener(number, port));
    let answers = at_once(folder.path(), CLIENTS, add);
    assert_eq!(successes(&answers), CLIENTS, "{answers:?}");
    let port = free_port();
    let add = |_| ("nvmf_subsystem_add_listener", listener(0, port));
    let answers = at_once(folder.path(), CLIENTS, add);
    assert_eq!(successes(&answers), 1, "{answers:?}");
    for (code, text) in answers.into_iter().filter_map(Result::err) {
        assert!(code == -32602 && text.contains("already exists"), "{code} {text}");
    }
}

#[test]
fn an_address_is_listened_on_if_and_only_if_it_is_listed() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    subsystems(&mut client, 2);
    let port = free_port();
    for round in 0..150 {
        client.call("nvmf_subsystem_add_listener", &listener(0, port));
        // One gives it up while the other begins to share it.
        let method = ["nvmf_subsystem_remove_listener", "nvmf_subsystem_add_listener"];
        let answers = at_once(folder.path(), 2, |number| (method[number], listener(number, port)));
        assert_eq!(successes(&answers), 2, "{round}: {answers:?}");
        TcpStream::connect(loopback(port)).unwrap();
        // One adds while the other deletes the subsystem that would be the only one.
        client.call("nvmf_subsystem_remove_listener", &listener(1, port));
        let answers = at_once(folder.path(), 2, |number| match number {
            0 => ("nvmf_subsystem_add_listener", listener(1, port)),
            _ => ("nvmf_delete_subsystem", json!({ "nqn": nqn(1) })),
        });
        assert!(answers[1].is_ok(), "{answers:?}");
        client.call("nvmf_create_subsystem", &json!({ "nqn": nqn(1), "allow_any_host": true }));
        // Nobody names it now: whoever wants it can have it, and nothing was left behind there.
        client.call("nvmf_subsystem_add_listener", &listener(1, port));
        TcpStream::connect(loopback(port)).unwrap();
        client.call("nvmf_subsystem_remove_listener", &listener(1, port));
    }
}

/// Some call that fits what others are doing.
fn any_call(random: &mut Random) -> (&'static str, Value) {
    let device = format!("shared-{}", random.below(3));
    let nqn = nqn(random.index(2));
    match random.below(8) {
        0 | 1 => {
            let device = json!({ "name": device, "num_blocks": 8, "block_size": 512 });
            ("bdev_null_create", device)
        }
        2 => ("bdev_null_delete", json!({ "name": device })),
        3 | 4 => {
            let namespace = json!({ "bdev_name": device });
            ("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": namespace }))
        }
        5 => {
            let nsid = 1 + random.below(3);
            ("nvmf_subsystem_remove_ns", json!({ "nqn": nqn, "nsid": nsid }))
        }
        6 => ("nvmf_delete_subsystem", json!({ "nqn": nqn })),
        _ => ("nvmf_create_subsystem", json!({ "nqn": nqn })),
    }
}

/// What must hold of devices and namespaces whatever clients do.
fn check(devices: &Value, subsystems: &Value) {
    let names: Vec<&str> =
        devices.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    let mut used = BTreeMap::new();
    for subsystem in subsystems.as_array().unwrap() {
        for namespace in subsystem["namespaces"].as_array().into_iter().flatten() {
            let device = namespace["bdev_name"].as_str().unwrap();
            assert!(names.contains(&device), "{device}: {subsystems}");
            assert_eq!(used.insert(device, subsystem), None, "{device} twice: {subsystems}");
        }
    }
}

#[test]
fn races_over_devices_and_namespaces_leave_nothing_by_half() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut random = Random::new(20_261_122);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (folder, mut random) = (folder.path(), random.split());
            scope.spawn(move || {
                let mut client = Client::connect(folder);
                for _ in 0..150 {
                    let (method, params) = any_call(&mut random);
                    if let Err((code, text)) = client.try_call(method, &params).unwrap() {
                        // Refused because of what another client has done; never for an inner reason.
                        assert!(code != -32603 || method == "nvmf_create_subsystem", "{text}");
                    }
                }
            });
        }
    });
    let mut client = Client::connect(folder.path());
    let lists = ["bdev_get_bdevs", "nvmf_get_subsystems"];
    let before = lists.map(|list| client.call(list, &Value::Null));
    check(&before[0], &before[1]);
    daemon.signal(Signal::KILL);
    daemon.wait();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(lists.map(|list| client.call(list, &Value::Null)), before);
}
