//! The configuration file and the state: which of the two is served.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{Daemon, NQN, file_config, free_port, run, write_config};
use crate::support::folder;

const SERVE: [&str; 2] = ["--config", "tidegate.toml"];

fn devices(folder: &Path) -> Vec<String> {
    let listed = Client::connect(folder).call("bdev_get_bdevs", &Value::Null);
    let names = listed.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned());
    names.collect()
}

#[test]
fn a_file_seeds_an_empty_state_and_is_compared_with_a_full_one() {
    let folder = folder();
    let (port, other_port) = (free_port(), free_port());
    write_config(folder.path(), &file_config(port, ""));
    let daemon = start(folder.path(), &SERVE);
    assert_eq!(devices(folder.path()), ["disk"]);
    let mut client = Client::connect(folder.path());
    let created = json!({ "name": "ram", "num_blocks": 8, "block_size": 512 });
    client.call("bdev_malloc_create", &created);
    daemon.kill();

    // Unchanged: nothing to say.
    let daemon = start(folder.path(), &SERVE);
    assert_eq!(devices(folder.path()), ["disk", "ram"]);
    assert!(!daemon.errors().contains("--reseed"), "{}", daemon.errors());
    daemon.kill();

    // The file says something else of the subsystem: the state is served, and that is said.
    write_config(folder.path(), &file_config(other_port, ""));
    let daemon = start(folder.path(), &SERVE);
    let said = daemon.errors();
    assert!(said.contains("subsystem/") && said.contains("--reseed"), "{said}");
    assert!(!said.contains("device/"), "{said}");
    assert_eq!(devices(folder.path()), ["disk", "ram"]);
    daemon.kill();

    let daemon = start(folder.path(), &[&SERVE[..], &["--reseed"]].concat());
    assert_eq!(devices(folder.path()), ["disk"]);
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    assert_eq!(devices(folder.path()), ["disk"]);
}

#[test]
fn a_json_file_seeds_like_the_other_one() {
    let folder = folder();
    let save = |name: &str| {
        let document = Client::connect(folder.path()).call("save_config", &Value::Null);
        fs::write(folder.path().join(name), document.to_string()).unwrap();
        document
    };
    write_config(folder.path(), &file_config(free_port(), ""));
    let daemon = start(folder.path(), &SERVE);
    let document = save("first.json");
    let created = json!({ "name": "ram", "num_blocks": 8, "block_size": 512 });
    Client::connect(folder.path()).call("bdev_malloc_create", &created);
    save("second.json");
    daemon.kill();

    let afresh = ["--json", "first.json", "--reseed"];
    let daemon = start(folder.path(), &afresh);
    assert_eq!(save("again.json"), document);
    daemon.kill();
    // The state goes before the file, and the process settings are in another one.
    write_config(folder.path(), "[reactors]\nidle = \"interrupt\"\n");
    let daemon = start(folder.path(), &[&SERVE[..], &["--json", "second.json"]].concat());
    assert_eq!(devices(folder.path()), ["disk"]);
    let said = daemon.errors();
    assert!(said.contains("device/ram") && said.contains("--reseed"), "{said}");
    daemon.kill();
    let _daemon = start(folder.path(), &["--json", "second.json", "--reseed"]);
    assert_eq!(devices(folder.path()), ["disk", "ram"]);
}

#[test]
fn a_wrong_json_file_is_refused_by_place() {
    let folder = folder();
    let null = |name: &str, blocks: u64| json!({ "method": "bdev_null_create", "params": { "name": name, "num_blocks": blocks, "block_size": 512 } });
    let subsystem = json!({ "method": "nvmf_create_subsystem", "params": { "nqn": NQN, "serial_number": "x".repeat(99) } });
    let part = |calls: &[Value]| {
        json!({ "subsystems": [{ "subsystem": "bdev", "config": calls }] }).to_string()
    };
    write_config(folder.path(), &file_config(free_port(), ""));
    let both = ["--config", "tidegate.toml"];
    for (text, more, expected) in [
        (
            part(&[null("a", 8), null("a", 8)]),
            &[][..],
            "it.json: subsystem bdev, config[1], bdev_null_create: ",
        ),
        (
            part(&[json!({ "method": "bdev_rbd_create" })]),
            &[],
            "config[0], bdev_rbd_create: Method not found",
        ),
        (part(&[subsystem]), &[], "serial"),
        ("{".to_owned(), &[], "it.json: "),
        (part(&[]), &both, "tidegate.toml:2: devices.disk: "),
    ] {
        fs::write(folder.path().join("it.json"), &text).unwrap();
        let serve = ["serve", "--rpc-socket", "none", "--state", "none", "--json", "it.json"];
        let output = run(folder.path(), &[&serve[..], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{said}");
    }
    assert!(!folder.path().join("disk.img").exists());
}

#[test]
fn without_a_state_nothing_is_kept_and_that_is_said() {
    let folder = folder();
    let arguments = ["serve", "--banner", "json", "--rpc-socket", "rpc.sock", "--state", "none"];
    let daemon = Daemon::spawn_with(folder.path(), &arguments);
    daemon.banner();
    assert!(daemon.errors().contains("lost when this process ends"), "{}", daemon.errors());
    let mut client = Client::connect(folder.path());
    let created = json!({ "name": "ram", "num_blocks": 8, "block_size": 512 });
    client.call("bdev_malloc_create", &created);
    assert_eq!(devices(folder.path()), ["ram"]);
    daemon.kill();
    let _daemon = Daemon::spawn_with(folder.path(), &arguments);
    assert_eq!(devices(folder.path()), Vec::<String>::new());
}

#[test]
fn a_socket_or_a_state_in_use_is_given_up_by_name() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let spawn = |socket: &str, state: &str| {
        let own = ["serve", "--rpc-socket", socket, "--state", state];
        Daemon::spawn_with(folder.path(), &own)
    };
    let (same_socket, same_state) = (spawn("rpc.sock", "other"), spawn("other.sock", "state"));
    for (daemon, named, remedy) in
        [(same_socket, "rpc.sock", "--rpc-socket"), (same_state, "state.redb", "--state")]
    {
        let (status, said, _) = daemon.wait();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(named) && said.contains(remedy), "{said}");
    }
}
