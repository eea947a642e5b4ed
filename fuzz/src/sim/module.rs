//! Security modules in software. Their certificates cost more than most runs, so that a thread keeps them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use keymeld_core::entropy::test_entropy;
use keymeld_transport::nsm::Nsm as _;
use keymeld_transport::nsm::software::{LEAF_VALIDITY_S, Pcrs, SoftwareNsm, SoftwareRoot};

/// When every run begins, milliseconds since 1970.
pub(crate) const START: u64 = 1_800_000_000_000;
/// Until then no leaf is renewed.
const LEAF_LASTS_MS: u64 = START + (LEAF_VALIDITY_S - 10 * 60) * 1_000;

/// Whose certificates and registers a module has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Make {
    /// The image that everybody trusts.
    Genuine,
    /// Another image under the trusted root.
    OtherImage,
    /// Debug mode under the trusted root: all registers zeros.
    Debug,
    /// The right registers under a root of the host's own.
    OtherRoot,
}

fn root_of(make: Make) -> &'static SoftwareRoot {
    static TRUSTED: OnceLock<SoftwareRoot> = OnceLock::new();
    static OTHER: OnceLock<SoftwareRoot> = OnceLock::new();
    let generate = |seed| SoftwareRoot::generate(&mut test_entropy(seed)).expect("test entropy");
    match make {
        Make::Genuine | Make::OtherImage | Make::Debug => TRUSTED.get_or_init(|| generate(1)),
        Make::OtherRoot => OTHER.get_or_init(|| generate(2)),
    }
}

/// The root that everybody trusts.
pub(crate) fn root() -> &'static SoftwareRoot {
    root_of(Make::Genuine)
}

fn pcrs(make: Make) -> Pcrs {
    match make {
        Make::Genuine | Make::OtherRoot => Pcrs::default(),
        Make::OtherImage => Pcrs::of_label("another image"),
        Make::Debug => Pcrs { pcr0: [0; 48], ..Pcrs::default() },
    }
}

struct Kept {
    make: Make,
    number: u64,
    clock: Arc<AtomicU64>,
    module: SoftwareNsm,
    /// Whether it still has its first leaf: only then a run finds it as every other run does.
    fresh: bool,
}

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

fn made(make: Make, number: u64) -> Kept {
    let clock = Arc::new(AtomicU64::new(START));
    let read = Arc::clone(&clock);
    let entropy = test_entropy(1_000 + number + 100 * make as u64);
    let module = root_of(make).nsm(number, pcrs(make), move || read.load(Ordering::Relaxed), entropy);
    Kept { make, number, clock, module: module.expect("test entropy"), fresh: true }
}

/// A document of a module at a time.
pub(crate) fn document(
    (make, number): (Make, u64),
    unix_ms: u64,
    public_key: Option<&[u8]>,
    nonce: Option<&[u8]>,
    user_data: Option<&[u8]>,
) -> Vec<u8> {
    KEPT.with_borrow_mut(|kept| {
        let at = match kept.iter().position(|one| one.make == make && one.number == number) {
            Some(at) => at,
            None => {
                kept.push(made(make, number));
                kept.len() - 1
            }
        };
        if !kept[at].fresh && unix_ms < LEAF_LASTS_MS {
            kept[at] = made(make, number);
        }
        kept[at].fresh &= unix_ms < LEAF_LASTS_MS;
        kept[at].clock.store(unix_ms, Ordering::Relaxed);
        kept[at].module.attest(public_key, nonce, user_data).expect("short inputs")
    })
}
