//! See `keymeld_fuzz::targets::attestation::user_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::attestation::user_data(bytes));
