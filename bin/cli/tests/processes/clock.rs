//! A gateway whose clock is wrong.

use std::path::PathBuf;

use keymeld::children::Children;
use keymeld_core::client::{Done, Job};
use keymeld_gateway::Config;
use keymeld_transport::clock::Clock;

use crate::party::{Access, careful, coordinator, invited};

const HOUR_MS: i64 = 3_600_000;

/// 401 stale and one retry, by each client that has a clock of its own.
#[test]
fn a_gateway_whose_clock_is_set_back_and_forth_by_an_hour_loses_nothing_and_serves_everybody() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_keymeld"));
    let mut children = Children::start(&program, home, 2).expect("starts");
    let mut first = coordinator(&children, home, 2);
    first.run(Job::Reserve);
    first.run(Job::Init);
    let address = children.gateway.address().parse().expect("an address");
    children.gateway.kill().expect("kills");

    let mut config = Config::load(Some(&home.join("gateway.toml"))).expect("its settings");
    config.listen = address;
    let running = keymeld_gateway::start_by(Clock::off_by(-HOUR_MS), &config).expect("starts");
    let access = Access::to(&children);
    assert_eq!(access.reserve(0, 1_000).as_deref(), Some("proof-stale"));
    assert_eq!(access.reserve(-HOUR_MS, 1_000), None);
    let mut everybody = invited(&first, home, careful());
    everybody.insert(0, first);
    for one in &mut everybody {
        one.run(Job::Join);
    }
    for one in &mut everybody {
        assert!(matches!(one.run(Job::AwaitKey), Done::Key(_)));
    }
    let key = everybody[0].output_key();
    let signing_id = everybody[0].request(&["an hour ago"]);
    everybody[1].approve(signing_id);
    let signed = everybody[0].signatures(signing_id);
    running.stop();

    // The clients have taken the wrong time over; now it is wrong itself.
    children.gateway.restart().expect("restarts");
    assert_eq!(access.reserve(-HOUR_MS, 1_000).as_deref(), Some("proof-stale"));
    assert_eq!(everybody[1].signatures(signing_id), signed);
    let next = everybody[0].request(&["now"]);
    everybody[1].approve(next);
    assert_eq!(everybody[1].signatures(next).len(), 1);
    assert_eq!(everybody[1].output_key(), key);
}
