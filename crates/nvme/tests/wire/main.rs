//! Every structure against bytes written out by hand from the specification, and properties of
//! every conversion between bytes and meaning.
//!
//! The offsets in these files are those of the specification's figures, not those of the
//! structures: a field that moved must fail here.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod commands;
mod fabrics;
mod identify;
mod logs;
mod names;
mod pcie;
mod rdma;
mod registers;
mod tcp;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `size` zero bytes with pieces laid over them.
fn bytes(size: usize, pieces: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (offset, piece) in pieces {
        assert!(
            bytes[*offset..*offset + piece.len()].iter().all(|byte| *byte == 0),
            "overlap at {offset}"
        );
        bytes[*offset..*offset + piece.len()].copy_from_slice(piece);
    }
    bytes
}

/// That a structure has exactly these bytes, and comes back from them.
#[track_caller]
fn golden<T>(value: &T, expected: &[u8])
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + PartialEq + std::fmt::Debug,
{
    let actual = value.as_bytes();
    assert_eq!(actual.len(), expected.len(), "length");
    for (offset, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(actual, expected, "byte {offset}");
    }
    assert_eq!(&T::read_from_bytes(expected).unwrap(), value);
}

/// Numbers every byte of a structure, so that a field read through its name shows its offset: byte
/// n holds n modulo 251.
fn numbered<T: FromBytes>() -> T {
    let bytes: Vec<u8> = (0..size_of::<T>()).map(|n| (n % 251) as u8).collect();
    T::read_from_bytes(&bytes).unwrap()
}
