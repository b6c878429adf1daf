//! How an operation becomes commands: which way it is carried out, and where it is cut.
//!
//! Pure arithmetic. A controller takes so many bytes at a time (MDTS), is slow across certain boundaries (NOIOB), and finds data through pages that
//! must follow one another, so one operation may be several commands. What it has no command for is made of others where that costs no memory:
//! zeroes are written from one page of zeroes, what is verified is read into one page that nobody looks at, and what is compared comes into a
//! page, piece by piece, to be compared here. Through such a page of the driver's own goes, too, a block that lies in memory as the controller cannot
//! take it.

use block::{Kind, MAX_SEGMENTS};

use crate::pages::PAGE_SIZE;

/// A page, as addresses are counted.
const PAGE: u64 = 4096;
const _: () = assert!(PAGE_SIZE == 4096);

/// The most pages that a command's data may touch: one in the command, the others in one page of a list.
pub(crate) const PAGES_PER_COMMAND: u64 = 1 + PAGE / 8;

/// Contiguous memory of an operation, as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extent {
    pub(crate) iova: u64,
    pub(crate) len: u64,
}

/// All memory of an operation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extents {
    list: [Extent; MAX_SEGMENTS],
    count: usize,
}

impl Extents {
    /// Adds one at the end; false if there is no room.
    pub(crate) fn push(&mut self, extent: Extent) -> bool {
        let Some(place) = self.list.get_mut(self.count) else { return false };
        *place = extent;
        self.count += 1;
        true
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> u64 {
        self.iter().map(|extent| extent.len).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Extent> {
        self.list.iter().take(self.count).copied()
    }

    /// Those of `len` bytes from `offset`, as far as there are so many.
    pub(crate) fn part(&self, mut offset: u64, mut len: u64) -> Extents {
        let mut part = Extents::default();
        for extent in self.iter() {
            let skipped = offset.min(extent.len);
            offset -= skipped;
            let taken = (extent.len - skipped).min(len);
            len -= taken;
            if taken > 0 {
                part.push(Extent { iova: extent.iova.saturating_add(skipped), len: taken });
            }
        }
        part
    }

    /// Bytes at the beginning that a PRP list can name: all pages but the first begin at their start, all but the last go to their end.
    pub(crate) fn in_pages(&self) -> u64 {
        let mut bytes: u64 = 0;
        let mut end: Option<u64> = None;
        for extent in self.iter() {
            match end {
                None if !extent.iova.is_multiple_of(4) => break,
                Some(end) if end % PAGE != 0 || extent.iova % PAGE != 0 => break,
                _ => {}
            }
            bytes = bytes.saturating_add(extent.len);
            end = Some(extent.iova.saturating_add(extent.len));
        }
        let first = self.iter().next().map_or(0, |extent| extent.iova % PAGE);
        bytes.min(PAGES_PER_COMMAND * PAGE - first)
    }
}

/// How a controller wants scatter gather lists, if it takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sgls {
    No,
    Dwords,
    Bytes,
}

/// What one command to a namespace may be at most. Of those without data, 0 says that there is no such command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// log2 of the block size.
    pub(crate) shift: u32,
    /// Blocks of data.
    pub(crate) data: u32,
    /// Blocks between boundaries that a command should not cross; 0: there are none.
    pub(crate) boundary: u32,
    /// Blocks of a Write Zeroes.
    pub(crate) zeroes: u32,
    /// Whether that may deallocate.
    pub(crate) zeroes_deallocate: bool,
    /// Blocks of a range of Dataset Management.
    pub(crate) deallocate: u32,
    /// Blocks of a Verify.
    pub(crate) verify: u32,
    /// Whether there is a Compare.
    pub(crate) compare: bool,
    /// Whether writes may be lost until a flush.
    pub(crate) volatile: bool,
    pub(crate) sgls: Sgls,
}

/// The way of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing is to be done.
    Nothing,
    /// By the command of that name.
    Native,
    /// Write Zeroes: by writes of a page of zeroes.
    PageOfZeroes,
    /// Verify: by reads into a page that nobody looks at.
    PageOfNothing,
    /// Compare: by reads into the driver's own page, a piece at a time.
    PieceByPiece,
}

/// A command's share of its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Blocks of the operation before it.
    pub(crate) first: u64,
    pub(crate) blocks: u32,
    /// Its data go through the driver's own page.
    pub(crate) bounced: bool,
}

impl Limits {
    /// How to carry out operations of this kind.
    pub(crate) fn way(&self, kind: Kind) -> Way {
        match kind {
            Kind::Flush if !self.volatile => Way::Nothing,
            Kind::WriteZeroes { .. } if self.zeroes == 0 => Way::PageOfZeroes,
            Kind::Verify if self.verify == 0 => Way::PageOfNothing,
            Kind::Compare if !self.compare => Way::PieceByPiece,
            _ => Way::Native,
        }
    }

    /// The command that comes after `done` blocks of an operation of `blocks` blocks from `lba`.
    pub(crate) fn next(
        &self,
        kind: Kind,
        way: Way,
        (lba, blocks): (u64, u64),
        done: u64,
        data: &Extents,
    ) -> Part {
        let most = match (kind, way) {
            (Kind::Flush, _) => return Part { first: 0, blocks: 0, bounced: false },
            (Kind::WriteZeroes { .. }, Way::Native) => self.zeroes,
            (Kind::Deallocate, _) => self.deallocate,
            (Kind::Verify, Way::Native) => self.verify,
            _ => self.data,
        };
        let left = blocks.saturating_sub(done);
        let mut count = left.min(u64::from(most.max(1)));
        let without = matches!(kind, Kind::WriteZeroes { .. } | Kind::Verify) && way == Way::Native;
        let moves_data = !(without || kind == Kind::Deallocate);
        if moves_data && self.boundary > 0 {
            let boundary = u64::from(self.boundary);
            count = count.min(boundary - lba.saturating_add(done) % boundary);
        }
        let mut bounced = way == Way::PieceByPiece;
        if matches!(kind, Kind::Read | Kind::Write | Kind::Compare) && !bounced {
            let data = data.part(done << self.shift, count << self.shift);
            let fits = self.reach(&data) >> self.shift;
            bounced = fits == 0;
            count = count.min(fits.max(1));
        }
        if bounced {
            count = count.min(PAGE >> self.shift);
        }
        Part { first: done, blocks: u32::try_from(count).unwrap_or(u32::MAX), bounced }
    }

    /// Bytes of this memory, from its beginning, that one command can name.
    fn reach(&self, data: &Extents) -> u64 {
        match self.sgls {
            Sgls::Bytes => data.len(),
            Sgls::Dwords if data.iter().all(|it| it.iova % 4 == 0 && it.len % 4 == 0) => data.len(),
            _ => data.in_pages(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> impl Strategy<Value = Limits> {
        let sgls = prop_oneof![Just(Sgls::No), Just(Sgls::Dwords), Just(Sgls::Bytes)];
        let boundary = prop_oneof![Just(0), 1..40_u32, Just(256)];
        (
            prop_oneof![Just(9), Just(12)],
            1..300_u32,
            boundary,
            0..70_u32,
            1..100_u32,
            0..50_u32,
            any::<bool>(),
            sgls,
        )
            .prop_map(
                |(shift, data, boundary, zeroes, deallocate, verify, compare, sgls)| Limits {
                    shift,
                    data,
                    boundary,
                    zeroes,
                    zeroes_deallocate: true,
                    deallocate,
                    verify,
                    compare,
                    volatile: true,
                    sgls,
                },
            )
    }

    /// Extents of so many bytes in all, cut at random places, each at some address.
    fn extents(bytes: u64, cuts: &[u64], addresses: &[u64]) -> Extents {
        let mut places: Vec<_> = cuts.iter().map(|cut| cut % (bytes + 1)).collect();
        places.extend([0, bytes]);
        places.sort_unstable();
        let mut extents = Extents::default();
        for (pair, address) in places.windows(2).zip(addresses) {
            assert!(extents.push(Extent { iova: *address, len: pair[1] - pair[0] }));
        }
        extents
    }

    /// Whether pages can name it, byte by byte.
    fn pages_can(data: &Extents) -> bool {
        let bytes: Vec<u64> = data.iter().flat_map(|it| it.iova..it.iova + it.len).collect();
        let starts = bytes.iter().enumerate().filter(|(at, byte)| *at == 0 || **byte % PAGE == 0);
        let follow = bytes.windows(2).all(|pair| {
            pair[1] == pair[0] + 1 || pair[0] % PAGE == PAGE - 1 && pair[1] % PAGE == 0
        });
        follow
            && bytes.first().is_none_or(|byte| byte % 4 == 0)
            && starts.count() as u64 <= PAGES_PER_COMMAND
    }

    proptest! {
        /// The parts are the operation, in order, each of them as the controller takes it and, where there is no reason, not smaller.
        #[test]
        fn parts_make_up_the_operation(
            limits in limits(),
            lba in 0..1000_u64,
            blocks in 1..200_u64,
            kind in prop_oneof![
                Just(Kind::Read), Just(Kind::Write), Just(Kind::Compare), Just(Kind::Verify), Just(Kind::Deallocate),
                Just(Kind::WriteZeroes { deallocate: true })
            ],
            cuts in prop::collection::vec(any::<u64>(), 0..3),
            granule in prop_oneof![Just(1), Just(4), Just(512), Just(4096)],
            addresses in prop::collection::vec(0..1_u64 << 30, 4),
        ) {
            let bytes = blocks << limits.shift;
            let moves = matches!(kind, Kind::Read | Kind::Write | Kind::Compare);
            let cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes + 1) / granule * granule).collect();
            let addresses: Vec<_> = addresses.iter().map(|address| address / granule * granule).collect();
            let data = if moves { extents(bytes, &cuts, &addresses) } else { Extents::default() };
            let way = limits.way(kind);
            let mut done = 0;
            while done < blocks {
                let part = limits.next(kind, way, (lba, blocks), done, &data);
                prop_assert_eq!(part.first, done);
                prop_assert!(part.blocks > 0);
                let (first, end) = (lba + done, lba + done + u64::from(part.blocks));
                let most = match kind {
                    Kind::WriteZeroes { .. } if limits.zeroes > 0 => limits.zeroes,
                    Kind::Verify if limits.verify > 0 => limits.verify,
                    Kind::Deallocate => limits.deallocate,
                    _ => limits.data,
                };
                prop_assert!(part.blocks <= most);
                let bound = limits.boundary > 0 && (moves || matches!(way, Way::PageOfZeroes | Way::PageOfNothing));
                if bound {
                    let boundary = u64::from(limits.boundary);
                    prop_assert_eq!(first / boundary, (end - 1) / boundary);
                }
                if moves {
                    let memory = data.part(done << limits.shift, u64::from(part.blocks) << limits.shift);
                    let dwords = memory.iter().all(|it| it.iova % 4 == 0 && it.len % 4 == 0);
                    let by_list = limits.sgls == Sgls::Bytes || limits.sgls == Sgls::Dwords && dwords;
                    if part.bounced {
                        prop_assert!(u64::from(part.blocks) << limits.shift <= PAGE);
                        let single = data.part(done << limits.shift, 1 << limits.shift);
                        prop_assert!(way == Way::PieceByPiece || !pages_can(&single));
                    } else {
                        prop_assert!(by_list || pages_can(&memory));
                    }
                }
                done += u64::from(part.blocks);
            }
            prop_assert_eq!(done, blocks);
        }
    }

    #[test]
    fn aligned_memory_is_cut_by_size_alone() {
        let limits = Limits {
            shift: 9,
            data: 1024,
            boundary: 0,
            zeroes: 1,
            zeroes_deallocate: true,
            deallocate: 1,
            verify: 1,
            compare: true,
            volatile: false,
            sgls: Sgls::No,
        };
        let mut data = Extents::default();
        assert!(data.push(Extent { iova: 1 << 30, len: 1 << 20 }));
        let part = limits.next(Kind::Read, Way::Native, (7, 2048), 0, &data);
        assert_eq!(part, Part { first: 0, blocks: 1024, bounced: false });
        assert_eq!(limits.way(Kind::Flush), Way::Nothing);
        let flush = limits.next(Kind::Flush, Way::Native, (0, 0), 0, &data);
        assert_eq!(flush.blocks, 0);
    }
}
