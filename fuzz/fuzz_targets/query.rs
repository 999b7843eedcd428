//! Feeds query strings to the broker: see `src/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| headwater::fuzzing::query(bytes));
