//! What an I/O command asks of a block device, or the status that refuses it.
//!
//! Pure functions on the path of every I/O, run on the reactor of the queue: no allocation, no lock, no
//! system call. Everything that the host wrote into the command is checked here, once, against
//! the [`Bounds`] of the namespace; below, ranges are taken as good. All arithmetic on them is checked.
//!
//! Fields that the NVM command set defines for what we do not offer are treated as it demands: protection
//! information fields (PRINFO, tags, STC) are ignored by a namespace that is not formatted with it, and
//! so are access hints (DSM) and Limited Retry. A directive is refused: a host that asks for one
//! was never told that it could.

use block::{BlockDevice, Kind};
use nvme::command::{Direction, Fuse};
use nvme::io::{BlockRange, Command, DatasetManagement, DsmRange};
use nvme::{Sqe, Status};
use zerocopy::FromBytes;

use crate::configuration::{Limits, Namespace};

/// Bytes that one Write Zeroes may cover: bounded because a device without a native operation writes them.
/// Identify reports it (WZSL); hosts split what is larger.
pub const WRITE_ZEROES_LIMIT: u32 = 16 << 20;

/// What a namespace permits: everything that a command is checked against, in one small copy, so that
/// the path of an I/O does not chase pointers. Taken anew when the configuration or the device's
/// geometry changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// log2 of the block size.
    pub block_shift: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Writes of any kind are refused.
    pub read_only: bool,
    /// Acknowledged writes may be lost without a flush, be it that no more may come.
    pub volatile_write_cache: bool,
    /// Blocks can be deallocated.
    pub deallocates: bool,
    /// Bytes that one command may transfer.
    pub max_transfer: u32,
}

impl Bounds {
    /// Those of a namespace in service on `device`.
    pub fn new(namespace: &Namespace, device: &dyn BlockDevice, limits: &Limits) -> Self {
        let (geometry, properties) = (device.geometry(), device.properties());
        Self {
            block_shift: geometry.block_shift(),
            blocks: geometry.blocks,
            read_only: namespace.is_read_only(),
            volatile_write_cache: properties.volatile_write_cache && !properties.read_only,
            deallocates: properties.deallocation.is_some(),
            max_transfer: limits.max_transfer,
        }
    }

    /// The bytes in a range that lies inside the namespace and is not longer than `limit` bytes.
    fn check(&self, range: BlockRange, limit: u32) -> Result<u32, Status> {
        let bytes = u64::from(range.blocks) << self.block_shift;
        let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes <= limit);
        let bytes = bytes.ok_or(Status::INVALID_FIELD.with_dnr())?;
        range.check(self.blocks).map_err(Status::with_dnr)?;
        Ok(bytes)
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr()) } else { Ok(()) }
    }
}

/// What is to be done for an I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One operation of the device.
    Operation(Request),
    /// The host's list of ranges is to be fetched; [`Ranges::parse`] takes its first `length` bytes. The
    /// data pointer may describe more: Linux sends 4 KiB, however few ranges it names.
    Deallocate {
        /// Bytes of the list.
        length: u32,
    },
    /// Nothing: complete with success, whatever data there is.
    Nothing,
}

/// One operation of the device, and the data that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub kind: Kind,
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks; 0 for a flush.
    pub blocks: u32,
    /// What is written must be durable when the command completes.
    pub fua: bool,
    /// The device must flush first: a Read, Compare or Verify with FUA answers for what is on the medium.
    pub flush_first: bool,
    /// Bytes of data; the data pointer must describe exactly these.
    pub length: u32,
    /// Which way the data goes.
    pub direction: Direction,
}

/// Checks an I/O command other than a fabrics one against the namespace that it names.
///
/// `write_through`: the host has been told that there is no volatile write cache, or has turned it off
/// (feature 06h), so every write is to be durable when it completes.
///
/// A Flush with NSID `FFFFFFFFh` is one of these per namespace; the caller knows them.
pub fn parse(sqe: &Sqe, bounds: &Bounds, write_through: bool) -> Result<Work, Status> {
    // FUSES is 0: no fused operation is supported.
    if sqe.fuse() != Fuse::Normal {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let cached = bounds.volatile_write_cache;
    let request = match Command::parse(sqe).map_err(Status::with_dnr)? {
        // Also where hosts may only read: what they wrote when they might is to be kept.
        Command::Flush if cached => {
            Request { kind: Kind::Flush, ..over(BlockRange { slba: 0, blocks: 0 }, false, false) }
        }
        Command::Flush => return Ok(Work::Nothing),
        Command::Read(transfer) => Request {
            kind: Kind::Read,
            length: bounds.check(transfer.range, bounds.max_transfer)?,
            direction: Direction::ControllerToHost,
            ..over(transfer.range, false, cached && transfer.fua)
        },
        Command::Compare(transfer) => Request {
            kind: Kind::Compare,
            length: bounds.check(transfer.range, bounds.max_transfer)?,
            direction: Direction::HostToController,
            ..over(transfer.range, false, cached && transfer.fua)
        },
        Command::Verify(transfer) => {
            // The device reads as much as for a Read, so it is bounded alike (VSL).
            bounds.check(transfer.range, bounds.max_transfer)?;
            over(transfer.range, false, cached && transfer.fua)
        }
        Command::Write(transfer) => {
            if transfer.directive_type != 0 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            let length = bounds.check(transfer.range, bounds.max_transfer)?;
            bounds.check_writable()?;
            Request {
                kind: Kind::Write,
                length,
                direction: Direction::HostToController,
                ..over(transfer.range, cached && (transfer.fua || write_through), false)
            }
        }
        Command::WriteZeroes(zeroes) => {
            bounds.check(zeroes.range, WRITE_ZEROES_LIMIT)?;
            bounds.check_writable()?;
            Request {
                kind: Kind::WriteZeroes { deallocate: zeroes.deallocate && bounds.deallocates },
                ..over(zeroes.range, cached && (zeroes.fua || write_through), false)
            }
        }
        Command::DatasetManagement(command) => return dataset_management(command, bounds),
    };
    Ok(Work::Operation(request))
}

/// A Verify, from which the others differ.
fn over(range: BlockRange, fua: bool, flush_first: bool) -> Request {
    Request {
        kind: Kind::Verify,
        lba: range.slba,
        blocks: range.blocks,
        fua,
        flush_first,
        length: 0,
        direction: Direction::None,
    }
}

/// Only deallocation does anything: the other attributes are hints, and a namespace that cannot deallocate
/// may take this one for a hint too. Its ranges are then not even fetched.
fn dataset_management(command: DatasetManagement, bounds: &Bounds) -> Result<Work, Status> {
    if !command.deallocate {
        return Ok(Work::Nothing);
    }
    bounds.check_writable()?;
    if !bounds.deallocates {
        return Ok(Work::Nothing);
    }
    Ok(Work::Deallocate { length: command.data_length() })
}

/// The checked list of a deallocation: up to 256 ranges inside the namespace, read in place.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a>(&'a [DsmRange]);

impl<'a> Ranges<'a> {
    /// Checks all ranges before any is carried out: either all are inside the namespace, or nothing is
    /// done. `list` is as long as [`Work::Deallocate`] said.
    pub fn parse(list: &'a [u8], bounds: &Bounds) -> Result<Self, Status> {
        let list = <[DsmRange]>::ref_from_bytes(list);
        let list = list.map_err(|_| Status::SGL_DATA_LENGTH_INVALID.with_dnr())?;
        for entry in list {
            entry.range().check(bounds.blocks).map_err(Status::with_dnr)?;
        }
        Ok(Self(list))
    }

    /// The ranges in order, empty ones left out.
    pub fn iter(&self) -> impl Iterator<Item = BlockRange> + use<'a> {
        self.0.iter().map(DsmRange::range).filter(|range| range.blocks != 0)
    }
}

#[cfg(test)]
mod tests {
    use nvme::io::{Opcode, Transfer, WriteZeroes};
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        block_shift: 9,
        blocks: 1 << 20,
        read_only: false,
        volatile_write_cache: true,
        deallocates: true,
        max_transfer: 1 << 20,
    };

    fn bounds() -> impl Strategy<Value = Bounds> {
        (
            prop_oneof![Just(9_u32), Just(12)],
            prop_oneof![1..200_000_u64, any::<u64>()],
            any::<[bool; 3]>(),
            12_u32..=25,
        )
            .prop_map(
                |(block_shift, blocks, [read_only, volatile_write_cache, deallocates], max)| {
                    Bounds {
                        block_shift,
                        blocks,
                        read_only,
                        volatile_write_cache,
                        deallocates,
                        max_transfer: 1 << max,
                    }
                },
            )
    }

    /// Where ranges go wrong: at either end of the namespace and of the number.
    fn lba() -> impl Strategy<Value = u64> {
        prop_oneof![0..300_000_u64, (u64::MAX - 70_000)..=u64::MAX, any::<u64>()]
    }

    fn inside(bounds: &Bounds, lba: u64, blocks: u32) -> bool {
        u128::from(lba) + u128::from(blocks) <= u128::from(bounds.blocks)
    }

    fn operation(command: Command, bounds: &Bounds, write_through: bool) -> Request {
        match parse(&command.to_sqe(1), bounds, write_through) {
            Ok(Work::Operation(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_wider_arithmetic(
            bounds in bounds(),
            lba in lba(),
            blocks in prop_oneof![1_u32..=65_536, 1_u32..=8],
            kind in 0..5,
        ) {
            let transfer = Transfer::new(lba, blocks);
            let (command, limit, moves) = match kind {
                0 => (Command::Read(transfer), bounds.max_transfer, true),
                1 => (Command::Write(transfer), bounds.max_transfer, true),
                2 => (Command::Compare(transfer), bounds.max_transfer, true),
                3 => (Command::Verify(transfer), bounds.max_transfer, false),
                _ => {
                    let zeroes = WriteZeroes::new(lba, blocks);
                    (Command::WriteZeroes(zeroes), WRITE_ZEROES_LIMIT, false)
                }
            };
            let writes = matches!(command, Command::Write(_) | Command::WriteZeroes(_));
            let bytes = u128::from(blocks) * (1 << bounds.block_shift);
            let expected = if bytes > u128::from(limit) {
                Some(Status::INVALID_FIELD)
            } else if !inside(&bounds, lba, blocks) {
                Some(Status::LBA_OUT_OF_RANGE)
            } else if writes && bounds.read_only {
                Some(Status::NAMESPACE_WRITE_PROTECTED)
            } else {
                None
            };
            match (parse(&command.to_sqe(1), &bounds, false), expected) {
                (Ok(Work::Operation(request)), None) => {
                    prop_assert_eq!((request.lba, request.blocks), (lba, blocks));
                    let length = if moves { bytes } else { 0 };
                    prop_assert_eq!(u128::from(request.length), length);
                    prop_assert!(!request.fua && !request.flush_first);
                }
                (result, expected) => {
                    prop_assert_eq!(result, Err(expected.unwrap().with_dnr()));
                }
            }
        }

        #[test]
        fn lists_of_ranges_agree_with_a_wider_arithmetic(
            bounds in bounds(),
            ranges in prop::collection::vec((lba(), prop_oneof![0_u32..4, any::<u32>()]), 1..=256),
        ) {
            let list: Vec<_> =
                ranges.iter().map(|(lba, blocks)| DsmRange::new(*lba, *blocks)).collect();
            let good = ranges.iter().all(|(lba, blocks)| inside(&bounds, *lba, *blocks));
            match Ranges::parse(list.as_bytes(), &bounds) {
                Ok(parsed) => {
                    prop_assert!(good);
                    let seen: Vec<_> =
                        parsed.iter().map(|range| (range.slba, range.blocks)).collect();
                    let wanted: Vec<_> =
                        ranges.into_iter().filter(|(_, blocks)| *blocks != 0).collect();
                    prop_assert_eq!(seen, wanted);
                }
                Err(status) => {
                    prop_assert!(!good);
                    prop_assert_eq!(status, Status::LBA_OUT_OF_RANGE.with_dnr());
                }
            }
        }

        #[test]
        fn nothing_that_a_host_sends_escapes_the_bounds(
            bytes: [u8; 64],
            opcode in prop_oneof![0_u8..0x20, any::<u8>()],
            bounds in bounds(),
            write_through: bool,
        ) {
            let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
            sqe.opcode = opcode;
            match parse(&sqe, &bounds, write_through) {
                Ok(Work::Operation(request)) => {
                    prop_assert!(inside(&bounds, request.lba, request.blocks));
                    prop_assert!(request.length <= bounds.max_transfer);
                    let writes = matches!(request.kind, Kind::Write | Kind::WriteZeroes { .. });
                    prop_assert!(!(writes && bounds.read_only));
                    prop_assert!(!(writes && write_through && bounds.volatile_write_cache) || request.fua);
                }
                Ok(Work::Deallocate { length }) => {
                    prop_assert!(!bounds.read_only && bounds.deallocates);
                    prop_assert!((16..=4096).contains(&length));
                }
                Ok(Work::Nothing) => {}
                Err(status) => prop_assert!(status.dnr()),
            }
        }

        #[test]
        fn a_list_of_an_odd_length_is_refused(list in prop::collection::vec(any::<u8>(), 0..64)) {
            let result = Ranges::parse(&list, &BOUNDS);
            prop_assert!(list.len() % 16 == 0 || result.is_err());
        }
    }

    #[test]
    fn force_unit_access_reaches_a_device_that_has_a_cache() {
        let written = Transfer { fua: true, ..Transfer::new(0, 1) };
        let zeroes = WriteZeroes { fua: true, ..WriteZeroes::new(0, 1) };
        let safe = Bounds { volatile_write_cache: false, ..BOUNDS };
        for command in [Command::Write(written), Command::WriteZeroes(zeroes)] {
            assert!(operation(command, &BOUNDS, false).fua);
            assert!(!operation(command, &safe, false).fua);
        }
        for command in [Command::Read(written), Command::Compare(written), Command::Verify(written)]
        {
            let request = operation(command, &BOUNDS, true);
            assert!(request.flush_first && !request.fua);
            assert!(!operation(command, &safe, true).flush_first);
        }
        let plain = Command::Write(Transfer::new(0, 1));
        assert!(!operation(plain, &BOUNDS, false).fua);
        assert!(operation(plain, &BOUNDS, true).fua);
        assert!(!operation(Command::Read(Transfer::new(0, 1)), &BOUNDS, true).flush_first);
    }

    #[test]
    fn a_flush_goes_where_there_is_something_to_flush() {
        assert_eq!(operation(Command::Flush, &BOUNDS, false).kind, Kind::Flush);
        let protected = Bounds { read_only: true, ..BOUNDS };
        assert_eq!(operation(Command::Flush, &protected, false).kind, Kind::Flush);
        let solid = Bounds { volatile_write_cache: false, ..BOUNDS };
        assert_eq!(parse(&Command::Flush.to_sqe(1), &solid, false), Ok(Work::Nothing));
    }

    #[test]
    fn zeroes_are_deallocated_only_where_that_is_possible() {
        let command =
            Command::WriteZeroes(WriteZeroes { deallocate: true, ..WriteZeroes::new(0, 8) });
        let kind = |bounds: &Bounds| operation(command, bounds, false).kind;
        assert_eq!(kind(&BOUNDS), Kind::WriteZeroes { deallocate: true });
        let cannot = Bounds { deallocates: false, ..BOUNDS };
        assert_eq!(kind(&cannot), Kind::WriteZeroes { deallocate: false });
    }

    #[test]
    fn deallocation_wants_its_list_and_hints_do_not() {
        let command = DatasetManagement::deallocate(256);
        let parse_of = |command, bounds: &Bounds| {
            parse(&Command::DatasetManagement(command).to_sqe(1), bounds, false)
        };
        assert_eq!(parse_of(command, &BOUNDS), Ok(Work::Deallocate { length: 4096 }));
        let one = parse_of(DatasetManagement::deallocate(1), &BOUNDS).unwrap();
        assert_eq!(one, Work::Deallocate { length: 16 });
        let hint = DatasetManagement { deallocate: false, integral_read: true, ..command };
        assert_eq!(parse_of(hint, &BOUNDS), Ok(Work::Nothing));
        let cannot = Bounds { deallocates: false, ..BOUNDS };
        assert_eq!(parse_of(command, &cannot), Ok(Work::Nothing));
        let protected = Bounds { read_only: true, ..BOUNDS };
        let refused = Status::NAMESPACE_WRITE_PROTECTED.with_dnr();
        assert_eq!(parse_of(command, &protected), Err(refused));
        assert_eq!(parse_of(hint, &protected), Ok(Work::Nothing));
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let directive = Transfer { directive_type: 1, ..Transfer::new(0, 1) };
        let refused = parse(&Command::Write(directive).to_sqe(1), &BOUNDS, false);
        assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
        let mut fused = Command::Compare(Transfer::new(0, 1)).to_sqe(1);
        fused.flags |= 1;
        let refused = parse(&fused, &BOUNDS, false);
        assert_eq!(refused, Err(Status::INVALID_FIELD.with_dnr()));
        for opcode in [Opcode::WriteUncorrectable, Opcode::ReservationReport, Opcode::Copy] {
            let refused = parse(&Sqe::new(opcode.code(), 1), &BOUNDS, false);
            assert_eq!(refused, Err(Status::INVALID_OPCODE.with_dnr()));
        }
    }
}
