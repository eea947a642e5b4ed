//! BIP-340's own vectors through libsecp256k1, whose verification decides whether a session succeeded.

mod vectors;

use keymeld_core::musig::round;
use secp256k1::{Keypair, XOnlyPublicKey, schnorr};
use vectors::{unhex, unhex_array};

#[test]
fn the_native_engine_agrees_with_bip_340() {
    let Some(bytes) = vectors::read("bip-0340/test-vectors.csv") else { return };
    let csv = String::from_utf8(bytes).expect("the vectors are text");
    let (mut signed, mut verified, mut through_guard) = (0, 0, 0);
    for line in csv.lines().skip(1) {
        // Only the comment, which comes last, may contain a comma.
        let fields: Vec<&str> = line.splitn(8, ',').collect();
        let [index, secret_key, public_key, aux_rand, message, signature, valid, _comment] = fields[..]
        else {
            panic!("not eight fields: {line}")
        };
        println!("{index}");
        let public_key: [u8; 32] = unhex_array(public_key);
        let message = unhex(message);
        let signature: [u8; 64] = unhex_array(signature);
        let valid = match valid {
            "TRUE" => true,
            "FALSE" => false,
            other => panic!("no verdict: {other}"),
        };

        if !secret_key.is_empty() {
            let keypair = Keypair::from_secret_bytes(unhex_array(secret_key)).expect("in range");
            assert_eq!(keypair.x_only_public_key().0.to_byte_array(), public_key);
            let made = schnorr::sign_with_aux_rand(&message, &keypair, &unhex_array(aux_rand));
            assert_eq!(made.to_byte_array(), signature);
            signed += 1;
        }
        let verdict = XOnlyPublicKey::from_byte_array(public_key).is_ok_and(|key| {
            schnorr::verify(&schnorr::Signature::from_byte_array(signature), &message, &key).is_ok()
        });
        assert_eq!(verdict, valid);
        verified += 1;
        if let Ok(message) = message.as_slice().try_into() {
            assert_eq!(round::verify(&public_key, message, &signature), valid);
            through_guard += 1;
        }
    }
    assert_eq!((verified, signed, through_guard), (19, 8, 15));
}
