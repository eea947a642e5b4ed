//! kill -9 of a command at each change that it makes to its directory, and the same command again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::{Hand, list, text};

/// More changes than any command makes.
const CHANGES_MAX: usize = 64;

/// Names, inodes and sizes: every write of a file and every deletion changes this.
fn seen(folder: &Path) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for path in list(folder) {
        // It may be gone by now.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        found.push((path.display().to_string(), metadata.ino(), metadata.len()));
        if metadata.is_dir() {
            found.extend(seen(&path));
        }
    }
    found
}

/// Kills a command once its directory has changed so many times; whether it was still running.
fn killed_after(changes: usize, folder: &Path, command: &mut Command) -> bool {
    let mut before = seen(folder);
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    for _ in 0..changes {
        loop {
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            let now = seen(folder);
            if now != before {
                before = now;
                break;
            }
        }
    }
    child.kill().expect("kills");
    child.wait().expect("ends");
    true
}

#[test]
fn a_keygen_is_begun_once_however_often_its_commands_are_killed() {
    let hand = Hand::start();
    for name in ["alice", "bob", "carol"] {
        hand.key(name);
    }
    let url = hand.children.url();
    let reserve = hand.reserve(&url);
    let until_done = |name: &str, words: &[&str]| {
        let mut kills = 0;
        for changes in 0..CHANGES_MAX {
            if !killed_after(changes, &hand.path(name), &mut hand.command_as(name, words)) {
                break;
            }
            kills += 1;
        }
        assert!(kills < CHANGES_MAX);
        kills
    };
    let mut kills = until_done("alice", &reserve);
    let reserved = hand.done("alice", &reserve);
    kills += until_done("alice", &["init"]);
    hand.done("alice", &["init"]);
    for name in ["bob", "carol"] {
        let file = format!("{name}.invite");
        let invite = ["invite", name, "--out", &file];
        killed_after(1, hand.folder.path(), &mut hand.command_as("alice", &invite));
        hand.done("alice", &invite);
    }
    kills += until_done("alice", &["join"]);
    kills += until_done("bob", &["join", "--invite", "bob.invite"]);
    kills += until_done("carol", &["join", "--invite", "carol.invite", "--delegate"]);
    for (name, words) in [
        ("alice", &["join"][..]),
        ("bob", &["join", "--invite", "bob.invite"]),
        ("carol", &["join", "--invite", "carol.invite", "--delegate"]),
    ] {
        assert_eq!(hand.done(name, words)["resumed"], true);
    }
    // One for each command, and some that had got further.
    assert!(kills > 5, "{kills} kills");
    let rosters = ["alice", "bob", "carol"].map(|name| hand.done(name, &["roster", "--wait"]));
    assert!(rosters.iter().all(|roster| roster["code"] == rosters[0]["code"]));
    assert_eq!(rosters[0]["keygen_id"], reserved["keygen_id"]);
    // A begun keygen that was never kept was never sent either; at most one was kept.
    let kept = list(&hand.path("alice").join("keygens"));
    assert_eq!(kept.iter().filter(|folder| folder.join("membership.json").exists()).count(), 1);
    for name in ["alice", "bob", "carol"] {
        let left = list(&hand.keygen_folder_of(name, &text(&reserved["keygen_id"])));
        assert!(left.iter().all(|path| !path.display().to_string().contains("unfinished")), "{left:?}");
    }
}

#[test]
fn a_request_is_made_once_however_often_its_command_is_killed() {
    let hand = Hand::start();
    hand.keygen();
    let folder = hand.keygen_folder("alice");
    let requests = || -> Vec<String> {
        let names = list(&folder)
            .into_iter()
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned());
        names
            .filter_map(|name| Some(name.strip_prefix("request-")?.strip_suffix(".json")?.to_owned()))
            .collect()
    };
    let mut kills = 0;
    for changes in 0..CHANGES_MAX {
        let message = format!("payment {changes}");
        let sign = ["sign", "--text", &message];
        // Changes that follow each other quickly can be seen as one: it is tried again.
        let mut tries = 0..5;
        if !tries.any(|_| killed_after(changes, &hand.path("alice"), &mut hand.command_as("alice", &sign))) {
            break;
        }
        kills += 1;
        let kept = requests();
        assert!(kept.len() <= 1, "{kept:?}");
        // The same command, killed again and then not: what was kept is what is asked for.
        killed_after(1, &hand.path("alice"), &mut hand.command_as("alice", &sign));
        let kept_after = requests();
        let asked = hand.done("alice", &sign);
        let id = text(&asked["signing_id"]);
        match (kept.first(), kept_after.first()) {
            (before, Some(after)) => {
                assert!(before.is_none_or(|before| before == after));
                assert_eq!((after, &asked["resumed"]), (&id, &true.into()));
            }
            // The second command ended before it was killed: it was shown, and this is another request.
            (Some(before), None) => assert_ne!(*before, id),
            (None, None) => assert_eq!(asked["resumed"], false),
        }
        assert_eq!(requests(), [""; 0], "shown, and so forgotten");
    }
    assert!((3..CHANGES_MAX).contains(&kills), "{kills} kills");
}

#[test]
fn a_decision_is_made_once_however_often_its_command_is_killed() {
    let hand = Hand::start();
    hand.keygen();
    let asked = hand.done("alice", &["sign", "--text", "one"]);
    let (id, digest) = (text(&asked["signing_id"]), text(&asked["digest"]));
    let approve = ["approve", &id, "--digest", &digest];
    // Nothing of it is kept, so there is nothing to watch: it is killed ever later.
    for turns in 0..40 {
        let mut command = hand.command_as("bob", &approve);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        for _ in 0..turns * 40 {
            thread::yield_now();
        }
        child.kill().expect("kills");
        child.wait().expect("ends");
    }
    hand.done("bob", &approve);
    let signed = hand.done("alice", &["status", &id, "--wait"]);
    assert_eq!(signed["signatures"].as_array().map(Vec::len), Some(1));
    hand.done("bob", &approve);
}

#[test]
fn the_same_request_again_is_another_one_once_the_first_was_shown() {
    let hand = Hand::start();
    hand.keygen();
    let sign = ["sign", "--text", "a coffee"];
    let ids: Vec<String> = (0..2).map(|_| text(&hand.done("alice", &sign)["signing_id"])).collect();
    assert_ne!(ids[0], ids[1]);

    // Its waiting was never ended: the request was not shown.
    let wait = ["sign", "--text", "a tea", "--wait"];
    let mut waiting = hand.command_as("alice", &wait);
    let mut waiting = waiting.stdout(Stdio::null()).spawn().expect("starts");
    let folder = hand.keygen_folder("alice");
    let request = loop {
        let found = list(&folder).into_iter().find(|path| path.display().to_string().contains("/request-"));
        if let Some(found) = found {
            break found;
        }
    };
    waiting.kill().expect("kills");
    waiting.wait().expect("ends");
    assert!(request.exists());
    let again = hand.done("alice", &["sign", "--text", "a tea"]);
    assert_eq!(again["resumed"], true);
    assert!(request.display().to_string().contains(&text(&again["signing_id"])));

    // One that may have been carried out and has expired is asked for once more only by its owner's word.
    let short = ["sign", "--text", "a cake", "--expires-in", "1", "--wait"];
    let expired = text(&hand.ends("alice", &short, 1)["error"]["code"]);
    assert!(["expired", "intent-expired"].contains(&&*expired), "{expired}");
    let uncertain = hand.ends("alice", &short, 1);
    assert_eq!(uncertain["error"]["code"], "uncertain");
    assert!(uncertain["error"]["signing_id"].is_string(), "{uncertain}");
    let new = hand.done("alice", &["sign", "--text", "a cake", "--new"]);
    assert_eq!(new["resumed"], false);
    assert_ne!(new["signing_id"], uncertain["error"]["signing_id"]);
}
