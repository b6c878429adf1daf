//! What two ends say to each other to show that everything works, on any provider.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "helpers of tests"
)]

use std::net::SocketAddr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use verbs::{Flags, Kind, Library, Parameters, SendChain, State, Status, Work};

use crate::support::{Driver, End, Shape, bytes_of, connected, listener, requested, resolved};

/// Waits for the completion with this tag and kind, and sees that it succeeded.
fn wait(driver: &Driver, end: &mut End, receive: bool, tag: u32) -> verbs::Completion {
    driver.until("a completion", || {
        let completion = end.poll_one()?;
        assert_eq!(completion.status(), Status::SUCCESS, "{completion:?}");
        assert_eq!((completion.is_receive(), completion.tag()), (receive, tag));
        Some(completion)
    })
}

/// Runs the whole conversation; `say` is told of each thing that was shown.
pub(crate) fn conversation(
    driver: &Driver,
    (host_library, target_library): (&Library, &Library),
    at: SocketAddr,
    say: &mut dyn FnMut(&str),
) {
    let parameters =
        Parameters { responder_resources: 4, initiator_depth: 4, ..Parameters::default() };
    let shapes = (Shape { shared: 0, ..Shape::default() }, Shape::default());
    let (mut host, mut target) =
        connected(driver, (host_library, target_library), at, shapes, parameters);
    assert_eq!(target.queue.pair().state().unwrap(), State::ReadyToSend);
    assert_eq!(target.connection.local_address(), Some(at));
    say("connect-with-private-data");

    let mut chain = SendChain::new(8, 16);
    target.receive(5, 64);
    chain.push(Work::Send, Flags::SIGNALED, 1, &host.memory, [host.filled(b"a command")]).unwrap();
    host.queue.post(&mut chain).unwrap();
    let completion = wait(driver, &mut target, true, 5);
    assert_eq!((completion.byte_len(), completion.qp_num()), (9, target.number()));
    assert_eq!(&bytes_of(&target.taken(&completion).unwrap())[..9], b"a command");
    wait(driver, &mut host, false, 1);
    assert_eq!(host.queue.outstanding(), 0);
    say("send-into-shared-receive-queue");

    // The life of a read: data by an unsignalled write, the response inline, one post, one completion.
    let hosts = host.buffer(&[0; 8192]);
    let remote = host.memory.remote(&hosts.segment(0, 8192).unwrap()).unwrap();
    host.receive(3, 16);
    let (first, second) = (target.filled(&[7; 4096]), target.filled(&[8; 4096]));
    chain.push(Work::Write(remote), Flags::empty(), 0, &target.memory, [first, second]).unwrap();
    chain.push_inline(Work::Send, Flags::SIGNALED, 9, b"its response....").unwrap();
    target.queue.post(&mut chain).unwrap();
    assert_eq!(target.queue.outstanding(), 2);
    let completion = wait(driver, &mut host, true, 3);
    assert_eq!(bytes_of(&host.taken(&completion).unwrap()), b"its response....");
    let written = bytes_of(&hosts.segment(0, 8192).unwrap());
    assert!(
        written[..4096].iter().all(|&byte| byte == 7)
            && written[4096..].iter().all(|&byte| byte == 8)
    );
    wait(driver, &mut target, false, 9);
    assert_eq!(target.queue.outstanding(), 0);
    say("write-unsignalled-and-inline-response");

    let into = target.buffer(&[0; 8192]);
    let segment = into.segment(0, 8192).unwrap();
    chain.push(Work::Read(remote), Flags::SIGNALED, 4, &target.memory, [segment.clone()]).unwrap();
    target.queue.post(&mut chain).unwrap();
    let completion = wait(driver, &mut target, false, 4);
    assert_eq!(completion.status(), Status::SUCCESS);
    assert_eq!(bytes_of(&segment), written);
    say("read");

    // Sleeping: armed, told once, armed anew.
    for round in 0..2 {
        target.cq.arm().unwrap();
        assert!(target.poll().is_empty());
        assert_eq!(target.channel.next_event().unwrap(), None);
        target.receive(6, 64);
        chain.push_inline(Work::Send, Flags::SIGNALED, 2, &[round; 4]).unwrap();
        host.queue.post(&mut chain).unwrap();
        let readable = driver.until("the channel", || {
            let mut fds = [PollFd::new(&target.channel, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            (poll(&mut fds, Some(&now)).unwrap() == 1).then_some(true)
        });
        assert!(readable);
        assert_eq!(target.channel.next_event().unwrap(), Some(77));
        let completion = wait(driver, &mut target, true, 6);
        target.taken(&completion).unwrap();
        wait(driver, &mut host, false, 2);
    }
    say("completion-channel");

    // A second host is turned away.
    let (turned, other) = {
        let at = SocketAddr::new(at.ip(), at.port() + 1);
        let (events, listening) = listener(target_library, at);
        let (host_events, connection) = resolved(driver, host_library, at);
        let (pair, _build) = End::parts(&connection.device().unwrap().unwrap(), Shape::default());
        connection.connect(&pair, &Parameters::default()).unwrap();
        let (request, _) = requested(driver, &events, listening.id());
        request.reject(&[1, 0, 6, 0]).unwrap();
        let event = driver.event(&host_events, "the refusal");
        (event, pair.number())
    };
    assert_ne!(other, 0);
    assert!(matches!(turned.kind, Kind::Rejected(verbs::REJECTED_BY_CONSUMER)), "{turned:?}");
    assert_eq!(&turned.private_data.bytes()[..4], &[1, 0, 6, 0]);
    say("reject-with-private-data");

    // The end: what is posted is flushed, the peer is told, the shared queue's last receive is reported.
    host.receive(11, 64);
    target.connection.disconnect().unwrap();
    let event = driver.event(&host.events, "the end");
    assert!(matches!(event.kind, Kind::Disconnected), "{event:?}");
    host.connection.disconnect().unwrap_or_default();
    host.queue.pair().fail().unwrap();
    let flushed = driver.until("the flush", || host.poll_one());
    assert_eq!((flushed.tag(), flushed.is_receive()), (11, true));
    assert_eq!(flushed.status(), Status::FLUSHED);
    assert!(host.taken(&flushed).is_some());
    assert_eq!(target.queue.pair().state().unwrap(), State::Error);
    say("disconnect-and-flush");
}
