//! Checks the signing protocol's model: `cargo run --release -p keymeld-fuzz --bin model`.

use std::process::ExitCode;
use std::time::Instant;

use keymeld_fuzz::model::checker::check;
use keymeld_fuzz::model::{PROPERTIES, Rules, State};

fn main() -> ExitCode {
    let started = Instant::now();
    match check(&State::default(), Rules::KEPT) {
        Ok(visited) => {
            for property in PROPERTIES {
                println!("holds in every state: {}", property.name);
            }
            println!(
                "{} states, {} transitions, depth {}, {} s",
                visited.states,
                visited.transitions,
                visited.depth,
                started.elapsed().as_secs()
            );
            ExitCode::SUCCESS
        }
        Err(counterexample) => {
            println!("does not hold: {}\n{:#?}", counterexample.property, counterexample.path);
            ExitCode::FAILURE
        }
    }
}
