//! Key aggregation and the rounds as seen from outside: public points and scalars from anywhere.
//!
//! The library behind them aborts the process where it is misused, which a fuzzer sees.

use std::sync::LazyLock;

use keymeld_core::crypto::auth::public_key;
use keymeld_core::musig::aggregate::{KeyAgg, has_equal_x};
use keymeld_core::musig::round::{Contribution, Session, aggregate_nonces, finish, verify};
use keymeld_core::musig::tweak::Tweak;

use super::program::Program;
use crate::stage::story::signing_key;

static KEYS: LazyLock<Vec<[u8; 33]>> =
    LazyLock::new(|| (0..4).map(|place| public_key(&signing_key(place)).expect("a key").0).collect());

/// A session of points and scalars that the input chooses.
///
/// # Panics
/// Where a finished signature does not verify, or a stranger is taken for a member.
pub fn rounds(bytes: &[u8]) {
    finished(bytes);
}

/// The same; whether a signature came of it.
///
/// # Panics
/// As [`rounds`].
pub fn finished(bytes: &[u8]) -> bool {
    let mut program = Program::new(bytes);
    let keys: Vec<[u8; 33]> = (0..program.below(5)).map(|_| point(&mut program)).collect();
    let tweaks: Vec<Tweak> = (0..program.below(4)).map(|_| tweak(&mut program)).collect();
    let _ = has_equal_x(&keys);
    let Ok(key_agg) = KeyAgg::new(&keys, &tweaks) else { return false };
    let nonces: Vec<[u8; 66]> = (0..program.below(5)).map(|_| nonce(&mut program)).collect();
    let message = array::<32>(&mut program);
    let aggregate = match aggregate_nonces(&nonces) {
        Ok(aggregate) if program.byte().is_multiple_of(2) => aggregate,
        Ok(_) | Err(_) => nonce(&mut program),
    };
    let Ok(session) = Session::new(&key_agg, aggregate, message) else { return false };
    let mut contributions = Vec::new();
    for public_nonce in &nonces {
        let key = point(&mut program);
        let partial = array::<32>(&mut program);
        if session.verify_partial(&key, public_nonce, &partial).is_ok() {
            assert!(key_agg.contains(&key), "a stranger's partial signature");
        }
        contributions.push(Contribution { key, public_nonce: *public_nonce, partial });
    }
    let partials: Vec<[u8; 32]> = contributions.iter().map(|contribution| contribution.partial).collect();
    let _ = session.aggregate_partials(&partials);
    match finish(&session, &contributions) {
        Ok(signature) => {
            assert!(verify(&key_agg.output_key(), &message, &signature));
            true
        }
        Err(error) => {
            assert!(error.culprits().iter().all(|index| *index < contributions.len()));
            false
        }
    }
}

fn array<const N: usize>(program: &mut Program<'_>) -> [u8; N] {
    let mut array = [0; N];
    let taken = program.take(N);
    array[..taken.len()].copy_from_slice(taken);
    array
}

/// A member's key, its negation, infinity, or whatever the input says.
fn point(program: &mut Program<'_>) -> [u8; 33] {
    match program.byte() % 16 {
        choice @ 0..=7 => KEYS[usize::from(choice) % KEYS.len()],
        choice @ 8..=11 => {
            let mut negated = KEYS[usize::from(choice) % KEYS.len()];
            negated[0] ^= 1;
            negated
        }
        12 => [0; 33],
        _ => array(program),
    }
}

fn nonce(program: &mut Program<'_>) -> [u8; 66] {
    let mut nonce = [0; 66];
    nonce[..33].copy_from_slice(&point(program));
    nonce[33..].copy_from_slice(&point(program));
    nonce
}

fn tweak(program: &mut Program<'_>) -> Tweak {
    match program.byte() % 4 {
        0 => Tweak::Plain(array(program)),
        1 => Tweak::XOnly(array(program)),
        2 => Tweak::Taproot { merkle_root: Some(array(program)) },
        _ => Tweak::Taproot { merkle_root: None },
    }
}
