//! What a JSON text holds, told from its bytes before anything is built of it.

use std::fmt::Write;

use super::Invalid;

/// The most digits after the point, those of the exponent counted, that a store can hold: the limit
/// of PostgreSQL's `numeric`, which `jsonb` keeps numbers in.
const PLACES_MAX: i64 = 16_383;
/// The most digits before the point: the same limit. A number that is finite has fewer; 0 with an
/// exponent may have more.
const DIGITS_MAX: i64 = 131_072;
/// The most memory that a text may take as a value.
const MEMORY_MAX: usize = 32 << 20;
/// About what an object takes, with its first member, bytes.
const OBJECT_BYTES: usize = 640;
/// About what another member or element takes.
const VALUE_BYTES: usize = 100;

/// What was seen of a text.
pub(super) struct Glance {
    objects: usize,
    others: usize,
    /// Where the first number begins that no store can hold.
    odd_number: Option<usize>,
}

impl Glance {
    /// Looks at `text`, which must be a JSON value.
    pub(super) fn of(text: &str) -> Self {
        let mut glance = Self { objects: 0, others: 0, odd_number: None };
        for (at, token) in (Tokens { text, at: 0 }) {
            match token {
                Token::Mark(b'{') => glance.objects += 1,
                Token::Mark(b'[' | b',') => glance.others += 1,
                Token::Number(number) if !fits(number) => {
                    glance.odd_number.get_or_insert(at);
                }
                _ => {}
            }
        }
        glance
    }

    /// Refuses what would take too much memory as a value.
    pub(super) fn check_size(&self) -> Result<(), Invalid> {
        let bytes = self.objects.saturating_mul(OBJECT_BYTES);
        if bytes.saturating_add(self.others.saturating_mul(VALUE_BYTES)) <= MEMORY_MAX {
            return Ok(());
        }
        let values = self.objects + self.others;
        let message = format!("not sound, and too large to say where: {values} values");
        Err(Invalid::new("", message))
    }

    /// Refuses a number that no store can hold.
    pub(super) fn check_numbers(&self, text: &str) -> Result<(), Invalid> {
        let Some(at) = self.odd_number else { return Ok(()) };
        let message = format!("a number has at most {PLACES_MAX} digits after the point");
        Err(Invalid::new(path_to(text, at), message))
    }
}

/// Whether a store can hold this number, as it is written.
pub(super) fn fits(number: &str) -> bool {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let Ok(exponent) = exponent.parse::<i32>() else { return false };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let length = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX);
    length(fraction).saturating_sub(exponent.into()) <= PLACES_MAX
        && length(whole).saturating_add(exponent.into()) <= DIGITS_MAX
}

/// The way to the value that begins at byte `place`.
fn path_to(text: &str, place: usize) -> String {
    enum Step<'a> {
        Key(&'a str),
        Index(usize),
    }
    let mut steps = Vec::new();
    for (at, token) in (Tokens { text, at: 0 }) {
        if at >= place {
            break;
        }
        match (token, steps.last_mut()) {
            (Token::Mark(b'{'), _) => steps.push(Step::Key("")),
            (Token::Mark(b'['), _) => steps.push(Step::Index(0)),
            (Token::Mark(b'}' | b']'), _) => drop(steps.pop()),
            (Token::Mark(b','), Some(Step::Index(index))) => *index += 1,
            // A value that is a string is followed by another key, which takes its place.
            (Token::Text(text), Some(Step::Key(key))) => *key = text,
            _ => {}
        }
    }
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Index(index) => _ = write!(path, "[{index}]"),
            Step::Key(key) => {
                path.extend((!path.is_empty()).then_some('.'));
                path.extend(key.chars().take(80));
            }
        }
    }
    path
}

/// The tokens of a JSON text, each with its place; words are passed over.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

#[derive(Clone, Copy)]
enum Token<'a> {
    /// A brace, a bracket, a comma or a colon.
    Mark(u8),
    /// As it is written, without its quotes.
    Text(&'a str),
    Number(&'a str),
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        loop {
            let start = self.at;
            let first = *bytes.get(start)?;
            self.at += 1;
            let token = match first {
                b'"' => {
                    self.skip_string();
                    let end = self.at.saturating_sub(1);
                    Token::Text(self.text.get(start + 1..end).unwrap_or_default())
                }
                b'-' | b'0'..=b'9' => {
                    let rest = bytes.get(start..).unwrap_or_default();
                    let part = |byte: &&u8| b"+-.eE0123456789".contains(*byte);
                    self.at = start + rest.iter().take_while(part).count();
                    Token::Number(self.text.get(start..self.at).unwrap_or_default())
                }
                b'{' | b'}' | b'[' | b']' | b',' | b':' => Token::Mark(first),
                _ => continue,
            };
            return Some((start, token));
        }
    }
}

impl Tokens<'_> {
    /// To behind the quote that ends the string.
    fn skip_string(&mut self) {
        let bytes = self.text.as_bytes();
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                self.at = bytes.len();
                return;
            };
            self.at += found + 1;
            if rest.get(found) == Some(&b'"') {
                return;
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_a_store_can_hold() {
        let zeros = |count: usize| "0".repeat(count);
        let check = |number: &str, expected: bool| {
            let shown: String = number.chars().take(40).collect();
            assert_eq!(fits(number), expected, "{shown}");
        };
        for number in ["0", "-0.0", "1e308", "1E-400", "5e-324", "1e+5", "0e131071"] {
            check(number, true);
        }
        check("1e-16383", true);
        check("1e-16384", false);
        check("1.5e-16383", false);
        check("1e-20000", false);
        check(&format!("0.{}", zeros(16_383)), true);
        check(&format!("0.{}", zeros(16_384)), false);
        check(&format!("0.{}e1", zeros(16_384)), true);
        check("0e131072", false);
        check("0e99999999999", false);
        check("1e-99999999999", false);
    }

    #[test]
    fn the_first_odd_number_is_named_with_its_place() {
        let check = |text: &str, expected: Option<&str>| {
            let refused = Glance::of(text).check_numbers(text).err();
            assert_eq!(refused.map(|invalid| invalid.path).as_deref(), expected, "{text}");
        };
        check(r#"{"a": [1, "1e-20000", {"b\"1e-20000": 1e-5}]}"#, None);
        check("1e-20000", Some(""));
        check("[0, [], 1e-20000]", Some("[2]"));
        check(r#"{"a": {"x": "\\", "b": [{"c,[": true}, {"d": 1e-20000}]}}"#, Some("a.b[1].d"));
        check(r#"{"a": "k", "b": {"c": {}}, "e": [[1, 2], [-1e-20000]], "f": 0}"#, Some("e[1][0]"));
    }

    /// What is in strings counts for nothing.
    #[test]
    fn values_are_counted() {
        let check = |text: &str, expected: bool| {
            assert_eq!(Glance::of(text).check_size().is_ok(), expected, "{} bytes", text.len());
        };
        check(&format!("[\"{}\"]", "{,".repeat(1 << 20)), true);
        check(&format!("[{}{{}}]", "{\"\":0},".repeat(40_000)), true);
        check(&format!("[{}{{}}]", "{\"\":0},".repeat(50_000)), false);
        check(&format!("[{}0]", "0,".repeat(300_000)), true);
        check(&format!("[{}0]", "0,".repeat(400_000)), false);
    }
}
