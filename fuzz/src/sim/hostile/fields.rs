//! Messages field by field: what can be changed in one, and what can be put in its place.

use keymeld_core::artifact::approval::Approval;
use keymeld_core::bytes::{Blob, Hash, PublicKey, Signature, XOnlyKey};
use keymeld_core::link::message::{Addressed, IdentityRow, Reply, Request, RunKey, UserBlob};

use super::super::chance::Chance;

/// Values of each kind that are remembered.
const POOL_MAX: usize = 200;

/// One field of a message.
pub(crate) enum Field<'a> {
    Point(&'a mut PublicKey),
    XOnly(&'a mut XOnlyKey),
    Hash(&'a mut Hash),
    Id(&'a mut [u8; 16]),
    Blob(&'a mut Blob),
    Flag(&'a mut bool),
    Number(&'a mut u32),
    Signature(&'a mut Signature),
}

/// One list of a message.
pub(crate) enum List<'a> {
    Users(&'a mut Vec<UserBlob>),
    Approvals(&'a mut Vec<Approval>),
    Addressed(&'a mut Vec<Addressed>),
}

/// Every value that was ever seen, by kind.
#[derive(Default)]
pub(crate) struct Pools {
    points: Vec<PublicKey>,
    x_only: Vec<XOnlyKey>,
    hashes: Vec<Hash>,
    ids: Vec<[u8; 16]>,
    blobs: Vec<Blob>,
    users: Vec<UserBlob>,
    approvals: Vec<Approval>,
    addressed: Vec<Addressed>,
}

fn run<'a>(run: &'a mut RunKey, fields: &mut Vec<Field<'a>>) {
    let RunKey { enclave_key, keygen_id, signing_id, digest, attempt, aggregator } = run;
    fields.extend([
        Field::Point(enclave_key),
        Field::Id(&mut keygen_id.0),
        Field::Id(&mut signing_id.0),
        Field::Hash(digest),
        Field::Id(&mut attempt.0),
        Field::Point(aggregator),
    ]);
}

fn users<'a>(list: &'a mut [UserBlob], fields: &mut Vec<Field<'a>>) {
    for UserBlob { user_id, blob } in list {
        fields.extend([Field::Id(&mut user_id.0), Field::Blob(blob)]);
    }
}

fn addressed<'a>(list: &'a mut [Addressed], fields: &mut Vec<Field<'a>>) {
    for Addressed { peer, blob } in list {
        fields.extend([Field::Point(peer), Field::Blob(blob)]);
    }
}

fn row<'a>(row: &'a mut IdentityRow, fields: &mut Vec<Field<'a>>) {
    let IdentityRow {
        version,
        enclave_id,
        epoch,
        ecies_key,
        identity_key,
        birth_pcr0,
        encrypted_data_key,
        encrypted_seed,
        birth_document,
    } = row;
    fields.extend([
        Field::Number(version),
        Field::Id(&mut enclave_id.0),
        Field::Number(epoch),
        Field::Point(ecies_key),
        Field::XOnly(identity_key),
        Field::Blob(birth_pcr0),
        Field::Blob(encrypted_data_key),
        Field::Blob(encrypted_seed),
        Field::Blob(birth_document),
    ]);
}

/// All fields of a request.
pub(crate) fn of_request(request: &mut Request) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    match request {
        Request::Hello => {}
        Request::CreateIdentity(create) => fields.push(Field::Number(&mut create.epoch)),
        Request::OpenIdentity(opened) => row(opened, &mut fields),
        Request::Attest(attest) => {
            fields.extend([Field::Number(&mut attest.epoch), Field::Hash(&mut attest.nonce)]);
        }
        Request::CheckRegistration(check) => fields.extend([
            Field::Point(&mut check.enclave_key),
            Field::Id(&mut check.keygen_id.0),
            Field::Hash(&mut check.manifest_hash),
            Field::Blob(&mut check.manifest),
            Field::Id(&mut check.user_id.0),
            Field::Blob(&mut check.envelope),
            Field::Blob(&mut check.record),
            Field::XOnly(&mut check.auth_key),
            Field::Flag(&mut check.approval_required),
        ]),
        Request::OpenKeygen(open) => {
            fields.extend([
                Field::Point(&mut open.enclave_key),
                Field::Id(&mut open.keygen_id.0),
                Field::Hash(&mut open.manifest_hash),
                Field::Blob(&mut open.manifest),
            ]);
            users(&mut open.records, &mut fields);
            users(&mut open.envelopes, &mut fields);
        }
        Request::MakeNonces(make) => {
            run(&mut make.run, &mut fields);
            fields.push(Field::Blob(&mut make.intent));
            for approval in &mut make.approvals {
                fields.extend([
                    Field::Id(&mut approval.signing_id.0),
                    Field::Id(&mut approval.user_id.0),
                    Field::Hash(&mut approval.intent_digest),
                    Field::Flag(&mut approval.blind),
                    Field::Signature(&mut approval.signature),
                ]);
            }
        }
        Request::MakePartials(make) => {
            run(&mut make.run, &mut fields);
            addressed(&mut make.nonces, &mut fields);
        }
        Request::Aggregate(aggregate) => {
            run(&mut aggregate.run, &mut fields);
            addressed(&mut aggregate.nonces, &mut fields);
            addressed(&mut aggregate.partials, &mut fields);
        }
    }
    fields
}

/// All lists of a request.
pub(crate) fn lists_of_request(request: &mut Request) -> Vec<List<'_>> {
    match request {
        Request::Hello
        | Request::CreateIdentity(_)
        | Request::OpenIdentity(_)
        | Request::Attest(_)
        | Request::CheckRegistration(_) => Vec::new(),
        Request::OpenKeygen(open) => vec![List::Users(&mut open.records), List::Users(&mut open.envelopes)],
        Request::MakeNonces(make) => vec![List::Approvals(&mut make.approvals)],
        Request::MakePartials(make) => vec![List::Addressed(&mut make.nonces)],
        Request::Aggregate(aggregate) => {
            vec![List::Addressed(&mut aggregate.nonces), List::Addressed(&mut aggregate.partials)]
        }
    }
}

/// All fields of a reply.
pub(crate) fn of_reply(reply: &mut Reply) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    match reply {
        Reply::Refused(_) | Reply::IdentityOpened | Reply::RegistrationChecked => {}
        Reply::Hello(hello) => {
            fields.push(Field::Id(&mut hello.enclave_id.0));
            fields.extend(hello.epochs.iter_mut().map(Field::Number));
        }
        Reply::IdentityCreated(created) => row(created, &mut fields),
        Reply::Attested(blob) | Reply::PartialsMade(blob) | Reply::Aggregated(blob) => {
            fields.push(Field::Blob(blob));
        }
        Reply::KeygenOpened(opened) => {
            fields.extend([Field::Hash(&mut opened.roster_hash), Field::Blob(&mut opened.certificate)]);
        }
        Reply::NoncesMade(bundles) => addressed(bundles, &mut fields),
    }
    fields
}

fn keep<T: Clone + PartialEq>(pool: &mut Vec<T>, value: &T) {
    if pool.len() < POOL_MAX && !pool.contains(value) {
        pool.push(value.clone());
    }
}

fn other<T: Clone>(pool: &[T], chance: &mut Chance, value: &mut T) -> bool {
    if pool.is_empty() {
        return false;
    }
    *value = pool[chance.place("other value", pool.len())].clone();
    true
}

fn flip(bytes: &mut [u8], chance: &mut Chance) {
    if !bytes.is_empty() {
        let at = chance.place("flipped byte", bytes.len());
        bytes[at] ^= 1 << chance.below("flipped bit", 8);
    }
}

impl Pools {
    fn learn(&mut self, fields: Vec<Field<'_>>) {
        for field in fields {
            match field {
                Field::Point(value) => keep(&mut self.points, value),
                Field::XOnly(value) => keep(&mut self.x_only, value),
                Field::Hash(value) => keep(&mut self.hashes, value),
                Field::Id(value) => keep(&mut self.ids, value),
                Field::Blob(value) => keep(&mut self.blobs, value),
                Field::Flag(_) | Field::Number(_) | Field::Signature(_) => {}
            }
        }
    }

    pub(crate) fn learn_request(&mut self, request: &Request) {
        let mut request = request.clone();
        for list in lists_of_request(&mut request) {
            match list {
                List::Users(list) => list.iter().for_each(|one| keep(&mut self.users, one)),
                List::Approvals(list) => list.iter().for_each(|one| keep(&mut self.approvals, one)),
                List::Addressed(list) => list.iter().for_each(|one| keep(&mut self.addressed, one)),
            }
        }
        self.learn(of_request(&mut request));
    }

    pub(crate) fn learn_reply(&mut self, reply: &Reply) {
        let mut reply = reply.clone();
        if let Reply::NoncesMade(bundles) = &reply {
            bundles.iter().for_each(|one| keep(&mut self.addressed, one));
        }
        self.learn(of_reply(&mut reply));
    }

    /// Somebody sends an approval.
    pub(crate) fn learn_approval(&mut self, approval: &Approval) {
        keep(&mut self.approvals, approval);
    }

    /// Approvals of anything.
    pub(crate) fn approvals(&self) -> &[Approval] {
        &self.approvals
    }

    /// Changes one field: to another value of its kind that was seen, or by a bit.
    pub(crate) fn change_field(&self, mut fields: Vec<Field<'_>>, chance: &mut Chance) {
        if fields.is_empty() {
            return;
        }
        let at = chance.place("field", fields.len());
        let seen = !chance.one_in("flip", 3);
        match fields.swap_remove(at) {
            Field::Point(value) => {
                if !(seen && other(&self.points, chance, value)) {
                    flip(&mut value.0, chance);
                }
            }
            Field::XOnly(value) => {
                if !(seen && other(&self.x_only, chance, value)) {
                    flip(&mut value.0, chance);
                }
            }
            Field::Hash(value) => {
                if !(seen && other(&self.hashes, chance, value)) {
                    flip(&mut value.0, chance);
                }
            }
            Field::Id(value) => {
                if !(seen && other(&self.ids, chance, value)) {
                    flip(value, chance);
                }
            }
            Field::Blob(value) => {
                if !(seen && other(&self.blobs, chance, value)) {
                    match chance.below("blob", 3) {
                        0 => value.0.truncate(chance.place("cut blob", value.0.len() + 1)),
                        _ => flip(&mut value.0, chance),
                    }
                }
            }
            Field::Flag(value) => *value = !*value,
            Field::Number(value) if chance.one_in("number", 2) => *value = value.wrapping_add(1),
            Field::Number(value) => *value = value.wrapping_sub(1),
            Field::Signature(value) => flip(&mut value.0, chance),
        }
    }

    /// Changes one list: an element is lost, doubled, moved, or comes from elsewhere.
    fn change_list(&self, list: List<'_>, chance: &mut Chance) {
        match list {
            List::Users(list) => change(list, &self.users, chance),
            List::Approvals(list) => change(list, &self.approvals, chance),
            List::Addressed(list) => change(list, &self.addressed, chance),
        }
    }

    /// Changes one thing in a request.
    pub(crate) fn change_request(&self, request: &mut Request, chance: &mut Chance) {
        let mut lists = lists_of_request(request);
        if !lists.is_empty() && chance.one_in("list", 3) {
            let list = lists.swap_remove(chance.place("which list", lists.len()));
            return self.change_list(list, chance);
        }
        self.change_field(of_request(request), chance);
    }
}

fn change<T: Clone>(list: &mut Vec<T>, pool: &[T], chance: &mut Chance) {
    let action = chance.below("list action", 5);
    if list.is_empty() || action == 0 {
        if !pool.is_empty() {
            list.push(pool[chance.place("other element", pool.len())].clone());
        }
        return;
    }
    let at = chance.place("element", list.len());
    match action {
        1 => {
            list.remove(at);
        }
        2 => list.push(list[at].clone()),
        3 => list.swap(at, 0),
        _ => {
            other(pool, chance, &mut list[at]);
        }
    }
}
