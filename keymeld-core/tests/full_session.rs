//! A session of as many users as there may be, and the most that can be asked of it.

use keymeld_core::artifact::intent::{Intent, Item, VerifiedIntent};
use keymeld_core::artifact::manifest::{Coordinator, Manifest, Participant, Pin, Subset};
use keymeld_core::artifact::registration::{Registrant, Rules, open_record, user_auth_key};
use keymeld_core::artifact::roster::Roster;
use keymeld_core::bytes::{Message, Salt};
use keymeld_core::crypto::auth::{AuthKey, public_key};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::SealKey;
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::{KeygenId, SigningId, SubsetId, UserId};
use keymeld_core::limits::{ITEMS_MAX, PARTICIPANTS_MAX, SHARES_MAX};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;

const KEYGEN_ID: KeygenId = KeygenId([0x4b; 16]);
const SIGNING_ID: SigningId = SigningId([0x51; 16]);
const CREATED_AT: u64 = 1_800_000_000_000;

struct Full {
    roster: Roster,
    seal_key: SealKey,
    requester: AuthKey,
}

/// The subset with so many members.
fn subset_of(count: usize) -> SubsetId {
    SubsetId([u8::try_from(count).expect("at most 100"); 16])
}

fn full() -> Full {
    let mut entropy = test_entropy(1);
    let keys: Vec<Secret<32>> =
        (0..PARTICIPANTS_MAX).map(|_| Secret::random(&mut entropy).expect("never fails")).collect();
    let ids: Vec<UserId> = (0..PARTICIPANTS_MAX).map(|index| UserId([index as u8; 16])).collect();
    let pinned = |index: usize| public_key(&keys[index]).expect("in range");
    let coordinator = Coordinator {
        user_id: ids[0],
        signing_key: pinned(0),
        auth_key: user_auth_key(&keys[0], KEYGEN_ID).expect("in range").public(),
    };
    let participant =
        |index| Participant { user_id: ids[index], name: None, pin: Pin::SigningKey(pinned(index)) };
    let participants = (0..PARTICIPANTS_MAX).map(participant).collect();
    let mut manifest = Manifest::new(KEYGEN_ID, Salt([1; 32]), coordinator, participants, CREATED_AT);
    let subset = |count| Subset { subset_id: subset_of(count), members: ids[..count].to_vec() };
    manifest.subsets = [2, 3, 20].map(subset).to_vec();
    assert_eq!(manifest.check(), Ok(()));

    let manifest_hash = Manifest::hash(&manifest.encode());
    let session_secret = Secret::random(&mut entropy).expect("never fails");
    let seal_key = SealKey::derived(&session_secret, Purpose::SessionSeal(KEYGEN_ID));
    let enclave = Secret::random(&mut entropy).expect("never fails");
    let records = (0..PARTICIPANTS_MAX).map(|index| {
        let registrant = Registrant {
            manifest: &manifest,
            manifest_hash,
            user_id: ids[index],
            private_key: &keys[index],
            session_secret: &session_secret,
            invite_key: None,
            enclave_key: public_key(&enclave).expect("in range"),
            identity_key: AuthKey::new(&enclave).expect("in range").public(),
            rules: Rules::delegated(CREATED_AT + 1_000_000),
        };
        let registration = registrant.register(&mut entropy).expect("well formed");
        open_record(&seal_key, &manifest, manifest_hash, ids[index], &registration.record).expect("as made")
    });
    let records = records.collect();
    Full {
        roster: Roster::assemble(manifest, manifest_hash, records).expect("complete"),
        seal_key: SealKey::derived(&session_secret, Purpose::SigningSeal(SIGNING_ID)),
        requester: user_auth_key(&keys[0], KEYGEN_ID).expect("in range"),
    }
}

impl Full {
    /// Opens an intent with one item for each of these numbers of signers; 0 for everybody.
    fn open(&self, signers: impl Iterator<Item = usize>) -> Result<(), Code> {
        let mut entropy = test_entropy(2);
        let item = |count| {
            let blind = Item::blind(Message([7; 32]), &mut entropy).expect("never fails");
            Item { subset: (count > 0).then(|| subset_of(count)), ..blind }
        };
        let items = signers.map(item).collect();
        let intent = Intent {
            version: 1,
            salt: Salt([2; 32]),
            keygen_id: KEYGEN_ID,
            manifest_hash: self.roster.manifest_hash(),
            roster_hash: self.roster.roster_hash(),
            signing_id: SIGNING_ID,
            requester: self.roster.manifest().coordinator.user_id,
            created_at: CREATED_AT,
            expires_at: CREATED_AT + 1_000_000,
            items,
            psbts: vec![],
        };
        let sealed = intent.seal(&self.requester, &self.seal_key, &mut entropy)?;
        VerifiedIntent::open(&self.roster, SIGNING_ID, &self.seal_key, &sealed).map(|_| ())
    }
}

#[test]
fn items_times_signers_are_bounded_in_sum() {
    let full = full();
    let everybody = |count| core::iter::repeat_n(0, count);
    assert_eq!(full.open(everybody(SHARES_MAX / PARTICIPANTS_MAX)), Ok(()));
    assert_eq!(full.open(everybody(SHARES_MAX / PARTICIPANTS_MAX + 1)), Err(Code::BadItems));

    // 199 items for 100 signers, and 100 or 101 more shares.
    let rest = |threes, twos| core::iter::repeat_n(3, threes).chain(core::iter::repeat_n(2, twos));
    assert_eq!(full.open(everybody(199).chain(rest(32, 2))), Ok(()));
    assert_eq!(full.open(everybody(199).chain(rest(33, 1))), Err(Code::BadItems));
}

#[test]
fn an_intent_may_have_the_most_items_with_the_most_signers_at_once() {
    let full = full();
    let items = |count| core::iter::repeat_n(SHARES_MAX / ITEMS_MAX, count);
    assert_eq!(full.open(items(ITEMS_MAX)), Ok(()));
    assert_eq!(full.open(items(ITEMS_MAX + 1)), Err(Code::BadItems));
    assert_eq!(full.open(core::iter::repeat_n(2, ITEMS_MAX + 1)), Err(Code::BadItems));
}

#[test]
fn everybody_signs_for_the_group_and_members_for_their_subset() {
    let full = full();
    let signers = |subset| full.roster.signers(subset).map(|signers| signers.len());
    assert_eq!(signers(None), Ok(PARTICIPANTS_MAX));
    assert_eq!(signers(Some(subset_of(20))), Ok(20));
    assert_eq!(signers(Some(subset_of(4))), Err(Code::UnknownSubset));
    let sorted = full.roster.records().is_sorted_by_key(|record| record.public_key);
    assert!(sorted, "KeySort");
}
