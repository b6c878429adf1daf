//! Commands over RDMA ask the allocator for nothing, whatever their number: the send queue's places come back, too.
//!
//! The controller runs on a thread of its own and is not counted.

#![allow(unsafe_code, missing_docs, reason = "an allocator")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod answers;
mod rdma_stub;

use answers::{BLOCK, Script};
use host::{Controller, Queue, Transfer};
use nvme::io::{Command as Io, Transfer as Blocks};
use rdma_stub::{Manners, RdmaStub};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's; only the number of calls is counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Does `count` commands: reads, writes in their capsules and writes that the controller fetches.
fn run(queue: &mut Queue, count: usize) {
    let (mut begun, mut ended) = (0, 0);
    let deadline = Instant::now() + Duration::from_mins(1);
    while ended < count {
        assert!(Instant::now() < deadline, "nothing comes any more");
        while begun < count
            && let Some(slot) = queue.reserve()
        {
            let blocks = [8, 1, 32][begun % 3];
            let (at, length) = (Blocks::new(0, blocks), blocks * u32::try_from(BLOCK).unwrap());
            let (command, transfer) = match begun % 2 {
                0 => (Io::Read(at), Transfer::Read(length)),
                _ => (Io::Write(at), Transfer::Write(length)),
            };
            queue.submit(slot, command.to_sqe(1), transfer).unwrap();
            begun += 1;
        }
        queue.flush().unwrap();
        if !queue.receive().unwrap() {
            queue.wait(Duration::from_secs(1)).unwrap();
        }
        while let Some(completion) = queue.next_completion() {
            assert!(completion.cqe.status().is_success());
            queue.release(completion.slot);
            ended += 1;
        }
    }
}

#[test]
fn nothing_is_allocated_for_a_command() {
    for depth in [1, 2, 32] {
        let script = Script { queues: 1, ..Script::default() };
        let stub = RdmaStub::start(1, script, Manners::default());
        let mut controller = Controller::connect(stub.options()).unwrap();
        let mut queue = controller.open_queue(1, depth, 16 << 10).unwrap();
        run(&mut queue, 1000);
        let warm = ALLOCATIONS.with(Cell::get);
        run(&mut queue, 3000);
        assert_eq!(ALLOCATIONS.with(Cell::get) - warm, 0, "at depth {depth}");
    }
}
