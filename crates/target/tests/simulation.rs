//! The shards in simulated worlds, one per seed. See `docs/testing.md`, section "Simulation".

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use testkit::simulation::{self, Counted, Report};

/// Seeds of an ordinary `cargo test`; `tools/test` asks for more.
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
    let world = AssertUnwindSafe(|| simulation::run(seed, printing));
    panic::catch_unwind(world).map_err(|panic| reason(panic.as_ref()))
}

/// Runs one seed (`TIDEGATE_SEED`), telling everything, or many (`TIDEGATE_SEEDS`, from `TIDEGATE_FIRST_SEED` on).
#[test]
fn worlds() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        if let Err(why) = run(seed, true) {
            panic!("seed {seed}: {why}");
        }
        return;
    }
    let first = number("TIDEGATE_FIRST_SEED").unwrap_or(0);
    let last = first + number("TIDEGATE_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let counted = Mutex::new((Counted::default(), 0, 0));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || failures.lock().unwrap().len() >= ENOUGH {
                        return;
                    }
                    match run(seed, false) {
                        Ok(report) => {
                            let mut counted = counted.lock().unwrap();
                            counted.0 += report.counted;
                            counted.1 += report.events;
                            counted.2 += report.time / 1_000_000_000;
                        }
                        Err(why) => failures.lock().unwrap().push((seed, why)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let (counted, events, seconds) = counted.into_inner().unwrap();
    println!("{} worlds, {events} events, {seconds} s of their time: {counted:?}", last - first);
    for (seed, why) in &failures {
        eprintln!(
            "seed {seed}: {why}\n  replay: TIDEGATE_SEED={seed} cargo test -p target --test simulation worlds -- --nocapture"
        );
    }
    assert!(failures.is_empty(), "{} of the worlds failed", failures.len());
}

#[test]
fn a_seed_is_the_same_world_every_time() {
    for seed in 1_000_000..1_000_008 {
        let (one, other) = (run(seed, false), run(seed, false));
        assert_eq!(one, other, "seed {seed}");
    }
}
