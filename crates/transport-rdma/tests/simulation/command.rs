//! One command of a host: its memory, its capsule, and what is to be found when it has been answered.

use std::rc::Rc;

use memory::Segment;
use nvme::Sqe;
use nvme::io::{Command as Io, Transfer};
use testkit::Random;
use testkit::disk::pattern;
use testkit::rdma::{Machine, in_capsule, keyed, listed};
use testkit::simulation::oracle::{Oracle, WriteId};
use verbs::RegisteredArena;

use crate::scenario::{BLOCK, BLOCKS};

/// Bytes around a command's memory that nobody may touch.
const MARGIN: usize = 64;
const UNTOUCHED: u8 = 0xC5;
/// What lies where data is to come.
const UNWRITTEN: u8 = 0x3A;

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    /// None: a read.
    pub(crate) write: Option<WriteId>,
    pub(crate) sent: u64,
    pieces: Vec<Piece>,
    /// The key that the node is to invalidate.
    pub(crate) invalidates: Option<u32>,
    _memory: Option<Rc<RegisteredArena>>,
}

/// A piece of memory with margins.
#[derive(Debug)]
struct Piece {
    whole: Segment,
    part: Segment,
}

impl Piece {
    fn new(machine: &Machine, random: &mut Random, bytes: usize) -> Option<Piece> {
        // Nothing fits around what fills a slab.
        let (before, after) = match bytes {
            ..2_000_000 => (random.between(1, MARGIN as u64) as usize, MARGIN),
            _ => (0, 0),
        };
        let whole = machine.pool.take(before + bytes + after)?;
        let whole = whole.segment(0, before + bytes + after)?;
        whole.copy_from(0, &vec![UNTOUCHED; whole.len()]);
        let part = whole.part(before, bytes)?;
        part.copy_from(0, &vec![UNWRITTEN; bytes]);
        Some(Piece { whole, part })
    }

    fn check(&self) {
        let mut bytes = vec![0; self.whole.len()];
        self.whole.copy_to(0, &mut bytes);
        let start = self.part.as_ptr().addr() - self.whole.as_ptr().addr();
        let end = start + self.part.len();
        let around = bytes[..start].iter().chain(&bytes[end..]);
        assert!(
            around.copied().all(|byte| byte == UNTOUCHED),
            "bytes beside the data have changed"
        );
    }
}

/// Bytes that a host may put into a capsule, and send at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) in_capsule: usize,
    pub(crate) blocks: u64,
}

impl Command {
    /// A random command and its capsule; none if the host has no memory for it.
    pub(crate) fn random(
        machine: &Machine,
        random: &mut Random,
        bounds: Bounds,
        cid: u16,
        oracle: &mut Oracle,
        now: u64,
    ) -> Option<(Command, Vec<u8>)> {
        let blocks = random.spread(1, bounds.blocks.min(BLOCKS / 2));
        // Commands meet.
        let span = if random.permille(500) { 64 } else { BLOCKS - blocks };
        let lba = random.below(span);
        let bytes = blocks as usize * BLOCK;
        let transfer = Transfer::new(lba, blocks as u32);
        let writes = random.permille(500);
        let sqe = if writes { Io::Write(transfer) } else { Io::Read(transfer) };
        let sqe = sqe.to_sqe(1).with_cid(cid);
        let offset = random.index(4) * 16;
        if writes && bytes + offset <= bounds.in_capsule && random.permille(500) {
            let id = oracle.send(0, &[(lba, blocks)], false, now);
            let data = pattern::blocks(&vec![id; blocks as usize], lba, BLOCK);
            let command = Command {
                lba,
                blocks,
                write: Some(id),
                sent: now,
                pieces: Vec::new(),
                invalidates: None,
                _memory: None,
            };
            return Some((command, in_capsule(sqe, &data, offset)));
        }
        let most = (bounds.in_capsule.saturating_sub(offset) / 16).min(16);
        let count = if most >= 2 && random.permille(400) { 1 + random.index(most) } else { 1 };
        let pieces = Command::pieces(machine, random, bytes, count)?;
        let invalidate = random.permille(200);
        let memory =
            if invalidate { machine.registered_anew() } else { Rc::clone(&machine.memory) };
        let segments: Vec<_> = pieces.iter().map(|piece| piece.part.clone()).collect();
        let capsule =
            Command::capsule(sqe, &memory, &segments, offset, most > 0, invalidate, random);
        let mut command = Command {
            lba,
            blocks,
            write: None,
            sent: now,
            invalidates: invalidate.then(|| memory.remote(&segments[0]).unwrap().key),
            pieces,
            _memory: invalidate.then_some(memory),
        };
        if writes {
            let id = oracle.send(0, &[(lba, blocks)], false, now);
            command.write = Some(id);
            command.fill(&pattern::blocks(&vec![id; blocks as usize], lba, BLOCK));
        } else {
            oracle.read_sent(now);
        }
        Some((command, capsule))
    }

    fn capsule(
        sqe: Sqe,
        memory: &RegisteredArena,
        segments: &[Segment],
        offset: usize,
        lists: bool,
        invalidate: bool,
        random: &mut Random,
    ) -> Vec<u8> {
        match segments {
            [one] if !lists || random.permille(800) => keyed(sqe, memory, one, invalidate),
            all => listed(sqe, memory, all, offset, invalidate),
        }
    }

    /// Memory for so many bytes in so many pieces, cut anywhere.
    fn pieces(
        machine: &Machine,
        random: &mut Random,
        bytes: usize,
        count: usize,
    ) -> Option<Vec<Piece>> {
        let mut cuts: Vec<_> = (1..count).map(|_| random.index(bytes)).collect();
        cuts.extend([0, bytes]);
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|pair| Piece::new(machine, random, pair[1] - pair[0])).collect()
    }

    fn fill(&self, data: &[u8]) {
        let mut at = 0;
        for piece in &self.pieces {
            piece.part.copy_from(0, &data[at..at + piece.part.len()]);
            at += piece.part.len();
        }
    }

    /// What has come of a read.
    pub(crate) fn versions(&self) -> Vec<u64> {
        let mut data = Vec::new();
        for piece in &self.pieces {
            let mut bytes = vec![0; piece.part.len()];
            piece.part.copy_to(0, &mut bytes);
            data.extend(bytes);
        }
        let blocks = (self.lba..).zip(data.chunks_exact(BLOCK));
        blocks
            .map(|(lba, block)| pattern::read(block, lba).unwrap_or_else(|why| panic!("{why}")))
            .collect()
    }

    /// It has been answered: its memory is nobody's business any more.
    pub(crate) fn finish(self) {
        for piece in &self.pieces {
            piece.check();
            piece.whole.copy_from(0, &vec![0xDD; piece.whole.len()]);
        }
    }
}
