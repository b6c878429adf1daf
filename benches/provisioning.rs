//! What provisioning costs the hosts that are being served, and how long each call takes.
//!
//! A daemon with its state on disk serves one RAM device to `tidegate perf`, which runs at a fixed rate, open loop, so
//! that a delay counts for every I/O that it holds up. Slices of equal length alternate: in one nobody calls, in the
//! next a client creates subsystems, each with a device, a namespace and a listener, until there are as many as asked
//! for; then it lists them; then it deletes them. Reported are the times of the calls by method, and the latencies
//! of the slices with calls beside those without. Nothing here is asserted: times are no test on shared machines.
//!
//!     cargo bench -p tidegate --bench provisioning -- --subsystems 1000 --rate 5000
//!
//! One client thread and `perf` as a process of its own: with the daemon's control thread three want to run besides its
//! reactors, of which there are as many as cores, up to four.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]
#![allow(missing_docs, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use client::Client;
use support::daemon::{Daemon, NQN, free_port, tidegate};

#[allow(dead_code)]
#[path = "../crates/tidegate/tests/rpc/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../crates/tidegate/tests/native/support/mod.rs"]
mod support;

/// The percentiles compared, by the names they have in perf's report.
const PERCENTILES: [&str; 3] = ["p50", "p99", "p99.9"];

#[derive(Debug, Parser)]
struct Options {
    /// Subsystems to create, with a namespace and a listener each.
    #[arg(long, default_value_t = 1000)]
    subsystems: usize,
    /// Times that all of them are listed.
    #[arg(long, default_value_t = 50)]
    lists: usize,
    /// I/Os per second that perf begins.
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    /// Seconds of a slice.
    #[arg(long, default_value_t = 1)]
    slice: u64,
    /// Also write all that was measured here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One call that is still to be made.
struct Call {
    method: &'static str,
    params: Value,
}

fn main() {
    let options = Options::parse();
    let folder = support::folder();
    let port = free_port();
    let daemon = start(folder.path(), port);
    let mut client = Client::connect(folder.path());
    let mut calls = calls(&options, port).into_iter().peekable();
    let mut times = BTreeMap::new();
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    while calls.peek().is_some() {
        quiet.push(slice(folder.path(), port, &options, || false));
        busy.push(slice(folder.path(), port, &options, || {
            let Some(call) = calls.next() else { return false };
            let begun = Instant::now();
            client.call(call.method, &call.params);
            let histogram: &mut Histogram<u64> =
                times.entry(call.method).or_insert_with(|| Histogram::new(3).unwrap());
            histogram.record(begun.elapsed().as_micros().try_into().unwrap()).unwrap();
            true
        }));
    }
    drop(daemon);
    print_calls(&times);
    print_slices(&quiet, &busy);
    if let Some(path) = &options.json {
        let calls: BTreeMap<_, _> =
            times.iter().map(|(method, times)| (method, row(times))).collect();
        let all = json!({ "calls_us": calls, "quiet": quiet, "busy": busy });
        fs::write(path, all.to_string()).unwrap();
    }
}

fn start(folder: &Path, port: u16) -> Daemon {
    let config = format!(
        "[devices.ram]\nkind = \"ram\"\nsize = \"64MiB\"\nblock_size = 4096\n\
         [[subsystems]]\nnqn = \"{NQN}\"\nnamespaces = [{{ nsid = 1, device = \"ram\" }}]\n\
         listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
    );
    let path = support::daemon::write_config(folder, &config);
    client::start(folder, &["--config", path.to_str().unwrap()])
}

/// All that the client does, in order.
fn calls(options: &Options, port: u16) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut add = |method, params| calls.push(Call { method, params });
    let names: Vec<_> =
        (0..options.subsystems).map(|n| (format!("null{n}"), format!("{NQN}-{n}"))).collect();
    for (device, nqn) in &names {
        add(
            "bdev_null_create",
            json!({ "name": device, "num_blocks": 262_144, "block_size": 4096 }),
        );
        add("nvmf_create_subsystem", json!({ "nqn": nqn, "allow_any_host": true }));
        add("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": { "bdev_name": device } }));
        add(
            "nvmf_subsystem_add_listener",
            json!({ "nqn": nqn, "listen_address":
                { "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() } }),
        );
    }
    for _ in 0..options.lists {
        add("nvmf_get_subsystems", Value::Null);
        add("bdev_get_bdevs", Value::Null);
    }
    for (device, nqn) in &names {
        add("nvmf_delete_subsystem", json!({ "nqn": nqn }));
        add("bdev_null_delete", json!({ "name": device }));
    }
    calls
}

/// Runs perf for one slice and calls until it ends or `call` has nothing left; what perf reports.
fn slice(folder: &Path, port: u16, options: &Options, mut call: impl FnMut() -> bool) -> Value {
    let mut perf = spawn_perf(folder, port, options);
    // Connecting is not measured: perf counts from its first I/O.
    let begun = Instant::now();
    let end = begun + Duration::from_secs(options.slice);
    while Instant::now() < end && call() {}
    let status = perf.wait().unwrap();
    let report = fs::read(folder.join("perf.json")).unwrap();
    assert!(status.success(), "perf: {}", String::from_utf8_lossy(&report));
    serde_json::from_slice(&report).unwrap()
}

fn spawn_perf(folder: &Path, port: u16, options: &Options) -> Child {
    let (port, rate, slice) =
        (port.to_string(), options.rate.to_string(), options.slice.to_string());
    let mut perf = tidegate(folder);
    perf.args(["perf", "--json", "-n", NQN, "-s", &port, "--rate", &rate, "--runtime", &slice]);
    perf.args(["--rw", "randread", "--bs", "4k", "--iodepth", "32"]);
    perf.stdout(fs::File::create(folder.join("perf.json")).unwrap()).stderr(Stdio::inherit());
    perf.spawn().unwrap()
}

/// Microseconds: median, 99th percentile, longest.
fn row(times: &Histogram<u64>) -> [u64; 3] {
    [times.value_at_quantile(0.5), times.value_at_quantile(0.99), times.max()]
}

fn print_calls(times: &BTreeMap<&str, Histogram<u64>>) {
    println!("{:<32} {:>7} {:>10} {:>10} {:>10}", "call", "times", "p50 us", "p99 us", "max us");
    for (method, times) in times {
        let [median, high, longest] = row(times);
        println!("{method:<32} {:>7} {median:>10} {high:>10} {longest:>10}", times.len());
    }
}

/// The latencies of both kinds of slice: the median over the slices, and the median of the ratios of neighbours.
fn print_slices(quiet: &[Value], busy: &[Value]) {
    println!("\n{} pairs of slices", quiet.len());
    println!("{:<12} {:>12} {:>12} {:>8}", "latency", "without us", "with us", "ratio");
    for percentile in PERCENTILES {
        let of = |slices: &[Value]| -> Vec<f64> {
            slices.iter().map(|report| latency(report, percentile)).collect()
        };
        let (without, with) = (of(quiet), of(busy));
        let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
        let (without, with, ratio) = (median(without), median(with), median(ratios));
        println!("{percentile:<12} {without:>12.1} {with:>12.1} {ratio:>8.2}");
    }
}

/// Microseconds.
fn latency(report: &Value, percentile: &str) -> f64 {
    report["read"]["latency_ns"]["percentiles"][percentile].as_f64().unwrap() / 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
