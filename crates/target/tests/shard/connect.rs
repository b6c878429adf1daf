//! Connect: what is admitted, and how exactly the rest is refused.

use nvme::Status;
use nvme::admin::{Command, Identify};
use nvme::fabrics::{ConnectField, PropertyGet, PropertySize};
use nvme::identify::Cns;
use nvme::register::Property;
use target::configuration::{Configuration, Hosts, SubsystemOptions};

use crate::device::TestDevice;
use crate::harness::{Attempt, ENABLED, HOST, World, configuration_with, nqn};

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS.with_dnr();

#[track_caller]
fn refused(world: &mut World, attempt: &Attempt, field: ConnectField) {
    let wire = world.open(0);
    let finished = world.connect(wire, attempt);
    finished.failed(INVALID);
    assert_eq!(finished.cqe.dw0(), field.dw0());
    // The connection stays, and a Connect without the mistake works.
    assert!(world.wires[&wire].disconnected.is_none());
    world.close(wire);
}

#[test]
fn a_host_connects_enables_and_identifies() {
    for shards in 1..=3 {
        let (mut world, _) = World::one_disk(shards, 64);
        for shard in 0..usize::from(shards) {
            let (admin, cntlid) = world.controller(shard);
            assert_eq!(usize::from(cntlid % shards), shard);
            let command = Command::Identify(Identify::new(Cns::Controller)).to_sqe(0);
            let identified = world.execute(admin, command, &[], 4096).ok();
            assert_eq!(identified.data.len(), 4096);
            assert_eq!(identified.data[78..80], cntlid.to_le_bytes());
            for other in 0..usize::from(shards) {
                world.io_queue(other, cntlid, u16::try_from(other).unwrap() + 1);
            }
        }
    }
}

#[test]
fn each_wrong_field_is_named() {
    let (mut world, _) = World::one_disk(2, 64);
    let (_, cntlid) = world.controller(0);
    let bend = |change: &dyn Fn(&mut Attempt)| {
        let mut attempt = Attempt::admin();
        change(&mut attempt);
        attempt
    };
    let bend_io = |change: &dyn Fn(&mut Attempt)| {
        let mut attempt = Attempt::io(cntlid, 1);
        change(&mut attempt);
        attempt
    };
    for (attempt, field) in [
        (bend(&|attempt| attempt.command.sqsize = 0), ConnectField::QueueSize),
        (bend(&|attempt| attempt.command.sqsize = 128), ConnectField::QueueSize),
        (bend(&|attempt| attempt.data.cntlid.set(0xfffe)), ConnectField::ControllerId),
        (bend(&|attempt| attempt.data.cntlid.set(1)), ConnectField::ControllerId),
        (bend(&|attempt| attempt.data.hostid = [0; 16]), ConnectField::HostId),
        (bend(&|attempt| attempt.data.hostnqn = [b'a'; 256]), ConnectField::HostNqn),
        (bend(&|attempt| attempt.data.subnqn = [b'n'; 256]), ConnectField::SubsystemNqn),
        (Attempt::admin().subsystem("nqn.2026-11.io.example:none"), ConnectField::SubsystemNqn),
        (bend_io(&|attempt| attempt.command.sqsize = 128), ConnectField::QueueSize),
        (bend_io(&|attempt| attempt.command.qid = 129), ConnectField::QueueId),
        (bend_io(&|attempt| attempt.data.cntlid.set(cntlid + 2)), ConnectField::ControllerId),
        (bend_io(&|attempt| attempt.data.cntlid.set(0xffff)), ConnectField::ControllerId),
        (bend_io(&|attempt| attempt.data.hostid = [9; 16]), ConnectField::HostId),
        (Attempt::io(cntlid, 1).host("nqn.2026-11.io.example:other", 1), ConnectField::HostNqn),
        (Attempt::io(1, 1).subsystem(nvme::nqn::DISCOVERY_NQN), ConnectField::QueueId),
    ] {
        refused(&mut world, &attempt, field);
    }
    let wire = world.open(1);
    let finished = world.connect(wire, &bend(&|attempt| attempt.command.recfmt = 1));
    finished.failed(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr());
    world.connect(wire, &Attempt::admin()).ok();
}

#[test]
fn an_io_queue_needs_an_enabled_controller_and_a_free_number() {
    let (mut world, _) = World::one_disk(2, 64);
    let admin = world.open(0);
    let cntlid = u16::try_from(world.connect(admin, &Attempt::admin()).ok().cqe.dw0()).unwrap();
    refused(&mut world, &Attempt::io(cntlid, 1), ConnectField::QueueId);
    world.set_cc(admin, ENABLED);
    world.io_queue(1, cntlid, 1);
    let wire = world.open(0);
    world.connect(wire, &Attempt::io(cntlid, 1)).failed(Status::INVALID_QUEUE_ID);
    world.connect(wire, &Attempt::io(cntlid, 2)).ok();
    world.connect(wire, &Attempt::io(cntlid, 3)).failed(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
}

#[test]
fn a_host_without_a_name_is_known_by_its_identifier() {
    let device = TestDevice::new("disk0", 64);
    let by_uuid = "nqn.2014-08.org.nvmexpress:uuid:01010101-0101-0101-0101-010101010101";
    let options =
        SubsystemOptions { hosts: Hosts::from_iter([nqn(by_uuid)]), ..SubsystemOptions::default() };
    let mut world = World::new(1);
    world.configure(&configuration_with(&[(1, &device)], options), &[&device]);
    let nameless = |id| {
        let mut attempt = Attempt::admin().host(HOST, id);
        attempt.data.hostnqn = [0; 256];
        attempt
    };
    let wire = world.open(0);
    world.connect(wire, &nameless(2)).failed(Status::CONNECT_INVALID_HOST.with_dnr());
    let wire = world.open(0);
    world.connect(wire, &nameless(1)).ok();
}

#[test]
fn only_listed_hosts_are_admitted() {
    let device = TestDevice::new("disk0", 64);
    let options =
        SubsystemOptions { hosts: Hosts::from_iter([nqn(HOST)]), ..SubsystemOptions::default() };
    let mut world = World::new(1);
    world.configure(&configuration_with(&[(1, &device)], options), &[&device]);
    world.controller(0);
    let wire = world.open(0);
    let stranger = Attempt::admin().host("nqn.2026-11.io.example:stranger", 2);
    world.connect(wire, &stranger).failed(Status::CONNECT_INVALID_HOST.with_dnr());
    // Discovery is for everybody.
    let discovery = Attempt::discovery().host("nqn.2026-11.io.example:stranger", 2);
    world.connect(wire, &discovery).ok();
}

#[test]
fn a_target_without_a_configuration_asks_to_be_tried_again() {
    let mut world = World::new(1);
    let wire = world.open(0);
    world.connect(wire, &Attempt::admin()).failed(Status::CONNECT_CONTROLLER_BUSY);
    let change = Configuration::empty().change();
    world.configure(&change.build().unwrap(), &[]);
    world.connect(wire, &Attempt::admin()).failed(INVALID);
}

#[test]
fn nothing_but_connect_is_allowed_first() {
    let (mut world, _) = World::one_disk(1, 64);
    let wire = world.open(0);
    let identify = Command::Identify(Identify::new(Cns::Controller)).to_sqe(0);
    let refused = Status::COMMAND_SEQUENCE_ERROR.with_dnr();
    world.execute(wire, identify, &[], 4096).failed(refused);
    let get = PropertyGet { size: PropertySize::Eight, offset: Property::Capabilities.offset() };
    world.execute(wire, get.to_sqe(), &[], 0).failed(refused);
    world.connect(wire, &Attempt::admin()).ok();
    world.execute(wire, get.to_sqe(), &[], 0).ok();
    world.execute(wire, identify, &[], 4096).failed(refused);
}

/// nvme-cli's show-regs walks over all of them and stops at any other status.
#[test]
fn absent_properties_are_refused_without_dnr() {
    let (mut world, _) = World::one_disk(1, 64);
    let (admin, _) = world.controller(0);
    // INTMS, NSSR, AQA; ASQ.
    for (offset, size) in [
        (0x0c, PropertySize::Four),
        (0x20, PropertySize::Four),
        (0x24, PropertySize::Four),
        (0x28, PropertySize::Eight),
    ] {
        let get = PropertyGet { size, offset }.to_sqe();
        world.execute(admin, get, &[], 0).failed(Status::INVALID_FIELD);
    }
    let misread = PropertyGet { size: PropertySize::Four, offset: Property::Capabilities.offset() };
    world.execute(admin, misread.to_sqe(), &[], 0).failed(Status::INVALID_FIELD.with_dnr());
}

#[test]
fn sqhd_follows_the_queue_size_or_is_absent() {
    let (mut world, _) = World::one_disk(1, 64);
    let get = PropertyGet { size: PropertySize::Four, offset: Property::Status.offset() };
    let wire = world.open(0);
    let mut attempt = Attempt::admin();
    attempt.command.sqsize = 3;
    let mut heads = vec![world.connect(wire, &attempt).ok().cqe.sqhd.get()];
    for _ in 0..5 {
        heads.push(world.execute(wire, get.to_sqe(), &[], 0).ok().cqe.sqhd.get());
    }
    assert_eq!(heads, [1, 2, 3, 0, 1, 2]);
    let wire = world.open(0);
    attempt.command.cattr.disable_sq_flow_control = true;
    assert_eq!(world.connect(wire, &attempt).ok().cqe.sqhd.get(), 0xffff);
    assert_eq!(world.execute(wire, get.to_sqe(), &[], 0).ok().cqe.sqhd.get(), 0xffff);
}

#[test]
fn a_queue_without_connect_is_ended() {
    let (mut world, _) = World::one_disk(1, 64);
    let wire = world.open(0);
    world.pass(std::time::Duration::from_secs(9));
    assert!(world.wires[&wire].disconnected.is_none());
    world.pass(std::time::Duration::from_secs(2));
    assert_eq!(world.disconnected(wire), target::DisconnectReason::NoConnect);
    world.close(wire);
    world.assert_clean();
}
