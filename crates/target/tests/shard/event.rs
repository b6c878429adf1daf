//! Asynchronous events, and the logs behind them.

use std::sync::Arc;

use nvme::admin::{Command, GetLogPage, SetFeatures};
use nvme::event::Event;
use nvme::feature::Feature;
use nvme::log::LogPage;
use nvme::{Sqe, Status, io};
use target::configuration::{Configuration, NamespaceOptions};

use crate::device::TestDevice;
use crate::harness::{Attempt, NQN, Wire, World, configuration, nqn};

fn event() -> Sqe {
    Command::AsynchronousEventRequest.to_sqe(0)
}

fn log(page: LogPage, length: u64, retain: bool) -> Sqe {
    let mut get = GetLogPage::new(page, 0, length);
    get.rae = retain;
    Command::GetLogPage(get).to_sqe(0)
}

#[track_caller]
fn changed(world: &mut World, admin: Wire, retain: bool) -> Vec<u32> {
    let page = world.execute(admin, log(LogPage::ChangedNamespaces, 4096, retain), &[], 4096).ok();
    let words = page.data.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.take_while(|nsid| *nsid != 0).collect()
}

fn with_namespace(
    before: &Arc<Configuration>,
    nsid: u32,
    device: &Arc<TestDevice>,
) -> Arc<Configuration> {
    let mut builder = before.change();
    let device: Arc<TestDevice> = Arc::clone(device);
    builder.add_namespace(&nqn(NQN), NamespaceOptions::new(nsid, device)).unwrap();
    builder.build().unwrap()
}

#[test]
fn a_new_namespace_is_announced_once_until_the_log_is_read() {
    let disks: Vec<_> =
        (0..4).map(|number| TestDevice::new(&format!("disk{number}"), 64)).collect();
    let all: Vec<_> = disks.iter().collect();
    let mut world = World::new(2);
    let mut snapshot = configuration(&[(1, &disks[0])]);
    world.configure(&snapshot, &all);
    let (admin, cntlid) = world.controller(0);
    world.submit(admin, event(), &[], 0);
    world.submit(admin, event(), &[], 0);
    assert!(world.is_waiting(admin));
    snapshot = with_namespace(&snapshot, 2, &disks[1]);
    world.configure(&snapshot, &all);
    let finished = world.wait(admin).ok();
    assert_eq!(Event::from_dw0(finished.cqe.dw0()), Ok(Event::NAMESPACE_CHANGED));
    snapshot = with_namespace(&snapshot, 7, &disks[2]);
    world.configure(&snapshot, &all);
    assert!(world.is_waiting(admin), "it is not told twice");
    assert_eq!(changed(&mut world, admin, true), [2, 7]);
    assert_eq!(changed(&mut world, admin, false), [2, 7]);
    assert_eq!(changed(&mut world, admin, false), []);
    snapshot = with_namespace(&snapshot, 9, &disks[3]);
    world.configure(&snapshot, &all);
    world.wait(admin).ok();
    assert_eq!(changed(&mut world, admin, false), [9]);
    // And they can be used.
    let io = world.io_queue(1, cntlid, 1);
    let read = io::Command::Read(io::Transfer::new(0, 1));
    world.execute(io, read.to_sqe(9), &[], 512).ok();
}

#[test]
fn nothing_is_said_before_every_shard_knows() {
    let disks = [TestDevice::new("disk0", 64), TestDevice::new("disk1", 64)];
    let mut world = World::new(2);
    let first = configuration(&[(1, &disks[0])]);
    world.configure(&first, &[&disks[0], &disks[1]]);
    let (admin, _) = world.controller(0);
    world.submit(admin, event(), &[], 0);
    let second = with_namespace(&first, 2, &disks[1]);
    world.configure_shard(0, &second);
    assert!(world.is_waiting(admin));
    world.configure_shard(1, &second);
    world.wait(admin).ok();
}

#[test]
fn what_happens_before_the_request_is_told_with_it() {
    let disks = [TestDevice::new("disk0", 64), TestDevice::new("disk1", 64)];
    let mut world = World::new(1);
    let first = configuration(&[(1, &disks[0])]);
    world.configure(&first, &[&disks[0], &disks[1]]);
    let (admin, _) = world.controller(0);
    world.configure(&with_namespace(&first, 2, &disks[1]), &[]);
    world.execute(admin, event(), &[], 0).ok();
}

#[test]
fn a_device_that_grows_is_announced() {
    let (mut world, device) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let read = io::Command::Read(io::Transfer::new(100, 1)).to_sqe(1);
    world.execute(io, read, &[], 512).failed(Status::LBA_OUT_OF_RANGE.with_dnr());
    world.submit(admin, event(), &[], 0);
    device.resize(128);
    world.pass(std::time::Duration::from_secs(1));
    world.wait(admin).ok();
    assert_eq!(changed(&mut world, admin, false), [1]);
    world.execute(io, read, &[], 512).ok();
}

#[test]
fn the_fifth_request_is_too_many_and_masks_hold() {
    let disks = [TestDevice::new("disk0", 64), TestDevice::new("disk1", 64)];
    let mut world = World::new(1);
    let first = configuration(&[(1, &disks[0])]);
    world.configure(&first, &[&disks[0], &disks[1]]);
    let (admin, _) = world.controller(0);
    let none = Command::SetFeatures(SetFeatures::new(Feature::AsynchronousEvents, 0));
    world.execute(admin, none.to_sqe(0), &[], 0).ok();
    for _ in 0..4 {
        world.submit(admin, event(), &[], 0);
    }
    assert!(world.is_waiting(admin));
    world.execute(admin, event(), &[], 0).failed(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr());
    world.configure(&with_namespace(&first, 2, &disks[1]), &[]);
    assert!(world.is_waiting(admin), "the host does not want it");
}

#[test]
fn errors_and_traffic_of_all_queues_are_in_the_logs() {
    let (mut world, device) = World::one_disk(2, 4096);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 3);
    let write = io::Command::Write(io::Transfer::new(0, 2000)).to_sqe(1);
    for _ in 0..3 {
        world.execute(io, write, &[1; 2000 * 512], 0).ok();
    }
    device.fail_next(block::ErrorKind::MediumRead);
    let read = io::Command::Read(io::Transfer::new(0x77, 1)).to_sqe(1);
    world.execute(io, read, &[], 512).failed(Status::UNRECOVERED_READ_ERROR);
    let errors = world.execute(admin, log(LogPage::ErrorInformation, 64, false), &[], 64).ok().data;
    assert_eq!(u64::from_le_bytes(errors[0..8].try_into().unwrap()), 1);
    assert_eq!(u16::from_le_bytes(errors[8..10].try_into().unwrap()), 3);
    assert_eq!(u64::from_le_bytes(errors[16..24].try_into().unwrap()), 0x77);
    let health = world.execute(admin, log(LogPage::Health, 512, false), &[], 512).ok().data;
    let number = |at: usize| u128::from_le_bytes(health[at..at + 16].try_into().unwrap());
    assert_eq!(number(48), 6, "data units written: 3 x 1,024,000 bytes in units of 512,000");
    assert_eq!(number(80), 3, "write commands");
    assert_eq!(number(160), 1, "media errors");
    // What a queue did is not forgotten when it goes.
    world.close(io);
    let health = world.execute(admin, log(LogPage::Health, 512, false), &[], 512).ok().data;
    assert_eq!(u128::from_le_bytes(health[80..96].try_into().unwrap()), 3);
}

#[test]
fn turning_the_cache_off_flushes_and_makes_writes_durable() {
    let (mut world, device) = World::one_disk(2, 64);
    let (admin, cntlid) = world.controller(0);
    let io = world.io_queue(1, cntlid, 1);
    let write = io::Command::Write(io::Transfer::new(0, 1)).to_sqe(1);
    world.execute(io, write, &[1; 512], 0).ok();
    device.done();
    let set = |value| {
        Command::SetFeatures(SetFeatures::new(Feature::VolatileWriteCache, value)).to_sqe(0)
    };
    world.execute(admin, set(0), &[], 0).ok();
    assert_eq!(device.done(), [(block::Kind::Flush, 0, 0, false)]);
    world.execute(io, write, &[1; 512], 0).ok();
    assert_eq!(device.done(), [(block::Kind::Write, 0, 1, true)]);
    world.execute(admin, set(1), &[], 0).ok();
    world.execute(io, write, &[1; 512], 0).ok();
    assert_eq!(device.done(), [(block::Kind::Write, 0, 1, false)]);
}

#[test]
fn discovery_hears_of_changes() {
    let disk = TestDevice::new("disk0", 64);
    let mut world = World::new(2);
    let first = configuration(&[(1, &disk)]);
    world.configure(&first, &[&disk]);
    let (admin, _) = world.controller_of(1, &Attempt::discovery().kato(10_000));
    world.submit(admin, event(), &[], 0);
    assert!(world.is_waiting(admin));
    let mut builder = first.change();
    builder.remove_subsystem(&nqn(NQN)).unwrap();
    world.configure(&builder.build().unwrap(), &[]);
    let finished = world.wait(admin).ok();
    assert_eq!(Event::from_dw0(finished.cqe.dw0()), Ok(Event::DISCOVERY_CHANGE));
}

#[test]
fn a_new_size_is_announced_though_the_configuration_changes_first() {
    let (one, two) = (TestDevice::new("disk0", 64), TestDevice::new("disk1", 64));
    let mut world = World::new(1);
    let snapshot = configuration(&[(1, &one)]);
    world.configure(&snapshot, &[&one, &two]);
    let (admin, _) = world.controller(0);
    world.submit(admin, event(), &[], 0);
    assert!(world.is_waiting(admin));
    one.resize(128);
    world.configure(&with_namespace(&snapshot, 2, &two), &[&one, &two]);
    world.wait(admin).ok();
    assert_eq!(changed(&mut world, admin, false), [1, 2]);
}
