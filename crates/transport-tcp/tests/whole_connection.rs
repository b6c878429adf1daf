//! Whole connections without sockets: any host, good or bad, beside a good one that must not notice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, missing_docs)]

mod support;

use proptest::prelude::*;
use support::whole::run;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_host_leaves_the_others_alone(script in prop::collection::vec(any::<u8>(), 1..600)) {
        run(&script);
    }
}

/// Scripts that once showed something, or that reach a corner by design.
#[test]
fn the_corpus_holds() {
    // An I/O queue with digests whose host asks for many large writes and sends no data.
    let mut hoarder = vec![15];
    for cid in 0..32 {
        hoarder.extend([120, cid, 0, 255]);
    }
    run(&hoarder);
    // The same, and then it sends all of the data after all.
    for _ in 0..32 {
        hoarder.extend([172, 0, 0, 0, 200]);
    }
    run(&hoarder);
    // Reads without end from a host that does not listen.
    let mut deaf = vec![3, 255, 0, 0, 0];
    for cid in 0..64 {
        deaf.extend([3, cid, 0, 31]);
    }
    run(&deaf);
    // In-capsule writes among large ones that use up the pool, then the data: capsules are parked.
    let mut mixed = vec![3];
    for cid in 0..8 {
        mixed.extend([120, cid, 0, 255, 64, cid + 8, cid, 15]);
    }
    for _ in 0..8 {
        mixed.extend([172, 0, 0, 0, 200]);
    }
    run(&mixed);
    // Slots run short while a host that does not listen owes data: the good host's read waits for its deadline.
    run(&SHORT_OF_SLOTS);
}

#[rustfmt::skip]
const SHORT_OF_SLOTS: [u8; 485] = [
    91, 172, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0,
    0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0,
    0, 3, 0, 0, 0, 3, 0, 0, 0, 120, 0, 0, 0, 120, 6, 32, 0, 3, 0, 0, 0, 3, 0, 0,
    0, 3, 0, 0, 0, 0, 32, 0, 0, 3, 0, 0, 0, 120, 41, 0, 0, 3, 0, 0, 0, 3, 0, 0,
    0, 172, 0, 0, 0, 9, 3, 0, 0, 0, 120, 0, 0, 0, 224, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 120, 1, 0, 0, 3, 0, 0, 0, 246, 0, 0, 0, 3, 2,
    0, 16, 64, 0, 0, 0, 172, 0, 0, 0, 9, 172, 0, 0, 0, 9, 172, 0, 0, 0, 9, 64, 0, 0,
    0, 3, 0, 0, 0, 172, 0, 0, 0, 9, 224, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 3, 2, 0, 232, 120, 3, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0,
    0, 0, 224, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0,
    0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 39,
    0, 0, 3, 132, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0,
    0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0,
    0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 6, 0, 0, 0, 0,
    0, 0, 0, 0, 172,
];
