//! Every reason for which a document is refused, with documents that a software module made.

use std::convert::Infallible;

use keymeld_core::attestation::document::{CABUNDLE_COUNT_MAX, DOCUMENT_BYTES_MAX, Document};
use keymeld_core::attestation::policy::{ImagePcrs, Policy, SKEW_MS};
use keymeld_core::attestation::{
    AttestationError, BirthExpectation, BirthUserData, Root, ServiceUserData, verify, verify_at, verify_birth,
};
use keymeld_core::entropy::test_entropy;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{LEAF_VALIDITY_S, Pcrs, SoftwareNsm, SoftwareRoot};
use minicbor::Encoder;

const NOW_MS: u64 = 1_800_000_000_500;
const NONCE: [u8; 32] = [0x4e; 32];
const PREDECESSOR: [u8; 48] = [0x70; 48];

/// A root, its policy and one module.
struct Bench {
    root: Root,
    policy: Policy,
    nsm: SoftwareNsm,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_pcrs(Pcrs::default())
    }

    fn with_pcrs(pcrs: Pcrs) -> Bench {
        let software = SoftwareRoot::generate(&mut test_entropy(1)).expect("entropy");
        let root = Root::development(software.certificate()).expect("a certificate");
        let development = Pcrs::default();
        let policy = Policy {
            roots: vec![root.clone()],
            images: vec![ImagePcrs {
                pcr0: development.pcr0,
                pcr1: development.pcr1,
                pcr2: development.pcr2,
                pcr8: None,
            }],
            birth_pcr0: vec![development.pcr0, PREDECESSOR],
            config_hashes: vec![[0xcf; 32]],
            freshness_ms: 10_000,
        };
        let nsm = software.nsm(1, pcrs, || NOW_MS, test_entropy(2)).expect("a module");
        Bench { root, policy, nsm }
    }

    fn attest(&mut self, user_data: &ServiceUserData) -> Vec<u8> {
        self.nsm.attest(Some(&ecies_key()), Some(&NONCE), Some(&user_data.encode())).expect("attests")
    }

    fn check(&self, document: &[u8]) -> Option<AttestationError> {
        self.policy.check(NOW_MS, document, &NONCE).err()
    }

    fn check_user_data(&mut self, user_data: &ServiceUserData) -> Option<AttestationError> {
        let document = self.attest(user_data);
        self.check(&document)
    }

    fn fields(&self) -> Fields {
        let (certificate, cabundle) = self.nsm.certificates();
        Fields {
            module_id: self.nsm.module_id().to_owned(),
            digest: "SHA384".to_owned(),
            pcrs: vec![(0, vec![1; 48])],
            certificate: certificate.to_vec(),
            cabundle: cabundle.iter().map(|der| der.to_vec()).collect(),
            public_key: None,
            left_out: None,
            added: None,
            trailing: false,
        }
    }

    fn verify(&self, fields: &Fields) -> Option<AttestationError> {
        verify(&self.nsm.sign_payload(&fields.encode()), &self.root).err()
    }
}

/// A payload that no module would sign.
#[derive(Clone)]
struct Fields {
    module_id: String,
    digest: String,
    pcrs: Vec<(u16, Vec<u8>)>,
    certificate: Vec<u8>,
    cabundle: Vec<Vec<u8>>,
    public_key: Option<Vec<u8>>,
    left_out: Option<&'static str>,
    added: Option<&'static str>,
    trailing: bool,
}

type Encoded = Result<(), minicbor::encode::Error<Infallible>>;

impl Fields {
    fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        self.encode_all(&mut encoder).expect("writing to a Vec cannot fail");
        encoder.into_writer()
    }

    fn encode_all(&self, encoder: &mut Encoder<Vec<u8>>) -> Encoded {
        encoder.begin_map()?;
        for name in ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key"] {
            if self.left_out != Some(name) {
                self.encode_field(encoder, name)?;
            }
        }
        if let Some(name) = self.added {
            self.encode_field(encoder, name)?;
        }
        encoder.end()?;
        if self.trailing {
            encoder.null()?;
        }
        Ok(())
    }

    fn encode_field(&self, encoder: &mut Encoder<Vec<u8>>, name: &str) -> Encoded {
        encoder.str(name)?;
        match name {
            "module_id" => encoder.str(&self.module_id)?,
            "digest" => encoder.str(&self.digest)?,
            "timestamp" => encoder.u64(NOW_MS)?,
            "pcrs" => {
                encoder.map(self.pcrs.len() as u64)?;
                for (index, pcr) in &self.pcrs {
                    encoder.u16(*index)?.bytes(pcr)?;
                }
                encoder
            }
            "certificate" => encoder.bytes(&self.certificate)?,
            "cabundle" => {
                encoder.begin_array()?;
                for certificate in &self.cabundle {
                    encoder.bytes(certificate)?;
                }
                encoder.end()?
            }
            "public_key" => match &self.public_key {
                Some(key) => encoder.bytes(key)?,
                None => encoder.null()?,
            },
            _ => encoder.u8(0)?,
        };
        Ok(())
    }
}

/// The generator of secp256k1, a point like any other.
fn ecies_key() -> [u8; 33] {
    let mut key = [0x02; 33];
    key[1..].copy_from_slice(&identity_key());
    key
}

fn identity_key() -> [u8; 32] {
    let mut key = [0; 32];
    let hex = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    base16ct::lower::decode(hex, &mut key).expect("hex");
    key
}

fn service() -> ServiceUserData {
    ServiceUserData {
        enclave_id: [0xee; 16],
        epoch: 7,
        identity_key: identity_key(),
        birth_pcr0: Pcrs::default().pcr0,
        birth_time_ms: NOW_MS - 1_000_000,
        config_hash: [0xcf; 32],
    }
}

#[test]
fn an_honest_document_passes_and_says_what_the_enclave_said() {
    let mut bench = Bench::new();
    let document = bench.attest(&service());
    let seen = bench.policy.check_for_registration(NOW_MS, &document, &NONCE, None).expect("passes");
    assert_eq!(seen.enclave_id, [0xee; 16]);
    assert_eq!(seen.epoch, 7);
    assert_eq!(seen.ecies_key, ecies_key());
    assert_eq!(seen.identity_key, identity_key());
    assert_eq!(seen.birth_pcr0, seen.pcr0);
    assert_eq!(seen.pcr0, Pcrs::default().pcr0);
    assert_eq!(seen.birth_time_ms, NOW_MS - 1_000_000);
    assert_eq!(seen.config_hash, [0xcf; 32]);
    assert_eq!(seen.timestamp_ms, NOW_MS);
    let again = bench.policy.check_for_registration(NOW_MS, &document, &NONCE, Some(seen.birth_time_ms));
    assert_eq!(again, Ok(seen));
}

#[test]
fn the_outer_structure_is_strict() {
    let mut bench = Bench::new();
    let good = bench.attest(&service());
    assert_eq!(good[..7], [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0]);
    let refused = |bytes: &[u8]| Document::parse_unverified(bytes).expect_err("is refused");
    let changed = |index: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[index] = byte;
        refused(&bytes)
    };
    assert_eq!(refused(&[0x84; DOCUMENT_BYTES_MAX + 1]), AttestationError::DocumentTooLong);
    assert_eq!(refused(b""), AttestationError::Malformed);
    assert_eq!(refused(&good[..100]), AttestationError::Malformed);
    assert_eq!(refused(&[&good[..], &[0]].concat()), AttestationError::TrailingBytes);
    assert_eq!(changed(0, 0x83), AttestationError::NotSign1);
    assert_eq!(changed(0, 0x9f), AttestationError::NotSign1);
    assert_eq!(refused(&[&[0xd1], &good[..]].concat()), AttestationError::NotSign1);
    // ES256 instead of ES384.
    assert_eq!(changed(5, 0x06), AttestationError::ProtectedHeader);
    assert_eq!(changed(6, 0xbf), AttestationError::UnprotectedHeader);
    let head = good.len() - 98;
    assert_eq!(good[head..head + 2], [0x58, 96]);
    let mut short = good[..good.len() - 1].to_vec();
    short[head + 1] = 95;
    assert_eq!(refused(&short), AttestationError::SignatureLength);
}

#[test]
fn the_payload_is_strict() {
    let bench = Bench::new();
    let good = bench.fields();
    assert_eq!(bench.verify(&good), None);
    let refused = |change: &dyn Fn(&mut Fields)| {
        let mut fields = good.clone();
        change(&mut fields);
        bench.verify(&fields).expect("is refused")
    };
    assert_eq!(refused(&|fields| fields.trailing = true), AttestationError::TrailingBytes);
    assert_eq!(refused(&|fields| fields.added = Some("more")), AttestationError::UnknownField);
    for name in ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"] {
        let left_out = refused(&|fields| fields.left_out = Some(name));
        assert_eq!(left_out, AttestationError::MissingField, "{name}");
        let twice = refused(&|fields| fields.added = Some(name));
        assert_eq!(twice, AttestationError::DuplicateField, "{name}");
    }
    // Null counts as met.
    assert_eq!(refused(&|fields| fields.added = Some("public_key")), AttestationError::DuplicateField);
    assert_eq!(refused(&|fields| fields.module_id = String::new()), AttestationError::ModuleIdLength);
    assert_eq!(refused(&|fields| fields.module_id = "a".repeat(129)), AttestationError::ModuleIdLength);
    assert_eq!(refused(&|fields| fields.digest = "SHA256".to_owned()), AttestationError::Digest);
    for index in [32, 256] {
        assert_eq!(refused(&|fields| fields.pcrs[0].0 = index), AttestationError::PcrIndex);
    }
    assert_eq!(refused(&|fields| fields.pcrs.push((0, vec![1; 48]))), AttestationError::DuplicatePcr);
    for length in [0, 32, 47, 49, 64] {
        let pcr = vec![1; length];
        assert_eq!(refused(&|fields| fields.pcrs[0].1 = pcr.clone()), AttestationError::PcrLength);
    }
    for length in [0, 1025] {
        let der = vec![0x30; length];
        let leaf = refused(&|fields| fields.certificate = der.clone());
        assert_eq!(leaf, AttestationError::CertificateLength);
        let intermediate = refused(&|fields| fields.cabundle[1] = der.clone());
        assert_eq!(intermediate, AttestationError::CertificateLength);
    }
    assert_eq!(refused(&|fields| fields.cabundle.clear()), AttestationError::CabundleLength);
    let many = refused(&|fields| fields.cabundle.resize(CABUNDLE_COUNT_MAX + 1, vec![1]));
    assert_eq!(many, AttestationError::CabundleLength);
    let long = refused(&|fields| fields.public_key = Some(vec![0; 1025]));
    assert_eq!(long, AttestationError::OptionalFieldLength);
}

#[test]
fn all_three_inputs_may_have_1024_bytes() {
    let mut bench = Bench::new();
    let input = [9; 1024];
    let bytes = bench.nsm.attest(Some(&input), Some(&input), Some(&input)).expect("attests");
    let document = verify(&bytes, &bench.root).expect("verifies");
    assert_eq!(document.user_data.as_deref(), Some(&input[..]));
    assert_eq!((&document.user_data, &document.user_data), (&document.nonce, &document.public_key));
}

#[test]
fn only_a_path_to_the_pinned_root_counts() {
    let mut bench = Bench::new();
    let other = SoftwareRoot::generate(&mut test_entropy(9)).expect("entropy");
    let other_root = Root::development(other.certificate()).expect("a certificate");
    let stranger = other.nsm(1, Pcrs::default(), || NOW_MS, test_entropy(10)).expect("a module");
    let good = bench.attest(&service());

    assert_eq!(Root::development(b"0"), Err(AttestationError::RootMalformed));
    assert_eq!(verify(&good, &other_root), Err(AttestationError::RootUntrusted));
    assert_eq!(verify(&good, &Root::aws_nitro_g1()), Err(AttestationError::RootUntrusted));
    bench.policy.roots = vec![other_root];
    assert_eq!(bench.check(&good), Some(AttestationError::RootUntrusted));
    bench.policy.roots.push(bench.root.clone());
    assert_eq!(bench.check(&good), None);
    // A development root beside AWS's would vouch for AWS's images.
    bench.policy.roots.push(Root::aws_nitro_g1());
    assert_eq!(bench.check(&good), Some(AttestationError::RootUntrusted));

    // The pinned root in front of a path that does not lead there.
    let mut fields = bench.fields();
    let (leaf, [_, intermediate]) = stranger.certificates();
    fields.certificate = leaf.to_vec();
    fields.cabundle[1] = intermediate.to_vec();
    let bytes = stranger.sign_payload(&fields.encode());
    assert_eq!(verify(&bytes, &bench.root), Err(AttestationError::PathInvalid));
    // A leaf without its intermediate, and bytes that are no certificate.
    let mut fields = bench.fields();
    fields.cabundle.truncate(1);
    assert_eq!(bench.verify(&fields), Some(AttestationError::PathInvalid));
    fields.certificate = vec![0x30; 100];
    assert_eq!(bench.verify(&fields), Some(AttestationError::CertificateMalformed));
}

#[test]
fn a_document_is_bound_to_its_signer() {
    let mut bench = Bench::new();
    let mut bytes = bench.attest(&service());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(verify(&bytes, &bench.root), Err(AttestationError::SignatureInvalid));
    let root = SoftwareRoot::generate(&mut test_entropy(1)).expect("entropy");
    let other = root.nsm(2, Pcrs::default(), || NOW_MS, test_entropy(3)).expect("a module");
    let bytes = other.sign_payload(&bench.fields().encode());
    assert_eq!(verify(&bytes, &bench.root), Err(AttestationError::SignatureInvalid));
}

#[test]
fn certificates_count_in_their_windows_only() {
    let mut bench = Bench::new();
    let bytes = bench.attest(&service());
    let first = NOW_MS / 1_000 - 3;
    let last = first + LEAF_VALIDITY_S;
    let at = |unix_time_s| verify_at(&bytes, &bench.root, unix_time_s).err();
    assert_eq!(at(first - 1), Some(AttestationError::CertificateNotYetValid));
    assert_eq!((at(first), at(last)), (None, None));
    assert_eq!(at(last + 1), Some(AttestationError::CertificateExpired));
    assert_eq!(at(u64::MAX), Some(AttestationError::CertificateExpired));
}

#[test]
fn only_an_enclave_out_of_debug_mode_counts() {
    let bench = Bench::new();
    let mut fields = bench.fields();
    let ids = [
        "i-0123456789abcdef0-tpm0123456789abcdef",
        "i-0123456789abcdef0",
        "i-0123456789abcdef0-enc",
        "i--enc0123456789abcdef",
        "x-0123456789abcdef0-enc0123456789abcdef",
        "i-0123456789abcdef0-enc0123456789abcdeF",
        "i-0123456789abcdef0-enc0123-enc4567",
    ];
    for id in ids {
        fields.module_id = id.to_owned();
        assert_eq!(bench.verify(&fields), Some(AttestationError::NotAnEnclave), "{id}");
    }
    let mut fields = bench.fields();
    fields.pcrs[0].1 = vec![0; 48];
    assert_eq!(bench.verify(&fields), Some(AttestationError::DebugMode));
    fields.pcrs[0].0 = 1;
    assert_eq!(bench.verify(&fields), Some(AttestationError::PcrMissing));

    let mut debug = Bench::with_pcrs(Pcrs { pcr0: [0; 48], ..Pcrs::default() });
    assert_eq!(debug.check_user_data(&service()), Some(AttestationError::DebugMode));
}

#[test]
fn a_client_demands_a_fresh_document_for_its_own_nonce() {
    let mut bench = Bench::new();
    let bytes = bench.attest(&service());
    let at = |now_ms| bench.policy.check(now_ms, &bytes, &NONCE).err();
    assert_eq!(at(NOW_MS - SKEW_MS - 1), Some(AttestationError::FromTheFuture));
    assert_eq!(at(NOW_MS - SKEW_MS), None);
    assert_eq!(at(NOW_MS + 10_000), None);
    assert_eq!(at(NOW_MS + 10_001), Some(AttestationError::Stale));
    assert_eq!(at(u64::MAX), Some(AttestationError::Stale));
    assert_eq!(at(0), Some(AttestationError::FromTheFuture));

    assert_eq!(bench.policy.check(NOW_MS, &bytes, &[1; 32]).err(), Some(AttestationError::Nonce));
    let user_data = service().encode();
    for nonce in [None, Some(&NONCE[..31]), Some(&[][..])] {
        let bytes = bench.nsm.attest(Some(&ecies_key()), nonce, Some(&user_data)).expect("attests");
        assert_eq!(bench.check(&bytes), Some(AttestationError::Nonce));
    }
}

#[test]
fn a_client_demands_an_allowed_image() {
    let development = Pcrs::default();
    let others = [
        Pcrs { pcr0: [1; 48], ..development.clone() },
        Pcrs { pcr1: [1; 48], ..development.clone() },
        Pcrs { pcr2: [1; 48], ..development.clone() },
        Pcrs { pcr8: [1; 48], ..development.clone() },
    ];
    for pcrs in others {
        let mut bench = Bench::with_pcrs(pcrs);
        assert_eq!(bench.check_user_data(&service()), Some(AttestationError::ImageNotAllowed));
    }
    let mut signed = Bench::with_pcrs(Pcrs { pcr8: [8; 48], ..development });
    signed.policy.images[0].pcr8 = Some([8; 48]);
    assert_eq!(signed.check_user_data(&service()), None);
    let mut unsigned = Bench::new();
    unsigned.policy.images[0].pcr8 = Some([8; 48]);
    assert_eq!(unsigned.check_user_data(&service()), Some(AttestationError::ImageNotAllowed));
}

#[test]
fn a_client_demands_well_formed_keys_and_user_data() {
    let mut bench = Bench::new();
    let user_data = service().encode();
    let uncompressed = [4; 65];
    for key in [None, Some(&[][..]), Some(&uncompressed), Some(&[5; 33]), Some(&ecies_key()[..32])] {
        let bytes = bench.nsm.attest(key, Some(&NONCE), Some(&user_data)).expect("attests");
        assert_eq!(bench.check(&bytes), Some(AttestationError::EciesKey));
    }
    let mut refused = |user_data: Option<&[u8]>| {
        let bytes = bench.nsm.attest(Some(&ecies_key()), Some(&NONCE), user_data).expect("attests");
        bench.policy.check(NOW_MS, &bytes, &NONCE).expect_err("is refused")
    };
    assert_eq!(refused(None), AttestationError::UserDataMissing);
    assert_eq!(refused(Some(&[])), AttestationError::UserDataMalformed);
    assert_eq!(refused(Some(&user_data[..100])), AttestationError::UserDataMalformed);
    assert_eq!(refused(Some(&[0x83, 2, 1, 0x80])), AttestationError::UserDataVersion);
    assert_eq!(refused(Some(&birth().encode())), AttestationError::Purpose);
    let not_on_the_curve = ServiceUserData { identity_key: [0xff; 32], ..service() };
    assert_eq!(refused(Some(&not_on_the_curve.encode())), AttestationError::IdentityKey);
}

#[test]
fn a_client_demands_an_allowed_birth_and_configuration() {
    let mut bench = Bench::new();
    let stranger = ServiceUserData { birth_pcr0: [1; 48], ..service() };
    assert_eq!(bench.check_user_data(&stranger), Some(AttestationError::BirthImageNotAllowed));
    let other_config = ServiceUserData { config_hash: [1; 32], ..service() };
    assert_eq!(bench.check_user_data(&other_config), Some(AttestationError::ConfigNotAllowed));
}

#[test]
fn registering_demands_keys_of_this_image_and_of_the_newest_epoch() {
    let mut bench = Bench::new();
    let older = bench.attest(&ServiceUserData { birth_pcr0: PREDECESSOR, ..service() });
    assert_eq!(bench.check(&older), None);
    let register = |document: &[u8], newest: Option<u64>| {
        bench.policy.check_for_registration(NOW_MS, document, &NONCE, newest).err()
    };
    assert_eq!(register(&older, None), Some(AttestationError::BornUnderAnotherImage));
    let document = {
        let mut same = Bench::new();
        same.attest(&service())
    };
    let born_ms = service().birth_time_ms;
    assert_eq!(register(&document, Some(born_ms - 1)), None);
    assert_eq!(register(&document, Some(born_ms)), None);
    assert_eq!(register(&document, Some(born_ms + 1)), Some(AttestationError::BornBeforeNewest));
}

fn birth() -> BirthUserData {
    BirthUserData {
        enclave_id: [0xee; 16],
        epoch: 7,
        ecies_key: ecies_key(),
        identity_key: identity_key(),
        encrypted_dek_hash: [0xd0; 32],
    }
}

fn row() -> BirthExpectation {
    let birth = birth();
    BirthExpectation {
        enclave_id: birth.enclave_id,
        epoch: birth.epoch,
        ecies_key: birth.ecies_key,
        identity_key: birth.identity_key,
        encrypted_dek_hash: birth.encrypted_dek_hash,
    }
}

#[test]
fn a_row_is_believed_only_with_its_own_birth_document() {
    let mut bench = Bench::new();
    let pcr0 = Pcrs::default().pcr0;
    let bytes = bench.nsm.attest(None, None, Some(&birth().encode())).expect("attests");
    let open = |row: &BirthExpectation| verify_birth(&bytes, &bench.root, row, &pcr0, &[]);
    let opened = open(&row()).expect("passes");
    assert_eq!((opened.pcr0, opened.time_ms), (pcr0, NOW_MS));

    let changed = [
        (BirthExpectation { enclave_id: [1; 16], ..row() }, AttestationError::EnclaveIdDiffers),
        (BirthExpectation { epoch: 8, ..row() }, AttestationError::EpochDiffers),
        (BirthExpectation { ecies_key: [1; 33], ..row() }, AttestationError::EciesKeyDiffers),
        (BirthExpectation { identity_key: [1; 32], ..row() }, AttestationError::IdentityKeyDiffers),
        (BirthExpectation { encrypted_dek_hash: [1; 32], ..row() }, AttestationError::EncryptedDekDiffers),
    ];
    for (row, error) in changed {
        assert_eq!(open(&row), Err(error));
    }
    let under = |running: [u8; 48], predecessors: &[[u8; 48]]| {
        verify_birth(&bytes, &bench.root, &row(), &running, predecessors).err()
    };
    assert_eq!(under([1; 48], &[]), Some(AttestationError::NotAPredecessor));
    assert_eq!(under([1; 48], &[PREDECESSOR]), Some(AttestationError::NotAPredecessor));
    assert_eq!(under([1; 48], &[PREDECESSOR, pcr0]), None);
    let aws = verify_birth(&bytes, &Root::aws_nitro_g1(), &row(), &pcr0, &[]);
    assert_eq!(aws, Err(AttestationError::RootUntrusted));
}

#[test]
fn no_other_document_passes_for_a_birth_document() {
    let mut bench = Bench::new();
    let pcr0 = Pcrs::default().pcr0;
    let mut open = |user_data: Option<&[u8]>| {
        let bytes = bench.nsm.attest(None, None, user_data).expect("attests");
        verify_birth(&bytes, &bench.root, &row(), &pcr0, &[]).expect_err("is refused")
    };
    assert_eq!(open(None), AttestationError::UserDataMissing);
    assert_eq!(open(Some(b"row")), AttestationError::UserDataMalformed);
    assert_eq!(open(Some(&service().encode())), AttestationError::Purpose);
    let mut forged = bench.nsm.attest(None, None, Some(&birth().encode())).expect("attests");
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let verdict = verify_birth(&forged, &bench.root, &row(), &pcr0, &[]);
    assert_eq!(verdict, Err(AttestationError::SignatureInvalid));
}
