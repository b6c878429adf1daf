//! What a job does next: which operation, where.
//!
//! A job has a range of the namespace to itself and sees it as chunks of one I/O each. The generator is a few shifts and
//! multiplications per I/O, and the same seed gives the same sequence.

use super::pattern::mix;

/// What `--rw` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential reads and writes, mixed
    #[value(alias = "readwrite")]
    Rw,
    /// Random reads and writes, mixed
    Randrw,
    /// Sequential deallocation
    Trim,
    /// Random deallocation
    Randtrim,
}

impl Mode {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Rw => "rw",
            Self::Randrw => "randrw",
            Self::Trim => "trim",
            Self::Randtrim => "randtrim",
        }
    }

    fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Randrw | Self::Randtrim)
    }

    /// Whether nothing but reading is done.
    pub(crate) fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::Randread)
    }

    /// Whether blocks are deallocated.
    pub(crate) fn trims(self) -> bool {
        matches!(self, Self::Trim | Self::Randtrim)
    }

    /// Percentage of reads.
    fn reads(self, mix: u8) -> u8 {
        match self {
            Self::Read | Self::Randread => 100,
            Self::Rw | Self::Randrw => mix,
            Self::Write | Self::Randwrite | Self::Trim | Self::Randtrim => 0,
        }
    }
}

/// An operation on one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Trim,
}

/// The whole that shares are part of.
const ALL: u64 = 1 << 32;

/// The sequence of operations of one job.
#[derive(Debug)]
pub(crate) struct Workload {
    state: u64,
    chunks: u64,
    next: u64,
    random: bool,
    /// Of [`ALL`], how many operations are reads.
    read_share: u64,
    other: Kind,
}

impl Workload {
    /// For a range of `chunks` chunks, at least one.
    pub(crate) fn new(mode: Mode, read_percentage: u8, chunks: u64, seed: u64) -> Self {
        Self {
            state: seed,
            chunks: chunks.max(1),
            next: 0,
            random: mode.is_random(),
            read_share: u64::from(mode.reads(read_percentage)) * ALL / 100,
            other: if mode.trims() { Kind::Trim } else { Kind::Write },
        }
    }

    /// Read or not.
    pub(crate) fn kind(&mut self) -> Kind {
        // The two pure cases need no chance, which keeps their loop lean and their branch predicted.
        let read = match self.read_share {
            0 => false,
            ALL => true,
            share => self.random_bits() >> 32 < share,
        };
        if read { Kind::Read } else { self.other }
    }

    /// Where: a chunk below `chunks`.
    pub(crate) fn chunk(&mut self) -> u64 {
        if self.random {
            let wide = u128::from(self.random_bits()) * u128::from(self.chunks);
            u64::try_from(wide >> 64).unwrap_or(0)
        } else {
            let chunk = self.next;
            self.next += 1;
            if self.next == self.chunks {
                self.next = 0;
            }
            chunk
        }
    }

    /// Whether chunks come in order, so that none may be skipped.
    pub(crate) fn is_random(&self) -> bool {
        self.random
    }

    /// Takes back the chunk drawn last, if they come in order.
    pub(crate) fn undo(&mut self) {
        if !self.random {
            self.next = self.next.checked_sub(1).unwrap_or(self.chunks - 1);
        }
    }

    // SplitMix64.
    fn random_bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_chunks_cover_the_range_evenly() {
        let mut workload = Workload::new(Mode::Randrw, 70, 16, 1);
        let mut hits = [0_u32; 16];
        for _ in 0..16_000 {
            hits[usize::try_from(workload.chunk()).unwrap()] += 1;
        }
        assert!(hits.iter().all(|&count| (800..1200).contains(&count)), "{hits:?}");
    }

    #[test]
    fn a_mix_has_its_share_of_reads() {
        let mut workload = Workload::new(Mode::Rw, 70, 4, 7);
        let reads = (0..10_000).filter(|_| workload.kind() == Kind::Read).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
        for (percentage, kind) in [(0, Kind::Write), (100, Kind::Read)] {
            let mut pure = Workload::new(Mode::Rw, percentage, 4, 7);
            assert!((0..1000).all(|_| pure.kind() == kind));
        }
    }

    #[test]
    fn sequential_chunks_wrap_and_can_be_taken_back() {
        let mut workload = Workload::new(Mode::Write, 0, 3, 1);
        let drawn: Vec<u64> = (0..5).map(|_| workload.chunk()).collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1]);
        workload.undo();
        assert_eq!(workload.chunk(), 1);
        workload.chunk();
        workload.undo();
        assert_eq!(workload.chunk(), 2);
    }
}
