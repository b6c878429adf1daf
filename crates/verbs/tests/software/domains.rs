//! One thread's domains: where there are such, what is made with them, and who may do what with it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::thread;

use verbs::software::DeviceOptions;
use verbs::{
    Access, CompletionQueue, Device, Domain, Fabric, Flags, Parameters, QueuePair, SendChain,
    SharedReceiveQueue, State, VerbsError, Work, WorkQueue,
};

use crate::support::{Driver, End, Shape, TARGET, connected, registered, software};

fn device(thread_domains: bool) -> (Fabric, Device) {
    let fabric = Fabric::new(3);
    let options = DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap());
    fabric.add_device(DeviceOptions { thread_domains, ..options });
    let device = fabric.library().devices().unwrap().remove(0);
    (fabric, device)
}

fn pair(domain: &Domain) -> QueuePair {
    let shape = Shape::default();
    let queue = CompletionQueue::new(domain.device(), shape.completions, 0, None, 0).unwrap();
    QueuePair::new(domain, &queue, &queue, None, shape.capacity).unwrap()
}

fn is_misuse<T>(result: &Result<T, VerbsError>) -> bool {
    matches!(result, Err(VerbsError::Misuse(_)))
}

#[test]
fn a_device_without_thread_domains_gives_the_domain_itself() {
    for (has, domains) in [(true, 3), (false, 1)] {
        let (fabric, device) = device(has);
        let domain = Domain::new(&device).unwrap();
        assert!(!domain.is_for_thread());
        let threads = domain.for_thread();
        assert_eq!(threads.is_for_thread(), has);
        assert_eq!(fabric.census()[4], domains);
        let another = threads.for_thread();
        assert_eq!(another.is_for_thread(), has);
        assert_eq!(fabric.census()[4], domains + 2 * usize::from(has), "of the same domain");
    }
}

#[test]
fn in_whatever_order_they_are_dropped_everything_is_destroyed() {
    for has in [true, false] {
        for order in 0..120 {
            let (fabric, device) = device(has);
            let domain = Domain::new(&device).unwrap();
            let threads = domain.for_thread();
            let queue = CompletionQueue::new(&device, 64, 0, None, 0).unwrap();
            let shared = SharedReceiveQueue::new(&threads, 8, 0).unwrap();
            let capacity = Shape::default().capacity;
            let pair = QueuePair::new(&threads, &queue, &queue, Some(&shared), capacity).unwrap();
            let mut all: Vec<Box<dyn std::any::Any>> = vec![
                Box::new(registered(&domain, Access::all())),
                Box::new(shared),
                Box::new(pair),
                Box::new(domain),
                Box::new(threads),
            ];
            let mut order = order;
            for left in (1..=5).rev() {
                drop(all.remove(order % left));
                order /= left;
            }
            drop(queue);
            assert_eq!(fabric.census(), [0; 6]);
        }
    }
}

#[test]
fn the_first_thread_to_post_is_the_only_one() {
    for has in [true, false] {
        let (_fabric, device) = device(has);
        let domain = Domain::new(&device).unwrap();
        let threads = domain.for_thread();
        let (first, second, plain) = (pair(&threads), pair(&threads), pair(&domain));
        let third = pair(&threads);
        let _first = WorkQueue::new(first).unwrap();
        thread::scope(|scope| {
            let elsewhere = move || {
                assert_eq!(is_misuse(&WorkQueue::new(second)), has);
                WorkQueue::new(plain).unwrap();
            };
            scope.spawn(elsewhere).join().unwrap();
        });
        WorkQueue::new(third).unwrap();
    }
}

fn ends() -> (Fabric, End, End) {
    let (fabric, host, target) = software(42);
    let driver = Driver(Some(fabric.clone()));
    let shapes = (Shape::default(), Shape::default());
    let at = TARGET.parse().unwrap();
    let (host, target) = connected(&driver, (&host, &target), at, shapes, Parameters::default());
    (fabric, host, target)
}

#[test]
fn another_thread_fails_a_queue_pair_only_when_its_own_has_ceased_to_post() {
    let (fabric, _host, mut target) = ends();
    let number = target.number();
    let ended = |end: &End| {
        let connection = &end.connection;
        thread::scope(|scope| scope.spawn(move || connection.disconnect()).join().unwrap())
    };
    assert!(target.queue.pair().domain().is_for_thread());
    assert!(is_misuse(&ended(&target)));
    assert_eq!(fabric.state(number), Some(State::ReadyToSend));
    target.queue.cease();
    let mut chain = SendChain::new(1, 1);
    chain.push_inline(Work::Send, Flags::SIGNALED, 0, b"x").unwrap();
    assert!(is_misuse(&target.queue.post(&mut chain)));
    // The peer has been told before, and is not told again.
    let _ = ended(&target);
    assert_eq!(fabric.state(number), Some(State::Error));
}

#[test]
fn its_own_thread_fails_a_queue_pair_at_any_time() {
    let (fabric, host, target) = ends();
    target.queue.pair().fail().unwrap();
    assert_eq!(fabric.state(target.number()), Some(State::Error));
    host.connection.disconnect().unwrap();
    assert_eq!(fabric.state(host.number()), Some(State::Error));
}
