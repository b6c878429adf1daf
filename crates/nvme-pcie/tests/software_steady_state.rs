//! The software controller asks for no memory for reads and writes in the steady state, so what a driver asks for can be counted
//! beside it.

#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::match_bool
)]

#[path = "../../reactor/tests/counting/mod.rs"]
mod counting;
#[path = "software/raw.rs"]
mod raw;

use nvme::Prps;
use nvme::io::{Command, Transfer};
use nvme_pcie::software::Options;

use raw::Raw;

#[test]
fn reads_and_writes_cost_no_memory() {
    let mut raw = Raw::ready(1, Options { shadow_doorbells: true, ..Options::default() });
    let at = raw.pages(16);
    let mut round = |count: u64| {
        for number in 0..count {
            for slot in 0..12_u64 {
                let prps = Prps { first: raw.iova(at + slot as usize * 4096), second: 0 };
                let transfer = Transfer::new((number * 12 + slot) % 100 * 8, 8);
                let command = match slot % 2 {
                    0 => Command::Write(transfer),
                    _ => Command::Read(transfer),
                };
                raw.push(1, command.to_sqe(1).with_prps(prps));
            }
            raw.ring_tail(1);
            raw.controller.settle();
            while raw.peek(1).is_some() {}
            raw.ring_head(1);
        }
    };
    round(50);
    let before = counting::allocations();
    round(200);
    assert_eq!(counting::allocations(), before);
    raw.innocent();
}
