//! Hosts that come while a node is starting or stopping: before their listener admits anybody, and when it is gone.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvme::fabrics::CNTLID_DYNAMIC;
use nvme::rdma::{Reject, RejectStatus};
use testkit::rdma::{Machine, Options, Phase, Queue, Refused, Wish, World};
use verbs::{REJECTED_BY_CONSUMER, REJECTED_NOBODY_LISTENS};

use super::support::{is_served, machine};

/// A world that listens where hosts look for it and has not admitted anybody; hosts wait so long for that.
fn starting(admission: Duration) -> (World, Rc<Machine>, SocketAddr) {
    let mut options = Options::default();
    options.config.admission = admission;
    let mut world = World::new(&options);
    let address = world.addresses[0];
    world.network.unlisten(address);
    world.settle();
    assert_eq!(world.bind(address), address);
    let machine = machine(&world);
    (world, machine, address)
}

/// So long that a test does not see the end of it.
const LONG: Duration = Duration::from_mins(10);

/// Everything that happens without time, on both sides.
fn settle(world: &mut World, queues: &mut [Queue]) {
    let mut worked = true;
    while worked {
        world.settle();
        worked = queues.iter_mut().fold(false, |worked, queue| queue.turn() | worked);
    }
}

fn is_refused_without_blame(queue: &Queue) -> bool {
    let Phase::Refused(REJECTED_BY_CONSUMER, data) = &queue.phase else { return false };
    Reject::parse(data).unwrap().status() == Ok(RejectStatus::NoResources)
}

#[test]
fn hosts_that_come_before_anybody_is_admitted_are_served_then() {
    let (mut world, machine, address) = starting(LONG);
    let mut queues: Vec<_> =
        (0..3).map(|_| Queue::ask(&machine, Wish::new(address, 0, 32))).collect();
    settle(&mut world, &mut queues);
    assert!(queues.iter().all(|queue| queue.phase == Phase::Asking), "{queues:?}");
    world.network.admit(address);
    settle(&mut world, &mut queues);
    for (host, queue) in queues.iter_mut().enumerate() {
        assert_eq!(queue.phase, Phase::Connected);
        world.connect_command(queue, host, 0, CNTLID_DYNAMIC, 32).unwrap();
    }
    drop(queues);
    world.empties();
}

#[test]
fn what_is_wrong_with_a_request_is_told_when_hosts_are_admitted() {
    let (mut world, machine, address) = starting(LONG);
    let wish = Wish { responder_resources: 0, ..Wish::new(address, 0, 32) };
    let mut queues = [Queue::ask(&machine, wish)];
    settle(&mut world, &mut queues);
    assert_eq!(queues[0].phase, Phase::Asking);
    world.network.admit(address);
    settle(&mut world, &mut queues);
    let Phase::Refused(REJECTED_BY_CONSUMER, data) = &queues[0].phase else { panic!("{queues:?}") };
    assert_eq!(Reject::parse(data).unwrap().status(), Ok(RejectStatus::InvalidIrd));
}

#[test]
fn they_wait_so_long_and_no_longer() {
    let (mut world, machine, address) = starting(Duration::ZERO);
    let mut queues = [Queue::ask(&machine, Wish::new(address, 0, 32))];
    settle(&mut world, &mut queues);
    assert!(is_refused_without_blame(&queues[0]), "{queues:?}");
    // The next one comes in time.
    world.network.admit(address);
    drop(queues);
    let (_controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
}

#[test]
fn so_many_wait_and_no_more() {
    let (mut world, machine, address) = starting(LONG);
    let ask = || Queue::ask(&machine, Wish::new(address, 0, 2));
    let mut queues: Vec<_> = (0..256).map(|_| ask()).collect();
    settle(&mut world, &mut queues);
    assert!(queues.iter().all(|queue| queue.phase == Phase::Asking));
    let mut beyond = [ask()];
    settle(&mut world, &mut beyond);
    assert!(is_refused_without_blame(&beyond[0]), "{beyond:?}");
    world.network.admit(address);
    settle(&mut world, &mut queues);
    let phases: Vec<_> = queues.iter().map(|queue| &queue.phase).collect();
    assert!(phases.iter().all(|&phase| *phase == Phase::Connected), "{phases:?}");
    drop((queues, beyond));
    world.empties();
}

#[test]
fn nobody_waits_for_a_listener_that_is_gone() {
    for shutdown in [false, true] {
        let (mut world, machine, address) = starting(LONG);
        let mut queues = [Queue::ask(&machine, Wish::new(address, 0, 32))];
        settle(&mut world, &mut queues);
        assert_eq!(queues[0].phase, Phase::Asking);
        if shutdown {
            world.network.shutdown();
        } else {
            world.network.unlisten(address);
        }
        settle(&mut world, &mut queues);
        assert!(is_refused_without_blame(&queues[0]), "{queues:?}");
        drop(queues);
        world.empties();
    }
}

#[test]
fn hosts_that_wait_in_vain_leave_nothing() {
    let (mut world, machine, address) = starting(LONG);
    let mut queues = vec![Queue::ask(&machine, Wish::new(address, 0, 32))];
    settle(&mut world, &mut queues);
    // It has given up, and its device says nothing of it.
    queues.clear();
    world.settle();
    world.network.admit(address);
    let (controller, mut queue) = world.host(&machine, 1);
    is_served(&mut world, &mut queue, 1);
    drop((controller, queue));
    world.empties();
}

#[test]
fn a_device_that_goes_takes_along_who_waits_there() {
    let (mut world, machine, address) = starting(LONG);
    let mut queues = [Queue::ask(&machine, Wish::new(address, 0, 32))];
    settle(&mut world, &mut queues);
    let device = world.device(0).unwrap();
    world.fabric.remove_device(&device);
    drop(device);
    settle(&mut world, &mut queues);
    assert!(queues[0].is_over(), "{queues:?}");
}

#[test]
fn hosts_are_refused_after_the_end() {
    let (mut world, machine, address) = starting(LONG);
    world.network.admit(address);
    let (controller, mut queue) = world.host(&machine, 1);
    world.network.shutdown();
    world.wait(Duration::from_secs(1));
    queue.turn();
    assert!(queue.is_over());
    let refused = world.connected(Queue::ask(&machine, Wish::new(address, 0, 32))).unwrap_err();
    let Refused::Connection(Phase::Refused(REJECTED_NOBODY_LISTENS, _)) = refused else {
        panic!("{refused:?}")
    };
    drop((controller, queue));
    world.empties();
}
