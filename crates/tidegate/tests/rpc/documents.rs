//! What is configured as one document: written by one daemon, loaded by another, all of it or nothing.

use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{NQN, file_config, free_port, loopback, run_json, write_config};
use crate::support::folder;

fn save(folder: &Path) -> Value {
    Client::connect(folder).call("save_config", &Value::Null)
}

/// The calls of one part of a document.
fn calls<'a>(document: &'a Value, part: &str) -> Vec<&'a str> {
    let parts = document["subsystems"].as_array().unwrap();
    let part = parts.iter().find(|it| it["subsystem"] == part).unwrap();
    part["config"].as_array().unwrap().iter().map(|call| call["method"].as_str().unwrap()).collect()
}

#[test]
fn a_document_moves_from_one_daemon_to_another() {
    let (here, there) = (folder(), folder());
    let port = free_port();
    write_config(here.path(), &file_config(port, ""));
    let daemon = start(here.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(here.path());
    let created = json!({ "name": "ram", "num_blocks": 8, "block_size": 512 });
    client.call("bdev_malloc_create", &created);
    let document = save(here.path());
    assert_eq!(calls(&document, "bdev"), ["bdev_malloc_create"]);
    assert_eq!(calls(&document, "tidegate"), ["tidegate_bdev_create"]);
    let nvmf = calls(&document, "nvmf");
    assert!(nvmf.ends_with(&["nvmf_subsystem_add_ns", "nvmf_subsystem_add_listener"]), "{nvmf:?}");
    // SPDK's client puts it together by itself.
    let parts = client.call("framework_get_subsystems", &Value::Null);
    let config = |part: &Value| {
        let name = &part["subsystem"];
        let config = client.call("framework_get_config", &json!({ "name": name }));
        json!({ "subsystem": name, "config": config })
    };
    let parts: Vec<Value> = parts.as_array().unwrap().iter().map(config).collect();
    assert_eq!(json!({ "subsystems": parts }), document);
    let described = client.call("nvmf_get_subsystems", &Value::Null);
    daemon.kill();

    let _daemon = start(there.path(), &[]);
    let mut client = Client::connect(there.path());
    assert_eq!(client.call("load_config", &document), true);
    assert_eq!(save(there.path()), document);
    assert_eq!(client.call("nvmf_get_subsystems", &Value::Null), described);
    let port = port.to_string();
    let found = run_json(there.path(), &["identify", "-s", &port, "-n", NQN]);
    assert!(found.is_object(), "{found}");
}

#[test]
fn a_document_is_loaded_whole_or_not_at_all() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let empty = save(folder.path());
    let port = free_port();
    let thief = TcpListener::bind(loopback(port)).unwrap();
    let first = json!({ "method": "bdev_null_create", "params": { "name": "a", "num_blocks": 8, "block_size": 512 } });
    let subsystem = json!({ "method": "nvmf_create_subsystem", "params": { "nqn": NQN } });
    let address = json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
    let listener = json!({ "nqn": NQN, "listen_address": address });
    let made = json!({ "file": { "path": "made.img", "block_size": null, "create_size": 4096, "made_as": "aio" } });
    for (calls, code, text) in [
        (vec![json!({ "method": "bdev_rbd_create" })], -32601, "bdev_rbd_create: Method not found"),
        (vec![json!({ "method": "save_config" })], -32601, "save_config: Method not found"),
        (vec![first.clone()], -17, "config[1], bdev_null_create: File exists"),
        (
            vec![
                json!({ "method": "bdev_aio_create", "params": { "name": "b", "filename": "missing" } }),
            ],
            -2,
            "missing",
        ),
        (
            vec![
                json!({ "method": "nvmf_create_transport", "params": { "trtype": "TCP" } }),
                subsystem.clone(),
                json!({ "method": "nvmf_subsystem_add_listener", "params": listener }),
            ],
            -32602,
            "127.0.0.1",
        ),
        (
            vec![
                subsystem.clone(),
                json!({ "method": "nvmf_subsystem_add_listener", "params": listener }),
                json!({ "method": "nvmf_create_transport", "params": { "trtype": "TCP" } }),
            ],
            -32602,
            "config[2], nvmf_subsystem_add_listener: Invalid parameters: Unable to find TCP transport",
        ),
        (
            // What the target refuses is known before a file is made.
            vec![
                json!({ "method": "tidegate_bdev_create", "params": { "name": "c", "kind": made } }),
                json!({ "method": "nvmf_create_subsystem", "params": { "nqn": NQN, "serial_number": "x".repeat(99) } }),
            ],
            -32602,
            "serial",
        ),
    ] {
        let calls = [vec![first.clone()], calls].concat();
        let document = json!({ "subsystems": [{ "subsystem": "any", "config": calls }] });
        let (found, said) = client.refused("load_config", &document);
        assert_eq!(found, code, "{said}");
        assert!(said.contains(text), "{said}");
        assert_eq!(save(folder.path()), empty);
    }
    assert!(!folder.path().join("made.img").exists());
    drop(thief);
    assert_eq!(client.refused("framework_get_config", &json!({ "name": "none" })).0, -32602);
    assert_eq!(client.call("framework_get_config", &json!({ "name": "iobuf" })), json!([]));

    // As one part alone, and kept.
    let part = json!({ "subsystem": "bdev", "config": [first] });
    assert_eq!(client.call("load_subsystem_config", &part), true);
    let saved = client.call("save_subsystem_config", &json!({ "name": "bdev" }));
    assert_eq!(saved["config"][0]["params"]["name"], "a");
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    assert_eq!(calls(&save(folder.path()), "bdev"), ["bdev_null_create"]);
}
