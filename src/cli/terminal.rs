//! Everything that commands print goes through here: control characters from backends, hosts and
//! logs are escaped, and a closed pipe ends the output without an error.

use std::borrow::Cow;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use crate::units;

/// The colours of our own tables, and their end.
const COLOURS: [&str; 6] =
    ["\x1b[38;5;8m", "\x1b[38;5;9m", "\x1b[38;5;10m", "\x1b[38;5;11m", "\x1b[39m", "\x1b[0m"];

/// Writes a line, or several, to standard output.
pub fn tell(text: &str) -> std::io::Result<()> {
    tell_while_read(text).map(drop)
}

/// The same; `false` when nobody reads it any more.
pub fn tell_while_read(text: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", visible(text.trim_end())).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// [`tell`] as the whole of a command: a text that does not arrive, on a full disk for example, is
/// said and is its failure.
pub fn told(text: &str) -> ExitCode {
    match tell(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("the output is not complete: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line, or several, to standard output, of a program that goes on either way.
pub fn note(text: &str) {
    tell(text).ok();
}

/// Writes a line, or several, to standard error.
pub fn complain(text: &str) {
    // There is nobody left to be told that nobody is told.
    writeln!(std::io::stderr().lock(), "{}", visible(text.trim_end())).ok();
}

/// `text` with every character that a terminal obeys, or that reorders what is read, written as
/// JSON writes it: a document stays what it is.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(units::is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(colour) = COLOURS.iter().find(|colour| rest.starts_with(**colour)) {
            shown.push_str(colour);
            rest = &rest[colour.len()..];
            continue;
        }
        if units::is_obeyed(c) {
            units::escape(c, &mut shown);
        } else {
            shown.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_of_it() {
        let check = |text: &str, expected: &str| assert_eq!(visible(text), expected, "{text:?}");
        check("plain\ttext\nK\u{f6}ln \u{2500}", "plain\ttext\nK\u{f6}ln \u{2500}");
        check("\x1b]0;title\x07", "\\u001b]0;title\\u0007");
        check("\x1b[2J\x1b[8mhidden", "\\u001b[2J\\u001b[8mhidden");
        check("a\rb\u{8}c\u{7f}", "a\\u000db\\u0008c\\u007f");
        check("\u{9b}31m", "\\u009b31m");
        check("\u{202e}txt.exe\u{2066}", "\\u202etxt.exe\\u2066");
        check("\u{e0041}", "\\udb40\\udc41");
        check("\x1b[38;5;9mred\x1b[0m\x1b[1m", "\x1b[38;5;9mred\x1b[0m\\u001b[1m");
    }

    #[test]
    fn a_document_stays_what_it_is() {
        let document = serde_json::json!({"a\u{9b}": ["\x1b[2J", "\u{202e}", "\u{e0041}", "x"]});
        let text = document.to_string();
        let read: serde_json::Value = serde_json::from_str(&visible(&text)).expect("JSON");
        assert_eq!(read, document);
        assert!(visible(&text).is_ascii());
    }
}
