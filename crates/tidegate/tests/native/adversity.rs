//! What the daemon does when the machine under it has nothing more to give.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::support::daemon::{
    ALONE, Daemon, NQN, file_config, free_port, loopback, run, run_json, tidegate, write_config,
};
use crate::support::{folder, until};

/// A daemon that is not left behind by a test that fails.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon whose standard error is a disk that is always full.
fn without_a_log(folder: &std::path::Path, config: &str) -> Served {
    write_config(folder, config);
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    tidegate(folder)
        .args(["serve", "--config", "tidegate.toml"])
        .args(ALONE)
        .stdout(full())
        .stderr(full())
        .spawn()
        .map(Served)
        .unwrap()
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, "[logging]\nlevel = \"trace\"\n");
    let mut child = without_a_log(folder.path(), &config);
    until("it listens", || TcpStream::connect(loopback(port)).ok());
    // What strangers do is logged, too.
    let mut stranger = TcpStream::connect(loopback(port)).unwrap();
    stranger.write_all(&[0xA5; 4096]).unwrap();
    let port = port.to_string();
    let perf = ["perf", "-s", &port, "-n", NQN, "--rw", "randwrite", "--size", "4MiB", "--verify"];
    assert!(run_json(folder.path(), &perf)["write"]["ios"].as_u64().unwrap() > 0);
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_log_whose_reader_has_ended_ends_nothing() {
    let folder = folder();
    let port = free_port();
    write_config(folder.path(), &file_config(port, ""));
    let mut child = tidegate(folder.path())
        .args(["serve", "--config", "tidegate.toml"])
        .args(ALONE)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map(Served)
        .unwrap();
    drop(child.0.stderr.take());
    until("it listens", || TcpStream::connect(loopback(port)).ok());
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_limit_of_file_sizes_fails_writes_and_ends_nothing() {
    for io_uring in ["auto", "never"] {
        let folder = folder();
        let port = free_port();
        let config = file_config(port, &format!("[reactors]\nio_uring = \"{io_uring}\"\n"));
        let daemon = Daemon::start(folder.path(), &config);
        let limit = Some(1 << 20);
        let limits = Rlimit { current: limit, maximum: limit };
        prlimit(Some(daemon.pid()), Resource::Fsize, limits).unwrap();
        let port = port.to_string();
        let common = ["perf", "-s", &port, "-n", NQN, "--bs", "64k", "--number-ios", "200"];
        let write = run(folder.path(), &[&common[..], &["--rw", "write"]].concat());
        assert_eq!(write.status.code(), Some(1), "{write:?}");
        let read = run(folder.path(), &[&common[..], &["--rw", "read"]].concat());
        assert!(read.status.success(), "{read:?}");
        daemon.signal(Signal::TERM);
        let (status, said, _) = daemon.wait();
        assert!(status.code().is_some(), "ended by a signal: {said}");
    }
}

#[test]
fn one_file_under_two_names_is_one_file() {
    let folder = folder();
    let (one, other) = (folder.path().join("one.img"), folder.path().join("other.img"));
    File::create(&one).unwrap().set_len(1 << 20).unwrap();
    fs::hard_link(&one, &other).unwrap();
    let device = |name: &str| format!("[devices.{name}]\nkind = \"file\"\npath = \"{name}.img\"\n");
    let path = write_config(folder.path(), &(device("one") + &device("other")));
    let refused = run(folder.path(), &["serve", "--config", path.to_str().unwrap()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("tidegate.toml:6: devices.other.path") && said.contains("one"), "{said}");
}

#[test]
fn what_is_not_served_of_a_file_is_said() {
    let folder = folder();
    let disk = folder.path().join("disk.img");
    File::create(&disk).unwrap().set_len((1 << 20) + 3).unwrap();
    let daemon = Daemon::start(folder.path(), &file_config(free_port(), ""));
    let said = daemon.errors();
    assert!(said.contains("has 1048579 bytes already"), "{said}");
    assert!(said.contains("last 3 bytes"), "{said}");
}

#[test]
fn descriptors_that_have_run_out_are_said_once_and_waited_for() {
    let folder = folder();
    let port = free_port();
    let daemon = Daemon::start(folder.path(), &file_config(port, ""));
    let used = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64;
    let limit = Some(used + 4);
    prlimit(Some(daemon.pid()), Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .unwrap();
    let crowd: Vec<_> = (0..20).map(|_| TcpStream::connect(loopback(port)).unwrap()).collect();
    until("it says so", || daemon.errors().contains("ulimit -n").then_some(()));
    drop(crowd);
    let port = port.to_string();
    let discovered = thread::scope(|scope| {
        scope.spawn(|| run(folder.path(), &["discover", "-s", &port])).join().unwrap()
    });
    assert!(discovered.status.success(), "{discovered:?}");
    assert_eq!(daemon.errors().matches("ulimit -n").count(), 1, "{}", daemon.errors());
}
