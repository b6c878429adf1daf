//! What the daemon says it has done is what a host says that it did.

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::provisioning::{perf, provision};
use crate::support::daemon::free_port;
use crate::support::folder;

/// The one device's figures.
fn iostat(client: &mut Client, params: &Value) -> Value {
    client.call("bdev_get_iostat", params)["bdevs"][0].clone()
}

/// Operations and bytes of a class as the daemon says.
fn counted(figures: &Value, operations: &str, bytes: &str) -> (u64, u64) {
    (figures[operations].as_u64().unwrap(), figures[bytes].as_u64().unwrap())
}

/// The same of one direction of a run of `perf`.
fn done(report: &Value, direction: &str) -> (u64, u64) {
    let direction = &report[direction];
    (direction["ios"].as_u64().unwrap(), direction["bytes"].as_u64().unwrap())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn iostat_is_what_the_host_did() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let name = json!({ "name": "ram" });
    let zero = iostat(&mut client, &name);
    let figures = zero.as_object().unwrap().iter();
    let zeroes = |value: &Value| value == 0 || value == &json!({}) || value == "ram";
    assert!(figures.clone().all(|(_, value)| zeroes(value)), "{zero}");

    let mixed = ["--rw", "randrw", "--connections", "2", "--number-ios", "2000", "--bs", "8k"];
    let report = perf(folder.path(), port, &mixed);
    let all = client.call("bdev_get_iostat", &Value::Null);
    assert_eq!(all["tick_rate"], 1_000_000_000);
    let figures = &all["bdevs"][0];
    assert_eq!(counted(figures, "num_read_ops", "bytes_read"), done(&report, "read"));
    assert_eq!(counted(figures, "num_write_ops", "bytes_written"), done(&report, "write"));
    assert_eq!(figures["io_error"], json!({}));
    // The device is part of what the host waits for.
    for direction in ["read", "write"] {
        let (sum, extreme) = (
            number(&figures[format!("{direction}_latency_ticks")]),
            number(&figures[format!("max_{direction}_latency_ticks")]),
        );
        let (ios, host) = (number(&report[direction]["ios"]), &report[direction]["latency_ns"]);
        assert!(sum > 0.0 && sum / ios <= number(&host["mean"]), "{figures} {report}");
        assert!(extreme <= number(&host["max"]) * 1.01, "{figures} {report}");
    }

    // By reactor it is the same.
    let params = json!({ "names": ["ram"], "per_channel": true });
    let channels = client.call("bdev_get_iostat", &params);
    assert_eq!(channels["name"], "ram");
    let reads = |channel: &Value| channel["num_read_ops"].as_u64().unwrap();
    let sum: u64 = channels["channels"].as_array().unwrap().iter().map(reads).sum();
    assert_eq!(sum, done(&report, "read").0);

    // Reset together with the last look at it.
    let last = iostat(&mut client, &json!({ "names": ["ram"], "reset_mode": "all" }));
    assert_eq!(&last, figures);
    assert_eq!(iostat(&mut client, &name), zero);
    let report =
        perf(folder.path(), port, &["--rw", "trim", "--size", "1MiB", "--number-ios", "64"]);
    let figures = iostat(&mut client, &name);
    assert_eq!(counted(&figures, "num_unmap_ops", "bytes_unmapped"), done(&report, "trim"));
    assert_eq!(figures["num_read_ops"], 0);
    assert_eq!(client.call("bdev_reset_iostat", &json!({ "mode": "maxmin" })), true);
    let after = iostat(&mut client, &name);
    assert_eq!(
        (&after["max_unmap_latency_ticks"], &after["num_unmap_ops"]),
        (&json!(0), &json!(64))
    );
    assert_eq!(client.call("bdev_reset_iostat", &json!({ "name": "ram" })), true);
    assert_eq!(iostat(&mut client, &name), zero);
}

#[test]
fn a_histogram_begins_when_it_is_enabled() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let name = json!({ "name": "ram" });
    let (code, text) = client.refused("bdev_get_histogram", &name);
    assert_eq!(code, -32603);
    assert!(text.contains("Bad address"), "{text}");
    let reads = ["--rw", "randread", "--number-ios", "500"];
    perf(folder.path(), port, &reads);

    let enable = json!({ "name": "ram", "enable": true, "opc": "read" });
    assert_eq!(client.call("bdev_enable_histogram", &enable), true);
    perf(folder.path(), port, &reads);
    perf(folder.path(), port, &["--rw", "randwrite", "--number-ios", "100"]);
    assert_eq!(total(&client.call("bdev_get_histogram", &name)), 500);
    let borders = json!({ "name": "ram", "borders": [0, 60_000_000] });
    let counts = client.call("bdev_get_histogram_borders", &borders);
    assert_eq!(counts, json!({ "borders_count": [0, 500, 500] }));
    let enable = json!({ "name": "ram", "enable": true, "granularity": 2, "max_nsec": 9_000_000 });
    assert_eq!(client.call("bdev_enable_histogram", &enable), true);
    let both = client.call("bdev_get_histogram", &name);
    assert_eq!(total(&both), 600);
    assert_eq!((&both["granularity"], &both["tsc_rate"]), (&json!(2), &json!(1_000_000_000)));
    let disable = json!({ "name": "ram", "enable": false });
    assert_eq!(client.call("bdev_enable_histogram", &disable), true);
    client.refused("bdev_get_histogram", &name);
    client.refused("bdev_get_histogram_borders", &borders);
}

/// The sum of a histogram's buckets, of which there are as many as it says.
fn total(histogram: &Value) -> u64 {
    use base64::Engine;
    let text = histogram["histogram"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let number = |name: &str| histogram[name].as_u64().unwrap();
    let ranges = number("max_range") - number("min_range") + 1;
    assert_eq!(bytes.len() as u64, (8 * ranges) << number("granularity"));
    bytes.chunks(8).map(|it| u64::from_le_bytes(it.try_into().unwrap())).sum()
}

#[test]
fn what_cannot_be_told_is_refused() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, free_port());
    for (method, params, code, text) in [
        ("bdev_get_iostat", json!({ "name": "none" }), -19, "No such device"),
        ("bdev_get_iostat", json!({ "names": ["ram", "none"] }), -19, "No such device"),
        ("bdev_get_iostat", json!({ "per_channel": true }), -22, "Invalid argument"),
        ("bdev_get_iostat", json!({ "reset_mode": "some" }), -32602, "Invalid parameters"),
        ("bdev_reset_iostat", json!({ "name": "none" }), -19, "No such device"),
        ("bdev_get_histogram", json!({ "name": "none" }), -19, "No such device"),
        ("bdev_enable_histogram", json!({ "name": "none", "enable": true }), -19, "No such device"),
        ("bdev_enable_histogram", json!({ "name": "ram" }), -32602, "enable"),
        (
            "bdev_get_histogram_borders",
            json!({ "name": "none", "borders": [1] }),
            -19,
            "No such device",
        ),
        ("bdev_get_histogram_borders", json!({ "name": "ram", "borders": [] }), -32602, "borders"),
        (
            "bdev_get_histogram_borders",
            json!({ "name": "ram", "borders": [2, 1] }),
            -32602,
            "borders",
        ),
        (
            "bdev_enable_histogram",
            json!({ "name": "ram", "enable": true, "opc": "fly" }),
            -32603,
            "Invalid Io type",
        ),
        (
            "bdev_enable_histogram",
            json!({ "name": "ram", "enable": true, "granularity": 11 }),
            -32602,
            "granularity",
        ),
        (
            "bdev_enable_histogram",
            json!({ "name": "ram", "enable": true, "min_nsec": 5, "max_nsec": 5 }),
            -32602,
            "min_nsec",
        ),
    ] {
        let (found, said) = client.refused(method, &params);
        assert_eq!(found, code, "{method} {params}: {said}");
        assert!(said.contains(text), "{method} {params}: {said}");
    }
}
