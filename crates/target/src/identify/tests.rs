//! Tests of Identify.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::Deallocation;
use nvme::admin::IDENTIFY_LENGTH;
use nvme::identify::Descriptors;
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::configuration::test_device::TestDevice;
use crate::configuration::{
    Configuration, Hosts, NamespaceOptions, NamespaceState, SubsystemOptions, View,
};

fn nqn() -> Nqn {
    "nqn.2026-11.io.tidegate:quickstart".parse().unwrap()
}

/// A subsystem with a disk (1), a read-only one that cannot deallocate (3), one whose device is missing (4), and
/// one being removed (5).
fn example() -> Arc<Configuration> {
    let mut builder = Configuration::empty().change();
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    builder.add_subsystem(nqn(), options).unwrap();
    let disk = NamespaceOptions::new(1, TestDevice::new("disk").shared());
    builder.add_namespace(&nqn(), disk).unwrap();
    let mut plain = TestDevice::new("plain");
    plain.geometry.block_size = 512;
    plain.properties.deallocation = None;
    plain.properties.optimal_blocks = 1;
    let plain = NamespaceOptions { read_only: true, ..NamespaceOptions::new(3, plain.shared()) };
    builder.add_namespace(&nqn(), plain).unwrap();
    builder.add_namespace(&nqn(), NamespaceOptions::waiting(4, "missing".to_owned())).unwrap();
    let going = NamespaceOptions {
        state: NamespaceState::Removing(TestDevice::new("going").shared()),
        ..NamespaceOptions::waiting(5, "going".to_owned())
    };
    builder.add_namespace(&nqn(), going).unwrap();
    builder.build().unwrap()
}

fn controller(subsystem: &Subsystem) -> Controller<'_> {
    Controller {
        scope: Scope::Io(View { subsystem, host: subsystem.nqn(), listener: None }),
        cntlid: 9,
        transport: TransportType::Tcp,
        in_capsule: 8192,
        volatile_write_cache: true,
        controllers: &[3, 9, 40],
    }
}

fn ask<T: FromBytes>(
    controller: &Controller<'_>,
    command: Identify,
    nsid: u32,
) -> Result<T, Status> {
    let mut out = [0xaa; IDENTIFY_LENGTH];
    controller.identify(&command, nsid, &mut out)?;
    Ok(T::read_from_bytes(&out).unwrap())
}

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE.with_dnr();

#[test]
fn a_controller_has_what_linux_insists_on() {
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let data: IdentifyController =
        ask(&controller(subsystem), Identify::new(Cns::Controller), 0).unwrap();
    assert_eq!(data.cntlid.get(), 9);
    assert_eq!(data.ver.get(), 0x0002_0000);
    assert_eq!(data.cntrltype, 1);
    assert_ne!(data.kas.get(), 0);
    assert_eq!(data.mdts, 8);
    // 64 bytes of command and 8 KiB of data, 16 bytes of response, in units of 16.
    assert_eq!(data.ioccsz.get(), 516);
    assert_eq!(data.iorcsz.get(), 1);
    assert_eq!(data.icdoff.get(), 0);
    assert_eq!(data.fcatt, 0);
    assert_eq!(data.msdbd, 1);
    assert_eq!(data.ofcs.get(), 1);
    assert_eq!(data.maxcmd.get(), 128);
    assert_eq!((data.nn.get(), data.mnan.get()), (1024, 1024));
    assert_eq!(data.sgls.get(), 1 << 0 | 1 << 20 | 1 << 21);
    assert_eq!((data.sqes, data.cqes), (0x66, 0x44));
    assert_eq!(data.fuses.get(), 0);
    assert_eq!(data.oacs.get(), 0);
    // Compare, Dataset Management, Write Zeroes, Save and Select, Verify.
    assert_eq!(data.oncs.get(), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7);
    assert_eq!(data.vwc, 0b111);
    assert_eq!(data.oaes.get(), 1 << 8);
    assert_eq!(data.ctratt.get(), 1 << 0 | 1 << 6);
    assert_eq!(data.lpa, 1 << 1 | 1 << 2 | 1 << 5);
    assert_eq!((data.aerl, data.acl, data.elpe), (3, 3, 63));
    assert_eq!(data.cmic, 0b11);
    assert_eq!(data.frmw, 0b11);
    assert!(data.subnqn.starts_with(b"nqn.2026-11.io.tidegate:quickstart\0"));
    assert_eq!(&data.sn, subsystem.serial().as_bytes());
    assert!(data.mn.starts_with(b"Tidegate  "));
}

#[test]
fn what_depends_on_devices_and_transport_follows_them() {
    let configuration = example();
    let command = Identify::new(Cns::Controller);
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let rdma = Controller {
        transport: TransportType::Rdma,
        volatile_write_cache: false,
        in_capsule: 0,
        ..controller(subsystem)
    };
    let data: IdentifyController = ask(&rdma, command, 0).unwrap();
    assert_eq!(data.sgls.get(), 1 << 0 | 1 << 2 | 1 << 20);
    assert_eq!(data.vwc, 0b110);
    assert_eq!((data.ioccsz.get(), data.icdoff.get(), data.msdbd), (4, 0, 1));
    // A list of descriptors is in the capsule.
    for (in_capsule, ioccsz, msdbd) in [(64, 8, 4), (4096, 260, 16)] {
        let data: IdentifyController = ask(&Controller { in_capsule, ..rdma }, command, 0).unwrap();
        assert_eq!((data.ioccsz.get(), data.icdoff.get(), data.msdbd), (ioccsz, 0, msdbd));
    }
    // Without the devices that can or might deallocate, Dataset Management is not offered.
    let mut builder = configuration.change();
    builder.remove_namespace(&nqn(), 1).unwrap();
    builder.remove_namespace(&nqn(), 4).unwrap();
    let configuration = builder.build().unwrap();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let data: IdentifyController = ask(&controller(subsystem), command, 0).unwrap();
    assert_eq!(data.oncs.get() & 1 << 2, 0);
}

#[test]
fn a_discovery_controller_is_one() {
    let limits = Limits::default();
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let discovery = Controller { scope: Scope::Discovery(&limits), ..controller(subsystem) };
    let data: IdentifyController = ask(&discovery, Identify::new(Cns::Controller), 0).unwrap();
    assert_eq!(data.cntrltype, 2);
    assert_eq!(data.cntlid.get(), 9);
    assert_eq!(data.oaes.get(), 1 << 31);
    assert_eq!(data.nn.get(), 0);
    assert_ne!(data.kas.get(), 0);
    assert_ne!(data.maxcmd.get(), 0);
    assert_ne!(data.lpa & 1 << 2, 0);
    assert!(data.subnqn.starts_with(b"nqn.2014-08.org.nvmexpress.discovery\0"));
    for cns in Cns::ALL.iter().filter(|cns| **cns != Cns::Controller) {
        let refused = ask::<IdentifyController>(&discovery, Identify::new(*cns), 1);
        assert_eq!(refused.err(), Some(INVALID_FIELD), "{cns}");
    }
}

#[test]
fn a_namespace_is_described_as_its_device_is() {
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let controller = controller(subsystem);
    let command = Identify::new(Cns::Namespace);
    let data: IdentifyNamespace = ask(&controller, command, 1).unwrap();
    assert_eq!((data.nsze.get(), data.ncap.get(), data.nuse.get()), (1 << 18, 1 << 18, 1 << 18));
    assert_eq!(data.nvmcap.get(), 1 << 30);
    assert_eq!(data.format().unwrap().block_size(), Some(4096));
    assert_eq!((data.nlbaf, data.flbas), (0, 0));
    assert_eq!(data.nmic, 1);
    assert_eq!(data.nsattr, 0);
    // Reads zeroes after deallocation, and Write Zeroes may deallocate.
    assert_eq!(data.dlfeat, 0b1001);
    assert_eq!((data.npwg.get(), data.nows.get(), data.npdg.get()), (1, 1, 15));
    assert_ne!(data.nguid, [0; 16]);
    assert_eq!(data.eui64, [0; 8]);
    let plain: IdentifyNamespace = ask(&controller, command, 3).unwrap();
    assert_eq!(plain.format().unwrap().block_size(), Some(512));
    assert_eq!((plain.dlfeat, plain.nsattr), (0, 1));
    let independent: IndependentNamespace =
        ask(&controller, Identify::new(Cns::IndependentNamespace), 3).unwrap();
    assert_eq!((independent.nsattr, independent.nmic, independent.nstat), (1, 1, 1));
}

/// Every value of CNS: those of nvme-cli's commands, those that are reserved, and what becomes of each.
#[test]
fn every_cns_is_answered_or_refused_as_specified() {
    use Answer::{Data, Refused, Zeroes};
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let controller = controller(subsystem);
    for cns in 0..=u8::MAX {
        let expected = match cns {
            // Namespaces, the controller, lists; user data formats; allocated namespaces; controllers.
            0x00..=0x03 | 0x06..=0x09 | 0x10..=0x13 | 0x1a | 0x1c => Data,
            // No namespace has protection information.
            0x05 | 0x0a | 0x1b => Zeroes,
            // NVM sets, virtualization, granularity, UUIDs, domains, endurance groups: not offered. The rest is
            // reserved in version 2.0, or the vendor's.
            _ => Refused(INVALID_FIELD),
        };
        let nsid = match cns {
            0x01..=0x02 | 0x06..=0x07 | 0x09..=0x10 | 0x13 | 0x1a | 0x1c => 0,
            _ => 1,
        };
        let command =
            Identify { cns, cntid: if cns == 0x1c { u16::MAX } else { 0 }, ..Identify::default() };
        assert_eq!(answer(&controller, command, nsid), expected, "{cns:#04x}");
        // What is of one command set is not of another.
        if matches!(cns, 0x05..=0x07 | 0x09..=0x0a | 0x1a..=0x1b) {
            let zoned = Identify { csi: Csi::Zoned.code(), ..command };
            assert_eq!(answer(&controller, zoned, nsid), Refused(INVALID_FIELD), "{cns:#04x}");
        }
    }
}

#[test]
fn the_user_data_format_has_what_all_namespaces_share() {
    let ask_format = |devices: &[TestDevice]| {
        let mut builder = Configuration::empty().change();
        builder.add_subsystem(nqn(), SubsystemOptions::default()).unwrap();
        for (nsid, device) in (1..).zip(devices) {
            let options = NamespaceOptions::new(nsid, device.clone().shared());
            builder.add_namespace(&nqn(), options).unwrap();
        }
        let waiting = NamespaceOptions::waiting(9, "missing".to_owned());
        builder.add_namespace(&nqn(), waiting).unwrap();
        let configuration = builder.build().unwrap();
        let controller = controller(configuration.subsystem(&nqn()).unwrap());
        // The NSID means nothing here.
        for nsid in [1, 77, NSID_ALL] {
            let command = Identify::new(Cns::NamespaceFormat);
            let data = ask::<IdentifyNamespace>(&controller, command, nsid).unwrap();
            assert_eq!(ask(&controller, command, 0), Ok(data));
        }
        for cns in [Cns::NamespaceFormat, Cns::CommandSetNamespaceFormat] {
            for index in [1, 63, u16::MAX] {
                let command = Identify { cnssid: index, ..Identify::new(cns) };
                assert_eq!(answer(&controller, command, 0), Answer::Refused(INVALID_FIELD));
            }
        }
        ask::<IdentifyNamespace>(&controller, Identify::new(Cns::NamespaceFormat), 0).unwrap()
    };
    let disk = TestDevice::new("disk");
    let twin = TestDevice { geometry: disk.geometry, ..TestDevice::new("twin") };
    let data = ask_format(&[disk.clone(), twin]);
    // What a namespace of this format can do, and nothing of any single one.
    assert_eq!(data.format().unwrap().block_size(), Some(4096));
    assert_eq!((data.nlbaf, data.nmic, data.dlfeat), (0, 1, 0b1001));
    assert_eq!((data.nsfeat, data.npwg.get(), data.npdg.get()), (1 << 4, 1, 15));
    assert_eq!((data.nsze.get(), data.ncap.get(), data.nuse.get()), (0, 0, 0));
    assert_eq!((data.nvmcap.get(), data.nsattr, data.nguid), (0, 0, [0; 16]));
    // They differ in what deallocation does.
    let mut plain = TestDevice::new("plain");
    plain.properties.deallocation = None;
    let data = ask_format(&[disk.clone(), plain]);
    assert_eq!(data.format().unwrap().block_size(), Some(4096));
    assert_eq!((data.dlfeat, data.nsfeat, data.npwg.get(), data.npdg.get()), (0, 0, 0, 0));
    // They differ in block size: there is no format that all have, and no number of blocks means anything.
    let mut small = TestDevice::new("small");
    small.geometry.block_size = 512;
    let data = ask_format(&[disk, small]);
    assert_eq!(data.format().unwrap().block_size(), None);
    assert_eq!((data.dlfeat, data.nmic), (0b1001, 1));
    assert_eq!((data.nsfeat, data.npwg.get(), data.npdg.get()), (0, 0, 0));
    // Nothing is in service.
    assert_eq!(ask_format(&[]), IdentifyNamespace::default());
}

#[test]
fn large_numbers_of_blocks_fit_their_fields() {
    assert_eq!(zero_based(0).get(), 0);
    assert_eq!(zero_based(1).get(), 0);
    assert_eq!(zero_based(65_536).get(), 65_535);
    assert_eq!(zero_based(u32::MAX).get(), 65_535);
    let mut device = TestDevice::new("huge");
    device.properties.deallocation = Some(Deallocation { reads_zero: false, granularity: 0 });
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(nqn(), SubsystemOptions::default()).unwrap();
    builder.add_namespace(&nqn(), NamespaceOptions::new(1, device.shared())).unwrap();
    let configuration = builder.build().unwrap();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let command = Identify::new(Cns::Namespace);
    let data: IdentifyNamespace = ask(&controller(subsystem), command, 1).unwrap();
    assert_eq!((data.dlfeat, data.npdg.get()), (0b1000, 0));
}

#[test]
fn descriptors_name_the_namespace_everywhere() {
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let command = Identify::new(Cns::NamespaceDescriptors);
    let data: [u8; IDENTIFY_LENGTH] = ask(&controller(subsystem), command, 1).unwrap();
    let identity = subsystem.namespace(1).unwrap().identity();
    let expected = [
        Descriptor::Uuid(identity.uuid),
        Descriptor::Nguid(identity.nguid),
        Descriptor::Csi(Csi::Nvm),
    ];
    assert_eq!(Descriptors::new(&data).collect::<Vec<_>>(), expected);
}

/// What becomes of a question about a namespace.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Data,
    Zeroes,
    Refused(Status),
}

fn answer(controller: &Controller<'_>, command: Identify, nsid: u32) -> Answer {
    match ask::<[u8; IDENTIFY_LENGTH]>(controller, command, nsid) {
        Ok(data) if data == [0; IDENTIFY_LENGTH] => Answer::Zeroes,
        Ok(_) => Answer::Data,
        Err(status) => Answer::Refused(status),
    }
}

#[test]
fn namespaces_that_are_not_there_are_answered_as_specified() {
    use Answer::{Data, Refused, Zeroes};
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let controller = controller(subsystem);
    let invalid = || Refused(INVALID_NAMESPACE);
    let retry = || Refused(Status::NAMESPACE_NOT_READY);
    // In service, inactive, missing, being removed, beyond NN, none, all.
    let nsids = [1, 2, 4, 5, 1025, 0, NSID_ALL];
    let usual = [Data, Zeroes, retry(), Zeroes, invalid(), invalid(), invalid()];
    let no_protection = [Zeroes, Zeroes, retry(), Zeroes, invalid(), invalid(), invalid()];
    for (cns, answers) in [
        (Cns::Namespace, &usual),
        (Cns::AllocatedNamespace, &usual),
        (
            Cns::NamespaceDescriptors,
            &[Data, invalid(), retry(), invalid(), invalid(), invalid(), invalid()],
        ),
        (Cns::CommandSetNamespace, &no_protection),
        (Cns::CommandSetAllocatedNamespace, &no_protection),
        (Cns::IndependentNamespace, &[Data, Zeroes, Data, Zeroes, invalid(), invalid(), invalid()]),
        (
            Cns::AttachedControllers,
            &[Data, invalid(), Data, invalid(), invalid(), invalid(), invalid()],
        ),
    ] {
        for (nsid, expected) in nsids.iter().zip(answers) {
            assert_eq!(
                &answer(&controller, Identify::new(cns), *nsid),
                expected,
                "{cns} of {nsid}"
            );
        }
    }
    let missing: IndependentNamespace =
        ask(&controller, Identify::new(Cns::IndependentNamespace), 4).unwrap();
    assert_eq!(missing.nstat, 0);
}

#[test]
fn lists_begin_where_they_are_asked_to() {
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let controller = controller(subsystem);
    let namespaces = |cns, after| {
        let list = ask::<NamespaceList>(&controller, Identify::new(cns), after)?;
        Ok(list.iter().collect::<Vec<_>>())
    };
    for cns in [
        Cns::ActiveNamespaces,
        Cns::CommandSetActiveNamespaces,
        Cns::AllocatedNamespaces,
        Cns::CommandSetAllocatedNamespaces,
    ] {
        // The one whose device is missing is listed, or a host would take its disk away.
        assert_eq!(namespaces(cns, 0), Ok(vec![1, 3, 4]));
        assert_eq!(namespaces(cns, 1), Ok(vec![3, 4]));
        assert_eq!(namespaces(cns, 4), Ok(vec![]));
        assert_eq!(namespaces(cns, 0xffff_fffd), Ok(vec![]));
        for after in [0xffff_fffe, 0xffff_ffff] {
            assert_eq!(namespaces(cns, after), Err(INVALID_NAMESPACE));
        }
    }
    for cns in [Cns::Controllers, Cns::AttachedControllers] {
        for (from, expected) in [(0, vec![3, 9, 40]), (9, vec![9, 40]), (41, vec![])] {
            let command = Identify { cntid: from, ..Identify::new(cns) };
            let list: ControllerList = ask(&controller, command, 1).unwrap();
            assert_eq!(list.iter().collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn the_command_set_is_nvm_alone() {
    let configuration = example();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let controller = controller(subsystem);
    let data: NvmController =
        ask(&controller, Identify::new(Cns::CommandSetController), 0).unwrap();
    // 1 MiB and 16 MiB in pages of 4 KiB; Dataset Management without limits.
    assert_eq!((data.vsl, data.wzsl), (8, 12));
    assert_eq!((data.dmrl, data.dmrsl.get(), data.dmsl.get()), (0, 0, 0));
    for cns in
        [Cns::CommandSetController, Cns::CommandSetNamespace, Cns::CommandSetActiveNamespaces]
    {
        let zoned = Identify { csi: 2, ..Identify::new(cns) };
        let refused = ask::<NvmController>(&controller, zoned, 1);
        assert_eq!(refused.err(), Some(INVALID_FIELD));
    }
    for (cntid, known) in [(0xffff, true), (9, true), (3, true), (4, false)] {
        let command = Identify { cntid, ..Identify::new(Cns::CommandSets) };
        match ask::<CommandSets>(&controller, command, 0) {
            Ok(sets) => assert!(known && sets == CommandSets::one(1)),
            Err(status) => assert!(!known && status == INVALID_FIELD),
        }
    }
}

#[test]
fn a_full_subsystem_is_listed_in_one_piece() {
    let mut builder = Configuration::empty().change();
    builder.add_subsystem(nqn(), SubsystemOptions::default()).unwrap();
    let device = TestDevice::new("disk").shared();
    for nsid in 1..=1024 {
        let options = NamespaceOptions {
            uuid: Some(uuid::Uuid::from_u128(u128::from(nsid))),
            ..NamespaceOptions::new(nsid, Arc::clone(&device))
        };
        builder.add_namespace(&nqn(), options).unwrap();
    }
    let configuration = builder.build().unwrap();
    let subsystem = configuration.subsystem(&nqn()).unwrap();
    let list: NamespaceList =
        ask(&controller(subsystem), Identify::new(Cns::ActiveNamespaces), 0).unwrap();
    assert!(list.iter().eq(1..=1024));
}

proptest! {
    #[test]
    fn nothing_panics_and_a_short_buffer_gets_the_beginning(
        cns: u8, nsid in prop_oneof![0_u32..8, any::<u32>()], cntid: u16, csi in 0_u8..3,
        length in 0..IDENTIFY_LENGTH,
    ) {
        let configuration = example();
        let subsystem = configuration.subsystem(&nqn()).unwrap();
        let controller = controller(subsystem);
        let command = Identify { cns, cntid, csi, ..Identify::default() };
        let mut whole = [0xaa; IDENTIFY_LENGTH];
        let result = controller.identify(&command, nsid, &mut whole);
        let mut part = vec![0xaa; length];
        prop_assert_eq!(controller.identify(&command, nsid, &mut part), result);
        if result.is_ok() {
            prop_assert_eq!(&part, &whole[..length]);
        } else {
            prop_assert_eq!(whole, [0xaa; IDENTIFY_LENGTH]);
        }
    }

    #[test]
    fn lists_agree_with_a_set(nsids in prop::collection::btree_set(1_u32..=1024, 0..40), after in 0_u32..1100) {
        let mut builder = Configuration::empty().change();
        builder.add_subsystem(nqn(), SubsystemOptions::default()).unwrap();
        for nsid in &nsids {
            builder.add_namespace(&nqn(), NamespaceOptions::waiting(*nsid, nsid.to_string())).unwrap();
        }
        let configuration = builder.build().unwrap();
        let subsystem = configuration.subsystem(&nqn()).unwrap();
        let list: NamespaceList =
            ask(&controller(subsystem), Identify::new(Cns::ActiveNamespaces), after).unwrap();
        let listed: BTreeSet<u32> = list.iter().collect();
        prop_assert_eq!(listed, nsids.into_iter().filter(|nsid| *nsid > after).collect());
    }
}
