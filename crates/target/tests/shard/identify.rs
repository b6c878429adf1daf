//! Identify of what is not on one shard: the controllers of a subsystem.

use nvme::Status;
use nvme::admin::{Command, Identify};
use nvme::identify::{Cns, ControllerList};
use target::DisconnectReason;
use target::configuration::{Hosts, SubsystemOptions};
use zerocopy::FromBytes;

use crate::harness::{Attempt, NQN, Wire, World, nqn};

const OTHER: &str = "nqn.2026-11.io.example:other-disk";

fn ask(cns: Cns, cntid: u16) -> Command {
    Command::Identify(Identify { cntid, ..Identify::new(cns) })
}

#[track_caller]
fn list(world: &mut World, admin: Wire, cns: Cns, from: u16) -> Vec<u16> {
    let answer = world.execute(admin, ask(cns, from).to_sqe(1), &[], 4096).ok();
    ControllerList::read_from_bytes(&answer.data).unwrap().iter().collect()
}

/// Two subsystems with controllers on each of the shards; the admin queues and identifiers of the first's.
fn world(shards: u16) -> (World, Vec<(Wire, u16)>) {
    let (mut world, _) = World::one_disk(shards, 64);
    let mut builder = world.shards[0].configuration().change();
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    builder.add_subsystem(nqn(OTHER), options).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    let mut controllers = Vec::new();
    for host in 1..=2 {
        for shard in (0..usize::from(shards)).rev() {
            let host = Attempt::admin().host("nqn.2026-11.io.example:host", host);
            controllers.push(world.controller_of(shard, &host.clone().subsystem(NQN)));
            world.controller_of(shard, &host.subsystem(OTHER));
        }
    }
    controllers.sort_by_key(|(_, cntlid)| *cntlid);
    (world, controllers)
}

#[test]
fn the_controllers_of_all_shards_are_listed() {
    for shards in 1..=3 {
        let (mut world, controllers) = world(shards);
        let cntlids: Vec<u16> = controllers.iter().map(|(_, cntlid)| *cntlid).collect();
        for (admin, own) in &controllers {
            for cns in [Cns::Controllers, Cns::AttachedControllers] {
                assert_eq!(list(&mut world, *admin, cns, 0), cntlids);
                let from_own = cntlids.iter().copied().filter(|cntlid| cntlid >= own);
                assert_eq!(list(&mut world, *admin, cns, *own), from_own.collect::<Vec<_>>());
                assert_eq!(list(&mut world, *admin, cns, u16::MAX), []);
            }
        }
        let nobody = ask(Cns::AttachedControllers, 0).to_sqe(2);
        let refused = world.execute(controllers[0].0, nobody, &[], 4096);
        refused.failed(Status::INVALID_NAMESPACE.with_dnr());
        let sets = |cntid| ask(Cns::CommandSets, cntid).to_sqe(0);
        for cntlid in cntlids.iter().copied().chain([u16::MAX]) {
            world.execute(controllers[0].0, sets(cntlid), &[], 4096).ok();
        }
        let unknown = world.execute(controllers[0].0, sets(0xffef), &[], 4096);
        unknown.failed(Status::INVALID_FIELD.with_dnr());
    }
}

#[test]
fn a_controller_is_listed_until_its_admin_queue_is_gone() {
    let (mut world, controllers) = world(2);
    let (admin, _) = controllers[0];
    let (gone, cntlid) = controllers[1];
    let io = world.io_queue(0, cntlid, 1);
    world.close(gone);
    // Its I/O queue, whose connection is still there, keeps it from being forgotten.
    assert_eq!(world.disconnected(io), DisconnectReason::ControllerGone);
    let left: Vec<u16> = [0, 2, 3].map(|at: usize| controllers[at].1).to_vec();
    assert_eq!(list(&mut world, admin, Cns::Controllers, 0), left);
    world.close(io);
    assert_eq!(list(&mut world, admin, Cns::Controllers, 0), left);
}

#[test]
fn a_roll_whose_asker_is_gone_is_dropped() {
    let (mut world, controllers) = world(3);
    world.hold_mail = true;
    let (admin, cntlid) = controllers[1];
    assert_ne!(cntlid % 3, 0, "not the first that is asked");
    world.submit(admin, ask(Cns::Controllers, 0).to_sqe(0), &[], 4096);
    assert!(world.is_waiting(admin));
    world.close(admin);
    world.hold_mail = false;
    world.run();
    let left: Vec<u16> = [0, 2, 3, 4, 5].map(|at: usize| controllers[at].1).to_vec();
    assert_eq!(list(&mut world, controllers[0].0, Cns::Controllers, 0), left);
    for wire in world.wires.keys().copied().collect::<Vec<_>>() {
        world.close(wire);
    }
    world.assert_clean();
}
