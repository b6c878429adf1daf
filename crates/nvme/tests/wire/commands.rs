//! SQE, CQE, status, SGL, admin and I/O commands, events, features.

use crate::{bytes, golden, numbered};
use nvme::admin::{self, Abort, GetFeatures, GetLogPage, Identify, Select, SetFeatures};
use nvme::command::{DataPointer, Direction, FLAGS_SGL, Fuse};
use nvme::event::Event;
use nvme::feature::{self, Feature};
use nvme::identify::Cns;
use nvme::io::{self, BlockRange, DatasetManagement, DsmRange, Protection, Transfer, WriteZeroes};
use nvme::log::LogPage;
use nvme::status::StatusType;
use nvme::{Cqe, NSID_ALL, Sgl, SglDescriptor, Sqe, Status};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

fn any_sqe() -> impl Strategy<Value = Sqe> {
    prop::collection::vec(any::<u8>(), 64).prop_map(|bytes| Sqe::read_from_bytes(&bytes).unwrap())
}

#[test]
fn sqe_fields() {
    let sqe: Sqe = numbered();
    assert_eq!((sqe.opcode, sqe.flags), (0, 1));
    assert_eq!(sqe.cid.get(), 0x0302);
    assert_eq!(sqe.nsid.get(), 0x0706_0504);
    assert_eq!(sqe.cdw2.get(), 0x0b0a_0908);
    assert_eq!(sqe.cdw3.get(), 0x0f0e_0d0c);
    assert_eq!(sqe.mptr.get(), 0x1716_1514_1312_1110);
    assert_eq!(sqe.dptr.address.get(), 0x1f1e_1d1c_1b1a_1918);
    assert_eq!(sqe.dptr.identifier, 0x27);
    assert_eq!(sqe.cdw10.get(), 0x2b2a_2928);
    assert_eq!(sqe.cdw11.get(), 0x2f2e_2d2c);
    assert_eq!(sqe.cdw12.get(), 0x3332_3130);
    assert_eq!(sqe.cdw13.get(), 0x3736_3534);
    assert_eq!(sqe.cdw14.get(), 0x3b3a_3938);
    assert_eq!(sqe.cdw15.get(), 0x3f3e_3d3c);
    assert_eq!(sqe.fctype(), 4);
}

#[test]
fn flags_and_direction() {
    let sqe = |opcode, flags| Sqe { opcode, flags, ..Sqe::default() };
    assert_eq!(sqe(2, FLAGS_SGL).data_pointer(), DataPointer::Sgl);
    assert_eq!(sqe(2, 0x80).data_pointer(), DataPointer::SglMetadata);
    assert_eq!(sqe(2, 0x00).data_pointer(), DataPointer::Prp);
    assert_eq!(sqe(2, 0xc0).data_pointer(), DataPointer::Reserved);
    assert_eq!(sqe(2, 0x41).fuse(), Fuse::First);
    assert_eq!(sqe(2, 0x42).fuse(), Fuse::Second);
    assert_eq!(sqe(2, 0x40).fuse(), Fuse::Normal);
    assert_eq!(sqe(0, 0).direction(), Direction::None);
    assert_eq!(sqe(1, 0).direction(), Direction::HostToController);
    assert_eq!(sqe(2, 0).direction(), Direction::ControllerToHost);
    // Property Get (04h) has no data although the opcode 7Fh ends in 11b.
    assert_eq!(Sqe::new(0x7f, 0x04).direction(), Direction::None);
    assert_eq!(Sqe::new(0x7f, 0x01).direction(), Direction::HostToController);
}

#[test]
fn cqe_bytes() {
    let cqe = Cqe::new(0x1234, 7, Status::INVALID_FIELD.with_dnr())
        .with_result(0xaaaa_bbbb_0000_0000)
        .with_dw0(0x0403_0201);
    golden(
        &cqe,
        &[0x01, 0x02, 0x03, 0x04, 0xbb, 0xbb, 0xaa, 0xaa, 7, 0, 0, 0, 0x34, 0x12, 0x04, 0x80],
    );
    assert_eq!(cqe.dw0(), 0x0403_0201);
    assert_eq!(cqe.dw1(), 0xaaaa_bbbb);
    assert_eq!(cqe.status(), Status::INVALID_FIELD.with_dnr());
    assert!(!cqe.status().is_success());
    assert!(Cqe::new(0, 0, Status::SUCCESS).status().is_success());
}

#[test]
fn status_codes() {
    // SC | SCT << 8 | CRD << 11 | M << 13 | DNR << 14, and that shifted by one on the wire.
    assert_eq!(Status::LBA_OUT_OF_RANGE.bits(), 0x0080);
    assert_eq!(Status::CONNECT_INVALID_PARAMETERS.bits(), 0x0182);
    assert_eq!(Status::CONNECT_INVALID_PARAMETERS.with_dnr().bits(), 0x4182);
    assert_eq!(Status::COMPARE_FAILURE.bits(), 0x0285);
    assert_eq!(Status::ANA_TRANSITION.bits(), 0x0303);
    assert_eq!(Status::TRANSIENT_TRANSPORT_ERROR.bits(), 0x0022);
    assert_eq!(Status::ASYNC_EVENT_LIMIT_EXCEEDED.bits(), 0x0105);
    assert_eq!(Status::INVALID_LOG_PAGE.bits(), 0x0109);
    assert_eq!(Status::NAMESPACE_WRITE_PROTECTED.bits(), 0x0020);
    let all = Status::WRITE_FAULT.with_retry_delay(2).with_more().with_dnr();
    assert_eq!(all.bits(), 0x7280);
    assert_eq!(all.to_wire(), 0xe500);
    assert_eq!(Status::from_wire(0xe501), all);
    assert_eq!(all.status_type(), StatusType::Media);
    assert_eq!((all.code(), all.retry_delay()), (0x80, 2));
    assert!(all.dnr() && all.more() && all.same_code(Status::WRITE_FAULT));
    assert_eq!(
        Status::INVALID_OPCODE.with_dnr().to_string(),
        "Invalid Command Opcode (0h/01h, do not retry)"
    );
    assert_eq!(Status::new(7, 0xee).to_string(), "unknown status (7h/eeh)");
    assert_eq!(Status::SUCCESS.into_result(), Ok(()));
    assert_eq!(Status::INTERNAL_ERROR.into_result(), Err(Status::INTERNAL_ERROR));
}

#[test]
fn every_known_status_has_a_name_and_survives_the_wire() {
    for &status in Status::KNOWN {
        assert!(status.name().is_some(), "{status:?}");
        assert_eq!(Status::from_wire(status.to_wire()), status);
        assert_eq!(status.to_wire() & 1, 0);
    }
}

#[test]
fn sgl_bytes() {
    let cases: [(Sgl, [u8; 16]); 4] = [
        (
            Sgl::InCapsule { offset: 0, length: 0x2000 },
            [0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x20, 0, 0, 0, 0, 0, 0x01],
        ),
        (
            Sgl::TransportData { length: 0x0010_0000 },
            [0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x00, 0x10, 0x00, 0, 0, 0, 0x5a],
        ),
        (
            Sgl::Keyed {
                address: 0x1122_3344_5566_7788,
                length: 0x00ab_cdef,
                key: 0xdead_beef,
                invalidate: false,
            },
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xef, 0xcd, 0xab, 0xef, 0xbe, 0xad,
                0xde, 0x40,
            ],
        ),
        (
            Sgl::Keyed { address: 1, length: 2, key: 3, invalidate: true },
            [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0x4f],
        ),
    ];
    for (sgl, expected) in cases {
        let descriptor = SglDescriptor::from(sgl);
        golden(&descriptor, &expected);
        assert_eq!(descriptor.sgl(), sgl);
    }
    assert_eq!(SglDescriptor::default().sgl(), Sgl::Other(0));
    assert_eq!(Sgl::Other(0x30).length(), 0);
    let cut = Sgl::Keyed { address: 0, length: u32::MAX, key: 9, invalidate: false };
    assert_eq!(SglDescriptor::from(cut).sgl().length(), 0x00ff_ffff);
}

/// Header of an SQE: opcode, PSDT for SGLs, CID 0, NSID.
fn sqe_bytes(opcode: u8, nsid: u32, pieces: &[(usize, &[u8])]) -> Vec<u8> {
    let nsid = nsid.to_le_bytes();
    let mut all: Vec<(usize, &[u8])> = vec![(0, &[]), (4, &nsid)];
    let head = [opcode, 0x40];
    all[0].1 = &head;
    all.extend_from_slice(pieces);
    bytes(64, &all)
}

#[track_caller]
fn io_golden(command: io::Command, nsid: u32, expected: &[u8]) {
    let sqe = command.to_sqe(nsid);
    golden(&sqe, expected);
    assert_eq!(io::Command::parse(&sqe), Ok(command));
}

#[test]
fn io_command_bytes() {
    io_golden(io::Command::Flush, NSID_ALL, &sqe_bytes(0x00, NSID_ALL, &[]));
    let mut write = Transfer::new(0x0123_4567_89ab_cdef, 0x1_0000);
    write.fua = true;
    write.limited_retry = true;
    write.directive_type = 1;
    write.directive = 0x7788;
    write.dataset = 0x42;
    write.protection = Protection {
        action: true,
        check: 0b101,
        storage_tag_check: true,
        reference_tag: 0xcafe_f00d,
        application_tag: 0x1234,
        application_tag_mask: 0x5678,
    };
    io_golden(
        io::Command::Write(write),
        1,
        &sqe_bytes(
            0x01,
            1,
            &[
                (40, &[0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]),
                // NLB FFFFh, DTYPE 1 in 23:20, STC 24, PRINFO 1101b in 29:26, FUA 30, LR 31.
                (48, &[0xff, 0xff, 0x10, 0b1111_0101]),
                (52, &[0x42, 0, 0x88, 0x77]),
                (56, &[0x0d, 0xf0, 0xfe, 0xca]),
                (60, &[0x34, 0x12, 0x78, 0x56]),
            ],
        ),
    );
    io_golden(
        io::Command::Read(Transfer::new(8, 1)),
        0x0102_0304,
        &sqe_bytes(0x02, 0x0102_0304, &[(40, &[8])]),
    );
    io_golden(io::Command::Compare(Transfer::new(0, 2)), 1, &sqe_bytes(0x05, 1, &[(48, &[1])]));
    io_golden(io::Command::Verify(Transfer::new(0, 257)), 1, &sqe_bytes(0x0c, 1, &[(48, &[0, 1])]));
    let mut zeroes = WriteZeroes::new(1 << 32, 3);
    zeroes.deallocate = true;
    io_golden(
        io::Command::WriteZeroes(zeroes),
        1,
        &sqe_bytes(0x08, 1, &[(44, &[1]), (48, &[2, 0, 0, 0x02])]),
    );
    io_golden(
        io::Command::DatasetManagement(DatasetManagement::deallocate(256)),
        1,
        &sqe_bytes(0x09, 1, &[(40, &[0xff]), (44, &[0x04])]),
    );
    golden(&DsmRange::new(0x1_0000_0002, 3), &[0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(DsmRange::new(5, 6).range(), BlockRange { slba: 5, blocks: 6 });
    assert_eq!(DatasetManagement::deallocate(256).data_length(), 4096);
}

#[test]
fn unknown_io_opcodes_are_refused() {
    for opcode in 0..=u8::MAX {
        let parsed = io::Command::parse(&Sqe::new(opcode, 1));
        let supported = [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c].contains(&opcode);
        match parsed {
            Ok(command) => {
                assert!(supported);
                assert_eq!(command.opcode().code(), opcode);
            }
            Err(status) => {
                assert!(!supported);
                assert_eq!(status, Status::INVALID_OPCODE);
            }
        }
    }
}

#[track_caller]
fn admin_golden(command: admin::Command, nsid: u32, expected: &[u8]) {
    let sqe = command.to_sqe(nsid);
    golden(&sqe, expected);
    assert_eq!(admin::Command::parse(&sqe), Ok(command));
}

#[test]
fn admin_command_bytes() {
    admin_golden(
        admin::Command::Identify(Identify::new(Cns::Controller)),
        0,
        &sqe_bytes(0x06, 0, &[(40, &[0x01])]),
    );
    admin_golden(
        admin::Command::Identify(Identify {
            cns: 0x14,
            cntid: 0x0506,
            cnssid: 0x0708,
            csi: 2,
            uuid_index: 0x7f,
        }),
        9,
        &sqe_bytes(0x06, 9, &[(40, &[0x14, 0, 6, 5]), (44, &[8, 7, 0, 2]), (56, &[0x7f])]),
    );
    let page = GetLogPage {
        lid: 0x0c,
        lsp: 1,
        rae: true,
        numd: 0x0012_3456,
        lsi: 0xabcd,
        offset: 0x0102_0304_0506_0708,
        uuid_index: 3,
        offset_is_index: true,
        csi: 1,
    };
    admin_golden(
        admin::Command::GetLogPage(page),
        NSID_ALL,
        &sqe_bytes(
            0x02,
            NSID_ALL,
            &[
                (40, &[0x0c, 0x81, 0x56, 0x34]),
                (44, &[0x12, 0x00, 0xcd, 0xab]),
                (48, &[8, 7, 6, 5, 4, 3, 2, 1]),
                (56, &[3, 0, 0x80, 1]),
            ],
        ),
    );
    assert_eq!(page.length(), 0x48_d15c);
    assert_eq!(page.byte_offset(), Err(Status::INVALID_FIELD));
    admin_golden(
        admin::Command::GetFeatures(GetFeatures {
            fid: 0x0f,
            select: Select::SupportedCapabilities,
            cdw11: 0x0403_0201,
            uuid_index: 0,
        }),
        0,
        &sqe_bytes(0x0a, 0, &[(40, &[0x0f, 3]), (44, &[1, 2, 3, 4])]),
    );
    admin_golden(
        admin::Command::SetFeatures(SetFeatures {
            fid: 0x07,
            save: true,
            cdw11: 0x0003_0002,
            cdw12: 1,
            cdw13: 2,
            cdw15: 3,
            uuid_index: 4,
        }),
        0,
        &sqe_bytes(
            0x09,
            0,
            &[
                (40, &[0x07, 0, 0, 0x80]),
                (44, &[2, 0, 3, 0]),
                (48, &[1]),
                (52, &[2]),
                (56, &[4]),
                (60, &[3]),
            ],
        ),
    );
    admin_golden(
        admin::Command::Abort(Abort { sqid: 0x0201, cid: 0x0403 }),
        0,
        &sqe_bytes(0x08, 0, &[(40, &[1, 2, 3, 4])]),
    );
    admin_golden(admin::Command::AsynchronousEventRequest, 0, &sqe_bytes(0x0c, 0, &[]));
    admin_golden(admin::Command::KeepAlive, 0, &sqe_bytes(0x18, 0, &[]));
}

#[test]
fn log_page_lengths() {
    let length = |bytes| GetLogPage::new(LogPage::Discovery, 0, bytes).length();
    assert_eq!(length(4), 4);
    assert_eq!(length(1024), 1024);
    assert_eq!(length(1), 4);
    assert_eq!(length(0), 4);
    assert_eq!(length(1 << 34), 1 << 34);
    assert_eq!(length(u64::MAX), 1 << 34);
    assert_eq!(GetLogPage::new(LogPage::Health, 8, 4).byte_offset(), Ok(8));
    assert!(GetLogPage::new(LogPage::Health, 6, 4).byte_offset().is_err());
}

#[test]
fn reserved_select_is_refused() {
    for select in 4..8 {
        let mut sqe = Sqe::new(0x0a, 0);
        sqe.cdw10.set(0x0f | select << 8);
        assert_eq!(admin::Command::parse(&sqe), Err(Status::INVALID_FIELD));
    }
}

#[test]
fn abort_result() {
    assert_eq!((Abort::dw0(true), Abort::dw0(false)), (0, 1));
    let cqe = Cqe::new(1, 1, Status::SUCCESS);
    assert!(Abort::aborted(&cqe));
    assert!(!Abort::aborted(&cqe.with_dw0(1)));
}

#[test]
fn event_bytes() {
    assert_eq!(Event::NAMESPACE_CHANGED.dw0(), 0x0004_0002);
    assert_eq!(Event::DISCOVERY_CHANGE.dw0(), 0x0070_f002);
    assert_eq!(Event::ANA_CHANGE.dw0(), 0x000c_0302);
    assert_eq!(Event::PERSISTENT_INTERNAL_ERROR.dw0(), 0x0001_0300);
    assert_eq!(Event::TEMPERATURE.dw0(), 0x0002_0101);
    assert_eq!(Event::from_dw0(0x0070_f002), Ok(Event::DISCOVERY_CHANGE));
    assert_eq!(Event::from_dw0(0x0000_0005), Err(5));
}

#[test]
fn feature_bytes() {
    assert_eq!(feature::NumberOfQueues::from(0x0007_003f).submission, 63);
    assert_eq!(feature::NumberOfQueues::from(0x0007_003f).completion, 7);
    assert_eq!(Feature::HostIdentifier.code(), 0x81);
    assert_eq!(Feature::try_from(0x0f), Ok(Feature::KeepAlive));
    let temperature = feature::TemperatureThreshold { kelvin: 343, sensor: 0xf, kind: 1 };
    assert_eq!(u32::from(temperature), 0x001f_0157);
    assert_eq!(u32::from(feature::ErrorRecovery { time_limit: 0x1234, dulbe: true }), 0x0001_1234);
    assert_eq!(u32::from(feature::PowerManagement { power_state: 3, workload_hint: 2 }), 0x43);
    assert_eq!(
        u32::from(feature::Arbitration { burst: 7, low: 1, medium: 2, high: 3 }),
        0x0302_0107
    );
    assert_eq!(u32::from(feature::VolatileWriteCache { enabled: true }), 1);
    assert_eq!(u32::from(feature::WriteAtomicity { disable_normal: true }), 1);
    assert_eq!(feature::AsynchronousEvents::DISCOVERY.bits(), 0x8000_0000);
    assert_eq!(feature::AsynchronousEvents::NAMESPACE.bits(), 0x0000_0100);
    assert_eq!(feature::AsynchronousEvents::ANA.bits(), 0x0000_0800);
    let timestamp = feature::Timestamp::new(0x0605_0403_0201, feature::Timestamp::ORIGIN_HOST);
    golden(&timestamp, &[1, 2, 3, 4, 5, 6, 2, 0]);
    assert_eq!(timestamp.milliseconds(), 0x0605_0403_0201);
    let behavior: feature::HostBehavior = numbered();
    assert_eq!((behavior.acre, behavior.etdas, behavior.lbafee), (0, 1, 2));
}

#[test]
fn block_ranges() {
    let range = |slba, blocks| BlockRange { slba, blocks };
    assert_eq!(range(0, 8).check(8), Ok(()));
    assert_eq!(range(1, 8).check(8), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(range(u64::MAX, 1).check(u64::MAX), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(range(u64::MAX, 1).end(), None);
    assert_eq!(range(u64::MAX - 1, 1).end(), Some(u64::MAX));
    assert_eq!(range(0, u32::MAX).bytes(4096), 0xffff_ffff * 4096);
}

proptest! {
    #[test]
    fn no_sqe_panics(sqe in any_sqe()) {
        let _ = admin::Command::parse(&sqe);
        let _ = io::Command::parse(&sqe);
        let _ = nvme::fabrics::Command::parse(&sqe);
        let _ = (sqe.sgl(), sqe.direction(), sqe.fuse(), sqe.data_pointer());
        let _ = nvme::fabrics::Connect::parse(&sqe).to_sqe();
    }

    /// What a parser made of any bytes comes back from its own encoding: no field is lost or
    /// misplaced.
    #[test]
    fn io_commands_round_trip(
        mut sqe in any_sqe(),
        opcode in prop::sample::select(vec![0u8, 1, 2, 5, 8, 9, 12]),
    ) {
        sqe.opcode = opcode;
        let command = io::Command::parse(&sqe).unwrap();
        let again = command.to_sqe(sqe.nsid.get());
        prop_assert_eq!(io::Command::parse(&again), Ok(command));
        prop_assert_eq!((again.opcode, again.nsid), (sqe.opcode, sqe.nsid));
    }

    #[test]
    fn admin_commands_round_trip(
        mut sqe in any_sqe(),
        opcode in prop::sample::select(vec![2u8, 6, 8, 9, 10, 12, 24]),
    ) {
        sqe.opcode = opcode;
        // Any command that parses; a reserved SEL does not.
        if let Ok(command) = admin::Command::parse(&sqe) {
            let again = command.to_sqe(sqe.nsid.get());
            prop_assert_eq!(admin::Command::parse(&again), Ok(command));
        } else {
            prop_assert_eq!(opcode, 10);
        }
    }

    #[test]
    fn descriptors_round_trip(raw in prop::array::uniform16(any::<u8>())) {
        let sgl = SglDescriptor::read_from_bytes(&raw).unwrap().sgl();
        prop_assert_eq!(SglDescriptor::from(sgl).sgl(), sgl);
    }

    #[test]
    fn status_round_trips(bits in any::<u16>()) {
        let status = Status::from_wire(bits);
        prop_assert_eq!(status.to_wire(), bits & 0xfffe);
        prop_assert_eq!(Status::from_bits(status.bits()), status);
        let _ = status.to_string();
    }

    #[test]
    fn cqe_round_trips(cid: u16, sqhd: u16, result: u64, bits in 0u16..0x8000) {
        let status = Status::from_bits(bits);
        let cqe = Cqe::new(cid, sqhd, status).with_result(result);
        let again = Cqe::read_from_bytes(cqe.as_bytes()).unwrap();
        prop_assert_eq!(again.status(), status);
        prop_assert_eq!((again.cid.get(), again.sqhd.get()), (cid, sqhd));
        prop_assert_eq!(again.result.get(), result);
        prop_assert_eq!(u64::from(again.dw0()) | u64::from(again.dw1()) << 32, result);
    }

    #[test]
    fn ranges_agree_with_wide_arithmetic(slba: u64, blocks: u32, capacity: u64) {
        let inside = u128::from(slba) + u128::from(blocks) <= u128::from(capacity);
        prop_assert_eq!(BlockRange { slba, blocks }.check(capacity).is_ok(), inside);
    }

    #[test]
    fn features_round_trip(value: u32) {
        prop_assert_eq!(u32::from(feature::NumberOfQueues::from(value)), value);
        prop_assert_eq!(u32::from(feature::KeepAlive::from(value)), value);
        prop_assert_eq!(u32::from(feature::Arbitration::from(value)), value & 0xffff_ff07);
        prop_assert_eq!(u32::from(feature::TemperatureThreshold::from(value)), value & 0x003f_ffff);
        prop_assert_eq!(u32::from(feature::ErrorRecovery::from(value)), value & 0x0001_ffff);
        prop_assert_eq!(u32::from(feature::PowerManagement::from(value)), value & 0xff);
        prop_assert_eq!(u32::from(feature::CommandSetProfile::from(value)), value & 0x1ff);
    }

    #[test]
    fn events_round_trip(value: u32) {
        if let Ok(event) = Event::from_dw0(value) {
            prop_assert_eq!(Event::from_dw0(event.dw0()), Ok(event));
        }
    }
}
