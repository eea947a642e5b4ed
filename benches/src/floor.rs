//! The least that a signature costs: MuSig2 itself, without gateway, enclaves, seals or disk.

use std::time::{Duration, Instant};

use keymeld_core::entropy::Entropy;
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{self, Contribution, Session};
use keymeld_core::secret::Secret;

/// One thread's time for one signature of `signers`: each makes a nonce, aggregates the nonces and signs;
/// somebody adds up and verifies. Keys are aggregated before.
///
/// # Panics
/// Where MuSig2 fails.
pub fn per_signature(signers: u8, rounds: u32, entropy: &mut Entropy) -> Duration {
    let secrets: Vec<Secret<32>> = (1..=signers).map(|number| Secret::copied_from(&[number; 32])).collect();
    let public = |secret| keymeld_core::crypto::auth::public_key(secret).expect("a key").0;
    let keys: Vec<[u8; 33]> = secrets.iter().map(public).collect();
    let key_agg = KeyAgg::new(&keys, &[]).expect("keys");
    let began = Instant::now();
    for _ in 0..rounds {
        let message = entropy.bytes::<32>().expect("random");
        let generate = |secret| SigningNonce::generate(secret, &key_agg, message, entropy).expect("a nonce");
        let nonces: Vec<SigningNonce> = secrets.iter().map(generate).collect();
        let public_nonces: Vec<[u8; 66]> = nonces.iter().map(SigningNonce::public).collect();
        let session = || {
            let aggregate = round::aggregate_nonces(&public_nonces).expect("nonces");
            Session::new(&key_agg, aggregate, message).expect("a session")
        };
        let sign = |((nonce, public_nonce), key): ((SigningNonce, &[u8; 66]), &[u8; 33])| Contribution {
            key: *key,
            public_nonce: *public_nonce,
            partial: nonce.sign(&session()).expect("signs"),
        };
        let contributions: Vec<Contribution> =
            nonces.into_iter().zip(&public_nonces).zip(&keys).map(sign).collect();
        round::finish(&session(), &contributions).expect("verifies");
    }
    began.elapsed() / rounds
}
