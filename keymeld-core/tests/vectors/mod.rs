//! Finds the test vectors, which no one in this project wrote and which are not copied into it.
//!
//! They are read from `$KEYMELD_VECTORS`, or else from `../shared/vectors` beside the workspace; what is in
//! there, and where each file comes from, says its `MANIFEST.md`. With `CI=true` a missing file is a failure;
//! elsewhere the test says that it is skipped.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

use std::path::PathBuf;
use std::{env, fs};

use serde_json::Value;

/// The bytes of one file, named by its path inside the folder; `None` where the test is to be skipped.
///
/// # Panics
/// With `CI=true` where the file cannot be read.
pub(crate) fn read(path: &str) -> Option<Vec<u8>> {
    let file = folder().join(path);
    match fs::read(&file) {
        Ok(bytes) => Some(bytes),
        Err(error) if env::var("CI").is_ok_and(|value| value == "true") => {
            panic!("test vectors are missing: {}: {error}", file.display())
        }
        Err(error) => {
            eprintln!(
                "SKIPPED: {}: {error}. Put the public files that MANIFEST.md of the vectors folder names \
                 (for the BIPs: github.com/bitcoin/bips) there, or set KEYMELD_VECTORS.",
                file.display()
            );
            None
        }
    }
}

/// Decodes hex of either case.
///
/// # Panics
/// Where it is not hex.
pub(crate) fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        hex.chars().map(|c| c.to_digit(16).unwrap_or_else(|| panic!("not hex: {hex}"))).collect();
    assert!(digits.len().is_multiple_of(2), "odd number of digits: {hex}");
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits")).collect()
}

/// Decodes hex of exactly `N` bytes.
///
/// # Panics
/// Where it is not that.
pub(crate) fn unhex_array<const N: usize>(hex: &str) -> [u8; N] {
    unhex(hex).try_into().unwrap_or_else(|bytes: Vec<u8>| panic!("{} bytes, not {N}: {hex}", bytes.len()))
}

/// The strings of a JSON array.
pub(crate) fn hexes(value: &Value) -> impl Iterator<Item = &str> {
    array(value).iter().map(text)
}

/// A JSON array.
pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

/// A JSON string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// A JSON number that is an index.
pub(crate) fn number(value: &Value) -> usize {
    value.as_u64().expect("an index").try_into().expect("a small index")
}

fn folder() -> PathBuf {
    match env::var_os("KEYMELD_VECTORS") {
        Some(folder) => folder.into(),
        None => [env!("CARGO_MANIFEST_DIR"), "..", "..", "shared", "vectors"].iter().collect(),
    }
}
