//! RFC 5869 and Wycheproof through the HKDF-SHA256 that every key of KeyMeld is derived with.

mod vectors;

use hkdf::Hkdf;
use serde_json::Value;
use sha2::Sha256;
use vectors::{array, number, text, unhex};

#[test]
fn hkdf_agrees_with_rfc_5869() {
    let Some(bytes) = vectors::read("rfc5869/rfc-5869-HKDF-SHA256.txt") else { return };
    let file = String::from_utf8(bytes).expect("the vectors are text");
    let mut checked = 0;
    for case in file.split("COUNT = ").skip(1) {
        let field = |name: &str| {
            let mut values = case.lines().filter_map(|line| {
                let (field, value) = line.split_once('=')?;
                (field.trim() == name).then(|| value.trim())
            });
            let value = values.next().unwrap_or_else(|| panic!("no {name} in {case}"));
            assert_eq!(values.next(), None, "{name} twice in {case}");
            value
        };
        assert_eq!(field("Hash"), "SHA-256");
        let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(&unhex(field("salt"))), &unhex(field("IKM")));
        assert_eq!(prk[..], unhex(field("PRK")));
        let mut okm = vec![0; field("L").parse().expect("a length")];
        hkdf.expand(&unhex(field("info")), &mut okm).expect("in range");
        assert_eq!(okm, unhex(field("OKM")));
        checked += 1;
    }
    assert_eq!(checked, 3);
}

#[test]
fn hkdf_agrees_with_wycheproof() {
    let Some(bytes) = vectors::read("wycheproof/hkdf_sha256_test.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let (mut derived, mut refused) = (0, 0);
    for case in array(&file["testGroups"]).iter().flat_map(|group| array(&group["tests"])) {
        let field = |name: &str| unhex(text(&case[name]));
        let mut okm = vec![0; number(&case["size"])];
        let outcome =
            Hkdf::<Sha256>::new(Some(&field("salt")), &field("ikm")).expand(&field("info"), &mut okm);
        match text(&case["result"]) {
            "valid" => {
                assert!(outcome.is_ok(), "{case}");
                assert_eq!(okm, field("okm"), "{case}");
                derived += 1;
            }
            "invalid" => {
                assert!(outcome.is_err(), "{case}");
                refused += 1;
            }
            other => panic!("no verdict: {other}"),
        }
    }
    assert_eq!((derived, refused), (83, 3));
    assert_eq!(derived + refused, number(&file["numberOfTests"]));
}
