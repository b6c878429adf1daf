//! Properties of transfers: bytes arrive exactly as posted and in order, each signalled request completes once.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "small numbers of a test's own"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::collections::VecDeque;

use memory::Segment;
use proptest::prelude::*;
use verbs::{Capacity, Flags, Parameters, Remote, SendChain, Status, Work};

use crate::support::{Driver, End, Shape, TARGET, bytes_of, connected, software};

const REGION: usize = 8192;
const RECEIVE: usize = 4096;

#[derive(Debug, Clone)]
struct Request {
    end: usize,
    kind: u8,
    length: usize,
    split: usize,
    offset: usize,
    signalled: bool,
    fenced: bool,
    steps: usize,
}

fn request() -> impl Strategy<Value = Request> {
    let sizes = (1..RECEIVE, 0..RECEIVE, 0..REGION - RECEIVE);
    (0..4_usize, 0..4_u8, sizes, any::<bool>(), any::<bool>(), 0..12_usize).prop_map(
        |(end, kind, (length, split, offset), signalled, fenced, steps)| Request {
            end,
            kind,
            length,
            split: split % length,
            offset,
            signalled,
            fenced,
            steps,
        },
    )
}

/// One end and what it must come to see.
struct Watched {
    end: End,
    peer: usize,
    /// Written by the peer, and what must be there in the end.
    written: Segment,
    model: Vec<u8>,
    /// Read by the peer; lent all the time, so nobody changes it.
    _read: Segment,
    constant: Vec<u8>,
    /// Where the peer finds both.
    at: [Remote; 2],
    messages: VecDeque<Vec<u8>>,
    completions: VecDeque<u32>,
    reads: Vec<(Segment, Vec<u8>)>,
}

impl Watched {
    fn new(mut end: End, peer: usize, receives: u32) -> Watched {
        let constant: Vec<u8> = (0..REGION).map(|index| (index * 31 + peer) as u8).collect();
        let (written, read) = (end.filled(&[0; REGION]), end.filled(&constant));
        let at = [&written, &read].map(|segment| end.memory.remote(segment).unwrap());
        (0..receives).for_each(|tag| end.receive(tag, RECEIVE));
        let (messages, completions, reads) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Watched {
            end,
            peer,
            written,
            _read: read,
            model: vec![0; REGION],
            constant,
            at,
            messages,
            completions,
            reads,
        }
    }

    /// Takes what there is, and holds it against what must come.
    fn look(&mut self) {
        for completion in self.end.poll() {
            assert_eq!(completion.status(), Status::SUCCESS, "{completion:?}");
            if completion.is_receive() {
                let expected = self.messages.pop_front().expect("a message that nobody sent");
                let segment = self.end.taken(&completion).expect("a receive that was posted");
                assert_eq!(completion.byte_len() as usize, expected.len());
                assert_eq!(bytes_of(&segment)[..expected.len()], expected);
                drop(segment);
                self.end.receive(completion.tag(), RECEIVE);
            } else {
                assert_eq!(self.completions.pop_front(), Some(completion.tag()));
            }
        }
    }
}

fn run(seed: u64, shared: bool, requests: &[Request]) {
    let (fabric, host, target) = software(seed);
    let driver = Driver(Some(fabric.clone()));
    let capacity = Capacity { sends: 6, receives: 3, pieces: 2, inline: 64 };
    let shape = Shape { capacity, completions: 64, shared: if shared { 3 } else { 0 } };
    let parameters =
        Parameters { responder_resources: 2, initiator_depth: 2, ..Parameters::default() };
    let mut ends: Vec<Watched> = Vec::new();
    for connection in 0..2_usize {
        let at = format!("192.0.2.2:{}", 4420 + connection).parse().unwrap();
        let (one, other) = connected(&driver, (&host, &target), at, (shape, shape), parameters);
        ends.push(Watched::new(one, 2 * connection + 1, 3));
        ends.push(Watched::new(other, 2 * connection, 3));
    }
    let mut chain = SendChain::new(1, 2);
    for (tag, request) in requests.iter().enumerate() {
        let tag = tag as u32;
        // The last place must tell of those before it.
        let forced = ends[request.end].end.queue.room() == 1;
        while ends[request.end].end.queue.room() == 0 {
            fabric.step();
            ends.iter_mut().for_each(Watched::look);
        }
        let signalled = request.signalled || forced || ends[request.end].end.queue.room() == 1;
        let mut flags = if signalled { Flags::SIGNALED } else { Flags::empty() };
        flags.set(Flags::FENCE, request.fenced);
        let peer = ends[request.end].peer;
        let data: Vec<u8> =
            (0..request.length).map(|index| (index as u32 * 7 + tag) as u8).collect();
        let [mut written, mut constant] = ends[peer].at;
        written.address += request.offset as u64;
        constant.address += request.offset as u64;
        let own = &mut ends[request.end];
        let whole =
            own.end.filled(if request.kind == 2 { &[0; RECEIVE][..request.length] } else { &data });
        let parts = [
            whole.part(0, request.split).unwrap(),
            whole.part(request.split, request.length - request.split).unwrap(),
        ];
        match request.kind {
            0 => chain.push(Work::Send, flags, tag, &own.end.memory, parts).unwrap(),
            1 => chain.push(Work::Write(written), flags, tag, &own.end.memory, parts).unwrap(),
            2 => chain.push(Work::Read(constant), flags, tag, &own.end.memory, parts).unwrap(),
            _ => chain.push_inline(Work::Send, flags, tag, &data[..data.len().min(64)]).unwrap(),
        }
        own.end.queue.post(&mut chain).unwrap();
        if signalled {
            own.completions.push_back(tag);
        }
        let place = request.offset..request.offset + request.length;
        match request.kind {
            0 => ends[peer].messages.push_back(data),
            1 => ends[peer].model[place].copy_from_slice(&data),
            2 => {
                let expected = ends[peer].constant[place].to_vec();
                ends[request.end].reads.push((whole, expected));
            }
            _ => ends[peer].messages.push_back(data[..data.len().min(64)].to_vec()),
        }
        for _ in 0..request.steps {
            fabric.step();
            ends.iter_mut().for_each(Watched::look);
        }
    }
    loop {
        let moved = fabric.step();
        ends.iter_mut().for_each(Watched::look);
        // What was looked at posts receives, which may make more happen.
        if !moved && !fabric.step() {
            break;
        }
    }
    for end in &mut ends {
        assert!(end.messages.is_empty() && end.completions.is_empty());
        assert_eq!(bytes_of(&end.written), end.model);
        for (segment, expected) in &end.reads {
            assert_eq!(&bytes_of(segment), expected);
        }
    }
    drop(ends);
    assert_eq!(fabric.census(), [0; 6]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_posted_arrives_and_completes_once(
        seed in any::<u64>(),
        shared in any::<bool>(),
        requests in prop::collection::vec(request(), 1..60),
    ) {
        run(seed, shared, &requests);
    }

    /// Whatever is posted when a queue pair breaks, and at whichever end: each request completes once, in order, or was
    /// covered by a later one; after the first failure all are flushed; all memory comes back.
    #[test]
    fn what_is_posted_when_a_queue_pair_breaks_is_flushed(
        seed in any::<u64>(),
        before in 0..40_usize,
        requests in prop::collection::vec((any::<bool>(), 0..3_u8), 1..12),
        how in 0..5_u8,
    ) {
        let (fabric, host, target) = software(seed);
        let driver = Driver(Some(fabric.clone()));
        let shapes = (Shape { shared: 0, ..Shape::default() }, Shape::default());
        let ends = connected(&driver, (&host, &target), TARGET.parse().unwrap(), shapes, Parameters::default());
        let (mut host, mut target) = ends;
        let room = host.buffer(&[1; 64]);
        let remote = host.memory.remote(&room.segment(0, 64).unwrap()).unwrap();
        (0..8).for_each(|tag| host.receive(tag, 64));
        let mut chain = SendChain::new(12, 12);
        let mut buffers = Vec::new();
        for (tag, &(signalled, kind)) in requests.iter().enumerate() {
            let flags = if signalled { Flags::SIGNALED } else { Flags::empty() };
            let buffer = target.buffer(&[tag as u8; 64]);
            let segment = buffer.segment(0, 64).unwrap();
            let work = [Work::Send, Work::Write(remote), Work::Read(remote)][usize::from(kind)];
            chain.push(work, flags, tag as u32, &target.memory, [segment]).unwrap();
            buffers.push(buffer);
        }
        target.queue.post(&mut chain).unwrap();
        let mut all = Vec::new();
        for _ in 0..before {
            fabric.step();
            all.extend(target.poll());
        }
        match how {
            0 => fabric.break_pair(target.number()),
            1 => fabric.break_pair(host.number()),
            2 => fabric.cut(host.number(), true),
            3 => fabric.fail_next(target.number(), Status::GENERAL),
            _ => fabric.remove_device(&target.device),
        }
        fabric.run(10_000);
        target.queue.pair().fail().unwrap();
        fabric.run(10_000);
        while let taken = target.poll() && !taken.is_empty() {
            all.extend(taken);
        }
        let mut next = 0;
        let mut failed = false;
        for completion in &all {
            let tag = completion.tag() as usize;
            prop_assert!(tag >= next, "completed twice or out of order");
            // Those passed over were successes that nobody asked for.
            prop_assert!(!failed || tag == next);
            prop_assert!(requests[next..tag].iter().all(|(signalled, _)| !signalled));
            prop_assert!(!failed || completion.status() == Status::FLUSHED);
            failed |= completion.status() != Status::SUCCESS;
            next = tag + 1;
        }
        prop_assert!(requests[next..].iter().all(|(signalled, _)| !signalled));
        if failed {
            prop_assert_eq!(next, requests.len());
        }
        // What ended unsaid after the last completion stays lent until the queue is gone.
        drop(target);
        for buffer in &mut buffers {
            prop_assert!(!buffer.is_lent());
        }
    }
}
