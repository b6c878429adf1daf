//! See `testkit::fuzz::capsules`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testkit::fuzz::capsules(bytes);
});
