//! Faults, each with the status, event and consequence that it has on hardware.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests")]

use memory::{Arena, ArenaConfig, Hugepages, SLAB_SIZE};
use verbs::{
    Access, AsyncEvent, Capacity, Completion, Fabric, Flags, Parameters, RegisteredArena, Remote,
    SendChain, State, Status, VerbsError, Work,
};

use crate::support::{Driver, End, Shape, TARGET, connected, connected_by, registered, software};

struct Stage {
    fabric: Fabric,
    driver: Driver,
    host: End,
    target: End,
    chain: SendChain,
}

fn stage_with(host_shape: Shape, target_shape: Shape, parameters: Parameters<'_>) -> Stage {
    let (fabric, host, target) = software(42);
    let driver = Driver(Some(fabric.clone()));
    let shapes = (host_shape, target_shape);
    let at = TARGET.parse().unwrap();
    let (host, target) = connected(&driver, (&host, &target), at, shapes, parameters);
    Stage { fabric, driver, host, target, chain: SendChain::new(64, 64) }
}

fn stage() -> Stage {
    let parameters = Parameters { rnr_retries: 2, retries: 3, ..Parameters::default() };
    stage_with(Shape { shared: 0, ..Shape::default() }, Shape::default(), parameters)
}

impl Stage {
    /// Gives the target other memory, which can be looked at since no peer writes to it.
    fn target_keeps_peers_out(&mut self) {
        let domain = self.target.queue.pair().domain();
        (self.target.memory, self.target.pool) = registered(domain, Access::LOCAL_WRITE);
    }

    /// Has the target do this, and says how it ended.
    fn outcome(&mut self, work: Work) -> Status {
        let data = self.target.filled(&[1; 64]);
        self.chain.push(work, Flags::SIGNALED, 1, &self.target.memory, [data]).unwrap();
        self.target.queue.post(&mut self.chain).unwrap();
        let completion = self.first(true);
        assert_eq!((completion.tag(), completion.is_receive()), (1, false));
        completion.status()
    }

    /// The next completion of the target or the host.
    fn first(&mut self, of_target: bool) -> Completion {
        let end = if of_target { &mut self.target } else { &mut self.host };
        self.driver.until("a completion", || end.poll_one())
    }

    fn remote(&self, length: usize) -> (memory::Segment, Remote) {
        let segment = self.host.filled(&vec![3; length]);
        let remote = self.host.memory.remote(&segment).unwrap();
        (segment, remote)
    }

    fn event(&self, of_target: bool) -> AsyncEvent {
        let device = if of_target { &self.target.device } else { &self.host.device };
        self.driver.until("an event", || device.next_event().unwrap())
    }
}

#[test]
fn a_receiver_that_is_not_ready_is_tried_again_and_then_given_up() {
    let mut stage = stage();
    assert_eq!(stage.outcome(Work::Send), Status::RNR_RETRY_EXCEEDED);
    assert!(stage.fabric.not_ready() >= 3);
    assert_eq!(stage.target.queue.pair().state().unwrap(), State::Error);
    assert_eq!(stage.host.queue.pair().state().unwrap(), State::ReadyToSend);
}

#[test]
fn a_receiver_that_becomes_ready_in_time_loses_nothing() {
    let mut stage = stage();
    stage.host.receive(0, 64);
    stage.fabric.not_ready_for(stage.host.number(), 2);
    assert_eq!(stage.outcome(Work::Send), Status::SUCCESS);
    assert_eq!(stage.fabric.not_ready(), 2);
}

#[test]
fn for_ever_is_for_ever() {
    let mut stage = stage_with(Shape::default(), Shape::default(), Parameters::default());
    stage.chain.push_inline(Work::Send, Flags::SIGNALED, 1, b"x").unwrap();
    stage.target.queue.post(&mut stage.chain).unwrap();
    assert_eq!(stage.fabric.run(1000), 0);
    stage.host.receive(0, 64);
    assert_eq!(stage.first(true).status(), Status::SUCCESS);
}

#[test]
fn a_receiver_that_becomes_ready_late_is_waited_for_where_that_is_for_ever() {
    let mut stage = stage_with(Shape::default(), Shape::default(), Parameters::default());
    stage.host.receive(0, 64);
    stage.fabric.not_ready_for(stage.host.number(), 100);
    assert_eq!(stage.outcome(Work::Send), Status::SUCCESS);
    assert_eq!(stage.fabric.not_ready(), 100);
}

#[test]
fn a_peer_that_is_cut_off_exhausts_the_retries() {
    let mut stage = stage();
    stage.host.receive(0, 64);
    stage.fabric.cut(stage.host.number(), true);
    assert_eq!(stage.outcome(Work::Send), Status::RETRY_EXCEEDED);
}

#[test]
fn a_port_that_goes_down_is_reported_and_its_messages_are_lost() {
    let mut stage = stage();
    stage.host.receive(0, 64);
    let device = stage.host.device.clone();
    stage.fabric.set_port(&device, false);
    assert_eq!(stage.event(false), AsyncEvent::PortError(1));
    assert!(!device.port(1).unwrap().active);
    assert_eq!(stage.outcome(Work::Send), Status::RETRY_EXCEEDED);
    stage.fabric.set_port(&device, true);
    assert_eq!(stage.event(false), AsyncEvent::PortActive(1));
    assert!(device.port(1).unwrap().active);
}

#[test]
fn memory_is_reached_by_its_key_inside_its_bounds_only() {
    let slab = memory::SLAB_SIZE as u64;
    let cases: [fn(Remote, u64) -> Remote; 4] = [
        |remote, _| Remote { key: remote.key ^ 1, ..remote },
        |remote, slab| Remote { address: remote.address / slab * slab + slab - 63, ..remote },
        |remote, slab| Remote { address: remote.address / slab * slab - 1, ..remote },
        |remote, _| Remote { address: u64::MAX - 8, ..remote },
    ];
    for (case, wrong) in cases.iter().enumerate() {
        for read in [false, true] {
            let mut stage = stage();
            let (_segment, remote) = stage.remote(64);
            let remote = wrong(remote, slab);
            let work = if read { Work::Read(remote) } else { Work::Write(remote) };
            assert_eq!(stage.outcome(work), Status::REMOTE_ACCESS, "case {case}, read {read}");
            let event = AsyncEvent::QueuePairError { qp_num: stage.host.number() };
            assert_eq!(stage.event(false), event);
            assert_eq!(stage.host.queue.pair().state().unwrap(), State::Error);
        }
    }
}

#[test]
fn memory_of_another_domain_or_taken_back_is_not_reached() {
    let mut stage = stage();
    let domain = verbs::Domain::new(&stage.host.device).unwrap();
    let (other, pool) = registered(&domain, Access::all());
    let buffer = pool.take(64).unwrap();
    let remote = other.remote(&buffer.segment(0, 64).unwrap()).unwrap();
    assert_eq!(stage.outcome(Work::Write(remote)), Status::REMOTE_ACCESS);

    let mut stage = self::stage();
    let (_segment, remote) = stage.remote(64);
    let domain = stage.host.queue.pair().domain().clone();
    stage.host.memory = registered(&domain, Access::all()).0;
    assert_eq!(stage.outcome(Work::Read(remote)), Status::REMOTE_ACCESS);
}

#[test]
fn local_memory_of_another_domain_is_a_protection_error() {
    let mut stage = stage();
    let (_segment, remote) = stage.remote(64);
    let domain = verbs::Domain::new(&stage.target.device).unwrap();
    let (other, pool) = registered(&domain, Access::all());
    let segment = pool.take(64).unwrap().segment(0, 64).unwrap();
    // Not of the arena that was registered: found before it is posted.
    let error =
        stage.chain.push(Work::Send, Flags::SIGNALED, 1, &stage.target.memory, [segment.clone()]);
    assert!(matches!(error, Err(VerbsError::Misuse(_))), "{error:?}");
    stage.chain.push(Work::Write(remote), Flags::SIGNALED, 1, &other, [segment]).unwrap();
    stage.target.queue.post(&mut stage.chain).unwrap();
    assert_eq!(stage.first(true).status(), Status::LOCAL_PROTECTION);
}

#[test]
fn a_key_that_was_invalidated_opens_nothing() {
    let mut stage = stage();
    let (_segment, remote) = stage.remote(64);
    assert_eq!(stage.outcome(Work::Write(remote)), Status::SUCCESS);
    stage.host.receive(4, 64);
    assert_eq!(stage.outcome(Work::SendWithInvalidate(remote.key)), Status::SUCCESS);
    let completion = stage.first(false);
    assert_eq!(completion.invalidated(), Some(remote.key));
    assert_eq!(stage.outcome(Work::Write(remote)), Status::REMOTE_ACCESS);
}

#[test]
fn a_message_that_is_too_long_breaks_both_ends() {
    let mut stage = stage();
    stage.host.receive(4, 32);
    assert_eq!(stage.outcome(Work::Send), Status::REMOTE_INVALID_REQUEST);
    let completion = stage.first(false);
    assert_eq!((completion.tag(), completion.status()), (4, Status::LOCAL_LENGTH));
    assert_eq!(stage.host.queue.pair().state().unwrap(), State::Error);
}

#[test]
fn a_shared_receive_queue_tells_of_its_limit_once_and_of_the_last_receive() {
    let mut stage = stage();
    (0..3).for_each(|tag| stage.target.receive(tag, 64));
    stage.target.shared.as_ref().unwrap().queue().arm_limit(3).unwrap();
    for _ in 0..2 {
        stage.chain.push_inline(Work::Send, Flags::SIGNALED, 1, b"x").unwrap();
        stage.host.queue.post(&mut stage.chain).unwrap();
        assert_eq!(stage.first(true).status(), Status::SUCCESS);
    }
    assert_eq!(stage.event(true), AsyncEvent::SharedReceiveQueueLimit { token: 88 });
    assert_eq!(stage.target.device.next_event().unwrap(), None);
    stage.target.queue.pair().fail().unwrap();
    let qp_num = stage.target.number();
    assert_eq!(stage.event(true), AsyncEvent::LastWqeReached { qp_num });
    // The third stays, for other queue pairs.
    assert!(stage.target.poll().is_empty());
}

#[test]
fn a_completion_queue_that_overflows_is_the_end_of_its_queue_pairs() {
    let small = Shape { completions: 2, ..Shape::default() };
    let mut stage = stage_with(Shape::default(), small, Parameters::default());
    let (_segment, remote) = stage.remote(64);
    for tag in 0..3 {
        stage.chain.push_inline(Work::Write(remote), Flags::SIGNALED, tag, b"x").unwrap();
    }
    stage.target.queue.post(&mut stage.chain).unwrap();
    stage.fabric.run(1000);
    assert_eq!(stage.event(true), AsyncEvent::CompletionQueueError { token: 77 });
    assert_eq!(stage.target.queue.pair().state().unwrap(), State::Error);
    assert_eq!(stage.target.poll().len(), 2);
}

#[test]
fn reads_are_bounded_by_what_was_agreed() {
    let few = Parameters { initiator_depth: 2, responder_resources: 2, ..Parameters::default() };
    let mut stage = stage_with(Shape::default(), Shape::default(), few);
    let (_segment, remote) = stage.remote(64);
    for tag in 0..8 {
        let into = stage.target.filled(&[0; 64]);
        let chained = stage.chain.push(
            Work::Read(remote),
            Flags::SIGNALED,
            tag,
            &stage.target.memory,
            [into],
        );
        chained.unwrap();
    }
    stage.target.queue.post(&mut stage.chain).unwrap();
    for _ in 0..8 {
        assert_eq!(stage.first(true).status(), Status::SUCCESS);
    }
    let none = Parameters { initiator_depth: 0, responder_resources: 0, ..Parameters::default() };
    let mut stage = stage_with(Shape::default(), Shape::default(), none);
    let (_segment, remote) = stage.remote(64);
    assert_eq!(stage.outcome(Work::Read(remote)), Status::LOCAL_QP_OPERATION);
}

#[test]
fn more_reads_at_a_time_than_the_peer_answers_break_the_queue_pair() {
    let (fabric, host, target) = software(42);
    let driver = Driver(Some(fabric.clone()));
    let one = Parameters { responder_resources: 1, ..Parameters::default() };
    let four = Parameters { initiator_depth: 4, ..Parameters::default() };
    let (libraries, shapes) = ((&host, &target), (Shape::default(), Shape::default()));
    let at = TARGET.parse().unwrap();
    let (host, target) = connected_by(&driver, libraries, at, shapes, (one, four));
    let mut stage = Stage { fabric, driver, host, target, chain: SendChain::new(64, 64) };
    let (_segment, remote) = stage.remote(64);
    for tag in 0..20 {
        let into = stage.target.filled(&[0; 64]);
        stage
            .chain
            .push(Work::Read(remote), Flags::SIGNALED, tag, &stage.target.memory, [into])
            .unwrap();
    }
    stage.target.queue.post(&mut stage.chain).unwrap();
    stage.fabric.run(1000);
    let mut all = Vec::new();
    while let taken = stage.target.poll()
        && !taken.is_empty()
    {
        all.extend(taken);
    }
    assert_eq!(all.len(), 20);
    assert_eq!(all[0].status(), Status::SUCCESS, "what came before was answered");
    let failed = all.iter().find(|completion| completion.status() != Status::SUCCESS).unwrap();
    assert_eq!(failed.status(), Status::REMOTE_INVALID_REQUEST);
    assert_eq!(stage.event(false), AsyncEvent::QueuePairError { qp_num: stage.host.number() });
}

#[test]
fn a_full_send_queue_refuses_and_completions_make_room() {
    let capacity = Capacity { sends: 3, receives: 1, pieces: 1, inline: 16 };
    let shape = Shape { capacity, ..Shape::default() };
    let mut stage = stage_with(Shape::default(), shape, Parameters::default());
    let (_segment, remote) = stage.remote(64);
    for flags in [Flags::empty(), Flags::empty(), Flags::SIGNALED] {
        stage.chain.push_inline(Work::Write(remote), flags, 0, b"x").unwrap();
    }
    stage.target.queue.post(&mut stage.chain).unwrap();
    stage.chain.push_inline(Work::Write(remote), Flags::SIGNALED, 1, b"y").unwrap();
    let error = stage.target.queue.post(&mut stage.chain).unwrap_err();
    assert!(matches!(error, VerbsError::Full { wanted: 1, room: 0 }), "{error}");
    // All have ended, but nobody has looked.
    stage.fabric.run(1000);
    assert!(stage.target.queue.post(&mut stage.chain).is_err());
    assert_eq!(stage.target.poll().len(), 1);
    assert_eq!(stage.target.queue.room(), 3);
    stage.target.queue.post(&mut stage.chain).unwrap();
    assert_eq!(stage.first(true).tag(), 1);
}

#[test]
fn what_is_posted_is_lent_until_it_has_ended() {
    let mut stage = stage();
    let (_segment, remote) = stage.remote(64);
    let buffer = stage.target.buffer(&[1; 64]);
    let segment = buffer.segment(0, 64).unwrap();
    stage
        .chain
        .push(Work::Write(remote), Flags::empty(), 0, &stage.target.memory, [segment])
        .unwrap();
    assert!(buffer.is_lent());
    stage.target.queue.post(&mut stage.chain).unwrap();
    stage.fabric.run(1000);
    assert!(buffer.is_lent(), "nobody has told us that it ended");
    stage.chain.push_inline(Work::Write(remote), Flags::SIGNALED, 1, b"x").unwrap();
    stage.target.queue.post(&mut stage.chain).unwrap();
    assert_eq!(stage.first(true).tag(), 1);
    assert!(!buffer.is_lent());
}

#[test]
fn queue_pairs_complete_out_of_order_among_each_other_on_demand() {
    let (fabric, host, target) = software(1);
    let driver = Driver(Some(fabric.clone()));
    let shapes = (Shape::default(), Shape::default());
    let mut ends = [4420, 4421].map(|port| {
        let at = format!("192.0.2.2:{port}").parse().unwrap();
        connected(&driver, (&host, &target), at, shapes, Parameters::default())
    });
    let mut chain = SendChain::new(1, 1);
    fabric.hold(ends[0].1.number(), true);
    for (host, target) in &mut ends {
        host.receive(0, 64);
        chain.push_inline(Work::Send, Flags::SIGNALED, 0, b"x").unwrap();
        target.queue.post(&mut chain).unwrap();
    }
    fabric.run(1000);
    assert!(ends[0].1.poll().is_empty() && ends[1].1.poll().len() == 1);
    fabric.hold(ends[0].1.number(), false);
    fabric.run(1000);
    assert_eq!(ends[0].1.poll().len(), 1);
}

#[test]
fn a_shared_queue_that_is_still_in_use_keeps_what_is_posted() {
    let mut stage = stage();
    let buffer = stage.target.buffer(&[0; 64]);
    let segments = [buffer.segment(0, 64), None];
    let shared = stage.target.shared.as_mut().unwrap();
    shared.push(0, &stage.target.memory, segments).unwrap();
    shared.flush().unwrap();
    stage.target.shared = None;
    assert!(buffer.is_lent(), "the queue pair can still receive into it");
}

#[test]
fn a_completion_gives_back_the_loan_of_its_own_receive_alone() {
    for shared in [0, 8] {
        let shape = Shape { shared, ..Shape::default() };
        let mut stage = stage_with(Shape::default(), shape, Parameters::default());
        let mut other = stage_with(Shape::default(), shape, Parameters::default());
        stage.target.receive(3, 64);
        stage.chain.push_inline(Work::Send, Flags::SIGNALED, 0, b"x").unwrap();
        stage.host.queue.post(&mut stage.chain).unwrap();
        let completion = stage.first(true);
        assert!(completion.is_receive() && completion.tag() == 3);
        // The same number, and the same tag: those of another fabric.
        assert_eq!(other.target.number(), stage.target.number());
        other.target.receive(3, 64);
        assert!(other.target.taken(&completion).is_none(), "it is of another queue");
        assert!(stage.target.taken(&completion).is_some());
        stage.target.receive(3, 64);
        assert!(stage.target.taken(&completion).is_none(), "the device has it again");
    }
}

#[test]
fn a_completion_gives_back_the_loans_of_its_own_sends_alone() {
    let (mut stage, mut other) = (stage(), stage());
    assert_eq!(other.target.number(), stage.target.number());
    let (_segment, remote) = stage.remote(64);
    let mut completions = Vec::new();
    for _ in 0..2 {
        stage.chain.push_inline(Work::Write(remote), Flags::SIGNALED, 0, b"x").unwrap();
        stage.target.queue.post(&mut stage.chain).unwrap();
        completions.push(stage.first(true));
    }
    let (_segment, remote) = other.remote(64);
    let buffer = other.target.buffer(&[1; 64]);
    let segment = buffer.segment(0, 64).unwrap();
    let work = Work::Write(remote);
    other.chain.push(work, Flags::SIGNALED, 0, &other.target.memory, [segment]).unwrap();
    other.target.queue.post(&mut other.chain).unwrap();
    for completion in &completions {
        other.target.queue.retire(completion);
        stage.target.queue.retire(completion);
    }
    assert!(buffer.is_lent(), "the device still reads it");
    assert_eq!(other.target.queue.outstanding(), 1);
    assert_eq!(stage.target.queue.outstanding(), 0);
    other.first(true);
    assert!(!buffer.is_lent());
}

#[test]
fn nobody_looks_at_what_a_device_may_be_writing() {
    for shared in [0, 8] {
        let shape = Shape { shared, ..Shape::default() };
        let mut stage = stage_with(Shape::default(), shape, Parameters::default());
        stage.target_keeps_peers_out();
        stage.target.receive(0, 64);
        stage.chain.push_inline(Work::Send, Flags::SIGNALED, 0, b"x").unwrap();
        stage.host.queue.post(&mut stage.chain).unwrap();
        let completion = stage.first(true);
        let segment = stage.target.taken(&completion).unwrap();
        assert_eq!(segment.view(|bytes| bytes[0]), Some(b'x'));
        // Posted again, it is the device's again.
        let target = &mut stage.target;
        let segments = [Some(segment.clone()), None];
        let pushed = match &mut target.shared {
            Some(shared) => shared.push(0, &target.memory, segments),
            None => target.queue.push_receive(0, &target.memory, segments),
        };
        pushed.unwrap();
        assert_eq!(segment.view(<[u8]>::len), None);
    }
    let mut stage = stage();
    stage.target_keeps_peers_out();
    let (_segment, remote) = stage.remote(64);
    let segment = stage.target.filled(&[0; 64]);
    let (work, lent) = (Work::Read(remote), segment.clone());
    stage.chain.push(work, Flags::SIGNALED, 0, &stage.target.memory, [lent]).unwrap();
    stage.target.queue.post(&mut stage.chain).unwrap();
    assert_eq!(segment.view(<[u8]>::len), None);
    stage.first(true);
    assert_eq!(segment.view(<[u8]>::len), Some(64));
    // The other way round: while somebody looks, it is not lent for that.
    let (chain, memory) = (&mut stage.chain, &stage.target.memory);
    let pushed = segment.view(|_| {
        let written = chain.push(work, Flags::SIGNALED, 0, memory, [segment.clone()]);
        let read = chain.push(Work::Write(remote), Flags::SIGNALED, 0, memory, [segment.clone()]);
        (written.is_ok(), read.is_ok())
    });
    assert_eq!(pushed, Some((false, true)));
}

#[test]
fn peers_write_only_where_nobody_has_references() {
    let stage = stage();
    let arena = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
    let mut buffer = arena.pool(SLAB_SIZE).unwrap().take(64).unwrap();
    assert!(buffer.bytes_mut().is_some());
    let domain = stage.target.queue.pair().domain();
    let error = RegisteredArena::new(domain, &arena, Access::all()).unwrap_err();
    assert!(matches!(error, VerbsError::Misuse(_)), "{error}");
    RegisteredArena::new(domain, &arena, Access::LOCAL_WRITE | Access::REMOTE_READ).unwrap();
}
