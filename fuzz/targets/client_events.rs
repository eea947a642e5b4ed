//! See `keymeld_fuzz::targets::client::events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::client::events(bytes));
