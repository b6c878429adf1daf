//! Log pages.

use crate::{bytes, golden, numbered};
use nvme::address::{TransportAddress, TransportType};
use nvme::log::{
    AnaGroup, AnaHeader, AnaState, ChangedNamespaces, CommandEffects, DiscoveryEntry,
    DiscoveryFlags, DiscoveryHeader, Effects, ErrorEntry, FirmwareSlots, Health, LogPage,
    RdmaAddressSubtype, SecureChannel, SubsystemType, SupportedLogPages, SupportedPage,
    TcpAddressSubtype, TransportRequirements,
};
use nvme::{Nqn, Status, U16, U64, U128};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros};

#[test]
fn discovery_bytes() {
    let header = DiscoveryHeader {
        genctr: U64::new(0x0102_0304_0506_0708),
        numrec: U64::new(2),
        ..DiscoveryHeader::default()
    };
    golden(&header, &bytes(1024, &[(0, &[8, 7, 6, 5, 4, 3, 2, 1, 2])]));
    let numbered: DiscoveryHeader = numbered();
    assert_eq!(numbered.recfmt.get(), 0x1110);

    let mut entry = DiscoveryEntry::new_zeroed();
    entry.set_address(&TransportAddress {
        trtype: TransportType::Tcp,
        traddr: "192.0.2.17".parse().unwrap(),
        trsvcid: 4420,
    });
    entry.subtype = SubsystemType::Nvm.code();
    entry.treq = TransportRequirements {
        secure_channel: SecureChannel::NotRequired,
        sq_flow_control_disable: true,
    }
    .into();
    entry.portid = U16::new(0x0102);
    entry.cntlid = U16::new(0xffff);
    entry.asqsz = U16::new(32);
    entry.eflags = U16::new((DiscoveryFlags::PERSISTENT | DiscoveryFlags::DUPLICATE).bits());
    let subsystem: Nqn = "nqn.2026-11.io.tidegate:quickstart".parse().unwrap();
    entry.subnqn = subsystem.to_wire();
    let mut expected = bytes(
        1024,
        &[
            (0, &[3, 1, 2, 6, 2, 1, 0xff, 0xff, 32, 0, 3]),
            (256, b"nqn.2026-11.io.tidegate:quickstart"),
        ],
    );
    expected[32..64].copy_from_slice(format!("{:<32}", "4420").as_bytes());
    expected[512..768].copy_from_slice(format!("{:<256}", "192.0.2.17").as_bytes());
    golden(&entry, &expected);
    assert_eq!(entry.traddr(), Some("192.0.2.17"));
    assert_eq!(entry.trsvcid(), Some("4420"));
    assert_eq!(entry.subsystem(), Ok(subsystem));
}

#[test]
fn addresses_padded_by_others() {
    // NUL padding, as Linux's target has it.
    let mut raw = bytes(1024, &[(0, &[1, 2]), (32, b"4420"), (512, b"2001:db8::1")]);
    let entry = DiscoveryEntry::read_from_bytes(&raw).unwrap();
    let address = entry.address().unwrap();
    assert_eq!(address.to_string(), "rdma://[2001:db8::1]:4420");
    // ADRFAM that contradicts the address, a type we do not know, a port that is none.
    raw[1] = 1;
    assert_eq!(DiscoveryEntry::read_from_bytes(&raw).unwrap().address(), None);
    raw[1] = 2;
    raw[0] = 9;
    assert_eq!(DiscoveryEntry::read_from_bytes(&raw).unwrap().address(), None);
    raw[0] = 1;
    raw[32] = b'x';
    assert_eq!(DiscoveryEntry::read_from_bytes(&raw).unwrap().address(), None);
}

#[test]
fn address_subtypes() {
    let rdma: RdmaAddressSubtype = numbered();
    assert_eq!((rdma.qptype, rdma.prtype, rdma.cms, rdma.pkey.get()), (0, 1, 2, 0x0908));
    let tcp: TcpAddressSubtype = numbered();
    assert_eq!(tcp.sectype, 0);
}

#[test]
fn error_bytes() {
    let mut entry = ErrorEntry::new_zeroed();
    entry.error_count = U64::new(0x0102_0304_0506_0708);
    entry.sqid = U16::new(1);
    entry.cid = U16::new(0x0203);
    entry.status_field = U16::new(Status::LBA_OUT_OF_RANGE.with_dnr().to_wire());
    entry.parameter_error_location = U16::new(ErrorEntry::parameter(40, 3));
    entry.lba = U64::new(9);
    entry.nsid.set(10);
    entry.trtype = 3;
    entry.command_specific = U64::new(11);
    entry.transport_specific = U16::new(12);
    golden(
        &entry,
        &bytes(
            64,
            &[
                (0, &[8, 7, 6, 5, 4, 3, 2, 1]),
                (8, &[1, 0, 3, 2, 0x00, 0x81, 40, 3]),
                (16, &[9]),
                (24, &[10]),
                (29, &[3]),
                (32, &[11]),
                (40, &[12]),
            ],
        ),
    );
    assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
}

#[test]
fn health_bytes() {
    let health: Health = numbered();
    assert_eq!(health.composite_temperature.get(), 0x0201);
    assert_eq!((health.available_spare, health.available_spare_threshold), (3, 4));
    assert_eq!((health.percentage_used, health.endurance_group_warning), (5, 6));
    let low = |counter: U128| counter.get().to_le_bytes()[0];
    assert_eq!(low(health.data_units_read), 32);
    assert_eq!(low(health.data_units_written), 48);
    assert_eq!(low(health.host_read_commands), 64);
    assert_eq!(low(health.host_write_commands), 80);
    assert_eq!(low(health.controller_busy_time), 96);
    assert_eq!(low(health.power_cycles), 112);
    assert_eq!(low(health.power_on_hours), 128);
    assert_eq!(low(health.unsafe_shutdowns), 144);
    assert_eq!(low(health.media_errors), 160);
    assert_eq!(low(health.error_log_entries), 176);
    assert_eq!(health.warning_temperature_time.to_bytes()[0], 192);
    assert_eq!(health.critical_temperature_time.to_bytes()[0], 196);
    assert_eq!(health.temperature_sensors[7].to_bytes()[0], 214);
    assert_eq!(health.thermal_transitions[1].to_bytes()[0], 220);
    assert_eq!(health.thermal_time[1].to_bytes()[0], 228);
    assert_eq!(Health::data_units(0).get(), 0);
    assert_eq!(Health::data_units(1).get(), 1);
    assert_eq!(Health::data_units(512_000).get(), 1);
    assert_eq!(Health::data_units(512_001).get(), 2);
}

#[test]
fn firmware_bytes() {
    let mut slots = FirmwareSlots::new_zeroed();
    slots.afi = 1;
    slots.frs[0] = *b"0.1.0   ";
    slots.frs[6] = *b"LAST    ";
    golden(&slots, &bytes(512, &[(0, &[1]), (8, b"0.1.0   "), (56, b"LAST    ")]));
}

#[test]
fn changed_namespaces() {
    golden(&ChangedNamespaces::new([1, 0x0102]), &bytes(4096, &[(0, &[1, 0, 0, 0, 2, 1])]));
    assert_eq!(ChangedNamespaces::new(1..=1024).nsids[1023].get(), 1024);
    golden(&ChangedNamespaces::new(1..=1025), &bytes(4096, &[(0, &[0xff; 4])]));
}

#[test]
fn effects_bytes() {
    let mut effects = CommandEffects::default();
    effects.set_admin(0x06, Effects::SUPPORTED);
    effects.set_io(0x01, Effects::SUPPORTED | Effects::CONTENT_CHANGE);
    effects.set_io(0xff, Effects::UUID_SELECTION);
    golden(&effects, &bytes(4096, &[(24, &[1]), (1028, &[3]), (2044, &[0, 0, 8])]));
    let mut pages = SupportedLogPages::default();
    pages.set(LogPage::Discovery, SupportedPage::SUPPORTED);
    golden(&pages, &bytes(1024, &[(0x70 * 4, &[1])]));
    assert_eq!(pages.get(LogPage::Discovery), SupportedPage::SUPPORTED);
    assert_eq!(pages.get(LogPage::Health), SupportedPage::empty());
}

#[test]
fn ana_bytes() {
    let header: AnaHeader = numbered();
    assert_eq!(header.ngrps.get(), 0x0908);
    let mut group = AnaGroup::new_zeroed();
    group.grpid.set(1);
    group.nnsids.set(2);
    group.chgcnt.set(3);
    group.state = AnaState::NonOptimized.code();
    golden(&group, &bytes(32, &[(0, &[1, 0, 0, 0, 2, 0, 0, 0, 3]), (16, &[2])]));
    assert_eq!(AnaState::Change.code(), 0x0f);
}

#[test]
fn codes_come_back() {
    for &page in LogPage::ALL {
        assert_eq!(LogPage::try_from(page.code()), Ok(page));
    }
    assert_eq!(LogPage::Discovery.to_string(), "Discovery");
    assert_eq!(LogPage::try_from(0x7f), Err(0x7f));
}

proptest! {
    #[test]
    fn addresses_round_trip(ip: std::net::IpAddr, port: u16, rdma: bool) {
        let address = TransportAddress {
            trtype: if rdma { TransportType::Rdma } else { TransportType::Tcp },
            traddr: ip,
            trsvcid: port,
        };
        let mut entry = DiscoveryEntry::default();
        entry.set_address(&address);
        prop_assert_eq!(entry.address(), Some(address));
    }

    #[test]
    fn no_entry_panics(raw in prop::collection::vec(any::<u8>(), 1024)) {
        let entry = DiscoveryEntry::read_from_bytes(&raw).unwrap();
        let _ = (entry.address(), entry.subsystem(), entry.traddr(), entry.trsvcid());
    }
}
