//! Data pointers: PRP entries and lists, SGLs. What they lead to, and everything that can be wrong with them.
//!
//! NVMe Base 2.0c, sections 4.1.1 and 4.1.2.

use nvme::command::DataPointer;
use nvme::identify::SglSupport;
use nvme::{LocalSgl, Prps, SglDescriptor, Sqe, Status};
use zerocopy::IntoBytes;

use super::bytes::Reach;
use super::world::World;

/// Segments of an SGL, one leading to the other, at most.
const SEGMENTS_MAX: usize = 256;

/// Memory that follows on in a command's data; nowhere for bits that go into a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) iova: Option<u64>,
    pub(super) len: u64,
}

/// Goes through the data of a command, piece by piece.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    now: Piece,
}

impl Cursor<'_> {
    pub(super) fn new(pieces: &[Piece]) -> Cursor<'_> {
        Cursor { pieces: pieces.iter(), now: Piece { iova: None, len: 0 } }
    }

    /// The next bytes that lie together, at most so many; none at the end.
    fn next(&mut self, most: usize) -> Option<(Option<u64>, usize)> {
        while self.now.len == 0 {
            self.now = *self.pieces.next()?;
        }
        let len = usize::try_from(self.now.len).unwrap_or(usize::MAX).min(most);
        let iova = self.now.iova;
        self.now.len -= len as u64;
        self.now.iova = iova.map(|iova| iova + len as u64);
        Some((iova, len))
    }

    /// Takes the next bytes from the host; false if they cannot be had.
    pub(super) fn gather(&mut self, reach: &Reach, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let Some((iova, len)) = self.next(out.len()) else { return false };
            let (now, later) = out.split_at_mut(len);
            if iova.is_some_and(|iova| !reach.read(iova, now)) {
                return false;
            }
            out = later;
        }
        true
    }

    /// Gives the next bytes to the host; false if they cannot be.
    pub(super) fn scatter(&mut self, reach: &Reach, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some((iova, len)) = self.next(bytes.len()) else { return false };
            let (now, later) = bytes.split_at(len);
            if iova.is_some_and(|iova| !reach.write(iova, now)) {
                return false;
            }
            bytes = later;
        }
        true
    }
}

impl World {
    /// Finds where the `length` bytes of a command's data are, in `self.pieces`. All of them may be reached.
    pub(super) fn resolve(&mut self, sqe: &Sqe, length: u64) -> Result<(), Status> {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let found = self.find_pieces(sqe, length, &mut pieces);
        self.pieces = pieces;
        found
    }

    fn find_pieces(
        &mut self,
        sqe: &Sqe,
        length: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Status> {
        if length == 0 {
            return Ok(());
        }
        if length > self.options.largest_transfer() {
            let what = format!("{length} bytes in a command are more than MDTS");
            return self.refuse(Status::INVALID_FIELD, what);
        }
        match sqe.data_pointer() {
            DataPointer::Prp => self.follow_prps(sqe.prps(), length, pieces)?,
            _ => self.follow_sgl(sqe, length, pieces)?,
        }
        for piece in pieces {
            if let Some(iova) = piece.iova.filter(|&iova| !self.reach.covers(iova, piece.len)) {
                self.iommu_fault(iova, piece.len, "data");
                return Err(Status::DATA_TRANSFER_ERROR);
            }
        }
        Ok(())
    }

    fn follow_prps(
        &mut self,
        prps: Prps,
        length: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Status> {
        let page = self.control.page();
        let Prps { first, second } = prps;
        if !first.is_multiple_of(4) {
            let what = format!("PRP Entry 1 {first:#x} is not aligned to a dword");
            return self.refuse(Status::PRP_OFFSET_INVALID, what);
        }
        let mut rest = length;
        take_page(first, page, &mut rest, pieces);
        if rest == 0 {
            if second != 0 {
                self.violate(format!("PRP Entry 2 is {second:#x}, and one page is enough"));
            }
            return Ok(());
        }
        if rest <= page {
            self.check_prp(second)?;
            take_page(second, page, &mut rest, pieces);
            return Ok(());
        }
        let mut list = second;
        if !list.is_multiple_of(8) {
            let what = format!("PRP list {list:#x} is not aligned to a qword");
            return self.refuse(Status::PRP_OFFSET_INVALID, what);
        }
        while rest > 0 {
            let places = (page - list % page) / 8;
            let chained = rest.div_ceil(page) > places;
            let entries = if chained { places - 1 } else { rest.div_ceil(page) };
            for index in 0..entries {
                let entry = self.prp_at(list + index * 8)?;
                take_page(entry, page, &mut rest, pieces);
            }
            if chained {
                list = self.prp_at(list + entries * 8)?;
            }
        }
        Ok(())
    }

    /// An entry of a list, which begins a page.
    fn prp_at(&mut self, iova: u64) -> Result<u64, Status> {
        let mut entry = [0; 8];
        if !self.reach.read(iova, &mut entry) {
            self.iommu_fault(iova, 8, "PRP list");
            return Err(Status::DATA_TRANSFER_ERROR);
        }
        let entry = u64::from_le_bytes(entry);
        self.check_prp(entry)?;
        Ok(entry)
    }

    fn check_prp(&mut self, entry: u64) -> Result<(), Status> {
        if entry.is_multiple_of(self.control.page()) {
            return Ok(());
        }
        let what = format!("PRP entry {entry:#x} is not the beginning of a page");
        self.refuse(Status::PRP_OFFSET_INVALID, what)
    }

    fn follow_sgl(
        &mut self,
        sqe: &Sqe,
        length: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Status> {
        self.counters.by_sgl += 1;
        let mut rest = length;
        let mut descriptor = sqe.dptr;
        for _ in 0..SEGMENTS_MAX {
            let (mut at, bytes, last) = match descriptor.local() {
                LocalSgl::Segment { address, length } => (address, length, false),
                LocalSgl::LastSegment { address, length } => (address, length, true),
                _ => {
                    self.take_descriptor(&descriptor, &mut rest, pieces)?;
                    break;
                }
            };
            self.check_reserved(&descriptor);
            if bytes == 0 || !bytes.is_multiple_of(16) || !at.is_multiple_of(8) {
                let what = format!("SGL segment of {bytes} bytes at {at:#x}");
                return self.refuse(Status::INVALID_SGL_SEGMENT, what);
            }
            let count = bytes / 16;
            for index in 1..=count {
                let mut next = SglDescriptor::default();
                if !self.reach.read(at, next.as_mut_bytes()) {
                    self.iommu_fault(at, 16, "SGL segment");
                    return Err(Status::DATA_TRANSFER_ERROR);
                }
                at = at.saturating_add(16);
                let leads_on =
                    matches!(next.local(), LocalSgl::Segment { .. } | LocalSgl::LastSegment { .. });
                if leads_on != (index == count && !last) {
                    let what = format!("SGL descriptor {next:?} is not where it belongs");
                    return self.refuse(Status::INVALID_SGL_SEGMENT, what);
                }
                if leads_on {
                    descriptor = next;
                } else {
                    self.take_descriptor(&next, &mut rest, pieces)?;
                }
            }
            if last {
                break;
            }
        }
        if rest > 0 {
            let what = format!("SGL is {rest} bytes too short for {length}");
            return self.refuse(Status::SGL_DATA_LENGTH_INVALID, what);
        }
        Ok(())
    }

    /// A descriptor of data.
    fn take_descriptor(
        &mut self,
        descriptor: &SglDescriptor,
        rest: &mut u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Status> {
        let support = self.options.sgls;
        self.check_reserved(descriptor);
        let (iova, len) = match descriptor.local() {
            LocalSgl::Data { address, length } => (Some(address), length),
            LocalSgl::BitBucket { length } if support.contains(SglSupport::BIT_BUCKET) => {
                (None, length)
            }
            _ => {
                let what = format!("SGL descriptor {descriptor:?} is not supported");
                return self.refuse(Status::SGL_TYPE_INVALID, what);
            }
        };
        let aligned = len.is_multiple_of(4) && iova.unwrap_or(0).is_multiple_of(4);
        if support.contains(SglSupport::DWORD) && !aligned {
            let what = format!("SGL data block {descriptor:?} is not aligned to dwords");
            return self.refuse(Status::SGL_GRANULARITY_INVALID, what);
        }
        let len = u64::from(len);
        if len > *rest && !support.contains(SglSupport::LONGER) {
            let what = format!("SGL is {} bytes longer than the data", len - *rest);
            return self.refuse(Status::SGL_DATA_LENGTH_INVALID, what);
        }
        let len = len.min(*rest);
        *rest -= len;
        if len > 0 {
            pieces.push(Piece { iova, len });
        }
        Ok(())
    }

    fn check_reserved(&mut self, descriptor: &SglDescriptor) {
        let address = descriptor.address.get();
        let bucket = matches!(descriptor.local(), LocalSgl::BitBucket { .. });
        if !matches!(descriptor.specific, [_, _, _, _, 0, 0, 0]) || bucket && address != 0 {
            self.violate(format!("SGL descriptor {descriptor:?} has reserved bits"));
        }
    }

    /// Gives data to the host, which asked for `length` bytes of it: what is missing is zero.
    pub(super) fn answer_with(
        &mut self,
        sqe: &Sqe,
        data: &[u8],
        length: u64,
    ) -> Result<(), Status> {
        self.resolve(sqe, length)?;
        let cut = usize::try_from(length).unwrap_or(usize::MAX).min(data.len());
        let (data, _) = data.split_at(cut);
        let mut cursor = Cursor::new(&self.pieces);
        let mut whole = cursor.scatter(&self.reach, data);
        let mut rest = length.saturating_sub(data.len() as u64);
        while whole && rest > 0 {
            let zeroes = [0; 4096];
            let now = usize::try_from(rest).unwrap_or(usize::MAX).min(zeroes.len());
            whole = cursor.scatter(&self.reach, zeroes.get(..now).unwrap_or_default());
            rest -= now as u64;
        }
        if whole { Ok(()) } else { Err(Status::DATA_TRANSFER_ERROR) }
    }

    /// Takes all data of a command from the host.
    pub(super) fn ask_for(&mut self, sqe: &Sqe, data: &mut [u8]) -> Result<(), Status> {
        self.resolve(sqe, data.len() as u64)?;
        let whole = Cursor::new(&self.pieces).gather(&self.reach, data);
        if whole { Ok(()) } else { Err(Status::DATA_TRANSFER_ERROR) }
    }
}

/// Data goes on at `iova` up to the end of the page.
fn take_page(iova: u64, page: u64, rest: &mut u64, pieces: &mut Vec<Piece>) {
    let len = (page - iova % page).min(*rest);
    *rest -= len;
    match pieces.last_mut() {
        Some(Piece { iova: Some(before), len: length })
            if before.checked_add(*length) == Some(iova) =>
        {
            *length += len;
        }
        _ => pieces.push(Piece { iova: Some(iova), len }),
    }
}
