//! Wycheproof through AES-256-GCM with the two nonce lengths in use: 96 bits for seals, 128 for envelopes.

mod vectors;

use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{BlockCipherEncrypt, BlockSizeUser};
use aes_gcm::{AesGcm, Key, Nonce};
use serde_json::Value;
use vectors::{array, number, text, unhex};

/// Why a case is not run.
#[derive(Debug, Default, PartialEq)]
struct NotRun {
    /// KeyMeld has no AES key of this length.
    key_of_128_or_192_bits: usize,
    /// KeyMeld has no nonce of this length; the type of the cipher fixes it.
    nonce_of_another_length: usize,
}

#[derive(Debug, Default, PartialEq)]
struct Run {
    valid: usize,
    invalid: usize,
}

#[test]
fn aes_256_gcm_agrees_with_wycheproof() {
    let Some(bytes) = vectors::read("wycheproof/aes_gcm_test.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let (mut seals, mut envelopes, mut not_run) = (Run::default(), Run::default(), NotRun::default());
    for group in array(&file["testGroups"]) {
        assert_eq!(number(&group["tagSize"]), 128);
        for case in array(&group["tests"]) {
            match (number(&group["keySize"]), number(&group["ivSize"])) {
                (128 | 192, _) => not_run.key_of_128_or_192_bits += 1,
                (256, 96) => run::<U12>(case, &mut seals),
                (256, 128) => run::<U16>(case, &mut envelopes),
                (256, _) => not_run.nonce_of_another_length += 1,
                (bits, _) => panic!("a key of {bits} bits"),
            }
        }
    }
    assert_eq!(seals, Run { valid: 39, invalid: 27 });
    assert_eq!(envelopes, Run { valid: 19, invalid: 0 });
    assert_eq!(not_run, NotRun { key_of_128_or_192_bits: 211, nonce_of_another_length: 20 });
    let all = 39 + 27 + 19 + 211 + 20;
    assert_eq!(all, number(&file["numberOfTests"]));
}

fn run<N: ArraySize>(case: &Value, run: &mut Run)
where
    Aes256: BlockCipherEncrypt + BlockSizeUser,
{
    let field = |name: &str| unhex(text(&case[name]));
    let (key, nonce, aad, message) = (field("key"), field("iv"), field("aad"), field("msg"));
    let cipher = AesGcm::<Aes256, N>::new(&Key::<Aes256>::try_from(key.as_slice()).expect("32 bytes"));
    let nonce = Nonce::<N>::try_from(nonce.as_slice()).expect("the length of the group");
    let sealed = [field("ct"), field("tag")].concat();
    let opened = cipher.decrypt(&nonce, Payload { msg: &sealed, aad: &aad });
    match text(&case["result"]) {
        "valid" => {
            assert_eq!(opened.as_ref(), Ok(&message), "{case}");
            assert_eq!(cipher.encrypt(&nonce, Payload { msg: &message, aad: &aad }), Ok(sealed), "{case}");
            run.valid += 1;
        }
        "invalid" => {
            assert!(opened.is_err(), "{case}");
            run.invalid += 1;
        }
        other => panic!("no verdict: {other}"),
    }
}
