//! Devices that can do little, and hosts that want much.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use nvme::rdma::{Reject, RejectStatus};
use testkit::peer::pattern;
use testkit::rdma::{
    Controller, Machine, Options, Phase, Queue, Refused, Wish, World, device_name, in_capsule,
    listed, node_address,
};
use verbs::REJECTED_BY_CONSUMER;
use verbs::software::DeviceOptions;

use super::support::{
    answers, bytes_of, filled, is_served, machine, read, simple, with_device, write, zeroed,
};

fn status(refused: &Refused) -> RejectStatus {
    let Refused::Connection(Phase::Refused(REJECTED_BY_CONSUMER, data)) = refused else {
        panic!("{refused:?}")
    };
    Reject::parse(data).unwrap().status().unwrap()
}

#[test]
fn connections_that_do_not_fit_a_completion_queue_leave_none_behind() {
    let mut world = with_device(|device| device.max_cqe = 64);
    let machine = machine(&world);
    let attempt = |world: &mut World| {
        let wish = Wish::new(world.addresses[0], 0, 32);
        status(&world.connected(Queue::ask(&machine, wish)).unwrap_err())
    };
    assert_eq!(attempt(&mut world), RejectStatus::NoResources);
    world.settle();
    let [_, before, ..] = world.fabric.census();
    for _ in 0..20 {
        assert_eq!(attempt(&mut world), RejectStatus::NoResources);
    }
    world.settle();
    let [_, after, ..] = world.fabric.census();
    assert_eq!(after, before, "completion queues");
}

/// A queue whose connection is made for 512 commands, more than are granted, and whose Connect asks for `entries`.
fn wide(
    world: &mut World,
    machine: &Rc<Machine>,
    host: usize,
    entries: u16,
) -> (Controller, Queue) {
    let controller = world.controller(machine, host, 0).unwrap();
    let wish = Wish::new(world.addresses[0], 1, 512);
    let mut queue = world.connected(Queue::ask(machine, wish)).unwrap();
    assert_eq!(queue.granted, 128);
    world.connect_command(&mut queue, host, 1, controller.cntlid, entries).unwrap();
    (controller, queue)
}

#[test]
fn responses_that_do_not_go_inline_are_not_mixed_up() {
    let mut options = Options::default();
    // No more than that many answers are ready at a time.
    (options.devices[0].max_inline, options.devices[0].max_qp_wr) = (0, 200);
    let mut world = World::new(&options);
    let machine = machine(&world);
    let (_controller, mut queue) = wide(&mut world, &machine, 1, 128);
    let target = world.fabric.peer(queue.number()).unwrap();
    let segment = zeroed(&machine, 512);
    // All answers are made before the first one leaves.
    for _ in 0..3 {
        for cid in 0..128 {
            queue.send(&simple(&queue, read(cid, 0, 512), &segment));
        }
        while queue.under_way() > 0 {
            world.fabric.hold(target, true);
            world.fabric.run(10_000);
            world.turn();
            queue.turn();
        }
        for _ in 0..100 {
            world.turn();
            world.fabric.run(10_000);
        }
        world.fabric.hold(target, false);
        world.settle();
        let mut seen = [false; 128];
        for _ in 0..10 {
            world.settle();
            for answer in answers(&mut queue) {
                assert!(answer.status().is_success(), "{answer:?}");
                let seen = &mut seen[usize::from(answer.cid.get())];
                assert!(!*seen, "command {} was answered twice", answer.cid);
                *seen = true;
            }
        }
        assert!(seen.iter().all(|&seen| seen), "a command was not answered");
    }
}

#[test]
fn a_send_queue_shorter_than_a_commands_work_is_enough() {
    let mut world = with_device(|device| device.max_qp_wr = 16);
    let machine = machine(&world);
    let controller = world.controller(&machine, 1, 0).unwrap();
    let mut queue = world.io_queue(&controller, 1, 32).unwrap();
    let data = pattern(3, 16 * 512);
    let out = filled(&machine, 0, &data);
    let capsule = simple(&queue, write(1, 0, 16 * 512), &out);
    assert!(world.execute(&mut queue, &capsule).unwrap().status().is_success());
    let segments: Vec<_> = (0..16).map(|_| zeroed(&machine, 512)).collect();
    let before = world.now();
    let capsule = listed(read(2, 0, 16 * 512), &machine.memory, &segments, 0, false);
    let answer = world.execute(&mut queue, &capsule).expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
    assert!(world.now().since(before) < Duration::from_secs(5));
    let back: Vec<u8> = segments.iter().flat_map(bytes_of).collect();
    assert!(back == data);
}

#[test]
fn reactors_beyond_the_devices_shared_queues_have_queues_of_their_own() {
    let mut options = Options { reactors: 2, ..Options::default() };
    options.devices[0].max_srq = 1;
    let mut world = World::new(&options);
    let machine = machine(&world);
    let (_one, mut first) = world.host(&machine, 1);
    let (_two, mut second) = world.host(&machine, 2);
    is_served(&mut world, &mut first, 1);
    is_served(&mut world, &mut second, 2);
}

/// However few commands their queues have room for, and under however many names they come.
#[test]
fn hosts_that_take_all_receives_do_not_keep_them() {
    let mut options = Options::default();
    options.config.shared_receives = 128;
    let mut world = World::new(&options);
    let machine = machine(&world);
    let (_controller, mut modest) = world.host(&machine, 2);
    is_served(&mut world, &mut modest, 1);
    let data = vec![1; 4096];
    // Two entries by Connect, though the connection was made for many more.
    let mut greedy: Vec<_> =
        [1, 3].into_iter().map(|host| wide(&mut world, &machine, host, 2)).collect();
    for (_, queue) in &mut greedy {
        // Their answers take for ever.
        world.fabric.hold(world.fabric.peer(queue.number()).unwrap(), true);
        for cid in 0..400 {
            queue.send(&in_capsule(write(cid, 0, 4096), &data, 0));
        }
    }
    for _ in 0..200 {
        world.fabric.run(100);
        world.turn();
    }
    let before = world.now();
    is_served(&mut world, &mut modest, 2);
    let took = world.now().since(before);
    assert!(took < Duration::from_secs(5), "the modest one waited {took:?}");
    assert_eq!(world.network.total().violations, 2);
}

#[test]
fn before_connect_is_answered_nothing_else_is_taken() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let wish = Wish::new(world.addresses[0], 0, 32);
    let mut queue = world.connected(Queue::ask(&machine, wish)).unwrap();
    let segment = zeroed(&machine, 512);
    world.fabric.hold(world.fabric.peer(queue.number()).unwrap(), true);
    for cid in 0..2 {
        queue.send(&simple(&queue, read(cid, 0, 512), &segment));
    }
    world.until("the end", |world| (world.network.total().violations == 1).then_some(()));
}

/// A reactor that never gets to the end of its completion queue.
#[test]
fn a_queue_goes_though_its_reactor_is_never_done() {
    let mut world = World::new(&Options { requests: 4096, ..Options::default() });
    let machine = machine(&world);
    let (_other, mut leaver) = world.host(&machine, 2);
    is_served(&mut world, &mut leaver, 1);
    let controller = world.controller(&machine, 1, 0).unwrap();
    let mut queues: Vec<_> =
        (1..=6).map(|qid| world.io_queue(&controller, qid, 128).unwrap()).collect();
    let segment = zeroed(&machine, 512);
    let mut cids = vec![(0..127).collect::<VecDeque<_>>(); queues.len()];
    let before = world.network.connections();
    for round in 0..40 {
        for (queue, cids) in queues.iter_mut().zip(&mut cids) {
            cids.extend(answers(queue).iter().map(|answer| answer.cid.get()));
        }
        // By turns, so that no queue has more answers in a turn than another.
        for _ in 0..127 {
            for (queue, cids) in queues.iter_mut().zip(&mut cids) {
                let Some(cid) = cids.pop_front() else { continue };
                // Beyond the end: no device bounds how many are answered in a turn.
                queue.send(&simple(queue, read(cid, 1 << 30, 512), &segment));
            }
        }
        if round == 8 {
            leaver.disconnect();
        }
        world.fabric.run(100_000);
        world.turn();
        world.pass(Duration::from_millis(1));
    }
    let total = world.network.total();
    assert!(total.commands >= 38 * 256, "it was busy all the while: {total:?}");
    assert_eq!(world.network.connections(), before - 1);
}

#[test]
fn completion_queues_go_with_those_who_needed_them() {
    let mut options = Options::default();
    // Room for three queues of 128 commands.
    options.config.completions = 1024;
    let mut world = World::new(&options);
    let machine = machine(&world);
    let completion_queues = |world: &World, hosts: usize| world.fabric.census()[1] - hosts;
    let controller = world.controller(&machine, 1, 0).unwrap();
    let few = completion_queues(&world, 1);
    for _ in 0..3 {
        let mut queues: Vec<_> =
            (1..=8).map(|qid| world.io_queue(&controller, qid, 128).unwrap()).collect();
        for queue in &mut queues {
            is_served(&mut world, queue, 1);
        }
        assert_eq!(completion_queues(&world, 1 + queues.len()), few + 2);
        drop(queues);
        world.settle();
        world.wait(Duration::from_secs(1));
        assert!(completion_queues(&world, 1) <= few + 1);
    }
    drop(controller);
    world.empties();
    assert_eq!(completion_queues(&world, 0), few);
}

/// A host that takes what it has read bit by bit, each in time.
#[test]
fn reads_that_are_taken_slowly_hold_up_nobodys_writes_for_long() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let (_one, mut writer) = world.host(&machine, 2);
    is_served(&mut world, &mut writer, 1);
    let controller = world.controller(&machine, 1, 0).unwrap();
    let mut slow = world.io_queue(&controller, 1, 128).unwrap();
    let target = world.fabric.peer(slow.number()).unwrap();
    world.fabric.hold(target, true);
    let segment = zeroed(&machine, 4096);
    for cid in 0..100 {
        slow.send(&simple(&slow, read(cid, 0, 4096), &segment));
    }
    for _ in 0..100 {
        world.fabric.run(100);
        world.turn();
    }
    let out = filled(&machine, 0, &pattern(1, 4096));
    writer.send(&simple(&writer, write(1, 0, 4096), &out));
    let before = world.now();
    while writer.arrived.is_empty() {
        world.fabric.hold(target, false);
        slow.arrived.clear();
        while !slow.is_over() && slow.arrived.is_empty() {
            world.fabric.step();
            while slow.turn() {}
        }
        world.fabric.hold(target, true);
        for _ in 0..14 {
            world.pass(Duration::from_millis(100));
            world.turn();
            world.fabric.run(100);
            writer.turn();
        }
        let waited = world.now().since(before);
        // Its queue pair does nothing any more, not even when it is told to end: it is destroyed when that has been noticed.
        assert!(waited < Duration::from_secs(20), "the writer has waited {waited:?}");
    }
    assert_eq!(world.network.total().timeouts, 1);
}

#[test]
fn a_device_that_cannot_register_all_memory_is_not_used() {
    let mut world = with_device(|device| device.max_mr = 1);
    let machine = machine(&world);
    for _ in 0..3 {
        let wish = Wish::new(world.addresses[0], 0, 32);
        let refused = world.connected(Queue::ask(&machine, wish)).unwrap_err();
        assert_eq!(status(&refused), RejectStatus::NoResources);
    }
    assert!(world.network.devices().is_empty());
}

#[test]
fn the_receives_of_many_devices_leave_memory_to_commands() {
    let mut options = Options::default();
    options.config.shared_receives = 16384;
    options.devices = (0..4)
        .map(|device| DeviceOptions::new(&device_name(device), node_address(device)))
        .collect();
    let mut world = World::new(&options);
    let machine = machine(&world);
    let mut posted = Vec::new();
    for device in 0..4 {
        let before = world.network.total().receives;
        let controller = world.controller(&machine, device, device).unwrap();
        let mut queue = world.io_queue(&controller, 1, 32).unwrap();
        posted.push(world.network.total().receives - before);
        is_served(&mut world, &mut queue, device as u64);
        let pool = &world.pools[0];
        assert!(pool.available() >= pool.capacity() / 2, "{device}: {pool:?}");
    }
    // A quarter of 32 MiB, and less and less; every device has some.
    assert!((2000..2100).contains(&posted[0]), "{posted:?}");
    assert!(posted.iter().all(|&count| count > 200), "{posted:?}");
}

#[test]
fn receives_that_find_no_memory_are_posted_when_there_is_some() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    // Others on this reactor have it all when the first host comes.
    let mut taken = Vec::new();
    while let Some(buffer) = world.pools[0].take(4096) {
        taken.push(buffer);
    }
    let wish = Wish::new(world.addresses[0], 0, 32);
    let mut queue = world.connected(Queue::ask(&machine, wish)).unwrap();
    world.settle();
    let total = world.network.total();
    assert_eq!((total.receives, total.receives_delayed), (0, 1024));
    drop(taken);
    world.connect_command(&mut queue, 1, 0, nvme::fabrics::CNTLID_DYNAMIC, 32).unwrap();
    assert_eq!(world.network.total().receives_delayed, 1024);
    drop(queue);
    let (_controller, mut queue) = world.host(&machine, 2);
    is_served(&mut world, &mut queue, 1);
}
