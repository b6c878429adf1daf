//! The life of a read, over and over, asks the allocator for nothing: neither the layer nor the software provider.

#![allow(unsafe_code, clippy::unwrap_used, reason = "an allocator, and helpers of a test")]

#[path = "support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use memory::Segment;
use support::{Driver, End, Shape, TARGET, connected, software};
use verbs::{Completion, Flags, Parameters, Remote, SendChain, Status, Work};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system's allocator's; only the number of calls is counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

/// Takes `count` completions of an end; whatever was received is posted again.
fn take(driver: &Driver, end: &mut End, count: usize) {
    let mut room = [Completion::default(); 8];
    let mut taken = 0;
    while taken < count {
        if let Some(fabric) = &driver.0 {
            fabric.step();
        }
        for completion in end.cq.poll(&mut room).unwrap() {
            assert_eq!(completion.status(), Status::SUCCESS);
            taken += 1;
            if completion.is_receive() {
                let shared = end.shared.as_mut().unwrap();
                let segments = shared.take(completion).unwrap();
                shared.push(completion.tag(), &end.memory, segments).unwrap();
                shared.flush().unwrap();
            } else {
                end.queue.retire(completion);
            }
        }
    }
}

fn read(
    driver: &Driver,
    ends: (&mut End, &mut End),
    chain: &mut SendChain,
    data: &Segment,
    to: Remote,
) {
    let (host, target) = ends;
    chain.push_inline(Work::Send, Flags::SIGNALED, 0, &[1; 64]).unwrap();
    host.queue.post(chain).unwrap();
    take(driver, host, 1);
    take(driver, target, 1);
    chain.push(Work::Write(to), Flags::empty(), 1, &target.memory, [data.clone()]).unwrap();
    chain.push_inline(Work::Send, Flags::SIGNALED, 1, &[2; 16]).unwrap();
    target.queue.post(chain).unwrap();
    take(driver, target, 1);
    take(driver, host, 1);
}

#[test]
fn nothing_is_allocated_for_a_read() {
    let (fabric, host, target) = software(9);
    let driver = Driver(Some(fabric));
    let mut shape = Shape::default();
    shape.capacity.inline = 64;
    let at = TARGET.parse().unwrap();
    let (mut host, mut target) =
        connected(&driver, (&host, &target), at, (shape, shape), Parameters::default());
    for tag in 0..4 {
        host.receive(tag, 64);
        target.receive(tag, 64);
    }
    let to = host.memory.remote(&host.filled(&[0; 4096])).unwrap();
    let data = target.filled(&[7; 4096]);
    let mut chain = SendChain::new(4, 4);
    let mut rounds = |count| {
        for _ in 0..count {
            read(&driver, (&mut host, &mut target), &mut chain, &data, to);
        }
    };
    rounds(100);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    rounds(1000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
