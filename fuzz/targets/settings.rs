//! See `keymeld_fuzz::targets::settings::settings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::settings::settings(bytes));
