//! See `keymeld_fuzz::targets::http::rest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::http::rest(bytes));
