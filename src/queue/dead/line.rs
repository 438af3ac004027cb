//! A line of the dead letters: a JSON object whose last member is the checksum of what is before.

use serde::de::IgnoredAny;

/// What a line of the dead letters is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLine<'a> {
    /// A letter: as it was written, or by a version that gave letters no checksum.
    Letter(&'a str),
    /// Torn, or changed since it was written.
    Damaged(&'a [u8]),
}

/// What is around the checksum: eight hexadecimal digits, lower case.
const BEFORE: &[u8] = br#","crc32c":""#;
const AFTER: &[u8] = br#""}"#;
const DIGITS: usize = 8;
const SEAL_BYTES: usize = BEFORE.len() + DIGITS + AFTER.len();
/// With more bytes of what is around it changed, the end of a line is not taken for a checksum. The
/// end of a letter without one has three at most in common with it.
const CHANGED_MAX: usize = 6;

/// The line of a letter. One that is not an object with members stays as it is.
pub(super) fn sealed(letter: &str) -> String {
    let Some(content) = letter.strip_suffix('}').filter(|content| content.len() > 1) else {
        return letter.to_owned();
    };
    format!("{content},\"crc32c\":\"{:08x}\"}}", crc32c::crc32c(content.as_bytes()))
}

/// Reads a line, which is given without its end.
pub(super) fn read(line: &[u8]) -> DeadLine<'_> {
    let sound = match split(line) {
        Some((content, digits)) => format!("{:08x}", crc32c::crc32c(content)).as_bytes() == digits,
        None => line.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok(),
    };
    match std::str::from_utf8(line) {
        Ok(text) if sound => DeadLine::Letter(text),
        _ => DeadLine::Damaged(line),
    }
}

/// What a line says and the digits of its checksum. A checksum that is damaged around its digits
/// has none that are right.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, seal) = line.split_at_checked(line.len().checked_sub(SEAL_BYTES)?)?;
    let (before, rest) = seal.split_at(BEFORE.len());
    let (digits, after) = rest.split_at(DIGITS);
    let around = before.iter().chain(after).zip(BEFORE.iter().chain(AFTER));
    match around.filter(|(found, expected)| found != expected).count() {
        0 => Some((content, digits)),
        1..=CHANGED_MAX => Some((content, b"")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTER: &str =
        r#"{"at":"2026-01-01T00:00:00Z","seq":7,"message":"no","metric":{"a":{"b":1}}}"#;

    #[track_caller]
    fn assert_damaged(line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        assert_eq!(read(line), DeadLine::Damaged(line), "{text}");
    }

    #[test]
    fn a_letter_is_read_with_and_without_a_checksum() {
        let text = r#""metric":"what was no JSON, and its \"crc32c\":\"00000000\""}"#;
        let as_text = LETTER.replace(r#""metric":{"a":{"b":1}}}"#, text);
        for letter in [LETTER, &as_text, r#"{"seq":1}"#, r#"{"a":{"b":{"c":{}}}}"#] {
            let line = sealed(letter);
            assert_eq!(read(line.as_bytes()), DeadLine::Letter(&line));
            assert_eq!(read(letter.as_bytes()), DeadLine::Letter(letter), "an earlier version's");
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["crc32c"].as_str().map(str::len), Some(DIGITS), "{line}");
        }
        assert_eq!(sealed("{}"), "{}");
        assert_eq!(sealed("text"), "text");
    }

    /// The bytes that docs/FORMAT.md promises.
    #[test]
    fn the_checksum_is_the_last_member() {
        assert_eq!(sealed(r#"{"seq":1}"#), r#"{"seq":1,"crc32c":"3e8f26fb"}"#);
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let line = sealed(LETTER).into_bytes();
        for at in 0..line.len() {
            for change in [0x01, 0x20, 0x80, line[at]] {
                let mut changed = line.clone();
                changed[at] ^= change;
                assert_damaged(&changed);
            }
        }
    }

    #[test]
    fn every_torn_short_and_joined_line_is_seen() {
        let line = sealed(LETTER);
        for length in 0..line.len() {
            assert_damaged(&line.as_bytes()[..length]);
            assert_damaged(&line.as_bytes()[line.len() - length..]);
            // What earlier versions made of a torn line and the letter after it.
            if length > 0 {
                assert_damaged([&line[..length], &line].concat().as_bytes());
                assert_damaged([&LETTER[..length.min(LETTER.len())], LETTER].concat().as_bytes());
            }
        }
        for length in 0..LETTER.len() {
            assert_damaged(&LETTER.as_bytes()[..length]);
        }
        for other in ["", " ", "7", "\"text\"", "[]", "null", "\0\0\0"] {
            assert_damaged(other.as_bytes());
        }
    }
}
