//! Connect, Disconnect, Property Get and Set.

use crate::{bytes, golden, numbered};
use nvme::fabrics::{
    AuthenticationRequirement, CNTLID_DYNAMIC, Command, CommandType, Connect, ConnectAttributes,
    ConnectData, ConnectFailure, ConnectField, ConnectResult, Disconnect, PropertyGet, PropertySet,
    PropertySize,
};
use nvme::{Cqe, HostId, Nqn, Sqe, Status};
use proptest::prelude::*;
use zerocopy::FromBytes;

#[test]
fn connect_bytes() {
    let connect = Connect {
        recfmt: 0x0102,
        qid: 0x0304,
        sqsize: 127,
        cattr: ConnectAttributes {
            priority: 2,
            disable_sq_flow_control: true,
            individual_queue_deletion: true,
        },
        kato: 120_000,
    };
    let expected = bytes(
        64,
        &[
            (0, &[0x7f, 0x40]),
            (4, &[0x01]),
            (40, &[0x02, 0x01, 0x04, 0x03]),
            (44, &[127, 0, 0x0e]),
            (48, &[0xc0, 0xd4, 0x01, 0x00]),
        ],
    );
    golden(&connect.to_sqe(), &expected);
    assert_eq!(Command::parse(&connect.to_sqe()), Ok(Command::Connect(connect)));
}

#[test]
fn connect_data_bytes() {
    let host: Nqn =
        "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
    let subsystem: Nqn = "nqn.2026-11.io.tidegate:quickstart".parse().unwrap();
    let id: HostId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
    let data = ConnectData::new(id, CNTLID_DYNAMIC, &subsystem, &host);
    golden(
        &data,
        &bytes(
            1024,
            &[
                (0, &[0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]),
                (8, &[0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]),
                (16, &[0xff, 0xff]),
                (256, b"nqn.2026-11.io.tidegate:quickstart"),
                (512, b"nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff"),
            ],
        ),
    );
    assert_eq!(data.host_id(), id);
    assert_eq!(data.host(), Ok(host));
    assert_eq!(data.subsystem(), Ok(subsystem));
    let numbered: ConnectData = numbered();
    assert_eq!(numbered.cntlid.get(), 0x1110);
}

#[test]
fn connect_result_bits() {
    let authreq = AuthenticationRequirement { ascr: true, atr: false };
    assert_eq!(Connect::response(0x1234, authreq), 0x0004_1234);
    let authreq = AuthenticationRequirement { ascr: false, atr: true };
    let dw0 = Connect::response(0xffef, authreq);
    assert_eq!(dw0, 0x0002_ffef);
    let cqe = Cqe::new(0, 0, Status::SUCCESS).with_dw0(dw0);
    assert_eq!(ConnectResult::from(&cqe), ConnectResult { cntlid: 0xffef, authreq });
}

#[test]
fn connect_failures_name_the_field() {
    // IPO in bits 15:0, IATTR in bit 16: offsets into the SQE, then into the data.
    let expected = [
        (ConnectField::RecordFormat, 0x0000_0028),
        (ConnectField::QueueId, 0x0000_002a),
        (ConnectField::QueueSize, 0x0000_002c),
        (ConnectField::Attributes, 0x0000_002e),
        (ConnectField::KeepAlive, 0x0000_0030),
        (ConnectField::HostId, 0x0001_0000),
        (ConnectField::ControllerId, 0x0001_0010),
        (ConnectField::SubsystemNqn, 0x0001_0100),
        (ConnectField::HostNqn, 0x0001_0200),
    ];
    assert_eq!(expected.len(), ConnectField::ALL.len());
    for (field, dw0) in expected {
        let failure = ConnectFailure::Parameter(field);
        assert_eq!(failure.dw0(), dw0);
        assert_eq!(failure.status().bits(), 0x0182);
        assert_eq!(ConnectField::from_dw0(dw0), Some(field));
    }
    assert_eq!(ConnectField::from_dw0(0x0001_0001), None);
    assert_eq!(ConnectFailure::IncompatibleFormat.status().bits(), 0x0180);
    assert_eq!(ConnectFailure::ControllerBusy.status().bits(), 0x0181);
    assert_eq!(ConnectFailure::RestartDiscovery.status().bits(), 0x0183);
    assert_eq!(ConnectFailure::InvalidHost.status().bits(), 0x0184);
    assert_eq!(ConnectFailure::InvalidHost.dw0(), 0);
}

#[test]
fn property_bytes() {
    let get = PropertyGet { size: PropertySize::Eight, offset: 0 };
    golden(&get.to_sqe(), &bytes(64, &[(0, &[0x7f, 0x40]), (4, &[0x04]), (40, &[1])]));
    assert_eq!(Command::parse(&get.to_sqe()), Ok(Command::PropertyGet(get)));
    let set = PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 };
    golden(
        &set.to_sqe(),
        &bytes(64, &[(0, &[0x7f, 0x40]), (44, &[0x14]), (48, &[0x01, 0x00, 0x46, 0x00])]),
    );
    assert_eq!(Command::parse(&set.to_sqe()), Ok(Command::PropertySet(set)));
    let mut odd = get.to_sqe();
    odd.cdw10.set(2);
    assert_eq!(Command::parse(&odd), Err(Status::INVALID_FIELD));
    assert_eq!((PropertySize::Four.bytes(), PropertySize::Eight.bytes()), (4, 8));
    let eight = PropertySet { size: PropertySize::Eight, offset: 0, value: 0x0807_0605_0403_0201 };
    assert_eq!(Command::parse(&eight.to_sqe()), Ok(Command::PropertySet(eight)));
}

#[test]
fn the_upper_half_of_a_small_property_is_ignored() {
    let mut sqe = PropertySet { size: PropertySize::Four, offset: 0x14, value: 1 }.to_sqe();
    sqe.cdw13.set(0xffff_ffff);
    let Ok(Command::PropertySet(set)) = Command::parse(&sqe) else {
        panic!("not a Property Set");
    };
    assert_eq!(set.value, 1);
}

#[test]
fn disconnect_bytes() {
    let disconnect = Disconnect { recfmt: 0x0102 };
    golden(&disconnect.to_sqe(), &bytes(64, &[(0, &[0x7f, 0x40]), (4, &[0x08]), (40, &[2, 1])]));
    assert_eq!(Command::parse(&disconnect.to_sqe()), Ok(Command::Disconnect(disconnect)));
}

#[test]
fn unknown_types_are_refused() {
    for fctype in 0..=u8::MAX {
        let parsed = Command::parse(&Sqe::new(0x7f, u32::from(fctype)));
        let known = CommandType::try_from(fctype).is_ok();
        assert_eq!(parsed.is_ok(), known, "{fctype:02x}h");
        if !known {
            assert_eq!(parsed, Err(Status::INVALID_OPCODE));
        }
    }
    assert_eq!(Command::parse(&Sqe::new(0x06, 1)), Err(Status::INVALID_OPCODE));
}

proptest! {
    #[test]
    fn connect_round_trips(recfmt: u16, qid: u16, sqsize: u16, cattr in 0u8..16, kato: u32) {
        let connect = Connect { recfmt, qid, sqsize, cattr: cattr.into(), kato };
        prop_assert_eq!(u8::from(connect.cattr), cattr);
        prop_assert_eq!(Command::parse(&connect.to_sqe()), Ok(Command::Connect(connect)));
    }

    #[test]
    fn properties_round_trip(offset: u32, value: u64) {
        let set = PropertySet { size: PropertySize::Eight, offset, value };
        prop_assert_eq!(PropertySet::parse(&set.to_sqe()), Ok(set));
        let get = PropertyGet { size: PropertySize::Four, offset };
        prop_assert_eq!(PropertyGet::parse(&get.to_sqe()), Ok(get));
    }

    #[test]
    fn no_connect_data_panics(raw in prop::collection::vec(any::<u8>(), 1024)) {
        let data = ConnectData::read_from_bytes(&raw).unwrap();
        let _ = (data.host(), data.subsystem(), data.host_id().to_string());
    }
}
