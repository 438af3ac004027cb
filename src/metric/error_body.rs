//! The body of an answer that is no 2xx: the contract's, or whatever stands in its place.

use super::members;

/// The most characters of an excerpt.
const EXCERPT_MAX: usize = 200;
/// Bytes of a body that an excerpt is made from: enough for its characters and some markup.
const READ_MAX: usize = 4 << 10;

/// What an error body says. A body that is none says nothing: a proxy on the way has its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The short name of the error.
    pub error: Option<String>,
    /// For a person.
    pub message: Option<String>,
}

impl ErrorBody {
    /// Reads a body, each of its fields by itself: what one of them is does not hide the other.
    pub fn read(body: &[u8]) -> Self {
        let mut read = Self::default();
        let is_object = members::each_member(body, |name, value| match name {
            "error" => read.error = members::text(value),
            "message" => read.message = members::text(value),
            _ => {}
        });
        if is_object { read } else { Self::default() }
    }

    /// Whether a 409 with this body is about the batch id and not about something else.
    pub fn names_known_batch(&self) -> bool {
        matches!(self.error.as_deref(), Some("duplicate_batch" | "batch_exists" | "already_exists"))
    }

    /// The message of `body`, or without one the beginning of its text: one line of at most 200
    /// characters, none of them a control character.
    pub fn excerpt(body: &[u8]) -> String {
        let text = Self::read(body).message.unwrap_or_else(|| {
            let beginning = body.get(..READ_MAX).unwrap_or(body);
            String::from_utf8_lossy(beginning).into_owned()
        });
        let words = text.split(|c: char| c.is_whitespace() || c.is_control());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.join(" ").chars().take(EXCERPT_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_body_is_its_excerpt_is_one_line() {
        let check = |body: &[u8], expected: &str| assert_eq!(ErrorBody::excerpt(body), expected);
        check(b"", "");
        check(br#"{"code":400,"error":"x","message":"not this one"}"#, "not this one");
        check(br#"{"message":"a\n  b\u001b[31m"}"#, "a b [31m");
        check(br#"{"detail": "no"}"#, r#"{"detail": "no"}"#);
        check(br#"{"error": 5}"#, r#"{"error": 5}"#);
        check(
            b"<html>\r\n<title>502 Bad\tGateway</title>\0",
            "<html> <title>502 Bad Gateway</title>",
        );
        check(b"\xff!", "\u{fffd}!");
        check("\u{e9}".repeat(9_000).as_bytes(), &"\u{e9}".repeat(200));
        let message = format!(r#"{{"message":"{}"}}"#, "m".repeat(300));
        check(message.as_bytes(), &"m".repeat(200));
    }

    #[test]
    fn a_409_is_about_the_batch_only_when_it_says_so() {
        let known = |body: &[u8]| ErrorBody::read(body).names_known_batch();
        assert!(known(br#"{"code":409,"error":"duplicate_batch","message":""}"#));
        assert!(!known(br#"{"code":409,"error":"name_taken","message":""}"#));
        assert!(known(br#"{"error":"batch_exists","message":{"text":"stored"}}"#));
        assert!(!known(b"conflict"));
    }
}
