//! The bodies of the fuzz targets on what is known: the seeds, which do what their names say, and
//! everything in `fuzz/corpus/`, where what a fuzzer once found stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};

use testkit::{Random, fuzz};

/// Mutants of each seed that every run tries; `MUTANTS` in the environment for more.
const MUTANTS: u64 = 500;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

/// Runs the seeds, then the files, then what is left when each is cut short.
fn replay(target: &str, run: fn(&[u8]) -> u32) {
    for seed in fuzz::seeds(target) {
        assert_eq!(run(&seed.bytes), seed.succeeded, "{target}: {}", seed.name);
        for end in (0..seed.bytes.len()).step_by(7) {
            run(&seed.bytes[..end]);
        }
    }
    mutate(target, run);
    let mut files = 0;
    for entry in fs::read_dir(corpus(target)).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        files += 1;
    }
    assert!(files >= fuzz::seeds(target).len(), "{target}: only {files} files");
}

/// Says which mutant it was, if it was the last.
struct Named(String, Vec<u8>);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: {:02x?}", self.0, self.1);
        }
    }
}

/// Runs the seeds with some of their bytes changed, moved, repeated or gone.
fn mutate(target: &str, run: fn(&[u8]) -> u32) {
    let seeds = fuzz::seeds(target);
    let mutants = std::env::var("MUTANTS").map_or(MUTANTS, |text| text.parse().unwrap());
    for (index, seed) in (0_u64..).zip(&seeds) {
        for number in 0..mutants {
            let mut random = Random::new(index << 32 | number);
            let mut bytes = seed.bytes.clone();
            for _ in 0..=random.below(4) {
                let at = random.index(bytes.len());
                let end = (at + 1 + random.index(80)).min(bytes.len());
                let piece = bytes.get(at..end).unwrap_or(&[]).to_vec();
                match random.below(5) {
                    0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                    2 if at < bytes.len() => {
                        bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.index(5)];
                    }
                    3 => drop(bytes.splice(at..at, piece)),
                    _ => drop(bytes.drain(at..end)),
                }
            }
            let mutant = Named(format!("{target}: mutant {number} of {}", seed.name), bytes);
            run(&mutant.1);
        }
    }
}

#[test]
fn pdus() {
    replay("pdus", |bytes| {
        fuzz::pdus(bytes);
        0
    });
}

#[test]
fn capsules() {
    replay("capsules", fuzz::capsules);
}

#[test]
fn connections() {
    replay("connections", fuzz::connections);
}

#[test]
fn rdma() {
    replay("rdma", fuzz::rdma);
}

/// The seeds as they are now are what the fuzzer starts from: `WRITE_SEEDS=1` writes them.
#[test]
fn the_seeds_are_in_the_corpus() {
    for target in ["pdus", "capsules", "connections", "rdma"] {
        for seed in fuzz::seeds(target) {
            let path = corpus(target).join(seed.name);
            if std::env::var_os("WRITE_SEEDS").is_some() {
                fs::create_dir_all(corpus(target)).unwrap();
                fs::write(&path, &seed.bytes).unwrap();
            }
            assert!(fs::read(&path).unwrap() == seed.bytes, "{} is out of date", path.display());
        }
    }
}
