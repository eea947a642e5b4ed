//! See `keymeld_fuzz::targets::enclave::events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::enclave::events(bytes));
