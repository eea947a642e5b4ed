//! Participants at work, and the ledger of what they were told and what they consented to.

use std::path::Path;
use std::sync::mpsc::Sender;

use keymeld_core::artifact::intent::Origin;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedSignature;
use keymeld_core::bytes::{Message, XOnlyKey};
use keymeld_core::client::{Done, Fault, Invitee, Job, Plan};
use keymeld_core::id::SigningId;
use keymeld_core::refusal::Code;

use super::plan::{Fate, KeygenPlan, Random, SigningPlan};
use crate::party::{Access, Participant, careful, invited, items, planning, unix_ms};

/// What became of a keygen, as its participants were told.
pub(super) struct Entry {
    pub(super) participants: Vec<Participant>,
    /// The key, or why there is none.
    pub(super) key: Result<XOnlyKey, Code>,
    pub(super) signings: Vec<SigningEntry>,
}

/// What became of a request.
pub(super) struct SigningEntry {
    pub(super) signing_id: SigningId,
    /// What was consented to; empty where somebody did not.
    pub(super) authorised: Vec<Message>,
    pub(super) told: Result<Vec<VerifiedSignature>, Code>,
}

/// Why a session that has ended has no key or signature.
pub(super) fn reason(fault: Fault) -> Code {
    match fault {
        Fault::Ended(refusal, _) => refusal.code,
        other => panic!("{other}"),
    }
}

/// A participant's process may die too, between any two jobs.
const REOPENED_ONE_IN: usize = 5;

pub(super) struct Work<'a> {
    pub(super) access: &'a Access,
    pub(super) home: &'a Path,
    pub(super) steps: Sender<()>,
    /// How long what is never to be complete stays open.
    pub(super) short_ms: u64,
    pub(super) random: Random,
}

impl Work<'_> {
    /// Somebody is about to do something. Nobody listens any more where all is done but the last checks.
    fn step(&self) {
        let _ = self.steps.send(());
    }

    fn run(&self, one: &mut Participant, job: Job) -> Done {
        self.step();
        one.run(job)
    }

    fn some_reopen(&mut self, everybody: Vec<Participant>) -> Vec<Participant> {
        let again = |one: Participant| {
            if self.random.one_in(REOPENED_ONE_IN) { one.again() } else { one }
        };
        everybody.into_iter().map(again).collect()
    }

    /// `None` where the keygen ended before its coordinator was through, which only one that is never to be
    /// complete may.
    pub(super) fn keygen(&mut self, plan: &KeygenPlan) -> Option<Entry> {
        let valid_until = unix_ms() + 24 * 3_600_000;
        let rules = if plan.delegated { Rules::delegated(valid_until) } else { careful() };
        let others = vec![Invitee::default(); plan.participants - 1];
        let mut terms = Plan::new(self.access.url.clone(), others, rules);
        terms.timeout_ms = plan.incomplete.then_some(2 * self.short_ms);
        let home = self.home.join(format!("keygen-{}", plan.number));
        let mut first = planning(self.access, &home, terms);
        self.run(&mut first, Job::Reserve);
        if plan.incomplete {
            return self.never_complete(first);
        }
        self.run(&mut first, Job::Init);
        let mut everybody = invited(&first, &home, rules);
        everybody.insert(0, first);
        for one in &mut everybody {
            self.run(one, Job::Join);
        }
        everybody = self.some_reopen(everybody);
        for one in &mut everybody {
            self.run(one, Job::AwaitKey);
        }
        let key = everybody[0].output_key();
        assert!(everybody.iter().all(|one| one.output_key() == key));
        let mut entry = Entry { participants: Vec::new(), key: Ok(key), signings: Vec::new() };
        for signing in &plan.signings {
            everybody = self.some_reopen(everybody);
            entry.signings.extend(self.signing(plan, signing, &mut everybody));
        }
        entry.participants = everybody;
        Some(entry)
    }

    /// The coordinator joins, and nobody else ever hears of it.
    fn never_complete(&self, mut first: Participant) -> Option<Entry> {
        for job in [Job::Init, Job::Join] {
            self.step();
            match first.try_run(job) {
                Ok(_) => {}
                Err(Fault::Refused(_) | Fault::Ended(..)) => return None,
                Err(fault) => panic!("{fault}"),
            }
        }
        self.step();
        let key = first.try_run(Job::AwaitKey).map(|done| panic!("{done:?}")).map_err(reason);
        Some(Entry { participants: vec![first], key, signings: Vec::new() })
    }

    /// `None` where the request came too late to be taken, which only what is never to be signed may.
    fn signing(
        &mut self,
        plan: &KeygenPlan,
        signing: &SigningPlan,
        everybody: &mut [Participant],
    ) -> Option<SigningEntry> {
        let texts: Vec<&str> = signing.texts.iter().map(String::as_str).collect();
        let ignored = matches!(signing.fate, Fate::Ignored(_));
        let expires_at = ignored.then(|| unix_ms() + self.short_ms);
        let job = Job::Request { items: items(&texts), expires_at };
        self.step();
        let signing_id = match everybody[0].try_run(job) {
            Ok(Done::Requested(signing_id)) => signing_id,
            Err(Fault::Refused(_) | Fault::Ended(..)) if ignored => return None,
            other => panic!("{other:?}"),
        };
        let mut authorised = Vec::new();
        if signing.fate == Fate::Approved {
            let message = |text: &&str| Origin::Text((*text).into()).message().expect("a text");
            authorised = texts.iter().map(message).collect();
        }
        if !plan.delegated {
            self.decide(signing, signing_id, everybody);
        }
        self.step();
        let reader = self.random.below(everybody.len());
        let told = everybody[reader].try_signatures(signing_id).map_err(reason);
        Some(SigningEntry { signing_id, authorised, told })
    }

    fn decide(&mut self, signing: &SigningPlan, signing_id: SigningId, everybody: &mut [Participant]) {
        let last = everybody.len() - 1;
        for at in 1..=last {
            self.step();
            let (withdraws, skips) = match signing.fate {
                Fate::Approved => (None, false),
                Fate::Ignored(other) => (None, at == other),
                Fate::Declined(other) => ((at == other).then_some(at), false),
                Fate::Cancelled => ((at == last).then_some(0), false),
            };
            if skips {
                continue;
            }
            if let Some(who) = withdraws {
                let review = everybody[who].review(signing_id).expect("an intent");
                self.run(&mut everybody[who], Job::Withdraw { review, reason: None });
                return;
            }
            match everybody[at].review(signing_id) {
                Ok(review) => match everybody[at].try_run(Job::Approve { review, blind: false }) {
                    Ok(_) => {}
                    // It has expired meanwhile.
                    Err(Fault::Refused(_)) if matches!(signing.fate, Fate::Ignored(_)) => {}
                    Err(fault) => panic!("{fault}"),
                },
                Err(Fault::Refused(_)) if matches!(signing.fate, Fate::Ignored(_)) => {}
                Err(fault) => panic!("{fault}"),
            }
        }
    }
}
