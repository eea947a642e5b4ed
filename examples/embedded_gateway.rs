//! A gateway inside a service of one's own: its threads, its database, the service's own settings and its own end.
//!
//! ```text
//! cargo run -p keymeld-examples --example embedded_gateway            ends by itself
//! cargo run -p keymeld-examples --example embedded_gateway -- serve   ends on SIGTERM, SIGINT or the end of input
//! ```
//!
//! The enclave behind it is a development enclave in the same process, so that there is one. In earnest enclaves run
//! in Nitro, and `ENCLAVES` names them as `vsock:CID:PORT`.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, thread};

use keymeld_core::api::http::Method;
use keymeld_core::api::rest::HealthResponse;
use keymeld_core::limits::ANSWER_BYTES_MAX;
use keymeld_core::strict;
use keymeld_gateway::{Config, EnclaveAddress, HttpSettings};
use keymeld_transport::http::client::{Client as Http, Outgoing};
use keymeld_transport::process::stop::Stops;

const ENCLAVE_ID: &str = "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47";
/// How long enclaves may take to make their identities.
const READY_WITHIN: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let enclave = development_enclave(folder.path())?;

    // The settings come from wherever the service's own do.
    let enclaves = vec![EnclaveAddress { id: ENCLAVE_ID.parse()?, address: enclave.address().clone() }];
    let config = Config {
        drain_ms: 2_000,
        http: HttpSettings { connections_max: 64, ..HttpSettings::default() },
        ..Config::new("127.0.0.1:0".parse()?, folder.path().join("gateway.db"), enclaves)
    };
    // Nothing is left running where this fails. The service's own log gets the gateway's events: they are `tracing`'s.
    let gateway = keymeld_gateway::start(&config)?;
    let http = Http::new(&format!("http://{}", gateway.address()))?;
    println!("the gateway listens at {}", gateway.address());

    let began = Instant::now();
    loop {
        let HealthResponse { enclaves_ready, enclaves } = health(&http)?;
        if enclaves_ready == enclaves {
            println!("{enclaves} of {enclaves} enclaves ready after {} ms", began.elapsed().as_millis());
            break;
        }
        if began.elapsed() > READY_WITHIN {
            return Err("the enclave does not get ready".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    // The service does here what it is for; the gateway has its own threads.
    if env::args().nth(1).as_deref() == Some("serve") {
        println!("the service ends for this reason: {:?}", Stops::watch(true)?.wait());
    }

    // Answers what is under way, makes everything durable, ends its threads.
    gateway.stop();
    if health(&http).is_ok() {
        return Err("a stopped gateway answers".into());
    }
    enclave.stop();
    println!("gateway and enclave have ended");
    Ok(())
}

fn health(http: &Http) -> Result<HealthResponse, Box<dyn Error>> {
    let response = http.send(&Outgoing {
        method: Method::Get,
        target: "/api/v1/health",
        proof: None,
        authorization: None,
        body: b"",
        timeout_ms: 10_000,
    })?;
    Ok(strict::from_json(&response.body, ANSWER_BYTES_MAX)?)
}

fn development_enclave(folder: &Path) -> Result<keymeld_enclave::Running, Box<dyn Error>> {
    let text = format!(
        "enclave_id = {ENCLAVE_ID:?}\nlisten = \"tcp:127.0.0.1:0\"\n[development]\nstate_dir = {:?}\n",
        folder.join("development")
    );
    Ok(keymeld_enclave::start(&keymeld_enclave::Config::from_toml(&text, [])?)?)
}
