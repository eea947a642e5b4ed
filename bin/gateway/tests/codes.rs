//! `docs/CODES.md` is made from the codes themselves. To write it anew:
//! `KEYMELD_GOLDEN=write cargo test -p keymeld-gateway --test codes`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use keymeld_core::refusal::{Code, Retry};
use keymeld_transport::http::server::Refusal;

/// Codes by their hundreds.
const CHAPTERS: [(u16, &str); 6] = [
    (100, "What cannot be read"),
    (200, "Who asks"),
    (300, "Sessions, and the gateway itself"),
    (400, "Participants and their keys"),
    (500, "Enclaves, envelopes and rosters"),
    (600, "Intents and signatures"),
];

const HEAD: &str = "\
# Codes

<!-- Made from the code: KEYMELD_GOLDEN=write cargo test -p keymeld-gateway --test codes -->

Every refusal is `application/problem+json` (RFC 9457): `type` is `urn:keymeld:problem:` and the code, `title` the
text below, `status` the status, `code` the stable name; `culprits` names users where that is certain, and `now` is the
gateway's time with a stale proof. Numbers stand in frames and records. Neither names nor numbers ever change.

**A refused request changed nothing**, whatever its code; only `unanswered` and `answer-timed-out` leave it open
(send the same bytes again: every POST is idempotent by its id). The same codes say, in the `failure` of a status, why
a session ended, and, in a client, why it does not believe what it got.

**Again**: *later*: the same request may succeed, after the seconds in `Retry-After`; *signed anew*: at once, with a
fresh proof; *no*: not before it, or what it is about, is another.
";

fn again(retry: Retry) -> &'static str {
    match retry {
        Retry::Later => "later",
        Retry::WithFreshProof => "signed anew",
        Retry::Never => "no",
    }
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (first, title) in CHAPTERS {
        write!(page, "\n## {title}\n\n| number | code | status | again | what happened, and what to do |\n")
            .expect("a string takes all");
        page.push_str("|---|---|---|---|---|\n");
        for code in Code::ALL.iter().filter(|code| (first..first + 100).contains(&code.number())) {
            let (number, status, advice) = (code.number(), code.status(), code.advice());
            writeln!(page, "| {number} | `{code}` | {status} | {} | {advice} |", again(code.retry()))
                .expect("a string takes all");
        }
    }
    page.push_str("\n## The listener's own\n\nBefore or instead of the API; each closes the connection.\n\n");
    page.push_str("| code | status | again | what happened, and what to do |\n|---|---|---|---|\n");
    for refusal in Refusal::ALL.iter().filter(|refusal| Code::from_name(refusal.code()).is_none()) {
        let later = refusal.response().retry_after_s.is_some();
        let again = again(if later { Retry::Later } else { Retry::Never });
        writeln!(page, "| `{}` | {} | {again} | {} |", refusal.code(), refusal.status(), refusal.title())
            .expect("a string takes all");
    }
    page
}

#[test]
fn the_page_of_codes_says_what_the_code_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CODES.md");
    if std::env::var("KEYMELD_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(&file, page()).expect("writes");
    }
    let written = std::fs::read_to_string(&file).expect("docs/CODES.md is there");
    assert!(written == page(), "docs/CODES.md is not what the code says; write it anew");
}

#[test]
fn the_page_leaves_no_code_out() {
    let page = page();
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains(" | `"));
    let listed = rows.count() + page.lines().filter(|line| line.starts_with("| `")).count();
    let names: BTreeSet<&str> =
        Code::ALL.iter().map(|code| code.name()).chain(Refusal::ALL.iter().map(|one| one.code())).collect();
    assert_eq!(listed, names.len());
    for name in names {
        assert_eq!(page.matches(&format!("| `{name}` |")).count(), 1, "{name}");
    }
}

#[test]
fn every_text_says_what_happened_and_what_to_do() {
    let texts = Code::ALL.iter().map(|code| code.advice());
    for text in texts.chain(Refusal::ALL.iter().map(|refusal| refusal.title())) {
        let sentences = text.split_inclusive(['.', ';', ':']).filter(|part| part.trim().len() > 3).count();
        assert!(text.ends_with('.') && sentences >= 2, "{text}");
        assert!(text.len() <= 120, "{} bytes: {text}", text.len());
    }
}
