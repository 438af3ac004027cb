//! What a JSON text holds, told from its bytes before anything is built of it.

use std::fmt::Write;

use super::Invalid;
use super::number::{GROWTH_MAX, Number, PLACES_MAX};

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
    /// By how much the others grow when they are written out.
    growth: u64,
}

impl Glance {
    /// Looks at `text`, which must be a JSON value.
    pub(super) fn of(text: &str) -> Self {
        let mut glance = Self { objects: 0, others: 0, odd_number: None, growth: 0 };
        for (at, token) in (Tokens { text, at: 0 }) {
            match token {
                Token::Mark(b'{') => glance.objects += 1,
                Token::Mark(b'[' | b',') => glance.others += 1,
                Token::Number(number) => match number.grows_by() {
                    Some(growth) => glance.growth = glance.growth.saturating_add(growth),
                    None => _ = glance.odd_number.get_or_insert(at),
                },
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

    /// Refuses a number that no store can hold, and numbers that are short in the text and long
    /// wherever they are read again.
    pub(super) fn check_numbers(&self, text: &str) -> Result<(), Invalid> {
        if self.growth > GROWTH_MAX {
            let message = format!("its numbers, written out, are more than {GROWTH_MAX} digits");
            return Err(Invalid::new("", message));
        }
        let Some(at) = self.odd_number else { return Ok(()) };
        let message = format!("a number has at most {PLACES_MAX} digits after the point");
        Err(Invalid::new(path_to(text, at), message))
    }
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
    Number(Number<'a>),
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
                    let number = Number::at(self.text, start)?;
                    self.at = start + number.text.len();
                    Token::Number(number)
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

    /// A few bytes that a store gives back as thousands of digits.
    #[test]
    fn numbers_that_grow_have_a_bound() {
        let check = |number: &str, count: usize, expected: bool| {
            let text = format!("[{}0]", format!("{number},").repeat(count));
            let refused = Glance::of(&text).check_numbers(&text);
            assert_eq!(refused.is_ok(), expected, "{count} times {number}");
        };
        check("1e-16383", 64, true);
        check("1e-16383", 65, false);
        check("1e308", 3_404, true);
        check("1E+308", 3_405, false);
        check("0.00001", 200_000, true);
        check("1.5e-7", 100_000, true);
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
