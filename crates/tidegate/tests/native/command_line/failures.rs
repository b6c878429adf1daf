//! How commands fail: with the status that says whose fault it is, in one line that names the thing and the remedy, even
//! where there is nowhere to print it.

use std::fs::File;
use std::process::Stdio;

use super::failure;
use crate::support::daemon::{Daemon, NQN, file_config, free_port, tidegate};
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
