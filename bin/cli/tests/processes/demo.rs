//! `keymeld demo`, as a user runs it.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use keymeld_core::bytes::{Message, Signature, XOnlyKey};
use keymeld_core::id::{ItemId, KeygenId};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    keygen_id: KeygenId,
    participants: usize,
    enclaves: usize,
    aggregate_public_key: XOnlyKey,
    signatures: Vec<Signed>,
    timings_ms: Timings,
    verified: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    item_id: ItemId,
    message: Message,
    signature: Signature,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Timings {
    keygen: u64,
    signing: u64,
}

fn demo(arguments: &[&str]) -> Output {
    // The temporary folder of its own shows what is left behind.
    Command::new(env!("CARGO_BIN_EXE_keymeld")).arg("demo").args(arguments).output().expect("runs")
}

fn report(arguments: &[&str]) -> Report {
    let output = demo(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.ends_with(b"}\n"));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn its_report_is_one_object_whose_signatures_any_verifier_accepts() {
    for (arguments, participants, enclaves, messages) in [
        (vec![], 3, 3, 1),
        (
            vec!["--participants", "10", "--enclaves", "3", "--messages", "20", "--require-approval"],
            10,
            3,
            20,
        ),
        (vec!["--participants", "5", "--enclaves", "1"], 5, 1, 1),
        (vec!["--participants", "2", "--enclaves", "4", "--messages", "2"], 2, 4, 2),
    ] {
        let report = report(&arguments);
        assert_eq!((report.participants, report.enclaves), (participants, enclaves));
        assert_eq!(report.signatures.len(), messages);
        for Signed { message, signature, .. } in &report.signatures {
            crate::assert_bip340(&report.aggregate_public_key, message, signature);
        }
        let items: BTreeSet<_> = report.signatures.iter().map(|signed| signed.item_id).collect();
        assert_eq!(items.len(), messages);
        assert!(report.verified);
        assert!(report.timings_ms.keygen > 0);
        assert!(report.timings_ms.signing < 60_000);
        assert_ne!(report.keygen_id, KeygenId([0; 16]));
    }
}

#[test]
fn it_shows_its_steps_to_people() {
    let output = demo(&[]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for words in ["3 enclaves", "Alice reserved 3 slots", "aggregate key: ", "signature: ", "Done."] {
        assert!(text.contains(words), "no \"{words}\" in:\n{text}");
    }
}

#[test]
fn it_leaves_nothing_behind_but_what_it_is_told_to_keep() {
    let folder = tempfile::tempdir().expect("a folder");
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a folder");
    let kept = folder.path().join("kept");
    let mut command = Command::new(env!("CARGO_BIN_EXE_keymeld"));
    let command = command.arg("demo").arg("--keep").arg(&kept).env("TMPDIR", &scratch);
    assert!(command.output().expect("runs").status.success());
    assert_eq!(std::fs::read_dir(&scratch).expect("a folder").count(), 0);
    for name in ["keymeld.db", "gateway.toml", "enclave-3.toml", "participants/Carol/membership.json"] {
        assert!(kept.join(name).exists(), "{name}");
    }
    // A second demo does not write over the first.
    assert!(!command.output().expect("runs").status.success());
}

#[test]
fn bad_numbers_are_refused() {
    for arguments in
        [["--participants", "1"], ["--participants", "101"], ["--enclaves", "0"], ["--messages", "1001"]]
    {
        assert_eq!(demo(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}
