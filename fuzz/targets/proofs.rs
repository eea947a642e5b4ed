//! See `keymeld_fuzz::targets::http::proofs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::http::proofs(bytes));
