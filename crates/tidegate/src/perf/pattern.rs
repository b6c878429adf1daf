//! What `perf --verify` writes into every block, and how it tells afterwards what became of it.
//!
//! A block (one LBA) is a row of 64-byte lines. Every line is complete in itself: it says which run wrote it, for
//! which LBA, as which generation of that LBA, where in the block it stands, and carries a CRC-32C of all that. So a
//! line that survives can be read whatever happened to its neighbours, and a damaged block says what happened to it:
//!
//! | found | called |
//! | --- | --- |
//! | every line whole, of this run and LBA, of a generation that was acknowledged or is under way | good |
//! | every line whole, an older generation or zeroes, and again when read anew | lost write |
//! | the same, but the right generation when read anew | stale read |
//! | whole lines of several generations, or of this write and of what was there before | torn write |
//! | every line whole, of another LBA (or of another place in the block) | misplaced write |
//! | every line whole, of another run | foreign |
//! | a line that is nobody's | corrupt |
//!
//! A single CRC over the block, as fio has it, catches the same faults but cannot name them.

use std::fmt;

/// Bytes of a line.
pub(crate) const LINE: usize = 64;
const MAGIC: u32 = 0x4544_4954;
const CRC_AT: usize = LINE - 4;

/// What a block should hold: who wrote it, where, and as which generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The run that wrote it.
    pub(crate) run: u64,
    /// The logical block address it was written to.
    pub(crate) lba: u64,
    /// The number of the write to this address: 1 for the first.
    pub(crate) generation: u32,
}

/// The generations that a block may hold: all from the last acknowledged to the last one sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acceptable {
    /// Newest generation that was acknowledged; 0 if none: then anything may be there.
    pub(crate) acknowledged: u32,
    /// Newest generation that was sent.
    pub(crate) sent: u32,
}

impl Acceptable {
    fn allows(self, generation: u32) -> bool {
        (self.acknowledged..=self.sent).contains(&generation)
    }
}

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An acknowledged write is not there; what was there before still is.
    Lost {
        /// The generation found; 0 for zeroes.
        found: u32,
    },
    /// The first read returned an older generation than a second one.
    Stale {
        /// The generation first found; 0 for zeroes.
        found: u32,
    },
    /// Parts of the block are of different writes.
    Torn {
        /// Byte of the block where the first part ends.
        at: usize,
        /// The generation before that byte; 0 for zeroes.
        before: u32,
        /// The generation after it; 0 for zeroes.
        after: u32,
    },
    /// The block holds what was written to another address, or its parts are in each other's place.
    Misplaced {
        /// The address that the data was written to.
        lba: u64,
        /// The generation found.
        found: u32,
    },
    /// The block holds data of another run.
    Foreign {
        /// The run found.
        run: u64,
    },
    /// The block holds a generation that was never sent.
    Unsent {
        /// The generation found.
        found: u32,
    },
    /// Bytes that no run wrote.
    Corrupt {
        /// Byte of the block where the first such line begins.
        at: usize,
    },
}

impl Fault {
    /// One word for reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "lost",
            Self::Stale { .. } => "stale",
            Self::Torn { .. } => "torn",
            Self::Misplaced { .. } => "misplaced",
            Self::Foreign { .. } => "foreign",
            Self::Unsent { .. } => "unsent",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// A generation in words.
struct Generation(u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("zeroes"),
            generation => write!(f, "generation {generation}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Lost { found } => write!(f, "lost write: found {}", Generation(found)),
            Self::Stale { found } => write!(
                f,
                "stale read: found {}, and the right one when read again",
                Generation(found)
            ),
            Self::Torn { at, before, after } => write!(
                f,
                "torn write: found {} up to byte {at} and {} from there",
                Generation(before),
                Generation(after)
            ),
            Self::Misplaced { lba, found } => {
                write!(f, "misplaced write: found generation {found} of LBA {lba}")
            }
            Self::Foreign { run } => {
                write!(f, "stale block: found data of another run ({run:016x})")
            }
            Self::Unsent { found } => write!(f, "found generation {found}, which was never sent"),
            Self::Corrupt { at } => {
                write!(f, "corrupt: byte {at} and on is not what any run wrote")
            }
        }
    }
}

/// Fills `data`, whole blocks of `block` bytes beginning at `stamp.lba`, with what [`check`] expects.
pub(crate) fn fill(data: &mut [u8], block: usize, stamp: Stamp) {
    for (lba, bytes) in (stamp.lba..).zip(data.chunks_exact_mut(block)) {
        for (index, line) in (0_u32..).zip(bytes.as_chunks_mut::<LINE>().0) {
            write_line(line, Stamp { lba, ..stamp }, index);
        }
    }
}

/// A block that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its address.
    pub(crate) lba: u64,
    /// What is wrong with it.
    pub(crate) fault: Fault,
}

/// Checks `data`, whole blocks of `block` bytes beginning at `lba`, and finds the first that is not good.
pub(crate) fn check(
    data: &[u8],
    block: usize,
    run: u64,
    lba: u64,
    acceptable: Acceptable,
) -> Result<(), Finding> {
    for (lba, bytes) in (lba..).zip(data.chunks_exact(block)) {
        check_block(bytes, run, lba, acceptable).map_err(|fault| Finding { lba, fault })?;
    }
    Ok(())
}

/// What one line turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Written { stamp: Stamp, index: u32 },
    Zero,
    Broken,
}

fn check_block(bytes: &[u8], run: u64, lba: u64, acceptable: Acceptable) -> Result<(), Fault> {
    if acceptable.acknowledged == 0 {
        // Whatever the medium held before: it is not ours to judge.
        return Ok(());
    }
    let lines = || (0_u32..).zip(bytes.as_chunks::<LINE>().0.iter().map(read_line));
    let Some((_, first)) = lines().next() else {
        return Ok(());
    };
    // What was written elsewhere or by others explains a block better than what differs within it.
    for (index, line) in lines() {
        match line {
            Line::Broken => {
                return Err(Fault::Corrupt {
                    at: LINE * usize::try_from(index).unwrap_or(usize::MAX / LINE),
                });
            }
            Line::Written { stamp, .. } if stamp.run != run => {
                return Err(Fault::Foreign { run: stamp.run });
            }
            Line::Written { stamp, index: place } if stamp.lba != lba || place != index => {
                return Err(Fault::Misplaced { lba: stamp.lba, found: stamp.generation });
            }
            Line::Written { .. } | Line::Zero => {}
        }
    }
    let generation_of = |line| match line {
        Line::Written { stamp, .. } => stamp.generation,
        Line::Zero | Line::Broken => 0,
    };
    let before = generation_of(first);
    if let Some((index, line)) = lines().find(|&(_, line)| generation_of(line) != before) {
        return Err(Fault::Torn {
            at: LINE * usize::try_from(index).unwrap_or(usize::MAX / LINE),
            before,
            after: generation_of(line),
        });
    }
    if acceptable.allows(before) {
        Ok(())
    } else if before < acceptable.acknowledged {
        Err(Fault::Lost { found: before })
    } else {
        Err(Fault::Unsent { found: before })
    }
}

// A line: magic, generation, run, LBA, place in the block, filler that differs from line to line, CRC-32C of all
// before it. The generation is in the CRC, so half a line of one write and half of another is corrupt, not torn:
// no medium tears within 64 bytes.
fn write_line(line: &mut [u8; LINE], stamp: Stamp, index: u32) {
    let mut words = [0_u64; LINE / 8 - 1];
    let seed = mix(stamp.run
        ^ stamp.lba.rotate_left(20)
        ^ (u64::from(stamp.generation) << 32)
        ^ u64::from(index));
    words[0] = u64::from(MAGIC) | (u64::from(stamp.generation) << 32);
    words[1] = stamp.run;
    words[2] = stamp.lba;
    words[3] = u64::from(index) | (seed << 32);
    for (word, step) in words.iter_mut().skip(4).zip(1_u64..) {
        *word = seed.wrapping_mul(step | 1).rotate_left(17);
    }
    let (head, tail) = line.split_at_mut(LINE - 8);
    for (bytes, word) in head.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    tail.copy_from_slice(&seed.to_le_bytes());
    let crc = crc_of(line);
    if let Some(place) = line.last_chunk_mut::<4>() {
        *place = crc.to_le_bytes();
    }
}

fn read_line(line: &[u8; LINE]) -> Line {
    let word = |at: usize| {
        line.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let (head, half) = (word(0), |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0));
    if half(head) != MAGIC || half(word(LINE - 8) >> 32) != crc_of(line) {
        return if line.iter().all(|&byte| byte == 0) { Line::Zero } else { Line::Broken };
    }
    Line::Written {
        stamp: Stamp { run: word(8), lba: word(16), generation: half(head >> 32) },
        index: half(word(24)),
    }
}

fn crc_of(line: &[u8; LINE]) -> u32 {
    let (covered, _) = line.split_at(CRC_AT);
    nvme::tcp::crc32c(covered)
}

/// A fixed scrambling of 64 bits (the finaliser of SplitMix64): near addresses give unlike fillers.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 0x1234_5678_9abc_def0;
    const LBA: u64 = 1000;
    const BLOCK: usize = 4096;
    const NOW: Acceptable = Acceptable { acknowledged: 5, sent: 5 };

    fn written(lba: u64, generation: u32, run: u64) -> Vec<u8> {
        let mut data = vec![0; BLOCK];
        fill(&mut data, BLOCK, Stamp { run, lba, generation });
        data
    }

    fn fault(data: &[u8]) -> Fault {
        check(data, BLOCK, RUN, LBA, NOW).unwrap_err().fault
    }

    #[test]
    fn what_was_written_is_good_in_blocks_of_either_size() {
        for block in [512, 4096] {
            let mut data = vec![0; 8192];
            fill(&mut data, block, Stamp { run: RUN, lba: LBA, generation: 5 });
            assert_eq!(check(&data, block, RUN, LBA, NOW), Ok(()));
        }
    }

    #[test]
    fn a_write_that_got_lost_shows_the_older_one_or_zeroes() {
        assert_eq!(fault(&written(LBA, 4, RUN)), Fault::Lost { found: 4 });
        assert_eq!(fault(&[0; BLOCK]), Fault::Lost { found: 0 });
    }

    #[test]
    fn a_torn_write_shows_both_generations_and_the_place() {
        for at in [512, 2048, 4032] {
            let mut data = written(LBA, 5, RUN);
            data[at..].copy_from_slice(&written(LBA, 4, RUN)[at..]);
            assert_eq!(fault(&data), Fault::Torn { at, before: 5, after: 4 });
            let mut data = written(LBA, 5, RUN);
            data[..at].fill(0);
            assert_eq!(fault(&data), Fault::Torn { at, before: 0, after: 5 });
        }
    }

    #[test]
    fn a_misplaced_write_shows_where_it_belongs() {
        assert_eq!(fault(&written(LBA + 8, 5, RUN)), Fault::Misplaced { lba: LBA + 8, found: 5 });
        // The halves of the block exchanged: right address, wrong place.
        let mut data = written(LBA, 5, RUN);
        data.rotate_left(BLOCK / 2);
        assert_eq!(fault(&data), Fault::Misplaced { lba: LBA, found: 5 });
    }

    #[test]
    fn data_of_another_run_and_of_the_future_are_told_apart() {
        assert_eq!(fault(&written(LBA, 5, RUN + 1)), Fault::Foreign { run: RUN + 1 });
        assert_eq!(fault(&written(LBA, 6, RUN)), Fault::Unsent { found: 6 });
    }

    #[test]
    fn every_single_bit_counts() {
        let good = written(LBA, 5, RUN);
        for bit in 0..BLOCK * 8 {
            let mut data = good.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(fault(&data), Fault::Corrupt { at: bit / 8 / LINE * LINE }, "bit {bit}");
        }
    }

    #[test]
    fn unacknowledged_writes_may_be_there_or_not_but_never_torn() {
        let crash = Acceptable { acknowledged: 3, sent: 5 };
        for generation in 3..=5 {
            assert_eq!(check(&written(LBA, generation, RUN), BLOCK, RUN, LBA, crash), Ok(()));
        }
        let found = |data: &[u8]| check(data, BLOCK, RUN, LBA, crash).unwrap_err().fault;
        assert_eq!(found(&written(LBA, 2, RUN)), Fault::Lost { found: 2 });
        assert_eq!(found(&written(LBA, 6, RUN)), Fault::Unsent { found: 6 });
        let mut torn = written(LBA, 3, RUN);
        torn[1024..].copy_from_slice(&written(LBA, 4, RUN)[1024..]);
        assert_eq!(found(&torn), Fault::Torn { at: 1024, before: 3, after: 4 });
    }

    #[test]
    fn the_bad_block_of_many_is_named() {
        let mut data = vec![0; 8 * 512];
        fill(&mut data, 512, Stamp { run: RUN, lba: LBA, generation: 5 });
        data[3 * 512 + 100] ^= 1;
        let finding = check(&data, 512, RUN, LBA, NOW).unwrap_err();
        assert_eq!((finding.lba, finding.fault.name()), (LBA + 3, "corrupt"));
    }

    #[test]
    fn blocks_never_written_are_not_judged() {
        let never = Acceptable { acknowledged: 0, sent: 1 };
        assert_eq!(check(&[0x55; BLOCK], BLOCK, RUN, LBA, never), Ok(()));
    }
}
