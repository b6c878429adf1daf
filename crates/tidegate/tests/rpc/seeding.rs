//! The configuration file and the state: which of the two is served.

use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{Daemon, file_config, free_port, write_config};
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
fn without_a_state_nothing_is_kept_and_that_is_said() {
    let folder = folder();
    let arguments = ["serve", "--json", "--rpc-socket", "rpc.sock", "--state", "none"];
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
