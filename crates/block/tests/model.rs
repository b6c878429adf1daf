//! Every device against a slow, obvious model of it: bytes in a vector, changed when an operation
//! completes. Random operations, many at a time, some cancelled. Operations whose order matters are
//! never out together, so the model says exactly what each must bring.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod rig;

use std::collections::HashMap;
use std::sync::Arc;

use block::delay::{DelayDevice, Latencies};
use block::file::{Direct, FileDevice, FileOptions};
use block::injection::InjectionDevice;
use block::null::NullDevice;
use block::ram::{RamDevice, RamOptions};
use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::Buffer;
use proptest::prelude::*;
use rig::{BACKENDS, Backend, Host};

const BLOCKS: u64 = 200;

/// What a test does next.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        kind: Kind,
        lba: u64,
        blocks: u64,
        fua: bool,
        fill: u8,
        pieces: usize,
    },
    /// Gives up one of the operations that are out.
    Cancel(usize),
    /// Takes so many completions.
    Poll(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Read),
        4 => Just(Kind::Write),
        1 => Just(Kind::Flush),
        1 => any::<bool>().prop_map(|deallocate| Kind::WriteZeroes { deallocate }),
        1 => Just(Kind::Deallocate),
        2 => Just(Kind::Compare),
        1 => Just(Kind::Verify),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // A few ranges reach beyond the end.
    let range = (0..BLOCKS + 2, 0..24_u64);
    prop_oneof![
        8 => (kind(), range, prop::bool::weighted(0.2), any::<u8>(), 1..=4_usize).prop_map(
            |(kind, (lba, blocks), fua, fill, pieces)| {
                Step::Submit { kind, lba, blocks, fua, fill, pieces }
            }
        ),
        1 => any::<usize>().prop_map(Step::Cancel),
        2 => (1..8_usize).prop_map(Step::Poll),
    ]
}

/// An operation that is out, and what must come of it.
struct Out {
    kind: Kind,
    start: usize,
    end: usize,
    /// Its memory, and for a write what the model will hold.
    buffer: Option<Buffer>,
    expected: Result<(), ErrorKind>,
    bytes: Vec<u8>,
    cancelled: bool,
}

impl Out {
    fn changes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate)
    }

    fn conflicts(&self, other: &Out) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        overlap && (self.changes() || other.changes())
    }
}

struct Test<'a> {
    host: &'a mut Host,
    queue: Box<dyn BlockQueue>,
    block_size: usize,
    model: Vec<u8>,
    out: HashMap<Token, Out>,
    next: u64,
    /// The device keeps nothing: only that everything ends once and as it should is checked.
    forgets: bool,
}

impl Test<'_> {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit { kind, lba, blocks, fua, fill, pieces } => {
                let out = self.plan(kind, lba, blocks, fill);
                while self.out.values().any(|other| other.conflicts(&out)) {
                    self.poll(64);
                }
                self.submit(out, lba, blocks, fua, fill, pieces);
            }
            Step::Cancel(which) => {
                let mut tokens: Vec<_> = self.out.keys().copied().collect();
                tokens.sort();
                if let Some(&token) = tokens.get(which % tokens.len().max(1)) {
                    let out = self.out.get_mut(&token).unwrap();
                    out.cancelled |= self.queue.cancel(token);
                }
            }
            Step::Poll(max) => self.poll(max),
        }
    }

    fn plan(&self, kind: Kind, lba: u64, blocks: u64, fill: u8) -> Out {
        let flush = kind == Kind::Flush;
        let inside = flush || lba + blocks <= BLOCKS;
        let start = usize::try_from(lba).unwrap() * self.block_size;
        let len = usize::try_from(blocks).unwrap() * self.block_size;
        let (start, end) = if inside && !flush { (start, start + len) } else { (0, 0) };
        let byte =
            |at: usize| u8::try_from(at / 7 % 256).unwrap().wrapping_add(fill.wrapping_mul(31));
        let bytes = (0..len).map(byte).collect();
        let expected = if inside { Ok(()) } else { Err(ErrorKind::OutOfRange) };
        Out { kind, start, end, buffer: None, expected, bytes, cancelled: false }
    }

    fn submit(&mut self, mut out: Out, lba: u64, blocks: u64, fua: bool, fill: u8, pieces: usize) {
        let mut data = Data::none();
        if matches!(out.kind, Kind::Read | Kind::Write | Kind::Compare) {
            let found = &self.model[out.start..out.end];
            // Half of the comparisons are with what is there.
            if out.kind == Kind::Compare && out.expected.is_ok() && !self.forgets {
                if fill.is_multiple_of(2) {
                    out.bytes = found.to_vec();
                } else if out.bytes != found {
                    out.expected = Err(ErrorKind::Miscompare);
                }
            }
            let buffer = self.host.buffer(&out.bytes);
            let total = usize::try_from(blocks).unwrap();
            for piece in 0..pieces {
                let (from, to) = (total * piece / pieces, total * (piece + 1) / pieces);
                let (from, len) = (from * self.block_size, (to - from) * self.block_size);
                data.push(buffer.segment(from, len).unwrap()).unwrap();
            }
            out.buffer = Some(buffer);
        }
        let token = Token(self.next);
        self.next += 1;
        let kind = out.kind;
        self.out.insert(token, out);
        self.queue.submit(Operation { token, kind, lba, blocks, data, fua });
        assert_eq!(self.queue.outstanding(), self.out.len());
    }

    fn poll(&mut self, max: usize) {
        self.host.reactor.turn();
        let mut seen = Vec::new();
        let count = self.queue.poll(max, &mut |completion| seen.push(completion));
        assert_eq!(count, seen.len());
        assert!(count <= max);
        for completion in seen {
            self.completed(completion);
        }
        assert_eq!(self.queue.outstanding(), self.out.len());
        if count == 0 {
            std::thread::yield_now();
        }
    }

    fn completed(&mut self, Completion { token, result, .. }: Completion) {
        let mut out = self.out.remove(&token).expect("completed twice, or never submitted");
        if out.cancelled {
            assert_eq!(result, Err(ErrorKind::Aborted), "{:?}", out.kind);
        } else if result != Err(ErrorKind::Aborted) {
            assert_eq!(result, out.expected, "{:?} {}..{}", out.kind, out.start, out.end);
        }
        if result.is_err() || self.forgets {
            return;
        }
        let model = &mut self.model[out.start..out.end];
        match out.kind {
            Kind::Write => model.copy_from_slice(&out.bytes),
            Kind::WriteZeroes { .. } | Kind::Deallocate => model.fill(0),
            Kind::Read => {
                let mut buffer = out.buffer.take().unwrap();
                assert!(buffer.bytes_mut().expect("memory was let go") == model, "read");
            }
            Kind::Flush | Kind::Compare | Kind::Verify => {}
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.out.is_empty() {
            assert!(std::time::Instant::now() < give_up, "stuck");
            self.poll(64);
        }
        assert!(!self.queue.needs_poll());
        self.model
    }
}

fn check(host: &mut Host, device: &dyn BlockDevice, steps: &[Step], forgets: bool) -> Vec<u8> {
    let geometry = device.geometry();
    assert_eq!(geometry.blocks, BLOCKS);
    let block_size = usize::try_from(geometry.block_size).unwrap();
    let queue = host.queue(device);
    let model = vec![0; usize::try_from(geometry.bytes()).unwrap()];
    let whole = host.pool.available();
    let out = HashMap::new();
    let mut test = Test { host, queue, block_size, model, out, next: 0, forgets };
    for step in steps {
        test.step(step);
    }
    let model = test.finish();
    host.reactor.turn();
    assert_eq!(host.pool.available(), whole, "memory has not come back");
    model
}

fn check_file(backend: Backend, block_size: u32, direct: Direct, steps: &[Step]) {
    let Some(mut host) = Host::new(backend) else { return };
    let directory = tempfile::tempdir().unwrap();
    let options = FileOptions {
        block_size: Some(block_size),
        create_size: Some(u64::from(block_size) * BLOCKS),
        direct,
        ..FileOptions::new("file", directory.path().join("disk"))
    };
    let device = FileDevice::open(&options).unwrap();
    let model = check(&mut host, &device, steps, false);
    assert!(std::fs::read(&options.path).unwrap() == model, "what is in the file");
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn null(steps in steps(200), large in any::<bool>()) {
        let mut host = Host::new(Backend::Threads).unwrap();
        let block_size = if large { 4096 } else { 512 };
        let device = NullDevice::new("null", u64::from(block_size) * BLOCKS, block_size).unwrap();
        check(&mut host, &device, &steps, true);
    }

    #[test]
    fn ram(steps in steps(300), large in any::<bool>()) {
        let mut host = Host::new(Backend::Threads).unwrap();
        let block_size = if large { 4096 } else { 512 };
        let size = u64::from(block_size) * BLOCKS;
        let options = RamOptions { name: "ram".to_owned(), size, block_size, read_only: false };
        check(&mut host, &RamDevice::new(&options).unwrap(), &steps, false);
    }

    #[test]
    fn layers(steps in steps(200), swapped in any::<bool>()) {
        let mut host = Host::new(Backend::Threads).unwrap();
        let options = RamOptions {
            name: "ram".to_owned(), size: 512 * BLOCKS, block_size: 512, read_only: false,
        };
        let ram: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(&options).unwrap());
        let latencies =
            Latencies { average_read: 40, p99_read: 300, average_write: 60, p99_write: 200 };
        if swapped {
            let below = DelayDevice::new("slow", ram, latencies);
            check(&mut host, &InjectionDevice::new("EE_slow", Arc::new(below)), &steps, false);
        } else {
            let below = InjectionDevice::new("EE_ram", ram);
            check(&mut host, &DelayDevice::new("slow", Arc::new(below), latencies), &steps, false);
        }
    }

    #[test]
    fn file_by_ring(steps in steps(300), large in any::<bool>(), cached in any::<bool>()) {
        let direct = if cached { Direct::Never } else { Direct::Auto };
        check_file(Backend::Ring, if large { 4096 } else { 512 }, direct, &steps);
    }

    #[test]
    fn file_by_bare_ring(steps in steps(300), large in any::<bool>(), cached in any::<bool>()) {
        let direct = if cached { Direct::Never } else { Direct::Auto };
        check_file(Backend::BareRing, if large { 4096 } else { 512 }, direct, &steps);
    }

    #[test]
    fn file_by_threads(steps in steps(300), large in any::<bool>(), cached in any::<bool>()) {
        let direct = if cached { Direct::Never } else { Direct::Auto };
        check_file(Backend::Threads, if large { 4096 } else { 512 }, direct, &steps);
    }
}

#[test]
fn more_operations_than_the_ring_takes_all_complete() {
    for backend in BACKENDS {
        let steps: Vec<_> = (0..1500)
            .map(|number| {
                let (kind, lba) =
                    (if number % 3 == 0 { Kind::Write } else { Kind::Verify }, number % BLOCKS);
                Step::Submit {
                    kind,
                    lba,
                    blocks: 1,
                    fua: false,
                    fill: u8::try_from(number % 251).unwrap(),
                    pieces: 1,
                }
            })
            .collect();
        check_file(backend, 512, Direct::Auto, &steps);
    }
}
