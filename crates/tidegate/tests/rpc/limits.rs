//! Limits of a device, as clients set them and hosts meet them.

use std::fs;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{Daemon, NQN, free_port, run_json};
use crate::support::folder;

fn assigned(client: &mut Client, device: &str) -> Value {
    client.call("bdev_get_bdevs", &json!({ "name": device }))[0]["assigned_rate_limits"].clone()
}

fn set(client: &mut Client, params: &Value) {
    assert_eq!(client.call("bdev_set_qos_limit", params), true);
}

const NONE: [(&str, u64); 4] = [
    ("rw_ios_per_sec", 0),
    ("rw_mbytes_per_sec", 0),
    ("r_mbytes_per_sec", 0),
    ("w_mbytes_per_sec", 0),
];

fn with(limits: &[(&str, u64)]) -> Value {
    NONE.iter().chain(limits).map(|(name, limit)| ((*name).to_owned(), json!(limit))).collect()
}

#[test]
fn limits_are_set_one_by_one_and_kept() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let ram = json!({ "name": "ram", "num_blocks": 2048, "block_size": 512 });
    client.call("bdev_malloc_create", &ram);
    assert_eq!(assigned(&mut client, "ram"), with(&[]));
    set(&mut client, &json!({ "name": "ram", "rw_ios_per_sec": 1500, "r_mbytes_per_sec": 7 }));
    set(&mut client, &json!({ "name": "ram", "w_ios_per_sec": 300, "w_mbytes_per_sec": u64::MAX }));
    let limits = [
        ("rw_ios_per_sec", 1500),
        ("r_mbytes_per_sec", 7),
        ("w_mbytes_per_sec", u64::MAX),
        ("w_ios_per_sec", 300),
    ];
    assert_eq!(assigned(&mut client, "ram"), with(&limits));
    // By its UUID, as clients name devices, too.
    let uuid = client.call("bdev_get_bdevs", &json!({ "name": "ram" }))[0]["uuid"].clone();
    set(&mut client, &json!({ "name": uuid, "r_mbytes_per_sec": 0 }));
    let limits = [("rw_ios_per_sec", 1500), ("w_mbytes_per_sec", u64::MAX), ("w_ios_per_sec", 300)];
    assert_eq!(assigned(&mut client, "ram"), with(&limits));

    let (code, text) = client.refused("bdev_set_qos_limit", &json!({ "name": "ram" }));
    assert!(code == -22 && text.contains("No rate limits specified"), "{code} {text}");
    let (code, text) =
        client.refused("bdev_set_qos_limit", &json!({ "name": "rum", "rw_ios_per_sec": 1 }));
    assert!(
        code == -19 && text.contains("No such device") && text.contains("rum"),
        "{code} {text}"
    );
    let wrong = json!({ "name": "ram", "rw_ios_per_sec": -1 });
    let (code, text) = client.refused("bdev_set_qos_limit", &wrong);
    assert!(code == -32602 && text.contains("rw_ios_per_sec"), "{code} {text}");
    assert_eq!(assigned(&mut client, "ram"), with(&limits));

    daemon.kill();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(assigned(&mut client, "ram"), with(&limits));
    // Elsewhere, from the document: what SPDK has no words for is where SPDK does not look.
    let document = client.call("save_config", &Value::Null);
    let calls = |part: &str| {
        let parts = document["subsystems"].as_array().unwrap();
        let part = parts.iter().find(|it| it["subsystem"] == part).unwrap();
        let calls = part["config"].as_array().unwrap().iter();
        calls
            .filter(|call| call["method"] == "bdev_set_qos_limit")
            .map(|call| call["params"].clone())
            .collect::<Vec<_>>()
    };
    let spdk = json!({ "name": "ram", "rw_ios_per_sec": 1500, "w_mbytes_per_sec": u64::MAX });
    assert_eq!(calls("bdev"), [spdk]);
    assert_eq!(calls("tidegate"), [json!({ "name": "ram", "w_ios_per_sec": 300 })]);
    daemon.kill();
    let elsewhere = crate::support::folder();
    let _daemon = start(elsewhere.path(), &[]);
    let mut client = Client::connect(elsewhere.path());
    client.call("load_config", &document);
    assert_eq!(assigned(&mut client, "ram"), with(&limits));
}

/// A device of a configuration file, whose limits are `limits`.
fn serve(folder: &std::path::Path, port: u16, limits: &str) -> Daemon {
    let config = format!(
        "[devices.ram]\nkind = \"ram\"\nsize = \"16MiB\"\n{limits}\n\
         [[subsystems]]\nnqn = \"{NQN}\"\nnamespaces = [{{ nsid = 1, device = \"ram\" }}]\n\
         listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
    );
    fs::write(folder.join("tidegate.toml"), config).unwrap();
    start(folder, &["--config", "tidegate.toml"])
}

#[test]
fn a_device_of_the_file_waits_for_its_file_and_has_its_limits() {
    let folder = folder();
    let port = free_port();
    let daemon =
        serve(folder.path(), port, "limits = { r_ios_per_sec = 10, w_mbytes_per_sec = 20 }");
    let mut client = Client::connect(folder.path());
    let limits = [("r_ios_per_sec", 10), ("w_mbytes_per_sec", 20)];
    assert_eq!(assigned(&mut client, "ram"), with(&limits));
    let path = folder.path().join("later");
    fs::write(&path, [0; 4096]).unwrap();
    client.call("bdev_aio_create", &json!({ "name": "late", "filename": path, "block_size": 512 }));
    daemon.kill();
    // A device that is waited for takes limits, too, and has them when it comes.
    fs::rename(&path, folder.path().join("away")).unwrap();
    let _daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    assert!(
        client.call("bdev_get_bdevs", &json!({ "name": "late" }))[0]["tidegate_waiting"]
            .is_string()
    );
    set(&mut client, &json!({ "name": "late", "rw_ios_per_sec": 5 }));
    fs::rename(folder.path().join("away"), &path).unwrap();
    crate::support::until("the device comes", || {
        let late = client.call("bdev_get_bdevs", &json!({ "name": "late" }))[0].clone();
        late["tidegate_waiting"].is_null().then_some(())
    });
    assert_eq!(assigned(&mut client, "late"), with(&[("rw_ios_per_sec", 5)]));
}

#[test]
fn hosts_get_what_the_limit_says() {
    let folder = folder();
    let port = free_port();
    let _daemon = serve(folder.path(), port, "");
    let mut client = Client::connect(folder.path());
    let at = port.to_string();
    let mut perf = |limits: Value, workload: &str| {
        set(&mut client, &limits);
        let at = ["perf", "-a", "127.0.0.1", "-s", &at, "-n", NQN];
        let workload: Vec<&str> = workload.split(' ').collect();
        let report = run_json(folder.path(), &[&at[..], &workload].concat());
        let ios = ["read", "write"].map(|way| report[way]["ios"].as_f64().unwrap_or(0.0));
        (ios[0] + ios[1]) / report["seconds"].as_f64().unwrap()
    };
    // That it gets as much is shown under a simulated clock: here others may have the processor.
    let at_most = |found: f64, limit: f64| {
        assert!(found <= limit * 1.05, "{found} instead of {limit} a second");
    };
    // So many that the first 67 ms, which come at once, are 1.4 % of them.
    let found = perf(
        json!({ "name": "ram", "rw_ios_per_sec": 4000 }),
        "--rw randrw --bs 4k --iodepth 32 --numjobs 2 --number-ios 20000",
    );
    at_most(found, 4000.0);
    let found = perf(
        json!({ "name": "ram", "rw_ios_per_sec": 0, "w_mbytes_per_sec": 20 }),
        "--rw randwrite --bs 64k --iodepth 8 --number-ios 1600",
    );
    at_most(found, 320.0);
    // Off: as fast as it can, which is more.
    let off = json!({ "name": "ram", "w_mbytes_per_sec": 0 });
    let found = perf(off, "--rw randwrite --bs 64k --iodepth 8 --number-ios 5000");
    assert!(found > 2.0 * 320.0, "{found} a second without a limit");
}

#[test]
fn a_limit_holds_for_what_stands_on_the_device() {
    let folder = folder();
    let port = free_port();
    let _daemon = serve(folder.path(), port, "");
    let mut client = Client::connect(folder.path());
    client.call(
        "bdev_malloc_create",
        &json!({ "name": "base", "num_blocks": 4096, "block_size": 4096 }),
    );
    client.call("bdev_error_create", &json!({ "base_name": "base" }));
    let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": "EE_base" } });
    let nsid = client.call("nvmf_subsystem_add_ns", &namespace).to_string();
    set(&mut client, &json!({ "name": "base", "rw_ios_per_sec": 2000 }));
    let at = port.to_string();
    let perf = ["perf", "-a", "127.0.0.1", "-s", &at, "-n", NQN, "--nsid", &nsid];
    let workload = ["--rw", "randread", "--iodepth", "8", "--number-ios", "4000"];
    let report = run_json(folder.path(), &[&perf[..], &workload].concat());
    let found = 4000.0 / report["seconds"].as_f64().unwrap();
    assert!(found <= 2000.0 * 1.05, "{found} a second");
    assert_eq!(assigned(&mut client, "EE_base"), with(&[]), "what is assigned is its own");
}
