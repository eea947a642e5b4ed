//! `enclaves`: who a gateway's enclaves are, by their own attestations.

use std::fmt::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use keymeld_core::api::http::Method;
use keymeld_core::api::rest::{AttestationResponse, EnclaveView, EnclavesResponse};
use keymeld_core::attestation::AttestationError;
use keymeld_core::attestation::policy::{ClientAttestation, Policy};
use keymeld_core::bytes::{Hash, PublicKey, XOnlyKey};
use keymeld_core::id::EnclaveId;
use keymeld_core::limits::ANSWER_BYTES_MAX;
use keymeld_core::refusal::Code;
use keymeld_core::strict;
use keymeld_transport::http::client::{Client as Http, Outgoing};
use serde::{Deserialize, Serialize};

use super::seat::now_unix_ms;
use super::{End, Failure, Report, Timeout, Vouchers};
use crate::home::Home;
use crate::{given, os_entropy, shown};

/// Between two looks at enclaves that are not ready: the API has no long poll for it.
const PAUSE: Duration = Duration::from_millis(100);

/// List a gateway's enclaves, and check each one's attestation against the policy.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n  keymeld enclaves --wait --gateway http://127.0.0.1:8080 --policy policy.json\n\n",
    "Ends with 4 if an enclave that is ready is not to be trusted, and with 3 if one is away. With --home what is\n",
    "seen of epochs is kept, so that no key ever goes to an older one."
))]
pub struct Enclaves {
    /// The gateway.
    #[arg(long, value_name = "URL")]
    gateway: String,
    /// Which enclaves are trusted, JSON.
    #[arg(long, value_name = "FILE", env = "KEYMELD_POLICY")]
    policy: PathBuf,
    /// Wait until all enclaves are ready.
    #[arg(long)]
    wait: bool,
    /// The state directory, of mode 0700.
    #[arg(long, value_name = "DIR", env = "KEYMELD_HOME")]
    home: Option<PathBuf>,
    #[command(flatten)]
    vouchers: Vouchers,
    #[command(flatten)]
    timeout: Timeout,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct EnclavesReport {
    enclaves: Vec<EnclaveReport>,
}

#[derive(Serialize)]
struct EnclaveReport {
    enclave_id: EnclaveId,
    ready: bool,
    epochs: Vec<u32>,
    trusted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attested: Option<AttestedReport>,
}

#[derive(Serialize)]
struct AttestedReport {
    epoch: u32,
    birth_time_ms: u64,
    pcr0: String,
    config_hash: Hash,
    enclave_key: PublicKey,
    identity_key: XOnlyKey,
}

/// `keymeld enclaves`.
///
/// # Errors
/// [`Failure`].
pub fn enclaves(options: &Enclaves) -> Result<Report, Failure> {
    let policy = given::policy(&options.policy)?;
    let http = options.vouchers.client(&options.gateway)?;
    let home = options.home.as_deref().map(Home::open_or_make).transpose()?;
    let births = home.as_ref().map(Home::births).transpose()?.unwrap_or_default();
    let shown = list(&http, options)?;
    let mut reports = Vec::with_capacity(shown.enclaves.len());
    for EnclaveView { enclave_id, ready, epochs } in shown.enclaves {
        let mut report =
            EnclaveReport { enclave_id, ready, epochs, trusted: false, reason: None, attested: None };
        if ready {
            let newest = births.get(&enclave_id).copied();
            match attest(&http, &policy, enclave_id, newest, options.timeout)? {
                Ok(attestation) => {
                    if let Some(home) = &home {
                        home.keep_births([(enclave_id, attestation.birth_time_ms)])?;
                    }
                    report.trusted = true;
                    report.attested = Some(attested(&attestation));
                }
                Err(error) => report.reason = Some(error.to_string()),
            }
        }
        reports.push(report);
    }
    let doubtful = reports.iter().any(|report| report.ready && !report.trusted);
    let away = reports.iter().any(|report| !report.ready);
    let report = EnclavesReport { enclaves: reports };
    let end = match (doubtful, away) {
        (true, _) => End::Unverified,
        (false, true) => End::NotYet,
        (false, false) => End::Done,
    };
    Ok(Report::new(&report, text(&report)).ending(end))
}

/// The enclaves, once all are ready where that is waited for.
fn list(http: &Http, options: &Enclaves) -> Result<EnclavesResponse, Failure> {
    let began = Instant::now();
    let patience = Duration::from_millis(options.timeout.ms());
    loop {
        let outcome = ask::<EnclavesResponse>(http, "/api/v1/enclaves", options.timeout);
        let settled = match &outcome {
            Ok(shown) => shown.enclaves.iter().all(|enclave| enclave.ready),
            Err(_) => false,
        };
        if settled || !options.wait || began.elapsed() >= patience {
            return outcome;
        }
        thread::sleep(PAUSE);
    }
}

fn attest(
    http: &Http,
    policy: &Policy,
    enclave_id: EnclaveId,
    newest: Option<u64>,
    timeout: Timeout,
) -> Result<Result<ClientAttestation, AttestationError>, Failure> {
    let nonce = Hash(os_entropy().bytes().map_err(Code::from)?);
    let target = format!("/api/v1/enclaves/{enclave_id}/attestation?nonce={nonce}");
    let shown: AttestationResponse = ask(http, &target, timeout)?;
    let checked = policy.check_for_registration(now_unix_ms(), &shown.document.0, &nonce.0, newest);
    Ok(checked.and_then(|attestation| {
        if attestation.enclave_id == enclave_id.0 {
            Ok(attestation)
        } else {
            Err(AttestationError::EnclaveIdDiffers)
        }
    }))
}

fn attested(attestation: &ClientAttestation) -> AttestedReport {
    AttestedReport {
        epoch: attestation.epoch,
        birth_time_ms: attestation.birth_time_ms,
        pcr0: attestation.pcr0.iter().map(|byte| format!("{byte:02x}")).collect(),
        config_hash: Hash(attestation.config_hash),
        enclave_key: PublicKey(attestation.ecies_key),
        identity_key: XOnlyKey(attestation.identity_key),
    }
}

/// Asks what anybody may ask.
fn ask<T>(http: &Http, target: &str, timeout: Timeout) -> Result<T, Failure>
where
    T: for<'de> Deserialize<'de> + Serialize,
{
    let outgoing = Outgoing {
        method: Method::Get,
        target,
        proof: None,
        authorization: None,
        body: b"",
        timeout_ms: timeout.ms(),
    };
    let response = http.send(&outgoing)?;
    if response.status != 200 {
        return Err(Failure::BadAnswer);
    }
    strict::from_json(&response.body, ANSWER_BYTES_MAX).map_err(|_| Failure::BadAnswer)
}

fn text(report: &EnclavesReport) -> String {
    let mut text = String::new();
    for EnclaveReport { enclave_id, ready, reason, attested, .. } in &report.enclaves {
        let verdict = match (ready, attested, reason) {
            (false, _, _) => "away".to_owned(),
            (true, Some(attested), _) => {
                format!("trusted, epoch {} of {}", attested.epoch, shown::time(attested.birth_time_ms))
            }
            (true, None, reason) => format!("NOT TRUSTED: {}", reason.as_deref().unwrap_or_default()),
        };
        writeln!(text, "{enclave_id}  {verdict}").expect("a string takes everything");
    }
    text
}
