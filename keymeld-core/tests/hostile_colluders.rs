//! Colluding participants with an enclave key pair that they made up: they act as an enclave for their own key
//! and gain nothing, and what they claim about others convinces nobody.

mod hostile;

use std::cell::RefCell;
use std::rc::Rc;

use keymeld_core::artifact::registration::Record;
use keymeld_core::bytes::{Hash, Message, PartialSignature, PublicKey, PublicNonce};
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Session, aggregate_nonces};
use keymeld_core::refusal::{Code, Refusal};

use hostile::party::{Group, Person, careful, delegated, fresh_entropy};
use hostile::round::{Case, Puppet, Run};
use hostile::{keys, refused};

fn key(at: usize) -> PublicKey {
    keys(at).enclave_key
}

/// What the colluder's made-up enclave does.
#[derive(Clone, Copy, PartialEq)]
enum Play {
    Honestly,
    /// Tells each enclave other nonces.
    TwoNonces,
    /// Makes a wrong partial signature.
    WrongPartial,
    /// Sends bytes that are no nonce, to everybody.
    NoPoints,
    /// Chooses nonces after it saw the others', so that they cancel.
    CancellingNonces,
    /// Speaks for more users than its own.
    TwoEntries,
    /// Claims another view of the nonces than its own.
    OtherView,
    /// Leaves its partial signatures out.
    NoPartials,
}

/// Two honest participants, and a third whose enclave is made up.
fn cast() -> (Puppet, Case) {
    let puppet = Puppet::new();
    let people =
        vec![Person::at(0, careful()), Person::at(1, delegated()), Person::at_keys(puppet.keys, delegated())];
    (puppet, Case::new(Group::of(people)))
}

/// The third participant's enclave takes part like this.
fn colluding(play: Play) -> Case {
    let (puppet, mut case) = cast();
    let puppet = Rc::new(puppet);
    let message = case.intent.items[0].message;
    let held = Rc::new(RefCell::new(None));
    let (between, kept) = (Rc::clone(&puppet), Rc::clone(&held));
    case.between(move |run, group, _| {
        *kept.borrow_mut() = Some(send_nonces(&between, play, message, run, group));
    });
    case.after(move |run, group, _| {
        let (nonce, sent) = held.borrow_mut().take().expect("made in round 1");
        if play != Play::NoPartials {
            send_partial(&puppet, play, message, nonce, sent, run, group);
        }
    });
    case
}

fn own_nonce(message: Message, group: &Group) -> SigningNonce {
    let key_agg = group.roster().expect("made honestly").key_agg(None, &[]).expect("no tweak");
    SigningNonce::generate(&group.people[2].private_key, &key_agg, message.0, &mut fresh_entropy())
        .expect("a member")
}

fn others_nonces(puppet: &Puppet, run: &Run, group: &Group) -> Vec<[u8; 66]> {
    [0, 1].map(|at| puppet.open_nonces(run, group, key(at), 1).nonces[0].0).to_vec()
}

fn send_nonces(
    puppet: &Puppet,
    play: Play,
    message: Message,
    run: &mut Run,
    group: &Group,
) -> (SigningNonce, PublicNonce) {
    let nonce = own_nonce(message, group);
    let mut sent = PublicNonce(nonce.public());
    if play == Play::NoPoints {
        sent = PublicNonce([0xff; 66]);
    }
    if play == Play::CancellingNonces {
        sent = PublicNonce(aggregate_nonces(&others_nonces(puppet, run, group)).expect("honest nonces"));
        sent.0[0] ^= 1;
        sent.0[33] ^= 1;
    }
    for at in [0, 1] {
        let nonces = match play {
            Play::TwoNonces if at == 1 => vec![PublicNonce(own_nonce(message, group).public())],
            Play::TwoEntries => vec![sent, sent],
            _ => vec![sent],
        };
        puppet.send_nonces(run, group, key(at), &NonceBundle::new(nonces));
    }
    (nonce, sent)
}

fn send_partial(
    puppet: &Puppet,
    play: Play,
    message: Message,
    nonce: SigningNonce,
    sent: PublicNonce,
    run: &mut Run,
    group: &Group,
) {
    let mut all = others_nonces(puppet, run, group);
    all.push(sent.0);
    let aggregate = aggregate_nonces(&all).expect("nonces");
    let key_agg = group.roster().expect("made honestly").key_agg(None, &[]).expect("no tweak");
    let session = Session::new(&key_agg, aggregate, message.0).expect("valid");
    let of_user = |record: &Record| {
        let at = group.people.iter().position(|person| person.user_id == record.user_id).expect("listed");
        all[at].as_slice()
    };
    let roster = group.roster().expect("made honestly");
    let in_order: Vec<&[u8]> = roster.records().iter().map(of_user).collect();
    let mut view = tagged_hash(Tag::NonceView, &in_order);
    let mut partial = PartialSignature(nonce.sign(&session).expect("its session"));
    match play {
        Play::WrongPartial => partial.0[31] ^= 1,
        Play::OtherView => view = Hash([1; 32]),
        _ => {}
    }
    puppet.send_partials(run, group, &PartialBundle::new(view, vec![partial]));
}

#[track_caller]
fn refused_play(code: Code, play: Play) -> Refusal {
    refused(code, || colluding(Play::Honestly), Case::signatures, |case| *case = colluding(play))
}

#[test]
fn nonces_that_differ_from_peer_to_peer_fail_the_attempt_and_blame_nobody() {
    assert_eq!(refused_play(Code::NonceViewsDiffer, Play::TwoNonces).culprits, []);
    assert_eq!(refused_play(Code::NonceViewsDiffer, Play::OtherView).culprits, []);
}

#[test]
fn a_wrong_partial_signature_is_blamed_on_the_colluder_alone() {
    for play in [Play::WrongPartial, Play::CancellingNonces] {
        let case = colluding(play);
        let colluder = case.group.people[2].user_id;
        let outcomes = case.outcomes().expect("a result");
        let refusal = outcomes[0].as_ref().expect_err("a wrong partial");
        assert_eq!((refusal.code, &refusal.culprits), (Code::PartialInvalid, &vec![colluder]));
        refused_play(Code::PartialInvalid, play);
    }
}

#[test]
fn a_nonce_that_is_no_pair_of_points_is_blamed_on_the_colluder_alone() {
    let refusal = refused_play(Code::NonceInvalid, Play::NoPoints);
    assert_eq!(refusal.culprits.len(), 1);
    let case = colluding(Play::NoPoints);
    let colluder = case.group.people[2].user_id;
    assert_eq!(case.outcomes().expect_err("no nonce").culprits, [colluder]);
}

#[test]
fn an_enclave_speaks_for_exactly_the_users_whose_records_name_it() {
    refused_play(Code::BundleMismatch, Play::TwoEntries);
}

#[test]
fn partial_signatures_that_are_left_out_give_no_result() {
    refused_play(Code::BundleMismatch, Play::NoPartials);
}

/// S2: with nonces that the colluder chooses a second time the honest enclave would give its key away.
#[test]
fn round_2_again_with_other_valid_nonces_is_refused() {
    let (puppet, mut case) = cast();
    case.world.open_all(&case.group).expect("opens");
    let message = case.intent.items[0].message;
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    run.all_nonces(&mut world).expect("authorised");
    let (nonce, sent) = send_nonces(&puppet, Play::Honestly, message, &mut run, &group);
    let honest = run.clone();
    run.round_2(&mut world, 1).expect("the first time");
    let answer = run.partials[&key(1)].clone();
    let other = NonceBundle::new(vec![PublicNonce(own_nonce(message, &group).public())]);
    puppet.send_nonces(&mut run, &group, key(1), &other);
    let refusal = run.round_2(&mut world, 1).expect_err("other nonces, valid ones");
    assert_eq!(refusal, Refusal::from(Code::AttemptConsumed));
    // Asked as the first time it answers as the first time, and the attempt can be finished.
    let mut run = honest;
    run.round_2(&mut world, 1).expect("the same request");
    assert_eq!(run.partials[&key(1)], answer);
    send_partial(&puppet, Play::Honestly, message, nonce, sent, &mut run, &group);
    let result = run.aggregate(&mut world).expect("honest partials");
    assert!(run.read(&group, &result).expect("verifies")[0].is_ok());
}

/// Round 3 uses the aggregator's nonces in the same way.
#[test]
fn round_3_again_with_other_valid_nonces_is_refused() {
    let (puppet, mut case) = cast();
    case.world.open_all(&case.group).expect("opens");
    let message = case.intent.items[0].message;
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    run.all_nonces(&mut world).expect("authorised");
    let (nonce, sent) = send_nonces(&puppet, Play::Honestly, message, &mut run, &group);
    run.round_2(&mut world, 1).expect("honest nonces");
    send_partial(&puppet, Play::WrongPartial, message, nonce, sent, &mut run, &group);
    let result = run.aggregate(&mut world).expect("a result that names the colluder");
    assert_eq!(run.aggregate(&mut world), Ok(result));
    let other = NonceBundle::new(vec![PublicNonce(own_nonce(message, &group).public())]);
    puppet.send_nonces(&mut run, &group, key(0), &other);
    let refusal = run.aggregate(&mut world).expect_err("other nonces, valid ones");
    assert_eq!(refusal, Refusal::from(Code::AttemptConsumed));
}
