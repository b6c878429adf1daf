//! What a host may not see, and what it may not reach where it is.

use std::sync::Arc;

use nvme::address::{TransportAddress, TransportType};
use nvme::admin::{Command, GetFeatures, GetLogPage, Identify, SetFeatures};
use nvme::event::Event;
use nvme::feature::{AsynchronousEvents, Feature};
use nvme::identify::{Cns, ControllerList, IdentifyController, IdentifyNamespace, NamespaceList};
use nvme::log::{ANA_RETURN_GROUPS_ONLY, AnaGroup, AnaHeader, AnaState, LogPage};
use nvme::{NSID_ALL, Sqe, Status, io};
use target::configuration::{
    Ana, AnaStates, Configuration, Hosts, Listener, ListenerId, NamespaceOptions, SubsystemOptions,
};
use zerocopy::FromBytes;

use crate::device::TestDevice;
use crate::harness::{Attempt, HOST, NQN, Wire, World, configuration_with, nqn};

const OTHER_HOST: &str = "nqn.2026-11.io.example:other-host";
/// The second way in; the first is the harness's.
const SECOND: &str = "127.0.0.1:4421";

fn event() -> Sqe {
    Command::AsynchronousEventRequest.to_sqe(0)
}

fn read(nsid: u32) -> Sqe {
    io::Command::Read(io::Transfer::new(0, 1)).to_sqe(nsid)
}

fn write(nsid: u32) -> Sqe {
    io::Command::Write(io::Transfer::new(0, 1)).to_sqe(nsid)
}

fn flush_all() -> Sqe {
    io::Command::Flush.to_sqe(NSID_ALL)
}

/// What is said of a listener: the state of every group, and of one.
type Said = (u16, AnaState, Option<(u32, AnaState)>);

fn with_states(before: &Arc<Configuration>, listeners: &[Said]) -> Arc<Configuration> {
    let states = listeners.iter().map(|(id, every, one)| {
        (ListenerId(*id), AnaStates { every: *every, groups: one.iter().copied().collect() })
    });
    with_ana(before, Some(states.collect()))
}

fn hosts(names: &[&str]) -> Hosts {
    names.iter().map(|name| nqn(name)).collect()
}

fn with_ana(before: &Arc<Configuration>, ana: Option<Ana>) -> Arc<Configuration> {
    let mut builder = before.change();
    let options = before.subsystem(&nqn(NQN)).unwrap().options().clone();
    builder.change_subsystem(&nqn(NQN), SubsystemOptions { ana, ..options }).unwrap();
    builder.build().unwrap()
}

fn change(
    before: &Arc<Configuration>,
    nsid: u32,
    edit: impl FnOnce(&mut NamespaceOptions),
) -> Arc<Configuration> {
    let mut builder = before.change();
    let namespace = before.subsystem(&nqn(NQN)).unwrap().namespace(nsid).unwrap();
    let mut options = namespace.options().clone();
    edit(&mut options);
    builder.change_namespace(&nqn(NQN), options).unwrap();
    builder.build().unwrap()
}

/// Namespaces 1, 2 and 3 in the groups 1, 7 and 7, reached by two listeners.
fn world(shards: u16) -> (World, Arc<Configuration>, [Arc<TestDevice>; 3]) {
    let disks = [1, 2, 3].map(|nsid| TestDevice::new(&format!("disk{nsid}"), 64));
    let options = SubsystemOptions {
        hosts: Hosts::Any,
        ana: Some(Ana::default()),
        ..SubsystemOptions::default()
    };
    let first = configuration_with(&[(1, &disks[0]), (2, &disks[1]), (3, &disks[2])], options);
    let mut builder = first.change();
    let (traddr, trsvcid) = ("127.0.0.1".parse().unwrap(), 4421);
    let address = TransportAddress { trtype: TransportType::Tcp, traddr, trsvcid };
    builder.add_listener(Listener { id: ListenerId(2), address }).unwrap();
    for nsid in [2, 3] {
        let namespace = first.subsystem(&nqn(NQN)).unwrap().namespace(nsid).unwrap();
        let options = NamespaceOptions { ana_group: 7, ..namespace.options().clone() };
        builder.change_namespace(&nqn(NQN), options).unwrap();
    }
    let snapshot = builder.build().unwrap();
    let mut world = World::new(shards);
    world.configure(&snapshot, &disks.each_ref());
    (world, snapshot, disks)
}

#[track_caller]
fn identify<T: FromBytes>(world: &mut World, admin: Wire, cns: Cns, nsid: u32) -> T {
    let sqe = Command::Identify(Identify::new(cns)).to_sqe(nsid);
    T::read_from_bytes(&world.execute(admin, sqe, &[], 4096).ok().data).unwrap()
}

fn ana_log(lsp: u8, length: u64) -> Sqe {
    Command::GetLogPage(GetLogPage { lsp, ..GetLogPage::new(LogPage::Ana, 0, length) }).to_sqe(0)
}

/// The change count, and each group with its state and its namespaces.
#[track_caller]
fn groups(world: &mut World, admin: Wire, lsp: u8) -> (u64, Vec<(u32, AnaState, Vec<u32>)>) {
    let page = world.execute(admin, ana_log(lsp, 1024), &[], 1024).ok().data;
    let (header, mut rest) = AnaHeader::read_from_prefix(&page).unwrap();
    let mut groups = Vec::new();
    for _ in 0..header.ngrps.get() {
        let (group, after) = AnaGroup::read_from_prefix(rest).unwrap();
        let (nsids, after) = after.split_at(4 * group.nnsids.get() as usize);
        let nsids = nsids.chunks(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect();
        groups.push((group.grpid.get(), AnaState::try_from(group.state).unwrap(), nsids));
        rest = after;
    }
    assert!(rest.iter().all(|byte| *byte == 0));
    (header.chgcnt.get(), groups)
}

#[track_caller]
fn changed(world: &mut World, admin: Wire) -> Vec<u32> {
    let get = GetLogPage::new(LogPage::ChangedNamespaces, 0, 4096);
    let page = world.execute(admin, Command::GetLogPage(get).to_sqe(0), &[], 4096).ok();
    let words = page.data.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.take_while(|nsid| *nsid != 0).collect()
}

#[test]
fn each_state_is_reported_and_answered_as_the_specification_says() {
    for (state, status) in [
        (AnaState::Optimized, Status::SUCCESS),
        (AnaState::NonOptimized, Status::SUCCESS),
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
    ] {
        let (mut world, snapshot, disks) = world(2);
        let (admin, cntlid) = world.controller(0);
        let io = world.io_queue(1, cntlid, 1);
        world
            .configure(&with_states(&snapshot, &[(1, AnaState::Optimized, Some((7, state)))]), &[]);
        for disk in &disks {
            disk.done();
        }
        // The other group is as it was.
        world.execute(io, write(1), &[1; 512], 0).ok();
        for nsid in [2, 3] {
            world.execute(io, write(nsid), &[1; 512], 0).failed(status);
            world.execute(io, read(nsid), &[], 512).failed(status);
            world.execute(io, io::Command::Flush.to_sqe(nsid), &[], 0).failed(status);
            let touched = !disks[nsid as usize - 1].done().is_empty();
            assert_eq!(touched, status.is_success(), "{state}");
        }
        world.execute(io, flush_all(), &[], 0).failed(status);
        assert_eq!(
            groups(&mut world, admin, 0),
            (1, vec![(1, AnaState::Optimized, vec![1]), (7, state, vec![2, 3])])
        );
        let namespace: IdentifyNamespace = identify(&mut world, admin, Cns::Namespace, 2);
        let lost = matches!(state, AnaState::Inaccessible | AnaState::PersistentLoss);
        assert_eq!(namespace.anagrpid.get(), 7);
        assert_eq!((namespace.nsze.get(), namespace.ncap.get()), (64, 64));
        assert_eq!(namespace.nuse.get(), if lost { 0 } else { 64 }, "{state}");
        // Features of the namespace, as far as the specification takes them away.
        let get = |feature, nsid| Command::GetFeatures(GetFeatures::new(feature)).to_sqe(nsid);
        world.execute(admin, get(Feature::ErrorRecovery, 2), &[], 0).failed(status);
        world.execute(admin, get(Feature::ErrorRecovery, 1), &[], 0).ok();
        world.execute(admin, get(Feature::Arbitration, 2), &[], 0).ok();
        let set = Command::SetFeatures(SetFeatures::new(Feature::Arbitration, 0)).to_sqe(2);
        let expected = if state == AnaState::PersistentLoss {
            status
        } else {
            Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr()
        };
        world.execute(admin, set, &[], 0).failed(expected);
    }
}

#[test]
fn a_controller_has_the_states_of_its_own_listener() {
    let (mut world, snapshot, _) = world(2);
    let (one, first) = world.controller(0);
    let (two, second) = world.controller_at(1, SECOND, &Attempt::admin());
    let states = [
        (1, AnaState::Optimized, None),
        (2, AnaState::NonOptimized, Some((1, AnaState::Inaccessible))),
    ];
    world.configure(&with_states(&snapshot, &states), &[]);
    // I/O queues have them of their controller, wherever they are themselves.
    let mut queues = Vec::new();
    for shard in [0, 1] {
        queues.push((world.io_queue(shard, first, shard as u16 + 1), Status::SUCCESS));
        queues.push((world.io_queue(shard, second, shard as u16 + 1), Status::ANA_INACCESSIBLE));
    }
    for (io, status) in queues {
        world.execute(io, read(1), &[], 512).failed(status);
        world.execute(io, read(2), &[], 512).ok();
    }
    let state = |world: &mut World, admin| {
        groups(world, admin, 0).1.into_iter().map(|(_, state, _)| state).collect::<Vec<_>>()
    };
    assert_eq!(state(&mut world, one), [AnaState::Optimized, AnaState::Optimized]);
    assert_eq!(state(&mut world, two), [AnaState::Inaccessible, AnaState::NonOptimized]);
}

#[test]
fn only_the_controllers_of_a_listener_hear_of_its_states() {
    let (mut world, mut snapshot, _) = world(2);
    let (one, _) = world.controller(0);
    let (two, _) = world.controller_at(1, SECOND, &Attempt::admin());
    for admin in [one, two] {
        world.submit(admin, event(), &[], 0);
        world.submit(admin, event(), &[], 0);
    }
    snapshot = with_states(&snapshot, &[(2, AnaState::Inaccessible, None)]);
    world.configure(&snapshot, &[]);
    let told = world.wait(two).ok();
    assert_eq!(Event::from_dw0(told.cqe.dw0()), Ok(Event::ANA_CHANGE));
    snapshot = with_states(&snapshot, &[(2, AnaState::Optimized, None)]);
    world.configure(&snapshot, &[]);
    assert!(world.is_waiting(two), "not again before the page is read");
    assert_eq!(groups(&mut world, two, 0).0, 2, "changes");
    // Another kind of notice does not wait for it; and a group that changes is no changed namespace.
    snapshot = change(&snapshot, 1, |it| it.read_only = true);
    world.configure(&snapshot, &[]);
    let told = world.wait(two).ok();
    assert_eq!(Event::from_dw0(told.cqe.dw0()), Ok(Event::NAMESPACE_CHANGED));
    assert_eq!(changed(&mut world, two), [1]);
    world.submit(two, event(), &[], 0);
    snapshot = change(&snapshot, 1, |it| it.ana_group = 5);
    world.configure(&snapshot, &[]);
    let told = world.wait(two).ok();
    assert_eq!(Event::from_dw0(told.cqe.dw0()), Ok(Event::ANA_CHANGE));
    assert_eq!(changed(&mut world, two), []);
    let expected = vec![(5, AnaState::Optimized, vec![1]), (7, AnaState::Optimized, vec![2, 3])];
    assert_eq!(groups(&mut world, two, 0), (3, expected));
    // The other one heard of what was its own, too.
    for expected in [Event::NAMESPACE_CHANGED, Event::ANA_CHANGE] {
        let told = world.wait(one).ok();
        assert_eq!(Event::from_dw0(told.cqe.dw0()), Ok(expected));
    }
    assert_eq!(groups(&mut world, one, 0).0, 1);
}

#[test]
fn the_page_of_states_can_be_read_in_parts_and_without_namespaces() {
    let (mut world, _, _) = world(1);
    let (admin, _) = world.controller(0);
    let groups_only = groups(&mut world, admin, ANA_RETURN_GROUPS_ONLY).1;
    let expected = [(1, AnaState::Optimized, Vec::new()), (7, AnaState::Optimized, Vec::new())];
    assert_eq!(groups_only, expected);
    let part = |offset, length| {
        Command::GetLogPage(GetLogPage::new(LogPage::Ana, offset, length)).to_sqe(0)
    };
    let whole = world.execute(admin, part(0, 92), &[], 92).ok().data;
    for offset in (0..92_u32).step_by(4) {
        let rest =
            world.execute(admin, part(offset.into(), (92 - offset).into()), &[], 92 - offset);
        assert_eq!(rest.ok().data, whole[offset as usize..]);
    }
    let beyond = world.execute(admin, part(96, 4), &[], 4);
    beyond.failed(Status::INVALID_FIELD.with_dnr());
}

#[test]
fn what_is_not_reported_is_not_there() {
    let (mut world, snapshot, _) = world(1);
    world.configure(&with_ana(&snapshot, None), &[]);
    let (admin, _) = world.controller(0);
    let controller: IdentifyController = identify(&mut world, admin, Cns::Controller, 0);
    assert_eq!((controller.cmic & 1 << 3, controller.anacap), (0, 0));
    assert_eq!(controller.oaes.get() & AsynchronousEvents::ANA.bits(), 0);
    let namespace: IdentifyNamespace = identify(&mut world, admin, Cns::Namespace, 2);
    assert_eq!(namespace.anagrpid.get(), 0);
    world.execute(admin, ana_log(0, 64), &[], 64).failed(Status::INVALID_LOG_PAGE.with_dnr());
    world.configure(&snapshot, &[]);
    let (admin, _) = world.controller(0);
    let controller: IdentifyController = identify(&mut world, admin, Cns::Controller, 0);
    assert_eq!((controller.cmic & 1 << 3, controller.anacap, controller.anatt), (1 << 3, 0x1f, 10));
    assert_eq!((controller.anagrpmax.get(), controller.nanagrpid.get()), (1024, 1024));
    assert_ne!(controller.oaes.get() & AsynchronousEvents::ANA.bits(), 0);
}

#[test]
fn a_command_that_waited_is_held_against_the_state_of_its_end() {
    let (mut world, snapshot, disks) = world(1);
    let (_, cntlid) = world.controller(0);
    let io = world.io_queue(0, cntlid, 1);
    // Its data is still to come when the path closes.
    world.wires.get_mut(&io).unwrap().lazy = true;
    world.submit(io, io::Command::Write(io::Transfer::new(0, 16)).to_sqe(2), &[1; 8192], 0);
    world.run();
    world.configure(&with_states(&snapshot, &[(1, AnaState::Inaccessible, None)]), &[]);
    let (request, length) = world.wires.get_mut(&io).unwrap().receives.pop_front().unwrap();
    world.receive(io, request, length);
    world.wait(io).failed(Status::ANA_INACCESSIBLE);
    assert_eq!(disks[1].done(), []);
}

#[test]
fn a_hidden_namespace_is_not_there() {
    let (mut world, mut snapshot, disks) = world(2);
    snapshot = change(&snapshot, 2, |it| it.visible_to = hosts(&[OTHER_HOST]));
    world.configure(&snapshot, &[]);
    let (admin, cntlid) = world.controller(0);
    let (other, sees) = world.controller_of(1, &Attempt::admin().host(OTHER_HOST, 2));
    let io = world.io_queue(1, cntlid, 1);
    for cns in [Cns::ActiveNamespaces, Cns::AllocatedNamespaces] {
        let list: NamespaceList = identify(&mut world, admin, cns, 0);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 3]);
        let list: NamespaceList = identify(&mut world, other, cns, 0);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }
    for cns in [Cns::Namespace, Cns::AllocatedNamespace] {
        let nothing: IdentifyNamespace = identify(&mut world, admin, cns, 2);
        assert_eq!(nothing, IdentifyNamespace::default());
    }
    let invalid = Status::INVALID_NAMESPACE.with_dnr();
    for cns in [Cns::NamespaceDescriptors, Cns::AttachedControllers] {
        let sqe = Command::Identify(Identify::new(cns)).to_sqe(2);
        world.execute(admin, sqe, &[], 4096).failed(invalid);
    }
    let attached: ControllerList = identify(&mut world, other, Cns::AttachedControllers, 2);
    assert_eq!(attached.iter().collect::<Vec<_>>(), [sees]);
    world.execute(io, read(2), &[], 512).failed(invalid);
    world.execute(io, write(2), &[1; 512], 0).failed(invalid);
    assert_eq!(disks[1].done(), []);
    // Of all namespaces it is none.
    world.execute(io, write(1), &[1; 512], 0).ok();
    world.execute(io, flush_all(), &[], 0).ok();
    assert_eq!(disks[1].done(), []);
    assert_eq!(
        groups(&mut world, admin, 0).1,
        [(1, AnaState::Optimized, vec![1]), (7, AnaState::Optimized, vec![3])]
    );
}

#[test]
fn only_those_hear_of_a_namespace_who_see_it_come_or_go() {
    let (mut world, mut snapshot, _) = world(2);
    let (admin, cntlid) = world.controller(0);
    let (other, _) = world.controller_of(1, &Attempt::admin().host(OTHER_HOST, 2));
    let io = world.io_queue(1, cntlid, 1);
    for admin in [admin, other] {
        for _ in 0..4 {
            world.submit(admin, event(), &[], 0);
        }
    }
    snapshot = change(&snapshot, 2, |it| it.visible_to = hosts(&[OTHER_HOST]));
    world.configure(&snapshot, &[]);
    let told = world.wait(admin).ok();
    assert_eq!(Event::from_dw0(told.cqe.dw0()), Ok(Event::NAMESPACE_CHANGED));
    assert!(world.is_waiting(other), "nothing has changed for it");
    assert_eq!(changed(&mut world, admin), [2]);
    // Nor does the host hear of what becomes of a namespace that it cannot see.
    snapshot = change(&snapshot, 2, |it| it.read_only = true);
    world.configure(&snapshot, &[]);
    world.wait(other).ok();
    assert!(world.is_waiting(admin));
    assert_eq!(changed(&mut world, other), [2]);
    // It comes back, and can be used at once.
    snapshot = change(&snapshot, 2, |it| it.visible_to = hosts(&[HOST, OTHER_HOST]));
    world.configure(&snapshot, &[]);
    world.wait(admin).ok();
    assert!(world.is_waiting(other));
    assert_eq!(changed(&mut world, admin), [2]);
    world.execute(io, read(2), &[], 512).ok();
}
