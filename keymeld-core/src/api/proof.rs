//! How a caller proves who it is: a BIP-340 signature over the request, in one header.
//!
//! ```text
//! KeyMeld-Proof: 1.<key, 64 hex>.<unix ms, decimal>.<nonce, 32 hex>.<signature, 128 hex>
//! ```
//! signed: `hash_KeyMeld/http-proof/v1(method, authority, target, each with its 4-byte length; SHA-256 of the
//! body; time, 8 bytes; nonce)`, integers big endian.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::http::Method;
use crate::bytes::{Signature, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::hash::{Tag, sha256};
use crate::entropy::Entropy;
use crate::limits::JSON_INTEGER_MAX;
use crate::refusal::Code;

const VERSION: &str = "1";

/// What a proof is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The method.
    pub method: Method,
    /// The Host header.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// Whoever made a proof that verified. Freshness and replay are for the machine to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key that signed.
    pub key: XOnlyKey,
    /// When it says that it did.
    pub unix_ms: u64,
    /// Its nonce.
    pub nonce: [u8; 16],
}

impl Subject<'_> {
    fn message(&self, unix_ms: u64, nonce: &[u8; 16]) -> Vec<u8> {
        let mut message = Vec::new();
        for part in [self.method.as_str(), self.authority, self.target] {
            let length = u32::try_from(part.len()).expect("heads are bounded far below 4 GiB");
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        message.extend_from_slice(&sha256(self.body).0);
        message.extend_from_slice(&unix_ms.to_be_bytes());
        message.extend_from_slice(nonce);
        message
    }

    /// Makes the header's value.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`].
    pub fn prove(&self, key: &AuthKey, unix_ms: u64, entropy: &mut Entropy) -> Result<String, Code> {
        let nonce = entropy.bytes::<16>()?;
        let signature = key.sign(Tag::HttpProof, &[&self.message(unix_ms, &nonce)], entropy)?;
        let nonce = base16ct::lower::encode_string(&nonce);
        Ok(format!("{VERSION}.{}.{unix_ms}.{nonce}.{signature}", key.public()))
    }

    /// Verifies a header's value.
    ///
    /// # Errors
    /// [`Code::ProofWrong`], whatever is wrong.
    pub fn verify(&self, header: &str) -> Result<Caller, Code> {
        let mut parts = header.split('.');
        let mut next = || parts.next().ok_or(Code::ProofWrong);
        let (version, key, time, nonce, signature) = (next()?, next()?, next()?, next()?, next()?);
        if parts.next().is_some() || version != VERSION {
            return Err(Code::ProofWrong);
        }
        let key = XOnlyKey::from_hex(key).map_err(|_| Code::ProofWrong)?;
        let unix_ms: u64 = time.parse().map_err(|_| Code::ProofWrong)?;
        // One spelling for each number: no sign, no leading zero.
        if unix_ms > JSON_INTEGER_MAX || format!("{unix_ms}") != time {
            return Err(Code::ProofWrong);
        }
        let mut nonce_bytes = [0; 16];
        match base16ct::lower::decode(nonce, &mut nonce_bytes) {
            Ok(decoded) if decoded.len() == 16 => {}
            Ok(_) | Err(_) => return Err(Code::ProofWrong),
        }
        let signature = Signature::from_hex(signature).map_err(|_| Code::ProofWrong)?;
        let message = self.message(unix_ms, &nonce_bytes);
        if auth::verify(&key, Tag::HttpProof, &[&message], &signature) {
            Ok(Caller { key, unix_ms, nonce: nonce_bytes })
        } else {
            Err(Code::ProofWrong)
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::{Method, Subject};
    use crate::crypto::auth::AuthKey;
    use crate::entropy::test_entropy;
    use crate::refusal::Code;
    use crate::secret::Secret;

    #[test]
    fn a_proof_holds_for_its_request_alone() {
        let mut entropy = test_entropy(1);
        let key = AuthKey::new(&Secret::copied_from(&[5; 32])).expect("a key");
        let subject = Subject { method: Method::Post, authority: "h:1", target: "/a?b=1", body: b"{}" };
        let header = subject.prove(&key, 1_700_000_000_000, &mut entropy).expect("never fails");
        let caller = subject.verify(&header).expect("valid");
        assert_eq!((caller.key, caller.unix_ms), (key.public(), 1_700_000_000_000));
        for other in [
            Subject { method: Method::Delete, ..subject },
            Subject { authority: "h:2", ..subject },
            Subject { target: "/a?b=2", ..subject },
            Subject { body: b"{} ", ..subject },
            Subject { authority: "h:1/", target: "a?b=1", ..subject },
        ] {
            assert_eq!(other.verify(&header), Err(Code::ProofWrong), "{other:?}");
        }
        for bad in [
            "",
            "1.2.3.4.5",
            &header.replace("1.", "2."),
            &header.replace(".1700000000000.", ".01700000000000."),
            &header.replace(".1700000000000.", ".+1700000000000."),
            &(header.clone() + "."),
            &header.to_uppercase(),
            &header[..header.len() - 2],
        ] {
            assert_eq!(subject.verify(bad), Err(Code::ProofWrong), "{bad}");
        }
        for index in 0..header.len() {
            let mut bytes = header.clone().into_bytes();
            bytes[index] = if bytes[index] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(subject.verify(&changed), Err(Code::ProofWrong), "{index}");
        }
    }
}
