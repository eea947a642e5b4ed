//! The fuzz targets as ordinary tests: the committed corpus, its mutations, and inputs out of nothing.

use std::collections::BTreeMap;
use std::fs;

use keymeld_fuzz::corpus::{self, Seeds};
use keymeld_fuzz::targets::musig::finished;
use keymeld_fuzz::targets::program::Program;
use keymeld_fuzz::targets::{ALL, Target};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::test_runner::TestRunner;

fn committed() -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let read = |folder: std::path::PathBuf| {
        let entries = fs::read_dir(&folder).expect("a committed folder");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    let name = |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let files = |folder: std::path::PathBuf| {
        read(folder).into_iter().map(|path| (name(&path), fs::read(&path).expect("readable"))).collect()
    };
    read(corpus::folder()).into_iter().map(|folder| (name(&folder), files(folder))).collect()
}

#[test]
fn the_committed_corpus_is_what_the_generator_writes() {
    let seeds: Seeds = corpus::seeds();
    let made: BTreeMap<String, BTreeMap<String, Vec<u8>>> =
        seeds.into_iter().map(|(target, seeds)| (target.to_owned(), seeds)).collect();
    let committed = committed();
    for (target, seeds) in &made {
        for (name, seed) in seeds {
            let same = committed.get(target).and_then(|files| files.get(name)) == Some(seed);
            assert!(same, "{target}/{name}: `cargo run -p keymeld-fuzz --bin corpus` writes the corpus anew");
        }
    }
    let count = |seeds: &BTreeMap<_, BTreeMap<_, _>>| seeds.values().map(BTreeMap::len).sum::<usize>();
    assert_eq!(count(&made), count(&committed), "a committed file that nothing makes");
}

#[test]
fn every_target_has_seeds_and_a_binary() {
    let committed = committed();
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("readable");
    for target in ALL {
        assert!(committed.get(target.name).is_some_and(|seeds| !seeds.is_empty()), "{}", target.name);
        assert!(manifest.contains(&format!("path = \"targets/{}.rs\"", target.name)), "{}", target.name);
        assert!(
            committed[target.name].values().all(|seed| seed.len() <= target.bytes_max),
            "{}",
            target.name
        );
    }
    assert_eq!(committed.len(), ALL.len());
}

#[test]
fn every_committed_seed_passes() {
    for target in ALL {
        for seed in committed()[target.name].values() {
            (target.run)(seed);
        }
    }
}

#[test]
fn the_genuine_musig_seed_gives_a_signature_and_an_altered_one_does_not() {
    let mut seed = committed()["musig"]["session"].clone();
    assert!(finished(&seed));
    *seed.last_mut().expect("a partial signature") ^= 1;
    assert!(!finished(&seed));
}

/// Fewer cases for targets that are slow without optimisation.
fn cases(target: &Target) -> u32 {
    match target.name {
        "paths" => 32,
        "enclave_events" | "client_events" | "signed" | "envelopes" => 128,
        _ => 1_000,
    }
}

fn run(target: &'static Target) {
    let seeds: Vec<Vec<u8>> = committed()[target.name].values().cloned().collect();
    let config = ProptestConfig {
        cases: cases(target),
        failure_persistence: None,
        max_shrink_iters: 256,
        ..Default::default()
    };
    let mut runner = TestRunner::new(config);
    // Mutations of a seed, then the seed of a whole other kind, then bytes out of nothing.
    let mutations = (any::<u16>(), vec(any::<u8>(), 0..64), vec(any::<u8>(), 0..512));
    runner
        .run(&mutations, |(which, mutation, bytes)| {
            let seed = &seeds[usize::from(which) % seeds.len()];
            let mut program = Program::new(&mutation);
            let once = program.altered(seed);
            (target.run)(&once);
            (target.run)(&program.altered(&once));
            (target.run)(&bytes);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{}: {failure}", target.name));
}

macro_rules! mutated {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let target = ALL.iter().find(|target| target.name == stringify!($name));
                run(target.expect("a target"));
            }
        )*

        #[test]
        fn every_target_is_run_on_mutated_seeds() {
            let names = [$(stringify!($name)),*];
            assert!(ALL.iter().map(|target| target.name).eq(names));
        }
    };
}

mod mutated {
    use super::{ALL, run};

    mutated! {
        frames link_requests link_replies bundles artifacts invites memberships rest http proofs attestations
        certificates paths user_data policies settings envelopes seals signed musig gateway_events gateway_rows
        enclave_events client_events
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn programs_of_few_kinds_of_events_go_deep(bytes in vec(0_u8..16, 0..200)) {
        keymeld_fuzz::targets::gateway::events(&bytes);
        keymeld_fuzz::targets::client::events(&bytes);
    }
}
