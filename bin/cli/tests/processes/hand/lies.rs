//! Hostile gateways, enclaves and participants, as people meet them.

use std::fs;

use super::{Hand, text};

/// Clears a screen, overwrites a line, turns a text around, hides and combines.
const HOSTILE: &str = "a\u{1b}[2J\u{9b}1A\rpay\u{202e}lla\u{200b}\u{2066}\u{301}\u{5d0}\n\"x";

#[test]
fn texts_of_others_do_nothing_to_a_terminal() {
    let hand = Hand::start();
    let url = hand.children.url();
    for name in ["alice", "bob"] {
        hand.key(name);
    }
    hand.done(
        "alice",
        &["reserve", "--gateway", &url, "--name", HOSTILE, "--participant", "bob", "--delegate"],
    );
    hand.done("alice", &["init"]);
    hand.invite("bob");
    hand.done("alice", &["join"]);
    hand.done("bob", &["join", "--invite", "bob.invite"]);
    hand.done("bob", &["roster", "--wait"]);
    fs::write(hand.path("file"), HOSTILE).expect("writes");
    let asked = hand.done("alice", &["sign", "--text", HOSTILE, "--file", "file"]);
    let id = text(&asked["signing_id"]);
    for words in [&["roster"][..], &["status"], &["status", &id], &["intent", &id]] {
        for more in [&[][..], &["--json"]] {
            let ended = hand.run("bob", &[words, more].concat());
            assert!(ended.is_plain() && !ended.stdout.is_empty(), "{words:?}: {ended:?}");
        }
    }
    // It is all there, for those who can tell.
    let intent = hand.done("bob", &["intent", &id]);
    assert_eq!(
        (&intent["items"][0]["origin"]["text"], &intent["requester_name"]),
        (&HOSTILE.into(), &HOSTILE.into())
    );
    let told = hand.run("bob", &["intent", &id]).stdout;
    assert_eq!(told.matches("\\u{202e}lla").count(), 3, "{told}");

    hand.done("bob", &["decline", &id, "--reason", HOSTILE]);
    for more in [&[][..], &["--json"]] {
        let ended = hand.run("alice", &[&["status", &id], more].concat());
        assert!(ended.is_plain() && ended.stderr.contains("pay\\u{202e}lla"), "{ended:?}");
    }
    let nobody = hand.run("alice", &["invite", HOSTILE, "--out", "x"]);
    assert!(nobody.is_plain() && nobody.code == Some(2), "{nobody:?}");
}

#[test]
fn no_key_goes_to_an_enclave_that_the_policy_does_not_allow() {
    let hand = Hand::start();
    hand.key("alice");
    let url = hand.children.url();
    let good = fs::read_to_string(hand.path("policy.json")).expect("reads");
    hand.done("alice", &hand.reserve(&url));
    hand.done("alice", &["init"]);
    let first = |list: &str| {
        let rest = good.split_once(list).expect("has the list").1;
        rest.split('"').find(|text| text.len() >= 64).expect("a hash").to_owned()
    };
    let (pcr0, config) = (first("pcr0"), first("config_hashes"));
    for (what, from, to) in
        [("an image", &pcr0, "ab".repeat(48)), ("a configuration", &config, "ab".repeat(32))]
    {
        fs::write(hand.path("policy.json"), good.replacen(from.as_str(), &to, 1)).expect("writes");
        let refused = hand.ends("alice", &["join"], 4);
        assert_eq!(refused["error"]["code"], "unattested", "{what}");
        assert!(refused["error"]["enclave_id"].is_string(), "{refused}");
        let doubtful = hand.plain(&["enclaves", "--gateway", &url, "--policy", "policy.json"]);
        assert!(doubtful.code == Some(4) && doubtful.stdout.contains("NOT TRUSTED"), "{doubtful:?}");
    }
    // Only AWS is trusted: no development enclave is.
    let from = good.find("\"roots\"").expect("has roots");
    let to = good[from..].find(']').expect("ends") + from;
    let aws = format!("{}\"roots\": [\"aws_nitro_g1\"{}", &good[..from], &good[to..]);
    fs::write(hand.path("policy.json"), &aws).expect("writes");
    assert_eq!(hand.ends("alice", &["join"], 4)["error"]["code"], "unattested");
    let both = good.replacen("\"roots\": [", "\"roots\": [\"aws_nitro_g1\",", 1);
    for bad in [both.as_str(), &good[1..], "{}", &good.replacen("\"version\": 1", "\"version\": 2", 1)] {
        fs::write(hand.path("policy.json"), bad).expect("writes");
        assert_eq!(hand.ends("alice", &["join"], 2)["error"]["code"], "bad-input", "{bad}");
    }
    fs::write(hand.path("policy.json"), &good).expect("writes");
    // Nothing was registered meanwhile.
    assert_eq!(hand.done("alice", &["join"])["resumed"], false);
}

#[test]
fn no_key_goes_to_an_older_epoch_than_the_user_has_seen() {
    let hand = Hand::start();
    hand.keygen();
    let births = hand.path("alice").join("births.json");
    let good = fs::read_to_string(&births).expect("reads");
    assert_eq!(good.matches("enclave_id").count(), 2, "all enclaves of a roster are seen: {good}");
    // What a registration saw counts though the list of births is gone, and is back afterwards.
    fs::remove_file(&births).expect("removes");
    hand.done("alice", &["roster"]);
    assert_eq!(fs::read_to_string(&births).expect("reads"), good);

    let newer = good.replace("\"birth_time_ms\":1", "\"birth_time_ms\":4");
    assert_ne!(newer, good);
    fs::write(&births, newer).expect("writes");
    let url = hand.children.url();
    let id = text(&hand.done("alice", &[&hand.reserve(&url)[..], &["--new"]].concat())["keygen_id"]);
    hand.done("alice", &["init", "--keygen", &id]);
    let refused = hand.ends("alice", &["join", "--keygen", &id], 4);
    assert!(text(&refused["error"]["message"]).contains("older epoch"), "{refused}");
    let enclaves = ["enclaves", "--gateway", &url, "--policy", "policy.json", "--home", "alice"];
    assert_eq!(hand.plain(&enclaves).code, Some(4));
    fs::write(&births, good).expect("writes");
    hand.done("alice", &["join", "--keygen", &id]);
}

#[test]
fn a_gateway_that_is_away_is_tried_until_the_time_is_over() {
    let mut hand = Hand::start();
    hand.keygen();
    hand.children.gateway.kill().expect("kills");
    assert_eq!(hand.ends("bob", &["status", "--timeout", "1"], 3)["error"]["code"], "gateway-away");
    let mut patient = hand.command_as("bob", &["status", "--json"]);
    let patient = patient.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    hand.children.gateway.restart().expect("restarts");
    assert!(patient.wait_with_output().expect("ends").status.success());
}
