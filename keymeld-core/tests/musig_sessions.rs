//! Whole MuSig2 sessions: signers of both engines together, and sessions that someone spoils.

use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Contribution, FinishError, Session, aggregate_nonces, finish, verify};
use keymeld_core::musig::tweak::Tweak;
use keymeld_core::secret::Secret;
use musig2::secp::{MaybeScalar, Point, Scalar};
use musig2::{AggNonce, CompactSignature, KeyAggContext, PartialSignature, PubNonce, SecNonce};

const SIGNERS_MAX: usize = 6;

#[test]
fn every_mix_of_engines_ends_in_a_valid_signature() {
    let mut sessions = 0;
    for count in 2..=SIGNERS_MAX {
        for mix in 0..1_u64 << count {
            let mut entropy = test_entropy(1_000 * count as u64 + mix);
            for tweaks in tweak_lists(&mut entropy) {
                let engines: Vec<bool> = (0..count).map(|signer| mix >> signer & 1 == 1).collect();
                let (session, contributions) = mixed_session(&engines, &tweaks, &mut entropy);
                let signature = finish(&session, &contributions).expect("everybody is honest");
                assert!(verify(&session.key_agg().output_key(), session.message(), &signature));
                for one in &contributions {
                    assert_eq!(session.verify_partial(&one.key, &one.public_nonce, &one.partial), Ok(()));
                }
                assert_eq!(signature, aggregated_by_the_oracle(&session, &tweaks, &contributions));
                sessions += 1;
            }
        }
    }
    assert_eq!(sessions, (4 + 8 + 16 + 32 + 64) * 7);
}

#[test]
fn nonces_are_what_the_oracle_makes_of_the_same_inputs() {
    for seed in 0..50 {
        let mut entropy = test_entropy(seed);
        let roster = roster(3, &mut entropy);
        let message = entropy.bytes().expect("never fails");
        let tweaks = [Tweak::Plain(entropy.bytes().expect("never fails"))];
        let key_agg = KeyAgg::new(&keys_of(&roster), &tweaks).expect("valid");
        let nonce = SigningNonce::generate(&roster[0], &key_agg, message, &mut test_entropy(seed + 100));

        let random: [u8; 32] = test_entropy(seed + 100).bytes().expect("never fails");
        let oracle = SecNonce::build_with_seckey(random, scalar(&roster[0]))
            .with_aggregated_pubkey(context(&key_agg, &tweaks).aggregated_pubkey::<Point>())
            .with_message(&message)
            .build();
        assert_eq!(nonce.expect("a member").public(), oracle.public_nonce().serialize());
    }
}

#[test]
fn whoever_alters_its_partial_signature_is_named() {
    for count in 2..=SIGNERS_MAX {
        for guilty in 1..1_u64 << count {
            let mut entropy = test_entropy(10_000 * count as u64 + guilty);
            let tweaks = tweak_lists(&mut entropy).swap_remove(5);
            let (session, mut contributions) = mixed_session(&vec![true; count], &tweaks, &mut entropy);
            let culprits: Vec<usize> = (0..count).filter(|signer| guilty >> signer & 1 == 1).collect();
            for &culprit in &culprits {
                let [place, bit] = entropy.bytes::<2>().expect("never fails");
                contributions[culprit].partial[usize::from(place) % 32] ^= 1 << (bit % 8);
            }
            let failed = finish(&session, &contributions).expect_err("spoiled");
            assert_eq!(failed.culprits(), culprits);
        }
    }
}

#[test]
fn swapped_partial_signatures_are_harmless_alone_and_named_beside_a_wrong_one() {
    let mut entropy = test_entropy(1);
    let (session, contributions) = mixed_session(&[true, false, true, true], &[], &mut entropy);
    for first in 0..4 {
        for second in first + 1..4 {
            let mut swapped = contributions.clone();
            swapped[first].partial = contributions[second].partial;
            swapped[second].partial = contributions[first].partial;
            // The sum is the same, so this is no failure: a signature does not tell who gave which part.
            assert!(finish(&session, &swapped).is_ok());
            for guilty in [first, second] {
                let Contribution { key, public_nonce, partial } = &swapped[guilty];
                assert!(session.verify_partial(key, public_nonce, partial).is_err());
            }
            // With a third one altered, all three are named.
            let third = (0..4).find(|other| *other != first && *other != second).expect("four signers");
            swapped[third].partial[31] ^= 1;
            let mut culprits = [first, second, third];
            culprits.sort_unstable();
            assert_eq!(finish(&session, &swapped), Err(FinishError::Culprits(culprits.into())));

            let mut copied = contributions.clone();
            copied[first].partial = contributions[second].partial;
            assert_eq!(finish(&session, &copied), Err(FinishError::Culprits(vec![first])));
        }
    }
}

#[test]
fn a_partial_signature_from_another_session_is_named() {
    let mut entropy = test_entropy(2);
    let roster = roster(3, &mut entropy);
    let key_agg = KeyAgg::new(&keys_of(&roster), &[]).expect("valid");
    let of_message = |message, entropy: &mut Entropy| {
        let engines = [true, true, true];
        session_of(&roster, &engines, &key_agg, &[], message, entropy)
    };
    let (session, contributions) = of_message([1; 32], &mut entropy);
    let (_, same_message) = of_message([1; 32], &mut entropy);
    let (_, other_message) = of_message([2; 32], &mut entropy);
    for stale in [same_message, other_message] {
        for culprit in 0..3 {
            let mut mixed = contributions.clone();
            mixed[culprit].partial = stale[culprit].partial;
            assert_eq!(finish(&session, &mixed), Err(FinishError::Culprits(vec![culprit])));
            // Had it announced the other nonce as well, the aggregate nonce would not be the sum.
            mixed[culprit].public_nonce = stale[culprit].public_nonce;
            assert_eq!(finish(&session, &mixed), Err(FinishError::AggregateNonceMismatch));
        }
    }
}

/// No tweak, each kind alone, and lists as they occur: derivation and then the key path.
fn tweak_lists(entropy: &mut Entropy) -> Vec<Vec<Tweak>> {
    let mut bytes = || entropy.bytes().expect("never fails");
    vec![
        vec![],
        vec![Tweak::Plain(bytes())],
        vec![Tweak::XOnly(bytes())],
        vec![Tweak::Taproot { merkle_root: None }],
        vec![Tweak::Taproot { merkle_root: Some(bytes()) }],
        vec![Tweak::Plain(bytes()), Tweak::Plain(bytes()), Tweak::Taproot { merkle_root: None }],
        vec![Tweak::XOnly(bytes()), Tweak::Plain(bytes()), Tweak::XOnly(bytes()), Tweak::XOnly([0; 32])],
    ]
}

fn roster(count: usize, entropy: &mut Entropy) -> Vec<Secret<32>> {
    (0..count).map(|_| Secret::random(entropy).expect("never fails")).collect()
}

fn scalar(secret: &Secret<32>) -> Scalar {
    Scalar::from_slice(secret.expose()).expect("in range")
}

fn keys_of(roster: &[Secret<32>]) -> Vec<[u8; 33]> {
    roster.iter().map(|secret| scalar(secret).base_point_mul().serialize()).collect()
}

/// A session of fresh keys; `engines[i]` says whether signer i runs the native engine.
fn mixed_session(engines: &[bool], tweaks: &[Tweak], entropy: &mut Entropy) -> (Session, Vec<Contribution>) {
    let roster = roster(engines.len(), entropy);
    let key_agg = KeyAgg::new(&keys_of(&roster), tweaks).expect("valid");
    let message = entropy.bytes().expect("never fails");
    session_of(&roster, engines, &key_agg, tweaks, message, entropy)
}

enum Signer {
    Native(SigningNonce),
    Oracle(SecNonce),
}

fn session_of(
    roster: &[Secret<32>],
    engines: &[bool],
    key_agg: &KeyAgg,
    tweaks: &[Tweak],
    message: [u8; 32],
    entropy: &mut Entropy,
) -> (Session, Vec<Contribution>) {
    let context = context(key_agg, tweaks);
    let aggregate_key: Point = context.aggregated_pubkey();
    assert_eq!(aggregate_key.serialize_xonly(), key_agg.output_key());
    assert_eq!(context.aggregated_pubkey_untweaked::<Point>().serialize(), key_agg.untweaked_key());

    let signers: Vec<Signer> = roster
        .iter()
        .zip(engines)
        .map(|(secret, is_native)| match is_native {
            true => {
                Signer::Native(SigningNonce::generate(secret, key_agg, message, entropy).expect("a member"))
            }
            false => {
                let random: [u8; 32] = entropy.bytes().expect("never fails");
                Signer::Oracle(SecNonce::generate(random, scalar(secret), aggregate_key, message, b""))
            }
        })
        .collect();
    let public_nonces: Vec<[u8; 66]> = signers
        .iter()
        .map(|signer| match signer {
            Signer::Native(nonce) => nonce.public(),
            Signer::Oracle(nonce) => nonce.public_nonce().serialize(),
        })
        .collect();
    let aggregate_nonce = aggregate_nonces(&public_nonces).expect("valid nonces");
    let session = Session::new(key_agg, aggregate_nonce, message).expect("valid");

    let mut contributions = Vec::new();
    for ((signer, secret), public_nonce) in signers.into_iter().zip(roster).zip(public_nonces) {
        let partial = match signer {
            Signer::Native(nonce) => nonce.sign(&session).expect("its session"),
            Signer::Oracle(nonce) => {
                let aggregate = AggNonce::from_bytes(&aggregate_nonce).expect("two points");
                musig2::sign_partial::<PartialSignature>(&context, scalar(secret), nonce, &aggregate, message)
                    .expect("its session")
                    .serialize()
            }
        };
        let key = scalar(secret).base_point_mul().serialize();
        contributions.push(Contribution { key, public_nonce, partial });
    }
    (session, contributions)
}

/// The oracle's own aggregation of the same keys and tweaks.
fn context(key_agg: &KeyAgg, tweaks: &[Tweak]) -> KeyAggContext {
    let mut points: Vec<Point> =
        key_agg.keys().iter().map(|key| Point::from_slice(key).expect("a point")).collect();
    points.sort();
    let context = KeyAggContext::new(points).expect("the sum is a point");
    let apply = |context: KeyAggContext, tweak: &Tweak| match tweak {
        Tweak::Plain(t) => context.with_plain_tweak(MaybeScalar::from_slice(t).expect("in range")),
        Tweak::XOnly(t) => context.with_xonly_tweak(MaybeScalar::from_slice(t).expect("in range")),
        Tweak::Taproot { merkle_root: None } => context.with_unspendable_taproot_tweak(),
        Tweak::Taproot { merkle_root: Some(root) } => context.with_taproot_tweak(root),
    };
    tweaks.iter().fold(context, |context, tweak| apply(context, tweak).expect("a point"))
}

fn aggregated_by_the_oracle(session: &Session, tweaks: &[Tweak], contributions: &[Contribution]) -> [u8; 64] {
    let publics =
        contributions.iter().map(|one| PubNonce::from_bytes(&one.public_nonce).expect("two points"));
    let aggregate = AggNonce::sum(publics);
    assert_eq!(&aggregate.serialize(), session.aggregate_nonce());
    let partials = contributions.iter().map(|one| MaybeScalar::from_slice(&one.partial).expect("in range"));
    let context = context(session.key_agg(), tweaks);
    musig2::aggregate_partial_signatures::<_, CompactSignature>(
        &context,
        &aggregate,
        partials,
        session.message(),
    )
    .expect("everybody is honest")
    .serialize()
}
