//! What the MuSig2 module keeps to itself.

use std::fs;
use std::path::{Path, PathBuf};

/// A nonce outside its guard aborts the process or leaks a key, so no other module may hold one.
#[test]
fn only_this_module_names_the_musig_library() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let guard = source.join("musig");
    let mut read = 0;
    for file in rust_files(&source) {
        if file.starts_with(&guard) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file is readable");
        let dense: String = text.split_whitespace().collect();
        // Whatever the way of importing it, in one path or in a group.
        let imports = dense.split("secp256k1::").skip(1).map(|rest| rest.split(';').next().unwrap_or(rest));
        for import in imports {
            assert!(!starts_with_musig(import), "{} names secp256k1::musig", file.display());
        }
        assert!(!dense.contains("musig2::"), "{} names musig2", file.display());
        assert!(!dense.contains("KeyAgg::unsorted"), "{} aggregates unsorted keys", file.display());
        read += 1;
    }
    assert!(read > 0, "no source files found");
}

#[test]
fn every_way_of_importing_it_is_noticed() {
    for import in ["musig", "musig::Session", "{musig}", "{PublicKey,musig::{Session,SecretNonce}}"] {
        assert!(starts_with_musig(import), "{import}");
    }
    for import in ["PublicKey", "{PublicKey,Scalar}", "schnorr::verify(&musig)"] {
        assert!(!starts_with_musig(import), "{import}");
    }
}

/// `musig...` or `{..., musig...}`.
fn starts_with_musig(import: &str) -> bool {
    match import.strip_prefix('{') {
        Some(group) => group.split([',', '{']).any(|item| item.starts_with("musig")),
        None => import.starts_with("musig"),
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
