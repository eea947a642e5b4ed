//! What clients are told instead of the truth.

use keymeld_core::api::http::{Method, Request, Response};
use keymeld_core::api::problem;
use keymeld_core::api::rest::{
    AttestationResponse, Failure, IntentResponse, KeygenStatus, SignRequest, SigningState, SigningStatus,
};
use keymeld_core::artifact::Signed;
use keymeld_core::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use keymeld_core::artifact::certificate::IdentitySignature;
use keymeld_core::artifact::result::{ItemResult, Outcome, SigningResult};
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::attestation::ServiceUserData;
use keymeld_core::bytes::{Blob, Hash, PublicKey, Signature};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{AttemptId, EnclaveId};
use keymeld_core::link::message::{MakeNonces, RunKey};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use keymeld_transport::nsm::software::Pcrs;
use serde_json::Value;

use super::super::host::CONFIG_HASH;
use super::super::module::{self, Make};
use super::super::wire::Asker;
use super::super::world::World;
use super::HEARD_MAX;
use super::puppet::Puppet;

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |character: u8| (character as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// What an answer is to: the endpoint without ids.
fn kind(request: &Request) -> String {
    let path = request.target.split('?').next().unwrap_or_default();
    let named = |part: &&str| !part.is_empty() && part.len() != 36;
    let parts: Vec<&str> = path.split('/').filter(named).collect();
    format!("{} {}", request.method.as_str(), parts.join("/"))
}

impl World {
    /// A client's request is on its way.
    pub(crate) fn request_on_wire(&mut self, mut request: Request) -> Request {
        if !self.plan.hostile {
            return request;
        }
        if self.hostile.requests.len() < HEARD_MAX {
            self.hostile.requests.push(request.clone());
        }
        if request.method == Method::Post && request.target.ends_with("/signing") {
            self.hears_request(&request.body);
        }
        if let Ok(approval) = serde_json::from_slice::<Approval>(&request.body) {
            self.hostile.pools.learn_approval(&approval);
        }
        // Nobody proves a challenge: an older epoch may be asked instead.
        let asks_newest = request.target.contains("/attestation?") && !request.target.contains("epoch=");
        if asks_newest && self.fault("hostile: an older epoch", 2) {
            request.target.push_str("&epoch=1");
        } else if !request.body.is_empty() && self.fault("hostile: a request", 6 * self.plan.rates.hostile) {
            self.changes_json(&mut request.body);
        }
        request
    }

    /// Somebody asks for signatures: that is enough to begin a run.
    fn hears_request(&mut self, body: &[u8]) {
        let Ok(sent) = serde_json::from_slice::<SignRequest>(body) else { return };
        let run = RunKey {
            enclave_key: PublicKey([2; 33]),
            keygen_id: sent.keygen_id,
            signing_id: sent.signing_id,
            digest: sent.intent_digest,
            attempt: AttemptId([0; 16]),
            aggregator: PublicKey([2; 33]),
        };
        let known = self.hostile.beginnings.iter().any(|other| other.run.digest == run.digest);
        if !known && self.hostile.beginnings.len() < HEARD_MAX {
            self.hostile.beginnings.push(MakeNonces { run, intent: sent.intent, approvals: Vec::new() });
        }
    }

    /// An answer is on its way to a client.
    pub(crate) fn response_on_wire(&mut self, number: u64, response: Response) -> Response {
        let Some(exchange) = self.exchanges.get(&number).filter(|_| self.plan.hostile) else {
            return response;
        };
        let (asker, request) = (exchange.asker, exchange.request.clone());
        let kind = kind(&request);
        if self.hostile.responses.len() < HEARD_MAX && response.status < 300 {
            self.hostile.responses.push((kind.clone(), response.clone()));
        }
        let Asker::Seat { seat, .. } = asker else { return response };
        if kind == "GET api/v1/keygen/status"
            && let Ok(shown) = serde_json::from_slice::<KeygenStatus>(&response.body)
            && let Some(lie) = self.usurps(seat, &shown)
        {
            return lie;
        }
        if !self.fault("hostile: a response", 2 * self.plan.rates.hostile) {
            return response;
        }
        let lie = match self.chance.below("lie", 8) {
            0 => self.earlier_response(&kind),
            1 => {
                let code = Code::ALL[self.chance.place("code", Code::ALL.len())];
                Some(problem::refused(&code.into()))
            }
            2..=5 => self.crafted(seat, &kind, &request, &response),
            _ => None,
        };
        self.log.note(format_args!("hostile: a lie about {kind}"));
        lie.unwrap_or_else(|| {
            let mut changed = response;
            self.changes_json(&mut changed.body);
            changed
        })
    }

    fn earlier_response(&mut self, kind: &str) -> Option<Response> {
        let same: Vec<usize> = (0..self.hostile.responses.len())
            .filter(|index| self.hostile.responses[*index].0 == kind)
            .collect();
        (!same.is_empty()).then(|| {
            let which = same[self.chance.place("earlier response", same.len())];
            self.hostile.responses[which].1.clone()
        })
    }

    /// A lie that fits the question.
    fn crafted(
        &mut self,
        seat: usize,
        kind: &str,
        request: &Request,
        response: &Response,
    ) -> Option<Response> {
        let circle = self.seats[seat].circle;
        match kind {
            "GET api/v1/enclaves/attestation" => self.forged_attestation(circle, &request.target),
            "GET api/v1/keygen/status" => {
                let shown: KeygenStatus = serde_json::from_slice(&response.body).ok()?;
                let forged = self.forged_completion(seat, shown)?;
                Some(problem::ok(200, &forged))
            }
            "GET api/v1/signing/status" => {
                let shown: SigningStatus = serde_json::from_slice(&response.body).ok()?;
                match self.chance.one_in("forged no", 3) {
                    true => self.forged_no(circle, shown),
                    false => self.forged_result(circle, shown),
                }
            }
            "GET api/v1/signing/intent" => {
                let shown: IntentResponse = serde_json::from_slice(&response.body).ok()?;
                self.forged_review(circle, shown)
            }
            _ => None,
        }
    }

    /// An attestation of keys that the host made, as near to a genuine one as it comes.
    fn forged_attestation(&mut self, circle: usize, target: &str) -> Option<Response> {
        let query = target.split('?').nth(1)?;
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let nonce = Hash::from_hex(value("nonce")?).ok()?;
        let enclave_id: EnclaveId = target.split('/').nth(4)?.parse().ok()?;
        let own = Secret::copied_from(&self.chance.bytes("host's enclave"));
        let identity = Secret::copied_from(&self.chance.bytes("host's enclave"));
        // Its own puppet, where a roster already names that.
        let puppet = self.hostile.puppets.get(&circle).map(Puppet::keys);
        let made = EnclaveKeys {
            enclave_key: auth::public_key(&own).ok()?,
            identity_key: AuthKey::new(&identity).ok()?.public(),
        };
        let EnclaveKeys { enclave_key, identity_key } = puppet.unwrap_or(made);
        let mut user_data = ServiceUserData {
            enclave_id: enclave_id.0,
            epoch: 1,
            identity_key: identity_key.0,
            birth_pcr0: Pcrs::default().pcr0,
            birth_time_ms: self.unix_ms(),
            config_hash: CONFIG_HASH,
        };
        let unix_ms = self.unix_ms();
        let mut asked = nonce.0;
        let mut make = Make::Genuine;
        match self.chance.below("forged attestation", 6) {
            0 => make = Make::OtherRoot,
            1 => make = Make::OtherImage,
            2 => make = Make::Debug,
            3 => user_data.config_hash = [8; 32],
            4 => asked = self.chance.bytes("other nonce"),
            _ => user_data.birth_pcr0 = [9; 48],
        }
        let document = module::document(
            (make, 90),
            unix_ms,
            Some(&enclave_key.0),
            Some(&asked),
            Some(&user_data.encode()),
        );
        self.log.reached("hostile: a forged attestation");
        let body = AttestationResponse { enclave_id, epoch: 1, document: Blob(document) };
        Some(problem::ok(200, &body))
    }

    /// The end of a session by a no that nobody said.
    fn forged_no(&mut self, circle: usize, mut shown: SigningStatus) -> Option<Response> {
        let members = &self.plan.circles[circle].members;
        let found = self.god.intents.iter().find(|(_, facts)| facts.signing_id == shown.signing_id);
        let (digest, requester) = found.map(|(digest, facts)| (*digest, facts.requester))?;
        let honest: Vec<usize> = (0..members.len()).filter(|member| !members[*member].colludes).collect();
        let member = honest[self.chance.place("whose no", honest.len())];
        let kind = if member == requester { WithdrawalKind::Cancel } else { WithdrawalKind::Decline };
        let own = Secret::copied_from(&self.chance.bytes("host's key"));
        let auth = AuthKey::new(&own).ok()?;
        let (user_id, entropy) = (self.god.circles[circle].users[member], &mut self.hostile.entropy);
        let no = Withdrawal::sign(kind, shown.signing_id, user_id, digest, None, &auth, entropy).ok()?;
        let code = kind.code().name().into();
        shown.state = SigningState::Failed;
        shown.result = None;
        shown.failure = Some(Failure { code, culprits: vec![user_id], withdrawal: Some(no) });
        self.log.reached("hostile: a forged no");
        Some(problem::ok(200, &shown))
    }

    /// A review in which others have approved already.
    fn forged_review(&mut self, circle: usize, mut shown: IntentResponse) -> Option<Response> {
        let own = Secret::copied_from(&self.chance.bytes("host's key"));
        let auth = AuthKey::new(&own).ok()?;
        let (signing_id, digest) = (shown.signing_id, shown.intent_digest);
        let missing = self.god.circles[circle].users.iter();
        let missing =
            missing.filter(|user| shown.approvals.iter().all(|approval| approval.user_id != **user));
        let missing: Vec<_> = missing.copied().collect();
        if missing.is_empty() {
            return None;
        }
        let user_id = missing[self.chance.place("whose approval", missing.len())];
        let entropy = &mut self.hostile.entropy;
        shown.approvals.push(Approval::sign(signing_id, user_id, digest, true, &auth, entropy).ok()?);
        self.log.reached("hostile: a forged review");
        Some(problem::ok(200, &shown))
    }

    /// A result that no enclave made: colluders can seal it, and nobody can sign it.
    fn forged_result(&mut self, circle: usize, mut shown: SigningStatus) -> Option<Response> {
        if !self.plan.circles[circle].members.iter().any(|member| member.colludes) {
            return None;
        }
        let found = self.god.intents.iter().find(|(_, facts)| facts.signing_id == shown.signing_id);
        let (digest, facts) = found.map(|(digest, facts)| (*digest, facts.clone()))?;
        let keygen_id = self.god.circles[circle].keygen_id?;
        let aggregator = self.god.circles[circle].registered.iter().flatten().next().copied()?;
        let fails = !self.chance.one_in("forged signatures", 3);
        let mut items = Vec::new();
        for item in &facts.items {
            let outcome = match fails {
                true => Outcome::Error { code: Code::PartialInvalid.name().into(), culprits: Vec::new() },
                false => {
                    let (nonce, s) = (self.chance.bytes("evil nonce"), self.chance.bytes("evil s"));
                    Outcome::Signature(Signature([nonce, s].concat().try_into().ok()?))
                }
            };
            items.push(ItemResult { item_id: item.item_id, outcome });
        }
        let result = SigningResult {
            version: 1,
            keygen_id,
            roster_hash: facts.roster_hash,
            signing_id: facts.signing_id,
            intent_digest: digest,
            attempt: AttemptId(self.chance.bytes("evil attempt")[..16].try_into().ok()?),
            aggregator,
            items,
        };
        let body = strict::to_json(&result);
        let identity = self.any_signature(&body)?;
        let signed = Signed { body: Blob(body), signatures: IdentitySignature { identity } };
        let context = Context::Result { keygen_id, signing_id: facts.signing_id, digest };
        let seal_key = self.seal_of_signing(circle, facts.signing_id)?;
        let sealed = seal_key.seal(&context, &strict::to_json(&signed), &mut self.hostile.entropy).ok()?;
        shown.state = SigningState::Completed;
        shown.failure = None;
        shown.result = Some(sealed);
        self.log.reached("hostile: a forged result");
        Some(problem::ok(200, &shown))
    }

    /// Changes one leaf or one list of a JSON document.
    fn changes_json(&mut self, body: &mut Vec<u8>) {
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return };
        let mut leaves = 0;
        count(&value, &mut leaves);
        if leaves == 0 {
            return;
        }
        let mut left = self.chance.below("leaf", leaves);
        let (how, at, bit) = (
            self.chance.below("leaf change", 4),
            self.chance.draw("leaf place"),
            self.chance.draw("leaf bit"),
        );
        change(&mut value, &mut left, how, at, bit);
        *body = serde_json::to_vec(&value).expect("JSON");
    }
}

/// Counts what can be changed: strings, numbers, flags, and lists that are not empty.
fn count(value: &Value, leaves: &mut u64) {
    match value {
        Value::Object(fields) => fields.values().for_each(|field| count(field, leaves)),
        Value::Array(list) => {
            *leaves += u64::from(!list.is_empty());
            list.iter().for_each(|one| count(one, leaves));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => *leaves += 1,
    }
}

/// Changes the leaf that is reached when `left` has counted down; true then.
fn change(value: &mut Value, left: &mut u64, how: u64, at: u64, bit: u64) -> bool {
    let here = |left: &mut u64| {
        let here = *left == 0;
        *left = left.wrapping_sub(1);
        here
    };
    match value {
        Value::Object(fields) => fields.values_mut().any(|field| change(field, left, how, at, bit)),
        Value::Array(list) => {
            if !list.is_empty() && here(left) {
                let place = (at % list.len() as u64) as usize;
                match how {
                    0 => {
                        list.remove(place);
                    }
                    1 => list.push(list[place].clone()),
                    _ => list.swap(place, 0),
                }
                return true;
            }
            list.iter_mut().any(|one| change(one, left, how, at, bit))
        }
        Value::String(text) => {
            if !here(left) {
                return false;
            }
            if !text.is_empty() {
                let place = (at % text.len() as u64) as usize;
                let old = text.as_bytes()[place];
                let new = b"0123456789abcdef"[(bit % 16) as usize] as char;
                if old.is_ascii() {
                    text.replace_range(place..=place, &new.to_string());
                }
            }
            true
        }
        Value::Number(number) => {
            if !here(left) {
                return false;
            }
            let old = number.as_u64().unwrap_or(0);
            *value = Value::from(if how == 0 { old.wrapping_add(1) } else { bit >> 12 });
            true
        }
        Value::Bool(flag) => {
            if !here(left) {
                return false;
            }
            *flag = !*flag;
            true
        }
        Value::Null => here(left),
    }
}
