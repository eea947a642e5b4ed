//! See `keymeld_fuzz::targets::attestation::paths`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::attestation::paths(bytes));
