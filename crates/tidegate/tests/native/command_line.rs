//! The command line: what is refused how, that nothing is created then, and that what is offered is there.

mod banner;
mod controllers;
mod devices;
mod failures;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::daemon::{
    Daemon, NQN, file_config, free_port, loopback, run, run_json, write_config,
};
use crate::support::{folder, until};

/// Every file and folder below `folder`.
fn content(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(content(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        }
        found.insert(name);
    }
    found
}

/// The one line on standard error of a run that ended with this status and printed nothing else.
fn failure(what: &[&str], output: &Output, status: i32) -> String {
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{what:?}: {errors}");
    assert!(output.stdout.is_empty(), "{errors}");
    assert!(errors.starts_with("tidegate: "), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    errors.trim_end().to_owned()
}

#[test]
fn a_wrong_invocation_is_one_line_and_status_2() {
    let folder = folder();
    for (arguments, named) in [
        (&[][..], "--help"),
        (&["nonsense"], "nonsense"),
        (&["serve", "--reseed"], "--config"),
        (&["serve", "--confg", "x"], "--confg"),
        (&["serve", "--config"], "--config"),
        (&["serve", "--config", "missing.toml"], "missing.toml"),
        (&["serve", "--config", "."], "."),
        (&["devices", "bind"], "ADDRESS"),
        (&["devices", "unbind"], "ADDRESS"),
        (&["devices", "bind", "nvme0"], "0000:03:00.0"),
        (&["devices", "unbind", "03:00.0", "--i-know"], "--i-know"),
        (&["discover", "--bogus"], "--bogus"),
        (&["discover", "-s", "70000"], "70000"),
        (&["discover", "-t", "fc"], "rdma"),
        (&["discover", "-t", "rdma", "--hdr-digest"], "-t tcp only"),
        (&["discover", "-I", "no-uuid"], "no-uuid"),
        (&["discover", "-k", "5q"], "5q"),
        (&["discover", "-q", ""], "hostnqn"),
        (&["discover", "-q", "foo"], "foo"),
        (&["discover", "-s", "0"], "0"),
        (&["discover", "--timeout", "0"], "--timeout"),
        (&["discover", "--timeout", "18446744073709551615"], "--timeout"),
        (&["identify"], "--nqn"),
        (&["identify", "-n", ""], "--nqn"),
        (&["perf"], "--nqn"),
        (&["perf", "-n", NQN, "--nsid", "0"], "--nsid"),
        (&["perf", "-n", NQN, "--nsid", "4294967295"], "--nsid"),
        (&["perf", "-n", NQN, "--rw", "sideways"], "sideways"),
        (&["perf", "-n", NQN, "--bs", "4x"], "4x"),
        (&["perf", "-n", NQN, "--iodepth", "0"], "0"),
        (&["perf", "-n", NQN, "--rwmixread", "101"], "101"),
        (&["perf", "-n", NQN, "--rate", "0"], "0"),
        (&["perf", "-n", NQN, "--runtime", "soon"], "soon"),
        (&["perf", "-n", NQN, "--runtime", "0"], "--runtime"),
        (&["perf", "-n", NQN, "--runtime", "18446744073709551615"], "--runtime"),
        (&["perf", "-n", NQN, "--number-ios", "0"], "--number-ios"),
        (&["perf", "-n", NQN, "--verify", "md5"], "md5"),
        (&["perf", "-n", NQN, "--rw", "trim", "--verify"], "--verify"),
        (&["completions", "cmd"], "cmd"),
        (&["man", "missing"], "missing"),
    ] {
        let line = failure(arguments, &run(folder.path(), arguments), 2);
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
    assert_eq!(content(folder.path()), BTreeSet::new());
}

#[test]
fn help_and_version_are_no_failure() {
    let folder = folder();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "perf"],
        &["serve", "--help"],
        &["devices", "--help"],
        &["devices", "bind", "--help"],
        &["discover", "--help"],
        &["identify", "--help"],
        &["perf", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output = run(folder.path(), arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn no_target_is_a_failure_that_names_the_address_and_the_remedy() {
    let folder = folder();
    let port = free_port().to_string();
    for arguments in [
        &["discover", "-s", &port][..],
        &["identify", "-s", &port, "-n", NQN],
        &["perf", "-s", &port, "-n", NQN],
    ] {
        let line = failure(arguments, &run(folder.path(), arguments), 1);
        assert!(line.contains(&port) && line.contains("tidegate serve"), "{line}");
    }
}

/// A good configuration, of which each case spoils one thing.
const GOOD: &str = r#"
[devices.disk]
kind = "file"
path = "new/disk.img"
size = "1MiB"

[devices.more]
kind = "file"
path = "new/more.img"
size = "1MiB"

[[subsystems]]
nqn = "nqn.2026-11.io.tidegate:test"
serial = "TG-1"
hosts = ["nqn.2026-11.io.tidegate:host"]
namespaces = [
    { nsid = 1, device = "disk" },
    { nsid = 2, device = "more" },
]
listeners = [{ transport = "tcp", address = "127.0.0.1", port = 4499 }]

[transports.tcp]
max_transfer = "1MiB"
"#;

/// Where [`GOOD`] has its transports.
const RDMA: &str = "[transports.tcp]\nmax_transfer = \"1MiB\"";

/// What of [`GOOD`] is replaced by what, the line it is then on, and what the message has to name.
const REFUSED: &[(&str, &str, usize, &str)] = &[
    ("[devices.disk]", "shutdown = 1\n[devices.disk]", 2, "shutdown"),
    ("kind = \"file\"\npath = \"new/disk.img\"", "kind = \"file\"\npaht = \"x\"", 4, "paht"),
    ("\"file\"\npath = \"new/disk.img\"", "\"tape\"\npath = \"new/disk.img\"", 3, "tape"),
    ("size = \"1MiB\"\n\n[devices.more]", "size = \"1 mile\"\n\n[devices.more]", 5, "1 mile"),
    ("size = \"1MiB\"\n\n[devices.more]", "size = 1000\n\n[devices.more]", 5, "devices.disk.size"),
    ("size = \"1MiB\"\n\n[devices.more]", "\n\n[devices.more]", 4, "new/disk.img"),
    ("new/disk.img", "directory", 4, "directory"),
    ("new/more.img", "fifo", 9, "fifo"),
    ("new/more.img", "new/disk.img", 9, "new/disk.img"),
    ("new/more.img", "new/./disk.img", 9, "disk.img"),
    ("new/more.img", "tidegate.toml/x", 9, "tidegate.toml/x"),
    ("new/more.img", "directory/../new/disk.img", 9, "disk.img"),
    ("new/more.img", "missing/../new/disk.img", 9, "disk.img"),
    ("new/more.img", "", 9, "path"),
    ("new/more.img", "small", 9, "small"),
    ("size = \"1MiB\"\n\n[devices.more]", "size = \"8388608TiB\"\n\n[devices.more]", 5, "2^63"),
    ("[devices.disk]", "shutdown_timeout = \"9223372036854775807s\"\n[devices.disk]", 2, "year"),
    ("nqn.2026-11.io.tidegate:test", "nqn.2026-13.io.tidegate:test", 13, "nqn"),
    ("nqn.2026-11.io.tidegate:test", "nqn.26.io.tidegate:test", 13, "nqn"),
    ("nqn.2026-11.io.tidegate:test", "nqn.2014-08.org.nvmexpress.discovery", 13, "nqn"),
    ("nqn.2026-11.io.tidegate:host", "host", 15, "hosts"),
    ("TG-1", "TG-1-and-much-too-long", 14, "serial"),
    ("TG-1", " TG-1", 14, "serial"),
    ("{ nsid = 2, device = \"more\" }", "{ nsid = 1, device = \"more\" }", 18, "nsid"),
    ("{ nsid = 2, device = \"more\" }", "{ nsid = 0, device = \"more\" }", 18, "nsid"),
    ("{ nsid = 2, device = \"more\" }", "{ nsid = 1025, device = \"more\" }", 18, "nsid"),
    ("{ nsid = 2, device = \"more\" }", "{ nsid = 2, device = \"none\" }", 18, "none"),
    (
        "device = \"more\"",
        "device = \"more\", uuid = \"00000000-0000-0000-0000-000000000000\"",
        18,
        "UUID",
    ),
    ("127.0.0.1", "127.0.0.300", 20, "address"),
    ("127.0.0.1", "localhost", 20, "address"),
    ("127.0.0.1", "224.0.0.1", 20, "224.0.0.1"),
    ("127.0.0.1", "255.255.255.255", 20, "broadcast"),
    ("127.0.0.1", "203.0.113.9", 20, "no address of this machine"),
    ("127.0.0.1", "fe80::1", 20, "link-local"),
    ("127.0.0.1", "::ffff:127.0.0.1", 20, "IPv4"),
    ("4499 }", "4499 }, { address = \"0.0.0.0\", port = 4499 }", 20, "overlap"),
    ("4499", "70000", 20, "port"),
    ("4499", "0", 20, "port"),
    ("\"tcp\"", "\"fc\"", 20, "transport"),
    ("[transports.tcp]\n", "[transports.rdma]\n", 23, "max_transfer"),
    (RDMA, "[transports.rdma]\nqueue_depth = 31", 23, "transports.rdma.queue_depth"),
    (RDMA, "[transports.rdma]\nin_capsule_data = \"5KiB\"", 23, "power of two"),
    (RDMA, "[transports.rdma]\nshared_receives = 63", 23, "shared_receives"),
    (RDMA, "[transports.rdma]\ncompletions = 2097152", 23, "completions"),
    (RDMA, "[transports.rdma]\nprogress_timeout = \"0s\"", 23, "progress_timeout"),
    (
        "\"tcp\", address = \"127.0.0.1\", port = 4499 }]\n\n",
        "\"rdma\", address = \"192.0.2.1\" }]\n[memory]\nper_reactor = \"64MiB\"\n\
         [transports.rdma]\nshared_receives = 16384\n",
        22,
        "memory.per_reactor",
    ),
    // Their SQEs count, too: with 4 KiB each, a quarter is not enough for 4096.
    (
        "\"tcp\", address = \"127.0.0.1\", port = 4499 }]\n\n",
        "\"rdma\", address = \"192.0.2.1\" }]\n[memory]\nper_reactor = \"64MiB\"\n\
         [transports.rdma]\nshared_receives = 4096\n",
        22,
        "4032 of the 4096",
    ),
    ("max_transfer = \"1MiB\"", "max_transfer = \"1000000\"", 23, "max_transfer"),
    ("max_transfer = \"1MiB\"", "max_transfer = \"4MiB\"", 23, "max_transfer"),
    ("max_transfer = \"1MiB\"", "queue_depth = 1", 23, "queue_depth"),
    ("[transports.tcp]", "[memory]\nper_reactor = \"1MiB\"\n[transports.tcp]", 23, "per_reactor"),
    ("[transports.tcp]", "[memory]\nper_reactor = \"1TiB\"\n[transports.tcp]", 23, "per_reactor"),
    (
        "[transports.tcp]",
        "[memory]\nper_reactor = 18446744073709551615\n[transports.tcp]",
        23,
        "per_reactor",
    ),
    ("max_transfer = \"1MiB\"", "connect_timeout = \"0s\"", 23, "connect_timeout"),
    (
        "[transports.tcp]",
        "[reactors]\nidle_by_core = { 5000 = \"poll\" }\n[transports.tcp]",
        23,
        "idle_by_core.5000",
    ),
    (
        "[transports.tcp]",
        "[reactors]\nidle_by_core = { 00 = \"poll\" }\n[transports.tcp]",
        23,
        "idle_by_core.00",
    ),
    ("[transports.tcp]", "[reactors]\ncores = []\n[transports.tcp]", 23, "cores"),
    ("[transports.tcp]", "[reactors]\nidle = \"doze\"\n[transports.tcp]", 23, "idle"),
    ("[transports.tcp]", "[transports.tcp", 22, ""),
];

#[test]
fn a_refused_configuration_names_file_line_and_key_and_creates_nothing() {
    let folder = folder();
    let before = {
        fs::create_dir(folder.path().join("directory")).unwrap();
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        fs::write(folder.path().join("small"), [0; 100]).unwrap();
        write_config(folder.path(), GOOD);
        content(folder.path())
    };
    for (good, bad, line, named) in REFUSED {
        let config = GOOD.replacen(good, bad, 1);
        assert_ne!(config, GOOD, "{good}");
        write_config(folder.path(), &config);
        let start = Instant::now();
        let said = failure(&[bad], &run(folder.path(), &["serve", "--config", "tidegate.toml"]), 2);
        let place = format!("tidegate.toml:{line}: ");
        assert!(said.contains(&place) && said.contains(named), "{bad}: {place} {named}: {said}");
        assert_eq!(content(folder.path()), before, "{bad}: {said}");
        assert!(start.elapsed() < Duration::from_secs(8), "{bad}: retried: {said}");
    }
}

#[test]
fn the_good_configuration_is_good() {
    let folder = folder();
    let config = GOOD.replace("4499", &free_port().to_string());
    drop(Daemon::start(folder.path(), &config));
    assert!(folder.path().join("new/disk.img").exists());
}

#[test]
fn a_port_or_a_file_in_use_is_given_up_after_ten_seconds() {
    let (folder, other) = (folder(), self::folder());
    let (port, taken) = (free_port(), free_port());
    let _socket = TcpListener::bind(loopback(taken)).unwrap();
    let quiet = "[logging]\nlevel = \"error\"\n";
    let _holder = Daemon::start(folder.path(), &file_config(port, quiet));
    let start = Instant::now();
    let locked = Daemon::spawn(folder.path(), &file_config(free_port(), quiet));
    let in_use = Daemon::spawn(other.path(), &file_config(taken, quiet));
    for (daemon, named) in [(locked, "disk.img"), (in_use, taken.to_string().as_str())] {
        let (status, said, _) = daemon.wait();
        assert!(start.elapsed() >= Duration::from_secs(10), "{said}");
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(named) && said.contains("stop"), "{said}");
    }
}

#[test]
fn a_port_that_becomes_free_is_taken() {
    let folder = folder();
    let port = free_port();
    let socket = TcpListener::bind(loopback(port)).unwrap();
    let daemon = Daemon::spawn(folder.path(), &file_config(port, ""));
    // Devices come before listeners, so it is about to try the port.
    until("the daemon has opened its file", || {
        folder.path().join("disk.img").exists().then_some(())
    });
    drop(socket);
    daemon.banner();
}

#[test]
fn a_daemon_that_starts_while_another_ends_takes_over() {
    let folder = folder();
    let config = file_config(free_port(), "");
    let first = Daemon::start(folder.path(), &config);
    let second = Daemon::spawn(folder.path(), &config);
    until("the second one waits", || second.errors().contains("waiting").then_some(()));
    first.signal(Signal::TERM);
    let (status, said, _) = first.wait();
    assert!(status.success(), "{said}");
    second.banner();
    second.signal(Signal::TERM);
    let (status, said, _) = second.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn completions_and_manual_pages_come_out() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(folder.path(), &["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        for word in
            ["serve", "devices", "i-know", "discover", "identify", "perf", "iodepth", "hostnqn"]
        {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(run(folder.path(), &["man", "."]).status.success());
    let pages = content(folder.path());
    for name in [
        "tidegate",
        "tidegate-serve",
        "tidegate-devices",
        "tidegate-devices-bind",
        "tidegate-discover",
        "tidegate-identify",
        "tidegate-perf",
    ] {
        let page = format!("{name}.1");
        assert!(pages.contains(&page), "{pages:?}");
        let text = fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains(".SH OPTIONS"), "{text}");
    }
}

/// bash is there wherever the tests are; what the others are given is looked at.
#[test]
fn methods_are_completed() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(folder.path(), &["completions", shell]).stdout;
        fs::write(folder.path().join(shell), &script).unwrap();
        let script = String::from_utf8(script).unwrap();
        for method in ["bdev_get_iostat", "tidegate_get_statistics", "nvmf_create_subsystem"] {
            assert!(script.contains(method), "{shell}: {method}");
        }
    }
    for (words, expected) in [
        ("rpc bdev_get_b", "bdev_get_bdevs"),
        ("rpc --rpc-socket x bdev_get_b", "bdev_get_bdevs"),
        ("rpc --json rpc_", "rpc_get_methods"),
        ("top --vi", "--view"),
        ("top --view dev", "devices"),
    ] {
        let line = format!(
            "source ./bash; COMP_WORDS=(tidegate {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _tidegate tidegate \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[*]}}\""
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "--noprofile", "-c", &line]).current_dir(folder.path());
        let output = bash.output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert_eq!(found.trim(), expected, "{words}: {:?}", output.stderr);
    }
}

#[test]
fn json_says_what_is_there() {
    let folder = folder();
    let port = free_port();
    let daemon = Daemon::spawn(folder.path(), &file_config(port, ""));
    let banner = daemon.banner();
    assert_eq!(banner["subsystems"][0]["nqn"], NQN);
    assert_eq!(banner["subsystems"][0]["listeners"][0]["trsvcid"], port.to_string());
    assert_eq!(banner["subsystems"][0]["namespaces"][0]["blocks"], 64 * 256);
    assert!(banner["memory"]["bytes"].as_u64().unwrap() > 0);

    let port = port.to_string();
    let log = run_json(folder.path(), &["discover", "-s", &port]);
    let records = log["records"].as_array().unwrap();
    let offered: Vec<&Value> = records.iter().filter(|record| record["subnqn"] == NQN).collect();
    assert_eq!(offered.len(), 1, "{log}");
    assert_eq!(offered[0]["trsvcid"], port);

    let identified = run_json(folder.path(), &["identify", "-s", &port, "-n", NQN]);
    assert_eq!(identified["namespaces"][0]["size_bytes"], 64 << 20);
    assert_eq!(
        identified["namespaces"][0]["uuid"],
        banner["subsystems"][0]["namespaces"][0]["uuid"]
    );
    assert_eq!(identified["controller"]["subnqn"], NQN);

    let plot = folder.path().join("latency.svg");
    let perf =
        ["perf", "-s", &port, "-n", NQN, "--rw", "randrw", "--rate", "1000", "--runtime", "200ms"];
    let report =
        run_json(folder.path(), &[&perf[..], &["--plot", plot.to_str().unwrap()]].concat());
    for direction in ["read", "write"] {
        let percentiles = &report[direction]["latency_ns"]["percentiles"];
        assert!(percentiles["p99.99"].as_u64().unwrap() > 0, "{report}");
    }
    assert!(fs::read_to_string(plot).unwrap().contains("<svg"));
}
