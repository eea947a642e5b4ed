//! What the tests of this package have in common: a keygen, a signing, a database that a kill leaves behind.

use std::fs;
use std::path::PathBuf;

use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedSignature;
use keymeld_core::client::{Client, Done, Fault, Invitee, Job, Plan};
use keymeld_core::crypto::auth::public_key;
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::SigningId;
use keymeld_core::record::{LoadError, Persist, PersistError, Query, Row, Token};
use keymeld_core::secret::Secret;
use keymeld_examples::disk::Disk;
use keymeld_examples::world::World;
use keymeld_store::{Options, Store};
use tempfile::TempDir;

/// When stories begin, milliseconds since 1970.
pub(crate) const START: u64 = 1_800_000_000_000;
/// Until when registrations hold.
pub(crate) const VALID_UNTIL: u64 = START + 30 * 24 * 3_600_000;

/// A database that a killed process leaves behind: the next one opens a copy of its files as they were.
pub(crate) struct SqliteDisk {
    folder: TempDir,
    generation: u32,
    store: Option<Store>,
}

impl SqliteDisk {
    pub(crate) fn new() -> SqliteDisk {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut disk = SqliteDisk { folder, generation: 0, store: None };
        fs::create_dir(disk.home()).expect("a folder");
        disk.open();
        disk
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join(self.generation.to_string())
    }

    fn open(&mut self) {
        let path = self.home().join("keymeld.db");
        self.store = Some(Store::open(&path, &Options::default()).expect("opens"));
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("always open")
    }

    /// Every byte of every file of the database.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let entries =
            fs::read_dir(self.home()).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.map(|path| (path.display().to_string(), fs::read(&path).expect("a readable file"))).collect()
    }
}

impl Disk for SqliteDisk {
    fn load(&mut self, query: &Query) -> Result<Vec<Row>, LoadError> {
        self.store().load(query)
    }

    fn commit(&mut self, batch: &[Persist]) -> Vec<(Token, Result<(), PersistError>)> {
        self.store().commit(batch)
    }

    // Dropping the store first would write its log back, which nobody does who is killed.
    fn reopen(&mut self) {
        let before = self.home();
        self.generation += 1;
        fs::create_dir(self.home()).expect("a folder");
        for name in ["keymeld.db", "keymeld.db-wal"] {
            if before.join(name).exists() {
                fs::copy(before.join(name), self.home().join(name)).expect("copies");
            }
        }
        self.store = None;
        self.open();
    }
}

/// A signing key, by number.
pub(crate) fn signing_key(number: u8) -> Secret<32> {
    Secret::copied_from(&[number; 32])
}

/// A world of so many enclaves on a database.
pub(crate) fn world(enclaves: usize, seed: u64) -> World<SqliteDisk> {
    World::new(enclaves, SqliteDisk::new(), START, move |number| test_entropy(seed * 10_000 + number))
}

/// A plan of participants 1 to `count`, with invited ones at odd places and pinned ones at even places.
pub(crate) fn plan(count: u8, rules: Rules) -> Plan {
    let invitee = |number: u8| Invitee {
        name: Some(format!("Participant {number}")),
        signing_key: number.is_multiple_of(2).then(|| public_key(&signing_key(number)).expect("a key")),
    };
    Plan::new("http://gateway.example".into(), (2..=count).map(invitee).collect(), rules)
}

/// Seats the coordinator.
pub(crate) fn seat_coordinator<D: Disk>(world: &mut World<D>, plan: Plan) -> usize {
    let (config, now) = (world.client_config(), world.time());
    let client =
        Client::coordinate(config, signing_key(1), plan, now, world.entropy()).expect("a sound plan");
    world.seat(client)
}

/// Seats whoever got an invite.
pub(crate) fn seat_invited<D: Disk>(
    world: &mut World<D>,
    coordinator: usize,
    at: usize,
    rules: Rules,
) -> usize {
    let invite = world.client(coordinator).invites()[at].encode().expect("encodes");
    let invite = Invite::decode(&invite).expect("decodes");
    let number = u8::try_from(at + 2).expect("few");
    let client = Client::join(world.client_config(), signing_key(number), invite, rules);
    world.seat(client.expect("a sound key"))
}

/// A whole keygen; the answer is everybody's place, the coordinator's first.
pub(crate) fn keygen<D: Disk>(world: &mut World<D>, count: u8, rules: Rules) -> Vec<usize> {
    let coordinator = seat_coordinator(world, plan(count, rules));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    let mut places = vec![coordinator];
    for at in 0..usize::from(count) - 1 {
        places.push(seat_invited(world, coordinator, at, rules));
    }
    for place in &places {
        assert!(matches!(world.run(*place, Job::Join), Ok(Done::Joined)));
    }
    for place in &places {
        assert!(matches!(world.run(*place, Job::AwaitKey), Ok(Done::Key(_))));
    }
    places
}

/// Items that say what they are.
pub(crate) fn items<D: Disk>(world: &mut World<D>, texts: &[&str]) -> Vec<Item> {
    let item = |text: &&str| Item::of(Origin::Text((*text).into()), world.entropy()).expect("an item");
    texts.iter().map(item).collect()
}

/// Asks for signatures; the answer is the session.
pub(crate) fn request<D: Disk>(world: &mut World<D>, requester: usize, texts: &[&str]) -> SigningId {
    let items = items(world, texts);
    match world.run(requester, Job::Request { items, expires_at: None }) {
        Ok(Done::Requested(signing_id)) => signing_id,
        other => panic!("{other:?}"),
    }
}

/// Reviews and approves.
pub(crate) fn approve<D: Disk>(
    world: &mut World<D>,
    place: usize,
    signing_id: SigningId,
) -> Result<Done, Fault> {
    match world.run(place, Job::Review(signing_id))? {
        Done::Reviewed(review) => world.run(place, Job::Approve { review, blind: false }),
        other => panic!("{other:?}"),
    }
}

/// Waits for signatures that all have to be there.
pub(crate) fn signatures<D: Disk>(
    world: &mut World<D>,
    place: usize,
    signing_id: SigningId,
) -> Vec<VerifiedSignature> {
    match world.run(place, Job::AwaitSignatures(signing_id)) {
        Ok(Done::Signed(_, outcomes)) => {
            outcomes.into_iter().map(|outcome| outcome.expect("signed")).collect()
        }
        other => panic!("{other:?}"),
    }
}
