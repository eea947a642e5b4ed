//! MuSig2 in one process: three keys, one aggregate key, one signature.
//!
//! ```text
//! cargo run -p keymeld-examples --example three_signers
//! ```
//!
//! In KeyMeld each signer is an enclave of its own and the gateway carries the nonces and partial signatures
//! between them; the calls are these.

use std::error::Error;

use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{self, Contribution, Session};
use keymeld_core::musig::tweak::Tweak;
use keymeld_core::secret::Secret;
use secp256k1::{PublicKey, SecretKey};

const NAMES: [&str; 3] = ["Alice", "Bob", "Carol"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut entropy = Entropy::new(Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed));

    // Keygen: everybody has a key; anybody can sort and aggregate the public keys.
    let mut secrets = Vec::new();
    let mut keys = Vec::new();
    for name in NAMES {
        let secret = Secret::<32>::random(&mut entropy)?;
        let key = PublicKey::from_secret_key(&SecretKey::from_secret_bytes(*secret.expose())?).serialize();
        println!("{name:<6} has the key       {}", hex(&key));
        secrets.push(secret);
        keys.push(key);
    }
    // Spent by key path, with no script path: what a Taproot wallet shows as one ordinary address.
    let key_agg = KeyAgg::new(&keys, &[Tweak::Taproot { merkle_root: None }])?;
    println!("Together they are        {}", hex(&key_agg.untweaked_key()));
    println!("and on the chain           {}", hex(&key_agg.output_key()));

    // Round 1: everybody makes a nonce for this message and shows its public half.
    let message: [u8; 32] = entropy.bytes()?;
    println!("They sign the hash         {}", hex(&message));
    let mut nonces = Vec::new();
    for secret in &secrets {
        nonces.push(SigningNonce::generate(secret, &key_agg, message, &mut entropy)?);
    }
    let public_nonces: Vec<[u8; 66]> = nonces.iter().map(SigningNonce::public).collect();
    let session = Session::new(&key_agg, round::aggregate_nonces(&public_nonces)?, message)?;

    // Round 2: everybody signs, which uses up the nonce.
    let mut contributions = Vec::new();
    for (((nonce, public_nonce), key), name) in nonces.into_iter().zip(public_nonces).zip(keys).zip(NAMES) {
        let partial = nonce.sign(&session)?;
        println!("{name:<6} contributes         {}", hex(&partial));
        contributions.push(Contribution { key, public_nonce, partial });
    }

    // Anybody can add up the parts. Had one of them been wrong, the error would name its signer.
    let signature = round::finish(&session, &contributions)?;
    println!("The signature is           {}", hex(&signature[..32]));
    println!("                           {}", hex(&signature[32..]));
    assert!(round::verify(&key_agg.output_key(), &message, &signature));
    println!("and verifies as an ordinary BIP-340 signature.");

    contributions[1].partial[0] ^= 1;
    match round::finish(&session, &contributions) {
        Ok(_) => println!("A wrong part went unnoticed!"),
        Err(failed) => {
            let guilty: Vec<&str> = failed.culprits().iter().map(|index| NAMES[*index]).collect();
            println!(
                "With one bit of Bob's part flipped there is none, and to blame is: {}.",
                guilty.join(", ")
            );
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
