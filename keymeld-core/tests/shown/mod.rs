//! Looks for secrets in text.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

use std::fmt::Debug;

/// How many bytes of a secret in a row count as shown.
const WINDOW: usize = 6;

/// The spellings of bytes that `{:?}`, hex and base64 have, without white space.
fn spellings(bytes: &[u8]) -> Vec<String> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = |of: &dyn Fn(&u8) -> String| bytes.iter().map(of).collect::<Vec<_>>().join(",");
    vec![
        hex,
        list(&|byte| byte.to_string()),
        list(&|byte| format!("0x{byte:02x}")),
        list(&|byte| format!("{byte:02x}")),
        bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    ]
}

/// Base64 without padding, of either alphabet once `-_` are read as `+/`.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    bits.chunks_exact(6)
        .map(|six| ALPHABET[six.iter().fold(0, |value, bit| value << 1 | usize::from(*bit))] as char)
        .collect()
}

/// Whether some of a secret stands in a text.
pub(crate) fn is_shown(text: &str, secret: &[u8]) -> bool {
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let lower = dense.to_lowercase();
    let url_safe = dense.replace('-', "+").replace('_', "/");
    let printed = core::str::from_utf8(secret).is_ok_and(|secret| dense.contains(secret));
    printed
        || secret.windows(WINDOW).any(|window| spellings(window).iter().any(|it| lower.contains(it)))
        // Whichever of its three alignments the secret has in what was encoded.
        || (0..3).any(|skip| url_safe.contains(&base64(&secret[skip..])))
}

/// Looks for secrets in what `{:?}` and `{:#?}` make of a value.
///
/// # Panics
/// Where there is one.
pub(crate) fn assert_shows_nothing(value: &impl Debug, secrets: &[&[u8]]) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        for secret in secrets {
            assert!(!is_shown(&text, secret), "shown: {}", text.chars().take(2_000).collect::<String>());
        }
    }
}
