//! S5: what the gateway's database holds after a whole session, searched byte by byte for what it must not.

use crate::story::{VALID_UNTIL, keygen, signing_key, world};
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::manifest::Requesters;
use keymeld_core::artifact::registration::{Rules, user_auth_key};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::client::{Done, Job, Keep};
use keymeld_core::crypto::auth::public_key;

/// Everything that must not be there, with its name.
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 8, "{name} is too short to be searched for");
        self.0.push((name.into(), bytes.into()));
    }

    /// Raw, as hex of either case, and as base64 at each of the three alignments.
    fn spellings(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let lower: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut spellings = vec![("raw", bytes.to_vec()), ("hex", lower.clone().into_bytes())];
        spellings.push(("upper-case hex", lower.to_uppercase().into_bytes()));
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        spellings.push(("reversed", reversed));
        for start in 0..3 {
            // Whole groups only: what stands around does not matter to them.
            let whole = &bytes[start..start + (bytes.len() - start) / 3 * 3];
            spellings.push(("base64", base64(whole, b'+', b'/')));
            spellings.push(("base64url", base64(whole, b'-', b'_')));
        }
        spellings
    }

    fn found_in(&self, haystack: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (name, bytes) in &self.0 {
            for (spelling, needle) in Secrets::spellings(bytes) {
                if haystack.windows(needle.len()).any(|window| window == needle) {
                    found.push(format!("{name}, {spelling}"));
                }
            }
        }
        found
    }
}

fn base64(bytes: &[u8], char_62: u8, char_63: u8) -> Vec<u8> {
    let alphabet = |index: u32| match index {
        0..26 => b'A' + index as u8,
        26..52 => b'a' + (index - 26) as u8,
        52..62 => b'0' + (index - 52) as u8,
        62 => char_62,
        _ => char_63,
    };
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| alphabet(bits >> shift & 63))
    };
    bytes.chunks_exact(3).flat_map(group).collect()
}

#[test]
fn the_database_holds_no_secret_message_tweak_key_or_signature() {
    let mut world = world(2, 2);
    let places = keygen(&mut world, 3, Rules { allow_blind: true, ..Rules::delegated(VALID_UNTIL) });
    let text = "Pay the florist 21 coins";
    let tweak = Hash([0x5e; 32]);
    let mut said = Item::of(Origin::Text(text.into()), world.entropy()).expect("an item");
    said.tweak = Some(vec![TweakStep::Plain(tweak)]);
    let bytes = Item::of(Origin::Bytes(Blob(b"an invoice of the florist".to_vec())), world.entropy());
    let items = vec![said, bytes.expect("an item")];
    let Ok(Done::Signed(_, outcomes)) = world.run(places[0], Job::Sign { items, expires_at: None }) else {
        panic!("not signed")
    };

    let mut secrets = Secrets(Vec::new());
    let key = world.client(places[0]).key().expect("verified").clone();
    let keygen_id = world.client(places[0]).keygen_id();
    for (number, _) in (1_u8..).zip(&places) {
        let private = signing_key(number);
        let public = public_key(&private).expect("a key");
        secrets.add("a private key", private.expose());
        secrets.add("a participant's key", &public.0);
        secrets.add("a participant's x-only key", &public.0[1..]);
        // The auth key's public half is a routing hint; its private half must not be there.
        assert!(user_auth_key(&private, keygen_id).is_ok());
        secrets.add("a name", format!("Participant {number}").as_bytes());
    }
    for invite in world.client(places[0]).invites() {
        secrets.add("the session secret", invite.session_secret.expose());
        secrets.add("a slot key", invite.slot_key.expose());
        if let Some(invite_key) = &invite.invite_key {
            secrets.add("an invite key", invite_key.expose());
        }
    }
    secrets.add("the aggregate key", &key.roster().aggregate_key().0);
    secrets.add("the x-only aggregate key", &key.output_key().0);
    secrets.add("a text", text.as_bytes());
    secrets.add("bytes", b"an invoice of the florist");
    secrets.add("a tweak", &tweak.0);
    for signed in outcomes.iter().map(|outcome| outcome.as_ref().expect("signed")) {
        secrets.add("a message", &signed.message.0);
        secrets.add("an output key", &signed.output_key.0);
        secrets.add("a signature", &signed.signature.0);
        secrets.add("a signature's nonce", &signed.signature.0[..32]);
        secrets.add("a signature's scalar", &signed.signature.0[32..]);
    }
    assert!(secrets.0.len() > 20);
    assert_eq!(key.roster().manifest().requesters, Requesters::Coordinator);

    let files = world.disk.files();
    let log = files.iter().find(|(name, _)| name.ends_with("-wal")).expect("a log");
    assert!(log.1.len() > 10_000, "the log holds the session's rows");
    for (name, bytes) in &files {
        assert_eq!(secrets.found_in(bytes), Vec::<String>::new(), "{name}");
    }
    // The search finds what is there: ids are routing hints, and the client's own file is full of secrets.
    let mut ids = Secrets(Vec::new());
    ids.add("the keygen id", keygen_id.as_bytes());
    assert!(files.iter().any(|(_, bytes)| !ids.found_in(bytes).is_empty()));
    let Some(Keep::Membership(membership)) = world.kept(places[0]).first() else { panic!("kept nothing") };
    let found = secrets.found_in(membership);
    assert!(found.iter().any(|found| found == "the session secret, hex"), "{found:?}");
}

#[test]
fn the_search_knows_every_spelling() {
    let secret: Vec<u8> = (100..132).collect();
    let secrets = Secrets(vec![("it".into(), secret.clone())]);
    for shift in 0..3 {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(&secret);
        shifted.resize(36, 0);
        assert!(secrets.found_in(&base64(&shifted, b'+', b'/')).contains(&"it, base64".to_owned()));
        assert!(secrets.found_in(&base64(&shifted, b'-', b'_')).contains(&"it, base64url".to_owned()));
    }
    assert_eq!(base64(b"KeyMeld..", b'+', b'/'), b"S2V5TWVsZC4u");
}
