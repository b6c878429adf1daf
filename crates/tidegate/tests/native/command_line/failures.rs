//! How commands fail: with the status that says whose fault it is, in one line that names the thing and the remedy, even
//! where there is nowhere to print it.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use serde_json::{Value, json};

use super::failure;
use crate::support::daemon::{
    ALONE, Daemon, NQN, file_config, free_port, run, tidegate, write_config,
};
use crate::support::folder;

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn the_status_is_right_where_standard_error_cannot_be_written() {
    let folder = folder();
    let port = free_port().to_string();
    for (arguments, status) in [
        (&["--bogus"][..], 2),
        (&["man", "missing"], 2),
        (&["serve", "--config", "missing.toml"], 2),
        (&["discover", "-s", &port], 1),
        (&["perf", "-s", &port, "-n", NQN], 1),
    ] {
        let ended = tidegate(folder.path()).args(arguments).stderr(full()).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{arguments:?}: {ended}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure_that_says_so() {
    let folder = folder();
    let port = free_port();
    let _daemon = Daemon::start(folder.path(), &file_config(port, ""));
    let port = port.to_string();
    for arguments in [
        &["help"][..],
        &["--version"],
        &["completions", "bash"],
        &["discover", "-s", &port],
        &["identify", "-s", &port, "-n", NQN, "--json"],
        &["perf", "-s", &port, "-n", NQN, "--number-ios", "1", "--json"],
    ] {
        let child = tidegate(folder.path())
            .args(arguments)
            .stdout(full())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = failure(arguments, &child.wait_with_output().unwrap(), 1);
        for named in ["standard output", "elsewhere", "No space left on device"] {
            assert!(line.contains(named), "{arguments:?}: {line}");
        }
    }
}

#[test]
fn json_tells_a_failure_on_standard_output_too() {
    let folder = folder();
    let free = free_port();
    // A peer that speaks something else.
    let garbage = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = garbage.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in garbage.incoming() {
            // Nobody may be reading any more.
            let _ = stream.unwrap().write_all(b"SSH-2.0-something\r\n");
        }
    });
    // One that accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [free, port, silent.local_addr().unwrap().port()] {
        let port = port.to_string();
        for arguments in [&["discover"][..], &["identify", "-n", NQN], &["perf", "-n", NQN]] {
            let arguments = [arguments, &["-s", &port, "--timeout", "300ms", "--json"]].concat();
            let mut output = run(folder.path(), &arguments);
            let told: Value = serde_json::from_slice(&output.stdout).unwrap();
            output.stdout.clear();
            let line = failure(&arguments, &output, 1);
            assert!(line.contains("NVMe/TCP") || port == free.to_string(), "{line}");
            assert_eq!(told, json!({ "error": line.strip_prefix("tidegate: ").unwrap() }));
        }
    }
}

#[test]
fn manual_pages_that_cannot_be_written_are_a_failure_that_names_the_folder() {
    let arguments = ["man", "/proc/self"];
    let line = failure(&arguments, &run(folder().path(), &arguments), 1);
    assert!(line.contains("/proc/self") && line.contains("folder"), "{line}");
}

#[test]
fn the_systems_words_come_once_in_a_line() {
    let folder = folder();
    // A folder in which nobody can make a file.
    let config = file_config(free_port(), "").replace("disk.img", "/proc/disk.img");
    write_config(folder.path(), &config);
    let arguments = [&["serve", "--config", "tidegate.toml"][..], &ALONE].concat();
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    let line = errors.lines().find(|line| line.starts_with("tidegate: ")).unwrap();
    assert_eq!(line.matches("(os error").count(), 1, "{line}");
}
