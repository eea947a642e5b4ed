//! BIP-341's key-path inputs and BIP-328's aggregates through the tweaks that KeyMeld applies.

mod vectors;

use keymeld_core::entropy::test_entropy;
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Contribution, Session, aggregate_nonces, finish, verify};
use keymeld_core::musig::tweak::Tweak;
use keymeld_core::secret::Secret;
use secp256k1::{Keypair, PublicKey, Scalar, SecretKey};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vectors::{array, hexes, text, unhex_array};

fn tagged_hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = Sha256::digest(tag);
    let hasher = Sha256::new().chain_update(tag).chain_update(tag);
    parts.iter().fold(hasher, |hasher, part| hasher.chain_update(part)).finalize().into()
}

/// The plain tweak that leads from the aggregate of `key` alone to the key of `wanted`.
fn tweak_to(wanted: SecretKey, key: &SecretKey) -> [u8; 32] {
    let point = PublicKey::from_secret_key(key).serialize();
    let list = tagged_hash("KeyAgg list", &[&point]);
    let coefficient = tagged_hash("KeyAgg coefficient", &[&list, &point]);
    let coefficient = Scalar::from_be_bytes(coefficient).expect("below the group order");
    let aggregate = key.mul_tweak(&coefficient).expect("not zero").negate();
    wanted.add_tweak(&Scalar::from(aggregate)).expect("not zero").to_secret_bytes()
}

#[test]
fn key_path_inputs_of_bip_341_are_signed_under_their_output_keys() {
    let Some(bytes) = vectors::read("bip-0341/wallet-test-vectors.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let key = SecretKey::from_secret_bytes([0x15; 32]).expect("in range");
    let member = PublicKey::from_secret_key(&key).serialize();
    let (mut plain, mut with_scripts) = (0, 0);
    for input in array(&file["keyPathSpending"]).iter().flat_map(|spending| array(&spending["inputSpending"]))
    {
        let (given, steps) = (&input["given"], &input["intermediary"]);
        let internal = SecretKey::from_secret_bytes(unhex_array(text(&given["internalPrivkey"])));
        let internal = internal.expect("in range");
        let merkle_root = match &given["merkleRoot"] {
            Value::Null => None,
            root => Some(unhex_array(text(root))),
        };
        let tweaks = [Tweak::Plain(tweak_to(internal, &key)), Tweak::Taproot { merkle_root }];
        let before = KeyAgg::new(&[member], &tweaks[..1]).expect("not infinity");
        assert_eq!(before.output_key(), unhex_array(text(&steps["internalPubkey"])));
        let key_agg = KeyAgg::new(&[member], &tweaks).expect("not infinity");
        let tweaked = Keypair::from_secret_bytes(unhex_array(text(&steps["tweakedPrivkey"])));
        let tweaked = tweaked.expect("in range").x_only_public_key().0.to_byte_array();
        assert_eq!(key_agg.output_key(), tweaked);

        let message: [u8; 32] = unhex_array(text(&steps["sigHash"]));
        let witness = vectors::unhex(text(&input["expected"]["witness"][0]));
        assert!(verify(&tweaked, &message, witness[..64].try_into().expect("64 bytes")));
        let secret = Secret::copied_from(&key.to_secret_bytes());
        let nonce = SigningNonce::generate(&secret, &key_agg, message, &mut test_entropy(1));
        let nonce = nonce.expect("a member");
        let public_nonce = nonce.public();
        let aggregate = aggregate_nonces(&[public_nonce]).expect("a nonce");
        let session = Session::new(&key_agg, aggregate, message).expect("points");
        let partial = nonce.sign(&session).expect("its own session");
        let signature = finish(&session, &[Contribution { key: member, public_nonce, partial }]);
        assert!(verify(&tweaked, &message, &signature.expect("honest")));
        *(if merkle_root.is_none() { &mut plain } else { &mut with_scripts }) += 1;
    }
    assert_eq!((plain, with_scripts), (1, 6));
}

#[test]
fn aggregates_are_those_that_bip_328_derives_from() {
    let Some(bytes) = vectors::read("bip-0328/vectors.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let mut aggregates = 0;
    for case in array(&file) {
        let keys: Vec<[u8; 33]> = hexes(&case["keys"]).map(unhex_array).collect();
        let key_agg = KeyAgg::unsorted(&keys, &[]).expect("points");
        assert_eq!(key_agg.untweaked_key(), unhex_array(text(&case["aggregate_pubkey"])));
        aggregates += 1;
    }
    assert_eq!(aggregates, 3);
}
