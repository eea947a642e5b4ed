//! The signing rounds (DESIGN 4.4). Authority is checked in every round; nonces live in an [`Attempt`] and
//! nowhere else, and the first round 2 that passes all checks consumes them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::bundle::{NonceBundle, PartialBundle};
use super::identity::Identity;
use super::session::OpenSession;
use super::{BYTES_PER_SHARE, Enclave};
use crate::artifact::authority::{VerifiedApprovals, authorise};
use crate::artifact::intent::{SealedIntent, VerifiedIntent};
use crate::artifact::registration::Record;
use crate::artifact::result::{ItemResult, Outcome, SigningResult};
use crate::artifact::roster::Roster;
use crate::bytes::{Hash, PartialSignature, PublicKey, PublicNonce, Signature};
use crate::crypto::auth;
use crate::crypto::derive::Purpose;
use crate::crypto::hash::{Tag, sha256, tagged_hash};
use crate::crypto::seal::{Context, Round, SealKey};
use crate::entropy::Entropy;
use crate::id::{AttemptId, UserId};
use crate::link::message::{Addressed, Aggregate, MakeNonces, MakePartials, Reply, RunKey};
use crate::musig::MusigError;
use crate::musig::aggregate::KeyAgg;
use crate::musig::nonce::SigningNonce;
use crate::musig::round::{Contribution, FinishError, Session, aggregate_nonces, finish};
use crate::refusal::{Code, Refusal};
use crate::time::Time;

/// One run of the rounds at one enclave key: everything that was verified, and the nonces.
pub(super) struct Attempt {
    run: RunKey,
    roster: Arc<Roster>,
    intent: VerifiedIntent,
    approvals: VerifiedApprovals,
    signing_seal: SealKey,
    items: Vec<ItemSigners>,
    peers: BTreeSet<PublicKey>,
    stage: Stage,
}

/// Who signs an item, in KeySort order, and the key that comes of it.
struct ItemSigners {
    key_agg: KeyAgg,
    signers: Vec<Signer>,
}

#[derive(Clone, Copy)]
struct Signer {
    user_id: UserId,
    public_key: PublicKey,
    enclave_key: PublicKey,
}

enum Stage {
    /// Nonces were made and wait for the others'.
    AwaitingNonces(Nonces),
    /// They were used. The same request gets the same answer, another one nothing.
    Answered { request: Hash, reply: Reply },
    /// They were used and something failed: nothing more comes of this attempt.
    Spent,
}

/// Own nonces in bundle order.
struct Nonces {
    request: Hash,
    secret: Vec<SigningNonce>,
    public: Vec<PublicNonce>,
    reply: Reply,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::AwaitingNonces(_) => "awaiting nonces",
            Stage::Answered { .. } => "answered",
            Stage::Spent => "spent",
        };
        write!(f, "Attempt({}, {stage})", self.run.attempt)
    }
}

impl Enclave {
    /// Round 1: checks authority, makes nonces for exactly this enclave's users. Where all signers are here
    /// it goes on to the result.
    pub(super) fn make_nonces(
        &mut self,
        now: Time,
        make: &MakeNonces,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Reply, Refusal> {
        let unix_ms = self.unix_ms(now)?;
        let run = make.run;
        let identity = self.identity(&run.enclave_key)?;
        let request = sha256(body);
        if let Some(attempt) = self.attempts.get_mut(&attempt_key(&run)) {
            return attempt.repeated_nonces(request);
        }
        let session = self.session(run.keygen_id, run.enclave_key)?;
        let (mut attempt, mut nonces) = begin(session, make, request, unix_ms, entropy)?;
        if attempt.peers.is_empty() {
            let own = core::mem::take(&mut nonces.secret);
            let view = attempt.view(&run.enclave_key, &nonces.public, &BTreeMap::new())?;
            let partials = attempt.sign(own, &view)?;
            let reply = attempt.finish(&identity, &view, &partials, &BTreeMap::new(), entropy)?;
            attempt.stage = Stage::Answered { request, reply: reply.clone() };
            self.keep(attempt, body.len());
            return Ok(reply);
        }
        let bundle = NonceBundle::new(nonces.public.clone()).encode();
        let mut addressed = Vec::with_capacity(attempt.peers.len());
        for peer in &attempt.peers {
            let pair_key = self.pair_key(&identity, peer, run.attempt)?;
            let context = Context::Nonces(attempt.round(run.enclave_key, *peer));
            let blob = pair_key.seal(&context, &bundle, entropy).map_err(Code::from)?;
            addressed.push(Addressed { peer: *peer, blob });
        }
        let bytes = body.len() + addressed.iter().map(|to| to.blob.0.len()).sum::<usize>();
        nonces.reply = Reply::NoncesMade(addressed);
        let reply = nonces.reply.clone();
        attempt.stage = Stage::AwaitingNonces(nonces);
        self.keep(attempt, bytes);
        Ok(reply)
    }

    /// Round 2: checks the others' bundles and authority again, consumes the nonces, signs.
    pub(super) fn make_partials(
        &mut self,
        now: Time,
        make: &MakePartials,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Reply, Refusal> {
        let run = make.run;
        let identity = self.identity(&run.enclave_key)?;
        let request = sha256(body);
        if let Some(reply) = self.repeated(&run, request)? {
            return Ok(reply);
        }
        if run.aggregator == run.enclave_key {
            return Err(Code::AggregatorInvalid.into());
        }
        let view = self.check_round(now, &run, &identity, &make.nonces)?;
        let aggregator_key = self.pair_key(&identity, &run.aggregator, run.attempt)?;
        let attempt = self.attempt(&run)?;
        let own = attempt.consume()?;
        let partials = attempt.sign(own, &view)?;
        let bundle = PartialBundle::new(view.hash, partials).encode();
        let context = Context::Partials(attempt.round(run.enclave_key, run.aggregator));
        let blob = aggregator_key.seal(&context, &bundle, entropy).map_err(Code::from)?;
        let reply = Reply::PartialsMade(blob);
        attempt.stage = Stage::Answered { request, reply: reply.clone() };
        Ok(reply)
    }

    /// Round 3 at the aggregator: what round 2 does, then aggregation and verification.
    pub(super) fn aggregate(
        &mut self,
        now: Time,
        aggregate: &Aggregate,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Reply, Refusal> {
        let run = aggregate.run;
        let identity = self.identity(&run.enclave_key)?;
        let request = sha256(body);
        if let Some(reply) = self.repeated(&run, request)? {
            return Ok(reply);
        }
        if run.aggregator != run.enclave_key {
            return Err(Code::AggregatorInvalid.into());
        }
        let view = self.check_round(now, &run, &identity, &aggregate.nonces)?;
        let others = self.open_partials(&run, &identity, &aggregate.partials, &view)?;
        let attempt = self.attempt(&run)?;
        let own = attempt.consume()?;
        let partials = attempt.sign(own, &view)?;
        let reply = attempt.finish(&identity, &view, &partials, &others, entropy)?;
        attempt.stage = Stage::Answered { request, reply: reply.clone() };
        Ok(reply)
    }

    /// Holds an attempt for the next round. `bytes` are the request's, whose intent it keeps, and the answer's. The
    /// roster counts too: it may be no other attempt's, nor that of an open session any more.
    fn keep(&mut self, attempt: Attempt, bytes: usize) {
        let shares = attempt.items.iter().map(|item| item.signers.len()).sum::<usize>();
        let weight = 1 + shares + 2 * attempt.roster.records().len() + bytes / BYTES_PER_SHARE;
        self.attempts.insert(attempt_key(&attempt.run), weight, attempt);
    }

    fn attempt(&mut self, run: &RunKey) -> Result<&mut Attempt, Code> {
        let attempt = self.attempts.get_mut(&attempt_key(run)).ok_or(Code::UnknownAttempt)?;
        if attempt.run == *run { Ok(attempt) } else { Err(Code::UnknownAttempt) }
    }

    fn repeated(&mut self, run: &RunKey, request: Hash) -> Result<Option<Reply>, Code> {
        match &self.attempt(run)?.stage {
            Stage::AwaitingNonces(_) => Ok(None),
            Stage::Answered { request: answered, reply } if *answered == request => Ok(Some(reply.clone())),
            Stage::Answered { .. } | Stage::Spent => Err(Code::AttemptConsumed),
        }
    }

    /// Everything that has to hold before a nonce is used. Nothing is changed.
    fn check_round(
        &mut self,
        now: Time,
        run: &RunKey,
        identity: &Identity,
        bundles: &[Addressed],
    ) -> Result<View, Refusal> {
        let unix_ms = self.unix_ms(now)?;
        let attempt = self.attempt(run)?;
        attempt.authorise(unix_ms)?;
        let counts = attempt.counts(bundles)?;
        let contexts: Vec<Context> = bundles
            .iter()
            .map(|bundle| Context::Nonces(attempt.round(bundle.peer, run.enclave_key)))
            .collect();
        let mut nonces = BTreeMap::new();
        for ((bundle, context), count) in bundles.iter().zip(&contexts).zip(counts) {
            let plaintext = self
                .pair_key(identity, &bundle.peer, run.attempt)?
                .open(context, &bundle.blob)
                .map_err(|_| Code::BundleUnreadable)?;
            nonces.insert(bundle.peer, NonceBundle::decode(&plaintext, count)?.nonces);
        }
        let attempt = self.attempt(run)?;
        let Stage::AwaitingNonces(own) = &attempt.stage else {
            return Err(Code::AttemptConsumed.into());
        };
        attempt.view(&run.enclave_key, &own.public, &nonces)
    }

    fn open_partials(
        &mut self,
        run: &RunKey,
        identity: &Identity,
        bundles: &[Addressed],
        view: &View,
    ) -> Result<BTreeMap<PublicKey, Vec<PartialSignature>>, Refusal> {
        let attempt = self.attempt(run)?;
        let counts = attempt.counts(bundles)?;
        let contexts: Vec<Context> = bundles
            .iter()
            .map(|bundle| Context::Partials(attempt.round(bundle.peer, run.enclave_key)))
            .collect();
        let mut partials = BTreeMap::new();
        for ((bundle, context), count) in bundles.iter().zip(&contexts).zip(counts) {
            let plaintext = self
                .pair_key(identity, &bundle.peer, run.attempt)?
                .open(context, &bundle.blob)
                .map_err(|_| Code::BundleUnreadable)?;
            let opened = PartialBundle::decode(&plaintext, count)?;
            // Whoever mixed the bundles up, it need not be the sender: nobody is blamed.
            if opened.view != view.hash {
                return Err(Code::NonceViewsDiffer.into());
            }
            partials.insert(bundle.peer, opened.partials);
        }
        Ok(partials)
    }

    /// The key that two enclaves share in an attempt, from the static ECDH of their ECIES keys.
    fn pair_key(
        &mut self,
        identity: &Identity,
        peer: &PublicKey,
        attempt: AttemptId,
    ) -> Result<SealKey, Code> {
        let pair = (identity.keys().enclave_key, *peer);
        let shared = match self.pair_secrets.get_mut(&pair) {
            Some(shared) => shared,
            None => {
                let shared = auth::shared_secret(identity.ecies(), peer).map_err(|_| Code::NotOnCurve)?;
                self.pair_secrets.insert(pair, 1, shared);
                self.pair_secrets.get_mut(&pair).ok_or(Code::Internal)?
            }
        };
        Ok(SealKey::derived(shared, Purpose::Pair(attempt)))
    }
}

fn attempt_key(run: &RunKey) -> super::AttemptKey {
    (run.keygen_id, run.enclave_key, run.attempt)
}

/// Verifies the intent and the authority for this enclave's users, then makes their nonces.
fn begin(
    session: &OpenSession,
    make: &MakeNonces,
    request: Hash,
    unix_ms: u64,
    entropy: &mut Entropy,
) -> Result<(Attempt, Nonces), Refusal> {
    let run = make.run;
    let roster = Arc::clone(&session.roster);
    let signing_seal = session.signing_seal(run.signing_id);
    let sealed = SealedIntent { sealed: make.intent.clone(), digest: run.digest };
    let intent = VerifiedIntent::open(&roster, run.signing_id, &signing_seal, &sealed)?;
    let is_own = |record: &Record| record.enclave_key == run.enclave_key;
    let approvals = VerifiedApprovals::verify(&roster, &intent, &make.approvals, is_own)?;
    let items = item_signers(&roster, &intent)?;
    let mut peers: BTreeSet<PublicKey> =
        items.iter().flat_map(|item| &item.signers).map(|signer| signer.enclave_key).collect();
    if !peers.contains(&run.aggregator) {
        return Err(Code::AggregatorInvalid.into());
    }
    if !peers.remove(&run.enclave_key) {
        return Err(Code::NotConcerned.into());
    }
    let attempt = Attempt { run, roster, intent, approvals, signing_seal, items, peers, stage: Stage::Spent };
    attempt.authorise(unix_ms)?;
    let mut secret = Vec::new();
    for (item, asked) in attempt.items.iter().zip(&attempt.intent.intent().items) {
        for signer in item.signers.iter().filter(|signer| signer.enclave_key == run.enclave_key) {
            let key = session.key(signer.user_id).ok_or(Code::Internal)?;
            let nonce =
                SigningNonce::generate(key, &item.key_agg, asked.message.0, entropy).map_err(|error| {
                    match error {
                        MusigError::Entropy(_) => Code::EntropyFailed,
                        _ => Code::Internal,
                    }
                })?;
            secret.push(nonce);
        }
    }
    let public = secret.iter().map(|nonce| PublicNonce(nonce.public())).collect();
    let reply = Reply::NoncesMade(Vec::new());
    Ok((attempt, Nonces { request, secret, public, reply }))
}

fn item_signers(roster: &Roster, intent: &VerifiedIntent) -> Result<Vec<ItemSigners>, Code> {
    let mut key_aggs: BTreeMap<_, KeyAgg> = BTreeMap::new();
    let mut items = Vec::with_capacity(intent.intent().items.len());
    for item in &intent.intent().items {
        let tweak = roster.tweak(item.tweak.as_ref());
        let key_agg = match key_aggs.get(&(item.subset, tweak)) {
            Some(key_agg) => key_agg.clone(),
            None => {
                let key_agg = roster.key_agg(item.subset, tweak)?;
                key_aggs.insert((item.subset, tweak), key_agg.clone());
                key_agg
            }
        };
        let signer = |record: &Record| Signer {
            user_id: record.user_id,
            public_key: record.public_key,
            enclave_key: record.enclave_key,
        };
        let signers = roster.signers(item.subset)?.into_iter().map(signer).collect();
        items.push(ItemSigners { key_agg, signers });
    }
    Ok(items)
}

/// All nonces of a run as one enclave sees them: a session for each item, and their hash.
struct View {
    hash: Hash,
    sessions: Vec<Session>,
    nonces: Vec<Vec<PublicNonce>>,
}

impl Attempt {
    pub(super) fn is_expired(&self, unix_ms: u64) -> bool {
        unix_ms >= self.intent.intent().expires_at
    }

    fn repeated_nonces(&self, request: Hash) -> Result<Reply, Refusal> {
        match &self.stage {
            Stage::AwaitingNonces(nonces) if nonces.request == request => Ok(nonces.reply.clone()),
            Stage::Answered { request: answered, reply } if *answered == request => Ok(reply.clone()),
            Stage::AwaitingNonces(_) | Stage::Answered { .. } | Stage::Spent => {
                Err(Code::AttemptConsumed.into())
            }
        }
    }

    fn round(&self, sender: PublicKey, recipient: PublicKey) -> Round {
        Round {
            keygen_id: self.run.keygen_id,
            roster_hash: self.roster.roster_hash(),
            digest: self.run.digest,
            attempt: self.run.attempt,
            aggregator: self.run.aggregator,
            sender,
            recipient,
        }
    }

    fn authorise(&self, unix_ms: u64) -> Result<(), Refusal> {
        let own = self.run.enclave_key;
        authorise(&self.roster, &self.intent, &self.approvals, unix_ms, |record| record.enclave_key == own)
    }

    /// How many entries each bundle must have, where there is exactly one from each peer.
    fn counts(&self, bundles: &[Addressed]) -> Result<Vec<usize>, Code> {
        let senders: BTreeSet<PublicKey> = bundles.iter().map(|bundle| bundle.peer).collect();
        if senders.len() != bundles.len() || senders != self.peers {
            return Err(Code::BundleMismatch);
        }
        Ok(bundles.iter().map(|bundle| self.count_of(&bundle.peer)).collect())
    }

    fn count_of(&self, enclave_key: &PublicKey) -> usize {
        let signers = self.items.iter().flat_map(|item| &item.signers);
        signers.filter(|signer| signer.enclave_key == *enclave_key).count()
    }

    /// BIP-327 *NonceAgg* for each item, over the nonces of all signers in KeySort order.
    fn view(
        &self,
        own_key: &PublicKey,
        own: &[PublicNonce],
        others: &BTreeMap<PublicKey, Vec<PublicNonce>>,
    ) -> Result<View, Refusal> {
        let mut streams: BTreeMap<PublicKey, core::slice::Iter<'_, PublicNonce>> =
            others.iter().map(|(peer, nonces)| (*peer, nonces.iter())).collect();
        streams.insert(*own_key, own.iter());
        let mut sessions = Vec::with_capacity(self.items.len());
        let mut nonces = Vec::with_capacity(self.items.len());
        for (item, asked) in self.items.iter().zip(&self.intent.intent().items) {
            let mut of_item = Vec::with_capacity(item.signers.len());
            for signer in &item.signers {
                let stream = streams.get_mut(&signer.enclave_key).ok_or(Code::BundleMismatch)?;
                of_item.push(*stream.next().ok_or(Code::BundleMismatch)?);
            }
            let bytes: Vec<[u8; 66]> = of_item.iter().map(|nonce| nonce.0).collect();
            let aggregate = aggregate_nonces(&bytes).map_err(|_| {
                let guilty = |nonce: &[u8; 66]| aggregate_nonces(&[*nonce]).is_err();
                let culprits = item.signers.iter().zip(&bytes).filter(|(_, nonce)| guilty(nonce));
                Refusal::blaming(Code::NonceInvalid, culprits.map(|(signer, _)| signer.user_id).collect())
            })?;
            let session =
                Session::new(&item.key_agg, aggregate, asked.message.0).map_err(|_| Code::NonceInvalid)?;
            sessions.push(session);
            nonces.push(of_item);
        }
        // Every nonce, not only their sums: two senders together could make sums agree where nonces do not.
        let parts: Vec<&[u8]> =
            nonces.iter().flatten().map(|nonce: &PublicNonce| nonce.0.as_slice()).collect();
        Ok(View { hash: tagged_hash(Tag::NonceView, &parts), sessions, nonces })
    }

    /// Takes the nonces out for good: whatever happens next, they are never used again.
    fn consume(&mut self) -> Result<Vec<SigningNonce>, Code> {
        match core::mem::replace(&mut self.stage, Stage::Spent) {
            Stage::AwaitingNonces(nonces) => Ok(nonces.secret),
            answered @ Stage::Answered { .. } => {
                self.stage = answered;
                Err(Code::AttemptConsumed)
            }
            Stage::Spent => Err(Code::AttemptConsumed),
        }
    }

    /// BIP-327 *Sign* for each of this enclave's signatures.
    fn sign(&self, own: Vec<SigningNonce>, view: &View) -> Result<Vec<PartialSignature>, Code> {
        let mut own = own.into_iter();
        let mut partials = Vec::with_capacity(own.len());
        for (item, session) in self.items.iter().zip(&view.sessions) {
            for signer in &item.signers {
                if signer.enclave_key == self.run.enclave_key {
                    let nonce = own.next().ok_or(Code::Internal)?;
                    partials.push(PartialSignature(nonce.sign(session).map_err(|_| Code::Internal)?));
                }
            }
        }
        Ok(partials)
    }

    /// BIP-327 *PartialSigAgg* and verification for each item; then the result, signed and sealed.
    fn finish(
        &self,
        identity: &Identity,
        view: &View,
        own: &[PartialSignature],
        others: &BTreeMap<PublicKey, Vec<PartialSignature>>,
        entropy: &mut Entropy,
    ) -> Result<Reply, Refusal> {
        let mut streams: BTreeMap<PublicKey, core::slice::Iter<'_, PartialSignature>> =
            others.iter().map(|(peer, partials)| (*peer, partials.iter())).collect();
        streams.insert(self.run.enclave_key, own.iter());
        let mut result =
            SigningResult::new(&self.roster, &self.intent, self.run.attempt, self.run.enclave_key);
        let asked = &self.intent.intent().items;
        for (index, item) in self.items.iter().enumerate() {
            let mut contributions = Vec::with_capacity(item.signers.len());
            for (signer, nonce) in item.signers.iter().zip(&view.nonces[index]) {
                let stream = streams.get_mut(&signer.enclave_key).ok_or(Code::BundleMismatch)?;
                let partial = stream.next().ok_or(Code::BundleMismatch)?;
                contributions.push(Contribution {
                    key: signer.public_key.0,
                    public_nonce: nonce.0,
                    partial: partial.0,
                });
            }
            let outcome = match finish(&view.sessions[index], &contributions) {
                Ok(signature) => Outcome::Signature(Signature(signature)),
                Err(error) => failed_item(&error, &item.signers),
            };
            result.items.push(ItemResult { item_id: asked[index].item_id, outcome });
        }
        Ok(Reply::Aggregated(result.seal(identity.signer(), &self.signing_seal, entropy)?))
    }
}

/// Every contribution is authenticated and was made under this view, so blame is certain.
fn failed_item(error: &FinishError, signers: &[Signer]) -> Outcome {
    let culprits: Vec<UserId> = error.culprits().iter().map(|index| signers[*index].user_id).collect();
    let code = if culprits.is_empty() { Code::SignatureInvalid } else { Code::PartialInvalid };
    Outcome::Error { code: code.name().to_string(), culprits }
}
