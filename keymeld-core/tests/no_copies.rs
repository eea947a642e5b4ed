//! Nothing that holds a secret can be copied, printed or encoded by accident. A secret nonce, of which a
//! copy would give the key away, also has examples that must not compile, beside its type.

use core::fmt::{Display, LowerHex, UpperHex};

use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::{OpenedEnvelope, Registrant};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::seal::SealKey;
use keymeld_core::enclave;
use keymeld_core::enclave::Enclave;
use keymeld_core::enclave::identity::{DataKey, Identity};
use keymeld_core::entropy::Entropy;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::secret::{ApiToken, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use static_assertions::{assert_impl_all, assert_not_impl_any};

macro_rules! assert_kept_in_one_place {
    ($($type:ty),* $(,)?) => {$(
        assert_not_impl_any!(
            $type: Clone, Copy, Serialize, DeserializeOwned, minicbor::Encode<()>, Display, LowerHex, UpperHex,
            AsRef<[u8]>, AsRef<[u8; 32]>, core::ops::Deref, core::borrow::Borrow<[u8]>, Into<Vec<u8>>, Into<[u8; 32]>,
            PartialOrd, core::hash::Hash, Default
        );
    )*};
}

assert_kept_in_one_place!(
    Secret<32>,
    AuthKey,
    SealKey,
    SigningNonce,
    OpenedEnvelope,
    Registrant<'static>,
    DataKey,
    Identity,
    Enclave,
    Entropy,
    enclave::Event,
    enclave::Command,
);

// An invite is handed over, in one encoding that is wiped; it is not copied.
assert_not_impl_any!(Invite: Clone, Copy, minicbor::Encode<()>, Display);
// A token is cloned with the request that it came in, and the clones share it.
assert_not_impl_any!(ApiToken: Copy, Serialize, DeserializeOwned, minicbor::Encode<()>, Display, Default);

// Workers are threads: what they hold is sent to them, and identities are shared.
assert_impl_all!(Enclave: Send);
assert_impl_all!(SigningNonce: Send);
assert_impl_all!(Identity: Send, Sync);
assert_impl_all!(Secret<32>: zeroize::ZeroizeOnDrop);

/// What the assertions above mean at run time: there is one comparison, and it is over all bytes.
#[test]
fn secrets_are_compared_by_content() {
    let secret = |last: u8| {
        Secret::<32>::filled(|out| {
            out.fill(7);
            out[31] = last;
        })
    };
    assert!(secret(1) == secret(1));
    assert!(secret(1) != secret(2));
}
