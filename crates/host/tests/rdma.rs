//! The host over RDMA, on software devices, against a controller that may misbehave.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod answers;
mod rdma_stub;

use answers::{BLOCK, Script, options};
use host::{
    Completion, ConnectOptions, Controller, HostError, ProtocolError, Queue, RequestError, Transfer,
};
use nvme::io::{Command as Io, Transfer as Blocks};
use nvme::rdma::{Accept, Reject, RejectStatus, Request};
use nvme::{Status, U16};
use rdma_stub::{HOST, Manner, Manners, RdmaStub};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use verbs::software::DeviceOptions;
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_secs(20);

/// A stub with an I/O queue of `depth` to it.
fn open(seed: u64, manners: Manners, depth: u16, bytes: u32) -> (RdmaStub, Controller, Queue) {
    let stub = RdmaStub::start(seed, Script { queues: 4, ..Script::default() }, manners);
    let mut controller = Controller::connect(stub.options()).unwrap();
    let queue = controller.open_queue(1, depth, bytes).unwrap();
    (stub, controller, queue)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 13 + seed * 31) as u8).collect()
}

/// Fills every slot with a read of its own block, unsent.
fn submit_reads(queue: &mut Queue, blocks: u32) -> usize {
    let mut count = 0;
    while let Some(slot) = queue.reserve() {
        let read = Io::Read(Blocks::new(slot.index() as u64, blocks)).to_sqe(1);
        queue.submit(slot, read, Transfer::Read(blocks * BLOCK as u32)).unwrap();
        count += 1;
    }
    count
}

fn await_that(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Waits for completions until `enough`, or an error.
fn gather(queue: &mut Queue, enough: usize) -> Result<Vec<Completion>, HostError> {
    let deadline = Instant::now() + LIMIT;
    let mut ended = Vec::new();
    while ended.len() < enough {
        assert!(Instant::now() < deadline, "nothing comes any more");
        queue.flush()?;
        if !queue.receive()? {
            queue.wait(Duration::from_secs(1))?;
        }
        while let Some(completion) = queue.next_completion() {
            ended.push(completion);
        }
    }
    Ok(ended)
}

#[test]
fn both_ends_learn_of_the_queue_before_it_exists() {
    for seed in 0..16 {
        let (stub, controller, queue) = open(seed, Manners::default(), 8, 4096);
        assert_eq!(controller.cntlid(), 17);
        assert_eq!(controller.in_capsule(), answers::IN_CAPSULE);
        assert_eq!(controller.digests(), (false, false));
        // Flow control takes one entry more than there are commands.
        let requests = [Request::new(0, 32, 0), Request::new(1, 9, 17)];
        assert_eq!(*stub.seen.requests.lock().unwrap(), requests);
        assert_eq!(*stub.seen.sqsizes.lock().unwrap(), [31, 8]);
        drop(queue);
        controller.shutdown().unwrap();
        let left = || stub.seen.open.load(Ordering::Relaxed) == 0;
        await_that("the controller is told when the host leaves", left);
    }
}

#[test]
fn blocks_come_back_as_written_at_any_size() {
    for (seed, inline) in [(1, 64), (2, 0), (3, 64)] {
        let device = DeviceOptions {
            max_inline: inline,
            ..DeviceOptions::new("soft0", HOST.parse().unwrap())
        };
        let manners = Manners { host_device: Some(device), ..Manners::default() };
        let (stub, mut controller, mut queue) = open(seed, manners, 4, 128 << 10);
        assert_eq!(controller.namespaces().unwrap().len(), 750);
        let (mut carried, fabrics_and_admin) = (0, stub.seen.keyed.load(Ordering::Relaxed));
        assert!(fabrics_and_admin > 0);
        for blocks in [1_u32, 8, 9, 64, 256] {
            let (length, bytes) = (blocks * BLOCK as u32, blocks as usize * BLOCK);
            carried += usize::from(length <= answers::IN_CAPSULE);
            let slot = queue.reserve().unwrap();
            let data = pattern(bytes, blocks as usize);
            queue.copy_from(slot, 0, &data);
            let write = Io::Write(Blocks::new(3, blocks)).to_sqe(1);
            let ended = queue.call(slot, write, Transfer::Write(length), LIMIT, "a write").unwrap();
            assert!(ended.cqe.status().is_success());
            assert_eq!(ended.transferred, length);
            assert_eq!(stub.state.disk.lock().unwrap()[3 * BLOCK..3 * BLOCK + bytes], data);
            assert_eq!(stub.seen.in_capsule.load(Ordering::Relaxed), carried);
            queue.copy_from(slot, 0, &vec![0; bytes]);
            let read = Io::Read(Blocks::new(3, blocks)).to_sqe(1);
            let ended = queue.call(slot, read, Transfer::Read(length), LIMIT, "a read").unwrap();
            assert_eq!((ended.cqe.status(), ended.transferred), (Status::SUCCESS, length));
            let mut found = vec![0; bytes];
            assert_eq!((queue.copy_to(slot, 0, &mut found), found), (bytes, data));
            queue.release(slot);
        }
        // An error moves nothing, and the queue goes on.
        let slot = queue.reserve().unwrap();
        let read = Io::Read(Blocks::new(1 << 40, 1)).to_sqe(1);
        let ended = queue.call(slot, read, Transfer::Read(512), LIMIT, "a read").unwrap();
        assert_eq!((ended.cqe.status(), ended.transferred), (Status::LBA_OUT_OF_RANGE, 0));
        controller.keep_alive().unwrap();
    }
}

#[test]
fn a_turns_commands_go_out_together_and_cost_no_system_call() {
    let (stub, _controller, mut queue) = open(5, Manners::default(), 32, 4096);
    for (at, byte) in stub.state.disk.lock().unwrap().iter_mut().enumerate() {
        *byte = (at / BLOCK) as u8;
    }
    let before = queue.system_calls();
    assert_eq!(submit_reads(&mut queue, 1), 32);
    assert!(queue.wants_to_send());
    queue.flush().unwrap();
    assert!(!queue.wants_to_send());
    assert_eq!((queue.outstanding(), queue.reserve()), (32, None));
    let mut ended = 0;
    while ended < 32 {
        queue.receive().unwrap();
        while let Some(completion) = queue.next_completion() {
            let mut found = [0; BLOCK];
            assert_eq!(queue.copy_to(completion.slot, 0, &mut found), BLOCK);
            assert_eq!(found, [completion.slot.index() as u8; BLOCK]);
            ended += 1;
        }
    }
    let calls = queue.system_calls();
    assert_eq!((calls.receive, calls.send), (0, 0));
    // Looking whether the connection is still there while nothing comes is all that there may have been.
    assert!(calls.wait - before.wait < 1000, "{calls:?}");
}

#[test]
fn responses_may_come_in_any_order() {
    for seed in 0..8 {
        let manners = Manners { io: Manner::Reversed(8), ..Manners::default() };
        let (stub, _controller, mut queue) = open(seed, manners, 8, 8192);
        for (at, byte) in stub.state.disk.lock().unwrap().iter_mut().enumerate() {
            *byte = (at / BLOCK) as u8;
        }
        submit_reads(&mut queue, 1);
        let ended = gather(&mut queue, 8).unwrap();
        let order: Vec<_> = ended.iter().map(|completion| completion.slot.index()).collect();
        assert_eq!(order, (0..8).rev().collect::<Vec<_>>());
        for completion in &ended {
            let slot = completion.slot;
            let mut found = [0; BLOCK];
            assert_eq!(queue.copy_to(slot, 0, &mut found), BLOCK);
            assert_eq!(found, [slot.index() as u8; BLOCK]);
            queue.release(slot);
        }
        // Writes, some of which travel in their capsules: a slot ends once its capsule has left, too.
        let mut lengths = [512, 4096, 8192].into_iter().cycle();
        while let Some(slot) = queue.reserve() {
            let length: u32 = lengths.next().unwrap();
            queue.copy_from(slot, 0, &[100 + slot.index() as u8; 8192]);
            let first = slot.index() as u64 * 16;
            let write = Io::Write(Blocks::new(first, length / BLOCK as u32)).to_sqe(1);
            queue.submit(slot, write, Transfer::Write(length)).unwrap();
            assert_eq!(queue.copy_from(slot, 0, &[0]), 0, "in use");
        }
        for completion in gather(&mut queue, 8).unwrap() {
            assert!(completion.cqe.status().is_success());
            let first = completion.slot.index() * 16 * BLOCK;
            let disk = stub.state.disk.lock().unwrap();
            let wrote = &disk[first..first + completion.transferred as usize];
            assert!(wrote.iter().all(|&byte| byte == 100 + completion.slot.index() as u8));
        }
    }
}

#[test]
fn a_queue_goes_to_another_thread_and_several_are_waited_for_at_once() {
    let (_stub, mut controller, first) = open(6, Manners::default(), 4, 4096);
    let second = controller.open_queue(2, 4, 4096).unwrap();
    let thread = std::thread::spawn(move || {
        let mut queues = [first, second];
        for round in 0..50 {
            let queue = &mut queues[round % 2];
            let count = submit_reads(queue, 8);
            queue.flush().unwrap();
            let mut ended = 0;
            let deadline = Instant::now() + LIMIT;
            while ended < count {
                assert!(Instant::now() < deadline, "nothing comes any more");
                Queue::wait_any(&mut queues, LIMIT).unwrap();
                for queue in &mut queues {
                    queue.receive().unwrap();
                    while let Some(completion) = queue.next_completion() {
                        queue.release(completion.slot);
                        ended += 1;
                    }
                }
            }
        }
        queues.iter().map(|queue| queue.system_calls().wait).sum::<u64>()
    });
    assert!(thread.join().unwrap() > 0, "it slept");
}

#[test]
fn no_more_commands_are_outstanding_than_the_controller_receives() {
    let accept = Some(Accept::new(3).as_bytes().to_vec());
    let manners = Manners { accept, ..Manners::default() };
    let (_stub, _controller, mut queue) = open(7, manners, 8, 4096);
    assert_eq!(submit_reads(&mut queue, 1), 3);
    gather(&mut queue, 3).unwrap();
    // One that does not say gets what was asked for.
    let manners = Manners { accept: Some(Vec::new()), ..Manners::default() };
    let (_stub, _controller, mut queue) = open(8, manners, 8, 4096);
    assert_eq!(submit_reads(&mut queue, 1), 8);
}

#[test]
fn every_rejection_names_its_remedy() {
    let cases = [
        (RejectStatus::InvalidLength, "another version of NVMe/RDMA"),
        (RejectStatus::InvalidRecordFormat, "another version of NVMe/RDMA"),
        (RejectStatus::InvalidQueueId, "lower --numjobs or --connections"),
        (RejectStatus::InvalidHsqsize, "lower --iodepth"),
        (RejectStatus::InvalidHrqsize, "lower --iodepth"),
        (RejectStatus::NoResources, "raise its limits"),
        (RejectStatus::InvalidIrd, "connect through another device"),
        (RejectStatus::InvalidOrd, "connect through another device"),
        (RejectStatus::InvalidCntlid, "connect again"),
    ];
    assert_eq!(cases.map(|(status, _)| status), RejectStatus::ALL);
    let unknown = Reject { sts: U16::new(99), ..Reject::default() };
    let unknown = (unknown, "(status 99): see the log of the target");
    let known = cases.map(|(status, remedy)| (Reject::new(status), remedy));
    for (reject, remedy) in known.into_iter().chain([unknown]) {
        let reject = Some(reject.as_bytes().to_vec());
        let manners = Manners { reject, ..Manners::default() };
        let stub = RdmaStub::start(1, Script::default(), manners);
        let error = Controller::connect(stub.options()).unwrap_err();
        assert!(matches!(error, HostError::Rejected { queue: 0, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(remedy) && text.contains("of the admin queue"), "{text}");
        assert!(text.starts_with(&stub.address.to_string()) && !text.contains('\n'), "{text}");
    }
}

#[test]
fn what_prevents_a_connection_is_told() {
    let start = |manners| RdmaStub::start(3, Script::default(), manners);
    let refused = |stub: &RdmaStub| Controller::connect(stub.options()).unwrap_err();

    let stub = start(Manners::default());
    let mut elsewhere = stub.options();
    elsewhere.address.set_port(4421);
    let text = Controller::connect(elsewhere).unwrap_err().to_string();
    assert!(text.contains("nothing listens on 192.0.2.2:4421"), "{text}");

    stub.fabric.lose_requests(1);
    let text = refused(&stub).to_string();
    assert!(text.contains("does not answer: check -a and -s"), "{text}");

    stub.fabric.refuse_request(3);
    let error = refused(&stub);
    assert!(matches!(error, HostError::NotConnected { reason: 3, .. }), "{error:?}");

    let mut elsewhere = stub.options();
    elsewhere.address = "[2001:db8::1]:4420".parse().unwrap();
    let text = Controller::connect(elsewhere).unwrap_err().to_string();
    assert!(text.contains("no RDMA device of this machine leads to [2001:db8::1]:4420"), "{text}");

    let stub = start(Manners { accept: Some(vec![1; 32]), ..Manners::default() });
    let error = refused(&stub);
    let source = ProtocolError::AcceptFormat;
    assert!(matches!(error, HostError::Protocol { source: s, .. } if s == source), "{error:?}");

    // A device that is too small says so; the admin queue is refused, too.
    let mut small = DeviceOptions::new("soft0", HOST.parse().unwrap());
    small.max_qp_wr = 40;
    let stub = start(Manners { host_device: Some(small), ..Manners::default() });
    let text = refused(&stub).to_string();
    assert!(text.contains("no room for such a queue: lower --iodepth"), "{text}");

    let (stub, mut controller, _queue) = open(9, Manners::default(), 1, 512);
    let error = controller.open_queue(2, 1, (2 << 20) + 1).unwrap_err();
    assert!(matches!(error, HostError::Request(RequestError::SlotTooLong { .. })), "{error:?}");
    assert!(controller.open_queue(2, 1, 2 << 20).is_ok());

    let mut options = options(stub.address);
    options.transport = nvme::address::TransportType::FibreChannel;
    let text = Controller::connect(options).unwrap_err().to_string();
    assert!(text.contains("give tcp or rdma with -t"), "{text}");
}

#[test]
fn a_peer_that_says_nothing_costs_no_more_than_the_timeout() {
    let (stub, mut controller, mut queue) =
        open(4, Manners { io: Manner::Mute, ..Manners::default() }, 2, 512);
    let slot = queue.reserve().unwrap();
    let read = Io::Read(Blocks::new(0, 1)).to_sqe(1);
    let limit = Duration::from_millis(50);
    let begun = Instant::now();
    let error = queue.call(slot, read, Transfer::Read(512), limit, "a read").unwrap_err();
    assert!(matches!(error, HostError::Timeout { what: "a read", .. }), "{error:?}");
    assert!(begun.elapsed() < LIMIT);
    // While it is the controller's, nobody reads or writes its memory.
    assert_eq!((queue.copy_to(slot, 0, &mut [0]), queue.copy_from(slot, 0, &[0])), (0, 0));
    controller.keep_alive().unwrap();
    drop(stub);

    let manners = Manners { ignore: true, ..Manners::default() };
    let stub = RdmaStub::start(5, Script::default(), manners);
    let error =
        Controller::connect(ConnectOptions { timeout: limit, ..stub.options() }).unwrap_err();
    let what = "the connection request";
    assert!(matches!(error, HostError::Timeout { what: w, .. } if w == what), "{error:?}");
}

#[test]
fn what_came_before_the_sleep_ends_it() {
    let (stub, _controller, mut queue) = open(4, Manners::default(), 1, 512);
    for _ in 0..20 {
        let before = stub.seen.answered.load(Ordering::Relaxed);
        submit_reads(&mut queue, 1);
        queue.flush().unwrap();
        await_that("the answer", || stub.seen.answered.load(Ordering::Relaxed) > before);
        // The channel is not told: nobody had asked it to be.
        assert!(queue.wait(LIMIT).unwrap());
        assert!(queue.receive().unwrap());
        let slot = queue.next_completion().unwrap().slot;
        queue.release(slot);
    }
}

#[test]
fn a_slot_is_the_callers_once_its_capsule_has_left() {
    for seed in 0..16 {
        let (_stub, _controller, mut queue) = open(seed, Manners::default(), 1, 512);
        for round in 0..50 {
            let slot = queue.reserve().unwrap();
            assert_eq!(queue.copy_from(slot, 0, &[round; 2048]), 1024);
            let write = Io::Write(Blocks::new(0, 1)).to_sqe(1);
            queue.call(slot, write, Transfer::Write(512), LIMIT, "a write").unwrap();
            queue.release(slot);
        }
    }
}

#[test]
fn the_end_of_a_connection_is_noticed_without_sleeping() {
    let manners = Manners { io: Manner::Mute, ..Manners::default() };
    let (stub, _controller, mut queue) = open(4, manners, 1, 512);
    submit_reads(&mut queue, 1);
    queue.flush().unwrap();
    let seen = &stub.seen;
    await_that("the command arrives", || seen.commands.load(Ordering::Relaxed) == 1);
    let idle = seen.idle.load(Ordering::Relaxed);
    await_that("nothing is under way", || seen.idle.load(Ordering::Relaxed) > idle + 1);
    // Nothing of the queue pair tells of this.
    seen.leave.store(true, Ordering::Relaxed);
    await_that("the queue's end", || match queue.receive() {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error, HostError::Closed { .. }), "{error:?}");
            true
        }
    });
}

/// What happens to a queue with commands outstanding.
type Mishap = fn(&RdmaStub);

#[test]
fn whatever_fails_under_way_is_an_error_and_never_a_hang() {
    let mishaps: [(&str, Manner, Mishap); 8] = [
        ("the host's device is removed", Manner::Mute, |stub| {
            stub.fabric.remove_device(&stub.host_device());
        }),
        ("the host's queue pairs fail", Manner::Mute, |stub| {
            let theirs = stub.seen.pairs.lock().unwrap().clone();
            for pair in (0..1000).filter(|pair| !theirs.contains(pair)) {
                stub.fabric.break_pair(pair);
            }
        }),
        ("the controller's queue pairs fail", Manner::Mute, |stub| {
            for &pair in &*stub.seen.pairs.lock().unwrap() {
                stub.fabric.break_pair(pair);
            }
        }),
        ("the controller leaves", Manner::Leaving, |_| ()),
        ("an unknown response", Manner::Confused, |_| ()),
        ("a response that is too short", Manner::Garbled(15), |_| ()),
        ("a response that is too long", Manner::Garbled(17), |_| ()),
        ("no response at all of", Manner::Garbled(0), |_| ()),
    ];
    for (what, io, mishap) in mishaps {
        for seed in 0..4 {
            let manners = Manners { io, ..Manners::default() };
            let (stub, controller, mut queue) = open(seed, manners, 8, 4096);
            let count = submit_reads(&mut queue, 8);
            queue.flush().unwrap();
            if io == Manner::Mute {
                let arrived = || stub.seen.commands.load(Ordering::Relaxed) == count;
                await_that("the commands arrive", arrived);
            }
            mishap(&stub);
            let error = gather(&mut queue, count).unwrap_err();
            let expected = match io {
                Manner::Confused => matches!(
                    error,
                    HostError::Protocol { source: ProtocolError::UnknownResponse { .. }, .. }
                ),
                Manner::Garbled(0 | 15) => matches!(
                    error,
                    HostError::Protocol { source: ProtocolError::ResponseLength { .. }, .. }
                ),
                _ => matches!(error, HostError::Broken { .. } | HostError::Closed { .. }),
            };
            assert!(expected, "{what}: {error:?}");
            // It stays so.
            queue.flush().unwrap();
            assert!(queue.receive().is_err() && queue.wait(LIMIT).unwrap(), "{what}");
            if let Some(slot) = queue.reserve() {
                let read = Io::Read(Blocks::new(0, 1)).to_sqe(1);
                let refused = queue.submit(slot, read, Transfer::Read(512));
                assert_eq!(refused, Err(RequestError::Ended), "{what}");
            }
            drop((queue, controller));
        }
    }
}

#[test]
fn a_connection_that_is_cut_ends_when_it_is_used() {
    for seed in 0..4 {
        let (stub, _controller, mut queue) = open(seed, Manners::default(), 8, 4096);
        for &pair in &*stub.seen.pairs.lock().unwrap() {
            stub.fabric.cut(pair, true);
        }
        let count = submit_reads(&mut queue, 8);
        let error = gather(&mut queue, count).unwrap_err();
        assert!(matches!(error, HostError::Broken { .. } | HostError::Closed { .. }), "{error:?}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn nothing_is_left_behind() {
    let (stub, controller, queue) = open(2, Manners::default(), 8, 4096);
    let device = stub.host_device();
    drop((controller, queue));
    // The listener stays, and what the controller has of its own until it learns of the end.
    await_that("everything is destroyed", || stub.fabric.census() == [0, 0, 0, 0, 0, 1]);
    drop(device);
}
