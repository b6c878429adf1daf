//! A volume from its creation to its end, seen by the client and by a host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{NQN, free_port, loopback, run, run_json};
use crate::support::{connect, folder, options};

/// A RAM disk of 16 MiB, exported on this port.
pub(crate) fn provision(client: &mut Client, port: u16) {
    let created = client.call(
        "bdev_malloc_create",
        &json!({ "name": "ram", "num_blocks": 4096, "block_size": 4096 }),
    );
    assert_eq!(created, "ram");
    assert_eq!(client.call("nvmf_create_transport", &json!({ "trtype": "TCP" })), true);
    let subsystem = json!({ "nqn": NQN, "allow_any_host": true });
    assert_eq!(client.call("nvmf_create_subsystem", &subsystem), true);
    let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": "ram" } });
    assert_eq!(client.call("nvmf_subsystem_add_ns", &namespace), 1);
    assert_eq!(client.call("nvmf_subsystem_add_listener", &listener(port)), true);
}

fn listener(port: u16) -> Value {
    let address = json!({ "trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
    json!({ "nqn": NQN, "listen_address": address })
}

pub(crate) fn perf(folder: &Path, port: u16, more: &[&str]) -> Value {
    let port = port.to_string();
    let own = ["perf", "-a", "127.0.0.1", "-s", &port, "-n", NQN, "--iodepth", "8"];
    run_json(folder, &[&own[..], more].concat())
}

#[test]
fn a_volume_is_made_used_kept_and_removed() {
    let folder = folder();
    let port = free_port();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let verified = ["--rw", "randwrite", "--size", "8MiB", "--verify"];
    perf(folder.path(), port, &verified);
    let subsystems = client.call("nvmf_get_subsystems", &Value::Null);
    daemon.signal(Signal::TERM);
    let (status, said, _) = daemon.wait();
    assert!(status.success(), "{said}");
    assert!(!folder.path().join("rpc.sock").exists());
    let mode = fs::metadata(folder.path().join("state/state.redb")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "what is configured is nobody else's to read");

    // The memory is new, but everything else is as it was.
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("nvmf_get_subsystems", &Value::Null), subsystems);
    perf(folder.path(), port, &["--rw", "randread", "--runtime", "50ms"]);
    assert_eq!(client.call("nvmf_subsystem_remove_listener", &listener(port)), true);
    let port = port.to_string();
    let refused = run(folder.path(), &["discover", "-s", &port]);
    assert!(!refused.status.success());
    assert_eq!(client.call("nvmf_delete_subsystem", &json!({ "nqn": NQN })), true);
    assert_eq!(client.call("bdev_malloc_delete", &json!({ "name": "ram" })), true);
    assert_eq!(client.call("bdev_get_bdevs", &Value::Null), json!([]));
    assert_eq!(client.call("nvmf_get_subsystems", &Value::Null).as_array().unwrap().len(), 1);
}

#[test]
fn errors_say_what_clients_look_for_and_what_was_wrong() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, free_port());
    let missing = json!({ "filename": "missing", "name": "it", "block_size": 512 });
    for (method, params, code, texts) in [
        ("bdev_get_bdevs", json!({ "name": "none" }), -19, &["No such device", "none"][..]),
        ("bdev_malloc_delete", json!({ "name": "none" }), -19, &["No such device", "none"]),
        ("bdev_null_delete", json!({ "name": "ram" }), -19, &["No such device", "ram"]),
        (
            "bdev_malloc_create",
            json!({ "name": "vast", "num_blocks": 1_u64 << 50, "block_size": 4096 }),
            -12,
            &["Cannot allocate memory", "vast"],
        ),
        ("bdev_aio_create", missing, -2, &["No such file or directory", "missing"]),
        (
            "bdev_null_create",
            json!({ "name": "ram", "num_blocks": 8, "block_size": 512 }),
            -17,
            &["File exists", "ram"],
        ),
        (
            "bdev_malloc_create",
            json!({ "num_blocks": 8, "block_size": 500 }),
            -32602,
            &["Invalid parameters", "500"],
        ),
        (
            "bdev_malloc_create",
            json!({ "num_blocks": 8, "block_size": 512, "colour": 1 }),
            -32602,
            &["Invalid parameters", "colour"],
        ),
        (
            "bdev_malloc_create",
            json!({ "num_blocks": u64::MAX, "block_size": 512 }),
            -32602,
            &["Invalid parameters", "num_blocks"],
        ),
        ("nvmf_create_transport", json!({ "trtype": "TCP" }), -32603, &["already exists"]),
        (
            "nvmf_create_transport",
            json!({ "trtype": "FC" }),
            -32602,
            &["Invalid parameters", "trtype", "FC"],
        ),
        (
            "nvmf_create_subsystem",
            json!({ "nqn": NQN }),
            -32603,
            &["Unable to create subsystem", NQN],
        ),
        ("nvmf_create_subsystem", json!({ "nqn": "x" }), -32602, &["Invalid parameters", "nqn"]),
        (
            "nvmf_delete_subsystem",
            json!({ "nqn": "nqn.2026-11.a:b" }),
            -32602,
            &["Invalid parameters"],
        ),
        ("nvmf_get_subsystems", json!({ "nqn": "nqn.2026-11.a:b" }), -19, &["No such device"]),
        (
            "nvmf_subsystem_get_listeners",
            json!({ "nqn": "nqn.2026-11.a:b" }),
            -32602,
            &["Invalid parameters"],
        ),
        (
            "nvmf_subsystem_add_ns",
            json!({ "nqn": NQN, "namespace": { "bdev_name": "none" } }),
            -32602,
            &["Invalid parameters", "none"],
        ),
        (
            "nvmf_subsystem_remove_ns",
            json!({ "nqn": NQN, "nsid": 7 }),
            -32602,
            &["Invalid parameters", "nsid", "7"],
        ),
        (
            "nvmf_subsystem_remove_host",
            json!({ "nqn": NQN, "host": "nqn.2026-11.a:b" }),
            -32602,
            &["Invalid parameters", "host"],
        ),
        ("nvmf_nonsense", Value::Null, -32601, &["Method not found"]),
    ] {
        let (found, text) = client.refused(method, &params);
        assert_eq!(found, code, "{method} {params}: {text}");
        for expected in texts {
            assert!(text.contains(expected), "{method} {params}: {text}");
        }
    }
    // None of them has changed anything.
    assert_eq!(client.call("bdev_get_bdevs", &Value::Null).as_array().unwrap().len(), 1);
}

/// Whether or not a host is connected: the file of a device that has been deleted can be used again at once.
#[test]
fn a_deleted_device_is_let_go_of() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    std::fs::File::create(folder.path().join("disk.img")).unwrap().set_len(1 << 20).unwrap();
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    let device = json!({ "name": "disk", "filename": "disk.img", "block_size": 4096 });
    let (name, nqn) = (json!({ "name": "disk" }), json!({ "nqn": NQN }));
    let port = free_port();
    for connected in [false, true, false, true] {
        client.call("bdev_aio_create", &device);
        client.call("nvmf_create_subsystem", &json!({ "nqn": NQN, "allow_any_host": true }));
        let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": "disk" } });
        client.call("nvmf_subsystem_add_ns", &namespace);
        client.call("nvmf_subsystem_add_listener", &listener(port));
        let host = connected.then(|| connect(options(loopback(port), NQN, "host"), 2, 8, 4096));
        client.call("nvmf_delete_subsystem", &nqn);
        client.call("bdev_aio_delete", &name);
        client.call("bdev_aio_create", &device);
        client.call("bdev_aio_delete", &name);
        drop(host);
    }
}
