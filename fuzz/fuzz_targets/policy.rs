//! See `hydra_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hydra_tests::fuzz::policy(bytes));
