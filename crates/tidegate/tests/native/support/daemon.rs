//! The binary as a process: the daemon, and the commands that talk to it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::iter;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{PATIENCE, until};

pub(crate) const NQN: &str = "nqn.2026-11.io.tidegate:test";

/// Arguments of a `serve` that keeps nothing and that no client can reach.
pub(crate) const ALONE: [&str; 4] = ["--rpc-socket", "none", "--state", "none"];

/// The binary, to be run in `folder`.
pub(crate) fn tidegate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.current_dir(folder).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    let child = tidegate(folder)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        output
    });
    if ended.recv_timeout(2 * PATIENCE).is_err() {
        let _ = kill_process(pid, Signal::KILL);
        panic!("tidegate {arguments:?} does not end");
    }
    waiter.join().unwrap()
}

/// Runs the binary, which must succeed, with `--json`; what it printed.
pub(crate) fn run_json(folder: &Path, arguments: &[&str]) -> Value {
    let output = run(folder, &[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tidegate {arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A port on which nothing listens, neither on IPv4 nor on IPv6. Outside the range from which the kernel takes
/// the ports of connecting sockets, so that no connection of another test sits on it when it is used.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 199) as u16 * 50;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() && TcpListener::bind(("::", port)).is_ok() {
            return port;
        }
    }
}

/// A configuration with one file of 64 MiB in `folder`, on one reactor.
pub(crate) fn file_config(port: u16, more: &str) -> String {
    format!(
        "{more}\n[devices.disk]\nkind = \"file\"\npath = \"disk.img\"\nsize = \"64MiB\"\nblock_size = 4096\n\
         [[subsystems]]\nnqn = \"{NQN}\"\nnamespaces = [{{ nsid = 1, device = \"disk\" }}]\n\
         listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
    )
}

/// A daemon of ours. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts `serve --banner json` in `folder` with this configuration and without clients that could change it; back at once.
    pub(crate) fn spawn(folder: &Path, config: &str) -> Daemon {
        let path = write_config(folder, config);
        let serve = ["serve", "--banner", "json", "--config", path.to_str().unwrap()];
        Daemon::spawn_with(folder, &[&serve[..], &ALONE].concat())
    }

    /// Starts the binary with these arguments; back at once.
    pub(crate) fn spawn_with(folder: &Path, arguments: &[&str]) -> Daemon {
        Daemon::spawn_command(tidegate(folder).args(arguments))
    }

    /// Starts this command of the binary; back at once.
    pub(crate) fn spawn_command(command: &mut Command) -> Daemon {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let (mut stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&errors));
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Daemon { child, lines, errors }
    }

    /// Starts `serve` and waits until it serves.
    pub(crate) fn start(folder: &Path, config: &str) -> Daemon {
        let daemon = Daemon::spawn(folder, config);
        daemon.banner();
        daemon
    }

    /// What it prints once it serves.
    pub(crate) fn banner(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// The next line that it prints.
    pub(crate) fn line(&self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("no line from the daemon ({error}): {}", self.errors()),
        }
    }

    /// All that it still prints, up to its end.
    pub(crate) fn rest(&self) -> Vec<String> {
        iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect()
    }

    /// What it has written to standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end; how it ended, what it wrote to standard error, and how long that took.
    pub(crate) fn wait(mut self) -> (ExitStatus, String, Duration) {
        let start = Instant::now();
        let status = until("the daemon ends", || self.child.try_wait().unwrap());
        // The pipe's end comes soon after the process's.
        until("standard error ends", || (Arc::strong_count(&self.errors) == 1).then_some(()));
        (status, self.errors(), start.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration file into `folder`.
pub(crate) fn write_config(folder: &Path, config: &str) -> PathBuf {
    let path = folder.join("tidegate.toml");
    fs::write(&path, config).unwrap();
    path
}

/// Loopback at this port.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
