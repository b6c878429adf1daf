//! Worlds from seeds: some controller, some reactors, operations at random, and things that go wrong, against a model of every block.
//!
//! A block holds one byte all over, or is in doubt since a write of it failed. Operations that are out at the same time never overlap if one of them
//! changes something, since their order is nobody's promise.

use std::collections::BTreeMap;
use std::time::Duration;

use block::{Data, ErrorKind, Kind, Token};
use memory::Buffer;
use nvme::identify::{OptionalCommands, SglSupport};
use nvme_pcie::Phase;
use nvme_pcie::software::{Chaos, NamespaceOptions, Options};

use crate::rig::Rig;

/// Blocks of the namespace that are used.
const BLOCKS: u64 = 160;

struct Out {
    reactor: usize,
    kind: Kind,
    lba: u64,
    blocks: u64,
    buffer: Option<Buffer>,
    /// What it writes, or compares with.
    byte: u8,
}

struct World {
    rig: Rig,
    random: Random,
    size: usize,
    /// What each block holds; None: in doubt.
    model: Vec<Option<u8>>,
    out: BTreeMap<Token, Out>,
    byte: u8,
    failures: u64,
    /// Blocks that read as zeroes when they are deallocated.
    zeroes: bool,
}

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn below(random: &mut Random, bound: u64) -> u64 {
    random.next_u64() % bound
}

fn one_in(random: &mut Random, chances: u64) -> bool {
    below(random, chances) == 0
}

fn options(random: &mut Random) -> Options {
    let mut options = Options::default();
    let block_size = if one_in(random, 2) { 512 } else { 4096 };
    let mut namespace = NamespaceOptions::new(1, block_size, BLOCKS);
    if one_in(random, 2) {
        namespace.noiob = [1, 3, 8, 32][below(random, 4) as usize];
    }
    namespace.zeroes_deallocate = one_in(random, 2);
    options.namespaces = vec![namespace];
    options.mqes = [1, 2, 7, 31, 1023][below(random, 5) as usize];
    options.mdts = [0, 1, 2, 5][below(random, 4) as usize];
    options.queues = 1 + below(random, 3) as u16;
    options.vectors = [0, 1, 2, 17][below(random, 4) as usize];
    options.dstrd = below(random, 3) as u8;
    options.shadow_doorbells = one_in(random, 2);
    options.volatile_write_cache = one_in(random, 2);
    options.sgls =
        [SglSupport::empty(), SglSupport::SUPPORTED, SglSupport::DWORD][below(random, 3) as usize];
    options.oncs =
        OptionalCommands::from_bits_truncate(random.next_u64() as u16 & options.oncs.bits());
    options.aborts = [0, 500, 1000][below(random, 3) as usize];
    options.acl = below(random, 4) as u8;
    options
}

fn chaos(random: &mut Random) -> Chaos {
    // In a million.
    let mut rate =
        |most: u64| if one_in(random, 2) { below(random, most * 1000) as u32 } else { 0 };
    Chaos {
        transient: rate(30),
        permanent: rate(30),
        hang: rate(5),
        late: rate(50),
        duplicate: rate(30),
        // One that names a command which the device has not taken yet is no ghost to the driver: see `surprise`.
        ghost: 0,
        wrong_queue: rate(3),
        lost_interrupt: rate(30),
        fatal: rate(3),
        not_ready: rate(100),
        lost_abort: rate(100),
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let options = options(&mut random);
        let size = options.namespaces[0].block_size as usize;
        let reactors = 1 + below(&mut random, 3) as usize;
        let mut options = options;
        if options.mqes < 3 {
            // Shared, they would be too short.
            options.queues = 16;
        }
        if number("TIDEGATE_SEED").is_some() {
            eprintln!("{reactors} reactors, {options:?}");
        }
        let rig = Rig::served(seed, options, reactors);
        let zeroes = true;
        World {
            rig,
            random,
            size,
            model: vec![Some(0); BLOCKS as usize],
            out: BTreeMap::new(),
            byte: 0,
            failures: 0,
            zeroes,
        }
    }

    /// Whether something that is out stands in the way.
    fn is_busy(&self, lba: u64, blocks: u64, changes: bool) -> bool {
        self.out.values().any(|out| {
            let overlap = out.lba < lba + blocks && lba < out.lba + out.blocks;
            let changing = !matches!(out.kind, Kind::Read | Kind::Compare | Kind::Verify);
            overlap && (changes || changing)
        })
    }

    fn submit(&mut self) {
        let random = &mut self.random;
        let lba = below(random, BLOCKS);
        let blocks = 1 + below(random, (BLOCKS - lba).min(48));
        let kind = match below(random, 12) {
            0..4 => Kind::Read,
            4..8 => Kind::Write,
            8 => Kind::Compare,
            9 => Kind::WriteZeroes { deallocate: one_in(random, 2) },
            10 => Kind::Deallocate,
            _ if one_in(random, 2) => Kind::Verify,
            _ => Kind::Flush,
        };
        let changes = !matches!(kind, Kind::Read | Kind::Compare | Kind::Verify | Kind::Flush);
        let (lba, blocks) = if kind == Kind::Flush { (0, 0) } else { (lba, blocks) };
        if self.is_busy(lba, blocks, changes) {
            return;
        }
        let reactor = below(&mut self.random, self.rig.reactors.len() as u64) as usize;
        let len = blocks as usize * self.size;
        self.byte = self.byte.wrapping_add(1).max(1);
        let mut byte = self.byte;
        let first = self.model.get(lba as usize).copied().flatten();
        if kind == Kind::Compare && one_in(&mut self.random, 2) {
            byte = first.unwrap_or(byte);
        }
        let (buffer, data) = if matches!(kind, Kind::Read | Kind::Write | Kind::Compare) {
            // At some place of a larger buffer, and in several pieces.
            let shift = if one_in(&mut self.random, 2) {
                0
            } else {
                below(&mut self.random, 2000) as usize
            };
            let mut buffer = self.rig.buffer(reactor, len + shift);
            buffer.bytes_mut().unwrap().fill(if kind == Kind::Read { 0xEE } else { byte });
            let mut data = Data::none();
            let mut at = 0;
            for _ in 0..below(&mut self.random, 4) {
                let piece = below(&mut self.random, (len - at) as u64 + 1) as usize;
                // A medium in a buffer has no empty parts.
                if piece > 0 {
                    data.push(buffer.segment(shift + at, piece).unwrap()).unwrap();
                    at += piece;
                }
            }
            if at < len && data.push(buffer.segment(shift + at, len - at).unwrap()).is_err() {
                return;
            }
            (Some(buffer), data)
        } else {
            (None, Data::none())
        };
        let fua = one_in(&mut self.random, 8);
        let token = self.rig.submit_fua(reactor, 1, kind, (lba, blocks), data, fua);
        self.out.insert(token, Out { reactor, kind, lba, blocks, buffer, byte });
    }

    /// Takes in what has ended, and compares it with the model.
    fn take(&mut self) {
        for inside in &self.rig.insides {
            for (_, completion) in std::mem::take(&mut inside.borrow_mut().done) {
                let out = self.out.remove(&completion.token).expect("ends once");
                if completion.result.is_err() {
                    self.failures += 1;
                }
                let range = out.lba as usize..(out.lba + out.blocks) as usize;
                let model = &mut self.model[range];
                match (out.kind, completion.result) {
                    (Kind::Read, Ok(())) => {
                        let mut buffer = out.buffer.unwrap();
                        let len = model.len() * self.size;
                        let bytes = buffer.bytes_mut().expect("given back");
                        let start = bytes.len() - len;
                        for (at, (block, known)) in
                            bytes[start..].chunks(self.size).zip(model).enumerate()
                        {
                            if let Some(known) = known {
                                assert!(
                                    block.iter().all(|it| it == known),
                                    "block {} of {}: {:?}, not {known}",
                                    at,
                                    out.lba,
                                    &block[..4]
                                );
                            }
                        }
                    }
                    (Kind::Write, Ok(())) => model.fill(Some(out.byte)),
                    (Kind::WriteZeroes { .. }, Ok(())) => model.fill(Some(0)),
                    (Kind::Deallocate, Ok(())) => model.fill(self.zeroes.then_some(0)),
                    (Kind::Deallocate, Err(ErrorKind::Unsupported)) => {}
                    (Kind::Compare, Ok(())) => {
                        assert!(model.iter().flatten().all(|known| *known == out.byte));
                    }
                    (Kind::Compare, Err(ErrorKind::Miscompare)) => {
                        assert!(model.iter().any(|known| *known != Some(out.byte)));
                    }
                    (Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate, Err(_)) => {
                        model.fill(None);
                    }
                    (Kind::Read | Kind::Compare | Kind::Verify | Kind::Flush, _) => {}
                }
                let _ = out.reactor;
            }
        }
    }

    /// Something happens that nobody asked for.
    fn surprise(&mut self) {
        let chaos = chaos(&mut self.random);
        match below(&mut self.random, 12) {
            0..4 => self.rig.soft.set_chaos(chaos),
            4 => self.rig.controller.reset(),
            5 => self.rig.soft.ghost(1, u16::MAX),
            6 => self.rig.soft.fail(),
            7 => self.rig.soft.lose_interrupts(3),
            8 => {
                if one_in(&mut self.random, 2) {
                    self.rig.soft.remove();
                } else {
                    self.rig.soft.remove_by_surprise();
                }
            }
            9 | 10 => self.rig.soft.insert(),
            _ => self.rig.controller.rescan(),
        }
    }

    fn run(mut self) -> u64 {
        for _ in 0..600 {
            if self.out.len() < 40 {
                self.submit();
            }
            let steps = below(&mut self.random, 12) as usize;
            self.rig.step(steps);
            self.take();
            if one_in(&mut self.random, 40) {
                self.surprise();
            }
            if one_in(&mut self.random, 40) {
                self.rig.clock.advance(Duration::from_millis(below(&mut self.random, 40_000)));
            }
            if let Some(&token) = self.out.keys().next()
                && one_in(&mut self.random, 60)
            {
                let reactor = self.out[&token].reactor;
                self.rig.insides[reactor].borrow_mut().queues.get_mut(&1).unwrap().cancel(token);
            }
        }
        self.rig.soft.set_chaos(Chaos::default());
        self.rig.soft.insert();
        let World { rig, out, model, size, .. } = &mut self;
        let _ = (model, size);
        // All of them end, whatever was done to the device.
        let mut left: Vec<_> = std::mem::take(out).into_iter().collect();
        rig.until("all have ended", |rig| {
            left.retain(|(token, _)| rig.result(*token).is_none());
            left.is_empty() && rig.controller.phase() == Phase::Live
        });
        self.rig.end();
        self.failures
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed (`TIDEGATE_SEED`), or many (`TIDEGATE_SEEDS`, from `TIDEGATE_FIRST_SEED` on).
#[test]
fn worlds_from_seeds() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        World::new(seed).run();
        return;
    }
    let first = number("TIDEGATE_FIRST_SEED").unwrap_or(0);
    let last = first + number("TIDEGATE_SEEDS").unwrap_or(300);
    let mut failures = 0;
    for seed in first..last {
        match std::panic::catch_unwind(|| World::new(seed).run()) {
            Ok(failed) => failures += failed,
            Err(panic) => {
                eprintln!(
                    "to see it again: TIDEGATE_SEED={seed} cargo test -p nvme-pcie --test driver worlds"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(failures > 0 || last - first < 10, "nothing ever failed");
}
