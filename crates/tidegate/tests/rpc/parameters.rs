//! Parameters that no sane client sends, and those that sane ones do send although they say nothing.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::NQN;
use crate::support::{folder, until};

#[test]
fn what_is_wrong_is_named() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    client.call("nvmf_create_subsystem", &json!({ "nqn": NQN }));
    let disk =
        |num_blocks: Value| json!({ "name": "d", "num_blocks": num_blocks, "block_size": 512 });
    let named = |name: &str| json!({ "name": name, "num_blocks": 8, "block_size": 512 });
    let (long, longest) = ("x".repeat(1 << 20), "x".repeat(256));
    let nsid = |nsid: Value| json!({ "nqn": NQN, "namespace": { "bdev_name": "d", "nsid": nsid } });
    let port = |port: Value| {
        let address = json!({ "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port });
        json!({ "nqn": NQN, "listen_address": address })
    };
    for (method, params, text) in [
        ("bdev_null_create", disk(json!(-1)), "num_blocks"),
        ("bdev_null_create", disk(json!(8.5)), "num_blocks"),
        ("bdev_null_create", disk(json!("8")), "num_blocks"),
        ("bdev_null_create", disk(Value::Null), "num_blocks"),
        ("bdev_null_create", disk(json!([8])), "num_blocks"),
        ("bdev_null_create", disk(json!({})), "num_blocks"),
        ("bdev_null_create", disk(json!(true)), "num_blocks"),
        ("bdev_null_create", json!({ "name": "d", "block_size": 512 }), "num_blocks"),
        ("bdev_null_create", named(""), "name"),
        ("bdev_null_create", named("a\0b"), "name has a control character"),
        ("bdev_null_create", named("a\u{1b}[2Jb"), "name has a control character"),
        ("bdev_null_create", named(&longest), "name is longer"),
        ("bdev_null_create", named(&long), "name is longer"),
        ("bdev_malloc_create", named("a\nb"), "name has a control character"),
        ("bdev_aio_create", json!({ "name": "d", "filename": 5 }), "filename"),
        ("nvmf_create_subsystem", json!({ "nqn": long }), "nqn"),
        ("nvmf_create_subsystem", json!({ "nqn": [NQN] }), "nqn"),
        ("nvmf_subsystem_add_ns", nsid(json!(1_u64 << 32)), "namespace.nsid"),
        ("nvmf_subsystem_add_ns", nsid(json!("1")), "namespace.nsid"),
        ("nvmf_subsystem_add_listener", port(json!(true)), "listen_address.trsvcid"),
        ("nvmf_subsystem_add_listener", port(json!("-1")), "listen_address.trsvcid"),
        ("nvmf_subsystem_add_listener", port(json!("+4998")), "listen_address.trsvcid"),
        ("nvmf_subsystem_add_listener", port(json!("")), "listen_address.trsvcid"),
        (
            "nvmf_create_transport",
            json!({ "trtype": "TCP", "max_queue_depth": 0 }),
            "max_queue_depth",
        ),
        (
            "nvmf_create_transport",
            json!({ "trtype": "TCP", "max_queue_depth": 31 }),
            "max_queue_depth",
        ),
        ("nvmf_create_transport", json!({ "trtype": "TCP", "max_io_size": 5000 }), "max_io_size"),
        (
            "nvmf_create_transport",
            json!({ "trtype": "TCP", "in_capsule_data_size": 1 }),
            "in_capsule_data_size",
        ),
        (
            "nvmf_create_transport",
            json!({ "trtype": "TCP", "max_io_qpairs_per_ctrlr": 0 }),
            "max_io_qpairs_per_ctrlr",
        ),
    ] {
        let (code, found) = client.refused(method, &params);
        let start: String = found.chars().take(200).collect();
        assert!(code == -32602 && found.starts_with("Invalid parameters: "), "{method}: {start}");
        assert!(found.contains(text), "{method}: {start}");
    }
    let (code, found) = client.refused("bdev_get_bdevs", &json!({ "name": long }));
    assert!(code == -19 && found.starts_with("No such device"));
    // None of them has changed anything, and no transport is left that would make subsystems impossible.
    assert_eq!(client.call("bdev_get_bdevs", &Value::Null), json!([]));
    assert_eq!(client.call("nvmf_get_transports", &Value::Null), json!([]));
}

#[test]
fn a_transport_that_is_accepted_lets_every_subsystem_be() {
    for params in [
        json!({ "max_queue_depth": 32, "max_io_qpairs_per_ctrlr": 1, "max_io_size": 4096 }),
        json!({ "max_queue_depth": 65535, "max_io_qpairs_per_ctrlr": 65535 }),
        json!({ "max_io_size": 1_u32 << 31, "in_capsule_data_size": u32::MAX - 15 }),
        json!({ "in_capsule_data_size": 0 }),
    ] {
        let folder = folder();
        let _daemon = start(folder.path(), &[]);
        let mut client = Client::connect(folder.path());
        let mut transport = params.clone();
        transport["trtype"] = json!("TCP");
        client.call("nvmf_create_transport", &transport);
        client.call("nvmf_create_subsystem", &json!({ "nqn": NQN }));
    }
}

#[test]
fn what_is_empty_or_zero_asks_for_nothing() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let subsystem = json!({
        "nqn": NQN, "serial_number": "", "model_number": "", "allow_any_host": true, "max_namespaces": 0,
    });
    client.call("nvmf_create_subsystem", &subsystem);
    let zero = "00000000-0000-0000-0000-000000000000";
    for name in ["one", "two"] {
        let device = json!({ "name": name, "num_blocks": 8, "block_size": 512, "uuid": zero });
        client.call("bdev_malloc_create", &device);
        let namespace = json!({ "bdev_name": name, "nsid": 0, "uuid": zero, "nguid": zero });
        client.call("nvmf_subsystem_add_ns", &json!({ "nqn": NQN, "namespace": namespace }));
    }
    let found = client.call("nvmf_get_subsystems", &json!({ "nqn": NQN }))[0].clone();
    assert_ne!(found["serial_number"], "");
    let of = |index: usize| found["namespaces"][index]["uuid"].as_str().unwrap().to_owned();
    assert!(of(0) != zero && of(1) != zero && of(0) != of(1), "{found}");
}

#[test]
fn a_client_that_goes_in_the_middle_takes_nothing_with_it() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let socket = folder.path().join("rpc.sock");
    for number in 0..300 {
        let call = json!({
            "id": number, "method": "bdev_null_create",
            "params": { "name": format!("n{number}"), "num_blocks": 8, "block_size": 512 },
        });
        let (call, mut stream) = (call.to_string(), UnixStream::connect(&socket).unwrap());
        // Whole ones are carried out, whether or not anybody is there to hear of it.
        let length = if number % 3 == 0 { call.len() } else { number * call.len() / 300 };
        stream.write_all(&call.as_bytes()[..length]).unwrap();
    }
    let mut client = Client::connect(folder.path());
    until("all whole calls are carried out", || {
        let listed = client.call("bdev_get_bdevs", &Value::Null);
        (listed.as_array().unwrap().len() == 100).then_some(())
    });
}
