//! Clients of one keygen: a coordinator and participants, and the calls that they make.

use keymeld_core::api::http::Response;
use keymeld_core::api::rest::{
    InitRequest, ItemHint, KeygenStatus, RegisterRequest, ReserveRequest, SignRequest, SigningStatus,
    SlotRequest, SlotsResponse,
};
use keymeld_core::api::router::{Call, Wait};
use keymeld_core::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use keymeld_core::bytes::{Blob, Hash, XOnlyKey};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::entropy::test_entropy;
use keymeld_core::gateway::RequestId;
use keymeld_core::id::{ItemId, KeygenId, SigningId, UserId};
use keymeld_core::secret::Secret;

use super::enclave::ecies_key;
use super::{START_UNIX_MS, World, body, outcome};

pub(crate) struct User {
    pub(crate) user_id: UserId,
    pub(crate) slot: AuthKey,
    pub(crate) auth: AuthKey,
    pub(crate) approves: bool,
}

/// A keygen's clients.
pub(crate) struct Party {
    pub(crate) keygen_id: KeygenId,
    pub(crate) session: AuthKey,
    /// The first is the coordinator.
    pub(crate) users: Vec<User>,
    pub(crate) timeout_ms: Option<u64>,
}

fn key(kind: u8, keygen: u8, user: u8) -> AuthKey {
    let mut secret = [9; 32];
    secret[..3].copy_from_slice(&[kind, keygen, user]);
    AuthKey::new(&Secret::copied_from(&secret)).expect("a key")
}

pub(crate) fn signing_id(number: u8) -> SigningId {
    SigningId([number; 16])
}

pub(crate) fn no_wait() -> Wait {
    Wait::default()
}

impl Party {
    pub(crate) fn new(number: u8, count: u8) -> Party {
        let user = |index: u8| User {
            user_id: UserId([100 + index; 16]),
            slot: key(1, number, index),
            auth: key(2, number, index),
            approves: false,
        };
        Party {
            keygen_id: KeygenId([number; 16]),
            session: key(3, number, 0),
            users: (0..count).map(user).collect(),
            timeout_ms: None,
        }
    }

    pub(crate) fn reserve_request(&self) -> ReserveRequest {
        let slot = |user: &User| SlotRequest { user_id: user.user_id, slot_key: user.slot.public() };
        ReserveRequest {
            keygen_id: self.keygen_id,
            session_key: self.session.public(),
            coordinator: self.users[0].user_id,
            // The coordinator's slot comes last here; it must end up first.
            slots: self.users.iter().rev().map(slot).collect(),
            timeout_ms: self.timeout_ms,
        }
    }

    pub(crate) fn reserve(&self, world: &mut World) -> Call {
        let caller = world.caller(self.session.public());
        Call::Reserve { caller, request: self.reserve_request(), token: None }
    }

    pub(crate) fn init_request(&self) -> InitRequest {
        InitRequest { manifest_hash: Hash([6; 32]), manifest: Blob(vec![1, 2, 3]), subsets: Vec::new() }
    }

    pub(crate) fn init(&self, world: &mut World) -> Call {
        let caller = world.caller(self.session.public());
        Call::Init { caller, keygen_id: self.keygen_id, request: self.init_request() }
    }

    pub(crate) fn slots_call(&self, world: &mut World) -> Call {
        Call::Slots { caller: world.caller(self.session.public()), keygen_id: self.keygen_id }
    }

    pub(crate) fn slots(&self, world: &mut World) -> SlotsResponse {
        let call = self.slots_call(world);
        body(&world.call(call))
    }

    pub(crate) fn register_request(&self, index: usize, slots: &SlotsResponse) -> RegisterRequest {
        let user = &self.users[index];
        let slot = slots.slots.iter().find(|slot| slot.user_id == user.user_id).expect("reserved");
        let enclave_key = ecies_key(slot.enclave_id, 1);
        RegisterRequest {
            user_id: user.user_id,
            auth_key: user.auth.public(),
            approval_required: user.approves,
            enclave_key,
            envelope: Blob(vec![5; 10]),
            record: Blob(enclave_key.0.to_vec()),
        }
    }

    pub(crate) fn register(&self, world: &mut World, index: usize) -> Call {
        let slots = self.slots(world);
        let caller = world.caller(self.users[index].slot.public());
        Call::Register { caller, keygen_id: self.keygen_id, request: self.register_request(index, &slots) }
    }

    pub(crate) fn status_call(&self, world: &mut World, wait: Wait) -> Call {
        let caller = world.caller(self.session.public());
        Call::KeygenStatus { caller, keygen_id: self.keygen_id, wait }
    }

    pub(crate) fn status(&self, world: &mut World) -> KeygenStatus {
        let call = self.status_call(world, no_wait());
        body(&world.call(call))
    }

    /// Reserves and sends the manifest.
    pub(crate) fn begin(&self, world: &mut World) {
        let reserve = self.reserve(world);
        assert_eq!(outcome(&world.call(reserve)), "201");
        let init = self.init(world);
        assert_eq!(outcome(&world.call(init)), "201");
    }

    /// Goes through the whole keygen.
    pub(crate) fn complete(&self, world: &mut World) {
        self.begin(world);
        for index in 0..self.users.len() {
            let register = self.register(world, index);
            assert_eq!(outcome(&world.call(register)), "201");
        }
        let status = self.status(world);
        assert_eq!(status.state, keymeld_core::api::rest::KeygenState::Completed, "{status:?}");
    }

    pub(crate) fn sign_request(&self, number: u8) -> SignRequest {
        SignRequest {
            signing_id: signing_id(number),
            keygen_id: self.keygen_id,
            requester: self.users[0].user_id,
            intent: Blob(Vec::new()),
            intent_digest: digest(number),
            expires_at: START_UNIX_MS + 3_600_000,
            items: vec![ItemHint { item_id: ItemId([1; 16]), subset: None }],
        }
    }

    pub(crate) fn sign_with(&self, world: &mut World, request: SignRequest) -> Call {
        Call::Sign { caller: world.caller(self.users[0].auth.public()), request }
    }

    pub(crate) fn sign(&self, world: &mut World, number: u8) -> Call {
        let request = self.sign_request(number);
        self.sign_with(world, request)
    }

    pub(crate) fn approval(&self, index: usize, number: u8, blind: bool) -> Approval {
        let User { user_id, auth, .. } = &self.users[index];
        let mut entropy = test_entropy(u64::from(number));
        Approval::sign(signing_id(number), *user_id, digest(number), blind, auth, &mut entropy)
            .expect("entropy never fails here")
    }

    pub(crate) fn approve(&self, world: &mut World, index: usize, number: u8) -> Call {
        let caller = world.caller(self.users[index].auth.public());
        let approval = self.approval(index, number, false);
        Call::Approve { caller, signing_id: signing_id(number), approval }
    }

    pub(crate) fn withdraw(&self, world: &mut World, kind: WithdrawalKind, index: usize, number: u8) -> Call {
        let User { user_id, auth, .. } = &self.users[index];
        let (id, mut entropy) = (signing_id(number), test_entropy(1));
        let withdrawal = Withdrawal::sign(kind, id, *user_id, digest(number), None, auth, &mut entropy);
        let caller = world.caller(auth.public());
        Call::Withdraw {
            caller,
            signing_id: id,
            kind,
            withdrawal: withdrawal.expect("entropy never fails here"),
        }
    }

    pub(crate) fn signing_status_call(&self, world: &mut World, number: u8, wait: Wait) -> Call {
        let caller = world.caller(self.users[0].auth.public());
        Call::SigningStatus { caller, signing_id: signing_id(number), wait }
    }

    pub(crate) fn signing_status(&self, world: &mut World, number: u8) -> SigningStatus {
        let call = self.signing_status_call(world, number, no_wait());
        body(&world.call(call))
    }
}

pub(crate) fn digest(number: u8) -> Hash {
    Hash([number; 32])
}

/// Asks for the status of a keygen without carrying anything out.
pub(crate) fn poll(world: &mut World, party: &Party, wait: Wait) -> RequestId {
    let call = party.status_call(world, wait);
    world.ask(call)
}

/// The same call with a fresh proof of another key.
pub(crate) fn by(world: &mut World, call: &Call, key: XOnlyKey) -> Call {
    let mut call = call.clone();
    *caller_of(&mut call).expect("a call with a proof") = world.caller(key);
    call
}

pub(crate) fn caller_of(call: &mut Call) -> Option<&mut keymeld_core::api::proof::Caller> {
    match call {
        Call::Reserve { caller, .. }
        | Call::Init { caller, .. }
        | Call::Slots { caller, .. }
        | Call::Register { caller, .. }
        | Call::KeygenStatus { caller, .. }
        | Call::Sign { caller, .. }
        | Call::Intent { caller, .. }
        | Call::Approve { caller, .. }
        | Call::Withdraw { caller, .. }
        | Call::SigningStatus { caller, .. } => Some(caller),
        Call::Enclaves | Call::Attestation { .. } | Call::Version | Call::Health => None,
    }
}

/// The outcome of a call that is carried out.
pub(crate) fn outcome_of(world: &mut World, call: Call) -> String {
    let response: Response = world.call(call);
    outcome(&response)
}
