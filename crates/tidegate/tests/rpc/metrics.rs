//! What `/metrics` serves, what its documentation lists and what the dashboard asks for are the same.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::client::{Client, start};
use crate::provisioning::{perf, provision};
use crate::support::daemon::{free_port, loopback};
use crate::support::{PATIENCE, folder};

const SECRET: &str = "somebody:something";

fn document(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    fs::read_to_string(docs.join(name)).unwrap()
}

/// The daemon's page.
fn scrape(port: u16) -> String {
    let mut stream = TcpStream::connect(loopback(port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let known = STANDARD.encode(SECRET);
    let ask = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {known}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    page
}

/// The names of all families, a counter's with its suffix.
fn families(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect()
}

/// The first column of the tables.
fn documented() -> BTreeSet<String> {
    let text = document("metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split_once('`').unwrap().0.to_owned()).collect()
}

/// The sum of all samples of this name with these labels.
fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = page.lines().filter_map(|line| line.rsplit_once(' '));
    samples
        .filter(|(what, _)| what.split('{').next() == Some(name))
        .filter(|(what, _)| labels.iter().all(|label| what.contains(label)))
        .map(|(_, value)| value.parse::<f64>().unwrap())
        .sum()
}

/// A daemon with the page, and its port.
fn daemon(folder: &Path) -> (crate::support::daemon::Daemon, u16) {
    let port = free_port();
    let secret: PathBuf = folder.join("secret");
    fs::write(&secret, SECRET).unwrap();
    let config = format!("[rpc.http]\nport = {port}\ncredentials = \"{}\"\n", secret.display());
    fs::write(folder.join("tidegate.toml"), config).unwrap();
    (start(folder, &["--config", "tidegate.toml"]), port)
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_served() {
    let folder = folder();
    let (_daemon, http) = daemon(folder.path());
    let (served, documented) = (families(&scrape(http)), documented());
    let missing =
        |one: &BTreeSet<String>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(missing(&served, &documented), Vec::<String>::new(), "served, not documented");
    assert_eq!(missing(&documented, &served), Vec::<String>::new(), "documented, not served");
    assert!(served.len() > 50);
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    fn expressions(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    match value.as_str() {
                        Some(text) if key == "expr" || key == "query" => {
                            found.push(text.to_owned());
                        }
                        _ => expressions(value, found),
                    }
                }
            }
            Value::Array(array) => array.iter().for_each(|value| expressions(value, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&document("grafana/tidegate.json")).unwrap();
    let (mut found, documented) = (Vec::new(), documented());
    expressions(&dashboard, &mut found);
    let mut names = 0;
    for expression in found {
        let words = expression.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
        for word in words.filter(|word| word.starts_with("tidegate_")) {
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| word.strip_suffix(suffix))
                .any(|name| name.ends_with("_seconds") && documented.contains(name));
            assert!(of_histogram || documented.contains(word), "{word} in {expression}");
            names += 1;
        }
    }
    assert!(names > 30);
}

#[test]
fn the_page_says_what_the_host_did() {
    let folder = folder();
    let (_daemon, http) = daemon(folder.path());
    let port = free_port();
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    perf(folder.path(), port, &["--rw", "randread", "--number-ios", "1000", "--bs", "8k"]);
    let page = scrape(http);
    let reads = ["device=\"ram\"", "operation=\"read\""];
    for (name, value) in [
        ("tidegate_device_operations_total", 1000.0),
        ("tidegate_device_bytes_total", 8_192_000.0),
        ("tidegate_device_latency_seconds_count", 1000.0),
    ] {
        assert!((sum(&page, name, &reads) - value).abs() < 0.5, "{name}: {page}");
    }
    let all = ["device=\"ram\"", "operation=\"read\"", "le=\"+Inf\""];
    assert!((sum(&page, "tidegate_device_latency_seconds_bucket", &all) - 1000.0).abs() < 0.5);
    assert!(sum(&page, "tidegate_device_latency_seconds_sum", &reads) > 0.0);
    // Buckets are cumulative.
    let buckets =
        page.lines().filter(|line| line.starts_with("tidegate_device_latency_seconds_bucket"));
    let counts: Vec<f64> =
        buckets.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
    assert!(counts.len() > 20 && counts.is_sorted());
    // Every reactor's time is somewhere.
    for kind in ["busy", "idle"] {
        assert!(sum(&page, &format!("tidegate_reactor_{kind}_seconds_total"), &[]) > 0.0, "{page}");
    }
    assert!(sum(&page, "tidegate_device_errors_total", &[]) < 0.5);
    assert!((sum(&page, "tidegate_device_up", &[]) - 1.0).abs() < 0.5);
    // The device lent its own memory: nobody wrote there.
    let stats = client.call("nvmf_get_stats", &Value::Null);
    let groups = stats["poll_groups"].as_array().unwrap();
    for (name, value) in [("lent_reads", 1000_u32), ("not_lent_reads", 0), ("given_back_reads", 0)]
    {
        let counted = sum(&page, &format!("tidegate_{name}_total"), &[]);
        assert!((counted - f64::from(value)).abs() < 0.5, "{name}: {page}");
        let name = format!("tidegate_{name}");
        let counted: u64 = groups.iter().map(|group| group[&name].as_u64().unwrap()).sum();
        assert_eq!(counted, u64::from(value), "{name}: {stats}");
    }
}
