//! See `keymeld_fuzz::targets::http::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::http::requests(bytes));
