//! A host and a node over software devices.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use host::Transfer;
use nvme::io::{Command, Transfer as Blocks};
use support::{Node, Options};
use testkit::peer::pattern;

fn blocks(bytes: u32) -> u32 {
    bytes / testkit::peer::BLOCK
}

#[test]
fn what_was_written_is_read() {
    let options = Options::default();
    let node = Node::start(&options);
    // Every slab of the pool, and what the RAM device consists of: reads are sent from there.
    let slabs = options.pool / memory::SLAB_SIZE;
    node.wait_until("all is registered", |node| node.fabric.census()[3] == slabs + 1);
    let mut controller = node.connect();
    controller.request_queues(1).unwrap();
    let mut queue = controller.open_queue(1, 32, 1 << 20).unwrap();
    for (lba, bytes) in
        [(0_u64, 512_u32), (8, 4096), (100, 8192), (200, 128 << 10), (5000, 1 << 20)]
    {
        let slot = queue.reserve().unwrap();
        let length = bytes as usize;
        let data = pattern(lba, length);
        queue.copy_from(slot, 0, &data);
        let count = blocks(bytes);
        let write = Command::Write(Blocks::new(lba, count)).to_sqe(1);
        let timeout = std::time::Duration::from_secs(10);
        let ended = queue.call(slot, write, Transfer::Write(bytes), timeout, "a write").unwrap();
        assert!(ended.cqe.status().is_success(), "{:?}", ended.cqe);
        queue.copy_from(slot, 0, &vec![0; length]);
        let read = Command::Read(Blocks::new(lba, count)).to_sqe(1);
        let ended = queue.call(slot, read, Transfer::Read(bytes), timeout, "a read").unwrap();
        assert!(ended.cqe.status().is_success(), "{:?}", ended.cqe);
        let mut found = vec![0; length];
        assert_eq!(queue.copy_to(slot, 0, &mut found), length);
        assert!(found == data, "{bytes} bytes at {lba}");
        queue.release(slot);
    }
    let counted = node.network.total();
    assert_eq!(counted.bytes_copied, 0, "{counted:?}");
    drop(queue);
    controller.shutdown().unwrap();
    node.wait_until("every queue is gone", |node| node.network.connections() == 0);
    // The manager could fail the queue pairs, though they are of their reactors' domains.
    assert_eq!(node.network.total().last_receives_missed, 0);
}
