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
    /// One of the names has blanks in it, and nothing but a comma or a blank behind it.
    is_loose: bool,
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

/// The longest role or database, bytes.
const NAME_BYTES_MAX: usize = 63;
/// The longest `application_name`: its 63 bytes may be written as `\xNN`.
const APPLICATION_BYTES_MAX: usize = 4 * NAME_BYTES_MAX;
/// The longest client: a host name, and a port in parentheses.
const CLIENT_BYTES_MAX: usize = 253 + 7;
/// Letters that stand for something in some version.
const KNOWN: &str = "audbhrLpPtmnieclsvxQ";
/// Those of them that stand for a name of somebody's choice.
const NAMES: &str = "audhr";

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
                        said.is_loose |= NAMES.contains(*kind)
                            && next.is_some_and(Token::is_loose)
                            && text.trim_matches(' ').contains(char::is_whitespace);
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

impl Token {
    /// A separator that every text has in it.
    fn is_loose(&self) -> bool {
        matches!(self, Self::Literal(text) if text.chars().all(|c| c == ',' || c == ' '))
    }
}

impl<'a> Said<'a> {
    /// Without its names when one of them is more likely a piece of a text: the line may be one of
    /// another prefix, or pieces of two lines.
    fn believed(self) -> Self {
        let is_name = |name: Option<&str>, bytes_max: usize| {
            name.is_none_or(|name| name.len() <= bytes_max && !name.contains(is_of_text))
        };
        let are_names = is_name(self.user, NAME_BYTES_MAX)
            && is_name(self.database, NAME_BYTES_MAX)
            && is_name(self.application, APPLICATION_BYTES_MAX)
            && is_name(self.client, CLIENT_BYTES_MAX);
        if are_names && !self.is_loose {
            return self;
        }
        Self { user: None, database: None, application: None, client: None, ..self }
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

/// What a text often has in it and a name hardly ever: a quote, a comma, an equals sign, a control
/// character, or the character that replaces bytes which are not valid UTF-8.
fn is_of_text(c: char) -> bool {
    is_quote(c) || c == ',' || c == '=' || c.is_control() || c == char::REPLACEMENT_CHARACTER
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
    use proptest::prelude::*;

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

    /// So do the separators of labels and lists, what no name may have in it, and lengths that none
    /// has.
    #[test]
    fn what_is_of_a_text_is_not_in_names() {
        let prefix = "%m [%p] %u@%d %a|%h|";
        let line = |user: &str, database: &str, application: &str, client: &str| {
            let names = format!("{user}@{database} {application}|{client}|");
            format!("2024-05-01 10:00:00.123 UTC [42] {names}LOG:  x")
        };
        let nameless = "time=2024-05-01 10:00:00.123 UTC|pid=42";
        let (name, application) = ("n".repeat(63), "\\xc3".repeat(63));
        let client = format!("{}(65535)", "h".repeat(253));
        let all = format!("{nameless}|user={name}|db={name}|app={application}|client={client}");
        check(prefix, &line(&name, &name, &application, &client), Some((&all, "LOG:  x")));
        let check = |line: &str| check(prefix, line, Some((nameless, "LOG:  x")));
        check(&line(&format!("{name}n"), "b", "c", "d"));
        check(&line("a", &format!("{name}n"), "c", "d"));
        check(&line("a", "b", &format!("{application}n"), "d"));
        check(&line("a", "b", "c", &format!("{client}n")));
        for odd in ["x=1", "x,y", "x\0", "x\u{1b}y", "x\ty", "\u{fffd}x"] {
            check(&line(odd, "b", "c", "d"));
            check(&line("a", odd, "c", "d"));
            check(&line("a", "b", odd, "d"));
            check(&line("a", "b", "c", odd));
        }
    }

    /// Between commas a name of several words is one that a text may have, too.
    #[test]
    fn names_between_commas_have_no_blanks() {
        let line = "2024-05-01 10:00:00.123 UTC [42] joe,my shop LOG:  x";
        let time = "time=2024-05-01 10:00:00.123 UTC|pid=42";
        check("%m [%p] %u,%d LOG:  ", line, Some((&format!("{time}|user=joe|db=my shop"), "x")));
        let line = "2024-05-01 10:00:00.123 UTC [42] psql of joe,shop LOG:  x";
        check("%m [%p] %a,%d ", line, Some((time, "LOG:  x")));
        check(
            "%m [%p] %a|%d ",
            &line.replace(',', "|"),
            Some((&format!("{time}|db=shop|app=psql of joe"), "LOG:  x")),
        );
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

    const SECRET: &str = "geheim7";

    /// A line with names, whose text has the secret in it everywhere.
    fn line(prefix: &str, names: [&str; 4], words: &[String]) -> String {
        let fields = [("%m", "2024-05-01 10:00:00.123 UTC"), ("%p", "42"), ("%l", "7"), ("%q", "")];
        let names = ["%u", "%d", "%a", "%h"].into_iter().zip(names);
        let head = fields.into_iter().chain(names);
        let head = head.fold(prefix.to_owned(), |text, (field, value)| text.replace(field, value));
        let words: Vec<_> = words.iter().map(|word| format!("{word}{SECRET}")).collect();
        format!("{head}LOG:  statement: {}", words.join(" "))
    }

    fn names_of<'a>(prefix: &str, line: &'a str) -> Vec<&'a str> {
        let compiled = Prefix::compile(prefix).expect(prefix);
        let split = compiled.split(line).filter(|(_, rest)| words::read(rest).is_some());
        let said = split.map(|(said, _)| said).unwrap_or_default();
        let names = [said.user, said.database, said.application, said.client];
        names.into_iter().flatten().collect()
    }

    proptest! {
        /// Lost bytes join the beginning of a line with the end of another. Where the prefix has
        /// separators that the text has not, nothing of the text is a name then; where it has
        /// commas and blanks, at most a word is that has nothing of a text in it.
        #[test]
        fn nothing_of_a_torn_text_is_a_name(
            words in proptest::collection::vec("[a-zA-Z0-9 .,;:=*()<>'\"-]{0,6}", 1..12),
            (from, to) in (0..300_usize, 0..300_usize),
        ) {
            let torn = |prefix: &str| {
                let one = line(prefix, ["joe", "shop", "psql", "10.0.0.1"], &words);
                let other = line(prefix, ["ann", "mart", "my app", "[local]"], &words);
                let (from, to) = (from.min(one.len()), to.min(other.len()));
                format!("{}{}", &one[..from], &other[to..])
            };
            for prefix in [
                "%m [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",
                "%m [%p] %q%u@%d/%a ",
                "%m [%p] <%u|%d|%a|%h> ",
            ] {
                let torn = torn(prefix);
                for name in names_of(prefix, &torn) {
                    prop_assert!(!name.contains(SECRET), "{name:?} of {torn:?}");
                }
            }
            for prefix in ["%m [%p] %u,%d,%a,%h ", "%m [%p] %u %d "] {
                let torn = torn(prefix);
                for name in names_of(prefix, &torn) {
                    prop_assert!(!name.contains([' ', ',', '=', '\'', '"']), "{name:?} of {torn:?}");
                }
            }
        }
    }
}
