//! Connections that come about, and those that do not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use verbs::software::DeviceOptions;
use verbs::{
    Connection, Device, EventChannel, Fabric, Kind, Library, Parameters, QueuePair,
    REJECTED_BY_CONSUMER, REJECTED_NOBODY_LISTENS, VerbsError,
};

use crate::support::{
    Driver, End, Shape, TARGET, connected, listener, requested, resolved, software,
};

fn at() -> SocketAddr {
    TARGET.parse().unwrap()
}

/// Someone who has found the way and is about to ask.
fn asking(driver: &Driver, host: &Library) -> (EventChannel, Connection, QueuePair, Device) {
    let (events, connection) = resolved(driver, host, at());
    let device = connection.device().unwrap().unwrap();
    let (pair, _) = End::parts(&device, Shape::default());
    (events, connection, pair, device)
}

fn stage(seed: u64) -> (Fabric, Driver, Library, Library) {
    let (fabric, host, target) = software(seed);
    (fabric.clone(), Driver(Some(fabric)), host, target)
}

#[test]
fn a_request_where_nobody_listens_is_refused() {
    let (_fabric, driver, host, _target) = stage(1);
    let (events, connection, pair, _) = asking(&driver, &host);
    connection.connect(&pair, &Parameters::default()).unwrap();
    let kind = driver.event(&events, "the answer").kind;
    assert!(matches!(kind, Kind::Rejected(REJECTED_NOBODY_LISTENS)), "{kind:?}");
}

#[test]
fn an_address_is_read_whole_while_another_thread_binds() {
    let fabric = Fabric::new(1);
    let ends = [("2001:db8::aaaa", 0xAAAA), ("2001:db8::5555", 0x5555)];
    let ends = ends.map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port));
    let mut device = DeviceOptions::new("soft0", ends[0].ip());
    device.addresses.push(ends[1].ip());
    fabric.add_device(device);
    let events = EventChannel::new(&fabric.library()).unwrap();
    let connection = Connection::new(&events).unwrap();
    connection.bind(ends[0]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000_000 {
                connection.bind(ends[round % 2]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut torn = None;
        while !done.load(Ordering::Relaxed) {
            let address = connection.local_address().unwrap();
            torn = torn.or((!ends.contains(&address)).then_some(address));
        }
        assert_eq!(torn, None);
    });
}

#[test]
fn requests_get_lost_or_refused_on_demand() {
    let (fabric, driver, host, target) = stage(2);
    let _listening = listener(&target, at());
    fabric.lose_requests(1);
    let (events, connection, pair, _) = asking(&driver, &host);
    connection.connect(&pair, &Parameters::default()).unwrap();
    let kind = driver.event(&events, "the answer").kind;
    assert!(matches!(kind, Kind::Failed(_)), "{kind:?}");
    fabric.refuse_request(24);
    let (events, connection, pair, _) = asking(&driver, &host);
    connection.connect(&pair, &Parameters::default()).unwrap();
    let kind = driver.event(&events, "the answer").kind;
    assert!(matches!(kind, Kind::Rejected(24)), "{kind:?}");
}

#[test]
fn who_is_dropped_unanswered_is_refused() {
    for seen in [false, true] {
        let (fabric, driver, host, target) = stage(3);
        let (target_events, listening) = listener(&target, at());
        let (events, connection, pair, _) = asking(&driver, &host);
        connection.connect(&pair, &Parameters::default()).unwrap();
        if seen {
            let (request, _) = requested(&driver, &target_events, listening.id());
            drop(request);
        } else {
            fabric.run(100);
        }
        drop((listening, target_events));
        let kind = driver.event(&events, "the answer").kind;
        assert!(
            matches!(kind, Kind::Rejected(REJECTED_BY_CONSUMER | REJECTED_NOBODY_LISTENS)),
            "{kind:?}"
        );
    }
}

#[test]
fn a_listener_on_all_addresses_takes_those_of_its_family() {
    let (_fabric, driver, host, target) = stage(4);
    let (target_events, listening) = listener(&target, "0.0.0.0:4420".parse().unwrap());
    let (_events, connection, pair, _) = asking(&driver, &host);
    let parameters =
        Parameters { private_data: &[9; 56], initiator_depth: 3, ..Parameters::default() };
    connection.connect(&pair, &parameters).unwrap();
    let event = driver.event(&target_events, "the request");
    assert_eq!(event.private_data.bytes(), &[9; 56]);
    let Kind::ConnectRequest { listener, connection: request, wishes } = event.kind else {
        panic!("{:?}", event.kind)
    };
    assert_eq!((listener, event.connection), (listening.id(), request.id()));
    assert_eq!((wishes.responder_resources, wishes.initiator_depth), (3, 16));
    assert_eq!(request.local_address(), Some(at()));
    assert_eq!(request.peer_address().unwrap().ip().to_string(), "192.0.2.1");
    assert_eq!(request.device().unwrap().unwrap().name(), "soft1");
    assert_eq!(request.port(), 1);
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let (_fabric, driver, host, target) = stage(5);
    let (target_events, listening) = listener(&target, at());
    let second = Connection::new(&target_events).unwrap();
    assert_eq!(second.bind(at()).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    let foreign = second.bind("198.51.100.1:1".parse().unwrap()).unwrap_err();
    assert_eq!(foreign.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let (_events, connection, pair, _) = asking(&driver, &host);
    let long = Parameters { private_data: &[0; 57], ..Parameters::default() };
    assert_eq!(connection.connect(&pair, &long).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    // A queue pair of another process, or another device.
    let other = target.devices().unwrap().remove(0);
    let (stranger, _) = End::parts(&other, Shape::default());
    let error = connection.connect(&stranger, &Parameters::default()).unwrap_err();
    assert!(matches!(error, VerbsError::Misuse(_)), "{error}");
    assert!(connection.accept(&Parameters::default()).is_err());
    assert!(connection.establish(&Parameters::default()).is_err());
    drop(listening);
}

#[test]
fn an_end_that_vanishes_disconnects_the_other() {
    for seed in 0..50 {
        let (fabric, driver, host, target) = stage(seed);
        let shapes = (Shape::default(), Shape::default());
        let (host, target) =
            connected(&driver, (&host, &target), at(), shapes, Parameters::default());
        drop(host);
        let kind = driver.event(&target.events, "the end").kind;
        assert!(matches!(kind, Kind::Disconnected), "{kind:?}");
        target.connection.disconnect().unwrap_err();
        drop(target);
        assert_eq!(fabric.census(), [0; 6]);
    }
}

#[test]
fn a_device_that_is_removed_takes_everything_along() {
    let (fabric, driver, host_library, target_library) = stage(7);
    let shapes = (Shape::default(), Shape::default());
    let libraries = (&host_library, &target_library);
    let (host, mut target) = connected(&driver, libraries, at(), shapes, Parameters::default());
    target.receive(0, 64);
    fabric.remove_device(&target.device);
    let kind = driver.event(&target.events, "the removal").kind;
    assert!(matches!(kind, Kind::DeviceRemoved), "{kind:?}");
    let event = driver.until("the fatal event", || target.device.next_event().unwrap());
    assert_eq!(event, verbs::AsyncEvent::DeviceFatal);
    assert!(target.device.is_removed());
    assert!(verbs::Domain::new(&target.device).is_err());
    let names: Vec<_> =
        target_library.devices().unwrap().iter().map(|d| d.name().to_owned()).collect();
    assert_eq!(names.len(), 1);
    drop((host, target));
    assert_eq!(fabric.census(), [0; 6]);
}

#[test]
fn a_connection_outlives_its_queue_pair() {
    let (_fabric, driver, host, target) = stage(9);
    let shapes = (Shape::default(), Shape::default());
    let (host, target) = connected(&driver, (&host, &target), at(), shapes, Parameters::default());
    let End { queue, connection, events, .. } = host;
    drop(queue);
    connection.disconnect().unwrap();
    assert!(matches!(driver.event(&events, "its own end").kind, Kind::Disconnected));
    assert!(matches!(driver.event(&target.events, "the other's end").kind, Kind::Disconnected));
}

#[test]
fn addresses_that_lead_nowhere_fail() {
    let (_fabric, driver, host, _target) = stage(8);
    let events = EventChannel::new(&host).unwrap();
    let connection = Connection::new(&events).unwrap();
    let to = "[2001:db8::1]:4420".parse().unwrap();
    connection.resolve_address(None, to, Duration::from_secs(1)).unwrap();
    let event = driver.event(&events, "the answer");
    assert!(matches!(event.kind, Kind::Failed(_)), "{event:?}");
    assert_eq!(connection.device().unwrap(), None);
}
