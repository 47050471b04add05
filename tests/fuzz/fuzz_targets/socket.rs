#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shadowset::testing::fuzz::run("socket", bytes));
