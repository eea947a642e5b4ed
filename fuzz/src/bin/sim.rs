//! Runs seeds of the simulator, or replays one.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use keymeld_fuzz::sim::coverage::{ENFORCED_FROM, unreached};
use keymeld_fuzz::sim::shrink::shortest;
use keymeld_fuzz::sim::{Options, Outcome, run};

const USAGE: &str = "usage: sim [--seeds N] [--first-seed S] [--threads T] [--json] [--allow-unreached]
           [--fail-fast] [--hostile | --honest] [--faults N]
       sim --replay SEED [--trace] [--faults N] [--hostile | --honest]

Runs N seeds from S on and ends with one line of JSON. One seed in twenty is run twice and has to give the same
trace. Fails where a seed fails, or, from 1,000 seeds on, where a state, a transition or a fault is never reached.";
/// One seed in so many is run twice.
const TWICE: u64 = 20;
/// Failing seeds that are shrunk and shown.
const SHOWN_MAX: u64 = 5;

#[derive(Debug)]
struct Arguments {
    seeds: u64,
    first_seed: u64,
    threads: u64,
    json: bool,
    allow_unreached: bool,
    fail_fast: bool,
    replay: Option<u64>,
    options: Options,
}

#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    virtual_ms: u64,
    faults: u64,
    failures: Vec<u64>,
    reached: BTreeSet<&'static str>,
}

fn arguments() -> Result<Arguments, String> {
    let mut read = Arguments {
        seeds: 100,
        first_seed: 1,
        threads: 1,
        json: false,
        allow_unreached: false,
        fail_fast: false,
        replay: None,
        options: Options::default(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().ok_or(format!("{word} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("{value} is not a number"))
        };
        match word.as_str() {
            "--seeds" => read.seeds = number()?,
            "--first-seed" => read.first_seed = number()?,
            "--threads" => read.threads = number()?.clamp(1, 256),
            "--faults" => read.options.faults_max = number()?,
            "--replay" => read.replay = Some(number()?),
            "--json" => read.json = true,
            "--trace" => read.options.traced = true,
            "--allow-unreached" => read.allow_unreached = true,
            "--fail-fast" => read.fail_fast = true,
            "--hostile" => read.options.hostile = Some(true),
            "--honest" => read.options.hostile = Some(false),
            _ => return Err(format!("{word} is not known\n{USAGE}")),
        }
    }
    Ok(read)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(said) => {
            eprintln!("{said}");
            return ExitCode::from(2);
        }
    };
    match arguments.replay {
        Some(seed) => replay(seed, &arguments.options),
        None => all(&arguments),
    }
}

fn replay(seed: u64, options: &Options) -> ExitCode {
    let outcome = run(seed, options);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} steps, {} faults, {} virtual seconds, trace {:016x}",
        outcome.steps,
        outcome.faults,
        outcome.virtual_ms / 1_000,
        outcome.trace_hash
    );
    match outcome.failure {
        Some(said) => {
            println!("{said}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn all(arguments: &Arguments) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(arguments.first_seed);
    let end = arguments.first_seed.saturating_add(arguments.seeds);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let failed = one(seed, arguments, &tally);
                    if failed && arguments.fail_fast {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(arguments, &tally, began.elapsed().as_secs_f64())
}

/// Runs one seed, some of them twice; true where it fails.
fn one(seed: u64, arguments: &Arguments, tally: &Mutex<Tally>) -> bool {
    let mut outcome = run(seed, &arguments.options);
    if outcome.failure.is_none() && seed.is_multiple_of(TWICE) {
        let again = run(seed, &arguments.options);
        if again.trace_hash != outcome.trace_hash {
            outcome.failure = Some("the same seed gave another trace".into());
        }
    }
    let failed = outcome.failure.is_some();
    let shown = {
        let mut tally = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tally.steps += outcome.steps;
        tally.virtual_ms += outcome.virtual_ms;
        tally.faults += outcome.faults;
        tally.reached.append(&mut outcome.reached);
        if failed {
            tally.failures.push(seed);
        }
        tally.failures.len() as u64 <= SHOWN_MAX
    };
    if failed && shown {
        show(seed, &outcome, arguments);
    }
    failed
}

fn show(seed: u64, outcome: &Outcome, arguments: &Arguments) {
    let shortest = shortest(seed, &arguments.options);
    let wire = match arguments.options.hostile {
        Some(true) => " --hostile",
        Some(false) => " --honest",
        None => "",
    };
    eprintln!("seed {seed} fails at commit {} after {} steps:", commit(), outcome.steps);
    eprintln!("  {}", outcome.failure.as_deref().unwrap_or_default());
    if let Some(said) = &shortest.failure {
        eprintln!("  with {} faults, after {} steps: {said}", shortest.faults, shortest.steps);
    }
    eprintln!(
        "  cargo run --release -p keymeld-fuzz --bin sim -- --replay {seed} --faults {}{wire} --trace",
        shortest.faults
    );
}

fn commit() -> String {
    let told = std::env::var("KEYMELD_COMMIT").ok();
    told.unwrap_or_else(|| {
        let asked = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
        let said = asked.ok().and_then(|output| String::from_utf8(output.stdout).ok());
        said.map(|said| said.trim().to_string()).filter(|said| !said.is_empty()).unwrap_or("unknown".into())
    })
}

fn report(arguments: &Arguments, tally: &Tally, seconds: f64) -> ExitCode {
    let missed = unreached(&tally.reached);
    let enforced = arguments.seeds >= ENFORCED_FROM && !arguments.allow_unreached;
    if !arguments.json {
        println!("reached {} of what there is to reach", tally.reached.len());
    }
    let names: Vec<String> = missed.iter().map(|name| format!("{name:?}")).collect();
    let failing: Vec<String> = tally.failures.iter().map(u64::to_string).collect();
    println!(
        "{{\"seeds\":{},\"failures\":{},\"steps\":{},\"virtual_seconds\":{},\"faults\":{},\"elapsed_seconds\":{seconds:.1},\
         \"seeds_per_second\":{:.1},\"failing\":[{}],\"unreached\":[{}]}}",
        arguments.seeds,
        tally.failures.len(),
        tally.steps,
        tally.virtual_ms / 1_000,
        tally.faults,
        arguments.seeds as f64 / seconds.max(0.001),
        failing.join(","),
        names.join(",")
    );
    if tally.failures.is_empty() && (missed.is_empty() || !enforced) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
