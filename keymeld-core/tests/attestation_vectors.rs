//! Real AWS Nitro attestation documents, which no one in this project made.

use std::path::PathBuf;
use std::{env, fs, thread};

use keymeld_core::attestation::document::Document;
use keymeld_core::attestation::{AWS_NITRO_ROOT_G1_SHA256, AttestationError, Root, verify, verify_at};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One document and what another implementation says of it.
struct Vector {
    file: String,
    bytes: Vec<u8>,
    entry: Value,
}

impl Vector {
    fn text(&self, field: &str) -> &str {
        self.entry[field].as_str().expect("a string of the index")
    }

    fn flag(&self, field: &str) -> bool {
        self.entry[field].as_bool().expect("a flag of the index")
    }

    fn unix_time_s(&self, field: &str) -> u64 {
        unix_time_s(self.text(field))
    }

    /// The verdict at the document's own time.
    fn expected(&self) -> Result<(), AttestationError> {
        let expect = &self.entry["expect"];
        let accepted = expect["accept_at_document_time_with_no_pcr_policy"].as_bool().expect("a flag");
        match expect["reason"].as_str() {
            None if accepted => Ok(()),
            Some("debug-mode enclave (PCR0 all zero)") if !accepted => Err(AttestationError::DebugMode),
            Some("COSE signature invalid") if !accepted => Err(AttestationError::SignatureInvalid),
            other => panic!("{}: an unknown verdict: {other:?}", self.file),
        }
    }
}

#[test]
fn the_embedded_root_is_the_published_file() {
    let Some(folder) = vectors() else { return };
    let der = fs::read(folder.join("nitro-root/AWS_NitroEnclaves_Root-G1.der")).expect("the root");
    assert_eq!(Root::aws_nitro_g1().der(), der);
    assert_eq!(Sha256::digest(&der)[..], AWS_NITRO_ROOT_G1_SHA256);
}

#[test]
fn every_real_document_gets_its_listed_verdict() {
    let Some(vectors) = documents() else { return };
    let root = Root::aws_nitro_g1();
    let (mut accepted, mut in_debug_mode, mut forged) = (0, 0, 0);
    for vector in &vectors {
        let file = &vector.file;
        let verdict = verify(&vector.bytes, &root);
        assert_eq!(verdict.clone().map(|_| ()), vector.expected(), "{file}");
        assert_fields(&Document::parse_unverified(&vector.bytes).expect("parses"), vector);

        let (first, last) = (vector.unix_time_s("chain_not_before"), vector.unix_time_s("chain_not_after"));
        let at = |unix_time_s| verify_at(&vector.bytes, &root, unix_time_s).map(|_| ());
        assert_eq!((at(first), at(last)), (vector.expected(), vector.expected()), "{file}");
        match vector.expected() {
            Err(AttestationError::SignatureInvalid) => forged += 1,
            verdict => {
                assert_eq!(at(first - 1), Err(AttestationError::CertificateNotYetValid), "{file}");
                assert_eq!(at(last + 1), Err(AttestationError::CertificateExpired), "{file}");
                if verdict.is_ok() { accepted += 1 } else { in_debug_mode += 1 }
            }
        }
    }
    assert_eq!((accepted, in_debug_mode, forged), (13, 5, 1));
    let indefinite = vectors.iter().filter(|vector| vector.flag("payload_indefinite_map")).count();
    assert_eq!((indefinite, vectors.len()), (4, 19));
}

/// In CI all bits of one document with a definite map and of one with an indefinite map, elsewhere and of the
/// others every `STRIDE`th: each flip inside the payload costs a P-384 verification, 4 ms without
/// optimisation, and a document has 36,000 bits.
#[test]
fn a_flipped_bit_is_refused_wherever_it_is() {
    /// Coprime with 8, so that every position within a byte occurs.
    const STRIDE: usize = 211;

    let Some(vectors) = documents() else { return };
    let root = &Root::aws_nitro_g1();
    let whole = [false, true].map(|indefinite| {
        let mut genuine = vectors.iter().filter(|vector| vector.expected().is_ok());
        let chosen = genuine.find(|vector| vector.flag("payload_indefinite_map") == indefinite);
        chosen.expect("both kinds occur").file.clone()
    });
    let flips: Vec<(&Vector, usize)> = vectors
        .iter()
        .filter(|vector| vector.flag("genuine"))
        .flat_map(|vector| {
            let stride = if in_ci() && whole.contains(&vector.file) { 1 } else { STRIDE };
            (0..vector.bytes.len() * 8).step_by(stride).map(move |bit| (vector, bit))
        })
        .collect();

    let threads = thread::available_parallelism().map_or(1, usize::from);
    let refused: usize = thread::scope(|scope| {
        let shares = flips.chunks(flips.len().div_ceil(threads));
        let running: Vec<_> =
            shares.map(|share| scope.spawn(move || count_refused_flips(share, root))).collect();
        running.into_iter().map(|thread| thread.join().expect("every flip was refused")).sum()
    });
    assert_eq!(refused, if in_ci() { 73_892 } else { 3_126 });
}

fn count_refused_flips(flips: &[(&Vector, usize)], root: &Root) -> usize {
    for (vector, bit) in flips {
        let mut bytes = vector.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let verdict = verify(&bytes, root);
        // Debug mode is looked at last: a document refused for that alone passed all else.
        assert!(
            !matches!(verdict, Ok(_) | Err(AttestationError::DebugMode)),
            "{} with bit {bit} flipped: {verdict:?}",
            vector.file
        );
    }
    flips.len()
}

#[test]
fn a_shortened_or_lengthened_document_is_refused() {
    let Some(vectors) = documents() else { return };
    for vector in &vectors {
        for length in 0..vector.bytes.len() {
            assert!(Document::parse_unverified(&vector.bytes[..length]).is_err(), "{} {length}", vector.file);
        }
        let longer = [&vector.bytes[..], &[0]].concat();
        assert_eq!(Document::parse_unverified(&longer), Err(AttestationError::TrailingBytes));
    }
}

#[test]
fn a_tag_changes_nothing() {
    let Some(vectors) = documents() else { return };
    let root = Root::aws_nitro_g1();
    for vector in vectors.iter().filter(|vector| !vector.flag("cose_tagged")) {
        let tagged = [&[0xd2], &vector.bytes[..]].concat();
        assert_eq!(verify(&tagged, &root).map(|_| ()), vector.expected(), "{}", vector.file);
    }
}

fn assert_fields(document: &Document, vector: &Vector) {
    let file = &vector.file;
    let hex = |bytes: &[u8]| base16ct::lower::encode_string(bytes);
    let optional = |field: &str| vector.entry[field].as_str().map(str::to_owned);
    assert_eq!(document.module_id, vector.text("module_id"), "{file}");
    assert_eq!(Some(document.timestamp_ms), vector.entry["timestamp_ms"].as_u64(), "{file}");
    assert_eq!(document.public_key.as_deref().map(hex), optional("public_key"), "{file}");
    assert_eq!(document.user_data.as_deref().map(hex), optional("user_data"), "{file}");
    assert_eq!(document.nonce.as_deref().map(hex), optional("nonce"), "{file}");
    assert_eq!(Some(document.pcrs.len() as u64), vector.entry["pcr_count"].as_u64(), "{file}");
    // The index leaves out registers of zeros.
    for (index, pcr) in &document.pcrs {
        let listed = vector.entry["pcrs"][index.to_string()].as_str();
        assert_eq!(hex(pcr), listed.unwrap_or(&"0".repeat(96)), "{file}");
    }
    assert_eq!(Some(document.cabundle.len() as u64 + 1), vector.entry["chain_len"].as_u64(), "{file}");
}

fn documents() -> Option<Vec<Vector>> {
    let folder = vectors()?.join("nitro-attestation");
    let index = fs::read(folder.join("index.json")).expect("the index");
    let index: Vec<Value> = serde_json::from_slice(&index).expect("an array");
    let read = |entry: Value| {
        let file = entry["file"].as_str().expect("a name").to_owned();
        let bytes = fs::read(folder.join(&file)).expect("the document");
        let hash = base16ct::lower::encode_string(&Sha256::digest(&bytes));
        assert_eq!(Some(hash.as_str()), entry["sha256"].as_str(), "{file}");
        Vector { file, bytes, entry }
    };
    Some(index.into_iter().map(read).collect())
}

/// The folder of vectors; `None`, and a word on where to get them, where it is absent outside CI.
fn vectors() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let folder = env::var_os("KEYMELD_VECTORS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if folder.join("nitro-attestation/index.json").is_file() {
        return Some(folder);
    }
    assert!(!in_ci(), "no vectors in {}", folder.display());
    println!(
        "skipped: no vectors in {}; they are public documents, in repositories such as \
         evervault/attestation-doc-validation; set KEYMELD_VECTORS to the folder that holds them",
        folder.display()
    );
    None
}

fn in_ci() -> bool {
    env::var("CI").as_deref() == Ok("true")
}

/// Seconds since 1970 of `YYYY-MM-DDTHH:MM:SS+00:00`.
fn unix_time_s(utc: &str) -> u64 {
    let (date, time) = utc.strip_suffix("+00:00").expect("UTC").split_once('T').expect("date and time");
    let number = |part: &str| part.parse::<u64>().expect("digits");
    let date: Vec<u64> = date.split('-').map(number).collect();
    let time: Vec<u64> = time.split(':').map(number).collect();
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = |year: u64| leaps(year) > leaps(year - 1);
    let days_before_month = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let (year, month) = (date[0], usize::try_from(date[1]).expect("a month"));
    let days = (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
        + days_before_month[month - 1]
        + u64::from(month > 2 && is_leap(year))
        + date[2]
        - 1;
    days * 86_400 + time[0] * 3_600 + time[1] * 60 + time[2]
}
