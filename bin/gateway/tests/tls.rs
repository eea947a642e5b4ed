//! A gateway process that speaks TLS: certificates from files, read again at SIGHUP.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use keymeld_core::api::http::Method;
use keymeld_transport::http::client::{Client, ClientError, Outgoing, Roots};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signs").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate for the loopback address and its key where the settings below look for them.
    fn certify(&self, folder: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        fs::write(folder.join("certificate.pem"), certificate.pem()).expect("writes");
        fs::write(folder.join("key.pem"), key.serialize_pem()).expect("writes");
    }
}

fn command(folder: &Path) -> Command {
    let file = folder.join("gateway.toml");
    let text = "listen = \"127.0.0.1:0\"\ndatabase = \"gateway.db\"\n\
                [tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n\
                [[enclaves]]\nid = \"5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47\"\naddress = \"unix:nobody.sock\"\n";
    fs::write(&file, text).expect("writes");
    let mut command = Command::new(env!("CARGO_BIN_EXE_keymeld-gateway"));
    command.arg("--config").arg(file).current_dir(folder);
    command
}

struct Gateway {
    child: Child,
    url: String,
    log: Lines<BufReader<ChildStderr>>,
}

impl Gateway {
    fn start(folder: &Path) -> Gateway {
        let mut child =
            command(folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("{\"listening\":\"").and_then(|rest| rest.strip_suffix("\"}"));
        let url = format!("https://{}", address.expect("an address"));
        let log = BufReader::new(child.stderr.take().expect("piped")).lines();
        Gateway { child, url, log }
    }

    /// The status of a request by a new client that trusts one authority.
    fn asked(&self, authority: &Authority) -> Result<u16, ClientError> {
        let roots = Roots::from_pem(authority.pem.as_bytes()).expect("a certificate");
        let client = Client::with_roots(&self.url, &roots).expect("a URL");
        let outgoing = Outgoing {
            method: Method::Get,
            target: "/api/v1/health",
            proof: None,
            authorization: None,
            body: b"",
            timeout_ms: 10_000,
        };
        client.send(&outgoing).map(|reply| reply.status)
    }

    fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &process]).status().expect("kill runs").success());
    }

    /// Reads the log until a line says this.
    fn says(&mut self, text: &str) -> String {
        let mut lines = self.log.by_ref().map(|line| line.expect("text"));
        lines.find(|line| line.contains(text)).expect("the gateway still runs")
    }
}

#[test]
fn a_hangup_has_the_certificate_read_again_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Authority::new(), Authority::new());
    old.certify(folder.path());
    let mut gateway = Gateway::start(folder.path());
    assert_eq!(gateway.asked(&old), Ok(200));
    assert_eq!(gateway.asked(&new), Err(ClientError::Untrusted));

    fs::write(folder.path().join("key.pem"), "no key").expect("writes");
    gateway.signal("HUP");
    assert!(gateway.says("stay as they were").contains("key.pem: no usable private key"));
    assert_eq!(gateway.asked(&old), Ok(200));

    new.certify(folder.path());
    gateway.signal("HUP");
    gateway.says("were read again");
    assert_eq!(gateway.asked(&new), Ok(200));
    assert_eq!(gateway.asked(&old), Err(ClientError::Untrusted));

    fs::remove_file(folder.path().join("certificate.pem")).expect("removes");
    gateway.signal("HUP");
    gateway.says("stay as they were");
    assert_eq!(gateway.asked(&new), Ok(200));

    gateway.signal("TERM");
    assert_eq!(gateway.child.wait().expect("ends").code(), Some(0));
}

#[test]
fn without_a_usable_certificate_it_does_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |expected: &str| {
        for check in [false, true] {
            let mut command = command(folder.path());
            if check {
                command.arg("--check-config");
            }
            let output = command.output().expect("runs");
            let reason = String::from_utf8(output.stderr).expect("text");
            assert_eq!(output.status.code(), Some(2), "{reason}");
            assert!(reason.contains(expected), "{reason}");
        }
    };
    refused("certificate.pem: ");
    Authority::new().certify(folder.path());
    let key = fs::read(folder.path().join("key.pem")).expect("reads");
    Authority::new().certify(folder.path());
    fs::write(folder.path().join("key.pem"), key).expect("writes");
    refused("key.pem: not the key of the certificate");
    assert!(!folder.path().join("gateway.db").exists());
}
