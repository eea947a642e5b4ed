//! Golden files: the exact bytes of every artifact, message and row, as text in this folder.
//!
//! Whatever changes one of them changes a format that clients, enclaves or databases already have. A test
//! fails where bytes differ; to write the files anew, and to read in the diff what has changed:
//!
//! ```text
//! KEYMELD_GOLDEN=write cargo test -p keymeld-core golden
//! ```
//!
//! JSON is stored as it is, everything else as hex; both with a line feed at the end that is not a part of it.
//! All keys in them come from [`test_entropy`](keymeld_core::entropy::test_entropy) and protect nothing.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

use std::path::PathBuf;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{env, format, fs, panic};

/// Compares JSON with its file.
///
/// # Panics
/// Where they differ.
pub(crate) fn check_json(name: &str, bytes: &[u8]) {
    let text = core::str::from_utf8(bytes).expect("JSON is text");
    check(&format!("{name}.json"), text.to_string());
}

/// Compares text with its file.
///
/// # Panics
/// Where they differ.
pub(crate) fn check_text(name: &str, text: &str) {
    check(&format!("{name}.txt"), text.to_string());
}

/// The JSON of a golden file.
///
/// # Panics
/// Where there is none.
pub(crate) fn json(name: &str) -> Vec<u8> {
    let path = path(&format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.strip_suffix('\n').expect("written by check").into()
}

/// Compares bytes with their file.
///
/// # Panics
/// Where they differ.
pub(crate) fn check_hex(name: &str, bytes: &[u8]) {
    check(&format!("{name}.hex"), base16ct::lower::encode_string(bytes));
}

fn check(file: &str, made: String) {
    let path = path(file);
    let made = made + "\n";
    if env::var("KEYMELD_GOLDEN").is_ok_and(|value| value == "write") {
        fs::write(&path, made).expect("the folder is writable");
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(made, golden, "{file}: the format has changed; tests/golden/mod.rs says how to accept that");
}

fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", file].iter().collect()
}
