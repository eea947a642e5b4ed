//! What people see: texts of others that cannot play tricks on a terminal, times, and JSON in ASCII.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// A text of somebody else in double quotes. Whatever a terminal would obey, hide, combine or reorder is
/// escaped: control and formatting characters, combining marks, and letters that run from right to left.
pub fn text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push('"');
    for character in text.chars() {
        match character {
            '\'' => shown.push('\''),
            _ if runs_right_to_left(character) => shown.extend(character.escape_unicode()),
            // Everything that is not printable, by the standard library's table of Unicode.
            _ => shown.extend(character.escape_debug()),
        }
    }
    shown.push('"');
    shown
}

/// The blocks of right-to-left scripts, which a terminal may show in another order than they have.
fn runs_right_to_left(character: char) -> bool {
    matches!(u32::from(character),
        0x0590..=0x08ff | 0xfb1d..=0xfdff | 0xfe70..=0xfeff | 0x1_0800..=0x1_0fff | 0x1_e800..=0x1_efff)
}

/// Milliseconds since 1970 as a date and time, UTC.
pub fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years of 400 repeat themselves; counted from a 1st of March, the leap day comes last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// One JSON object on one line, in ASCII: no terminal obeys anything in it.
///
/// # Panics
/// Never for the reports of this crate, which have string keys.
pub fn json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Ascii);
    value.serialize(&mut serializer).expect("reports have string keys");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for character in fragment.chars() {
            if character.is_ascii() && !character.is_ascii_control() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{json, text, time};

    /// What hostile participants would like a terminal to do.
    const TRICKS: [&str; 10] = [
        "pay 1\rpay 2",
        "a\u{1b}[2Jb",
        "a\u{9b}2Jb",
        "line\nanother",
        "\u{202e}evil",
        "\u{2066}x\u{2069}",
        "zero\u{200b}width\u{feff}",
        "a\u{300}\u{301}\u{302}",
        "\u{5d0}\u{5d1} 100",
        "end\" ]} \u{7f}",
    ];

    #[test]
    fn texts_of_others_play_no_tricks() {
        for trick in TRICKS {
            let shown = text(trick);
            let plain = shown.chars().all(|character| character.is_ascii_graphic() || character == ' ');
            assert!(plain, "{shown:?}");
            let inner = &shown[1..shown.len() - 1];
            assert!(!inner.replace("\\\\", "").replace("\\\"", "").contains('"'), "{shown}");
        }
        assert_eq!(text("Zoë's café, 東京"), "\"Zoë's café, 東京\"");
        assert_eq!(text("a\\n"), "\"a\\\\n\"");
    }

    #[test]
    fn json_is_ascii_and_says_the_same() {
        for trick in TRICKS {
            let shown = json(&trick);
            assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{shown}");
            assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), trick);
        }
        assert_eq!(json(&"\u{1f511}"), "\"\\ud83d\\udd11\"");
    }

    #[test]
    fn times_are_dates() {
        for (unix_ms, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399_999, "2000-02-28 23:59:59 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199_000, "2024-02-29 23:59:59 UTC"),
            (1_709_251_200_000, "2024-03-01 00:00:00 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(unix_ms), shown);
        }
    }
}
