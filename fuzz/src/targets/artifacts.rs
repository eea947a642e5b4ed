//! JSON artifacts, invites and memberships.

use std::fmt::Debug;

use keymeld_core::artifact::Signed;
use keymeld_core::artifact::approval::{Approval, Withdrawal};
use keymeld_core::artifact::certificate::{Certificate, IdentitySignature};
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Item};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::Manifest;
use keymeld_core::artifact::registration::{Record, RecordSignatures, Rules};
use keymeld_core::artifact::result::SigningResult;
use keymeld_core::artifact::tweak::{TweakStep, steps};
use keymeld_core::client::{Client, MEMBERSHIP_BYTES_MAX};
use keymeld_core::limits::BODY_BYTES_MAX;
use keymeld_core::strict;
use serde::{Deserialize, Serialize};

use crate::stage::story::{PARTICIPANTS, STORY, client_config, signing_key};

/// Reads strict JSON.
///
/// # Panics
/// Where what was read has no encoding that is read as the same again, or one longer than what it was read from.
pub fn json<T: Serialize + for<'de> Deserialize<'de> + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = strict::from_json(bytes, BODY_BYTES_MAX).ok()?;
    let again = strict::to_json(&value);
    assert!(again.len() <= bytes.len(), "the shortest encoding is ours");
    assert_eq!(strict::from_json::<T>(&again, bytes.len()).as_ref(), Ok(&value));
    assert_eq!(strict::to_json(&value), again);
    Some(value)
}

/// How many kinds of artifact there are.
pub const KINDS: u8 = 13;

/// An artifact; the first byte says of which kind.
///
/// # Panics
/// As [`json`]; where a checked manifest breaks its own rules.
pub fn artifacts(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % KINDS {
        0 => manifest(bytes),
        1 => drop(json::<Record>(bytes)),
        2 => drop(json::<Signed<RecordSignatures>>(bytes)),
        3 => drop(json::<Intent>(bytes)),
        4 => drop(json::<Signed<IntentSignatures>>(bytes)),
        5 => drop(json::<Certificate>(bytes)),
        6 => drop(json::<Signed<IdentitySignature>>(bytes)),
        7 => drop(json::<SigningResult>(bytes)),
        8 => drop(json::<Approval>(bytes)),
        9 => drop(json::<Withdrawal>(bytes)),
        10 => drop(json::<Rules>(bytes)),
        11 => {
            if let Some(list) = json::<Vec<TweakStep>>(bytes) {
                let _ = steps(&list);
            }
        }
        _ => {
            if let Some(item) = json::<Item>(bytes) {
                let _ = item.origin.map(|origin| origin.message());
            }
        }
    }
}

fn manifest(bytes: &[u8]) {
    json::<Manifest>(bytes);
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert!(manifest.participant(manifest.coordinator.user_id).is_some(), "the coordinator takes part");
    for subset in &manifest.subsets {
        assert!(subset.members.len() >= 2);
        assert!(subset.members.iter().all(|member| manifest.participant(*member).is_some()));
    }
}

/// An invite.
///
/// # Panics
/// Where its bytes are not the only ones for what was read.
pub fn invites(bytes: &[u8]) {
    if let Ok(invite) = Invite::decode(bytes) {
        assert_eq!(invite.encode().expect("it was small enough").as_slice(), bytes);
    }
}

/// A membership, as a client resumes from it; the first byte says whose key is there.
///
/// # Panics
/// Where a client of another key comes of it.
pub fn memberships(bytes: &[u8]) {
    let Some((place, bytes)) = bytes.split_first() else { return };
    let private_key = signing_key(usize::from(*place) % PARTICIPANTS);
    let config = client_config(&STORY.root);
    if let Ok(client) = Client::resume(config, private_key, bytes) {
        assert!(bytes.len() <= MEMBERSHIP_BYTES_MAX);
        let _ = (client.user_id(), client.keygen_id(), client.birth(), client.invites().len());
    }
}
