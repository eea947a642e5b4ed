//! See `keymeld_fuzz::targets::link::bundles`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::link::bundles(bytes));
