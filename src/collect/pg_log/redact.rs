//! What a log says about data stays on the host. Pure.
//!
//! `DETAIL`, `CONTEXT`, `QUERY` and `STATEMENT` lines are left out whole by the caller; here are
//! the messages that carry statements or values themselves. The texts are the server's
//! English ones; under another `lc_messages` a line has no level that is known and is no entry.

/// Words after which a message goes on with a statement of the user's.
const STATEMENT_MARKS: [&str; 6] =
    ["statement: ", "execute ", "parse ", "bind ", "fastpath function call: ", "plan:\n"];

/// Beginnings of messages whose quoted words are values, not names.
const VALUE_MESSAGES: [&str; 18] = [
    "COPY ",
    "bit string",
    "cannot cast",
    "could not convert",
    "date out of range",
    "date/time field value out of range",
    "enum label",
    "interval field value out of range",
    "invalid ",
    "malformed ",
    "operator is not unique",
    "syntax error",
    "time zone ",
    "trailing junk",
    "unrecognized ",
    "unterminated ",
    "value ",
    "zero-length delimited identifier",
];

/// `message` without statements and values, and whether anything was left out.
pub(super) fn message(text: &str) -> (String, bool) {
    if let Some(kept) = before_statement(text) {
        return (kept.to_owned(), true);
    }
    // Passwords stand in statements only, but a user's own RAISE may say anything.
    if text.contains("password '") || text.contains("PASSWORD '") {
        return ("(text with a password)".to_owned(), true);
    }
    if VALUE_MESSAGES.iter().any(|beginning| text.starts_with(beginning)) {
        return without_quoted(text);
    }
    (text.to_owned(), false)
}

/// `duration: 1.2 ms  execute s1: SELECT ...` up to and with the mark.
fn before_statement(text: &str) -> Option<&str> {
    let start = match text.strip_prefix("duration: ") {
        Some(after) => text.len() - after.len() + after.find(" ms  ").map(|at| at + 5)?,
        None => 0,
    };
    let rest = text.get(start..)?;
    let mark = STATEMENT_MARKS.iter().find(|mark| rest.starts_with(**mark))?;
    // The name of a prepared statement or of a portal stands between the mark and the colon.
    let named = matches!(*mark, "execute " | "parse " | "bind ");
    let end = if named { rest.find(": ").map(|at| at + 1)? } else { mark.trim_end().len() };
    text.get(..start + end)
}

/// Everything from the first quote to the last: a value may hold quotes itself.
fn without_quoted(text: &str) -> (String, bool) {
    let (Some(first), Some(last)) = (text.find('"'), text.rfind('"')) else {
        return (text.to_owned(), false);
    };
    let after = if last > first { &text[last..] } else { "" };
    (format!("{}\"?{after}", &text[..first]), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_and_values_are_left_out() {
        let check = |text: &str, kept: &str, redacted: bool| {
            assert_eq!(message(text), (kept.to_owned(), redacted), "{text}");
        };
        let same = |text: &str| check(text, text, false);
        same("checkpoint starting: time");
        same("relation \"orders\" does not exist");
        same("duplicate key value violates unique constraint \"orders_pkey\"");
        same("duration: 0.123 ms");
        same("execute: not one");
        check("statement: SELECT 'secret'", "statement:", true);
        check("duration: 1.5 ms  statement: SELECT 'x'", "duration: 1.5 ms  statement:", true);
        check("duration: 1.5 ms  execute s_1: SELECT $1", "duration: 1.5 ms  execute s_1:", true);
        check("duration: 1.5 ms  bind <unnamed>: S", "duration: 1.5 ms  bind <unnamed>:", true);
        check("duration: 1.5 ms  plan:\nQuery Text: S", "duration: 1.5 ms  plan:", true);
        check("execute <unnamed>: SELECT 'x'", "execute <unnamed>:", true);
        check(
            "invalid input syntax for type integer: \"secret\"",
            "invalid input syntax for type integer: \"?\"",
            true,
        );
        check("syntax error at or near \"secret\" at", "syntax error at or near \"?\" at", true);
        check("invalid value: \"a\"b\"c\" here", "invalid value: \"?\" here", true);
        check("value \"99999\" is out of range", "value \"?\" is out of range", true);
        check("value \"open", "value \"?", true);
        check("could not: ALTER ROLE a PASSWORD 'x'", "(text with a password)", true);
    }
}
