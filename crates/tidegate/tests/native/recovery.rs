//! `kill -9` in the middle of writes: every acknowledged block is there after an immediate restart.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::daemon::{
    Daemon, NQN, file_config, free_port, loopback, run, run_json, tidegate,
};
use crate::support::workload::Workload;
use crate::support::{folder, until};

/// Kills a busy daemon again and again; the same hosts come back, to the same file.
fn survives_kill(more: &str) {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, more);
    let mut daemon = Daemon::start(folder.path(), &config);
    let mut workload = Workload::new(loopback(port), NQN, 4);
    for _ in 0..3 {
        let enough = workload.answered + 300;
        let mut running = Some(daemon);
        workload.run_until_broken(|answered| {
            if answered >= enough
                && let Some(daemon) = running.take()
            {
                daemon.kill();
            }
        });
        // At once, on the port and the file that the kernel may still hold for the dead one.
        daemon = Daemon::start(folder.path(), &config);
        workload.connect(loopback(port), NQN);
        workload.read_back();
    }
    workload.run(200);
    workload.read_back();
    daemon.kill();
    // A process that was killed leaves what it had been told to write: the page cache is the kernel's.
    workload.check_medium(1, &fs::read(folder.path().join("disk.img")).unwrap());
}

#[test]
fn acknowledged_blocks_survive_kill_9_with_io_uring() {
    survives_kill("");
}

#[test]
fn acknowledged_blocks_survive_kill_9_without_io_uring() {
    survives_kill("[reactors]\nio_uring = \"never\"\n");
}

#[test]
fn perf_verifies_after_kill_9_what_was_acknowledged_before() {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, "");
    let daemon = Daemon::start(folder.path(), &config);
    let service = port.to_string();
    let common = ["perf", "-s", &service, "-n", NQN, "--verify-state", "state", "--bs", "16k"];
    let write = ["--rw", "randwrite", "--iodepth", "16", "--connections", "2", "--runtime", "60s"];
    let mut perf = tidegate(folder.path())
        .args([&common[..], &write].concat())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let written = folder.path().join("disk.img");
    until("perf has written a lot", || (allocated(&written) > 4 << 20).then_some(()));
    daemon.kill();
    let ended = until("perf ends", || perf.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1), "its target has died");

    let _daemon = Daemon::start(folder.path(), &config);
    let report = run_json(folder.path(), &[&common[..], &["--rw", "read"]].concat());
    assert!(report["verify"]["blocks"].as_u64().unwrap() >= 256, "{report}");
    assert_eq!(report["verify"]["failed_ios"], 0, "{report}");

    // And it would have told: one block of what was acknowledged goes back to zeroes.
    let blank = [&common[..], &["--rw", "read"]].concat();
    let file = fs::OpenOptions::new().write(true).open(&written).unwrap();
    let used = first_data(&written);
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16 << 10], used).unwrap();
    file.sync_all().unwrap();
    assert_eq!(run(folder.path(), &blank).status.code(), Some(1));
}

fn allocated(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
}

/// Offset of the first 16 KiB that are not zeroes.
fn first_data(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let at = bytes.chunks(16 << 10).position(|chunk| chunk.iter().any(|&byte| byte != 0));
    (at.unwrap() * (16 << 10)) as u64
}

#[test]
fn who_a_namespace_is_does_not_change_with_a_restart() {
    let folder = folder();
    let port = free_port();
    let config = file_config(port, "");
    let service = port.to_string();
    let look = || -> Value {
        let daemon = Daemon::start(folder.path(), &config);
        let seen = run_json(folder.path(), &["identify", "-s", &service, "-n", NQN]);
        daemon.kill();
        seen
    };
    let (first, second) = (look(), look());
    for name in ["uuid", "nguid"] {
        assert!(first["namespaces"][0][name].is_string(), "{first}");
        assert_eq!(first["namespaces"][0][name], second["namespaces"][0][name]);
    }
    assert!(first["controller"]["serial"].as_str().is_some_and(|serial| !serial.is_empty()));
    assert_eq!(first["controller"]["serial"], second["controller"]["serial"]);
}
