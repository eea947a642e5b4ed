//! What people do when all goes well, and what each command tells them.

use std::fs::File;
use std::io::Write;

use keymeld_core::bytes::{Message, Signature, XOnlyKey};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use super::{Ended, Hand, text};

fn assert_signed(one: &Value) {
    let key = XOnlyKey::from_hex(&text(&one["key"])).expect("a key");
    let message = Message::from_hex(&text(&one["message"])).expect("a message");
    let signature = Signature::from_hex(&text(&one["signature"])).expect("a signature");
    crate::assert_bip340(&key, &message, &signature);
}

#[test]
fn three_people_in_three_directories_make_a_key_and_sign() {
    let hand = Hand::start();
    let url = hand.children.url();
    let enclaves = hand.plain(&["enclaves", "--gateway", &url, "--policy", "policy.json", "--json"]);
    assert_eq!(enclaves.code, Some(0));
    let trusted = enclaves.json()["enclaves"].as_array().expect("a list").clone();
    assert!(trusted.len() == 2 && trusted.iter().all(|one| one["trusted"] == true), "{trusted:?}");

    hand.key("alice");
    let bob_key = hand.key("bob");
    hand.key("carol");
    let pinned = format!("bob={bob_key}");
    let mut words = vec!["reserve", "--gateway", &url, "--name", "alice", "--participant", &pinned];
    words.extend(["--participant", "carol", "--subset", "alice,bob", "--tweak", "taproot"]);
    let reserved = hand.done("alice", &words);
    assert_eq!(
        hand.ends("alice", &["invite", "bob", "--out", "bob.invite"], 1)["error"]["code"],
        "not-initialised"
    );
    assert!(!hand.path("bob.invite").exists());
    hand.done("alice", &["init"]);
    hand.invite("bob");
    hand.invite("carol");
    hand.done("alice", &["join"]);
    hand.done("bob", &["join", "--invite", "bob.invite"]);

    let status = hand.ends("bob", &["status"], 3);
    assert_eq!(
        (&status["state"], &status["keygen_id"]),
        (&"CollectingParticipants".into(), &reserved["keygen_id"])
    );
    let registered: Vec<_> = status["participants"].as_array().expect("a list").iter().collect();
    assert_eq!(registered.iter().filter(|one| one["registered"] == true).count(), 2);
    assert_eq!(hand.ends("bob", &["roster"], 3)["error"]["code"], "not-completed");
    hand.done("carol", &["join", "--invite", "carol.invite", "--delegate"]);
    hand.done("bob", &["status", "--wait"]);

    let rosters = ["alice", "bob", "carol"].map(|name| hand.done(name, &["roster", "--wait"]));
    for roster in &rosters {
        for field in ["keygen_id", "key", "code", "roster_hash", "aggregate_key", "subsets"] {
            assert_eq!(roster[field], rosters[0][field], "{field}");
        }
        let pins: Vec<_> =
            roster["participants"].as_array().expect("a list").iter().map(|one| &one["pinned"]).collect();
        assert_eq!(pins, [true, true, false]);
        assert_eq!(text(&roster["code"]).len(), 30);
    }
    assert_eq!(rosters[0]["participants"][1]["public_key"], bob_key.as_str());

    std::fs::write(hand.path("contract"), "the whole contract").expect("writes");
    let asked = hand.done("alice", &["sign", "--text", "pay 1 to Dave", "--file", "contract"]);
    let (id, digest) = (text(&asked["signing_id"]), text(&asked["digest"]));
    let waiting = hand.ends("alice", &["status", &id], 3);
    assert_eq!(waiting["awaited"].as_array().map(Vec::len), Some(1));
    let intent = hand.done("bob", &["intent", &id]);
    assert_eq!((&intent["digest"], &intent["waits_for_you"]), (&digest.as_str().into(), &true.into()));
    assert_eq!(intent["items"][0]["origin"]["text"], "pay 1 to Dave");
    assert_eq!(intent["items"][0]["key"], rosters[0]["key"]);
    hand.done("bob", &["approve", &id, "--digest", &digest]);
    let signed = hand.done("carol", &["status", &id, "--wait"]);
    let signatures = signed["signatures"].as_array().expect("a list");
    assert_eq!(signatures.len(), 2);
    signatures.iter().for_each(assert_signed);
    assert_eq!(signatures[0]["key"], rosters[0]["key"]);

    // Anybody verifies, from what was signed itself.
    let (key, signature) = (text(&signatures[1]["key"]), text(&signatures[1]["signature"]));
    let verify = ["verify", "--key", &key, "--signature", &signature];
    for (what, code) in [(["--file", "contract"], 0), (["--file", "policy.json"], 4), (["--text", "no"], 4)] {
        assert_eq!(hand.plain(&[&verify[..], &what[..]].concat()).code, Some(code), "{what:?}");
    }

    // A subset signs without carol, under its own key.
    let asked = hand.done("alice", &["sign", "--text", "ours", "--subset", "bob,alice", "--no-tweak"]);
    let (id, digest) = (text(&asked["signing_id"]), text(&asked["digest"]));
    hand.done("bob", &["approve", &id, "--digest", &digest]);
    let signed = hand.done("alice", &["status", &id, "--wait"]);
    assert_signed(&signed["signatures"][0]);
    assert_ne!(signed["signatures"][0]["key"], rosters[0]["key"]);
}

#[test]
fn what_was_declined_or_cancelled_says_so_to_everybody() {
    let hand = Hand::start();
    hand.keygen();
    let id = text(&hand.done("alice", &["sign", "--text", "one"])["signing_id"]);
    assert_eq!(hand.ends("bob", &["cancel", &id], 2)["error"]["code"], "usage");
    assert_eq!(hand.ends("alice", &["decline", &id], 2)["error"]["code"], "usage");
    hand.done("bob", &["decline", &id, "--reason", "who is this for?"]);
    for name in ["alice", "bob", "carol"] {
        let error = hand.ends(name, &["status", &id], 1)["error"].clone();
        assert_eq!((&error["code"], &error["reason"]), (&"declined".into(), &"who is this for?".into()));
        assert_eq!(
            (error["signing_id"].as_str(), error["culprits"].as_array().map(Vec::len)),
            (Some(&*id), Some(1))
        );
    }
    let id = text(&hand.done("alice", &["sign", "--text", "two"])["signing_id"]);
    hand.done("alice", &["cancel", &id]);
    assert_eq!(hand.ends("bob", &["status", &id, "--wait"], 1)["error"]["code"], "cancelled");
}

#[test]
fn a_keygen_that_nobody_joins_fails_in_time_and_says_so() {
    let hand = Hand::start();
    hand.key("alice");
    let url = hand.children.url();
    hand.done("alice", &[&hand.reserve(&url)[..], &["--join-within", "1"]].concat());
    let failed = loop {
        let looked = hand.run("alice", &["status", "--json"]);
        match looked.code {
            Some(3) => assert_eq!(looked.json()["state"], "Reserved"),
            Some(1) => break looked.json(),
            other => panic!("{other:?}: {looked:?}"),
        }
    };
    assert_eq!((&failed["state"], &failed["failure"]), (&"Failed".into(), &"expired".into()));
    // Its slots have no manifest, and never will have.
    for (words, code) in [(&["init"][..], "expired"), (&["join"], "wrong-state")] {
        assert_eq!(hand.ends("alice", words, 1)["error"]["code"], code, "{words:?}");
    }
}

#[test]
fn waiting_in_vain_is_no_fault_of_the_gateway() {
    let hand = Hand::start();
    hand.keygen();
    let id = text(&hand.done("alice", &["sign", "--text", "one"])["signing_id"]);
    for _ in 0..3 {
        let error = hand.ends("bob", &["status", &id, "--wait", "--timeout", "1"], 3)["error"].clone();
        assert_eq!((&error["code"], &error["signing_id"]), (&"timed-out".into(), &id.as_str().into()));
    }
}

#[test]
fn a_request_that_does_not_get_through_is_named_and_goes_on() {
    let mut hand = Hand::start();
    hand.keygen();
    let words = ["sign", "--text", "one", "--timeout", "2"];
    // Kept while the gateway is there, and then it is gone.
    let mut asking = hand.command_as("alice", &["sign", "--text", "one", "--wait"]);
    let mut asking = asking.stdout(std::process::Stdio::null()).spawn().expect("starts");
    let folder = hand.keygen_folder("alice");
    while !super::list(&folder).iter().any(|path| path.display().to_string().contains("/request-")) {
        std::thread::yield_now();
    }
    hand.children.gateway.kill().expect("kills");
    asking.kill().expect("kills");
    asking.wait().expect("ends");
    assert_eq!(hand.ends("alice", &words, 3)["error"]["code"], "gateway-away");
    hand.children.gateway.restart().expect("restarts");
    assert_eq!(hand.done("alice", &words)["resumed"], true);
}

#[test]
fn nothing_is_approved_that_was_not_reviewed() {
    let hand = Hand::start();
    hand.keygen();
    let blind = "07".repeat(32);
    let asked = hand.done("alice", &["sign", "--blind", &blind]);
    let (id, digest) = (text(&asked["signing_id"]), text(&asked["digest"]));
    assert_eq!(hand.ends("bob", &["approve", &id], 2)["error"]["code"], "usage");
    let other = "00".repeat(32);
    assert_eq!(hand.ends("bob", &["approve", &id, "--digest", &other], 1)["error"]["code"], "other-digest");
    let approve = ["approve", &id, "--digest", &digest];
    assert_eq!(hand.ends("bob", &approve, 1)["error"]["code"], "blind-not-allowed");
    assert_eq!(hand.done("bob", &["intent", &id])["blind"], true);
    let told = hand.run("bob", &["intent", &id]).stdout;
    assert!(told.contains("BLIND") && told.contains(&blind), "{told}");
    hand.done("bob", &[&approve[..], &["--blind"]].concat());
    // Carol delegated, but not for what nobody can read.
    assert_eq!(hand.done("bob", &["intent", &id])["missing"].as_array().map(Vec::len), Some(1));
}

/// A terminal: what somebody types, and the end that a command reads.
fn terminal() -> (File, File) {
    let typed = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&typed).and_then(|()| unlockpt(&typed)).expect("opens");
    let name = ptsname(&typed, Vec::new()).expect("a name");
    let read = open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opens");
    (File::from(typed), File::from(read))
}

#[test]
fn a_person_at_a_terminal_is_shown_the_intent_and_asked() {
    let hand = Hand::start();
    hand.keygen();
    let asked = hand.done("alice", &["sign", "--text", "a boat"]);
    let (id, digest) = (text(&asked["signing_id"]), text(&asked["digest"]));
    for (answer, code) in [("no\n", 1), ("\n", 1), ("yes please\n", 1), ("yes\n", 0)] {
        let (mut typed, read) = terminal();
        typed.write_all(answer.as_bytes()).expect("types");
        let ended = Ended::of(hand.command_as("bob", &["approve", &id]).stdin(read).output().expect("runs"));
        assert_eq!(ended.code, Some(code), "{answer:?}: {ended:?}");
        assert!(ended.stderr.contains(&digest) && ended.stderr.contains("\"a boat\""), "{ended:?}");
        let (words, seen) = match code {
            0 => (&["status", &id, "--wait"][..], 0),
            _ => (&["status", &id][..], 3),
        };
        hand.ends("carol", words, seen);
    }
    // A program that wants JSON cannot be asked, nor can anybody whose key takes the terminal.
    for more in [&["--json"][..], &["--key-fd", "0"]] {
        let (_typed, read) = terminal();
        let mut command = hand.command(&["approve", &id, "--home", "bob", "--policy", "policy.json"]);
        let ended = command.args(more).stdin(read).output().expect("runs");
        assert_eq!(ended.status.code(), Some(2), "{more:?}");
    }
}

#[test]
fn every_command_has_examples_and_the_exit_codes_are_documented() {
    let hand = Hand::start();
    let whole = hand.plain(&["--help"]).stdout;
    assert!(whole.contains("Exit codes:\n  0  done"), "{whole}");
    for command in [
        "keygen-key",
        "policy",
        "enclaves",
        "reserve",
        "init",
        "invite",
        "join",
        "roster",
        "status",
        "sign",
        "intent",
        "approve",
        "decline",
        "cancel",
        "verify",
    ] {
        assert!(whole.contains(&format!("\n  {command}")), "{command}: {whole}");
        let help = hand.plain(&[command, "--help"]);
        assert!(
            help.code == Some(0) && help.stdout.contains(&format!("  keymeld {command} ")),
            "{command}: {help:?}"
        );
        assert!(help.stdout.contains("--json"), "{command}");
    }
}
