//! Devices that grow: clients and hosts see it, and what happened can be asked for. And the end, when a client asks for it.

use std::fs::File;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{NQN, file_config, free_port, run_json, write_config};
use crate::support::{folder, until};

#[test]
fn hosts_see_that_a_device_has_grown() {
    let folder = folder();
    let port = free_port();
    write_config(folder.path(), &file_config(port, ""));
    let daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    let null = json!({ "name": "null", "num_blocks": 2048, "block_size": 512 });
    client.call("bdev_null_create", &null);
    let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": "null" } });
    assert_eq!(client.call("nvmf_subsystem_add_ns", &namespace), 2);

    assert_eq!(client.call("bdev_null_resize", &json!({ "name": "null", "new_size": 3 })), true);
    let disk = File::options().write(true).open(folder.path().join("disk.img")).unwrap();
    disk.set_len(128 << 20).unwrap();
    assert_eq!(client.call("bdev_uring_rescan", &json!({ "name": "disk" })), true);
    let blocks = |name: &str| {
        Client::connect(folder.path()).call("bdev_get_bdevs", &json!({ "name": name }))[0]["num_blocks"].clone()
    };
    assert_eq!((blocks("null"), blocks("disk")), (json!(6144), json!(32768)));
    let port = port.to_string();
    let at = ["-a", "127.0.0.1", "-s", &port, "-n", NQN];
    // At the first I/O beyond the old end.
    let beyond = ["perf", "--rw", "randwrite", "--size", "128MiB", "--verify", "--iodepth", "8"];
    run_json(folder.path(), &[&beyond[..], &at].concat());
    until("hosts see the new sizes", || {
        let identified = run_json(folder.path(), &[&["identify"][..], &at].concat()).to_string();
        let sizes = [(3 << 20).to_string(), (128 << 20).to_string()];
        sizes.iter().all(|size| identified.contains(size)).then_some(())
    });

    // Nothing happened: nobody is told.
    assert_eq!(client.call("bdev_uring_rescan", &json!({ "name": "disk" })), true);
    let types = client.call("notify_get_types", &Value::Null);
    assert_eq!(types, json!(["bdev_register", "bdev_unregister", "bdev_resize"]));
    client.call("bdev_null_delete", &json!({ "name": "null" }));
    let happened = client.call("notify_get_notifications", &json!({ "id": 0 }));
    let happened: Vec<_> =
        happened.as_array().unwrap().iter().map(|it| (&it["type"], &it["ctx"])).collect();
    let expected = [
        ("bdev_register", "disk"),
        ("bdev_register", "null"),
        ("bdev_resize", "null"),
        ("bdev_resize", "disk"),
        ("bdev_unregister", "null"),
    ];
    let expected = expected.map(|(kind, device)| (json!(kind), json!(device)));
    assert_eq!(happened, expected.iter().map(|(kind, device)| (kind, device)).collect::<Vec<_>>());
    let last = client.call("notify_get_notifications", &json!({ "id": 3, "max": 1 }));
    assert_eq!(last, json!([{ "type": "bdev_resize", "ctx": "disk", "id": 3 }]));

    for (method, params, code) in [
        ("bdev_aio_rescan", json!({ "name": "disk" }), -19),
        ("bdev_uring_rescan", json!({ "name": "none" }), -19),
        ("bdev_null_resize", json!({ "name": "none", "new_size": 9 }), -19),
        ("bdev_null_resize", json!({ "name": "disk", "new_size": 9 }), -32602),
        ("spdk_kill_instance", json!({ "sig_name": "SIGHUP" }), -32602),
    ] {
        assert_eq!(client.refused(method, &params).0, code, "{method} {params}");
    }
    assert_eq!(client.call("spdk_kill_instance", &json!({ "sig_name": "SIGTERM" })), true);
    let (status, said, _) = daemon.wait();
    assert!(status.success(), "{said}");
}
