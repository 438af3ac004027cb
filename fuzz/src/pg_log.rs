//! The files of `src/collect/pg_log` that decide what leaves of a line of a log.

#![allow(dead_code, reason = "the agent uses more of these files than the fuzzer does")]

#[path = "../../src/collect/pg_log/forms.rs"]
mod forms;
#[path = "../../src/collect/pg_log/prefix.rs"]
mod prefix;
#[path = "../../src/collect/pg_log/redact.rs"]
mod redact;
#[path = "../../src/collect/pg_log/words.rs"]
mod words;

/// The texts of the agent's own that a message may leave as.
pub fn forms() -> &'static [&'static str] {
    forms::FORMS
}

/// The names of the classes of SQLSTATEs.
pub fn classes() -> impl Iterator<Item = &'static str> {
    forms::CLASSES.iter().map(|(_, name)| *name)
}

/// What leaves of a message.
pub fn told(message: &str, sqlstate: Option<&str>) -> String {
    redact::message(message, sqlstate).text
}

/// The text of a line after a prefix of this form and a level, if it has both.
pub fn text_of<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    let prefix = prefix::Prefix::compile(prefix).ok()?;
    let (_, rest) = prefix.split(line)?;
    words::read(rest).map(|(_, text)| text)
}
