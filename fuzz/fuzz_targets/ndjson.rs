//! Feeds lines of NDJSON to the broker: see `src/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| headwater::fuzzing::ndjson(bytes));
