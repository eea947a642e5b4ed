//! See `keymeld_fuzz::targets::gateway::rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::gateway::rows(bytes));
