//! See `keymeld_fuzz::targets::attestation::certificates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::attestation::certificates(bytes));
