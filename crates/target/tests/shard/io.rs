//! I/O commands.

use block::{ErrorKind, Kind};
use nvme::io::{Command, DatasetManagement, DsmRange, Transfer, WriteZeroes};
use nvme::{NSID_ALL, Sqe, Status};
use zerocopy::IntoBytes;

use crate::device::TestDevice;
use crate::harness::{Wire, World, configuration};

fn write(lba: u64, blocks: u32) -> Sqe {
    Command::Write(Transfer::new(lba, blocks)).to_sqe(1)
}

fn read(lba: u64, blocks: u32) -> Sqe {
    Command::Read(Transfer::new(lba, blocks)).to_sqe(1)
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
}

fn disk(shards: u16) -> (World, std::sync::Arc<TestDevice>, Wire) {
    let (mut world, device) = World::one_disk(shards, 4096);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(usize::from(shards) - 1, cntlid, 1);
    (world, device, io)
}

#[test]
fn what_was_written_is_read() {
    for shards in 1..=2 {
        let (mut world, _, io) = disk(shards);
        for (lba, blocks) in [(0, 1), (7, 8), (64, 16), (128, 2048)] {
            let data = pattern(u8::try_from(lba).unwrap(), blocks as usize * 512);
            world.execute(io, write(lba, blocks), &data, 0).ok();
            let back = world.execute(io, read(lba, blocks), &[], blocks * 512).ok();
            assert_eq!(back.data, data);
        }
    }
}

#[test]
fn fua_and_flush_reach_the_device() {
    let (mut world, device, io) = disk(1);
    let mut transfer = Transfer::new(3, 1);
    transfer.fua = true;
    world.execute(io, Command::Write(transfer).to_sqe(1), &[1; 512], 0).ok();
    world.execute(io, Command::Flush.to_sqe(1), &[], 0).ok();
    assert_eq!(device.done(), [(Kind::Write, 3, 1, true), (Kind::Flush, 0, 0, false)]);
    // A forced read sees the medium: what is in the cache goes there first.
    world.execute(io, Command::Read(transfer).to_sqe(1), &[], 512).ok();
    assert_eq!(device.done(), [(Kind::Flush, 0, 0, false), (Kind::Read, 3, 1, false)]);
}

#[test]
fn flush_of_all_namespaces_flushes_each() {
    let devices: Vec<_> =
        (1..=40).map(|nsid| TestDevice::new(&format!("disk{nsid}"), 64)).collect();
    let exported: Vec<_> = (1..).zip(&devices).collect();
    let mut world = World::new(1);
    world.configure(&configuration(&exported), &devices.iter().collect::<Vec<_>>());
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    world.execute(io, Command::Flush.to_sqe(NSID_ALL), &[], 0).ok();
    for device in &devices {
        assert_eq!(device.done(), [(Kind::Flush, 0, 0, false)]);
    }
    devices[17].fail_next(ErrorKind::MediumWrite);
    world.execute(io, Command::Flush.to_sqe(NSID_ALL), &[], 0).failed(Status::WRITE_FAULT);
}

#[test]
fn deallocation_takes_many_ranges_and_checks_all_first() {
    let (mut world, device, io) = disk(1);
    world.execute(io, write(0, 64), &[0xee; 64 * 512], 0).ok();
    device.done();
    let ranges: Vec<DsmRange> = (0..64)
        .filter(|lba| lba % 2 == 0)
        .map(|lba| DsmRange { nlb: 1.into(), slba: lba.into(), ..DsmRange::default() })
        .collect();
    let mut list = ranges.as_bytes().to_vec();
    let command = Command::DatasetManagement(DatasetManagement::deallocate(32)).to_sqe(1);
    // Linux always describes 4 KiB.
    list.resize(4096, 0xff);
    world.execute(io, command, &list, 0).ok();
    assert_eq!(device.done().len(), 32);
    let back = world.execute(io, read(0, 64), &[], 64 * 512).ok().data;
    for (lba, block) in back.chunks(512).enumerate() {
        assert_eq!(block[0], if lba % 2 == 0 { 0 } else { 0xee }, "block {lba}");
    }
    device.done();
    list[31 * 16 + 8] = 0xff;
    list[31 * 16 + 9] = 0xff;
    world.execute(io, command, &list, 0).failed(Status::LBA_OUT_OF_RANGE.with_dnr());
    assert_eq!(device.done(), []);
}

#[test]
fn zeroes_compare_and_verify() {
    let (mut world, device, io) = disk(1);
    let data = pattern(9, 4096);
    world.execute(io, write(8, 8), &data, 0).ok();
    let compare = Command::Compare(Transfer::new(8, 8)).to_sqe(1);
    world.execute(io, compare, &data, 0).ok();
    world.execute(io, compare, &[0; 4096], 0).failed(Status::COMPARE_FAILURE.with_dnr());
    world.execute(io, Command::Verify(Transfer::new(8, 8)).to_sqe(1), &[], 0).ok();
    let mut zeroes = WriteZeroes::new(8, 8);
    zeroes.deallocate = true;
    world.execute(io, Command::WriteZeroes(zeroes).to_sqe(1), &[], 0).ok();
    world.execute(io, compare, &[0; 4096], 0).ok();
    assert!(device.done().contains(&(Kind::WriteZeroes { deallocate: true }, 8, 8, false)));
}

#[test]
fn wrong_commands_fail_alone() {
    let (mut world, _, io) = disk(1);
    let out_of_range = Status::LBA_OUT_OF_RANGE.with_dnr();
    for (sqe, room, status) in [
        (read(4096, 1), 512, out_of_range),
        (read(u64::MAX, 2), 1024, out_of_range),
        (read(0, 8), 512, Status::SGL_DATA_LENGTH_INVALID.with_dnr()),
        (read(0, 4096), 2 << 20, Status::INVALID_FIELD.with_dnr()),
        (Command::Read(Transfer::new(0, 1)).to_sqe(2), 512, Status::INVALID_NAMESPACE.with_dnr()),
        (Command::Read(Transfer::new(0, 1)).to_sqe(0), 512, Status::INVALID_NAMESPACE.with_dnr()),
        (
            Command::Read(Transfer::new(0, 1)).to_sqe(NSID_ALL),
            512,
            Status::INVALID_NAMESPACE.with_dnr(),
        ),
        (Sqe::new(0x5a, 1), 0, Status::INVALID_OPCODE.with_dnr()),
    ] {
        world.execute(io, sqe, &[], room).failed(status);
    }
    world.execute(io, read(0, 1), &[], 512).ok();
}

#[test]
fn device_failures_have_their_status() {
    let (mut world, device, io) = disk(1);
    for (kind, status) in [
        (ErrorKind::MediumRead, Status::UNRECOVERED_READ_ERROR),
        (ErrorKind::NoSpace, Status::CAPACITY_EXCEEDED.with_dnr()),
        (ErrorKind::Removed, Status::NAMESPACE_NOT_READY),
    ] {
        device.fail_next(kind);
        let finished = world.execute(io, read(0, 1), &[], 512);
        finished.failed(status);
        assert!(finished.data.is_empty());
    }
}

#[test]
fn a_command_identifier_is_outstanding_once() {
    let (mut world, device, io) = disk(1);
    device.stick(true);
    world.submit_as(io, 77, read(0, 1), &[], 512).unwrap();
    world.submit_as(io, 77, read(1, 1), &[], 512).unwrap();
    world.wait(io).failed(Status::COMMAND_ID_CONFLICT.with_dnr());
    device.stick(false);
    world.wait(io).ok();
    world.submit_as(io, 77, read(0, 1), &[], 512).unwrap();
    world.wait(io).ok();
}

#[test]
fn a_digest_error_fails_its_command_only() {
    let (mut world, _, io) = disk(1);
    world.wires.get_mut(&io).unwrap().lazy = true;
    world.submit(io, write(0, 8), &[1; 4096], 0);
    world.run();
    let (request, _) = world.wires.get_mut(&io).unwrap().receives.pop_front().unwrap();
    let error = Status::TRANSIENT_TRANSPORT_ERROR;
    world.shards[0].data_received(request, Err(error));
    world.wait(io).failed(error);
    world.execute(io, read(0, 1), &[], 512).ok();
}
