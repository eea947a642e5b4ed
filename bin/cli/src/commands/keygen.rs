//! `reserve`, `init`, `invite`, `join`: the steps to a key.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::{ManifestLimits, Requesters};
use keymeld_core::artifact::registration::{ApprovalRule, Rules};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Hash, PublicKey};
use keymeld_core::client::{Client, Invitee, Job, Plan};
use keymeld_core::id::{EnclaveId, KeygenId, UserId};
use keymeld_core::limits::{INVITE_BYTES_MAX, ITEMS_MAX};
use keymeld_core::time::Time;
use serde::{Deserialize, Serialize};

use super::seat::{Asked, Seat, now_unix_ms};
use super::{Contradiction, Failure, Member, Report};
use crate::given::{self, TokenSource};
use crate::home::{Home, HomeError};
use crate::{kept, os_entropy, shown};

const DAY_MS: u64 = 24 * 3_600_000;
/// How many days a key may sign, if nothing else is said.
const VALID_DAYS: u32 = 365;

/// What the own key may be used for.
#[derive(Args, Clone, Debug)]
pub struct RuleOptions {
    /// Sign whatever the coordinator requests, without an approval of each intent.
    #[arg(long)]
    delegate: bool,
    /// Let other participants than the coordinator request without an approval, where delegated.
    #[arg(long, requires = "delegate")]
    allow_any_requester: bool,
    /// Sign messages that do not say what they are, where delegated.
    #[arg(long, requires = "delegate")]
    allow_blind: bool,
    /// For how many days the key may sign.
    #[arg(long, value_name = "DAYS", default_value_t = VALID_DAYS, value_parser = clap::value_parser!(u32).range(1..))]
    valid_days: u32,
}

/// The rules as they were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RulesAsked {
    delegate: bool,
    allow_any_requester: bool,
    allow_blind: bool,
    valid_days: u32,
}

impl RuleOptions {
    fn asked(&self) -> RulesAsked {
        let RuleOptions { delegate, allow_any_requester, allow_blind, valid_days } = *self;
        RulesAsked { delegate, allow_any_requester, allow_blind, valid_days }
    }
}

impl RulesAsked {
    fn rules(&self, now_unix_ms: u64) -> Rules {
        let valid_until = now_unix_ms + u64::from(self.valid_days) * DAY_MS;
        let approval = if self.delegate { ApprovalRule::Delegated } else { ApprovalRule::Required };
        Rules {
            approval,
            allow_any_requester: self.allow_any_requester,
            allow_blind: self.allow_blind,
            ..Rules::careful(valid_until)
        }
    }
}

/// Reserve slots for a new keygen. Whoever does this is its coordinator.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld reserve --home alice --key-file alice.key --policy policy.json \\\n",
    "    --gateway http://127.0.0.1:8080 --name Alice --participant Bob --participant Carol=02ab...\n",
    "  keymeld reserve ... --subset Alice,Bob --tweak taproot --requesters any-participant\n\n",
    "The same command again goes on with the keygen that it began, until --new is given."
))]
pub struct Reserve {
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
    /// The operator's token.
    #[command(flatten)]
    token: TokenSource,
    /// The gateway, as all participants reach it.
    #[arg(long, value_name = "URL")]
    gateway: String,
    /// Your own name, for the others.
    #[arg(long)]
    name: String,
    /// Another participant: a name, and its public key where you have checked it out of band.
    #[arg(long = "participant", value_name = "NAME[=PUBLIC_KEY]", required = true, value_parser = participant)]
    participants: Vec<ParticipantAsked>,
    /// A group that can sign without the others.
    #[arg(long = "subset", value_name = "NAME,NAME[,...]", value_parser = names)]
    subsets: Vec<Names>,
    /// What becomes of the key where an item does not say its own, in this order.
    #[arg(long = "tweak", value_name = "TWEAK", value_parser = tweak, help = TWEAK_HELP)]
    tweaks: Vec<TweakStep>,
    /// Who may request signatures.
    #[arg(long, value_enum, default_value_t = RequesterOption::Coordinator)]
    requesters: RequesterOption,
    /// The most items of one request.
    #[arg(long, value_name = "COUNT", default_value_t = ITEMS_MAX as u64)]
    items_max: u64,
    /// After how many days signing ends for good.
    #[arg(long, value_name = "DAYS")]
    expires_days: Option<u32>,
    /// How long participants have to join; the gateway's default otherwise.
    #[arg(long, value_name = "SECONDS")]
    join_within: Option<u32>,
    #[command(flatten)]
    rules: RuleOptions,
    /// Begin another keygen although the same one was begun here before.
    #[arg(long)]
    new: bool,
}

/// How `--tweak` is written.
pub const TWEAK_HELP: &str = "A tweak of the key: taproot, taproot:MERKLE_ROOT, plain:SCALAR or xonly:SCALAR; \
                              several are applied in order";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RequesterOption {
    Coordinator,
    AnyParticipant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParticipantAsked {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKey>,
}

/// Names, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Names(pub Vec<String>);

/// A plan as it was asked for: what makes two `reserve` commands the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReserveAsked {
    name: String,
    participants: Vec<ParticipantAsked>,
    subsets: Vec<Names>,
    tweaks: Vec<TweakStep>,
    requesters: Requesters,
    items_max: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    join_within: Option<u32>,
    rules: RulesAsked,
}

fn participant(text: &str) -> Result<ParticipantAsked, String> {
    let (name, key) = match text.split_once('=') {
        Some((name, key)) => (name, Some(key)),
        None => (text, None),
    };
    if name.is_empty() || name.contains(',') {
        return Err("a name has at least one character, and no comma".into());
    }
    let public_key = key.map(PublicKey::from_hex).transpose();
    let public_key = public_key.map_err(|_| "a public key is 66 lower-case hex digits".to_owned())?;
    Ok(ParticipantAsked { name: name.to_owned(), public_key })
}

/// Reads `NAME,NAME`.
///
/// # Errors
/// For clap.
pub fn names(text: &str) -> Result<Names, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    if names.len() < 2 || names.iter().any(String::is_empty) {
        return Err("at least two names, separated by commas".into());
    }
    Ok(Names(names))
}

/// Reads a tweak.
///
/// # Errors
/// For clap.
pub fn tweak(text: &str) -> Result<TweakStep, String> {
    let (kind, hash) = match text.split_once(':') {
        Some((kind, hex)) => {
            let hash = Hash::from_hex(hex).map_err(|_| "64 lower-case hex digits belong after the colon")?;
            (kind, Some(hash))
        }
        None => (text, None),
    };
    match (kind, hash) {
        ("taproot", merkle_root) => Ok(TweakStep::Taproot { merkle_root }),
        ("plain", Some(scalar)) => Ok(TweakStep::Plain(scalar)),
        ("xonly", Some(scalar)) => Ok(TweakStep::XOnly(scalar)),
        _ => Err("taproot, taproot:MERKLE_ROOT, plain:SCALAR or xonly:SCALAR".into()),
    }
}

/// What `reserve` and `init` print.
#[derive(Serialize)]
struct KeygenReport {
    keygen_id: KeygenId,
    user_id: UserId,
    /// Whether an earlier command began this keygen.
    resumed: bool,
}

impl Reserve {
    fn asked(&self) -> ReserveAsked {
        ReserveAsked {
            name: self.name.clone(),
            participants: self.participants.clone(),
            subsets: self.subsets.clone(),
            tweaks: self.tweaks.clone(),
            requesters: match self.requesters {
                RequesterOption::Coordinator => Requesters::Coordinator,
                RequesterOption::AnyParticipant => Requesters::AnyParticipant,
            },
            items_max: self.items_max,
            expires_days: self.expires_days,
            join_within: self.join_within,
            rules: self.rules.asked(),
        }
    }

    /// A keygen that was begun in this directory by the same command.
    fn begun(&self, home: &Home, asked: &Asked) -> Result<Option<KeygenId>, Failure> {
        if self.new {
            return Ok(None);
        }
        let named = self.member.keygen;
        for id in home.keygens()?.into_iter().filter(|id| named.is_none_or(|named| named == *id)) {
            let session: (String, Asked) = home.keygen(Some(id))?.session()?;
            if session == (self.gateway.clone(), asked.clone()) {
                return Ok(Some(id));
            }
        }
        // A new one has an id that nobody can name.
        named.map_or(Ok(None), |named| Err(HomeError::UnknownKeygen(named).into()))
    }

    fn plan(&self, asked: &ReserveAsked, now_unix_ms: u64) -> Result<Plan, Failure> {
        let all: Vec<&str> = [self.name.as_str()]
            .into_iter()
            .chain(self.participants.iter().map(|participant| participant.name.as_str()))
            .collect();
        let place = |name: &String| -> Result<usize, Failure> {
            let mut found = all.iter().enumerate().filter(|(_, other)| **other == name.as_str());
            match (found.next(), found.next()) {
                (Some((place, _)), None) => Ok(place),
                (None, _) => Err(Contradiction::UnknownName(name.clone()).into()),
                (Some(_), Some(_)) => Err(Contradiction::AmbiguousName(name.clone()).into()),
            }
        };
        // Invites and subsets are asked for by name.
        for name in &all {
            place(&(*name).to_owned())?;
        }
        let subsets = self.subsets.iter().map(|subset| subset.0.iter().map(place).collect());
        let invitee = |participant: &ParticipantAsked| Invitee {
            name: Some(participant.name.clone()),
            signing_key: participant.public_key,
        };
        Ok(Plan {
            name: Some(self.name.clone()),
            subsets: subsets.collect::<Result<_, Failure>>()?,
            default_tweak: self.tweaks.clone(),
            requesters: asked.requesters,
            limits: ManifestLimits { items_max: self.items_max },
            expires_at: self.expires_days.map(|days| now_unix_ms + u64::from(days) * DAY_MS),
            timeout_ms: self.join_within.map(|seconds| u64::from(seconds) * 1_000),
            ..Plan::new(
                self.gateway.clone(),
                self.participants.iter().map(invitee).collect(),
                asked.rules.rules(now_unix_ms),
            )
        })
    }

    fn begin(&self) -> Result<(Seat, bool), Failure> {
        let home = Home::open_or_make(&self.member.home)?;
        let key = self.member.key.read()?;
        let token = self.token.read()?;
        let asked = self.asked();
        let session = Asked::Reserve(asked.clone());
        if let Some(id) = self.begun(&home, &session)? {
            let folder = home.keygen(Some(id))?;
            return Ok((self.member.resume_in(home, folder, key, token)?, true));
        }
        let http = self.member.vouchers.client(&self.gateway)?;
        let config = self.member.config(&home, &http, token)?;
        let unix_ms = now_unix_ms();
        let plan = self.plan(&asked, unix_ms)?;
        let now = Time { unix_ms, mono_ms: 0 };
        let client = Client::coordinate(config, key, plan, now, &mut os_entropy())?;
        let folder = home.begin(client.keygen_id(), &self.gateway, &session)?;
        Ok((self.member.seat(home, folder, http, client)?, false))
    }
}

/// `keymeld reserve`.
///
/// # Errors
/// [`Failure`].
pub fn reserve(options: &Reserve) -> Result<Report, Failure> {
    let (mut seat, resumed) = options.begin()?;
    seat.run(Job::Reserve)?;
    let report =
        KeygenReport { keygen_id: seat.machine().keygen_id(), user_id: seat.machine().user_id(), resumed };
    let text = format!(
        "keygen {} is reserved for {} participants; next: keymeld init",
        report.keygen_id,
        options.participants.len() + 1
    );
    Ok(Report::new(&report, text))
}

/// Publish the manifest of a reserved keygen, sealed for its participants. Invites exist from then on.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  keymeld init --home alice --key-file alice.key --policy policy.json")]
pub struct Init {
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
    /// The operator's token.
    #[command(flatten)]
    token: TokenSource,
}

/// `keymeld init`.
///
/// # Errors
/// [`Failure`].
pub fn init(options: &Init) -> Result<Report, Failure> {
    let mut seat = options.member.resume(options.token.read()?)?;
    if !seat.machine().is_coordinator() {
        return Err(Contradiction::NotCoordinator.into());
    }
    let resumed = !seat.machine().invites().is_empty();
    seat.run(Job::Init)?;
    let report =
        KeygenReport { keygen_id: seat.machine().keygen_id(), user_id: seat.machine().user_id(), resumed };
    let text = format!("keygen {} is initialised; next: keymeld invite NAME --out FILE", report.keygen_id);
    Ok(Report::new(&report, text))
}

/// Write a participant's invite to a file. It is a secret: hand it over where nobody else can read it.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n",
    "  keymeld invite Bob --out bob.invite --home alice --key-file alice.key --policy policy.json"
))]
pub struct InviteOptions {
    /// Whose, as `reserve` named it.
    name: String,
    /// The file, which is made with mode 0600.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

/// What `invite` prints.
#[derive(Serialize)]
struct InviteReport {
    keygen_id: KeygenId,
    user_id: UserId,
    name: String,
    file: String,
}

/// `keymeld invite`.
///
/// # Errors
/// [`Failure`].
pub fn invite(options: &InviteOptions) -> Result<Report, Failure> {
    let seat = options.member.resume(None)?;
    let (_, asked): (String, Asked) = seat.folder().session()?;
    let Asked::Reserve(asked) = asked else { return Err(Contradiction::NotCoordinator.into()) };
    let place = asked.participants.iter().position(|participant| participant.name == options.name);
    let place = place.ok_or_else(|| Contradiction::UnknownName(options.name.clone()))?;
    // The machine has them in the plan's order, and only once the manifest is published.
    let invite = seat.machine().invites().get(place).ok_or(Contradiction::NotInitialised)?;
    let bytes = invite.encode()?;
    match kept::write_new(&options.out, &bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let same = kept::read_private(&options.out, INVITE_BYTES_MAX)?;
            if same.is_none_or(|there| *there != *bytes) {
                return Err(Contradiction::FileExists(options.out.clone()).into());
            }
        }
        Err(error) => return Err(Failure::File(options.out.clone(), error)),
    }
    let file = options.out.display().to_string();
    let report = InviteReport {
        keygen_id: invite.keygen_id,
        user_id: invite.user_id,
        name: options.name.clone(),
        file: file.clone(),
    };
    let text = format!("{file}: the invite of {}; it is a secret", shown::text(&options.name));
    Ok(Report::new(&report, text))
}

/// Verify the slot's enclave and register there: from then on it holds your key.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld join --invite bob.invite --home bob --key-file bob.key --policy policy.json\n",
    "  keymeld join --home alice --key-file alice.key --policy policy.json      (the coordinator)\n\n",
    "Without --delegate every request for signatures waits for your approval. A registration is kept before it\n",
    "is sent, and the same command again sends it again as it was."
))]
pub struct Join {
    /// The invite that the coordinator handed over (mode 0600), or - for standard input.
    #[arg(long, value_name = "FILE")]
    invite: Option<PathBuf>,
    #[command(flatten)]
    rules: RuleOptions,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

/// What `join` prints.
#[derive(Serialize)]
struct JoinReport {
    keygen_id: KeygenId,
    user_id: UserId,
    enclave_id: Option<EnclaveId>,
    resumed: bool,
}

impl Join {
    fn begin(&self) -> Result<(Seat, bool), Failure> {
        let Some(file) = &self.invite else {
            return Ok((self.resume()?, true));
        };
        let bytes = given::read_file(file, INVITE_BYTES_MAX)?;
        let invite = Invite::decode(bytes.trim_ascii());
        let invite = invite.map_err(|code| Contradiction::BadInvite(file.clone(), code))?;
        if self.member.keygen.is_some_and(|named| named != invite.keygen_id) {
            return Err(Contradiction::OtherKeygen(invite.keygen_id).into());
        }
        let home = Home::open_or_make(&self.member.home)?;
        let key = self.member.key.read()?;
        let asked = self.rules.asked();
        if home.keygens()?.contains(&invite.keygen_id) {
            let folder = home.keygen(Some(invite.keygen_id))?;
            let (_, before): (String, Asked) = folder.session()?;
            let seat = self.member.resume_in(home, folder, key, None)?;
            return if seat.machine().user_id() != invite.user_id {
                Err(Contradiction::OtherInvite.into())
            } else if before != Asked::Join(asked) {
                Err(Contradiction::OtherRules.into())
            } else {
                Ok((seat, true))
            };
        }
        let http = self.member.vouchers.client(&invite.gateway_url)?;
        let config = self.member.config(&home, &http, None)?;
        let url = invite.gateway_url.clone();
        let client = Client::join(config, key, invite, asked.rules(now_unix_ms()))?;
        let folder = home.begin(client.keygen_id(), &url, &Asked::Join(asked))?;
        Ok((self.member.seat(home, folder, http, client)?, false))
    }

    /// Without an invite: the coordinator, whose rules were set when it reserved, or whoever joined before.
    fn resume(&self) -> Result<Seat, Failure> {
        let seat = self.member.resume(None).map_err(|failure| match failure {
            Failure::Home(HomeError::Missing(_) | HomeError::NoKeygen) => Contradiction::NoInvite.into(),
            failure => failure,
        })?;
        let (_, before): (String, Asked) = seat.folder().session()?;
        let before = match before {
            Asked::Reserve(asked) => asked.rules,
            Asked::Join(asked) => asked,
        };
        let asked = self.rules.asked();
        let unsaid = RulesAsked { valid_days: VALID_DAYS, ..RulesAsked::default() };
        if asked == unsaid || asked == before { Ok(seat) } else { Err(Contradiction::OtherRules.into()) }
    }
}

impl Default for RulesAsked {
    fn default() -> Self {
        RulesAsked { delegate: false, allow_any_requester: false, allow_blind: false, valid_days: VALID_DAYS }
    }
}

/// `keymeld join`.
///
/// # Errors
/// [`Failure`].
pub fn join(options: &Join) -> Result<Report, Failure> {
    let (mut seat, _) = options.begin()?;
    let resumed = seat.machine().is_registered();
    seat.run(Job::Join)?;
    let machine = seat.machine();
    let report = JoinReport {
        keygen_id: machine.keygen_id(),
        user_id: machine.user_id(),
        enclave_id: machine.birth().map(|(enclave_id, _)| enclave_id),
        resumed,
    };
    let consent = match machine.rules().approval {
        ApprovalRule::Required => "every request needs your approval",
        ApprovalRule::Delegated => "the coordinator's requests need no approval",
    };
    let text = format!(
        "joined keygen {}: an attested enclave holds the key; {consent}, until {}; next: keymeld roster --wait",
        report.keygen_id,
        shown::time(machine.rules().valid_until)
    );
    Ok(Report::new(&report, text))
}
