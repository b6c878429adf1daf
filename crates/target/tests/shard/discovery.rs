//! Discovery controllers.

use std::time::Duration;

use nvme::Status;
use nvme::admin::{Command, GetLogPage};
use nvme::log::LogPage;
use target::DisconnectReason;

use crate::harness::{Attempt, NQN, World};

#[test]
fn the_log_names_what_the_host_may_use() {
    let (mut world, _) = World::one_disk(2, 64);
    let (admin, _) = world.controller_of(1, &Attempt::discovery());
    let get = Command::GetLogPage(GetLogPage::new(LogPage::Discovery, 0, 3072)).to_sqe(0);
    let log = world.execute(admin, get, &[], 3072).ok().data;
    assert_eq!(u64::from_le_bytes(log[8..16].try_into().unwrap()), 2, "records");
    let name = &log[2048 + 256..2048 + 256 + NQN.len()];
    assert_eq!(name, NQN.as_bytes());
}

#[test]
fn it_has_no_io_queues() {
    let (mut world, _) = World::one_disk(1, 64);
    let (_, cntlid) = world.controller_of(0, &Attempt::discovery());
    let io = world.open(0);
    world
        .connect(io, &Attempt::io(cntlid, 1))
        .failed(Status::CONNECT_INVALID_PARAMETERS.with_dnr());
}

#[test]
fn a_forgotten_one_is_reaped() {
    let (mut world, _) = World::one_disk(1, 64);
    let (admin, _) = world.controller_of(0, &Attempt::discovery());
    world.pass(Duration::from_secs(119));
    assert!(world.wires[&admin].disconnected.is_none());
    world.pass(Duration::from_secs(2));
    assert_eq!(world.disconnected(admin), DisconnectReason::KeepAlive);
    world.close(admin);
    world.assert_clean();
}

#[test]
fn a_persistent_one_lives_by_its_keep_alive() {
    let (mut world, _) = World::one_disk(1, 64);
    let (admin, _) = world.controller_of(0, &Attempt::discovery().kato(30_000));
    for _ in 0..10 {
        world.pass(Duration::from_secs(25));
        world.execute(admin, Command::KeepAlive.to_sqe(0), &[], 0).ok();
    }
    world.pass(Duration::from_secs(36));
    assert_eq!(world.disconnected(admin), DisconnectReason::KeepAlive);
}
