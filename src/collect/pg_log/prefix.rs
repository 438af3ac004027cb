//! `log_line_prefix`, compiled once and matched against each line without backtracking. Pure.
//!
//! Source: "Error Reporting and Logging" of the PostgreSQL manual, 10 to 18.

use super::words;

/// A compiled `log_line_prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix {
    tokens: Vec<Token>,
}

/// What the prefix of one line says. Everything is the line's own text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Said<'a> {
    /// `%m`, `%t` or `%n`.
    pub(super) time: Option<&'a str>,
    /// The time is `%n`: seconds since 1970.
    pub(super) is_epoch: bool,
    pub(super) pid: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    pub(super) database: Option<&'a str>,
    pub(super) application: Option<&'a str>,
    pub(super) client: Option<&'a str>,
    pub(super) sqlstate: Option<&'a str>,
    pub(super) session_id: Option<&'a str>,
    pub(super) line: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(String),
    Escape {
        kind: char,
        /// The field's least width: `%-10u`, `%5p`.
        width: usize,
    },
    /// `%q`: a background process writes nothing of what follows.
    Quit,
}

/// Letters that stand for something in some version.
const KNOWN: &str = "audbhrLpPtmnieclsvxQ";

impl Prefix {
    /// Reads a prefix. An escape that no version has is an error, since what it stands for could
    /// be anything.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut literal = String::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let mut width = String::new();
            while let Some(c) = rest.next_if(|c| *c == '-' || c.is_ascii_digit()) {
                width.push(c);
            }
            let token = match rest.next() {
                Some('%') => {
                    literal.push('%');
                    continue;
                }
                Some('q') => Token::Quit,
                Some(kind) if KNOWN.contains(kind) => {
                    let width = width.trim_start_matches('-').parse().unwrap_or(0);
                    Token::Escape { kind, width }
                }
                Some(other) => {
                    return Err(format!(
                        "log_line_prefix {text:?} has the unknown escape %{other}"
                    ));
                }
                // The server ends the prefix at a lone percent sign.
                None => break,
            };
            if !literal.is_empty() {
                tokens.push(Token::Literal(std::mem::take(&mut literal)));
            }
            tokens.push(token);
        }
        if !literal.is_empty() {
            tokens.push(Token::Literal(literal));
        }
        Ok(Self { tokens })
    }

    /// Whether each line carries a time that can be read.
    pub(super) fn has_time(&self) -> bool {
        let is_time = |t: &Token| matches!(t, Token::Escape { kind: 't' | 'm' | 'n', .. });
        // After %q the lines of background processes have none.
        let always = self.tokens.iter().take_while(|token| **token != Token::Quit);
        always.into_iter().any(is_time)
    }

    /// Splits `line` into what its prefix says and the rest, which begins with the level; `None`
    /// when the line has another prefix.
    pub(super) fn split<'a>(&self, line: &'a str) -> Option<(Said<'a>, &'a str)> {
        self.matched(line).map(|(said, rest)| (said.believed(), rest))
    }

    fn matched<'a>(&self, line: &'a str) -> Option<(Said<'a>, &'a str)> {
        let mut said = Said::default();
        let mut rest = line;
        let mut before_quit = None;
        for (at, token) in self.tokens.iter().enumerate() {
            let matched = match token {
                Token::Literal(text) => rest.strip_prefix(text.as_str()),
                // A background process: its text is not to be taken for names.
                Token::Quit if words::read(rest).is_some() => return Some((said, rest)),
                Token::Quit => {
                    before_quit = Some((said.clone(), rest));
                    Some(rest)
                }
                Token::Escape { kind, width } => {
                    let next = self.tokens[at + 1..].iter().find(|token| **token != Token::Quit);
                    take(*kind, *width, next, rest).map(|(text, rest)| {
                        said.set(*kind, text);
                        rest
                    })
                }
            };
            match matched {
                Some(after) => rest = after,
                None => return before_quit,
            }
        }
        Some((said, rest))
    }
}

impl<'a> Said<'a> {
    /// Without its names when one of them has a quote in it, which a text has and a name does not:
    /// the line may be one of another prefix, and its names pieces of a statement.
    fn believed(self) -> Self {
        let names = [self.user, self.database, self.application, self.client];
        if names.into_iter().flatten().any(|name| name.contains(is_quote)) {
            return Self { user: None, database: None, application: None, client: None, ..self };
        }
        self
    }

    fn set(&mut self, kind: char, text: &'a str) {
        let text = text.trim_matches(' ');
        // A process without a session has empty fields or `[unknown]`.
        let value = Some(text).filter(|text| !text.is_empty() && *text != "[unknown]");
        match kind {
            't' | 'm' => self.time = value,
            'n' => {
                self.time = value;
                self.is_epoch = true;
            }
            'p' => self.pid = value,
            'u' => self.user = value,
            'd' => self.database = value,
            'a' => self.application = value,
            'h' | 'r' => self.client = value,
            'e' => self.sqlstate = value,
            'c' => self.session_id = value,
            'l' => self.line = value,
            _ => {}
        }
    }
}

/// The text of one escape at the start of `line`, and what follows it.
fn take<'a>(
    kind: char,
    width: usize,
    next: Option<&Token>,
    line: &'a str,
) -> Option<(&'a str, &'a str)> {
    let padding = if width == 0 { 0 } else { line.len() - line.trim_start_matches(' ').len() };
    let length = padding
        + match kind {
            't' | 'm' | 's' => time_length(&line[padding..])?,
            'p' | 'P' | 'l' | 'x' => run(&line[padding..], |c| c.is_ascii_digit()),
            // A query id is signed.
            'Q' => run(&line[padding..], |c| c.is_ascii_digit() || c == '-'),
            'n' => run(&line[padding..], |c| c.is_ascii_digit() || c == '.'),
            'c' => run(&line[padding..], |c| c.is_ascii_hexdigit() || c == '.'),
            'e' => run(&line[padding..], |c| c.is_ascii_uppercase() || c.is_ascii_digit()).min(5),
            _ => text_length(&line[padding..], width.saturating_sub(padding), next)?,
        };
    // Fields are padded on either side up to their width.
    let mut end = length;
    while end < width && line[end..].starts_with(' ') {
        end += 1;
    }
    Some((&line[..length], &line[end..]))
}

/// The length of a name, which may hold any character and ends where the prefix goes on. One that
/// begins with a blank, or has the colon of a level in it, is refused: the line has another
/// prefix, and its message begins before.
fn text_length(line: &str, width: usize, next: Option<&Token>) -> Option<usize> {
    let length = match next {
        Some(Token::Literal(literal)) => {
            // Within its width a field may hold the literal as padding.
            let from = line.char_indices().nth(width).map_or(line.len(), |(at, _)| at);
            line.get(from..)?.find(literal.as_str()).map(|at| from + at)?
        }
        // Two escapes in a row, or the level right after: names with blanks would be ambiguous.
        _ => run(line, |c| !c.is_whitespace() && c != ':'),
    };
    let is_message = words::first_colon(line).is_some_and(|at| at < length);
    let is_tail = width == 0 && length > 0 && line.starts_with([' ', '\u{a0}']);
    Some(length).filter(|_| !is_message && !is_tail)
}

/// `2024-05-01 10:00:00.123 CEST`: date, time and zone.
fn time_length(line: &str) -> Option<usize> {
    let date = run(line, |c| c.is_ascii_digit() || c == '-');
    let clock = line.get(date..)?.strip_prefix(' ')?;
    let clock_length = run(clock, |c| c.is_ascii_digit() || c == ':' || c == '.');
    // `%t:%r` ends the zone with the colon, so the clock must not swallow one.
    let zone = clock.get(clock_length..)?.strip_prefix(' ')?;
    let zone_length = run(zone, |c| c.is_ascii_alphanumeric() || "+-<>".contains(c));
    (date == 10 && clock_length >= 8 && zone_length > 0)
        .then_some(date + 1 + clock_length + 1 + zone_length)
}

/// The quotation marks of the languages that servers write.
fn is_quote(c: char) -> bool {
    matches!(
        c,
        '\'' | '"'
            | '`'
            | '\u{ab}'
            | '\u{b4}'
            | '\u{bb}'
            | '\u{2018}'..='\u{201f}'
            | '\u{2039}'..='\u{203a}'
            | '\u{300c}'..='\u{300f}'
            | '\u{ff02}'
            | '\u{ff07}'
    )
}

fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|c| !of(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rest after the prefix, and the fields that are set, as text.
    fn check(prefix: &str, line: &str, expected: Option<(&str, &str)>) {
        let compiled = Prefix::compile(prefix).expect(prefix);
        let split = compiled.split(line).map(|(said, rest)| {
            let fields = [
                ("time", said.time),
                ("pid", said.pid),
                ("user", said.user),
                ("db", said.database),
                ("app", said.application),
                ("client", said.client),
                ("state", said.sqlstate),
                ("session", said.session_id),
                ("line", said.line),
            ];
            let set =
                fields.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?)));
            (set.collect::<Vec<_>>().join("|"), rest.to_owned())
        });
        let expected = expected.map(|(fields, rest)| (fields.to_owned(), rest.to_owned()));
        assert_eq!(split, expected, "{prefix:?} {line:?}");
    }

    #[test]
    fn prefixes_in_use_are_read() {
        let default = "%m [%p] ";
        check(
            default,
            "2024-05-01 10:00:00.123 UTC [42] LOG:  x",
            Some(("time=2024-05-01 10:00:00.123 UTC|pid=42", "LOG:  x")),
        );
        check(
            default,
            "2024-05-01 10:00:00.123 +0330 [42] LOG:  x",
            Some(("time=2024-05-01 10:00:00.123 +0330|pid=42", "LOG:  x")),
        );
        check(default, "\tcontinued", None);
        check(default, "", None);
        check(default, "2024-05-01 10:00:00.123", None);
        check(default, "sh: archive: command not found", None);
        // Debian, then RDS, then one that pgBadger advises.
        check(
            "%m [%p] %q%u@%d ",
            "2024-05-01 10:00:00.123 CEST [42] joe@shop ERROR:  x",
            Some(("time=2024-05-01 10:00:00.123 CEST|pid=42|user=joe|db=shop", "ERROR:  x")),
        );
        check(
            "%m [%p] %q%u@%d ",
            "2024-05-01 10:00:00.123 CEST [42] LOG:  checkpoint starting: time",
            Some(("time=2024-05-01 10:00:00.123 CEST|pid=42", "LOG:  checkpoint starting: time")),
        );
        check(
            "%t:%r:%u@%d:[%p]:",
            "2024-05-01 10:00:00 UTC:10.0.0.1(5000):joe@shop:[42]:LOG:  x",
            Some((
                "time=2024-05-01 10:00:00 UTC|pid=42|user=joe|db=shop|client=10.0.0.1(5000)",
                "LOG:  x",
            )),
        );
        check(
            "%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",
            "2024-05-01 10:00:00 UTC [42]: [7-1] user=,db=,app=my app,client= LOG:  x",
            Some(("time=2024-05-01 10:00:00 UTC|pid=42|app=my app|line=7", "LOG:  x")),
        );
        check(
            "%n %e %c [unknown]%% %a|",
            "1714557600.123 57014 6632.1f [unknown]% [unknown]|LOG:  x",
            Some(("time=1714557600.123|state=57014|session=6632.1f", "LOG:  x")),
        );
        check("", "LOG:  x", Some(("", "LOG:  x")));
    }

    /// Lines of servers that have another prefix, such as the one of before: whatever their texts
    /// say, nothing of it is a name.
    #[test]
    fn a_line_with_another_prefix_is_none() {
        let texts = [
            "INSTRUCTION : ",
            "REQU\u{ca}TE : ",
            "D\u{c9}TAIL : ",
            "D\u{c9}TAIL\u{a0}: ",
            "\u{8be6}\u{7ec6}\u{4fe1}\u{606f}: ",
            "\u{8a73}\u{7d30}\u{ff1a} ",
            "\u{8a73}\u{7d30}\u{ff1a}",
            "STATEMENT:  ",
            "LOG: ",
            "LOG:  ",
            "word of no language: ",
        ];
        for text in texts {
            let line = format!("2024-05-01 10:00:00.123 UTC [42] {text}a@b ERROR:  y");
            check("%m [%p] %u@%d ", &line, None);
            // What follows %q may be missing: then its text is not even looked at.
            let rest = line.split_once("] ").map(|(_, rest)| rest).expect("it has one");
            let background = ("time=2024-05-01 10:00:00.123 UTC|pid=42", rest);
            check("%m [%p] %q%u@%d ", &line, Some(background));
            let line = format!("2024-05-01 10:00:00 UTC:{text}a@b:[42]:ERROR:  y");
            check("%t:%r:%u@%d:[%p]:", &line, None);
        }
    }

    /// A quote tells a text from a name: then none of the line's names is believed.
    #[test]
    fn quotes_are_not_in_names() {
        for quote in ["'", "\"", "`", "\u{ab}", "\u{201e}", "\u{2019}"] {
            let line = format!("2024-05-01 10:00:00.123 UTC [42] it{quote}s a@b ERROR:  y");
            let expected = Some(("time=2024-05-01 10:00:00.123 UTC|pid=42", "ERROR:  y"));
            check("%m [%p] %u@%d ", &line, expected);
        }
    }

    #[test]
    fn padded_fields_are_read() {
        let prefix = "%m [%8p] %-10u|%5d ";
        let line = "2024-05-01 10:00:00.123 UTC [      42] joe       | shop LOG:  x";
        check(
            prefix,
            line,
            Some(("time=2024-05-01 10:00:00.123 UTC|pid=42|user=joe|db=shop", "LOG:  x")),
        );
        let long = "2024-05-01 10:00:00.123 UTC [123456789] longer than ten|shopping LOG:  x";
        check(
            prefix,
            long,
            Some((
                "time=2024-05-01 10:00:00.123 UTC|pid=123456789|user=longer than ten|db=shopping",
                "LOG:  x",
            )),
        );
    }

    #[test]
    fn unknown_escapes_and_missing_times_are_noticed() {
        assert!(Prefix::compile("%m %Z ").expect_err("unknown").contains("%Z"));
        let has_time = |text| Prefix::compile(text).expect(text).has_time();
        assert!(has_time("%m [%p] ") && has_time("%5t") && has_time("%n"));
        assert!(!has_time("[%p] ") && !has_time("%q%m ") && !has_time("%s "));
    }
}
