//! What the tests stand on: a node in this process or as a daemon, hosts, and an oracle.

pub(crate) mod daemon;
pub(crate) mod gate;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod workload;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use host::{Completion, ConnectOptions, Controller, HostIdentity, Queue, Transfer};
use nvme::{Nqn, Sqe};

/// Beyond this, something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where test files go: the build directory's file system, which has direct I/O.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Looks again and again until `found` returns something.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The host of this name.
pub(crate) fn identity(name: &str) -> HostIdentity {
    let nqn: Nqn = format!("nqn.2026-11.io.tidegate:{name}").parse().unwrap();
    HostIdentity::resolve(Some(nqn), None).unwrap()
}

/// How the host of this name connects to a subsystem.
pub(crate) fn options(address: SocketAddr, subsystem: &str, host: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(address, subsystem.parse().unwrap(), identity(host));
    options.timeout = PATIENCE;
    options
}

/// A controller with `queues` I/O queues of `depth` commands of up to `slot_bytes`.
pub(crate) fn connect(
    options: ConnectOptions,
    queues: u16,
    depth: u16,
    slot_bytes: u32,
) -> (Controller, Vec<Queue>) {
    let mut controller = Controller::connect(options).unwrap();
    assert_eq!(controller.request_queues(queues).unwrap(), queues);
    let opened = (1..=queues).map(|qid| controller.open_queue(qid, depth, slot_bytes).unwrap());
    let opened = opened.collect();
    (controller, opened)
}

/// One command on an otherwise idle queue, to its end. What a read brought is in the slot of the
/// completion until [`Queue::release`].
pub(crate) fn call(queue: &mut Queue, sqe: Sqe, transfer: Transfer, data: &[u8]) -> Completion {
    let slot = queue.reserve().unwrap();
    queue.copy_from(slot, 0, data);
    queue.call(slot, sqe, transfer, PATIENCE, "an I/O command").unwrap()
}
