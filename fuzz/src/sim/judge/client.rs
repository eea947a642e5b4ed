//! What clients do and report: S4, and that what has to be kept is kept first.

use keymeld_core::api::http::{Method, Request};
use keymeld_core::api::rest::{InitRequest, RegisterRequest, ReserveRequest, SignRequest};
use keymeld_core::artifact::approval::{Approval, Withdrawal};
use keymeld_core::artifact::result::VerifiedOutcome;
use keymeld_core::client::{Fault, Review, VerifiedKey};
use keymeld_core::id::SigningId;
use keymeld_core::refusal::Code;
use musig2::secp::Point;

use super::super::god::IntentFacts;
use super::super::leaks::hex;
use super::super::seat::Task;
use super::super::world::World;
use super::enclave::verifies;

/// How far clocks may be off before what they say is refused, and some.
const SKEW_MS: u64 = 60_000;

impl World {
    /// What an honest client sends is what its user did.
    pub(crate) fn judge_request(&mut self, place: usize, request: &Request) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        let body = &request.body;
        let path: Vec<&str> = request.target.split(['/', '?']).skip(3).collect();
        match (request.method, &path[..]) {
            (Method::Post, ["keygen", "reserve"]) => {
                let reserve: ReserveRequest = read(body);
                let facts = &self.god.circles[circle];
                assert_eq!(
                    facts.keygen_id,
                    Some(reserve.keygen_id),
                    "a reservation is kept before it is sent"
                );
                let first = self.god.reserved.insert(reserve.keygen_id);
                if let Some(timeout_ms) = reserve.timeout_ms.filter(|_| first) {
                    let ends_ms = self.now_ms + timeout_ms;
                    self.god.last_deadline_ms = self.god.last_deadline_ms.max(ends_ms);
                }
                for of in 0..self.plan.circles[circle].members.len() {
                    let key = self.plan.circles[circle].members[of].key;
                    self.god.learn_auth(&key, reserve.keygen_id);
                }
            }
            (Method::Post, ["keygen", _, "init"]) => {
                let init: InitRequest = read(body);
                self.god.circles[circle].subsets = init.subsets.iter().map(|hint| hint.subset_id).collect();
            }
            (Method::Post, ["keygen", _, "participants"]) => self.judge_registration(place, &read(body)),
            (Method::Post, ["signing"]) => {
                let sent: SignRequest = read(body);
                let kept = self.seats[place].requests.values().any(|kept| **kept == sent);
                assert!(kept, "S4: a request is sent that was not kept");
            }
            (Method::Post, ["signing", _, "approve"]) => {
                let approval: Approval = read(body);
                let key = (approval.intent_digest, member);
                self.god.approvals.entry(key).or_default().insert(approval.blind);
            }
            (Method::Post, ["signing", _, "decline"]) | (Method::Delete, ["signing", _]) => {
                let withdrawal: Withdrawal = read(body);
                self.god.withdrawn.insert((withdrawal.intent_digest, member));
            }
            _ => {}
        }
    }

    /// S4: a key is sealed only to an enclave that passed, and only once it is kept.
    fn judge_registration(&mut self, place: usize, register: &RegisterRequest) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        let facts = self.god.identities.get(&register.enclave_key);
        let facts = facts.expect("S4: a key is sealed to an enclave that there is not");
        let newest = self.seats[place].births.get(&facts.enclave_id).copied().unwrap_or(0);
        assert!(facts.birth_ms >= newest, "S4: a key is sealed to an old epoch");
        let kept = self.seats[place].kept.as_deref().unwrap_or_default();
        let kept = std::str::from_utf8(kept).expect("a membership is JSON");
        let record = hex(&register.record.0);
        let is_kept = kept.contains(std::str::from_utf8(&record).expect("hex"));
        assert!(is_kept, "S4: a registration is sent that was not kept");
        let registered = &mut self.god.circles[circle].registered[member];
        let again = registered.replace(register.enclave_key);
        assert!(
            again.is_none_or(|earlier| earlier == register.enclave_key),
            "S4: two registrations are made"
        );
    }

    /// S4: the key that a client shows is the one that follows from the participants' keys.
    pub(crate) fn judge_key(&mut self, place: usize, key: &VerifiedKey) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        let plan = &self.plan.circles[circle];
        let facts = &self.god.circles[circle];
        let roster = key.roster();
        assert_eq!(Some(roster.manifest().keygen_id), facts.keygen_id, "S4: the key of another keygen");
        assert!(
            facts.roster_hashes.contains(&roster.roster_hash()),
            "S4: a roster that no enclave certified"
        );
        for (of, member_plan) in plan.members.iter().enumerate().filter(|(_, of)| !of.colludes) {
            let record = roster.record(facts.users[of]).expect("S4: a roster without somebody");
            assert_eq!(record.public_key, self.god.public_key(&member_plan.key), "S4: another's key");
        }
        for enclave in roster.enclaves() {
            let known = self.god.identities.get(&enclave.enclave_key);
            let genuine = known.is_some_and(|known| known.identity_key == enclave.identity_key);
            assert!(genuine, "S4: client {member} takes an enclave that there is not");
        }
        let everybody: Vec<usize> = (0..plan.members.len()).collect();
        let tweak = plan.default_tweak.clone();
        let plan = &self.plan.circles[circle];
        let expected = self.god.context(plan, circle, &everybody, &tweak);
        let expected = expected.expect("S4: a key that there is not").aggregated_pubkey::<Point>();
        assert_eq!(key.output_key().0, expected.serialize_xonly(), "S4: a wrong aggregate key");
        for (subset, subset_id) in plan.subsets.iter().zip(&self.god.circles[circle].subsets.clone()) {
            let expected = self.god.context(plan, circle, subset, &tweak);
            let expected = expected.expect("S4: a key that there is not").aggregated_pubkey::<Point>();
            let shown = key.subset_key(Some(*subset_id)).expect("a subset of the plan");
            assert_eq!(shown.0, expected.serialize_xonly(), "S4: a wrong subset key");
        }
        self.log.reached("a client has a key");
    }

    fn facts_of(
        &self,
        circle: usize,
        want: usize,
        signing_id: SigningId,
    ) -> (keymeld_core::bytes::Hash, IntentFacts) {
        let found = self.god.intents.iter().find(|(_, facts)| facts.signing_id == signing_id);
        let (digest, facts) = found.expect("S4: signatures of a session that there is not");
        assert_eq!((facts.circle, facts.want), (circle, Some(want)), "S4: signatures of another session");
        (*digest, facts.clone())
    }

    /// S4: every signature that a client returns is over what was wanted, under the key that was agreed on.
    pub(crate) fn judge_signatures(
        &mut self,
        place: usize,
        want: usize,
        signing_id: SigningId,
        outcomes: &[VerifiedOutcome],
    ) {
        let circle = self.seats[place].circle;
        let (_, facts) = self.facts_of(circle, want, signing_id);
        assert_eq!(outcomes.len(), facts.items.len(), "S4: signatures are missing");
        for (item, outcome) in facts.items.iter().zip(outcomes) {
            let Ok(verified) = outcome else {
                let failed = self.god.failed_items.contains(&item.item_id);
                assert!(failed, "S4: a client returns {outcome:?}, which no enclave said");
                continue;
            };
            let plan = &self.plan.circles[circle];
            let context = self.god.context(plan, circle, &item.signers, &item.tweak);
            let key_x =
                context.expect("S4: a key that there is not").aggregated_pubkey::<Point>().serialize_xonly();
            let same = verified.item_id == item.item_id
                && verified.message.0 == item.message
                && verified.output_key.0 == key_x;
            assert!(same, "S4: a client returns another signature than was asked for");
            assert!(
                verifies(&key_x, &item.message, &verified.signature),
                "S4: a client returns a wrong signature"
            );
        }
        self.log.reached("a client has signatures");
    }

    /// S4: what people decide about is what was asked for, and who is said to have approved has.
    pub(crate) fn judge_review(&self, place: usize, want: usize, review: &Review) {
        let circle = self.seats[place].circle;
        let (digest, facts) = self.facts_of(circle, want, review.intent.intent().signing_id);
        assert_eq!(review.intent.digest(), digest, "S4: another intent is shown");
        for (item, shown) in facts.items.iter().zip(&review.intent.intent().items) {
            assert_eq!(
                (item.item_id, item.message),
                (shown.item_id, shown.message.0),
                "S4: another item is shown"
            );
        }
        for user_id in &review.approved {
            let users = &self.god.circles[circle].users;
            let member = users.iter().position(|user| user == user_id).expect("S4: a stranger has approved");
            let honest = !self.plan.circles[circle].members[member].colludes;
            let approved = self.god.approvals.contains_key(&(digest, member));
            assert!(!honest || approved, "S4: an approval is shown that nobody gave");
        }
        self.log.reached("a client reviews");
    }

    /// Whether something may fail like this; with an honest wire only for a reason.
    pub(crate) fn judge_failure(&mut self, place: usize, task: &Task, fault: &Fault, last_word: bool) {
        self.judge_blame(place, task, fault);
        if self.plan.hostile {
            return;
        }
        let circle = self.seats[place].circle;
        if let (Task::Sign(want), Fault::Refused(_), true) = (task, fault, last_word) {
            self.god.turned_away.insert((circle, *want));
        }
        let ends = match fault {
            Fault::Ended(refusal, _) => Some(refusal.code),
            Fault::Refused(refusal) if last_word => Some(refusal.code),
            Fault::Refused(refusal) => match (task, refusal.code) {
                // Others hear of a request that the gateway never took.
                (Task::Await(want, _) | Task::Review(want, _), code @ Code::UnknownId) => {
                    self.was_turned_away(circle, *want).then_some(code)
                }
                // Made while a clock was far ahead.
                (Task::Review(..), code @ Code::IntentNotYetValid) => {
                    (self.plan.rates.spells > 0).then_some(code)
                }
                _ => None,
            },
            _ => None,
        };
        let allowed = match task {
            Task::Reserve | Task::Init | Task::Join | Task::AwaitKey => self.keygen_may_fail(circle),
            Task::Sign(want) | Task::Await(want, _) => {
                ends.is_some_and(|code| self.signing_may_fail(circle, *want, code))
            }
            // Whoever comes too late, or says something about a session that is over.
            Task::Review(want, _) | Task::Approve(want, ..) | Task::Withdraw(want, _) => {
                ends.is_some() || self.is_contrary(circle, *want)
            }
        };
        assert!(allowed, "S6, liveness: client {place}, {}: {fault}", super::super::seat::name(task));
    }

    /// S4: nobody is named for a no that it did not say.
    fn judge_blame(&self, place: usize, task: &Task, fault: &Fault) {
        let (Task::Sign(want) | Task::Await(want, _), Fault::Ended(refusal, _)) = (task, fault) else {
            return;
        };
        let circle = self.seats[place].circle;
        let users = &self.god.circles[circle].users;
        for culprit in refusal.culprits() {
            let member = users.iter().position(|user| user == culprit).expect("S4: a stranger is blamed");
            let honest = !self.plan.circles[circle].members[member].colludes;
            let of_want = |digest: &keymeld_core::bytes::Hash| {
                self.god.intents.get(digest).is_some_and(|facts| facts.want == Some(*want))
            };
            let said_no = self.god.withdrawn.iter().any(|(digest, by)| *by == member && of_want(digest));
            assert!(!honest || said_no, "S4: member {member} is blamed for a no that it did not say");
        }
    }

    fn was_turned_away(&self, circle: usize, want: usize) -> bool {
        self.god.turned_away.contains(&(circle, want))
    }

    fn keygen_may_fail(&self, circle: usize) -> bool {
        self.plan.circles[circle].doomed
    }

    fn is_contrary(&self, circle: usize, want: usize) -> bool {
        self.plan.circles[circle].wants[want].lifetime_ms.is_some()
    }

    /// Why a session may end without signatures.
    fn signing_may_fail(&self, circle: usize, want: usize, code: Code) -> bool {
        let plan = &self.plan.circles[circle];
        let found =
            self.god.intents.iter().find(|(_, facts)| (facts.circle, facts.want) == (circle, Some(want)));
        let Some((digest, facts)) = found else {
            // It was never made: the client itself refused.
            return plan.forbids_request(want) || code == Code::IntentLifetime || code == Code::IntentExpired;
        };
        let unix_ms = self.unix_ms();
        let signers = facts.items.iter().flat_map(|item| &item.signers);
        let forbidden = signers
            .filter_map(|member| {
                self.god.forbids(plan, *digest, facts, *member, unix_ms.min(facts.expires_at - 1))
            })
            .next()
            .is_some();
        match code {
            Code::Declined | Code::Cancelled => self.god.withdrawn.iter().any(|(no, _)| no == digest),
            Code::Expired | Code::IntentExpired => unix_ms + 2 * SKEW_MS >= facts.expires_at,
            // Made while a clock was off.
            Code::IntentNotYetValid => self.plan.rates.spells > 0,
            Code::ApprovalMissing | Code::RequesterNotAllowed => forbidden,
            // The gateway does not wait for the approval of somebody who delegates.
            Code::BlindNotAllowed => {
                let asks = |member: &usize| {
                    let of = &plan.members[*member];
                    *member != facts.requester && !of.approves && !of.blind
                };
                let refused =
                    |item: &super::super::god::ItemFacts| item.blind && item.signers.iter().any(asks);
                forbidden || facts.items.iter().any(refused)
            }
            Code::TooManyAttempts => self.plan.rates.enclave > 0,
            Code::UnknownId => self.was_turned_away(circle, want),
            _ => false,
        }
    }
}

fn read<T: for<'de> serde::Deserialize<'de>>(body: &[u8]) -> T {
    serde_json::from_slice(body).expect("a client speaks the gateway's language")
}
