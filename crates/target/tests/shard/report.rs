//! Controllers and queues as they are told to whoever asks.

use std::collections::BTreeSet;

use target::Shard;
use target::shard::report::{PAGE, Page, QueueState};

use crate::device::TestDevice;
use crate::harness::{Attempt, HOST, NQN, World, configuration, host_id, nqn};

/// All pages of a question, none longer than it may be.
fn all<T>(mut ask: impl FnMut(u32) -> Page<T>) -> Vec<T> {
    let (mut items, mut from) = (Vec::new(), Some(0));
    while let Some(next) = from {
        let page = ask(next);
        assert!(page.items.len() <= PAGE);
        items.extend(page.items);
        from = page.next;
    }
    items
}

#[test]
fn every_controller_and_queue_is_on_one_of_the_pages() {
    let device = TestDevice::new("disk0", 64);
    let mut world = World::new(2);
    world.configure(&configuration(&[(1, &device)]), &[&device]);
    let mut expected = BTreeSet::new();
    for _ in 0..3 * PAGE / 2 {
        let (_, cntlid) = world.controller(0);
        expected.insert((cntlid, 0));
    }
    let (_, cntlid) = world.controller_of(0, &Attempt::admin());
    expected.insert((cntlid, 0));
    for qid in 1..=2 {
        world.io_queue(1, cntlid, qid);
        expected.insert((cntlid, qid));
    }
    world.open(1);

    let controllers = all(|from| world.shards[0].controllers(from));
    let cntlids: BTreeSet<_> = controllers.iter().map(|it| (it.cntlid, 0)).collect();
    let admin = |it: &&(u16, u16)| it.1 == 0;
    assert_eq!(cntlids, expected.iter().filter(admin).copied().collect());
    assert_eq!(controllers.len(), cntlids.len());
    for it in &controllers {
        assert_eq!((it.subsystem.as_ref(), &it.host), (Some(&nqn(NQN)), &nqn(HOST)));
        assert_eq!(it.host_id, host_id(1));
        assert_eq!(it.io_queues, if it.cntlid == cntlid { 2 } else { 0 });
    }
    assert!(all(|from| world.shards[1].controllers(from)).is_empty());

    let queues: Vec<_> =
        world.shards.iter().flat_map(|shard: &Shard| all(|from| shard.queues(from))).collect();
    let found: BTreeSet<_> = queues.iter().filter_map(|queue| queue.of).collect();
    assert_eq!(found, expected);
    assert_eq!(queues.len(), expected.len() + 1);
    let entries = |of| queues.iter().find(|it| it.of == Some(of)).unwrap().entries;
    assert_eq!((entries((cntlid, 0)), entries((cntlid, 2))), (32, 128));
    let unconnected: Vec<_> = queues.iter().filter(|it| it.of.is_none()).collect();
    assert_eq!(unconnected.len(), 1);
    assert_eq!(unconnected[0].state, QueueState::Unconnected);
}
