//! The text of a statement, without what it was given. Pure.
//!
//! The extension puts `$1` where a constant was, but not in utility statements, and not when it had
//! to give the entry up while the statement ran. So nothing is taken on trust: literals, numbers
//! and comments go, and of a utility statement all but its first word.

use std::iter::Peekable;
use std::str::Chars;

/// The longest text, bytes.
pub(super) const TEXT_BYTES_MAX: usize = 2 << 10;

/// The statements that the extension normalizes.
const NORMALIZED: [&str; 8] =
    ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE"];

/// The statement without its constants; absent when it does not begin with a word.
pub(super) fn shown(text: &str) -> Option<String> {
    let mut form = Form { rest: text.chars().peekable(), shown: String::new() };
    form.run();
    let mut shown = form.shown.trim().to_owned();
    let word = shown.trim_start_matches(['(', ' ']);
    let word: String = word.chars().take_while(char::is_ascii_alphabetic).collect();
    let word = word.to_ascii_uppercase();
    if word.is_empty() {
        return None;
    }
    if !NORMALIZED.contains(&word.as_str()) {
        return Some(word);
    }
    while shown.len() > TEXT_BYTES_MAX {
        shown.pop();
    }
    Some(shown)
}

/// How a text is gone through.
struct Form<'a> {
    rest: Peekable<Chars<'a>>,
    shown: String,
}

impl Form<'_> {
    fn run(&mut self) {
        while let Some(first) = self.rest.next() {
            let next = self.rest.peek().copied();
            let goes_on = match first {
                '\'' => self.literal(),
                '"' => self.identifier(),
                '$' => self.dollar(),
                '-' if next == Some('-') => {
                    while self.rest.next().is_some_and(|c| c != '\n') {}
                    self.space()
                }
                '/' if next == Some('*') => self.comment(),
                c if c.is_whitespace() => self.space(),
                c if c.is_ascii_digit() || c == '.' && next.is_some_and(|n| n.is_ascii_digit()) => {
                    self.skip(|c| c.is_alphanumeric() || matches!(c, '.' | '_'));
                    self.show("?")
                }
                c if is_of_word(c) => {
                    self.shown.push(c);
                    while let Some(c) = self.rest.next_if(|c| is_of_word(*c) || *c == '$') {
                        self.shown.push(c);
                    }
                    true
                }
                c => {
                    self.shown.push(c);
                    true
                }
            };
            if !goes_on {
                self.space();
                self.show("?");
                return;
            }
        }
    }

    fn show(&mut self, text: &str) -> bool {
        self.shown.push_str(text);
        true
    }

    fn space(&mut self) -> bool {
        if !self.shown.ends_with(' ') {
            self.shown.push(' ');
        }
        true
    }

    fn skip(&mut self, is_skipped: impl Fn(char) -> bool) {
        while self.rest.next_if(|c| is_skipped(*c)).is_some() {}
    }

    /// Behind the quote that begins it. What a backslash before a quote means depends on a setting
    /// of whoever ran the statement: there the text ends.
    fn literal(&mut self) -> bool {
        let mut before = self.shown.chars().rev();
        let is_escaped = matches!(before.next(), Some('E' | 'e'))
            && !before.next().is_some_and(|c| is_of_word(c) || c == '$');
        while let Some(c) = self.rest.next() {
            match (c, self.rest.peek()) {
                ('\\', Some('\'' | '\\')) if is_escaped => drop(self.rest.next()),
                ('\\', Some('\'')) => return false,
                ('\'', Some('\'')) => drop(self.rest.next()),
                ('\'', _) => return self.show("?"),
                _ => {}
            }
        }
        false
    }

    fn identifier(&mut self) -> bool {
        self.shown.push('"');
        for c in self.rest.by_ref() {
            self.shown.push(c);
            if c == '"' {
                return true;
            }
        }
        true
    }

    /// A parameter such as `$1`, or a literal such as `$tag$text$tag$`.
    fn dollar(&mut self) -> bool {
        let mut tag = String::new();
        while let Some(c) = self.rest.next_if(|c| is_of_word(*c) || c.is_ascii_digit()) {
            tag.push(c);
        }
        let is_parameter = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_digit());
        if is_parameter || self.rest.next_if_eq(&'$').is_none() {
            self.shown.push('$');
            return self.show(&tag);
        }
        let end = format!("${tag}$");
        let mut text = String::new();
        for c in self.rest.by_ref() {
            text.push(c);
            if c == '$' && text.ends_with(&end) {
                return self.show("?");
            }
        }
        false
    }

    /// Comments stand in one another.
    fn comment(&mut self) -> bool {
        self.rest.next();
        let mut depth = 1;
        while let Some(c) = self.rest.next() {
            match (c, self.rest.peek()) {
                ('*', Some('/')) => depth -= 1,
                ('/', Some('*')) => depth += 1,
                _ => continue,
            }
            self.rest.next();
            if depth == 0 {
                return self.space();
            }
        }
        false
    }
}

/// Digits are of a word, too, but not its first character.
fn is_of_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(shown(text).as_deref().unwrap_or(""), expected, "{text}");
    }

    #[test]
    fn a_normalized_statement_keeps_its_form() {
        check("SELECT a1, \"b 2\" FROM t WHERE i = $1", "SELECT a1, \"b 2\" FROM t WHERE i = $1");
        check("select\n\t*\n from t -- of 7\n, u", "select * from t , u");
        check("(SELECT $1) UNION (VALUES ($2))", "(SELECT $1) UNION (VALUES ($2))");
        let foreign = "INSERT INTO gr\u{f6}\u{df}e (a$b) VALUES ($1)";
        check(foreign, foreign);
    }

    /// As an entry is stored that was given up while its statement ran.
    #[test]
    fn constants_go() {
        check("SELECT 'hush', 12.5e3, .5, -7, x'ff'", "SELECT ?, ?, ?, -?, x?");
        check("SELECT 'it''s' || E'it\\'s \\\\' || $$hush$$", "SELECT ? || E? || ?");
        check("SELECT $a$ hush $$ hush $a$, 1", "SELECT ?, ?");
        check("/* hush /* hush */ hush */ SELECT 1", "SELECT ?");
        check("SELECT 0x1F, 1_000, t.1", "SELECT ?, ?, t?");
    }

    #[test]
    fn where_it_is_not_clear_what_is_a_constant_the_text_ends() {
        check("SELECT 'it\\'s hush', b", "SELECT ?");
        check("SELECT a, 'hush", "SELECT a, ?");
        check("SELECT a, $x$ hush", "SELECT a, ?");
        check("SELECT a /* hush", "SELECT a ?");
        check("SELECT date'\\' || 'hush' || '", "SELECT date ?");
    }

    #[test]
    fn of_a_utility_statement_there_is_its_first_word() {
        check("ALTER ROLE a PASSWORD 'hush'", "ALTER");
        check("/* hush */ create user a password 'hush'", "CREATE");
        check("COPY hush FROM stdin", "COPY");
        check("'hush'", "");
        check("", "");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let long = format!("SELECT {}", "\u{e4}".repeat(TEXT_BYTES_MAX));
        let shown = shown(&long).expect("a text");
        assert!((TEXT_BYTES_MAX - 1..=TEXT_BYTES_MAX).contains(&shown.len()), "{}", shown.len());
    }
}
