//! See `keymeld_fuzz::targets::sealed::envelopes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::sealed::envelopes(bytes));
