//! See `keymeld_fuzz::targets::musig::rounds`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keymeld_fuzz::targets::musig::rounds(bytes));
