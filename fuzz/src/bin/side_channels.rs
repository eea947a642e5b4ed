//! Runs our own code that touches secrets with the secrets marked as undefined: under valgrind's memcheck, every
//! branch and every address that depends on one is an error. See `ci/side-channels`, which runs it.
//!
//! Two controls, which do depend on a secret, have to be noticed; without them a check that sees nothing would
//! pass. What a case shows (`show`) is an outcome that whoever asked is told anyway.

use std::hint::black_box;
use std::process::ExitCode;
use std::ptr;

use crabgrind::memcheck::{MemState, mark_mem};
use keymeld_core::artifact::registration::user_auth_key;
use keymeld_core::bytes::{Hash, PublicKey};
use keymeld_core::crypto::auth::{public_key, shared_secret};
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::{Entropy, Origin, test_entropy};
use keymeld_core::id::KeygenId;
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Session, aggregate_nonces};
use keymeld_core::secret::{ApiToken, Secret};

/// A piece of code with a secret in it. `ci/side-channels` finds its name in the stack of each error.
struct Case {
    name: &'static str,
    run: fn(),
}

macro_rules! cases {
    ($($run:ident)*) => { &[$(Case { name: stringify!($run), run: $run },)*] };
}

/// The first two have to be noticed.
const CASES: &[Case] = cases! {
    control_early_exit control_table
    secrets_compared tokens_compared to_hex from_hex
    derived key_checked signed agreed
    sealed opened encrypted decrypted
    random musig
};

fn main() -> ExitCode {
    if !matches!(crabgrind::run_mode(), crabgrind::RunMode::Valgrind) {
        eprintln!("to be run under valgrind, by ci/side-channels");
        return ExitCode::FAILURE;
    }
    for Case { name, run } in CASES {
        run();
        println!("{name}");
    }
    ExitCode::SUCCESS
}

fn mark<T: ?Sized>(value: &T, state: MemState) {
    let address = ptr::from_ref(value).cast_mut().cast();
    // This version takes memcheck's yes for a no. The controls would notice if nothing were marked.
    let _ = mark_mem(address, size_of_val(value), state);
}

/// From here on these bytes are secret.
fn hide(bytes: &[u8]) {
    mark(bytes, MemState::Undefined);
}

/// These are no secret: whoever asked is told.
fn show<T: ?Sized>(value: &T) {
    mark(value, MemState::Defined);
}

fn secret(byte: u8) -> Secret<32> {
    let secret = Secret::copied_from(&[byte; 32]);
    hide(secret.expose());
    secret
}

/// A public key. The library blinds its arithmetic with secrets that it saw before: what comes of it is marked.
fn public(byte: u8) -> PublicKey {
    let point = public_key(&Secret::copied_from(&[byte; 32])).expect("a key");
    show(&point.0);
    point
}

#[inline(never)]
fn control_early_exit() {
    let (one, other) = (secret(1), secret(2));
    black_box(one.expose().iter().zip(other.expose()).all(|(one, other)| one == other));
}

#[inline(never)]
fn control_table() {
    let table: Vec<u8> = (0..=255).rev().collect();
    let secret = secret(1);
    black_box(table[usize::from(black_box(secret.expose())[0])]);
}

#[inline(never)]
fn secrets_compared() {
    for other in [1, 2] {
        let equal = black_box(secret(1) == secret(other));
        show(&equal);
        assert_eq!(equal, other == 1);
    }
}

#[inline(never)]
fn tokens_compared() {
    let ours = ApiToken::new("sesame-sesame-sesame".into());
    hide(ours.expose().as_bytes());
    for text in ["sesame-sesame-sesame", "xesame-sesame-sesame", "sesame-sesame-sesamx"] {
        let equal = black_box(ours == ApiToken::new(text.into()));
        show(&equal);
        assert_eq!(equal, text.starts_with('s') && text.ends_with('e'));
    }
}

#[inline(never)]
fn to_hex() {
    let hex = secret(0xab).to_hex();
    show(hex.as_bytes());
    assert_eq!(hex.as_str(), "ab".repeat(32));
}

#[inline(never)]
fn from_hex() {
    let hex = "ab".repeat(32);
    hide(hex.as_bytes());
    let secret: Secret<32> = Secret::from_hex(hex.as_bytes()).expect("hex");
    show(secret.expose());
    assert_eq!(secret.expose(), &[0xab; 32]);
}

#[inline(never)]
fn derived() {
    for purpose in [Purpose::SessionSeal(KeygenId([1; 16])), Purpose::UserAuth(KeygenId([2; 16]))] {
        let derived = derive(&secret(3), purpose);
        show(derived.expose());
        assert_ne!(derived.expose(), &[3; 32]);
    }
}

#[inline(never)]
fn key_checked() {
    let point = public_key(&secret(4)).expect("a key");
    show(&point.0);
    assert_eq!(point, public(4));
}

#[inline(never)]
fn signed() {
    let key = user_auth_key(&secret(5), KeygenId([1; 16])).expect("a key");
    let signature = key.sign(Tag::Approve, &[b"message"], &mut test_entropy(1)).expect("test entropy");
    let public = key.public();
    show(&signature.0);
    show(&public.0);
    assert!(keymeld_core::crypto::auth::verify(&public, Tag::Approve, &[b"message"], &signature));
}

#[inline(never)]
fn agreed() {
    let agreed = shared_secret(&secret(6), &public(7)).expect("a point");
    show(agreed.expose());
    let theirs = shared_secret(&Secret::copied_from(&[7; 32]), &public(6)).expect("a point");
    show(theirs.expose());
    assert_eq!(agreed, theirs);
}

fn context() -> Context {
    Context::Manifest { keygen_id: KeygenId([1; 16]), manifest_hash: Hash([2; 32]) }
}

#[inline(never)]
fn sealed() {
    let plaintext = [0x55; 300];
    hide(&plaintext);
    let blob = SealKey::new(secret(8)).seal(&context(), &plaintext, &mut test_entropy(2)).expect("small");
    show(blob.0.as_slice());
    let opened = SealKey::new(Secret::copied_from(&[8; 32])).open(&context(), &blob).expect("its own");
    assert_eq!(opened.as_slice(), [0x55; 300]);
}

#[inline(never)]
fn opened() {
    let key = SealKey::new(Secret::copied_from(&[8; 32]));
    let mut blob = key.seal(&context(), &[0x55; 300], &mut test_entropy(3)).expect("small");
    let opened = SealKey::new(secret(8)).open(&context(), &blob).expect("its own");
    show(opened.as_slice());
    assert_eq!(opened.as_slice(), [0x55; 300]);
    blob.0[40] ^= 1;
    assert!(SealKey::new(secret(8)).open(&context(), &blob).is_err());
}

#[inline(never)]
fn encrypted() {
    let plaintext = [0x66; 200];
    hide(&plaintext);
    let envelope = envelope::encrypt(&public(9), &plaintext, &mut test_entropy(4)).expect("small");
    show(envelope.0.as_slice());
    let opened = envelope::decrypt(&Secret::copied_from(&[9; 32]), &envelope).expect("its own");
    assert_eq!(opened.as_slice(), [0x66; 200]);
}

#[inline(never)]
fn decrypted() {
    let mut envelope = envelope::encrypt(&public(9), &[0x66; 200], &mut test_entropy(4)).expect("small");
    let opened = envelope::decrypt(&secret(9), &envelope).expect("its own");
    show(opened.as_slice());
    assert_eq!(opened.as_slice(), [0x66; 200]);
    envelope.0[120] ^= 1;
    assert!(envelope::decrypt(&secret(9), &envelope).is_err());
}

/// A generator whose bytes are secret.
fn hidden_entropy(seed: u64) -> Entropy {
    let mut source = test_entropy(seed);
    Entropy::new(Origin::Test, move |out| {
        source.fill(out)?;
        hide(out);
        Ok(())
    })
}

#[inline(never)]
fn random() {
    let mut entropy = hidden_entropy(5);
    for _ in 0..3 {
        let drawn = Secret::<32>::random(&mut entropy).expect("test entropy");
        show(drawn.expose());
        assert_ne!(drawn.expose(), &[0; 32]);
    }
}

#[inline(never)]
fn musig() {
    let secrets = [secret(10), secret(11)];
    let keys = [public(10).0, public(11).0];
    let key_agg = KeyAgg::new(&keys, &[]).expect("two keys");
    let message = [12; 32];
    let mut nonces = Vec::new();
    let mut public_nonces = Vec::new();
    for secret in &secrets {
        let mut entropy = hidden_entropy(6 + nonces.len() as u64);
        let nonce = SigningNonce::generate(secret, &key_agg, message, &mut entropy).expect("a member");
        let public = nonce.public();
        show(&public);
        public_nonces.push(public);
        nonces.push(nonce);
    }
    let aggregate = aggregate_nonces(&public_nonces).expect("two");
    let session = Session::new(&key_agg, aggregate, message).expect("sound");
    let mut partials = Vec::new();
    for nonce in nonces {
        let partial = nonce.sign(&session).expect("the session's");
        show(&partial);
        partials.push(partial);
    }
    let signature = session.aggregate_partials(&partials).expect("two");
    assert!(keymeld_core::musig::round::verify(&key_agg.output_key(), &message, &signature));
}
