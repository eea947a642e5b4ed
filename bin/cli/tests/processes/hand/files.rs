//! What the commands make of files: their own, the user's, and ones that were altered.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::{Ended, Hand, list, text};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("sets");
}

fn modes(folder: &Path) -> Vec<u32> {
    let mut found = vec![fs::metadata(folder).expect("is there").permissions().mode() & 0o7777];
    for path in list(folder) {
        if path.is_dir() {
            found.extend(modes(&path));
        } else {
            found.push(fs::metadata(path).expect("is there").permissions().mode() & 0o7777 | 0o100);
        }
    }
    found
}

#[test]
fn nobody_else_can_read_what_is_kept_and_what_others_can_open_is_not_used() {
    let hand = Hand::start();
    hand.keygen();
    for name in ["alice", "bob"] {
        assert!(modes(&hand.path(name)).iter().all(|mode| *mode == 0o700), "{:?}", modes(&hand.path(name)));
    }
    for file in ["alice.key", "bob.invite"] {
        assert_eq!(fs::metadata(hand.path(file)).expect("is there").permissions().mode() & 0o7777, 0o600);
    }
    let keygen = hand.keygen_folder("alice");
    for (path, open, good, code) in [
        (hand.path("alice"), 0o750, 0o700, "bad-state-directory"),
        (keygen.clone(), 0o701, 0o700, "bad-state-directory"),
        (keygen.join("membership.json"), 0o640, 0o600, "bad-state-directory"),
        (keygen.join("session.json"), 0o604, 0o600, "bad-state-directory"),
        (hand.path("alice").join("births.json"), 0o640, 0o600, "bad-state-directory"),
        (hand.path("alice.key"), 0o640, 0o600, "bad-input"),
        (hand.path("policy.json"), 0o666, 0o644, "bad-input"),
    ] {
        set_mode(&path, open);
        let refused = hand.ends("alice", &["status"], 2);
        assert_eq!(refused["error"]["code"], code, "{}", path.display());
        let message = text(&refused["error"]["message"]);
        assert!(message.contains("chmod"), "{message}");
        set_mode(&path, good);
        hand.done("alice", &["status"]);
    }
    set_mode(&hand.path("bob.invite"), 0o644);
    assert_eq!(hand.ends("bob", &["join", "--invite", "bob.invite"], 2)["error"]["code"], "bad-input");
}

#[test]
fn keys_come_from_a_file_a_descriptor_or_standard_input() {
    let hand = Hand::start();
    hand.keygen();
    let words = ["status", "--home", "alice", "--policy", "policy.json"];
    let without = Ended::of(hand.command(&words).output().expect("runs"));
    assert_eq!(without.code, Some(2), "{without:?}");
    let key = fs::read(hand.path("alice.key")).expect("reads");
    let piped = |more: &[&str]| {
        let mut command = hand.command(&[&words[..], more].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        child.stdin.take().expect("piped").write_all(&key).expect("writes");
        Ended::of(child.wait_with_output().expect("ends"))
    };
    for more in [&["--key-file", "-"][..], &["--key-fd", "0"]] {
        assert_eq!(piped(more).code, Some(0), "{more:?}");
    }
    let mut command = hand.command(&words);
    let input = File::open(hand.path("alice.key")).expect("opens");
    let by_descriptor = command.args(["--key-fd", "0"]).stdin(input).output().expect("runs");
    assert_eq!(Ended::of(by_descriptor).code, Some(0));
    let by_variable = hand.command(&words).env("KEYMELD_KEY_FILE", "alice.key").output().expect("runs");
    assert_eq!(Ended::of(by_variable).code, Some(0));
    for wrong in ["bob.key", "policy.json", "no-such-file", "alice"] {
        let ended = Ended::of(hand.command(&words).args(["--key-file", wrong]).output().expect("runs"));
        assert_eq!(ended.code, Some(2), "{wrong}: {ended:?}");
    }
    // A key that is there is not written over.
    let again = hand.plain(&["keygen-key", "--out", "alice.key"]);
    assert_eq!((again.code, fs::read(hand.path("alice.key")).expect("reads")), (Some(2), key));
}

#[test]
fn two_commands_do_not_work_in_one_directory_at_once() {
    let hand = Hand::start();
    hand.key("alice");
    hand.done("alice", &hand.reserve(&hand.children.url()));
    hand.done("alice", &["init"]);
    hand.done("alice", &["join"]);
    let wait =
        || hand.command_as("alice", &["roster", "--wait"]).stdout(Stdio::null()).spawn().expect("starts");
    let mut waiting = wait();
    let lock = File::open(hand.path("alice").join("lock")).expect("opens");
    // Until it has got so far.
    while !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
        lock.unlock().expect("unlocks");
        thread::sleep(Duration::from_millis(5));
        // It ends where it meets the lock of this look.
        if waiting.try_wait().expect("a child").is_some() {
            waiting = wait();
        }
    }
    assert_eq!(hand.ends("alice", &["status"], 3)["error"]["code"], "busy");
    // A lock ends with its process, however that ends.
    waiting.kill().expect("kills");
    waiting.wait().expect("ends");
    assert_eq!(hand.ends("alice", &["status"], 3)["state"], "CollectingParticipants");
}

#[test]
fn altered_files_are_noticed() {
    let hand = Hand::start();
    hand.keygen();
    let keygen = hand.keygen_folder("bob");
    let membership = keygen.join("membership.json");
    let good = fs::read(&membership).expect("reads");
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).expect("writes");
    // A rule, a digit of a secret, the tag, an end.
    let text_of = String::from_utf8(good.clone()).expect("UTF-8");
    let mut altered: Vec<Vec<u8>> = vec![
        text_of.replace("\"required\"", "\"delegated\"").into_bytes(),
        good[..good.len() - 1].to_vec(),
        Vec::new(),
    ];
    for at in (10..good.len()).step_by(good.len() / 7) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        altered.push(bytes);
    }
    for bytes in altered {
        assert_ne!(bytes, good);
        write(&membership, &bytes);
        let refused = hand.ends("bob", &["status"], 2);
        assert_eq!(refused["error"]["code"], "bad-state-directory");
        assert!(text(&refused["error"]["message"]).contains("membership"), "{refused}");
    }
    write(&membership, &good);
    fs::copy(hand.path("carol.key"), hand.path("bob.key")).expect("copies");
    let refused = hand.ends("bob", &["status"], 2);
    assert!(text(&refused["error"]["message"]).contains("another signing key"), "{refused}");

    // A request that is not this keygen's, or no request at all.
    let folder = hand.keygen_folder("alice");
    for (name, bytes) in [
        ("request-5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47.json", &b"{}"[..]),
        (
            "request-5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47.json",
            &foreign_request("5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47"),
        ),
        (
            "request-00000000-7d0e-4a3b-9a58-0d6c1f2b3a47.json",
            &foreign_request("5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47"),
        ),
    ] {
        fs::write(folder.join(name), bytes).expect("writes");
        set_mode(&folder.join(name), 0o600);
        let refused = hand.ends("alice", &["sign", "--text", "one"], 2);
        assert!(text(&refused["error"]["message"]).contains(name), "{refused}");
        fs::remove_file(folder.join(name)).expect("removes");
    }

    for name in ["session.json", "../../births.json"] {
        let path = hand.keygen_folder("carol").join(name);
        let good = fs::read(&path).expect("reads");
        for bytes in [&good[1..], b"{}", b"null", &[&good[..], b" {}"].concat()] {
            write(&path, bytes);
            assert_eq!(hand.ends("carol", &["status"], 2)["error"]["code"], "bad-state-directory", "{name}");
        }
        write(&path, &good);
        hand.done("carol", &["status"]);
    }
}

fn foreign_request(id: &str) -> Vec<u8> {
    let zeros = "00".repeat(32);
    format!(
        "{{\"signing_id\":\"{id}\",\"keygen_id\":\"{id}\",\"requester\":\"{id}\",\"intent\":\"{zeros}\",\
         \"intent_digest\":\"{zeros}\",\"expires_at\":1,\"items\":[]}}"
    )
    .into_bytes()
}

#[test]
fn an_api_token_comes_from_a_file_a_descriptor_or_the_environment() {
    let hand = Hand::start();
    hand.key("alice");
    // A gateway of its own: an operator's token, and no enclave that it could reach.
    let settings = format!(
        "listen = \"127.0.0.1:0\"\ndatabase = {:?}\nexit_with_stdin = true\n[log]\nlevel = \"error\"\n[[enclaves]]\n\
         id = \"5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47\"\naddress = \"unix:{}\"\n",
        hand.path("other.db"),
        hand.path("nobody.sock").display()
    );
    fs::write(hand.path("gateway.toml"), settings).expect("writes");
    let mut gateway = hand.command(&["gateway", "--config", "gateway.toml"]);
    gateway.env("KEYMELD_GATEWAY_API_TOKEN", "sesame").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut gateway = gateway.spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(gateway.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let url = format!("http://{}", line.split('"').nth(3).expect("an address"));

    fs::write(hand.path("token"), "sesame\n").expect("writes");
    set_mode(&hand.path("token"), 0o600);
    let words = [&hand.reserve(&url)[..], &["--timeout", "1", "--json"]].concat();
    let mut outcomes = Vec::new();
    for (variable, more) in [
        (None, &[][..]),
        (Some("open"), &[]),
        (Some("sesame"), &[]),
        (None, &["--api-token-file", "token"]),
        (None, &["--api-token-fd", "0"]),
        (Some("not\nASCII text"), &[]),
    ] {
        let mut command = hand.command_as("alice", &words);
        command.args(more).envs(variable.map(|token| ("KEYMELD_API_TOKEN", token)));
        command.stdin(File::open(hand.path("token")).expect("opens"));
        let ended = Ended::of(command.output().expect("runs"));
        outcomes.push((ended.code, text(&ended.json()["error"]["code"])));
    }
    let refused = (Some(1), "token-required".to_owned());
    let admitted = (Some(3), "timed-out".to_owned());
    let unreadable = (Some(2), "bad-input".to_owned());
    assert_eq!(outcomes[..2], [refused.clone(), refused]);
    assert_eq!(outcomes[2..5], [admitted.clone(), admitted.clone(), admitted]);
    assert_eq!(outcomes[5], unreadable);
    drop(gateway.stdin.take());
    assert!(gateway.wait().expect("ends").success());
}

#[test]
fn the_same_words_begin_one_keygen_and_other_words_another() {
    let hand = Hand::start();
    hand.key("alice");
    let url = hand.children.url();
    let words = hand.reserve(&url);
    let first = hand.done("alice", &words);
    let again = hand.done("alice", &words);
    assert_eq!((&first["resumed"], &again["resumed"]), (&false.into(), &true.into()));
    assert_eq!(first["keygen_id"], again["keygen_id"]);
    let new = hand.done("alice", &[&words[..], &["--new"]].concat());
    let other = hand.done("alice", &[&words[..], &["--delegate"]].concat());
    assert!(new["keygen_id"] != first["keygen_id"] && other["keygen_id"] != first["keygen_id"]);
    let named = ["--keygen", "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47"];
    hand.ends("alice", &[&words[..], &named].concat(), 2);
    // Now that there are three, one has to be named.
    assert_eq!(hand.ends("alice", &["init"], 2)["error"]["code"], "bad-state-directory");
    let id = text(&other["keygen_id"]);
    assert_eq!(hand.done("alice", &["init", "--keygen", &id])["keygen_id"], id.as_str());
}

#[test]
fn a_place_in_a_keygen_is_taken_once_and_under_one_set_of_rules() {
    let hand = Hand::start();
    hand.keygen();
    let join = ["join", "--invite", "bob.invite"];
    assert_eq!(hand.done("bob", &join)["resumed"], true);
    assert_eq!(hand.done("bob", &["join"])["resumed"], true);
    let refused = hand.ends("bob", &[&join[..], &["--delegate"]].concat(), 2);
    assert!(text(&refused["error"]["message"]).contains("other rules"), "{refused}");
    hand.ends("bob", &["join", "--valid-days", "7"], 2);
    // Carol's invite is not Bob's, and a second key is nobody's.
    hand.ends("bob", &["join", "--invite", "carol.invite"], 2);
    let named = ["join", "--invite", "bob.invite", "--keygen", "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47"];
    assert!(text(&hand.ends("bob", &named, 2)["error"]["message"]).contains("invite is for"));
    hand.key("eve");
    let taken = hand.ends("eve", &["join", "--invite", "bob.invite"], 1);
    assert_eq!(taken["error"]["code"], "slot-taken");
    // Invites can be written again, but over nothing else.
    hand.invite("bob");
    fs::write(hand.path("bob.invite"), "something else").expect("writes");
    hand.ends("alice", &["invite", "bob", "--out", "bob.invite"], 2);
    hand.ends("alice", &["invite", "eve", "--out", "eve.invite"], 2);
    hand.ends("bob", &["invite", "carol", "--out", "x.invite"], 2);
}
