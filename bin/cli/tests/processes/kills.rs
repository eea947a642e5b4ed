//! kill -9 of the gateway, of each enclave and of everything, in the middle of keygens and signings.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use keymeld::children::{Children, Service};
use keymeld_core::client::{Done, Job};
use tempfile::TempDir;

use crate::party::{Participant, careful, coordinator, invited};

const ENCLAVES: usize = 2;

fn start() -> (TempDir, Children) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = PathBuf::from(env!("CARGO_BIN_EXE_keymeld"));
    let children = Children::start(&program, folder.path(), ENCLAVES).expect("starts");
    (folder, children)
}

fn again(service: &mut Service) {
    service.kill().expect("kills");
    service.restart().expect("restarts");
}

/// The victims, one after the other: the gateway and each enclave.
fn victim(children: &mut Children, at: usize) -> &mut Service {
    match at {
        0 => &mut children.gateway,
        enclave => &mut children.enclaves[enclave - 1],
    }
}

/// Runs jobs while a process is killed and comes back.
fn while_killing<T: Send>(victim: &mut Service, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        again(victim);
        acting.join().expect("done")
    })
}

fn keygen(children: &Children, home: &Path) -> Vec<Participant> {
    let mut everybody = vec![coordinator(children, home, 3)];
    everybody[0].run(Job::Reserve);
    everybody[0].run(Job::Init);
    let others = invited(&everybody[0], home, careful());
    everybody.extend(others);
    for one in &mut everybody {
        one.run(Job::Join);
    }
    for one in &mut everybody {
        assert!(matches!(one.run(Job::AwaitKey), Done::Key(_)));
    }
    everybody
}

#[test]
fn a_keygen_completes_though_each_process_is_killed_at_each_of_its_steps() {
    for at in 0..=ENCLAVES {
        let (folder, mut children) = start();
        let home = folder.path();
        let mut first = coordinator(&children, home, 3);
        while_killing(victim(&mut children, at), || first.run(Job::Reserve));
        while_killing(victim(&mut children, at), || first.run(Job::Init));
        let mut everybody = invited(&first, home, careful());
        everybody.insert(0, first);
        for one in &mut everybody {
            while_killing(victim(&mut children, at), || one.run(Job::Join));
        }
        let mut keys = Vec::new();
        while_killing(victim(&mut children, at), || {
            for one in &mut everybody {
                let Done::Key(key) = one.run(Job::AwaitKey) else { panic!("no key") };
                keys.push(key.output_key());
            }
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn a_signing_completes_though_each_process_is_killed_at_each_of_its_steps() {
    let (folder, mut children) = start();
    let mut everybody = keygen(&children, folder.path());
    for at in 0..=ENCLAVES {
        let requester = &mut everybody[0];
        let signing_id = while_killing(victim(&mut children, at), || requester.request(&["one", "two"]));
        let (last, others) = everybody[1..].split_last_mut().expect("three");
        for one in others {
            while_killing(victim(&mut children, at), || one.approve(signing_id));
        }
        // The rounds begin with the last approval; its answer is durable before they do.
        last.approve(signing_id);
        again(victim(&mut children, at));
        assert_eq!(everybody[2].signatures(signing_id).len(), 2);
    }
}

#[test]
fn signings_in_a_row_complete_though_processes_are_killed_all_the_while() {
    let (folder, mut children) = start();
    let mut everybody = keygen(&children, folder.path());
    let (requester, approvers) = everybody.split_first_mut().expect("three");
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let signing = scope.spawn(move || {
            for round in 0..12 {
                tell.send(()).expect("somebody kills");
                let signing_id = requester.request(&[&format!("round {round}")]);
                for one in &mut *approvers {
                    one.approve(signing_id);
                }
                tell.send(()).expect("somebody kills");
                assert_eq!(requester.signatures(signing_id).len(), 1);
            }
        });
        // Whatever is going on just then; the next kill waits for the next step, so that there is a next step.
        for (at, ()) in told.iter().enumerate() {
            again(victim(&mut children, at % (ENCLAVES + 1)));
        }
        signing.join().expect("all signed");
    });
}

#[test]
fn what_a_client_saw_as_completed_is_there_after_everything_was_killed() {
    let (folder, mut children) = start();
    let mut everybody = keygen(&children, folder.path());
    let signing_id = everybody[0].request(&["for ever"]);
    everybody[1].approve(signing_id);
    everybody[2].approve(signing_id);
    let seen = everybody[0].signatures(signing_id);

    children.gateway.kill().expect("kills");
    for enclave in &mut children.enclaves {
        enclave.kill().expect("kills");
    }
    children.gateway.restart().expect("restarts");
    // Results are not the enclaves' to give: they are still away.
    assert_eq!(everybody[1].signatures(signing_id), seen);
    for enclave in &mut children.enclaves {
        enclave.restart().expect("restarts");
    }
    let again = everybody[0].request(&["and on"]);
    everybody[1].approve(again);
    everybody[2].approve(again);
    assert_eq!(everybody[2].signatures(again).len(), 1);
}
