//! See `keymeld_fuzz::targets::attestation::policies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::attestation::policies(bytes));
