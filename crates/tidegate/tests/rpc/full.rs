//! A state directory that takes no more, or nothing at all, or gives back what was never written to it. The kernel's limit on the size of files stands in for a full disk: it can be
//! moved under a running daemon by whoever owns it.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, prlimit};
use serde_json::{Value, json};
use testkit::Random;

use crate::client::{Client, start};
use crate::support::daemon::tidegate;
use crate::support::folder;

/// From now on the daemon can write to files up to `size` only.
fn allow(daemon: Pid, size: Option<u64>) {
    prlimit(Some(daemon), Resource::Fsize, Rlimit { current: size, maximum: None }).unwrap();
}

fn create(client: &mut Client, name: &str) -> Result<Value, (i64, String)> {
    let params = json!({ "name": name, "num_blocks": 8, "block_size": 512 });
    client.try_call("bdev_null_create", &params).unwrap()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let listed = Client::connect(folder).call("bdev_get_bdevs", &Value::Null);
    let names = listed.as_array().unwrap().iter();
    names.map(|it| it["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_cannot_be_kept_is_refused_until_there_is_room_again() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    create(&mut client, "before").unwrap();
    allow(daemon.pid(), Some(0));
    for _ in 0..3 {
        let (code, text) = create(&mut client, "without-room").unwrap_err();
        assert_eq!(code, -32603);
        assert!(text.contains("state.redb") && text.contains("File too large"), "{text}");
    }
    let deleted = client.refused("bdev_null_delete", &json!({ "name": "before" }));
    assert!(deleted.1.contains("state.redb"), "{deleted:?}");
    assert_eq!(names(folder.path()), ["before".to_owned()].into());
    allow(daemon.pid(), None);
    create(&mut client, "after").unwrap();
    let expected: BTreeSet<_> = ["after".to_owned(), "before".to_owned()].into();
    assert_eq!(names(folder.path()), expected);
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    assert_eq!(names(folder.path()), expected);
}

/// The room comes and goes in the middle of commits; what was said of each of them is true, also after `kill -9`.
#[test]
fn every_answer_is_true_while_room_comes_and_goes() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut random = Random::new(20_261_123);
    let (pid, done) = (daemon.pid(), AtomicBool::new(false));
    let (mut expected, mut refused) = (BTreeSet::new(), 0);
    let mut client = Client::connect(folder.path());
    thread::scope(|scope| {
        let done = &done;
        let mut own = random.split();
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let sizes = [0, 4096, 1 << 16, 1 << 20, 1 << 20, 1 << 21];
                allow(pid, Some(*own.pick(&sizes)));
                thread::park_timeout(Duration::from_micros(own.below(3000)));
                allow(pid, None);
                thread::park_timeout(Duration::from_micros(own.below(3000)));
            }
        });
        for number in 0..1500 {
            let name = format!("device-{}", random.below(400));
            let answer = if expected.contains(&name) {
                client.try_call("bdev_null_delete", &json!({ "name": name })).unwrap()
            } else {
                create(&mut client, &name)
            };
            match answer {
                Ok(_) if expected.remove(&name) => {}
                Ok(_) => drop(expected.insert(name)),
                Err((code, text)) => {
                    assert!(code == -32603 && text.contains("state.redb"), "{number}: {text}");
                    refused += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(refused > 20, "only {refused} were refused");
    assert_eq!(names(folder.path()), expected);
    // The first that succeeds leaves nothing of those that failed.
    create(&mut client, "last").unwrap();
    expected.insert("last".to_owned());
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    assert_eq!(names(folder.path()), expected);
}

/// The binary, without the privilege to write what it may not.
fn without_privileges(folder: &Path) -> Command {
    let plain = tidegate(folder);
    if !geteuid().is_root() {
        return plain;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
    command.arg(plain.get_program()).current_dir(folder);
    command
}

#[test]
fn a_state_that_cannot_be_written_is_named_at_the_start() {
    let folder = folder();
    start(folder.path(), &[]).kill();
    let state = folder.path().join("state");
    let allow =
        |mode: u32, path: &Path| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let refused = || {
        let serve = ["serve", "--rpc-socket", "rpc.sock", "--state", "state"];
        let output = without_privileges(folder.path()).args(serve).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("state/state.redb") && said.contains("writable"), "{said}");
    };
    allow(0o400, &state.join("state.redb"));
    refused();
    fs::remove_file(state.join("state.redb")).unwrap();
    allow(0o555, &state);
    refused();
    allow(0o755, &state);
}

/// Whatever the damage, it is either not in what is read, or named in one line.
#[test]
fn a_damaged_state_is_named_at_the_start() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    for name in ["one", "two", "three"] {
        create(&mut client, name).unwrap();
    }
    daemon.signal(Signal::TERM);
    daemon.wait();
    let path = folder.path().join("state/state.redb");
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    let mut damaged = vec![good[..5000].to_vec(), vec![0xa5; good.len()]];
    for at in (0..good.len()).step_by(1024) {
        damaged.push(good.clone());
        damaged.last_mut().unwrap()[at..][..8].fill(0xff);
    }
    for (round, bad) in damaged.iter().enumerate() {
        fs::write(&path, bad).unwrap();
        let serve = ["verify-state", "state"];
        let output = tidegate(folder.path()).args(serve).output().unwrap();
        if output.status.success() {
            // What it has is what it had; a last commit that is damaged is like one that a crash has cut off.
            let daemon = start(folder.path(), &[]);
            assert!((2..=3).contains(&names(folder.path()).len()), "round {round}");
            daemon.kill();
            continue;
        }
        refused += 1;
        let serve = ["serve", "--rpc-socket", "rpc.sock", "--state", "state"];
        let output = tidegate(folder.path()).args(serve).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("state/state.redb is damaged"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(refused >= 5, "{refused}");
}
