//! How queues end, and what is left of them: nothing.

use std::rc::Rc;
use std::time::Duration;

use nvme::fabrics::Disconnect;
use testkit::rdma::{Options, Phase, World, device_name, keyed, node_address};
use verbs::State;
use verbs::software::DeviceOptions;
use zerocopy::IntoBytes;

use super::support::{answers, is_served, machine, read, simple, with_device, write, zeroed};

/// A host that comes and goes, so that everything is there that stays.
fn warmed(world: &mut World) -> usize {
    let machine = machine(world);
    drop(world.host(&machine, 0));
    world.empties();
    world.available()
}

#[test]
fn a_host_that_leaves_in_order_leaves_nothing() {
    for (shared, reports) in [(256, true), (256, false), (0, true)] {
        let mut world = with_device(|device| {
            device.max_srq = shared;
            device.reports_last_wqe = reports;
        });
        let free = warmed(&mut world);
        let machine = machine(&world);
        let (mut controller, mut queue) = world.host(&machine, 1);
        is_served(&mut world, &mut queue, 1);
        queue.disconnect();
        controller.admin.disconnect();
        let before = world.now();
        world.until("the end", |world| (world.network.connections() == 0).then_some(()));
        // Nobody had to be waited for.
        assert!(world.now().since(before) < Duration::from_secs(2));
        drop((controller, queue));
        world.empties();
        assert_eq!(world.available(), free);
    }
}

#[test]
fn a_queue_pair_is_failed_only_when_its_reactor_has_ceased_to_post() {
    for shared in [256, 0] {
        let mut world = with_device(|device| device.max_srq = shared);
        let machine = machine(&world);
        let (_controller, mut queue) = world.host(&machine, 1);
        is_served(&mut world, &mut queue, 1);
        let target = world.fabric.peer(queue.number()).unwrap();
        // A command arrives, and the host is gone.
        let segment = zeroed(&machine, 512);
        queue.send(&simple(&queue, read(7, 0, 512), &segment));
        world.fabric.run(1000);
        queue.disconnect();
        world.fabric.run(1000);
        world.manager.turn();
        assert_eq!(world.fabric.state(target), Some(State::ReadyToSend), "it may be posting");
        world.reactors[0].turn();
        assert_eq!(world.fabric.state(target), Some(State::ReadyToSend), "that blocks");
        world.manager.turn();
        assert_eq!(world.fabric.state(target), Some(State::Error));
        drop(queue);
        world.wait(Duration::from_secs(2));
        assert_eq!(world.fabric.state(target), None);
    }
}

#[test]
fn a_device_without_thread_domains_serves_as_well() {
    for has in [true, false] {
        let mut world = with_device(|device| device.thread_domains = has);
        let machine = machine(&world);
        let before = world.fabric.census()[4];
        let (_controller, mut queue) = world.host(&machine, 1);
        is_served(&mut world, &mut queue, 1);
        // The lane's thread domain, and what joins it.
        assert_eq!(world.fabric.census()[4], before + 2 * usize::from(has));
    }
}

#[test]
fn a_device_that_is_removed_gives_back_all_memory() {
    let devices = (0..2).map(|it| DeviceOptions::new(&device_name(it), node_address(it))).collect();
    let mut world = World::new(&Options { devices, ..Options::default() });
    let machine = machine(&world);
    let controller = world.controller(&machine, 1, 1).unwrap();
    let mut stays = world.io_queue(&controller, 1, 32).unwrap();
    let free = world.available();
    let census = world.fabric.census();
    let leaves = world.controller(&machine, 2, 0).unwrap();
    let mut queue = world.io_queue(&leaves, 1, 32).unwrap();
    is_served(&mut world, &mut queue, 1);
    assert!(world.available() < free, "receives take memory");
    let device = world.device(0).unwrap();
    world.fabric.remove_device(&device);
    drop(device);
    world.wait(Duration::from_secs(10));
    queue.turn();
    assert_eq!(queue.phase, Phase::Over);
    drop((leaves, queue));
    is_served(&mut world, &mut stays, 2);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.available(), free, "memory of receives is lost");
    let [_, completions, receives, ..] = world.fabric.census();
    assert_eq!((completions, receives), (census[1], census[2]), "queues are left");
}

#[test]
fn receives_that_were_not_posted_again_hold_up_nothing() {
    let mut world = with_device(|device| device.max_srq = 0);
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
    // The command and the end of the queue pair come in one turn.
    let segment = zeroed(&machine, 512);
    queue.send(&simple(&queue, read(7, 0, 512), &segment));
    let number = queue.number();
    world.fabric.run(3);
    let target = world.fabric.peer(number).unwrap();
    world.fabric.break_pair(target);
    world.fabric.run(100_000);
    let before = world.now();
    world.until("the end", |world| (world.network.connections() == 1).then_some(()));
    let took = world.now().since(before);
    assert!(took < Duration::from_secs(1), "it was waited {took:?} for nothing");
}

#[test]
fn disconnect_is_answered_though_data_was_still_to_be_fetched() {
    let mut world = with_device(|device| device.max_qp_init_rd_atom = 1);
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
    let segment = zeroed(&machine, 4096);
    for cid in 1..=8 {
        queue.send(&simple(&queue, write(cid, 0, 4096), &segment));
    }
    world.fabric.run(1000);
    world.turn();
    // The first piece of data and this arrive in one turn.
    let sqe = Disconnect::default().to_sqe().with_cid(99);
    let sgl = nvme::Sgl::Keyed { address: 0, length: 0, key: 0, invalidate: false };
    queue.send(sqe.with_sgl(sgl).as_bytes());
    world.fabric.run(1000);
    world.wait(Duration::from_secs(1));
    let answers = answers(&mut queue);
    let last = answers.iter().find(|answer| answer.cid.get() == 99);
    assert!(last.is_some_and(|it| it.status().is_success()), "{answers:?}");
    assert_eq!(world.network.total().violations, 0);
}

#[test]
fn flushed_work_is_no_failure() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
    let target = world.fabric.peer(queue.number()).unwrap();
    // Something is out when it leaves.
    world.fabric.hold(target, true);
    let segment = zeroed(&machine, 512);
    queue.send(&simple(&queue, read(7, 0, 512), &segment));
    world.settle();
    // The node's device sees it before anybody says so.
    world.fabric.break_pair(target);
    world.fabric.hold(target, false);
    world.fabric.run(1000);
    for _ in 0..3 {
        world.reactors[0].turn();
    }
    world.wait(Duration::from_secs(2));
    assert_eq!(world.network.connections(), 1);
    assert_eq!(world.network.total().failed_work, 0, "flushed work was counted as failed");
}

#[test]
fn a_key_is_invalidated_with_the_response_where_that_was_asked() {
    for does in [true, false] {
        let mut world = with_device(|device| device.send_with_invalidate = does);
        let machine = machine(&world);
        let (_controller, mut queue) = world.host(&machine, 1);
        let memory = machine.registered_anew();
        let segment = zeroed(&machine, 4096);
        let key = memory.remote(&segment).unwrap().key;
        queue.send(&keyed(read(3, 0, 4096), &memory, &segment, true));
        let message = world.until("an answer", |_| {
            queue.turn();
            queue.arrived.pop_front()
        });
        assert_eq!(message.invalidated, does.then_some(key));
        assert_eq!(world.network.total().invalidations, u64::from(does));
        drop(Rc::clone(&memory));
    }
}

#[test]
fn a_device_whose_removal_rdma_cm_alone_reports_is_closed_and_comes_back() {
    let mut devices: Vec<_> =
        (0..2).map(|it| DeviceOptions::new(&device_name(it), node_address(it))).collect();
    devices[0].reports_removal = false;
    let lost = devices[0].clone();
    let mut world = World::new(&Options { devices, reactors: 2, ..Options::default() });
    let machine = machine(&world);
    let controller = world.controller(&machine, 1, 1).unwrap();
    let mut stays = world.io_queue(&controller, 1, 32).unwrap();
    let (free, census) = (world.available(), world.fabric.census());
    let leaves = world.controller(&machine, 2, 0).unwrap();
    let mut queue = world.io_queue(&leaves, 1, 32).unwrap();
    is_served(&mut world, &mut queue, 1);
    let device = world.device(0).unwrap();
    world.fabric.remove_device(&device);
    drop(device);
    world.wait(Duration::from_secs(10));
    assert_eq!(world.fabric.lingering(), 0, "it is open");
    queue.turn();
    assert_eq!(queue.phase, Phase::Over);
    drop((leaves, queue));
    is_served(&mut world, &mut stays, 2);
    assert_eq!(world.available(), free, "memory of receives is lost");
    let [_, completions, receives, ..] = world.fabric.census();
    assert_eq!((completions, receives), (census[1], census[2]), "queues are left");

    world.fabric.add_device(lost);
    let start = std::time::Instant::now();
    // It is looked for once a second.
    let back = loop {
        if let Ok(controller) = world.controller(&machine, 2, 0) {
            break controller;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it is not listened on again");
    };
    let mut queue = world.io_queue(&back, 1, 32).unwrap();
    is_served(&mut world, &mut queue, 3);
    is_served(&mut world, &mut stays, 4);
}

#[test]
fn a_device_that_nobody_uses_is_closed_when_it_is_removed() {
    let mut world = with_device(|device| device.reports_removal = false);
    // As with a listener for all addresses, which is on no device.
    world.network.unlisten(world.addresses[0]);
    world.settle();
    let device = world.device(0).unwrap();
    world.fabric.remove_device(&device);
    drop(device);
    world.settle();
    assert_eq!(world.fabric.lingering(), 0, "it is open");
}

#[test]
fn the_last_receive_is_waited_for_from_when_the_queue_pair_has_been_ended() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
    let target = world.fabric.peer(queue.number()).unwrap();
    queue.disconnect();
    world.fabric.run(1000);
    world.manager.turn();
    // The manager is busy for long.
    for _ in 0..100 {
        world.pass(Duration::from_millis(100));
        world.reactors[0].turn();
        world.fabric.run(1000);
    }
    assert_eq!(world.fabric.state(target), Some(State::ReadyToSend));
    assert_eq!(world.network.connections(), 2, "it was given up");
    world.wait(Duration::from_millis(500));
    assert_eq!(world.fabric.state(target), None);
    assert_eq!(world.network.total().last_receives_missed, 0);
}
