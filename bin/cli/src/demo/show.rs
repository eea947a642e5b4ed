//! What the demo shows: steps for people, or one JSON object.

use std::path::Path;
use std::time::Instant;

use keymeld_core::bytes::{Message, Signature, XOnlyKey};
use keymeld_core::id::{ItemId, KeygenId};
use serde::Serialize;

use super::Options;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) keygen_id: KeygenId,
    pub(super) participants: usize,
    pub(super) enclaves: usize,
    pub(super) aggregate_public_key: XOnlyKey,
    pub(super) signatures: Vec<ReportedSignature>,
    pub(super) timings_ms: Timings,
    pub(super) verified: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct ReportedSignature {
    pub(super) item_id: ItemId,
    pub(super) message: Message,
    pub(super) signature: Signature,
}

#[derive(Debug, Serialize)]
pub(super) struct Timings {
    pub(super) keygen: u64,
    pub(super) signing: u64,
}

/// Signatures that are shown one by one.
const SHOWN_MAX: usize = 3;

pub(super) struct Show {
    quiet: bool,
}

impl Show {
    pub(super) fn new(quiet: bool) -> Show {
        Show { quiet }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }

    pub(super) fn title(&self, options: &Options) {
        let Options { participants, enclaves, messages, require_approval, .. } = options;
        let consent = if *require_approval { "with everybody's approval" } else { "delegated" };
        self.say(&format!(
            "KeyMeld demo: {participants} participants, {enclaves} enclaves, {messages} messages, {consent}\n"
        ));
    }

    pub(super) fn step(&self, since: Instant, what: &str) {
        self.say(&format!("{:>7} ms  {what}", since.elapsed().as_millis()));
    }

    pub(super) fn fact(&self, name: &str, value: &str) {
        self.say(&format!("            {name}: {value}"));
    }

    pub(super) fn end(&self, report: &Report, kept: Option<&Path>) {
        for signed in report.signatures.iter().take(SHOWN_MAX) {
            self.fact("signature", &signed.signature.to_string());
        }
        if report.signatures.len() > SHOWN_MAX {
            self.say(&format!("            and {} more", report.signatures.len() - SHOWN_MAX));
        }
        match kept {
            Some(folder) => self.say(&format!("\nDone. Everything is in {}.", folder.display())),
            None => self.say("\nDone. Nothing is left behind."),
        }
    }
}
