//! The data pointer of a command: PRP entries or a scatter gather list, and the page of the driver's own that they need.
//!
//! NVMe Base 2.0c, sections 4.1.1 and 4.1.2. Two pages are named by the command itself. More are a list in the command's page of [`Scratch`], or, where
//! the controller takes those, descriptors: one, in the command, for contiguous memory.

use std::sync::Arc;

use nvme::command::Prps;
use nvme::sgl::LocalSgl;
use nvme::{SglDescriptor, Sqe};

use crate::Pages;
use crate::pages::PAGE_SIZE;
use crate::plan::{Extent, Extents, PAGES_PER_COMMAND, Sgls};

/// A page, as addresses are counted.
const PAGE: u64 = 4096;

/// A page for each command of a reactor: a list of the pages of its data, a small structure that goes with it, or the data that go by way of the driver.
/// And two for all: one of zeroes, one that nobody looks at.
#[derive(Debug)]
pub(crate) struct Scratch {
    pages: Arc<Pages>,
}

impl Scratch {
    /// Bytes for so many commands.
    pub(crate) fn bytes(commands: u16) -> usize {
        (usize::from(commands) + 2) * PAGE_SIZE
    }

    pub(crate) fn new(pages: Arc<Pages>) -> Scratch {
        Scratch { pages }
    }

    /// Where the page of zeroes is.
    pub(crate) fn zeroes(&self) -> u64 {
        self.pages.iova()
    }

    /// Where the page is that nobody looks at.
    pub(crate) fn nothing(&self) -> u64 {
        self.pages.iova() + PAGE
    }

    /// The page of a command.
    #[inline]
    pub(crate) fn of(&self, slot: u16) -> Own<'_> {
        Own { pages: &self.pages, offset: (usize::from(slot) + 2) * PAGE_SIZE }
    }
}

/// The page of one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'a> {
    pages: &'a Pages,
    offset: usize,
}

impl<'a> Own<'a> {
    /// The page at this offset of what belongs to somebody else.
    pub(crate) fn new(pages: &'a Pages, offset: usize) -> Own<'a> {
        Own { pages, offset }
    }

    /// Where the device sees it.
    pub(crate) fn iova(self) -> u64 {
        self.pages.iova().saturating_add(u64::try_from(self.offset).unwrap_or(u64::MAX))
    }

    pub(crate) fn put(self, offset: usize, bytes: &[u8]) {
        let stored =
            offset + bytes.len() <= PAGE_SIZE && self.pages.put_bytes(self.offset + offset, bytes);
        debug_assert!(stored, "it fits into the page");
    }

    pub(crate) fn get(self, offset: usize, out: &mut [u8]) {
        let there =
            offset + out.len() <= PAGE_SIZE && self.pages.get_bytes(self.offset + offset, out);
        debug_assert!(there, "it lies in the page");
    }

    #[inline]
    fn put_at<T: zerocopy::IntoBytes + zerocopy::Immutable>(self, index: usize, value: &T) {
        let stored = self.pages.put(self.offset + index * size_of::<T>(), value);
        debug_assert!(stored, "the list fits into the page");
    }

    /// `sqe` with this memory as its data, which the caller has seen to fit ([`crate::plan`]).
    pub(crate) fn point(self, sqe: Sqe, data: &Extents, sgls: Sgls) -> Sqe {
        let pages = || data.iter().fold(0, |sum, extent| sum + pages(extent.iova, extent.len));
        if sgls != Sgls::No && (data.in_pages() < data.len() || pages() > 2) {
            return self.point_by_sgl(sqe, data);
        }
        let mut list = data.iter().flat_map(|extent| {
            let last = extent.iova.saturating_add(extent.len).saturating_sub(1) / PAGE;
            let others = (extent.iova / PAGE + 1..=last).map(|page| page * PAGE);
            std::iter::once(extent.iova).chain(others)
        });
        self.point_by_prps(sqe, &mut list)
    }

    /// `sqe` with `len` bytes of data that are all the same page.
    pub(crate) fn point_at_page(self, sqe: Sqe, page: u64, len: u64) -> Sqe {
        let count = usize::try_from(len.div_ceil(PAGE)).unwrap_or(usize::MAX);
        self.point_by_prps(sqe, &mut std::iter::repeat_n(page, count))
    }

    /// `sqe` with `len` bytes of data from the page at `iova` on.
    pub(crate) fn point_at_pages(self, sqe: Sqe, iova: u64, len: usize) -> Sqe {
        let mut data = Extents::default();
        data.push(Extent { iova, len: u64::try_from(len).unwrap_or(u64::MAX) });
        self.point(sqe, &data, Sgls::No)
    }

    fn point_by_prps(self, sqe: Sqe, pages: &mut impl Iterator<Item = u64>) -> Sqe {
        let first = pages.next().unwrap_or(0);
        let second = pages.next().unwrap_or(0);
        let Some(third) = pages.next() else {
            return sqe.with_prps(Prps { first, second });
        };
        self.put_at(0, &second.to_le_bytes());
        self.put_at(1, &third.to_le_bytes());
        for (index, page) in pages.enumerate() {
            self.put_at(index + 2, &page.to_le_bytes());
        }
        sqe.with_prps(Prps { first, second: self.iova() })
    }

    fn point_by_sgl(self, sqe: Sqe, data: &Extents) -> Sqe {
        let descriptor = |extent: Extent| {
            let length = u32::try_from(extent.len).unwrap_or(u32::MAX);
            LocalSgl::Data { address: extent.iova, length }
        };
        if let (1, Some(only)) = (data.count(), data.iter().next()) {
            return sqe.with_local_sgl(descriptor(only));
        }
        let mut length = 0;
        for (index, extent) in data.iter().enumerate() {
            self.put_at(index, &SglDescriptor::from(descriptor(extent)));
            length += 16;
        }
        sqe.with_local_sgl(LocalSgl::LastSegment { address: self.iova(), length })
    }
}

/// Pages that `len` bytes from `iova` touch.
fn pages(iova: u64, len: u64) -> u64 {
    (iova % PAGE).saturating_add(len).div_ceil(PAGE)
}

const _: () = assert!((PAGES_PER_COMMAND - 1) * 8 <= PAGE);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a data pointer as a controller does: the addresses of all bytes.
    fn follow(sqe: &Sqe, pages: &Pages, len: u64) -> Vec<u64> {
        let read = |address: u64| {
            let offset = usize::try_from(address - pages.iova()).unwrap();
            u64::from_le_bytes(pages.get(offset).unwrap())
        };
        if sqe.flags != 0 {
            let of = |sgl| match sgl {
                LocalSgl::Data { address, length } => address..address + u64::from(length),
                other => panic!("{other:?}"),
            };
            return match sqe.dptr.local() {
                LocalSgl::LastSegment { address, length } => {
                    let offset = usize::try_from(address - pages.iova()).unwrap();
                    let get = |index| pages.get::<SglDescriptor>(offset + index * 16).unwrap();
                    (0..length as usize / 16).flat_map(|index| of(get(index).local())).collect()
                }
                single => of(single).collect(),
            };
        }
        let prps = sqe.prps();
        let touched = (prps.first % PAGE + len).div_ceil(PAGE);
        let mut starts = vec![prps.first];
        match touched {
            0 | 1 => {}
            2 => starts.push(prps.second),
            _ => starts.extend((0..touched - 1).map(|index| read(prps.second + index * 8))),
        }
        let bytes = starts.into_iter().flat_map(|start| start..(start / PAGE + 1) * PAGE);
        bytes.take(usize::try_from(len).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_controller_finds_the_bytes_in_order(
            lengths in prop::collection::vec(1..40_u64, 1..=4),
            addresses in prop::collection::vec(1_u64..1 << 20, 4),
            (head, tail) in (0..4096_u64, 1..4096_u64),
            by_pages in any::<bool>(),
        ) {
            // As pages can name it, or, with descriptors, anyhow.
            let mut data = Extents::default();
            for (index, (len, page)) in lengths.iter().zip(&addresses).enumerate() {
                let (mut iova, mut bytes) = (page * PAGE, len * PAGE);
                if index == 0 {
                    iova += head & !3;
                    bytes -= head & !3;
                }
                if index + 1 == lengths.len() && bytes > tail {
                    bytes -= tail & !3;
                }
                if !by_pages {
                    iova += 1;
                }
                data.push(Extent { iova, len: bytes });
            }
            let pages = Arc::new(Pages::new(Scratch::bytes(2), 1 << 40).unwrap());
            let scratch = Scratch::new(Arc::clone(&pages));
            let sgls = if by_pages { Sgls::No } else { Sgls::Bytes };
            let len = data.iter().map(|extent| extent.len).sum();
            let expected: Vec<_> = data.iter().flat_map(|it| it.iova..it.iova + it.len).collect();
            let sqe = scratch.of(1).point(Sqe::default(), &data, sgls);
            prop_assert_eq!(follow(&sqe, &pages, len), expected);
        }
    }

    #[test]
    fn many_pages_may_be_one() {
        let pages = Arc::new(Pages::new(Scratch::bytes(1), 1 << 40).unwrap());
        let scratch = Scratch::new(Arc::clone(&pages));
        for (len, touched) in [(512, 1), (8192, 2), (5 * 4096, 5)] {
            let sqe = scratch.of(0).point_at_page(Sqe::default(), scratch.zeroes(), len);
            let bytes = follow(&sqe, &pages, len);
            assert!(bytes.iter().all(|byte| byte / PAGE == scratch.zeroes() / PAGE));
            assert_eq!(bytes.len() as u64, len.min(touched * PAGE));
        }
    }
}
