//! The data path asks the allocator for nothing: a whole node over real sockets, warm, with every heap
//! allocation of its reactors' threads counted.
//!
//! The host runs on the test's own thread and is not counted.

#![allow(clippy::print_stdout)]
#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::missing_panics_doc)]

#[allow(dead_code)]
mod counting;
#[allow(dead_code)]
#[path = "native/support/mod.rs"]
mod support;

use std::sync::Arc;

use block::delay::{DelayDevice, Latencies};
use block::file::Direct;
use block::injection::{Effect, Injection, InjectionDevice, Victim};
use block::null::NullDevice;
use block::{BlockDevice, ErrorKind};
use counting::{Counted, allocations};
use host::{Queue, Transfer};
use nvme::io::{Command, Transfer as Blocks};
use support::daemon::NQN;
use support::node::{self, Exported, Plan, ram};
use support::{PATIENCE, connect, folder, options};

const BLOCK: u32 = 4096;
const SIZE: u64 = 32 << 20;
const DEPTH: u16 = 32;
const LARGEST: u32 = 256 << 10;

/// What is done over and over.
#[derive(Debug, Clone, Copy)]
struct Workload {
    name: &'static str,
    write: bool,
    bytes: u32,
    /// Commands to get warm, and again as many that are counted.
    count: usize,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "small reads", write: false, bytes: 4096, count: 1000 },
    Workload { name: "large reads", write: false, bytes: LARGEST, count: 150 },
    Workload { name: "writes in capsules", write: true, bytes: 4096, count: 1000 },
    Workload { name: "writes by R2T", write: true, bytes: 16 << 10, count: 1000 },
    Workload { name: "large writes by R2T", write: true, bytes: LARGEST, count: 150 },
];

/// Keeps the queue full until `count` commands have ended.
fn run(queue: &mut Queue, nsid: u32, workload: Workload, count: usize) {
    let places = SIZE / u64::from(workload.bytes);
    let mut submitted = 0;
    let mut ended = 0;
    while ended < count {
        while submitted < count
            && let Some(slot) = queue.reserve()
        {
            let lba = submitted as u64 % places * u64::from(workload.bytes / BLOCK);
            let blocks = Blocks::new(lba, workload.bytes / BLOCK);
            let (command, transfer) = if workload.write {
                (Command::Write(blocks), Transfer::Write(workload.bytes))
            } else {
                (Command::Read(blocks), Transfer::Read(workload.bytes))
            };
            queue.submit(slot, command.to_sqe(nsid), transfer).unwrap();
            submitted += 1;
        }
        queue.flush().unwrap();
        if !queue.receive().unwrap() {
            assert!(queue.wait(PATIENCE).unwrap(), "nothing comes");
        }
        while let Some(completion) = queue.next_completion() {
            assert!(completion.cqe.status().is_success(), "{completion:?}");
            queue.release(completion.slot);
            ended += 1;
        }
    }
}

fn allocates_nothing(header_digest: bool, data_digest: bool) {
    let folder = folder();
    let file = node::file(&folder.path().join("disk"), SIZE, BLOCK, Direct::Auto);
    let null = Arc::new(NullDevice::new("null", SIZE, BLOCK).unwrap());
    // Of the time that holds several operations at once, and with something armed that never happens.
    let latencies = Latencies { average_read: 50, p99_read: 90, average_write: 50, p99_write: 90 };
    let failing = InjectionDevice::new("EE_base", ram("base", SIZE, BLOCK));
    let effect = Effect::Fail(ErrorKind::Internal);
    failing.inject(Victim::Read, Injection { effect, count: 1, queue_depth: u64::MAX });
    let layers = Arc::new(DelayDevice::new("layers", Arc::new(failing), latencies));
    let devices: [(&str, Arc<dyn BlockDevice>); 4] =
        [("null", null), ("ram", ram("ram", SIZE, BLOCK)), ("file", file), ("layers", layers)];
    let counted = |(_, device): &(_, Arc<dyn BlockDevice>)| -> Arc<dyn BlockDevice> {
        Arc::new(Counted(Arc::clone(device)))
    };
    let exported = Exported::new(NQN, devices.iter().map(counted).collect());
    let (node, addresses) = node::start(&Plan::default(), vec![exported]);
    let mut options = options(addresses[0], NQN, "host");
    (options.header_digest, options.data_digest) = (header_digest, data_digest);
    let (_controller, mut queues) = connect(options, 1, DEPTH, LARGEST);
    let queue = &mut queues[0];
    assert_eq!(queue.digests(), (header_digest, data_digest));

    for (nsid, (device, _)) in (1..).zip(&devices) {
        for workload in WORKLOADS {
            let before = allocations();
            run(queue, nsid, workload, workload.count);
            let warm = allocations();
            run(queue, nsid, workload, workload.count);
            let after = allocations();
            let name = workload.name;
            println!("{device}: {name}: {} to get warm, {} after", warm - before, after - warm);
            assert_eq!(
                after - warm,
                0,
                "{device}: {name}: allocations of {} commands",
                workload.count
            );
        }
    }
    // The threads were counted at all.
    assert!(allocations() > 0);
    node.shutdown(PATIENCE).unwrap();
}

// One test after the other: what another node's start allocates would count as well.
#[test]
fn reads_and_writes_allocate_nothing() {
    allocates_nothing(false, false);
    allocates_nothing(true, true);
}
