//! KeyMeld as a library: a gateway, three enclaves and three clients in one thread, without any IO.
//!
//! ```text
//! cargo run -p keymeld-examples --example one_thread
//! ```
//!
//! `keymeld_examples::world` holds the loop that drives the machines; this is the story that they play.

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Client, Done, Invitee, Job, Plan};
use keymeld_core::entropy::{self, Entropy, EntropyFailed};
use keymeld_core::limits::VALID_DEFAULT_MS;
use keymeld_core::secret::Secret;
use keymeld_examples::disk::MemoryDisk;
use keymeld_examples::world::World;

const NAMES: [&str; 3] = ["Alice", "Bob", "Carol"];

fn main() -> Result<(), Box<dyn Error>> {
    let now_unix_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let mut world = World::new(3, MemoryDisk::default(), now_unix_ms, |_| os_entropy());
    println!("A gateway and three enclaves are up.");

    // Alice coordinates and delegates; the others want to be asked every time.
    let valid_until = now_unix_ms + VALID_DEFAULT_MS;
    let invitee = |name: &&str| Invitee { name: Some((*name).into()), signing_key: None };
    let others = NAMES[1..].iter().map(invitee).collect();
    let plan = Plan::new("http://gateway.example".into(), others, Rules::delegated(valid_until));
    let (config, key, now) = (world.client_config(), Secret::random(world.entropy())?, world.time());
    let coordinator = Client::coordinate(config, key, plan, now, world.entropy())?;
    let alice = world.seat(coordinator);
    world.run(alice, Job::Reserve)?;
    world.run(alice, Job::Init)?;
    println!("Alice has reserved three slots and hands out two invites.");

    let mut participants = vec![alice];
    for at in 0..2 {
        let invite = world.client(alice).invites()[at].encode()?;
        let invite = Invite::decode(&invite)?;
        let (config, key) = (world.client_config(), Secret::random(world.entropy())?);
        participants.push(world.seat(Client::join(config, key, invite, Rules::careful(valid_until))?));
    }
    for (place, name) in participants.iter().zip(NAMES) {
        world.run(*place, Job::Join)?;
        println!("{name} has verified an enclave and sealed a key to it.");
    }
    for (place, name) in participants.iter().zip(NAMES) {
        let Done::Key(key) = world.run(*place, Job::AwaitKey)? else { return Err("no key".into()) };
        println!("{name:<5} computes the key {} (roster {})", key.output_key(), key.short_code());
    }

    let text = "Pay the florist";
    let items = vec![Item::of(Origin::Text(text.into()), world.entropy())?];
    let Done::Requested(signing_id) = world.run(alice, Job::Request { items, expires_at: None })? else {
        return Err("no request".into());
    };
    println!("Alice asks to sign \"{text}\".");
    for (place, name) in participants.iter().zip(NAMES).skip(1) {
        let Done::Reviewed(review) = world.run(*place, Job::Review(signing_id))? else {
            return Err("no intent".into());
        };
        world.run(*place, Job::Approve { review, blind: false })?;
        println!("{name} has read it and approves.");
    }
    let Done::Signed(_, outcomes) = world.run(alice, Job::AwaitSignatures(signing_id))? else {
        return Err("no signature".into());
    };
    for outcome in outcomes {
        let signed = outcome?;
        println!("Signed and verified: {}", signed.signature);
    }
    Ok(())
}

fn os_entropy() -> Entropy {
    Entropy::new(entropy::Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed))
}
