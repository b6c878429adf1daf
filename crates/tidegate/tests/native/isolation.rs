//! One device, or one host, never holds up another on the same reactor.

use std::sync::Arc;

use block::BlockDevice;
use host::{Queue, Transfer};
use nvme::io::{self, Command};

use crate::support::daemon::NQN;
use crate::support::gate::{Gate, GatedDevice};
use crate::support::node::{self, Exported, Plan, ram};
use crate::support::{PATIENCE, call, connect, options, until};

const BLOCKS: u32 = 2048;
const LARGE: u32 = 1 << 20;

/// Namespace 1 can be made to hang, namespace 2 is quick; both on one reactor.
fn devices() -> (Vec<Arc<dyn BlockDevice>>, Arc<Gate>) {
    let (slow, gate) = GatedDevice::new(ram("slow", 64 << 20, 512));
    (vec![slow, ram("quick", 64 << 20, 512)], gate)
}

/// Fills all slots of the queue with commands of `bytes` for namespace `nsid`; how many.
fn fill(queue: &mut Queue, nsid: u32, bytes: u32, write: bool) -> usize {
    let mut count = 0;
    while let Some(slot) = queue.reserve() {
        let blocks = io::Transfer::new(u64::from(BLOCKS) * (count % 64), bytes / 512);
        let (command, moved) = if write {
            (Command::Write(blocks), Transfer::Write(bytes))
        } else {
            (Command::Read(blocks), Transfer::Read(bytes))
        };
        queue.submit(slot, command.to_sqe(nsid), moved).unwrap();
        count += 1;
    }
    queue.flush().unwrap();
    count as usize
}

/// Waits for all that is outstanding, serving every queue meanwhile; how many ended.
fn drain(queues: &mut [Queue]) -> usize {
    let mut count = 0;
    until("all commands end", || {
        for queue in &mut *queues {
            queue.flush().unwrap();
            queue.receive().unwrap();
            while let Some(ended) = queue.next_completion() {
                assert!(ended.cqe.status().is_success(), "{}", ended.cqe.status());
                queue.release(ended.slot);
                count += 1;
            }
        }
        queues.iter().all(|queue| queue.outstanding() == 0).then_some(count)
    })
}

/// So many commands on namespace 2, one after the other.
fn use_the_quick_one(queue: &mut Queue, bytes: u32, times: usize) {
    let data = vec![7; bytes as usize];
    for _ in 0..times {
        let blocks = io::Transfer::new(0, bytes / 512);
        let write = Command::Write(blocks).to_sqe(2);
        let ended = call(queue, write, Transfer::Write(bytes), &data);
        assert!(ended.cqe.status().is_success(), "{}", ended.cqe.status());
        queue.release(ended.slot);
        let read = Command::Read(blocks).to_sqe(2);
        let ended = call(queue, read, Transfer::Read(bytes), &[]);
        let mut found = vec![0; bytes as usize];
        queue.copy_to(ended.slot, 0, &mut found);
        assert!(found == data);
        queue.release(ended.slot);
    }
}

#[test]
fn commands_in_a_hanging_device_do_not_delay_another_device() {
    let (devices, gate) = devices();
    let (node, addresses) = node::start(&Plan::default(), vec![Exported::new(NQN, devices)]);
    let (controller, mut queues) = connect(options(addresses[0], NQN, "host"), 3, 100, 4096);
    gate.shut();
    // One queue all in the hanging device, one with room for one command more, one of its own.
    let outstanding = fill(&mut queues[0], 1, 4096, false);
    let spare = queues[1].reserve().unwrap();
    let more = fill(&mut queues[1], 1, 4096, false);
    queues[1].release(spare);
    until("all are in the device", || (gate.held() == outstanding + more).then_some(()));
    use_the_quick_one(&mut queues[1], 4096, 200);
    use_the_quick_one(&mut queues[2], 4096, 200);
    assert_eq!(gate.held(), outstanding + more, "none of them has ended meanwhile");
    gate.open();
    assert_eq!(drain(&mut queues[..2]), outstanding + more);
    drop((controller, queues));
    node.shutdown(PATIENCE).unwrap();
}

#[test]
fn memory_held_by_a_hanging_device_is_not_all_there_is() {
    for write in [false, true] {
        let (devices, gate) = devices();
        let plan = Plan { memory: 16 << 20, ..Plan::default() };
        let (node, addresses) = node::start(&plan, vec![Exported::new(NQN, devices)]);
        // Several queues of one greedy host want ten times what there is.
        let greedy = options(addresses[0], NQN, "greedy");
        let (mut admin, mut queues) = connect(greedy, 6, 32, LARGE);
        let (other, mut others) = connect(options(addresses[0], NQN, "modest"), 1, 4, LARGE);
        gate.shut();
        let mut asked = 0;
        for queue in &mut queues[..5] {
            asked += fill(queue, 1, LARGE, write);
        }
        // Data is sent when it is asked for.
        let mut before = 0;
        let mut same = 0;
        until("the device's share is taken", || {
            for queue in &mut queues {
                queue.receive().unwrap();
                queue.flush().unwrap();
            }
            same = if gate.held() == before { same + 1 } else { 0 };
            before = gate.held();
            (before >= 7 && same > 50).then_some(())
        });
        assert!(gate.held() <= 8, "as much as it leaves free of 16 MiB: {}", gate.held());

        // The other host, the same host's admin queue, and the other device are served.
        use_the_quick_one(&mut others[0], LARGE, 20);
        admin.keep_alive().unwrap();
        assert_eq!(admin.namespaces().unwrap(), [1, 2]);
        gate.open();
        assert_eq!(drain(&mut queues[..5]), asked);
        use_the_quick_one(&mut queues[5], LARGE, 5);
        drop((admin, queues, other, others));
        node.shutdown(PATIENCE).unwrap();
    }
}
