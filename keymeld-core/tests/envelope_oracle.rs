//! Envelopes against the `ecies` crate's own `encrypt` and `decrypt`, whose format they have.

use keymeld_core::bytes::{Blob, PublicKey};
use keymeld_core::crypto::auth::public_key;
use keymeld_core::crypto::envelope::{DecryptError, EncryptError, decrypt, encrypt};
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin, test_entropy};
use keymeld_core::limits::ENVELOPE_BYTES_MAX;
use keymeld_core::secret::Secret;

/// An uncompressed point, a nonce and a tag.
const OVERHEAD: usize = 65 + 16 + 16;

/// Around every boundary of AES and of GHASH, of the buckets that JSON falls into, and the most.
fn sizes() -> impl Iterator<Item = usize> {
    (0..=130).chain([255, 256, 257, 511, 512, 513, 650, 1_000, 2_048, 4_000]).chain([ENVELOPE_BYTES_MAX])
}

fn key_pair(seed: u64) -> (Secret<32>, PublicKey) {
    let secret = Secret::random(&mut test_entropy(seed)).expect("never fails");
    let public = public_key(&secret).expect("in range");
    (secret, public)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the oracle; nothing in this process changes its configuration"
)]
fn oracle_encrypt(to: &PublicKey, plaintext: &[u8]) -> Blob {
    Blob(ecies::encrypt(&to.0, plaintext).expect("the key is a point"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the oracle; nothing in this process changes its configuration"
)]
fn oracle_decrypt(with: &Secret<32>, envelope: &Blob) -> Option<Vec<u8>> {
    ecies::decrypt(with.expose(), &envelope.0).ok()
}

#[test]
fn each_opens_what_the_other_made() {
    let mut opened = 0;
    for (seed, size) in sizes().enumerate() {
        let (secret, public) = key_pair(seed as u64);
        let mut plaintext = vec![0; size];
        test_entropy(1_000 + seed as u64).fill(&mut plaintext).expect("never fails");

        let ours = encrypt(&public, &plaintext, &mut test_entropy(2_000 + seed as u64)).expect("in range");
        let theirs = oracle_encrypt(&public, &plaintext);
        for envelope in [ours, theirs] {
            assert_eq!(envelope.0.len(), OVERHEAD + size);
            assert_eq!(decrypt(&secret, &envelope).expect("made for this key").as_slice(), plaintext);
            assert_eq!(oracle_decrypt(&secret, &envelope).expect("made for this key"), plaintext);
            opened += 1;
        }
    }
    assert_eq!(opened, 2 * 142);
}

#[test]
fn the_oracle_and_we_refuse_the_same_envelopes() {
    let (secret, public) = key_pair(1);
    let (other_secret, _) = key_pair(2);
    for envelope in [
        encrypt(&public, b"forty bytes, of which every bit is flipped", &mut test_entropy(3)).expect("small"),
        oracle_encrypt(&public, b"forty bytes, of which every bit is flipped"),
    ] {
        let refused = |envelope: &Blob, what: &str, index: usize| {
            assert_eq!(decrypt(&secret, envelope), Err(DecryptError), "{what} {index}");
            assert_eq!(oracle_decrypt(&secret, envelope), None, "{what} {index}");
        };
        for bit in 0..envelope.0.len() * 8 {
            let mut flipped = envelope.clone();
            flipped.0[bit / 8] ^= 1 << (bit % 8);
            refused(&flipped, "bit", bit);
        }
        for end in 0..envelope.0.len() {
            refused(&Blob(envelope.0[..end].to_vec()), "cut at", end);
        }
        for more in 1..=64 {
            refused(&Blob([envelope.0.as_slice(), &vec![0; more]].concat()), "longer by", more);
        }
        assert_eq!(decrypt(&other_secret, &envelope), Err(DecryptError));
        assert_eq!(oracle_decrypt(&other_secret, &envelope), None);
    }
}

#[test]
fn an_ephemeral_key_has_one_form() {
    let (secret, public) = key_pair(1);
    let envelope = encrypt(&public, b"plain", &mut test_entropy(3)).expect("small");
    let point = secp256k1::PublicKey::from_slice(&envelope.0[..65]).expect("a point");

    let compressed = [&point.serialize()[..], &envelope.0[65..]].concat();
    assert_eq!(decrypt(&secret, &Blob(compressed)), Err(DecryptError));
    // SEC 1 has a third, hybrid form: 6 or 7 for the parity of y, with y.
    for tag in [6, 7] {
        let mut hybrid = envelope.clone();
        hybrid.0[0] = tag;
        assert_eq!(decrypt(&secret, &hybrid), Err(DecryptError), "{tag}");
    }
    let mut infinity = envelope;
    infinity.0[..65].fill(0);
    assert_eq!(decrypt(&secret, &infinity), Err(DecryptError));
}

#[test]
fn nothing_longer_than_the_limit_is_sealed_or_opened() {
    let (secret, public) = key_pair(1);
    let most = vec![7; ENVELOPE_BYTES_MAX];
    let more = vec![7; ENVELOPE_BYTES_MAX + 1];
    assert!(encrypt(&public, &most, &mut test_entropy(3)).is_ok());
    assert_eq!(encrypt(&public, &more, &mut test_entropy(3)), Err(EncryptError::TooLarge));
    assert_eq!(decrypt(&secret, &oracle_encrypt(&public, &most)).expect("at the limit").as_slice(), most);
    assert_eq!(decrypt(&secret, &oracle_encrypt(&public, &more)), Err(DecryptError));
}

#[test]
fn whoever_is_no_point_gets_no_envelope() {
    let mut off_the_curve = [0; 33];
    // No point of the curve has x = 5.
    (off_the_curve[0], off_the_curve[32]) = (2, 5);
    for bytes in [[0; 33], [0xff; 33], off_the_curve] {
        let refused = encrypt(&PublicKey(bytes), b"plain", &mut test_entropy(1));
        assert_eq!(refused, Err(EncryptError::InvalidKey), "{bytes:?}");
    }
}

#[test]
fn an_envelope_needs_two_different_blocks_of_randomness() {
    let (_, public) = key_pair(1);
    let mut stuck = Entropy::new(Origin::Test, |out| {
        out.fill(7);
        Ok(())
    });
    let mut out_of_range = Entropy::new(Origin::Test, |out| {
        out.fill(0xff);
        Ok(())
    });
    let mut failing = Entropy::new(Origin::Test, |_| Err(EntropyFailed));
    for entropy in [&mut stuck, &mut out_of_range, &mut failing] {
        assert_eq!(encrypt(&public, b"plain", entropy), Err(EncryptError::Entropy(EntropyFailed)));
    }
}

#[test]
fn two_envelopes_of_one_plaintext_share_nothing() {
    let (_, public) = key_pair(1);
    let mut entropy = test_entropy(1);
    let first = encrypt(&public, &[0; 64], &mut entropy).expect("small");
    let second = encrypt(&public, &[0; 64], &mut entropy).expect("small");
    // Point, nonce, tag, and each block of the ciphertext.
    for range in [1..65, 65..81, 81..97, 97..113, 113..129, 129..145, 145..161] {
        assert_ne!(first.0[range.clone()], second.0[range]);
    }
}
