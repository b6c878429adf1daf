//! What only controllers on PCIe have: commands, PRPs, SGLs in memory, registers, the Copy command.

use crate::{bytes, golden};
use nvme::copy::{self, Copy};
use nvme::feature::{InterruptCoalescing, InterruptVector};
use nvme::io::{BlockRange, Protection};
use nvme::pcie::{
    Command, CommitAction, CreateIoCompletionQueue, CreateIoSubmissionQueue, FirmwareCommit,
    FirmwareImageDownload, Priority,
};
use nvme::register::{AdminQueueAttributes, offset};
use nvme::{LocalSgl, Prps, SglDescriptor, Sqe, Status};
use proptest::prelude::*;
use zerocopy::FromBytes;

const PRPS: Prps = Prps { first: 0x1122_3344_5566_7788, second: 0x99aa_bbcc_ddee_ff00 };
const PRPS_BYTES: [u8; 16] = [
    0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99,
];

#[track_caller]
fn pcie_golden(command: Command, opcode: u8, pieces: &[(usize, &[u8])]) {
    let sqe = command.to_sqe(PRPS);
    let opcode = [opcode];
    let mut all: Vec<(usize, &[u8])> = vec![(0, &opcode), (24, &PRPS_BYTES)];
    all.extend_from_slice(pieces);
    golden(&sqe, &bytes(64, &all));
    assert_eq!(sqe.prps(), PRPS);
    assert_eq!(Command::parse(&sqe), Ok(command));
    // Fabrics controllers know none of them.
    assert_eq!(nvme::admin::Command::parse(&sqe), Err(Status::INVALID_OPCODE));
}

#[test]
fn command_bytes() {
    let queue = CreateIoSubmissionQueue {
        qid: 0x0102,
        entries: 1024,
        contiguous: true,
        priority: Priority::Medium,
        cqid: 0x0304,
        nvmsetid: 5,
    };
    pcie_golden(
        Command::CreateIoSubmissionQueue(queue),
        0x01,
        &[(40, &[2, 1, 0xff, 3]), (44, &[0b101, 0, 4, 3]), (48, &[5])],
    );
    let queue =
        CreateIoCompletionQueue { qid: 7, entries: 65_536, contiguous: true, vector: Some(0x0809) };
    pcie_golden(
        Command::CreateIoCompletionQueue(queue),
        0x05,
        &[(40, &[7, 0, 0xff, 0xff]), (44, &[0b11, 0, 9, 8])],
    );
    let queue = CreateIoCompletionQueue { entries: 2, contiguous: false, vector: None, ..queue };
    pcie_golden(Command::CreateIoCompletionQueue(queue), 0x05, &[(40, &[7, 0, 1, 0])]);
    pcie_golden(Command::DeleteIoSubmissionQueue(0x0201), 0x00, &[(40, &[1, 2])]);
    pcie_golden(Command::DeleteIoCompletionQueue(0x0201), 0x04, &[(40, &[1, 2])]);
    pcie_golden(Command::DoorbellBufferConfig, 0x7c, &[]);
    let commit =
        FirmwareCommit { slot: 2, action: CommitAction::ActivateNow, boot_partition: true };
    pcie_golden(Command::FirmwareCommit(commit), 0x10, &[(40, &[0b011_010, 0, 0, 0x80])]);
    let download = FirmwareImageDownload::new(0x1_0000, 4096).unwrap();
    assert_eq!((download.byte_offset(), download.length()), (0x1_0000, 4096));
    pcie_golden(
        Command::FirmwareImageDownload(download),
        0x11,
        &[(40, &[0xff, 3]), (44, &[0, 0x40])],
    );
    for (offset, length) in [(2, 4), (0, 6), (0, 0), (1 << 40, 4), (0, 1 << 40)] {
        assert_eq!(FirmwareImageDownload::new(offset, length), None);
    }
}

#[test]
fn what_is_not_of_pcie_is_refused() {
    for opcode in 0..=u8::MAX {
        let parsed = Command::parse(&Sqe::new(opcode, 0));
        let known = [0x00, 0x01, 0x04, 0x05, 0x10, 0x11, 0x7c].contains(&opcode);
        assert_eq!(parsed.is_ok(), known);
        assert!(known || parsed == Err(Status::INVALID_OPCODE));
    }
    let mut sqe = Sqe::new(0x10, 0);
    sqe.cdw10.set(4 << 3);
    assert_eq!(Command::parse(&sqe), Err(Status::INVALID_FIELD));
}

#[test]
fn a_data_pointer_is_prps_or_an_sgl() {
    let sqe = Sqe::new(2, 1).with_prps(PRPS);
    assert_eq!((sqe.flags, sqe.prps()), (0, PRPS));
    let data = LocalSgl::Data { address: 1, length: 2 };
    let sqe = sqe.with_local_sgl(data);
    assert_eq!((sqe.flags, sqe.dptr.local()), (0x40, data));
    let piece = |identifier| {
        let mut bytes = vec![8, 7, 6, 5, 4, 3, 2, 1, 0x0c, 0x0b, 0x0a, 0x09, 0, 0, 0];
        bytes.push(identifier);
        bytes
    };
    let (address, length) = (0x0102_0304_0506_0708, 0x090a_0b0c);
    for (sgl, identifier) in [
        (LocalSgl::Data { address, length }, 0x00),
        (LocalSgl::Segment { address, length }, 0x20),
        (LocalSgl::LastSegment { address, length }, 0x30),
    ] {
        golden(&SglDescriptor::from(sgl), &piece(identifier));
    }
    let bucket = SglDescriptor::from(LocalSgl::BitBucket { length: 3 });
    golden(&bucket, &[0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0x10]);
    for keyed in [0x01, 0x40, 0x4f, 0x5a, 0x31] {
        let descriptor = SglDescriptor::read_from_bytes(&piece(keyed)).unwrap();
        assert_eq!(descriptor.local(), LocalSgl::Other(keyed));
    }
}

#[test]
fn register_bytes() {
    let aqa = AdminQueueAttributes { asqs: 0x123, acqs: 0xfff };
    assert_eq!(aqa.bits(), 0x0fff_0123);
    assert_eq!(AdminQueueAttributes::from_bits(0xffff_f123), aqa);
    assert_eq!(offset::tail_doorbell(0, 0), 0x1000);
    assert_eq!(offset::head_doorbell(0, 0), 0x1004);
    assert_eq!(offset::tail_doorbell(3, 0), 0x1018);
    assert_eq!(offset::head_doorbell(3, 2), 0x1000 + 7 * 16);
}

#[test]
fn interrupt_features() {
    let coalescing = InterruptCoalescing { threshold: 7, time: 2 };
    assert_eq!(u32::from(coalescing), 0x0207);
    assert_eq!(InterruptCoalescing::from(0xffff_0207), coalescing);
    let vector = InterruptVector { vector: 0x0203, uncoalesced: true };
    assert_eq!(u32::from(vector), 0x0001_0203);
    assert_eq!(InterruptVector::from(0xfff1_0203), vector);
}

#[test]
fn copy_bytes() {
    let mut command = Copy::new(0x0102_0304_0506_0708, 3);
    command.format = 1;
    command.prinfor = 0b1010;
    command.stcr = true;
    command.fua = true;
    command.directive_type = 2;
    command.directive = 0x0a0b;
    command.protection = Protection {
        action: true,
        check: 0b001,
        storage_tag_check: false,
        reference_tag: 0x0c0d_0e0f,
        application_tag: 0x1011,
        application_tag_mask: 0x1213,
    };
    let sqe = command.to_sqe(9);
    golden(
        &sqe,
        &bytes(
            64,
            &[
                (0, &[0x19, 0x40]),
                (4, &[9]),
                (40, &[8, 7, 6, 5, 4, 3, 2, 1]),
                // NR, DESFMT in 11:8, PRINFOR in 15:12, DTYPE in 23:20, STCR 25, PRINFOW in 29:26, FUA 30.
                (48, &[2, 0xa1, 0x20, 0b0110_0110]),
                (54, &[0x0b, 0x0a, 0x0f, 0x0e, 0x0d, 0x0c, 0x11, 0x10, 0x13, 0x12]),
            ],
        ),
    );
    assert_eq!(Copy::parse(&sqe), Ok(command));
    assert_eq!(command.data_length(), Ok(120));
    assert_eq!(Copy::new(0, 256).data_length(), Ok(8192));
    command.format = 2;
    assert_eq!(command.data_length(), Err(Status::INVALID_FIELD));
    let range = copy::Range::new(0x0102, 0x1_0000);
    golden(&range, &bytes(32, &[(8, &[2, 1]), (16, &[0xff, 0xff])]));
    assert_eq!(range.range(), BlockRange { slba: 0x0102, blocks: 0x1_0000 });
    assert_eq!(Copy::parse(&Sqe::new(0x18, 1)), Err(Status::INVALID_OPCODE));
}

proptest! {
    #[test]
    fn commands_round_trip(
        raw in prop::collection::vec(any::<u8>(), 64),
        opcode in prop::sample::select(vec![0u8, 1, 4, 5, 0x10, 0x11, 0x7c]),
    ) {
        let mut sqe = Sqe::read_from_bytes(&raw).unwrap();
        sqe.opcode = opcode;
        if let Ok(command) = Command::parse(&sqe) {
            let again = command.to_sqe(sqe.prps());
            prop_assert_eq!(Command::parse(&again), Ok(command));
            prop_assert_eq!(again.prps(), sqe.prps());
        } else {
            prop_assert_eq!(opcode, 0x10);
        }
    }

    #[test]
    fn copies_round_trip(raw in prop::collection::vec(any::<u8>(), 64)) {
        let mut sqe = Sqe::read_from_bytes(&raw).unwrap();
        sqe.opcode = 0x19;
        let command = Copy::parse(&sqe).unwrap();
        prop_assert_eq!(Copy::parse(&command.to_sqe(1)), Ok(command));
    }

    #[test]
    fn descriptors_round_trip(raw in prop::array::uniform16(any::<u8>())) {
        let descriptor = SglDescriptor::read_from_bytes(&raw).unwrap();
        let local = descriptor.local();
        prop_assert_eq!(SglDescriptor::from(local).local(), local);
        prop_assert_eq!(SglDescriptor::from(Prps::from(descriptor)), descriptor);
    }
}
