//! See `keymeld_fuzz::targets::sealed::seals`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::sealed::seals(bytes));
