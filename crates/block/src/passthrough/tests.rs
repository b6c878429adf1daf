//! Queues on a namespace that takes every command and ends it at once (see `Namespace::stand_in`): how operations are cut, held
//! and answered. What a real controller and kernel make of them is for the checks in the virtual machine.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::AtomicBool;

use memory::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE};
use nvme::admin::IDENTIFY_LENGTH;
use nvme::identify::{IdentifyNamespace, LbaFormat, OptionalCommands};
use nvme::{U16, U64};
use proptest::prelude::*;
use reactor::ring::Features;
use reactor::ring::nvme::{CommandRing, Namespace};
use reactor::{IdlePolicy, Reactor, ReactorConfig, RingChoice};

use super::*;
use crate::geometry::SharedGeometry;
use crate::namespace::{Identified, Limits, Sizes};
use crate::{Completion, Data, ErrorKind, Kind, Operation, Token};

const BLOCKS: u64 = 1 << 40;
const WORKS: Features =
    Features::LARGE_ENTRIES.union(Features::COMMANDS).union(Features::FIXED_COMMANDS);

fn medium(features: Features, optional: OptionalCommands, mdts: u8, noiob: u16) -> Medium {
    let mut namespace = Box::<IdentifyNamespace>::default();
    namespace.nsze = U64::new(BLOCKS);
    namespace.noiob = U16::new(noiob);
    namespace.lbaf[0] = LbaFormat::plain(512).unwrap();
    let descriptors = Box::new([0; IDENTIFY_LENGTH]);
    let mut identified =
        Identified { controller: Box::default(), nvm: Box::default(), namespace, descriptors };
    identified.controller.mdts = mdts;
    identified.controller.oncs = U16::new(optional.bits());
    Medium {
        name: "test".to_owned(),
        path: PathBuf::from("/dev/ng0n1"),
        namespace: Namespace::stand_in().unwrap(),
        claim: None,
        entry: PathBuf::from("/"),
        limits: Limits::new(&identified, Sizes { page: 4096, transfer: 1 << 20 }),
        geometry: SharedGeometry::new(512, identified.bytes()),
        properties: identified.properties(false, String::new()),
        identity: identified.identity(),
        features,
        identified,
        removed: AtomicBool::new(false),
        said: Once::new(),
    }
}

fn device(medium: Medium) -> PassthroughDevice {
    let medium = Arc::new(medium);
    PassthroughDevice { workers: Arc::new(Workers::new(Arc::clone(&medium))), medium }
}

struct Rig {
    reactor: Reactor,
    pool: Pool,
    ring: Option<Rc<CommandRing>>,
    device: PassthroughDevice,
    queue: Box<dyn BlockQueue>,
    /// Commands in flight at most.
    most: Cell<usize>,
}

impl Rig {
    fn new(medium: Medium) -> Rig {
        let idle = IdlePolicy::Poll;
        let config = ReactorConfig { idle, ring: RingChoice::default(), ..Default::default() };
        let reactor = Reactor::new(&config).unwrap();
        let config = ArenaConfig { capacity: 8 * SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(8 * SLAB_SIZE).unwrap();
        reactor.local().ring().expect("io_uring works here").register_pool(&pool);
        let ring = CommandRing::of(reactor.local(), medium.features);
        let device = device(medium);
        let queue = device.open_queue(reactor.local()).unwrap();
        Rig { reactor, pool, ring, device, queue, most: Cell::new(0) }
    }

    fn submit(&mut self, token: u64, kind: Kind, lba: u64, blocks: u64) {
        let mut data = Data::none();
        if matches!(kind, Kind::Read | Kind::Write | Kind::Compare) {
            // In pieces that end anywhere.
            let mut left = usize::try_from(blocks * 512).unwrap();
            for piece in [left / 3 + 1, left / 5, left / 7] {
                let piece = piece.min(left);
                left -= piece;
                self.push(&mut data, piece);
            }
            self.push(&mut data, left);
        }
        let token = Token(token);
        self.queue.submit(Operation { token, kind, lba, blocks, data, fua: true });
    }

    fn push(&self, data: &mut Data, len: usize) {
        if len > 0 {
            let buffer = self.pool.take(len).unwrap();
            data.push(buffer.segment(0, len).unwrap()).unwrap();
        }
    }

    /// Turns until nothing is outstanding; how each operation ended.
    fn finish(&mut self) -> BTreeMap<u64, Result<(), ErrorKind>> {
        let mut ends = BTreeMap::new();
        for _ in 0..1_000_000 {
            if let Some(ring) = &self.ring {
                self.most.set(self.most.get().max(ring.in_flight()));
            }
            self.reactor.turn();
            self.queue.poll(usize::MAX, &mut |completion: Completion| {
                let before = ends.insert(completion.token.0, completion.result);
                assert_eq!(before, None, "answered twice");
            });
            if self.queue.outstanding() == 0 {
                break;
            }
        }
        assert_eq!(self.queue.outstanding(), 0, "operations were lost");
        assert!(!self.queue.needs_poll() && self.queue.next_deadline().is_none());
        ends
    }
}

const KINDS: [Kind; 7] = [
    Kind::Read,
    Kind::Write,
    Kind::Compare,
    Kind::Verify,
    Kind::WriteZeroes { deallocate: true },
    Kind::Deallocate,
    Kind::Flush,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However an operation is cut, it is answered once, and its memory comes back.
    #[test]
    fn every_operation_ends_once(
        mdts in 0_u8..7,
        noiob in prop_oneof![Just(0), 1_u16..300],
        operations in prop::collection::vec((0..KINDS.len(), 0_u64..5000, 0_u64..1500), 1..40),
    ) {
        let mut rig = Rig::new(medium(WORKS, OptionalCommands::all(), mdts, noiob));
        for (token, (kind, lba, blocks)) in (0_u64..).zip(&operations) {
            // Of memory there is less than that.
            if rig.pool.available() < 4 << 20 {
                rig.finish();
            }
            rig.submit(token, KINDS[*kind], *lba, *blocks);
        }
        let ends = rig.finish();
        prop_assert!(ends.values().all(Result::is_ok), "{:?}", ends);
        prop_assert!(rig.most.get() <= 128);
        prop_assert_eq!(rig.pool.available(), rig.pool.capacity());
    }
}

#[test]
fn a_large_operation_is_held_back_and_what_waits_behind_it_can_be_cancelled() {
    // A page, eight blocks, at a time.
    let mut rig = Rig::new(medium(WORKS, OptionalCommands::all(), 1, 8));
    rig.submit(1, Kind::Write, 0, 2048);
    rig.submit(2, Kind::Flush, 0, 0);
    rig.submit(3, Kind::Read, 0, 8);
    assert_eq!(rig.ring.as_ref().unwrap().in_flight(), 128);
    assert!(rig.queue.cancel(Token(3)), "nothing of it has begun");
    assert!(!rig.queue.cancel(Token(3)) && !rig.queue.cancel(Token(1)));
    let ends = rig.finish();
    assert_eq!(ends[&3], Err(ErrorKind::Aborted));
    assert_eq!((ends[&1], ends[&2]), (Ok(()), Ok(())));
    assert_eq!(rig.most.get(), 128);
}

#[test]
fn the_first_error_ends_an_operation() {
    // A device that cannot be polled after all: every command fails.
    let polled = WORKS | Features::POLLED_COMMANDS;
    let mut rig = Rig::new(medium(polled, OptionalCommands::all(), 1, 0));
    rig.submit(1, Kind::Write, 0, 4096);
    rig.submit(2, Kind::Read, 7, 1);
    let ends = rig.finish();
    let unsupported = Err(ErrorKind::Unsupported);
    assert_eq!(ends, BTreeMap::from([(1, unsupported), (2, unsupported)]));
    assert_eq!(rig.pool.available(), rig.pool.capacity());
    // 512 commands; those that had not begun by the first error did not begin.
    assert_eq!(rig.most.get(), 128);
}

#[test]
fn what_there_is_no_command_for_goes_to_the_threads() {
    let mut rig = Rig::new(medium(WORKS, OptionalCommands::empty(), 0, 0));
    for (token, kind) in (0..).zip(KINDS) {
        rig.submit(token, kind, 0, 8);
    }
    let ends = rig.finish();
    let kinds: BTreeMap<_, _> = (0..).zip(KINDS).collect();
    for (token, end) in ends {
        match kinds[&token] {
            Kind::Read | Kind::Write | Kind::Flush => assert_eq!(end, Ok(())),
            Kind::Deallocate => assert_eq!(end, Err(ErrorKind::Unsupported)),
            // The stand-in refuses commands that block.
            Kind::Compare | Kind::Verify => assert_eq!(end, Err(ErrorKind::MediumRead)),
            Kind::WriteZeroes { .. } => assert_eq!(end, Err(ErrorKind::MediumWrite)),
        }
    }
    let mut rig = Rig::new(medium(Features::empty(), OptionalCommands::all(), 0, 0));
    assert!(rig.ring.is_none());
    for (token, kind) in (0..).zip(KINDS) {
        rig.submit(token, kind, 0, 8);
    }
    assert!(rig.finish().values().all(Result::is_err));
}

#[test]
fn a_device_that_is_gone_takes_nothing() {
    let mut rig = Rig::new(medium(WORKS, OptionalCommands::all(), 0, 0));
    rig.submit(1, Kind::Read, 0, 8);
    assert_eq!(rig.finish()[&1], Ok(()));
    rig.device.medium.remove();
    for (token, kind) in (0..).zip(KINDS) {
        rig.submit(token, kind, 0, 8);
    }
    let ends = rig.finish();
    assert!(ends.values().all(|end| *end == Err(ErrorKind::Removed)), "{ends:?}");
    assert!(rig.device.rescan().is_err(), "the stand-in says nothing of itself");
}

#[test]
fn what_may_pass_is_tried_again_for_seconds() {
    let all: Duration = (0..RETRIES).map(patience).sum();
    assert!(all > Duration::from_secs(5) && all < Duration::from_secs(15), "{all:?}");
}

#[test]
fn other_files_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let regular = directory.path().join("ng0n1");
    std::fs::write(&regular, [0; 4096]).unwrap();
    for path in [Path::new("/dev/null"), Path::new("/dev/tty"), &regular, directory.path()] {
        assert!(!PassthroughDevice::is_meant_by(path));
        let refused = PassthroughDevice::open(&PassthroughOptions::new("test", path)).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("is no NVMe generic character device: choose another"), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
    let missing = PassthroughOptions::new("test", directory.path().join("ng1n1"));
    assert!(matches!(PassthroughDevice::open(&missing), Err(BlockError::System { .. })));
}
