//! Visits every state of the model, breadth first. States are kept whole: no two are mistaken for one.

use std::collections::{HashMap, VecDeque};

use super::{Action, PROPERTIES, Property, Rules, State};

/// What was visited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visited {
    /// Distinct states; such as differ in the names of sessions and attempts alone are one.
    pub states: usize,
    /// Transitions between them.
    pub transitions: usize,
    /// Actions of the longest of the shortest paths.
    pub depth: usize,
}

/// A state in which a property does not hold, and the shortest way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The property's name.
    pub property: &'static str,
    /// From the beginning.
    pub path: Vec<Action>,
}

/// How a state was reached first.
struct Reached {
    from: usize,
    action: Option<Action>,
    depth: usize,
}

/// Visits all states that can be reached from one, or stops at the first in which a property does not hold.
///
/// # Errors
/// The counterexample.
pub fn check(start: &State, rules: Rules) -> Result<Visited, Counterexample> {
    let candidates = State::candidates();
    let mut known: HashMap<State, usize> = HashMap::new();
    let mut reached = vec![Reached { from: 0, action: None, depth: 0 }];
    let mut queue = VecDeque::from([start.clone()]);
    known.insert(start.clone(), 0);
    let mut visited = Visited::default();
    for at in 0.. {
        let Some(state) = queue.pop_front() else { break };
        if let Some(Property { name, .. }) = PROPERTIES.iter().find(|property| !(property.holds)(&state)) {
            return Err(Counterexample { property: name, path: path(&reached, at) });
        }
        visited.depth = visited.depth.max(reached[at].depth);
        for action in &candidates {
            let Some(next) = state.after(*action, rules) else { continue };
            visited.transitions += 1;
            let next = canonical(next);
            if !known.contains_key(&next) {
                known.insert(next.clone(), reached.len());
                reached.push(Reached { from: at, action: Some(*action), depth: reached[at].depth + 1 });
                queue.push_back(next);
            }
        }
    }
    visited.states = known.len();
    Ok(visited)
}

/// The least of the states that differ in names alone.
fn canonical(state: State) -> State {
    let others = [(false, true), (true, false), (true, true)];
    let others = others.map(|(sessions, attempts)| state.renamed(sessions, attempts));
    others.into_iter().fold(state, Ord::min)
}

/// The names along a path are those of each state's canonical form: it shows what happens, not to which name.
fn path(reached: &[Reached], mut at: usize) -> Vec<Action> {
    let mut path = Vec::new();
    while let Some(action) = reached[at].action {
        path.push(action);
        at = reached[at].from;
    }
    path.reverse();
    path
}
