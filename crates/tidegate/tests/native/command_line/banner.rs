//! What `serve` prints and the README says to type: that it is true and works as it stands.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::daemon::{ALONE, Daemon, free_port, run, run_json, write_config};
use crate::support::folder;

/// A file of the repository.
fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn every_example_configuration_starts_and_does_what_it_prints() {
    let mut count = 0;
    for entry in fs::read_dir(repository("target-config")).unwrap() {
        let folder = folder();
        let mut config = fs::read_to_string(entry.unwrap().path()).unwrap();
        for port in ["4420", "4421"] {
            // As is, unless something on this machine has the port.
            if TcpListener::bind(("0.0.0.0", port.parse().unwrap())).is_err() {
                config =
                    config.replace(&format!("port = {port}"), &format!("port = {}", free_port()));
            }
        }
        // Whatever is at that address, it is no controller that the tests may take.
        let config = config.replace("0000:03:00.0", "fffe:00:1f.7");
        write_config(folder.path(), &config);
        let daemon = serve(folder.path());
        count += 1;
        if config.contains("[controllers.") {
            let (status, said, _) = daemon.wait();
            assert!(!status.success() && said.contains("fffe:00:1f.7"), "{said}");
            continue;
        }
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| line.contains("nvme list")) {
            lines.push(daemon.line());
        }
        // The line to try next, as it was printed, but for its duration.
        let program = concat!(env!("CARGO_BIN_EXE_tidegate"), " ");
        let line = lines.iter().find_map(|line| line.trim().strip_prefix(program)).unwrap();
        let line = line.replace("--runtime 10s", "--runtime 50ms");
        let arguments: Vec<_> = line.split_whitespace().collect();
        let report = run_json(folder.path(), &arguments);
        assert!(report["read"]["ios"].as_u64().unwrap() > 0, "{report}");
        daemon.signal(Signal::INT);
        let (status, said, _) = daemon.wait();
        assert!(status.success(), "{said}");
    }
    assert!(count >= 3, "the examples have gone");
}

/// A daemon with the folder's configuration, as it is but for what the machine has one of.
fn serve(folder: &Path) -> Daemon {
    let own = ["--rpc-socket", "rpc.sock", "--state", "state"];
    Daemon::spawn_with(folder, &[&["serve", "--config", "tidegate.toml"][..], &own].concat())
}

/// What `serve` prints for these subsystems, of which each line is its NQN's last part and what else it has.
fn banner(subsystems: &[(&str, &str)]) -> Vec<String> {
    let folder = folder();
    let port = free_port();
    let subsystems = subsystems.iter().map(|(name, more)| {
        format!(
            "[[subsystems]]\nnqn = \"nqn.2026-11.io.tidegate:{name}\"\n{more}\n\
             listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
        )
    });
    let subsystems: Vec<_> = subsystems.collect();
    let config = "[logging]\nlevel = \"error\"\n[devices.ram]\nkind = \"ram\"\nsize = \"1MiB\"\n";
    let config = config.to_owned() + &subsystems.concat();
    write_config(folder.path(), &config);
    let daemon = serve(folder.path());
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains("memory for data")) {
        lines.push(daemon.line());
    }
    daemon.signal(Signal::TERM);
    lines.extend(daemon.rest());
    lines
}

#[test]
fn what_to_try_next_can_be_had_and_by_whom() {
    let namespace = "namespaces = [{ nsid = 3, device = \"ram\" }]";
    // Of these, the last is the first that somebody can use.
    let lines = banner(&[
        ("empty", ""),
        ("nobodys", &format!("hosts = []\n{}", namespace.replace("= 3", "= 2"))),
        ("good", &format!("hosts = [\"nqn.2026-11.io.tidegate:host\"]\n{namespace}")),
    ]);
    let line = |what| lines.iter().find(|line| line.contains(what)).unwrap();
    let perf = line(" perf ");
    for named in [":good", "-q nqn.2026-11.io.tidegate:host", "--nsid 3"] {
        assert!(perf.contains(named), "{perf}");
    }
    let connect = line("nvme connect");
    for named in [":good", "--hostnqn nqn.2026-11.io.tidegate:host"] {
        assert!(connect.contains(named), "{connect}");
    }
    let lines = banner(&[("empty", "")]);
    assert!(
        !lines.iter().any(|line| line.contains("Try next") || line.contains("perf")),
        "{lines:?}"
    );
}

#[test]
fn it_says_where_clients_reach_it_and_where_the_state_is() {
    let folder = folder();
    fs::write(folder.path().join("secret"), "somebody:something").unwrap();
    let config = "[rpc.tcp]\nport = 0\n[rpc.http]\nport = 0\ncredentials = \"secret\"\n";
    write_config(folder.path(), config);
    let own = ["--config", "tidegate.toml", "--rpc-socket", "rpc.sock", "--state", "kept"];
    let start = |arguments: &[&str]| {
        Daemon::spawn_with(folder.path(), &[&["serve"][..], arguments].concat())
    };
    let daemon = start(&[&own[..], &["--banner", "json"]].concat());
    let banner = daemon.banner();
    assert_eq!((&banner["rpc"]["socket"], &banner["state"]), (&json!("rpc.sock"), &json!("kept")));
    for socket in ["tcp", "http"] {
        // The ports that were chosen.
        let address: SocketAddr = banner["rpc"][socket].as_str().unwrap().parse().unwrap();
        assert!(address.ip().is_loopback());
        TcpStream::connect(address).unwrap();
    }
    drop(daemon);
    let line = |daemon: &Daemon| loop {
        let line = daemon.line();
        if line.contains("state") {
            return line;
        }
    };
    let said = line(&start(&own));
    for part in ["JSON-RPC on rpc.sock, TCP 127.0.0.1:", ", HTTP 127.0.0.1:", "; state in kept"] {
        assert!(said.contains(part), "{said}");
    }
    let alone = start(&["--rpc-socket", "none", "--state", "none"]);
    assert!(line(&alone).starts_with("no JSON-RPC; no state"));
    let alone = start(&[&ALONE[..], &["--banner", "json"]].concat());
    let banner = alone.banner();
    let nothing = json!({ "socket": null, "tcp": null, "http": null });
    assert_eq!((&banner["rpc"], &banner["state"]), (&nothing, &Value::Null));
}

#[test]
fn the_readme_names_the_binary_where_its_first_command_leaves_it() {
    let folder = folder();
    let port = free_port().to_string();
    let quickstart = fs::read_to_string(repository("target-config/quickstart.toml")).unwrap();
    let _daemon = Daemon::start(folder.path(), &quickstart.replace("4420", &port));
    let readme = fs::read_to_string(repository("README.md")).unwrap().replace("\\\n", "");
    let commands = readme.lines().filter_map(|line| line.strip_prefix("target/release/tidegate "));
    let mut tried = Vec::new();
    for command in commands {
        let command = command.replace("4420", &port).replace("10s", "50ms");
        let arguments: Vec<_> = command.split_whitespace().collect();
        let output = run(folder.path(), &arguments);
        assert!(output.status.success(), "{command}: {output:?}");
        tried.push(arguments[0].to_owned());
    }
    assert_eq!(tried, ["discover", "identify", "perf"]);
}
