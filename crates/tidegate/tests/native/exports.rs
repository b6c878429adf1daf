//! Who may reach what, where: hosts, listeners, discovery, and many namespaces.

use std::net::SocketAddr;
use std::sync::Arc;

use block::BlockDevice;
use block::null::NullDevice;
use host::{Controller, HostError, Queue, Transfer};
use nvme::fabrics::ConnectField;
use nvme::io::{self, Command};
use nvme::log::SubsystemType;
use nvme::{Nqn, Status};
use target::configuration::Hosts;

use crate::support::daemon::{Daemon, free_port, run, run_json};
use crate::support::node::{self, Exported, Plan, ram};
use crate::support::{PATIENCE, call, connect, folder, identity, options};

const FIRST: &str = "nqn.2026-11.io.tidegate:first";
const SECOND: &str = "nqn.2026-11.io.tidegate:second";

fn hosts(names: &[&str]) -> Hosts {
    names.iter().map(|name| identity(name).nqn).collect()
}

/// Status and result with which the Connect was refused.
fn refused(address: SocketAddr, subsystem: &str, host: &str) -> (Status, u32) {
    match Controller::connect(options(address, subsystem, host)) {
        Err(HostError::Refused { queue: 0, status, result, .. }) => (status, result),
        other => panic!("{other:?}"),
    }
}

/// The subsystems that a host finds in discovery at this address, and the addresses it is told.
fn discover(address: SocketAddr, host: &str) -> Vec<(String, String, u16)> {
    let discovery = Nqn::discovery();
    let mut controller = Controller::connect(options(address, discovery.as_str(), host)).unwrap();
    let (_, entries) = controller.discovery_log().unwrap();
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned();
    entries
        .iter()
        .filter(|entry| entry.subtype == SubsystemType::Nvm.code())
        .map(|entry| {
            let service = entry.trsvcid().unwrap().parse().unwrap();
            (text(&entry.subnqn), entry.traddr().unwrap().to_owned(), service)
        })
        .collect()
}

fn write(queue: &mut Queue, nsid: u32, lba: u64, byte: u8) -> Status {
    let write = Command::Write(io::Transfer::new(lba, 1)).to_sqe(nsid);
    let ended = call(queue, write, Transfer::Write(512), &[byte; 512]);
    queue.release(ended.slot);
    ended.cqe.status()
}

fn read(queue: &mut Queue, nsid: u32, lba: u64) -> Result<u8, Status> {
    let read = Command::Read(io::Transfer::new(lba, 1)).to_sqe(nsid);
    let ended = call(queue, read, Transfer::Read(512), &[]);
    let mut found = [0];
    queue.copy_to(ended.slot, 511, &mut found);
    queue.release(ended.slot);
    ended.cqe.status().into_result().map(|()| found[0])
}

#[test]
fn a_host_reaches_what_it_may_and_is_told_exactly_why_not() {
    let exports = vec![
        Exported {
            hosts: hosts(&["one", "both"]),
            ..Exported::new(FIRST, vec![ram("first", 1 << 20, 512)])
        },
        Exported {
            hosts: hosts(&["two", "both"]),
            ..Exported::new(SECOND, vec![ram("second", 1 << 20, 512)])
        },
    ];
    let plan = Plan { reactors: 2, ..Plan::default() };
    let (node, addresses) = node::start(&plan, exports);
    let address = addresses[0];

    let not_allowed = Status::CONNECT_INVALID_HOST.with_dnr();
    assert_eq!(refused(address, FIRST, "two").0, not_allowed);
    assert_eq!(refused(address, SECOND, "one").0, not_allowed);
    assert_eq!(refused(address, FIRST, "stranger").0, not_allowed);
    let (status, result) = refused(address, "nqn.2026-11.io.tidegate:none", "both");
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
    assert_eq!(ConnectField::from_dw0(result), Some(ConnectField::SubsystemNqn));

    // Discovery shows each host its own.
    let seen = |host| discover(address, host).into_iter().map(|(nqn, ..)| nqn).collect::<Vec<_>>();
    assert_eq!(seen("one"), [FIRST]);
    assert_eq!(seen("two"), [SECOND]);
    assert_eq!(seen("both"), [FIRST, SECOND]);
    assert_eq!(seen("stranger"), [""; 0]);

    // All at once, each on its own namespace.
    let allowed = [(FIRST, "one", 1), (SECOND, "two", 2), (FIRST, "both", 3), (SECOND, "both", 4)];
    let mut connected: Vec<_> = allowed
        .map(|(subsystem, host, byte)| {
            (connect(options(address, subsystem, host), 2, 4, 4096), byte)
        })
        .into();
    for ((_, queues), byte) in &mut connected {
        assert_eq!(write(&mut queues[0], 1, u64::from(*byte), *byte), Status::SUCCESS);
    }
    for ((_, queues), byte) in &mut connected {
        let expected = |lba: u8| if lba % 2 == *byte % 2 { lba } else { 0 };
        for lba in 1..=4 {
            assert_eq!(read(&mut queues[1], 1, u64::from(lba)), Ok(expected(lba)));
        }
        assert_eq!(read(&mut queues[0], 2, 0), Err(Status::INVALID_NAMESPACE.with_dnr()));
    }
    drop(connected);
    node.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_subsystem_is_reached_on_its_listeners_alone_and_two_share_a_socket() {
    let plan = Plan {
        listeners: vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()],
        ..Plan::default()
    };
    let exports = vec![
        Exported { listeners: vec![0], ..Exported::new(FIRST, vec![ram("first", 1 << 20, 512)]) },
        Exported::new(SECOND, vec![ram("second", 1 << 20, 512)]),
    ];
    let (node, addresses) = node::start(&plan, exports);
    for subsystem in [FIRST, SECOND] {
        let (_controller, mut queues) =
            connect(options(addresses[0], subsystem, "host"), 1, 4, 4096);
        assert_eq!(write(&mut queues[0], 1, 0, 9), Status::SUCCESS);
    }
    let (status, result) = refused(addresses[1], FIRST, "host");
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
    assert_eq!(ConnectField::from_dw0(result), Some(ConnectField::SubsystemNqn));
    // Every listener tells of all there is.
    let at =
        |nqn: &str, index: usize| (nqn.to_owned(), "127.0.0.1".to_owned(), addresses[index].port());
    for address in &addresses {
        let mut found = discover(*address, "host");
        found.sort();
        let mut expected = vec![at(FIRST, 0), at(SECOND, 0), at(SECOND, 1)];
        expected.sort();
        assert_eq!(found, expected);
    }
    node.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_wildcard_listener_names_the_address_that_the_host_connected_to() {
    let plan = Plan {
        listeners: vec!["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()],
        ..Plan::default()
    };
    let exports = vec![
        Exported { listeners: vec![0], ..Exported::new(FIRST, vec![ram("first", 1 << 20, 512)]) },
        Exported { listeners: vec![1], ..Exported::new(SECOND, vec![ram("second", 1 << 20, 512)]) },
    ];
    let (node, addresses) = node::start(&plan, exports);
    let (four, six) = (addresses[0].port(), addresses[1].port());
    for (connected, subsystem, port) in
        [("127.0.0.1", FIRST, four), ("127.0.0.77", FIRST, four), ("::1", SECOND, six)]
    {
        let address = SocketAddr::new(connected.parse().unwrap(), port);
        let found = discover(address, "host");
        let expected = (subsystem.to_owned(), connected.to_owned(), port);
        assert!(found.contains(&expected), "{connected}: {found:?}");
        let (_controller, mut queues) = connect(options(address, subsystem, "host"), 2, 4, 4096);
        assert_eq!(write(&mut queues[1], 1, 0, 9), Status::SUCCESS);
        assert_eq!(read(&mut queues[0], 1, 0), Ok(9));
    }
    node.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_thousand_and_twenty_four_namespaces_in_one_subsystem() {
    let devices: Vec<Arc<dyn BlockDevice>> = (1..=1024_u64)
        .map(|nsid| {
            // Each of a size of its own, to tell them apart; the last can be written.
            let name = format!("device{nsid}");
            match nsid {
                1024 => ram(&name, 1024 * 512, 512),
                _ => Arc::new(NullDevice::new(&name, nsid * 512, 512).unwrap()),
            }
        })
        .collect();
    let plan = Plan { reactors: 2, ..Plan::default() };
    let (node, addresses) = node::start(&plan, vec![Exported::new(FIRST, devices)]);
    let (mut controller, mut queues) = connect(options(addresses[0], FIRST, "host"), 2, 4, 4096);
    assert_eq!(controller.namespaces().unwrap(), (1..=1024).collect::<Vec<_>>());
    for nsid in 1..=1024 {
        assert_eq!(controller.namespace(nsid).unwrap().nsze.get(), u64::from(nsid));
        let queue = &mut queues[nsid as usize % 2];
        assert!(read(queue, nsid, u64::from(nsid) - 1).is_ok());
        assert_eq!(read(queue, nsid, u64::from(nsid)), Err(Status::LBA_OUT_OF_RANGE.with_dnr()));
    }
    assert_eq!(write(&mut queues[0], 1024, 1023, 5), Status::SUCCESS);
    assert_eq!(read(&mut queues[1], 1024, 1023), Ok(5));
    assert_eq!(read(&mut queues[1], 1025, 0), Err(Status::INVALID_NAMESPACE.with_dnr()));
    drop((controller, queues));
    node.shutdown(PATIENCE).unwrap();
}

#[test]
fn the_binary_serves_ipv6_and_refuses_writes_to_a_read_only_device() {
    let folder = folder();
    std::fs::write(folder.path().join("image"), vec![3; 1 << 20]).unwrap();
    let port = free_port();
    let daemon = Daemon::start(
        folder.path(),
        &format!(
            "[devices.image]\nkind = \"file\"\npath = \"image\"\nread_only = true\nblock_size = 512\n\
             [[subsystems]]\nnqn = \"{FIRST}\"\nhosts = [\"nqn.2026-11.io.tidegate:host\"]\n\
             namespaces = [{{ nsid = 7, device = \"image\" }}]\n\
             listeners = [{{ address = \"::1\", port = {port} }}]\n"
        ),
    );
    let service = port.to_string();
    let at = ["-a", "::1", "-s", &service, "-n", FIRST, "-q"];
    let host = "nqn.2026-11.io.tidegate:host";
    let identified = run_json(folder.path(), &[&["identify"], &at[..], &[host]].concat());
    assert_eq!(identified["namespaces"][0]["nsid"], 7);
    assert_eq!(identified["namespaces"][0]["read_only"], true);

    let stranger = "nqn.2026-11.io.tidegate:stranger";
    let output = run(folder.path(), &[&["identify"], &at[..], &[stranger]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(stranger) && said.contains("allow it there"), "{said}");

    let address = format!("[::1]:{port}").parse().unwrap();
    let (_controller, mut queues) = connect(options(address, FIRST, "host"), 1, 4, 4096);
    let queue = &mut queues[0];
    assert_eq!(write(queue, 7, 0, 1), Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    assert_eq!(read(queue, 7, 0), Ok(3));
    drop(daemon);
    assert!(std::fs::read(folder.path().join("image")).unwrap().iter().all(|&byte| byte == 3));
}
