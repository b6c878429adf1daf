//! The body of the fuzz target on everything in `fuzz/corpus/rpc_stream/`: whole, cut short, and changed.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

#[path = "../fuzz/stream.rs"]
mod body;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/rpc_stream");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_holds() {
    let corpus = corpus();
    assert!(corpus.len() >= 12, "only {} files", corpus.len());
    for bytes in corpus {
        for end in 0..=bytes.len() {
            body::stream(&bytes[..end]);
        }
    }
}

/// One change of a text: bytes of any text of the corpus are put in the place of some of its own.
fn change() -> impl Strategy<Value = (Index, usize, Index, Index, usize)> {
    (any::<Index>(), 0_usize..40, any::<Index>(), any::<Index>(), 0_usize..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutants_of_the_corpus_hold(
        of in any::<Index>(),
        piece in 1_u8..100,
        changes in prop::collection::vec(change(), 1..5),
        flip in prop::option::of((any::<Index>(), any::<u8>())),
    ) {
        let corpus = corpus();
        let mut bytes = of.get(&corpus).clone();
        for (at, gone, from, start, length) in changes {
            let (at, from) = (at.index(bytes.len() + 1), from.get(&corpus));
            let start = start.index(from.len() + 1);
            let new = from[start..(start + length).min(from.len())].iter().copied();
            bytes.splice(at..(at + gone).min(bytes.len()), new);
        }
        if let Some((at, byte)) = flip && !bytes.is_empty() {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes.insert(0, piece);
        body::stream(&bytes);
    }
}
