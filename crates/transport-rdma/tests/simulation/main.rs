//! The transport in simulated worlds, one per seed: devices of every kind, hosts of every temper, and what befalls them.
//!
//! Each world is a node on software devices with a disk that takes its time (`testkit::rdma`), and hosts over raw verbs. The
//! oracle of the target's simulation judges what reads return; the hosts see that every command is answered once, that nothing
//! is written beside the memory that a command names, and that keys are invalidated where that was asked. When a world ends, hosts
//! rest and everything has to be answered; when they have gone, nothing may be left. A third of the worlds is calm: there, nothing
//! may fail.
//!
//!     TIDEGATE_SEEDS=5000 cargo test -p transport-rdma --test simulation
//!     TIDEGATE_SEED=1154 cargo test -p transport-rdma --test simulation worlds -- --nocapture

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod command;
mod fate;
mod guest;
mod life;
mod scenario;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use life::{Life, Report};

/// Seeds of an ordinary `cargo test`.
const SEEDS: u64 = 300;
/// Failures after which a run has seen enough.
const ENOUGH: usize = 5;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

fn run(seed: u64, printing: bool) -> Result<Report, String> {
    let life = AssertUnwindSafe(|| Life::new(seed, printing).run());
    panic::catch_unwind(life).map_err(|panic| reason(panic.as_ref()))
}

#[test]
fn worlds() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        match run(seed, true) {
            Ok(report) => println!("{report:?}"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
        return;
    }
    let first = number("TIDEGATE_FIRST_SEED").unwrap_or(0);
    let last = first + number("TIDEGATE_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let total = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || failures.lock().unwrap().len() >= ENOUGH {
                        return;
                    }
                    match run(seed, false) {
                        Ok(report) => total.lock().unwrap().add(&report),
                        Err(why) => failures.lock().unwrap().push((seed, why)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{} worlds: {:?}", last - first, total.into_inner().unwrap());
    for (seed, why) in &failures {
        eprintln!(
            "seed {seed}: {why}\n  replay: TIDEGATE_SEED={seed} cargo test -p transport-rdma --test simulation worlds -- --nocapture"
        );
    }
    assert!(failures.is_empty(), "{} of the worlds failed", failures.len());
}

#[test]
fn a_seed_is_the_same_world_every_time() {
    for seed in 1_000_000..1_000_006 {
        assert_eq!(run(seed, false), run(seed, false), "seed {seed}");
    }
}
