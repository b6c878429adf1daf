//! What is taken away while hosts use it: those whom it concerns lose it, all others go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host::Transfer;
use nvme::io::{self, Command};
use nvme::{Sqe, Status};
use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{free_port, loopback};
use crate::support::{PATIENCE, connect, folder, options, until};

const VOLUME: &str = "nqn.2026-11.io.tidegate:volume";
const OTHER: &str = "nqn.2026-11.io.tidegate:other";

/// How a host came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was told to stop.
    Stopped,
    /// Its connection ended.
    Disconnected,
    /// A command was refused.
    Refused(Status),
}

impl End {
    /// It is no use trying again, or by another path.
    fn is_final(&self) -> bool {
        matches!(self, End::Refused(status) if status.dnr())
    }
}

/// A host that reads without a pause and sends keep-alives, until something ends it.
struct Host {
    reads: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<End>,
}

impl Host {
    fn start(address: SocketAddr, subsystem: &str, name: &str) -> Host {
        let (mut controller, mut queues) = connect(options(address, subsystem, name), 2, 8, 4096);
        let (reads, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, told) = (Arc::clone(&reads), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let sqe: Sqe = Command::Read(io::Transfer::new(0, 1)).to_sqe(1);
            while !told.load(Ordering::Relaxed) {
                for queue in &mut queues {
                    let slot = queue.reserve().unwrap();
                    let read = queue.call(slot, sqe, Transfer::Read(4096), PATIENCE, "a read");
                    let Ok(read) = read else { return End::Disconnected };
                    if let Err(status) = read.cqe.status().into_result() {
                        return End::Refused(status);
                    }
                    queue.release(slot);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                if controller.keep_alive().is_err() {
                    return End::Disconnected;
                }
            }
            End::Stopped
        });
        let host = Host { reads, stop, thread };
        host.goes_on();
        host
    }

    /// It still gets what it reads.
    fn goes_on(&self) {
        let before = self.reads.load(Ordering::Relaxed);
        until("it reads on", || (self.reads.load(Ordering::Relaxed) > before + 50).then_some(()));
    }

    /// Whatever ends it does so by itself.
    fn end(self) -> End {
        until("it ends", || self.thread.is_finished().then_some(()));
        self.thread.join().unwrap()
    }

    fn stop(self) -> End {
        self.stop.store(true, Ordering::Relaxed);
        self.end()
    }
}

fn at(nqn: &str, port: u16) -> Value {
    let address = json!({ "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
    json!({ "nqn": nqn, "listen_address": address })
}

fn provision(client: &mut Client, nqn: &str, ports: &[u16]) {
    let name = nqn.rsplit(':').next().unwrap();
    let device = json!({ "name": name, "num_blocks": 1024, "block_size": 4096 });
    client.call("bdev_malloc_create", &device);
    client.call("nvmf_create_subsystem", &json!({ "nqn": nqn }));
    for host in ["first", "second", "third"] {
        let host = options(loopback(1), nqn, host).host.nqn.to_string();
        client.call("nvmf_subsystem_add_host", &json!({ "nqn": nqn, "host": host }));
    }
    client
        .call("nvmf_subsystem_add_ns", &json!({ "nqn": nqn, "namespace": { "bdev_name": name } }));
    for port in ports {
        client.call("nvmf_subsystem_add_listener", &at(nqn, *port));
    }
}

#[test]
fn what_is_removed_under_io_ends_those_who_use_it_and_nobody_else() {
    let folder = folder();
    let (near, far) = (free_port(), free_port());
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    provision(&mut client, VOLUME, &[near, far]);
    provision(&mut client, OTHER, &[near]);
    let bystander = Host::start(loopback(near), OTHER, "first");

    let [by_near, by_far] = [near, far].map(|port| Host::start(loopback(port), VOLUME, "first"));
    client.call("nvmf_subsystem_remove_listener", &at(VOLUME, far));
    assert_eq!(by_far.end(), End::Disconnected);
    by_near.goes_on();
    bystander.goes_on();

    let second = Host::start(loopback(near), VOLUME, "second");
    let name = options(loopback(1), VOLUME, "second").host.nqn.to_string();
    client.call("nvmf_subsystem_remove_host", &json!({ "nqn": VOLUME, "host": name }));
    assert_eq!(second.end(), End::Disconnected);
    by_near.goes_on();

    let third = Host::start(loopback(near), VOLUME, "third");
    client.call("nvmf_subsystem_remove_ns", &json!({ "nqn": VOLUME, "nsid": 1 }));
    for host in [third, by_near] {
        let end = host.end();
        assert!(end.is_final(), "{end:?}");
    }
    bystander.goes_on();

    let namespace = json!({ "nqn": VOLUME, "namespace": { "bdev_name": "volume" } });
    client.call("nvmf_subsystem_add_ns", &namespace);
    let last = [near, near].map(|port| Host::start(loopback(port), VOLUME, "third"));
    client.call("nvmf_delete_subsystem", &json!({ "nqn": VOLUME }));
    for host in last {
        let end = host.end();
        // A reactor may know of it before those queues of its are ended.
        assert!(!matches!(end, End::Stopped) && !end.is_final(), "{end:?}");
    }
    bystander.goes_on();
    let mut refused = options(loopback(near), VOLUME, "third");
    refused.timeout = Duration::from_secs(5);
    assert!(host::Controller::connect(refused).is_err());
    assert_eq!(bystander.stop(), End::Stopped);
}
