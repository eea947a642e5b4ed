//! See `keymeld_fuzz::targets::artifacts::artifacts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::artifacts::artifacts(bytes));
