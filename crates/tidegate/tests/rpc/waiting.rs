//! What is not there when the daemon comes back: the rest serves, and it comes up when it can.

use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{file_config, free_port, loopback, run, write_config};
use crate::support::{folder, until};

#[test]
fn a_missing_file_is_waited_for_and_never_made_again() {
    let folder = folder();
    let port = free_port();
    write_config(folder.path(), &file_config(port, ""));
    start(folder.path(), &["--config", "tidegate.toml"]).kill();
    let (disk, elsewhere) = (folder.path().join("disk.img"), folder.path().join("elsewhere.img"));
    fs::rename(&disk, &elsewhere).unwrap();

    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let mut device = || client.call("bdev_get_bdevs", &json!({ "name": "disk" }))[0].clone();
    let waiting = device();
    assert!(waiting["tidegate_waiting"].as_str().unwrap().contains("disk.img"), "{waiting}");
    // The subsystem is served all the same.
    let port = port.to_string();
    assert!(run(folder.path(), &["discover", "-s", &port]).status.success());
    assert!(!disk.exists(), "an empty file in the place of a missing one is data lost");

    fs::rename(&elsewhere, &disk).unwrap();
    until("the device comes up", || device().get("tidegate_waiting").is_none().then_some(()));
    assert_eq!(device()["num_blocks"], 16384);
}

#[test]
fn an_address_in_use_is_waited_for() {
    let folder = folder();
    let port = free_port();
    write_config(folder.path(), &file_config(port, ""));
    start(folder.path(), &["--config", "tidegate.toml"]).kill();

    let thief = TcpListener::bind(loopback(port)).unwrap();
    // Serves after it has waited for the address: an earlier daemon might have had it.
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let listeners = json!({ "nqn": crate::support::daemon::NQN });
    let mut waits = || {
        let listed = client.call("nvmf_subsystem_get_listeners", &listeners);
        listed[0].get("tidegate_waiting").cloned()
    };
    assert_eq!(waits(), Some(Value::Bool(true)));
    drop(thief);
    until("it listens", || waits().is_none().then_some(()));
    assert!(run(folder.path(), &["discover", "-s", &port.to_string()]).status.success());
}
