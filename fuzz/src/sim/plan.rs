//! What a seed means: who is there, what people want, and what goes wrong.

use keymeld_core::artifact::manifest::Requesters;
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::Hash;

use super::chance::Chance;

/// Everything that a seed decides before anything happens.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) enclaves: usize,
    /// Machines in each enclave.
    pub(crate) workers: usize,
    pub(crate) circles: Vec<CirclePlan>,
    /// The gateway's memory, in sessions.
    pub(crate) sessions_max: Option<usize>,
    /// Whether the wire is in hostile hands.
    pub(crate) hostile: bool,
    /// From then on nothing goes wrong any more.
    pub(crate) quiet_ms: u64,
    pub(crate) rates: Rates,
    /// Whether somebody follows every session's status from state to state.
    pub(crate) watched: bool,
    /// How often each enclave gets a new epoch.
    pub(crate) rotations: u64,
}

/// How often something goes wrong: once in so many times, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// Something becomes of an HTTP exchange.
    pub(crate) exchange: u64,
    /// A frame is late.
    pub(crate) frame: u64,
    /// A frame gets lost with its link.
    pub(crate) cut: u64,
    /// The gateway dies at a batch.
    pub(crate) gateway: u64,
    /// A commit or a read fails.
    pub(crate) disk: u64,
    /// An enclave dies at a frame.
    pub(crate) enclave: u64,
    /// A client dies at a step.
    pub(crate) client: u64,
    /// A security module or a key service fails.
    pub(crate) services: u64,
    /// A generator stops working for a while; a clock jumps: how many in all.
    pub(crate) spells: u64,
    /// The hostile wire does something with a message.
    pub(crate) hostile: u64,
}

/// One keygen and what is signed with it.
#[derive(Debug)]
pub(crate) struct CirclePlan {
    /// The coordinator first.
    pub(crate) members: Vec<MemberPlan>,
    pub(crate) subsets: Vec<Vec<usize>>,
    pub(crate) default_tweak: Vec<TweakStep>,
    pub(crate) requesters: Requesters,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) wants: Vec<WantPlan>,
    /// Somebody never shows up, or has a key that is not its own.
    pub(crate) doomed: bool,
    pub(crate) starts_ms: u64,
}

/// One participant.
#[derive(Debug)]
pub(crate) struct MemberPlan {
    pub(crate) key: [u8; 32],
    pub(crate) pinned: bool,
    pub(crate) approves: bool,
    pub(crate) any_requester: bool,
    pub(crate) blind: bool,
    /// Never shows up.
    pub(crate) absent: bool,
    /// Helps the hostile gateway.
    pub(crate) colludes: bool,
}

/// A signing session that somebody wants.
#[derive(Debug)]
pub(crate) struct WantPlan {
    pub(crate) requester: usize,
    pub(crate) items: Vec<ItemPlan>,
    pub(crate) lifetime_ms: Option<u64>,
    /// What each member does about it.
    pub(crate) decisions: Vec<Decision>,
    /// After the requester has its key.
    pub(crate) starts_ms: u64,
    /// Whether the requester waits in one job.
    pub(crate) in_one: bool,
}

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct ItemPlan {
    pub(crate) kind: ItemKind,
    pub(crate) subset: Option<usize>,
    pub(crate) tweak: Option<Vec<TweakStep>>,
}

#[derive(Clone, Debug)]
pub(crate) enum ItemKind {
    Text(String),
    Bytes(Vec<u8>),
    Blind([u8; 32]),
}

/// What a member does about a request of somebody else, or of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Approve {
        blind: bool,
    },
    /// For a requester: cancel.
    Refuse,
    Ignore,
}

impl Plan {
    pub(crate) fn new(chance: &mut Chance, hostile: Option<bool>) -> Plan {
        let hostile_drawn = chance.one_in("hostile", 3);
        let hostile = hostile.unwrap_or(hostile_drawn);
        let enclaves = [1, 1, 2, 2, 2, 2, 3, 4][chance.place("enclaves", 8)];
        let circles = [1, 1, 1, 1, 1, 2, 2, 3][chance.place("circles", 8)];
        let mut plan = Plan {
            enclaves,
            workers: if chance.one_in("workers", 4) { 2 } else { 1 },
            circles: (0..circles).map(|_| circle(chance, circles, hostile)).collect(),
            sessions_max: None,
            hostile,
            quiet_ms: chance.between("quiet", 30_000, 240_000),
            rates: rates(chance, hostile),
            watched: chance.one_in("watched", 3),
            rotations: if chance.one_in("rotations", 4) { 1 } else { 0 },
        };
        if chance.one_in("small memory", 5) {
            // Long polls keep sessions in memory: with an honest wire all that people follow find room.
            let sessions: usize = plan.circles.iter().map(|circle| 1 + circle.wants.len()).sum();
            let fewer = chance.between("memory", 1, 3) as usize;
            plan.sessions_max = Some(if hostile { fewer } else { sessions });
        }
        plan
    }
}

impl CirclePlan {
    /// Whether the manifest forbids a request, so that its own client refuses it.
    pub(crate) fn forbids_request(&self, want: usize) -> bool {
        let WantPlan { requester, items, .. } = &self.wants[want];
        let signs =
            |item: &ItemPlan| item.subset.is_none_or(|subset| self.subsets[subset].contains(requester));
        let may_ask = self.requesters == Requesters::AnyParticipant && items.iter().all(signs);
        *requester != 0 && !may_ask
    }
}

/// The key whose point has the same x.
fn negated(key: &[u8; 32]) -> [u8; 32] {
    let key = secp256k1::SecretKey::from_secret_bytes(*key).expect("chance gives valid keys");
    *key.negate().as_secret_bytes()
}

fn rates(chance: &mut Chance, hostile: bool) -> Rates {
    let mut rates = Rates::default();
    let mut maybe = |what, one_in: u64, rate: u64| if chance.one_in(what, one_in) { rate } else { 0 };
    if maybe("calm", 8, 1) == 0 {
        rates.exchange = maybe("bad exchanges", 2, 6);
        rates.frame = maybe("late frames", 2, 5);
        rates.cut = maybe("cuts", 3, 20);
        rates.gateway = maybe("gateway crashes", 3, 12);
        rates.disk = maybe("disk failures", 4, 12);
        rates.enclave = maybe("enclave crashes", 3, 20);
        rates.client = maybe("client crashes", 3, 16);
        rates.services = maybe("service failures", 4, 5);
        rates.spells = maybe("spells", 3, 3);
    }
    if hostile {
        rates.hostile = [2, 3, 6][chance.place("hostility", 3)];
    }
    rates
}

fn circle(chance: &mut Chance, circles: u64, hostile: bool) -> CirclePlan {
    let count = if circles > 1 { [2, 2, 2, 3] } else { [2, 3, 3, 4] }[chance.place("members", 4)];
    let count = if chance.one_in("five members", 24) { 5 } else { count };
    // Whoever delegates to colluders has little left but what enclaves see to.
    let delegates = chance.one_in("all delegate", if hostile { 2 } else { 3 });
    let mut members: Vec<MemberPlan> = (0..count)
        .map(|index| MemberPlan {
            key: chance.bytes("key"),
            pinned: index == 0 || chance.one_in("pinned", 2),
            approves: !delegates && chance.one_in("approves", 2),
            any_requester: chance.one_in("any requester", 2),
            blind: chance.one_in("blind", 2),
            absent: index > 0 && chance.one_in("absent", 40),
            colludes: hostile && chance.one_in("colludes", 3),
        })
        .collect();
    // Somebody is honest: without that there is nothing to protect.
    let honest = chance.place("honest", count);
    members[honest].colludes = false;
    let doomed = match chance.below("copied key", 80) {
        0 => Some(members[0].key),
        1 | 2 => Some(negated(&members[0].key)),
        _ => None,
    };
    if let Some(key) = doomed {
        members[count - 1].key = key;
        members[count - 1].pinned = false;
    }
    let doomed = doomed.is_some() || members.iter().any(|member| member.absent);
    let mut subsets = Vec::new();
    if count > 2 && chance.one_in("subsets", 2) {
        let left_out = chance.place("left out", count);
        subsets.push((0..count).filter(|index| *index != left_out).collect());
        subsets.push(vec![0, 1 + chance.place("partner", count - 1)]);
    }
    let requesters = if chance.one_in("any participant", 2) {
        Requesters::AnyParticipant
    } else {
        Requesters::Coordinator
    };
    let wants = [1, 1, 2, 2, 3, 4][chance.place("wants", 6)];
    let wants = if circles > 1 { 1 } else { wants };
    CirclePlan {
        wants: (0..wants).map(|_| want(chance, &members, subsets.len(), requesters, hostile)).collect(),
        subsets,
        default_tweak: if chance.one_in("default tweak", 3) { tweak(chance) } else { Vec::new() },
        requesters,
        timeout_ms: (doomed || chance.one_in("deadline", 8))
            .then(|| chance.between("keygen deadline", 400_000, 600_000)),
        members,
        doomed,
        starts_ms: chance.below("circle starts", 5_000),
    }
}

fn tweak(chance: &mut Chance) -> Vec<TweakStep> {
    let count = chance.between("tweak steps", 1, 2);
    (0..count)
        .map(|_| match chance.below("tweak", 4) {
            0 => TweakStep::Plain(Hash(chance.bytes("tweak bytes"))),
            1 => TweakStep::XOnly(Hash(chance.bytes("tweak bytes"))),
            2 => TweakStep::Taproot { merkle_root: None },
            _ => TweakStep::Taproot { merkle_root: Some(Hash(chance.bytes("tweak bytes"))) },
        })
        .collect()
}

fn want(
    chance: &mut Chance,
    members: &[MemberPlan],
    subsets: usize,
    requesters: Requesters,
    hostile: bool,
) -> WantPlan {
    let by_participant = requesters == Requesters::AnyParticipant && chance.one_in("asked by another", 2);
    let requester = if by_participant { chance.place("requester", members.len()) } else { 0 };
    let items = [1, 1, 1, 2, 3][chance.place("items", 5)];
    let mut items: Vec<ItemPlan> = (0..items).map(|_| item(chance, subsets)).collect();
    // What is blind, and approved by those who do not look.
    let careless = hostile && chance.one_in("careless", 4);
    if careless {
        items[0].kind = ItemKind::Blind(chance.bytes("message"));
    }
    let contrary = chance.one_in("contrary", 5);
    let decisions = (0..members.len()).map(|index| match chance.below("decision", 6) {
        0 if contrary => Decision::Refuse,
        1 if contrary && index != requester => Decision::Ignore,
        2 if contrary && index != requester => Decision::Approve { blind: false },
        _ if careless && index != requester => Decision::Approve { blind: false },
        _ => Decision::Approve { blind: true },
    });
    let decisions = decisions.collect();
    WantPlan {
        requester,
        items,
        lifetime_ms: contrary.then(|| chance.between("lifetime", 60_000, 400_000)),
        decisions,
        starts_ms: chance.below("want starts", 20_000),
        in_one: chance.one_in("in one job", 2),
    }
}

fn item(chance: &mut Chance, subsets: usize) -> ItemPlan {
    let kind = match chance.below("item kind", 4) {
        0 => ItemKind::Blind(chance.bytes("message")),
        1 => ItemKind::Bytes(chance.bytes("message").to_vec()),
        _ => ItemKind::Text(format!("pay {:x} to {:x}", chance.draw("amount"), chance.draw("payee"))),
    };
    let subset = (subsets > 0 && chance.one_in("of a subset", 2)).then(|| chance.place("subset", subsets));
    let tweak = match chance.below("own tweak", 4) {
        0 => Some(Vec::new()),
        1 => Some(tweak(chance)),
        _ => None,
    };
    ItemPlan { kind, subset, tweak }
}
