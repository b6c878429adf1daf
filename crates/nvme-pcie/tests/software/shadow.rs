//! Shadow doorbells: as the specification has them, so that drivers that ring too seldom are found out.

use nvme::io::Command;
use nvme::register::offset;
use nvme::{Prps, pcie};
use nvme_pcie::software::Options;
use std::sync::atomic::Ordering;

use crate::raw::Raw;

/// A driver whose I/O queue has shadows: their page, and that of the event indices.
fn shadowed(seed: u64, entries: u32) -> (Raw, usize, usize) {
    let mut raw = Raw::open(seed, Options { shadow_doorbells: true, ..Options::default() });
    raw.enable(16);
    raw.grant(1);
    let (shadows, indices) = (raw.pages(1), raw.pages(1));
    let prps = Prps { first: raw.iova(shadows), second: raw.iova(indices) };
    raw.admin_ok(pcie::Command::DoorbellBufferConfig.to_sqe(prps));
    assert!(raw.controller.has_shadow_doorbells());
    raw.create_pair(1, entries);
    raw.controller.settle();
    (raw, shadows, indices)
}

fn flush(raw: &mut Raw) {
    raw.push(1, Command::Flush.to_sqe(1).with_prps(Prps::default()));
}

/// Writes a shadow; whether the register has to be rung.
fn shadow(raw: &Raw, (shadows, indices): (usize, usize), place: usize, old: u32, new: u32) -> bool {
    let place = place - offset::DOORBELLS;
    raw.memory.word32(shadows + place).unwrap().store(new, Ordering::SeqCst);
    let index = raw.memory.word32(indices + place).unwrap().load(Ordering::SeqCst);
    let low = |value: u32| u16::try_from(value & 0xffff).unwrap();
    let (index, old, new) = (low(index), low(old), low(new));
    new.wrapping_sub(index).wrapping_sub(1) < new.wrapping_sub(old)
}

#[test]
fn commands_are_found_without_a_register_and_not_without_need() {
    for seed in 0..20 {
        let (mut raw, shadows, indices) = shadowed(seed, 64);
        let tail = offset::tail_doorbell(1, 0);
        let before = raw.controller.doorbells();
        let (mut answered, mut rung) = (0, 0);
        while answered < 200 {
            let old = raw.queues[1].tail;
            for _ in 0..4 {
                flush(&mut raw);
            }
            let new = raw.queues[1].tail;
            if shadow(&raw, (shadows, indices), tail, old, new) {
                rung += 1;
                raw.ring_tail(1);
            }
            let old = raw.queues[1].head;
            let wanted = answered + 4;
            while answered < wanted {
                assert!(raw.controller.step() || raw.queues[1].head != old);
                while raw.peek(1).is_some() {
                    answered += 1;
                }
            }
            let new = raw.queues[1].head;
            if shadow(&raw, (shadows, indices), offset::head_doorbell(1, 0), old, new) {
                raw.ring_head(1);
            }
        }
        raw.controller.settle();
        assert!(rung <= 50);
        assert_eq!(raw.controller.doorbells().submission, before.submission + rung);
        raw.innocent();
    }
}

#[test]
fn a_driver_that_does_not_ring_is_not_heard() {
    let (mut raw, shadows, indices) = shadowed(1, 16);
    let tail = offset::tail_doorbell(1, 0);
    flush(&mut raw);
    assert!(shadow(&raw, (shadows, indices), tail, 0, 1));
    raw.controller.settle();
    assert!(raw.peek(1).is_none());
    raw.ring_tail(1);
    raw.controller.settle();
    assert!(raw.poll(1).is_some());
    // The register has what its shadow has not: that is what counts.
    flush(&mut raw);
    raw.ring_tail(1);
    raw.controller.settle();
    assert!(raw.poll(1).is_none());
    raw.innocent();
    // A new queue in place of the old begins where its shadow is not.
    let sq = raw.pages(1);
    raw.admin_ok(pcie::Command::DeleteIoSubmissionQueue(1).to_sqe(Prps::default()));
    let create = raw.create_sq(1, 16, sq, 1);
    raw.admin_ok(create);
    raw.guilty("shadow of its doorbells");
}

#[test]
fn doorbell_buffers_are_pages() {
    let (mut raw, shadows, _) = shadowed(1, 16);
    let prps = Prps { first: raw.iova(shadows), second: raw.iova(shadows) + 64 };
    let again = raw.call(0, pcie::Command::DoorbellBufferConfig.to_sqe(prps));
    assert!(again.status().same_code(nvme::Status::INVALID_FIELD));
    raw.guilty("does not begin a page");
}
