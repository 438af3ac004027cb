//! Lines of a log become entries. Pure.
//!
//! An entry is a line with a level, the lines after it that begin with a tab, and the lines with
//! `DETAIL`, `HINT` and so on of the same process. Anything else in the file (what a library or
//! an archive command printed) is counted as skipped, with the lines after it that begin with a
//! tab: whose they are is not known.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::prefix::{Prefix, Said};
use super::words::{self, Part, Word};
use super::{Redaction, redact, time};
use crate::metric::Time;
use crate::metric::pg_log::Entry;

/// The longest text of one field; with the escapes of JSON it stays well under the contract's.
const TEXT_BYTES_MAX: usize = 32 * 1024;
/// The most lines of one entry; the rest is cut.
const LINES_MAX: usize = 500;

/// The longest name that is kept of a prefix: a role has 63 bytes, a host 253.
const NAME_CHARACTERS_MAX: usize = 256;

/// How the lines of one server are read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) prefix: Prefix,
    pub(super) zone: Option<TimeZone>,
    pub(super) redaction: Redaction,
}

/// One line of a file, without its newline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) text: &'a str,
    /// Where it begins in the file.
    pub(super) start: u64,
    /// Where the next one begins.
    pub(super) end: u64,
    /// It was longer than the limit.
    pub(super) cut: bool,
}

/// A complete entry and its place in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub(super) entry: Entry,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Joins lines.
#[derive(Debug)]
pub(super) struct Stitcher<'a> {
    reading: &'a Reading,
    open: Option<Open>,
    tail: Tail,
    /// Complete entries, in the order of the file.
    pub(super) done: Vec<Placed>,
    /// Lines that carry the prefix and a level.
    pub(super) matched: u64,
    /// Lines without the prefix or a level, continuations apart.
    pub(super) foreign: u64,
    /// Entries left out because their time is not known.
    pub(super) untimed: u64,
}

/// Whose the lines that begin with a tab are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// The open entry's.
    Open,
    /// Not the open entry's, or not known.
    Foreign,
}

#[derive(Debug)]
struct Open {
    start: u64,
    end: u64,
    lines: usize,
    at: Option<Timestamp>,
    entry: Entry,
    detail: String,
    context: String,
    statement: String,
    hint: String,
    part: Part,
    /// `log_error_verbosity = verbose`: the message begins with SQLSTATE.
    verbose: bool,
    /// Text came that is kept in no case.
    has_more: bool,
}

impl<'a> Stitcher<'a> {
    pub(super) fn new(reading: &'a Reading) -> Self {
        let (open, tail, done) = (None, Tail::Foreign, Vec::new());
        Self { reading, open, tail, done, matched: 0, foreign: 0, untimed: 0 }
    }

    /// Where the entry begins that further lines may belong to.
    pub(super) fn open_at(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.start)
    }

    /// Takes the next line of the file.
    pub(super) fn push(&mut self, line: Line<'_>) {
        if let Some(text) = line.text.strip_prefix('\t') {
            // Without an entry it is the tail of one whose head was read before.
            if let (Some(open), Tail::Open) = (&mut self.open, self.tail) {
                open.continue_with(text, &line);
            }
            return;
        }
        self.tail = Tail::Foreign;
        let split = self.reading.prefix.split(line.text);
        let Some((said, (word, text))) =
            split.and_then(|(said, rest)| Some((said, words::read(rest)?)))
        else {
            self.foreign += 1;
            return;
        };
        self.matched += 1;
        match word {
            Word::Level(level) => {
                self.finish();
                self.open = Some(Open::new(self.reading, &said, level, text, &line));
                self.tail = Tail::Open;
            }
            Word::Part(part) => {
                // Otherwise its entry was given up, or is another process's.
                if let Some(open) = self.open.as_mut().filter(|open| open.is_of(&said)) {
                    open.begin(part, text, &line);
                    self.tail = Tail::Open;
                }
            }
        }
    }

    /// Nothing more belongs to the open entry.
    pub(super) fn finish(&mut self) {
        let Some(open) = self.open.take() else { return };
        match open.close(self.reading.redaction) {
            Some(placed) => self.done.push(placed),
            None => self.untimed += 1,
        }
    }
}

impl Open {
    fn new(reading: &Reading, said: &Said<'_>, level: &str, text: &str, line: &Line<'_>) -> Self {
        let own = |text: Option<&str>| text.map(plain).filter(|text| !text.is_empty());
        let state = said.sqlstate.and_then(redact::sqlstate);
        let at = if said.is_epoch {
            said.time.and_then(time::epoch)
        } else {
            said.time.and_then(|text| time::civil(text, reading.zone.as_ref()))
        };
        let entry = Entry {
            timestamp: at.map(Time).unwrap_or_default(),
            level: level.to_owned(),
            pid: said.pid.and_then(|pid| pid.parse().ok()),
            user: own(said.user),
            database: own(said.database),
            application: own(said.application),
            client: own(said.client),
            // Success is no condition.
            sqlstate: own(state.filter(|state| *state != "00000")),
            session_id: own(said.session_id),
            line: said.line.and_then(|line| line.parse().ok()),
            truncated: line.cut.then_some(true),
            ..Entry::default()
        };
        let mut open = Self {
            start: line.start,
            end: line.end,
            lines: 0,
            at,
            entry,
            detail: String::new(),
            context: String::new(),
            statement: String::new(),
            hint: String::new(),
            part: Part::Message,
            verbose: false,
            has_more: false,
        };
        open.append(text);
        open
    }

    /// Whether a further part with this prefix is one of this entry.
    fn is_of(&self, said: &Said<'_>) -> bool {
        self.entry.pid == said.pid.and_then(|pid| pid.parse().ok())
    }

    fn begin(&mut self, part: Part, text: &str, line: &Line<'_>) {
        self.part = part;
        self.verbose |= part == Part::Location;
        self.end = line.end;
        self.cut_if(line.cut);
        self.append(text);
    }

    fn continue_with(&mut self, text: &str, line: &Line<'_>) {
        self.end = line.end;
        self.cut_if(line.cut);
        self.append(text);
    }

    fn append(&mut self, text: &str) {
        self.lines += 1;
        if self.lines > LINES_MAX {
            self.cut_if(true);
            return;
        }
        let field = match self.part {
            Part::Message => &mut self.entry.message,
            Part::Detail => &mut self.detail,
            Part::Hint => &mut self.hint,
            Part::Context => &mut self.context,
            Part::Statement => &mut self.statement,
            Part::Location | Part::Other => {
                self.has_more |= !text.is_empty();
                return;
            }
        };
        if !field.is_empty() {
            field.push('\n');
        }
        let room = TEXT_BYTES_MAX.saturating_sub(field.len());
        let mut kept = room.min(text.len());
        while !text.is_char_boundary(kept) {
            kept -= 1;
        }
        field.push_str(&text[..kept]);
        let is_cut = kept < text.len();
        self.cut_if(is_cut);
    }

    fn cut_if(&mut self, is_cut: bool) {
        if is_cut {
            self.entry.truncated = Some(true);
        }
    }

    /// The entry; none when its time is not known.
    fn close(self, redaction: Redaction) -> Option<Placed> {
        self.at?;
        let mut entry = self.entry;
        if self.verbose
            && let Some((state, message)) = entry.message.split_once(": ")
            && let Some(state) = redact::sqlstate(state)
        {
            entry.sqlstate = Some(state.to_owned()).filter(|state| state != "00000");
            entry.message = message.to_owned();
        }
        entry.duration_ms = redact::duration(&entry.message);
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        match redaction {
            Redaction::On => {
                let told = redact::message(&entry.message, entry.sqlstate.as_deref());
                entry.message = told.text;
                let left_out = [&self.detail, &self.hint, &self.context, &self.statement];
                let has_more = left_out.iter().any(|text| !text.is_empty());
                let is_less = told.is_less || has_more || self.has_more;
                entry.redacted = is_less.then_some(true);
            }
            Redaction::Off => {
                entry.detail = filled(self.detail);
                entry.hint = filled(self.hint);
                entry.context = filled(self.context);
                entry.statement = filled(self.statement);
            }
        }
        Some(Placed { entry, start: self.start, end: self.end })
    }
}

/// A name of the prefix: without control characters, and no longer than one can be.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reading(prefix: &str, redaction: Redaction) -> Reading {
        let prefix = Prefix::compile(prefix).expect("a prefix");
        Reading { prefix, zone: TimeZone::get("Europe/Berlin").ok(), redaction }
    }

    /// Feeds a log and compares the entries as JSON, and the lines that are foreign.
    fn check(reading: &Reading, log: &str, expected: &[Value], foreign: u64) {
        let mut stitcher = Stitcher::new(reading);
        let mut at = 0;
        for text in log.lines() {
            let end = at + text.len() as u64 + 1;
            stitcher.push(Line { text, start: at, end, cut: false });
            at = end;
        }
        stitcher.finish();
        let done: Vec<Value> = stitcher
            .done
            .iter()
            .map(|placed| serde_json::to_value(&placed.entry).expect("encodes"))
            .collect();
        assert_eq!((done.as_slice(), stitcher.foreign), (expected, foreign));
        for placed in &stitcher.done {
            let range = usize::try_from(placed.start).expect("small")..;
            assert!(log[range].starts_with("2024-"), "entries begin at their prefix");
        }
    }

    const LOG: &str = "\
\ttail of an entry that began before
2024-05-01 10:00:00.000 CEST [1] LOG:  shutting down
2024-05-01 10:00:01.000 CEST [2] ERROR:  duplicate key value violates unique constraint \"k\"
2024-05-01 10:00:01.000 CEST [2] DETAIL:  Key (a)=(secret) already exists.
2024-05-01 10:00:01.000 CEST [2] STATEMENT:  INSERT INTO t
\t    VALUES ('secret')
sh: 1: archive: not found
2024-05-01 10:00:02.000 CEST [3] LOG:  duration: 12.500 ms  statement: SELECT
\t  'secret'
2024-05-01 10:00:03.000 CEST [4] ERROR:  column \"x\" does not exist at character 8
2024-05-01 10:00:03.000 CEST [4] HINT:  Perhaps you meant \"y\".
2024-05-01 10:00:03.000 CEST [9] CONTEXT:  of another process
";

    #[test]
    fn lines_become_entries_without_data() {
        let entry = |second: u8, pid: u8, level: &str, message: &str, more: Value| {
            let mut entry = json!({
                "timestamp": format!("2024-05-01T08:00:0{second}.000Z"), "pid": pid,
                "level": level, "message": message,
            });
            let Value::Object(more) = more else { unreachable!("an object") };
            entry.as_object_mut().expect("an object").extend(more);
            entry
        };
        let constraint = "duplicate key value violates unique constraint \"k\"";
        let told = "duplicate key value violates unique constraint \"?\"";
        let column = "column \"x\" does not exist at character 8";
        check(
            &reading("%m [%p] ", Redaction::On),
            LOG,
            &[
                entry(0, 1, "LOG", "shutting down", json!({})),
                entry(1, 2, "ERROR", told, json!({"redacted": true})),
                entry(
                    2,
                    3,
                    "LOG",
                    "duration: ? ms  statement",
                    json!({"duration_ms": 12.5, "redacted": true}),
                ),
                entry(3, 4, "ERROR", "column \"?\" does not exist", json!({"redacted": true})),
            ],
            1,
        );
        check(
            &reading("%m [%p] ", Redaction::Off),
            LOG,
            &[
                entry(0, 1, "LOG", "shutting down", json!({})),
                entry(
                    1,
                    2,
                    "ERROR",
                    constraint,
                    json!({
                        "detail": "Key (a)=(secret) already exists.",
                        "statement": "INSERT INTO t\n    VALUES ('secret')",
                    }),
                ),
                entry(
                    2,
                    3,
                    "LOG",
                    "duration: 12.500 ms  statement: SELECT\n  'secret'",
                    json!({"duration_ms": 12.5}),
                ),
                entry(3, 4, "ERROR", column, json!({"hint": "Perhaps you meant \"y\"."})),
            ],
            1,
        );
    }

    #[test]
    fn verbose_messages_give_their_sqlstate() {
        check(
            &reading("%m [%p] ", Redaction::On),
            "2024-05-01 10:00:00.000 UTC [1] ERROR:  42P01: relation \"x\" does not exist\n\
             2024-05-01 10:00:00.000 UTC [1] LOCATION:  parserOpenTable, parse_relation.c:1395\n\
             2024-05-01 10:00:00.000 UTC [1] LOG:  00000: ready\n\
             2024-05-01 10:00:00.000 UTC [1] LOCATION:  PostmasterMain, postmaster.c:1\n\
             2024-05-01 10:00:00.000 UTC [1] LOG:  12345: said without a location\n",
            &[
                json!({
                    "timestamp": "2024-05-01T10:00:00.000Z", "level": "ERROR", "pid": 1,
                    "sqlstate": "42P01", "message": "relation \"?\" does not exist",
                    "redacted": true,
                }),
                json!({
                    "timestamp": "2024-05-01T10:00:00.000Z", "level": "LOG", "pid": 1,
                    "message": "(text of 5 characters)", "redacted": true,
                }),
                json!({
                    "timestamp": "2024-05-01T10:00:00.000Z", "level": "LOG", "pid": 1,
                    "message": "(text of 30 characters)", "redacted": true,
                }),
            ],
            0,
        );
    }

    #[test]
    fn long_entries_are_cut_and_say_so() {
        let reading = reading("%m [%p] ", Redaction::Off);
        let head = "2024-05-01 10:00:00.000 UTC [1] LOG:  ";
        let cut = |log: String| {
            let mut stitcher = Stitcher::new(&reading);
            for text in log.lines() {
                stitcher.push(Line { text, start: 0, end: 1, cut: false });
            }
            stitcher.finish();
            stitcher.done.remove(0).entry
        };
        let entry = cut(format!("{head}{}", "\u{fc}".repeat(TEXT_BYTES_MAX)));
        assert_eq!((entry.message.len(), entry.truncated), (TEXT_BYTES_MAX, Some(true)));
        let entry = cut(format!("{head}x\n{}", "\ty\n".repeat(LINES_MAX)));
        assert_eq!((entry.message.lines().count(), entry.truncated), (LINES_MAX, Some(true)));
        let entry = cut(format!("{head}x\n{}", "\ty\n".repeat(LINES_MAX - 1)));
        assert_eq!(entry.truncated, None);
    }

    /// C46: an entry whose time is not known is left out, not given another time.
    #[test]
    fn entries_without_a_known_time_are_left_out() {
        let reading = reading("%m [%p] ", Redaction::On);
        let mut stitcher = Stitcher::new(&reading);
        let text = "2024-05-01 10:00:00.000 IST [1] LOG:  x";
        stitcher.push(Line { text, start: 0, end: 1, cut: false });
        stitcher.finish();
        assert_eq!((stitcher.done.len(), stitcher.untimed), (0, 1));
    }
}
