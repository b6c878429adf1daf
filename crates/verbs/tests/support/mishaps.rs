//! What goes wrong between two ends without anybody's help, and how it shows, on any provider.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests")]

use std::net::SocketAddr;

use verbs::{
    AsyncEvent, Flags, Kind, Library, Parameters, REJECTED_NOBODY_LISTENS, Remote, SendChain,
    State, Status, Work,
};

use crate::support::{Driver, End, Shape, connected, listener, requested, resolved};

/// The first completion of an end, and the state it left.
fn first(driver: &Driver, end: &mut End) -> (u32, Status) {
    let completion = driver.until("a completion", || end.poll_one());
    (completion.tag(), completion.status())
}

/// An event of this queue pair's device, whatever else is reported.
fn reported(driver: &Driver, end: &End, wanted: AsyncEvent) {
    driver.until("an event", || (end.device.next_event().unwrap()? == wanted).then_some(()));
}

/// Runs all of it; `say` is told of each thing that was shown.
pub(crate) fn mishaps(
    driver: &Driver,
    libraries: (&Library, &Library),
    at: SocketAddr,
    say: &mut dyn FnMut(&str),
) {
    let (host_library, target_library) = libraries;
    let mut port = at.port() + 10;
    let mut next = || {
        port += 1;
        SocketAddr::new(at.ip(), port)
    };
    let mut chain = SendChain::new(8, 8);

    let to = next();
    let (events, connection) = resolved(driver, host_library, to);
    let (pair, _) = End::parts(&connection.device().unwrap().unwrap(), Shape::default());
    connection.connect(&pair, &Parameters::default()).unwrap();
    let event = driver.event(&events, "the refusal");
    assert!(matches!(event.kind, Kind::Rejected(REJECTED_NOBODY_LISTENS)), "{event:?}");
    drop((pair, connection, events));
    say("nobody-listens");

    let to = next();
    let all = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let (target_events, listening) =
        listener(target_library, SocketAddr::new(all.parse().unwrap(), to.port()));
    let (events, connection) = resolved(driver, host_library, to);
    let (pair, _) = End::parts(&connection.device().unwrap().unwrap(), Shape::default());
    connection.connect(&pair, &Parameters::default()).unwrap();
    let (request, _) = requested(driver, &target_events, listening.id());
    assert_eq!(request.local_address().unwrap().ip(), to.ip());
    drop(request);
    let event = driver.event(&events, "the refusal");
    assert!(matches!(event.kind, Kind::Rejected(_)), "{event:?}");
    drop((pair, connection, events, listening, target_events));
    say("listener-on-all-addresses-drops-a-request");

    let parameters = Parameters { rnr_retries: 2, ..Parameters::default() };
    let shapes = (Shape { shared: 0, ..Shape::default() }, Shape::default());
    let (mut host, mut target) = connected(driver, libraries, next(), shapes, parameters);
    chain.push_inline(Work::Send, Flags::SIGNALED, 1, b"x").unwrap();
    chain.push_inline(Work::Send, Flags::empty(), 2, b"x").unwrap();
    target.queue.post(&mut chain).unwrap();
    assert_eq!(first(driver, &mut target), (1, Status::RNR_RETRY_EXCEEDED));
    assert_eq!(first(driver, &mut target), (2, Status::FLUSHED));
    assert_eq!(target.queue.outstanding(), 0);
    assert_eq!(target.queue.pair().state().unwrap(), State::Error);
    assert!(host.poll().is_empty());
    say("receiver-not-ready-is-given-up");
    target.queue.pair().fail().unwrap();
    let last = AsyncEvent::LastWqeReached { qp_num: target.number() };
    if driver.0.is_some() {
        reported(driver, &target, last);
    } else {
        // rxe does not report it on every kernel.
        let start = std::time::Instant::now();
        let mut told = false;
        while !told && start.elapsed().as_secs() < 2 {
            told = target.device.next_event().unwrap() == Some(last);
        }
        say(if told { "last-wqe-is-reported" } else { "last-wqe-is-not-reported-by-this-device" });
    }

    let (mut host, mut target) =
        connected(driver, libraries, next(), shapes, Parameters::default());
    let segment = host.filled(&[1; 64]);
    let Remote { address, key } = host.memory.remote(&segment).unwrap();
    let beyond = Remote { address: address / (2 << 20) * (2 << 20) + (2 << 20) - 8, key };
    host.receive(7, 64);
    chain.push_inline(Work::Write(beyond), Flags::empty(), 1, &[0; 16]).unwrap();
    chain.push_inline(Work::Send, Flags::SIGNALED, 2, b"x").unwrap();
    target.queue.post(&mut chain).unwrap();
    assert_eq!(first(driver, &mut target), (1, Status::REMOTE_ACCESS));
    assert_eq!(first(driver, &mut target), (2, Status::FLUSHED));
    assert_eq!(first(driver, &mut host), (7, Status::FLUSHED));
    assert_eq!(host.queue.pair().state().unwrap(), State::Error);
    say("remote-access-beyond-a-region");

    let (mut host, mut target) =
        connected(driver, libraries, next(), shapes, Parameters::default());
    (0..3).for_each(|tag| target.receive(tag, 64));
    target.shared.as_ref().unwrap().queue().arm_limit(3).unwrap();
    chain.push_inline(Work::Send, Flags::SIGNALED, 1, b"x").unwrap();
    host.queue.post(&mut chain).unwrap();
    assert_eq!(first(driver, &mut host), (1, Status::SUCCESS));
    reported(driver, &target, AsyncEvent::SharedReceiveQueueLimit { token: 88 });
    say("shared-receive-queue-limit");

    // The receiver posts late, and the message arrives nevertheless.
    let late = Parameters { rnr_retries: 7, ..Parameters::default() };
    let (mut host, mut target) = connected(driver, libraries, next(), shapes, late);
    chain.push_inline(Work::Send, Flags::SIGNALED, 1, b"x").unwrap();
    target.queue.post(&mut chain).unwrap();
    let start = std::time::Instant::now();
    if driver.0.is_none() {
        // Long enough for some refusals; a timer of 655 ms would show.
        while start.elapsed().as_millis() < 20 {
            assert!(target.poll().is_empty());
        }
    }
    host.receive(3, 64);
    let posted = std::time::Instant::now();
    assert_eq!(first(driver, &mut target), (1, Status::SUCCESS));
    assert_eq!(first(driver, &mut host), (3, Status::SUCCESS));
    assert!(posted.elapsed().as_millis() < 500, "waited {:?}", posted.elapsed());
    say("receiver-becomes-ready");
}
