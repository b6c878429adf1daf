//! Hosts that break the rules, beside one that keeps them and is served all the while.

use std::rc::Rc;
use std::time::Duration;

use nvme::fabrics::CNTLID_MAX;
use nvme::rdma::{Reject, RejectStatus, Request};
use nvme::{Sgl, Sqe, Status};
use testkit::rdma::{
    Controller, Machine, Options, Phase, Queue, Refused, Wish, World, in_capsule, keyed, listed,
};
use verbs::REJECTED_BY_CONSUMER;
use zerocopy::IntoBytes;

use super::support::{
    answers, bytes_of, filled, is_served, machine, read, simple, with_device, write, zeroed,
};

/// A good host, who has to be served whatever others do.
struct Bystander {
    _controller: Controller,
    queue: Queue,
    served: u64,
}

impl Bystander {
    fn new(world: &mut World) -> Bystander {
        let machine = machine(world);
        let (controller, queue) = world.host(&machine, 77);
        let mut bystander = Bystander { _controller: controller, queue, served: 0 };
        bystander.is_served(world);
        bystander
    }

    fn is_served(&mut self, world: &mut World) {
        self.served += 1;
        let before = world.now();
        is_served(world, &mut self.queue, 0xB000 + self.served);
        let took = world.now().since(before);
        assert!(took < Duration::from_secs(1), "the bystander waited {took:?}");
    }
}

/// Why this wish is refused.
fn refusal(world: &mut World, machine: &Rc<Machine>, wish: Wish) -> RejectStatus {
    match world.connected(Queue::ask(machine, wish)) {
        Err(Refused::Connection(Phase::Refused(REJECTED_BY_CONSUMER, data))) => {
            assert_eq!(data.len(), 148);
            assert!(data[4..].iter().all(|&byte| byte == 0));
            Reject::parse(&data).unwrap().status().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_refusal_says_why() {
    let mut world = with_device(|device| device.max_qp = 4);
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let to = world.addresses[0];
    let request = |change: fn(&mut Request)| {
        let mut request = Request::new(1, 32, 0);
        change(&mut request);
        Wish { private_data: request.as_bytes().to_vec(), ..Wish::new(to, 1, 32) }
    };
    let cases = [
        (request(|it| it.recfmt = 1.into()), RejectStatus::InvalidRecordFormat),
        (request(|it| it.recfmt = 0xFFFF.into()), RejectStatus::InvalidRecordFormat),
        (request(|it| it.qid = 0xFFFF.into()), RejectStatus::InvalidQueueId),
        (request(|it| it.cntlid = 0xFFF0.into()), RejectStatus::InvalidCntlid),
        (request(|it| it.cntlid = 0xFFFF.into()), RejectStatus::InvalidCntlid),
        (request(|it| it.hsqsize = 0.into()), RejectStatus::InvalidHsqsize),
        (request(|it| it.hrqsize = 0.into()), RejectStatus::InvalidHrqsize),
        // rdma_cm fills up with zeroes: an empty request is one without sizes.
        (Wish { private_data: Vec::new(), ..Wish::new(to, 1, 32) }, RejectStatus::InvalidHsqsize),
        (Wish { responder_resources: 0, ..Wish::new(to, 1, 32) }, RejectStatus::InvalidIrd),
    ];
    for (wish, status) in cases {
        let said = wish.private_data.clone();
        assert_eq!(refusal(&mut world, &machine, wish), status, "{said:?}");
        bystander.is_served(&mut world);
    }
    // Which controller there is, Connect tells; and an admin queue belongs to none yet, whatever it says.
    for (qid, cntlid) in [(1, 0), (1, CNTLID_MAX), (0, CNTLID_MAX), (0, 0xFFFF)] {
        let private_data = Request::new(qid, 32, cntlid).as_bytes().to_vec();
        let wish = Wish { private_data, ..Wish::new(to, qid, 32) };
        drop(world.connected(Queue::ask(&machine, wish)).unwrap());
        world.wait(Duration::from_secs(2));
    }
    // Two queue pairs are free. What was refused before took none.
    let one = world.connected(Queue::ask(&machine, Wish::new(to, 0, 32))).unwrap();
    let two = world.connected(Queue::ask(&machine, Wish::new(to, 0, 32))).unwrap();
    for _ in 0..3 {
        let refused = refusal(&mut world, &machine, Wish::new(to, 0, 32));
        assert_eq!(refused, RejectStatus::NoResources);
    }
    drop(one);
    world.wait(Duration::from_secs(2));
    let one = world.connected(Queue::ask(&machine, Wish::new(to, 0, 32))).unwrap();
    drop((one, two));
    bystander.is_served(&mut world);
    drop(bystander);
    world.empties();
}

#[test]
fn capsules_of_any_length_end_their_own_queue_at_most() {
    for shared in [true, false] {
        let mut world = with_device(|device| device.max_srq = if shared { 256 } else { 0 });
        let machine = machine(&world);
        let mut bystander = Bystander::new(&mut world);
        let room = if shared { 4096 } else { 448 };
        let flush = Sqe::new(0, 1).with_sgl(Sgl::Keyed {
            address: 0,
            length: 0,
            key: 0,
            invalidate: false,
        });
        for length in (0..=64).chain([65, 80, 64 + room, 64 + room + 1, 9000]) {
            let (controller, mut queue) = world.host(&machine, 1);
            let mut capsule = flush.as_bytes().to_vec();
            capsule.resize(length, 0);
            let answer = world.execute(&mut queue, &capsule);
            assert_eq!(answer.is_some(), (64..=64 + room).contains(&length), "{length} bytes");
            if let Some(answer) = answer {
                assert!(answer.status().is_success(), "{length} bytes: {answer:?}");
            }
            drop((controller, queue));
            bystander.is_served(&mut world);
        }
        let total = world.network.total();
        assert_eq!(total.violations, 64, "each that is too short");
        // Or its host was quicker to say that it is over.
        assert!(total.failed_work <= 2, "each that does not fit");
        drop(bystander);
        world.empties();
    }
}

#[test]
fn more_commands_than_the_queue_has_room_for_end_it() {
    for shared in [true, false] {
        let mut world = with_device(|device| device.max_srq = if shared { 256 } else { 0 });
        let machine = machine(&world);
        let mut bystander = Bystander::new(&mut world);
        let (_controller, mut queue) = world.host(&machine, 1);
        let target = world.fabric.peer(queue.number()).unwrap();
        world.fabric.hold(target, true);
        let segment = zeroed(&machine, 512);
        // As many as it may are harmless; the device of a queue with receives of its own takes no more.
        for cid in 0..33 {
            queue.send(&simple(&queue, write(cid, 0, 512), &segment));
        }
        for _ in 0..50 {
            world.fabric.run(100);
            world.turn();
        }
        bystander.is_served(&mut world);
        world.fabric.hold(target, false);
        if shared {
            world.until("the end", |_| {
                queue.turn();
                queue.is_over().then_some(())
            });
            assert_eq!(world.network.total().violations, 1);
        } else {
            world.settle();
            assert!(world.network.total().violations <= 1);
        }
        drop(queue);
        bystander.is_served(&mut world);
    }
}

#[test]
fn a_host_that_takes_no_answers_is_given_up() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    // Its Connect is never answered as far as it knows.
    let wish = Wish { receives: false, ..Wish::new(world.addresses[0], 0, 32) };
    let mut deaf = world.connected(Queue::ask(&machine, wish)).unwrap();
    let segment = zeroed(&machine, 512);
    for cid in 0..8 {
        deaf.send(&simple(&deaf, read(cid, 0, 512), &segment));
    }
    for _ in 0..40 {
        world.wait(Duration::from_secs(1));
        bystander.is_served(&mut world);
    }
    deaf.turn();
    assert!(deaf.is_over());
    assert_eq!(world.network.connections(), 2);
    drop((deaf, bystander));
    world.empties();
}

#[test]
fn a_host_that_takes_no_more_answers_is_given_up_after_some_tries() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let controller = world.controller(&machine, 1, 0).unwrap();
    let mut queue = world.io_queue(&controller, 1, 32).unwrap();
    queue.stop_receiving();
    let segment = zeroed(&machine, 512);
    // It takes those for which it has posted receives, then none.
    for cid in 0..31 {
        queue.send(&simple(&queue, read(cid, 0, 512), &segment));
    }
    world.settle();
    for cid in 31..61 {
        queue.send(&simple(&queue, read(cid, 0, 512), &segment));
    }
    world.wait(Duration::from_secs(2));
    queue.turn();
    assert!(queue.is_over());
    assert_eq!(world.network.total().timeouts, 0);
    bystander.is_served(&mut world);
    drop((queue, controller));
    bystander.is_served(&mut world);
    drop(bystander);
    world.empties();
}

#[test]
fn a_host_that_never_sends_connect_is_given_up() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let wish = Wish::new(world.addresses[0], 0, 32);
    let mut silent = world.connected(Queue::ask(&machine, wish)).unwrap();
    world.wait(Duration::from_secs(8));
    silent.turn();
    assert!(!silent.is_over(), "it had time");
    world.wait(Duration::from_secs(4));
    silent.turn();
    assert!(silent.is_over());
    bystander.is_served(&mut world);
    drop((silent, bystander));
    world.empties();
}

#[test]
fn a_host_that_stops_after_connect_costs_nothing_and_goes_when_it_goes() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let (controller, mut queue) = world.host(&machine, 1);
    let before = world.network.total();
    world.wait(Duration::from_mins(5));
    assert_eq!(world.network.total(), before, "it was let alone");
    queue.turn();
    assert!(!queue.is_over());
    drop((controller, queue));
    bystander.is_served(&mut world);
    drop(bystander);
    world.empties();
}

#[test]
fn wrong_keys_and_addresses_end_their_own_queue() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let segment = zeroed(&machine, 4096);
    let remote = machine.memory.remote(&segment).unwrap();
    let slab = 2 << 20;
    let cases = [
        (remote.address, remote.key ^ 1),
        (remote.address, 0),
        (0, remote.key),
        (u64::MAX, remote.key),
        (u64::MAX - 4095, remote.key),
        (remote.address & !(slab - 1) | (slab - 4095), remote.key),
    ];
    for (address, key) in cases {
        for sqe in [read(1, 0, 4096), write(1, 0, 4096)] {
            let (controller, mut queue) = world.host(&machine, 1);
            let sgl = Sgl::Keyed { address, length: 4096, key, invalidate: false };
            let answer = world.execute(&mut queue, sqe.with_sgl(sgl).as_bytes());
            assert_eq!(answer, None, "{address:x} {key:x}");
            drop((controller, queue));
            bystander.is_served(&mut world);
        }
    }
    // A key of the node's own does not lead to its memory.
    drop(bystander);
    world.empties();
}

#[test]
fn descriptors_that_make_no_sense_fail_their_command_and_nothing_else() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    let segment = zeroed(&machine, 4096);
    let memory = Rc::clone(&machine.memory);
    let remote = memory.remote(&segment).unwrap();
    let keyed_of =
        |length| Sgl::Keyed { address: remote.address, length, key: remote.key, invalidate: false };
    let pieces = |count: usize| vec![segment.part(0, 16).unwrap(); count];
    let mut foreign = listed(read(1, 0, 512), &memory, &[segment.part(0, 512).unwrap()], 0, false);
    foreign[64 + 15] = 0x01;
    let mut nested = foreign.clone();
    nested[64 + 15] = 0x31;
    let mut outside = foreign.clone();
    outside[24] = 1;
    let mut prp = write(1, 0, 512);
    prp.flags = 0;
    let mut far = foreign.clone();
    far[24..32].fill(0xFF);
    let cases: Vec<(Vec<u8>, Status)> = vec![
        (
            write(1, 0, 512).with_sgl(keyed_of(511)).as_bytes().to_vec(),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            write(1, 0, 512).with_sgl(keyed_of(0)).as_bytes().to_vec(),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            read(1, 0, 512).with_sgl(keyed_of(1024)).as_bytes().to_vec(),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (in_capsule(read(1, 0, 512), &[0; 512], 0), Status::SGL_TYPE_INVALID),
        (in_capsule(write(1, 0, 512), &[0; 511], 0), Status::SGL_DATA_LENGTH_INVALID),
        (
            in_capsule(write(1, 0, 512), &[0; 512], 0)[..575].to_vec(),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (in_capsule(write(1, 0, 512), &[0; 512], 16)[..79].to_vec(), Status::SGL_OFFSET_INVALID),
        (
            listed(read(1, 0, 17 * 16 * 32), &memory, &pieces(17), 0, false),
            Status::INVALID_SGL_COUNT,
        ),
        (listed(read(1, 0, 512), &memory, &[], 0, false), Status::INVALID_SGL_SEGMENT),
        (listed(read(1, 0, 512), &memory, &pieces(2), 0, false), Status::SGL_DATA_LENGTH_INVALID),
        (foreign, Status::SGL_TYPE_INVALID),
        (nested, Status::SGL_TYPE_INVALID),
        (outside, Status::SGL_OFFSET_INVALID),
        (far, Status::SGL_OFFSET_INVALID),
        (
            write(1, 0, 512).with_sgl(Sgl::TransportData { length: 512 }).as_bytes().to_vec(),
            Status::SGL_TYPE_INVALID,
        ),
        (prp.as_bytes().to_vec(), Status::INVALID_FIELD),
    ];
    for (index, (capsule, status)) in cases.into_iter().enumerate() {
        let answer = world.execute(&mut queue, &capsule).unwrap_or_else(|| panic!("case {index}"));
        assert!(answer.status().same_code(status), "case {index}: {answer:?}");
    }
    for identifier in 0..=255 {
        // One of them has the key invalidated.
        let memory = machine.registered_anew();
        let mut capsule = keyed(write(1, 0, 512), &memory, &segment.part(0, 512).unwrap(), false);
        capsule[39] = identifier;
        let answer = world.execute(&mut queue, &capsule);
        assert!(answer.is_some(), "identifier {identifier:#x}");
    }
    is_served(&mut world, &mut queue, 1);
    assert_eq!(world.network.total().violations, 0);
}

#[test]
fn a_flood_of_connections_passes() {
    let mut options = Options::default();
    options.config.max_connections = 40;
    let mut world = World::new(&options);
    let mut bystander = Bystander::new(&mut world);
    let flooder = machine(&world);
    let free = world.available();
    for round in 0..5 {
        let wish = Wish { depth: 32, ..Wish::new(world.addresses[0], 0, 32) };
        let mut flood: Vec<_> = (0..200).map(|_| Queue::ask(&flooder, wish.clone())).collect();
        for _ in 0..2000 {
            world.step();
            for queue in &mut flood {
                queue.turn();
            }
        }
        world.until("an answer to each", |_| {
            for queue in &mut flood {
                queue.turn();
            }
            let asked = |queue: &Queue| matches!(queue.phase, Phase::Resolving | Phase::Asking);
            (!flood.iter().any(asked)).then_some(())
        });
        let connected = flood.iter().filter(|queue| queue.phase == Phase::Connected).count();
        assert!(connected <= 38, "{connected}");
        assert!(round > 0 || connected == 38, "{connected}");
        bystander.is_served(&mut world);
        // They vanish in the middle of whatever they do.
        drop(flood);
        world.wait(Duration::from_secs(2));
        assert_eq!(world.network.connections(), 2);
    }
    assert_eq!(world.available(), free);
    drop(bystander);
    world.empties();
}

#[test]
fn hosts_that_vanish_while_they_are_being_connected_leave_nothing() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    for steps in 0..60 {
        let mut queue = Queue::ask(&machine, Wish::new(world.addresses[0], 0, 32));
        for _ in 0..steps {
            world.fabric.step();
            queue.turn();
            if steps % 3 == 0 {
                world.turn();
            }
        }
        drop(queue);
        world.wait(Duration::from_millis(100));
    }
    world.wait(Duration::from_secs(2));
    assert_eq!(world.network.connections(), 2);
    bystander.is_served(&mut world);
    drop(bystander);
    world.empties();
}

#[test]
fn a_greedy_host_with_many_queues_leaves_receives_to_others() {
    let mut options = Options::default();
    options.config.shared_receives = 64;
    (options.requests, options.pool) = (64, 8 << 20);
    let mut world = World::new(&options);
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let controller = world.controller(&machine, 1, 0).unwrap();
    let mut queues: Vec<_> =
        (1..=8).map(|qid| world.io_queue(&controller, qid, 32).unwrap()).collect();
    let data = vec![1; 4096];
    for queue in &mut queues {
        // Its answers take for ever.
        world.fabric.hold(world.fabric.peer(queue.number()).unwrap(), true);
        for cid in 0..31 {
            queue.send(&in_capsule(write(cid, 0, 4096), &data, 0));
        }
    }
    for _ in 0..500 {
        world.fabric.run(100);
        world.turn();
    }
    world.wait(Duration::from_secs(3));
    bystander.is_served(&mut world);
    let total = world.network.total();
    assert!(total.receives_reclaimed > 0, "{total:?}");
    assert_eq!(total.violations, 0, "{total:?}");
}

#[test]
fn reads_that_are_not_taken_hold_up_nobodys_writes() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let (_controller, mut queue) = world.host(&machine, 1);
    world.fabric.hold(world.fabric.peer(queue.number()).unwrap(), true);
    let segment = zeroed(&machine, 4096);
    for cid in 0..31 {
        // Just what the bystander writes.
        queue.send(&simple(&queue, read(cid, 8 << 20, 4096), &segment));
    }
    for _ in 0..100 {
        world.fabric.run(100);
        world.turn();
    }
    // The queue pair does nothing any more, not even when it is told to end: when that has been noticed it is destroyed.
    let before = world.now();
    is_served(&mut world, &mut bystander.queue, 0xB0FF);
    let took = world.now().since(before);
    assert!(took < Duration::from_secs(10), "the bystander waited {took:?}");
}

#[test]
fn what_is_lent_for_a_host_that_takes_nothing_comes_back_at_once() {
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let mut bystander = Bystander::new(&mut world);
    let (_controller, mut queue) = world.host(&machine, 1);
    queue.stop_receiving();
    let segment = zeroed(&machine, 4096);
    for cid in 0..31 {
        queue.send(&simple(&queue, read(cid, 8 << 20, 4096), &segment));
    }
    for _ in 0..100 {
        world.fabric.run(100);
        world.turn();
    }
    bystander.is_served(&mut world);
}

#[test]
fn a_bystanders_data_is_its_own() {
    // Reads of blocks that nobody has written are zeroes, whatever lay in the buffers before.
    let mut world = with_device(|_| {});
    let machine = machine(&world);
    let (_controller, mut queue) = world.host(&machine, 1);
    let data = vec![0xAB; 128 << 10];
    let out = filled(&machine, 0, &data);
    let capsule = simple(&queue, write(1, 0, 128 << 10), &out);
    assert!(world.execute(&mut queue, &capsule).unwrap().status().is_success());
    let back = filled(&machine, 0, &data);
    let capsule = simple(&queue, read(2, 4 << 20, 128 << 10), &back);
    assert!(world.execute(&mut queue, &capsule).unwrap().status().is_success());
    assert!(bytes_of(&back).iter().all(|&byte| byte == 0));
    assert!(answers(&mut queue).is_empty());
}
