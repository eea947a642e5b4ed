//! The signing protocol's model: it holds, each broken rule is noticed, and real machines do what it says.

mod gateway;
mod real;

use std::collections::BTreeSet;

use keymeld_core::entropy::test_entropy;
use keymeld_fuzz::model::checker::check;
use keymeld_fuzz::model::{AGGREGATOR, Action, ENCLAVES, PROPERTIES, Rules, State};
use real::Real;

/// Paths that are replayed, and actions of each.
const PATHS: u64 = 60;
const ACTIONS: usize = 48;

#[test]
fn every_state_without_faults_keeps_every_property() {
    // With the faults, `cargo run --release -p keymeld-fuzz --bin model` visits 150 times as many.
    let start = State { crashed: true, rolled_back: true, ..State::default() };
    let visited = check(&start, Rules::KEPT).expect("no counterexample");
    assert!(visited.states > 10_000, "{visited:?}");
}

#[test]
fn each_broken_rule_has_a_counterexample() {
    let broken = [
        (Rules { consumes: false, ..Rules::KEPT }, PROPERTIES[0].name),
        (Rules { checks_approval: false, ..Rules::KEPT }, PROPERTIES[1].name),
        (Rules { binds: false, ..Rules::KEPT }, PROPERTIES[1].name),
        (Rules { holds_back: false, ..Rules::KEPT }, PROPERTIES[2].name),
    ];
    for (rules, property) in broken {
        let counterexample = check(&State::default(), rules).expect_err("a counterexample");
        assert_eq!(counterexample.property, property, "{rules:?}");
    }
}

/// A path's random choices.
struct Choices(keymeld_core::entropy::Entropy);

impl Choices {
    fn below(&mut self, count: usize) -> usize {
        let bytes = self.0.bytes::<8>().expect("test entropy");
        usize::try_from(u64::from_be_bytes(bytes) % count as u64).expect("below a usize")
    }

    fn pick(&mut self, from: &[Action]) -> Option<Action> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }

    /// Something impossible, a fault, what an honest gateway would do, or anything but faults.
    fn action(&mut self, state: &State, rules: Rules) -> Option<Action> {
        let (possible, impossible): (Vec<Action>, Vec<Action>) =
            State::candidates().into_iter().partition(|action| state.after(*action, rules).is_some());
        let (faults, calm): (Vec<Action>, Vec<Action>) = possible.iter().partition(|action| is_fault(action));
        let chosen = match self.below(16) {
            0..=3 => self.pick(&impossible),
            4 => self.pick(&possible),
            5 => self.pick(&faults),
            6..=11 => honest(&possible),
            _ => None,
        };
        chosen.or_else(|| self.pick(&calm)).or_else(|| self.pick(&possible))
    }
}

#[test]
fn real_machines_do_what_the_model_says() {
    let (happened, refused) = replay(Rules::KEPT);
    let every: BTreeSet<String> = State::candidates().iter().map(kind).collect();
    assert_eq!(happened, every, "every transition happened");
    let enclaves = (0..ENCLAVES).flat_map(|at| [format!("MakeNonces {at}"), format!("Sign {at}")]);
    let tried: BTreeSet<String> = enclaves.chain(["Acknowledge".into(), "Submit".into()]).collect();
    assert!(tried.is_subset(&refused), "everything that can be refused was: {refused:?}");
}

#[test]
#[should_panic(expected = "possible: true")]
fn real_machines_do_not_what_a_model_says_that_keeps_used_nonces() {
    replay(Rules { consumes: false, ..Rules::KEPT });
}

#[test]
#[should_panic(expected = "possible: true")]
fn real_machines_do_not_what_a_model_says_that_needs_no_approval() {
    replay(Rules { checks_approval: false, ..Rules::KEPT });
}

#[test]
#[should_panic(expected = "possible: true")]
fn real_machines_do_not_what_a_model_says_that_signs_any_intent_with_a_nonce() {
    replay(Rules { binds: false, ..Rules::KEPT });
}

/// Replays paths of the model on real machines; which transitions happened, and which were refused.
fn replay(rules: Rules) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut happened = BTreeSet::new();
    let mut refused = BTreeSet::new();
    let keygen = real::Keygen::new();
    for seed in 0..PATHS {
        let mut choices = Choices(test_entropy(9_000 + seed));
        let mut state = State::default();
        let mut real = Real::new(&keygen, seed);
        let mut path = Vec::new();
        for _ in 0..ACTIONS {
            let Some(action) = choices.action(&state, rules) else { break };
            path.push(action);
            let next = state.after(action, rules);
            let tried = real.act(action, &state, next.as_ref());
            match (&next, tried) {
                (Some(_), _) => drop(happened.insert(kind(&action))),
                (None, true) => drop(refused.insert(kind(&action))),
                (None, false) => {}
            }
            state = next.unwrap_or(state);
            real.compare(&state, &path);
        }
    }
    (happened, refused)
}

/// What an honest gateway would do next for the first session, so that paths get somewhere.
fn honest(possible: &[Action]) -> Option<Action> {
    let mut order = vec![Action::Request(0), Action::Approve(0)];
    order.extend((0..ENCLAVES).map(|enclave| Action::MakeNonces(enclave, 0, 0)));
    order.extend([1, 2, AGGREGATOR].map(|enclave| Action::Sign(enclave, 0, 0, 0)));
    order.extend([Action::Commit(0), Action::Submit(0)]);
    order.into_iter().find(|action| possible.contains(action))
}

fn is_fault(action: &Action) -> bool {
    matches!(action, Action::CrashEnclave(_) | Action::CrashGateway | Action::RollBack(..))
}

/// A transition, less the names that mean nothing.
fn kind(action: &Action) -> String {
    match action {
        Action::Request(_) => "Request".into(),
        Action::Approve(_) => "Approve".into(),
        Action::Submit(_) => "Submit".into(),
        Action::Commit(_) => "Commit".into(),
        Action::Acknowledge(_) => "Acknowledge".into(),
        Action::MakeNonces(enclave, ..) => format!("MakeNonces {enclave}"),
        Action::Sign(enclave, ..) => format!("Sign {enclave}"),
        Action::CrashEnclave(enclave) => format!("CrashEnclave {enclave}"),
        Action::CrashGateway => "CrashGateway".into(),
        Action::RollBack(_, level) => format!("RollBack {level}"),
    }
}
