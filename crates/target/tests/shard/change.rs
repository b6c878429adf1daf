//! The configuration changes under way.

use std::sync::Arc;
use std::time::Duration;

use nvme::Status;
use nvme::io::{Command, Transfer};
use target::DisconnectReason;
use target::configuration::{Hosts, NamespaceOptions, NamespaceState, SubsystemOptions};

use crate::device::TestDevice;
use crate::harness::{Attempt, HOST, NQN, Wire, World, configuration, configuration_with, nqn};

fn read(nsid: u32) -> nvme::Sqe {
    Command::Read(Transfer::new(0, 1)).to_sqe(nsid)
}

#[test]
fn a_removed_namespace_is_refused_at_once_and_closed_when_empty() {
    let disks = [TestDevice::new("disk0", 64), TestDevice::new("disk1", 64)];
    let mut world = World::new(2);
    let first = configuration(&[(1, &disks[0]), (2, &disks[1])]);
    world.configure(&first, &[&disks[0], &disks[1]]);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    disks[1].stick(true);
    world.submit(io, read(2), &[], 512);
    world.run();
    let mut builder = first.change();
    builder.remove_namespace(&nqn(NQN), 2).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    world.execute(io, read(2), &[], 512).failed(Status::INVALID_NAMESPACE.with_dnr());
    world.execute(io, read(1), &[], 512).ok();
    assert_eq!(disks[1].queues(), 1, "the one with the read in it");
    disks[1].stick(false);
    world.wait(io).ok();
    assert_eq!(disks[1].queues(), 0);
    assert_eq!(disks[0].queues(), 2);
}

#[test]
fn a_missing_device_is_retryable_until_it_comes() {
    let disks = [TestDevice::new("disk0", 64), TestDevice::new("disk1", 64)];
    let mut world = World::new(1);
    let first = configuration(&[(1, &disks[0])]);
    let mut builder = first.change();
    builder.add_namespace(&nqn(NQN), NamespaceOptions::waiting(2, "disk1".to_owned())).unwrap();
    let waiting = builder.build().unwrap();
    world.configure(&waiting, &[&disks[0], &disks[1]]);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    world.execute(io, read(2), &[], 512).failed(Status::NAMESPACE_NOT_READY);
    let mut builder = waiting.change();
    let device: Arc<TestDevice> = Arc::clone(&disks[1]);
    builder.set_namespace_state(&nqn(NQN), 2, NamespaceState::Ready(device)).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    world.execute(io, read(2), &[], 512).ok();
}

#[test]
fn a_host_that_is_no_longer_listed_is_dropped() {
    let disk = TestDevice::new("disk0", 64);
    let listed = |hosts: &[&str]| SubsystemOptions {
        hosts: hosts.iter().map(|host| nqn(host)).collect::<Hosts>(),
        ..SubsystemOptions::default()
    };
    let mut world = World::new(2);
    let other = "nqn.2026-11.io.example:other";
    let first = configuration_with(&[(1, &disk)], listed(&[HOST, other]));
    world.configure(&first, &[&disk]);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let (stays, _) = world.controller_of(1, &Attempt::admin().host(other, 2));
    let mut builder = first.change();
    builder.change_subsystem(&nqn(NQN), listed(&[other])).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    assert_eq!(world.disconnected(admin), DisconnectReason::Configuration);
    assert_eq!(world.disconnected(io), DisconnectReason::Configuration);
    assert!(world.wires[&stays].disconnected.is_none());
    assert_eq!(disk.queues(), 2, "the namespace is still the same");
}

#[test]
fn a_removed_subsystem_takes_everything_along() {
    let disk = TestDevice::new("disk0", 64);
    let mut world = World::new(2);
    let first = configuration(&[(1, &disk)]);
    world.configure(&first, &[&disk]);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let mut builder = first.change();
    builder.remove_subsystem(&nqn(NQN)).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    assert_eq!(disk.queues(), 0);
    assert_eq!(world.disconnected(admin), DisconnectReason::Configuration);
    world.close(admin);
    world.close(io);
    world.assert_clean();
    // And may come back.
    let mut builder = world.shards[0].configuration().change();
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    builder.add_subsystem(nqn(NQN), options).unwrap();
    let device: Arc<TestDevice> = Arc::clone(&disk);
    builder.add_namespace(&nqn(NQN), NamespaceOptions::new(1, device)).unwrap();
    world.configure(&builder.build().unwrap(), &[&disk]);
    let (_, cntlid) = world.controller(1);
    let io = world.io_queue(0, cntlid, 1);
    world.execute(io, read(1), &[], 512).ok();
}

/// A host with another path goes there: the namespace is not gone, this way to it is.
#[test]
fn a_shard_that_has_removed_a_subsystem_before_its_queues_end_names_the_path() {
    let disk = TestDevice::new("disk0", 64);
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    let mut world = World::new(2);
    let first = configuration_with(&[(1, &disk)], options);
    world.configure(&first, &[&disk]);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    world.execute(io, read(1), &[], 512).ok();
    let mut builder = first.change();
    builder.remove_subsystem(&nqn(NQN)).unwrap();
    world.configure_shard(1, &builder.build().unwrap());
    assert_eq!(world.execute(io, read(1), &[], 512).status(), Status::INTERNAL_PATH_ERROR);
    let flush = Command::Flush.to_sqe(nvme::NSID_ALL);
    assert_eq!(world.execute(io, flush, &[], 0).status(), Status::INTERNAL_PATH_ERROR);
}

#[test]
fn a_removed_listener_takes_those_who_came_by_it() {
    let disk = TestDevice::new("disk0", 64);
    let options = SubsystemOptions {
        hosts: Hosts::Any,
        reach: [target::configuration::ListenerId(1)].into_iter().collect(),
        ..SubsystemOptions::default()
    };
    let mut world = World::new(1);
    let first = configuration_with(&[(1, &disk)], options.clone());
    world.configure(&first, &[&disk]);
    let (admin, _) = world.controller(0);
    let mut builder = first.change();
    let options = SubsystemOptions { reach: std::iter::empty().collect(), ..options };
    builder.change_subsystem(&nqn(NQN), options).unwrap();
    builder.remove_listener(target::configuration::ListenerId(1)).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    assert_eq!(world.disconnected(admin), DisconnectReason::Configuration);
}

const LATER: &str = "nqn.2026-11.io.example:later";

/// Shard 1 runs a configuration with another subsystem, and with a host that the first did not admit before;
/// shard 0 has not even been told that there is one.
fn one_shard_ahead() -> (World, Arc<target::configuration::Configuration>) {
    let mut world = World::new(2);
    let listed = SubsystemOptions { hosts: Hosts::from_iter([]), ..SubsystemOptions::default() };
    let first = configuration_with(&[], listed.clone());
    world.configure(&first, &[]);
    let open = SubsystemOptions { hosts: Hosts::Any, ..listed };
    let mut builder = first.change();
    builder.add_subsystem(nqn(LATER), open.clone()).unwrap();
    builder.change_subsystem(&nqn(NQN), open).unwrap();
    let second = builder.build().unwrap();
    world.configure_shard(1, &second);
    (world, second)
}

/// Connects on shard 0 that it cannot know to be good.
fn connect_early(world: &mut World) -> Vec<Wire> {
    [Attempt::admin().subsystem(LATER), Attempt::admin()]
        .iter()
        .map(|attempt| {
            let wire = world.open(0);
            world.begin_connect(wire, attempt);
            wire
        })
        .collect()
}

#[test]
fn a_shard_that_is_behind_lets_a_connect_wait() {
    let (mut world, second) = one_shard_ahead();
    let wires = connect_early(&mut world);
    for wire in &wires {
        assert!(world.is_waiting(*wire));
    }
    // The one that is ahead knows all there is.
    let unknown = Attempt::admin().subsystem("nqn.2026-11.io.example:none");
    let wire = world.open(1);
    let refused = Status::CONNECT_INVALID_PARAMETERS.with_dnr();
    world.connect(wire, &unknown).failed(refused);
    let wire = world.open(0);
    world.begin_connect(wire, &unknown);
    assert!(world.is_waiting(wire));
    world.configure_shard(0, &second);
    for wire in wires {
        world.wait(wire).ok();
    }
    world.wait(wire).failed(refused);
    world.connect(wire, &unknown).failed(refused);
}

#[test]
fn a_shard_that_stays_behind_asks_to_be_tried_again() {
    let (mut world, second) = one_shard_ahead();
    let wires = connect_early(&mut world);
    world.pass(Duration::from_secs(6));
    for wire in &wires {
        world.wait(*wire).failed(Status::CONNECT_CONTROLLER_BUSY);
    }
    world.configure_shard(0, &second);
    world.connect(wires[0], &Attempt::admin().subsystem(LATER)).ok();
    world.connect(wires[1], &Attempt::admin()).ok();
}

#[test]
fn a_host_that_goes_while_its_connect_waits_leaves_nothing() {
    let (mut world, second) = one_shard_ahead();
    let wires = connect_early(&mut world);
    world.run();
    for wire in wires {
        world.close(wire);
    }
    world.configure_shard(0, &second);
    world.pass(Duration::from_secs(1));
    world.assert_clean();
}

/// How much a shard looks at to take on one more namespace, while that many other subsystems each have a
/// namespace and a host.
fn looked_at_among(others: u8) -> u64 {
    let disks: Vec<_> =
        (0..=others).map(|number| TestDevice::new(&format!("disk{number}"), 64)).collect();
    let mut world = World::new(1);
    let mut builder = target::configuration::Configuration::empty().change();
    let name = |number: u8| nqn(&format!("{NQN}-{number}"));
    for number in 0..others {
        let device: Arc<TestDevice> = Arc::clone(&disks[usize::from(number)]);
        let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
        builder.add_subsystem(name(number), options).unwrap();
        builder.add_namespace(&name(number), NamespaceOptions::new(1, device)).unwrap();
    }
    let crowded = builder.build().unwrap();
    world.configure(&crowded, &disks.iter().collect::<Vec<_>>());
    for number in 0..others {
        let wire = world.open(0);
        let attempt = Attempt::admin().subsystem(name(number).as_str());
        world.connect(wire, &attempt).ok();
    }
    let mut builder = crowded.change();
    let device: Arc<TestDevice> = Arc::clone(&disks[usize::from(others)]);
    builder.add_namespace(&name(0), NamespaceOptions::new(2, device)).unwrap();
    let before = world.shards[0].counters().configured;
    world.configure(&builder.build().unwrap(), &[]);
    world.shards[0].counters().configured - before
}

#[test]
fn a_change_costs_what_it_touches_and_not_what_there_is() {
    let few = looked_at_among(2);
    assert!(few > 0);
    assert_eq!(looked_at_among(200), few);
}
