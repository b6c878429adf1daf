//! An operation that has not ended, and the commands that it becomes.
//!
//! The memory of an operation is lent to the device from the first to the last of its commands. What a controller has no command for is made of others
//! ([`crate::plan`] says how); data that cannot be named go through the page of the command's slot.

use block::{ErrorKind, Kind, Operation, Token};
use memory::{DeviceWrite, Segment};
use nvme::io::{Command, DatasetManagement, DsmRange, Transfer, WriteZeroes};
use nvme::{Sqe, Status};

use crate::function::iova_of_segment;
use crate::plan::{Extent, Extents, Limits, Part, Way};
use crate::seat::Seat;

/// Memory that the device reads or writes.
#[derive(Debug)]
pub(crate) enum Loan {
    Read(Segment),
    Write(DeviceWrite),
}

impl Loan {
    fn segment(&self) -> &Segment {
        match self {
            Loan::Read(segment) => segment,
            Loan::Write(writing) => writing,
        }
    }
}

/// An operation that has not ended.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) member: usize,
    pub(crate) token: Token,
    pub(crate) kind: Kind,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    pub(crate) fua: bool,
    pub(crate) loans: [Option<Loan>; block::MAX_SEGMENTS],
    pub(crate) data: Extents,
    pub(crate) way: Way,
    pub(crate) limits: Limits,
    pub(crate) nsid: u32,
    /// Blocks for which there have been commands.
    pub(crate) planned: u64,
    /// There will be no further ones.
    pub(crate) complete: bool,
    /// The device has had a command of it.
    pub(crate) begun: bool,
    /// Commands that the device has, or that wait to be sent again.
    pub(crate) out: u32,
    pub(crate) retries: u8,
    pub(crate) result: Result<(), ErrorKind>,
}

impl Op {
    /// An operation of a member's namespace, of which nothing has been done; `None` if the device cannot reach its memory, or may not write it now.
    pub(crate) fn new(
        member: usize,
        nsid: u32,
        limits: Limits,
        operation: &Operation,
    ) -> Option<Op> {
        let (loans, data) = lend(operation)?;
        let &Operation { token, kind, lba, blocks, fua, .. } = operation;
        Some(Op {
            member,
            token,
            kind,
            lba,
            blocks,
            fua,
            loans,
            data,
            way: limits.way(kind),
            limits,
            nsid,
            planned: 0,
            complete: false,
            begun: false,
            out: 0,
            retries: 0,
            result: Ok(()),
        })
    }

    /// The next command's share.
    pub(crate) fn plan(&mut self) -> Part {
        let part = self.limits.next(
            self.kind,
            self.way,
            (self.lba, self.blocks),
            self.planned,
            &self.data,
        );
        self.planned += u64::from(part.blocks);
        self.complete = self.kind == Kind::Flush || self.planned >= self.blocks;
        self.out += 1;
        part
    }

    fn bytes(&self, part: Part) -> u64 {
        u64::from(part.blocks) << self.limits.shift
    }

    /// The command of a part, by this slot.
    pub(crate) fn command(&self, part: Part, seat: &Seat, slot: u16) -> Sqe {
        let page = seat.scratch.of(slot);
        let start = self.lba.saturating_add(part.first);
        let transfer = Transfer { fua: self.fua, ..Transfer::new(start, part.blocks) };
        let plain = Transfer { fua: false, ..transfer };
        let bytes = self.bytes(part);
        let with_data = |sqe: Sqe| {
            if part.bounced {
                page.point_at_page(sqe, page.iova(), bytes)
            } else {
                let data = self.data.part(part.first << self.limits.shift, bytes);
                page.point(sqe, &data, self.limits.sgls)
            }
        };
        let sqe = |command: Command| Sqe { flags: 0, ..command.to_sqe(self.nsid) };
        match (self.kind, self.way) {
            (Kind::Read, _) | (Kind::Compare, Way::PieceByPiece) => {
                with_data(sqe(Command::Read(plain)))
            }
            (Kind::Write, _) => {
                if part.bounced {
                    self.copy_out(part, seat, slot);
                }
                with_data(sqe(Command::Write(transfer)))
            }
            (Kind::Compare, _) => {
                if part.bounced {
                    self.copy_out(part, seat, slot);
                }
                with_data(sqe(Command::Compare(plain)))
            }
            (Kind::Flush, _) => sqe(Command::Flush),
            (Kind::WriteZeroes { .. }, Way::PageOfZeroes) => {
                page.point_at_page(sqe(Command::Write(transfer)), seat.scratch.zeroes(), bytes)
            }
            (Kind::WriteZeroes { deallocate }, _) => {
                let range = transfer.range;
                let deallocate = deallocate && self.limits.zeroes_deallocate;
                sqe(Command::WriteZeroes(WriteZeroes {
                    range,
                    deallocate,
                    fua: self.fua,
                    ..WriteZeroes::new(start, part.blocks)
                }))
            }
            (Kind::Deallocate, _) => {
                let range =
                    DsmRange { slba: start.into(), nlb: part.blocks.into(), ..DsmRange::default() };
                page.put(0, zerocopy::IntoBytes::as_bytes(&range));
                page.point_at_page(
                    sqe(Command::DatasetManagement(DatasetManagement::deallocate(1))),
                    page.iova(),
                    16,
                )
            }
            (Kind::Verify, Way::PageOfNothing) => {
                page.point_at_page(sqe(Command::Read(plain)), seat.scratch.nothing(), bytes)
            }
            (Kind::Verify, _) => sqe(Command::Verify(plain)),
        }
    }

    /// Calls `each` with the bytes of a part, as they lie in its segments: where in the part, the segment, where in that, and how many.
    fn pieces(&self, part: Part, mut each: impl FnMut(usize, &Segment, usize, usize)) {
        let size = |blocks: u64| usize::try_from(blocks << self.limits.shift).unwrap_or(usize::MAX);
        let (mut skip, mut left, mut at) = (size(part.first), size(part.blocks.into()), 0);
        for segment in self.loans.iter().flatten().map(Loan::segment) {
            let from = skip.min(segment.len());
            skip -= from;
            let len = (segment.len() - from).min(left);
            if len > 0 {
                each(at, segment, from, len);
            }
            (left, at) = (left - len, at + len);
        }
    }

    /// Copies the data of a part to the slot's page.
    fn copy_out(&self, part: Part, seat: &Seat, slot: u16) {
        let page = seat.scratch.of(slot);
        let mut bytes = [0; crate::pages::PAGE_SIZE];
        self.pieces(part, |at, segment, from, len| {
            if let Some(piece) = bytes.get_mut(at..at + len) {
                segment.copy_to(from, piece);
                page.put(at, piece);
            }
        });
    }

    /// Takes what a command has brought to the slot's page.
    pub(crate) fn bounce_back(&self, part: Part, seat: &Seat, slot: u16) -> Result<(), ErrorKind> {
        if !matches!((self.kind, self.way), (Kind::Read, _) | (Kind::Compare, Way::PieceByPiece)) {
            return Ok(());
        }
        let page = seat.scratch.of(slot);
        let mut bytes = [0; crate::pages::PAGE_SIZE];
        let mut result = Ok(());
        self.pieces(part, |at, segment, from, len| {
            let Some(piece) = bytes.get_mut(at..at + len) else { return };
            page.get(at, piece);
            if self.kind == Kind::Read {
                if segment.copy_from(from, piece) != len {
                    result = Err(ErrorKind::Internal);
                }
            } else {
                let mut ours = [0; crate::pages::PAGE_SIZE];
                let Some(ours) = ours.get_mut(..len) else { return };
                segment.copy_to(from, ours);
                if ours != piece {
                    result = Err(ErrorKind::Miscompare);
                }
            }
        });
        result
    }
}

/// Lends an operation's memory to the device; `None` if the device cannot reach it, or may not write it now.
fn lend(operation: &Operation) -> Option<([Option<Loan>; block::MAX_SEGMENTS], Extents)> {
    let mut loans = [const { None }; block::MAX_SEGMENTS];
    let mut data = Extents::default();
    for (segment, place) in operation.data.iter().zip(&mut loans) {
        let extent =
            Extent { iova: iova_of_segment(segment)?, len: u64::try_from(segment.len()).ok()? };
        data.push(extent);
        let segment = segment.clone();
        *place = Some(match operation.kind {
            Kind::Read => Loan::Write(segment.device_write()?),
            _ => Loan::Read(segment),
        });
    }
    Some((loans, data))
}

/// Whether the same command may succeed if it is sent again soon.
pub(crate) fn may_retry(status: Status) -> bool {
    const PASSING: [Status; 6] = [
        Status::NAMESPACE_NOT_READY,
        Status::COMMAND_INTERRUPTED,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::ABORT_REQUESTED,
        Status::ABORTED_SQ_DELETION,
        Status::CONTROLLER_PATHING_ERROR,
    ];
    !status.dnr() && PASSING.iter().any(|passing| status.same_code(*passing))
}

/// What a failed command means to whoever asked for the operation.
pub(crate) fn kind_of(status: Status) -> ErrorKind {
    if status.same_code(Status::COMPARE_FAILURE) {
        return ErrorKind::Miscompare;
    }
    let [sc, sct] = status.bits().to_le_bytes();
    ErrorKind::Status { sct: sct & 0x7, sc }
}
