//! See `keymeld_fuzz::targets::sealed::signed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::sealed::signed(bytes));
