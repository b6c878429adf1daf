//! See the body.

#![no_main]

#[path = "../../crates/control/tests/fuzz/stream.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    body::stream(bytes);
});
