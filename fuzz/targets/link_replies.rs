//! See `keymeld_fuzz::targets::link::replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::link::replies(bytes));
