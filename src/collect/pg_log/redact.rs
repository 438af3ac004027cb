//! What a log says about data stays on the host: what leaves of a message is text of this program.
//! Pure.
//!
//! A message that has one of the forms below leaves as that form; any other as the class of its
//! SQLSTATE and its length. No byte of a message itself is copied, because nothing in it tells the
//! server's own words from a statement, a value, or what a function of the user's raised.

use super::forms::{CLASSES, FORMS};

/// What leaves of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) text: String,
    /// The message said more.
    pub(super) is_less: bool,
}

/// What leaves of `message`.
pub(super) fn message(message: &str, sqlstate: Option<&str>) -> Told {
    let forms = FORMS.iter().filter(|form| has_form(message, form));
    if let Some(form) = forms.max_by_key(|form| form.len()) {
        return Told { text: (*form).to_owned(), is_less: *form != message };
    }
    if message.is_empty() {
        return Told { text: String::new(), is_less: false };
    }
    let characters = message.chars().count();
    let class = sqlstate.and_then(|state| CLASSES.iter().find(|(code, _)| state.starts_with(code)));
    let class = class.map(|(_, name)| format!("{name} ")).unwrap_or_default();
    Told { text: format!("{class}(text of {characters} characters)"), is_less: true }
}

/// Whether `message` begins with `form`, in which `?` stands for anything.
fn has_form(message: &str, form: &str) -> bool {
    let mut pieces = form.split('?');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = message.strip_prefix(first) else { return false };
    for piece in pieces {
        let Some((_, after)) = rest.split_once(piece) else { return false };
        rest = after;
    }
    true
}

/// What a `duration: 1.234 ms` entry measured. The server writes three decimals.
pub(super) fn duration(message: &str) -> Option<f64> {
    let (millis, _) = message.strip_prefix("duration: ")?.split_once(" ms")?;
    let (whole, decimals) = millis.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let is_duration =
        is_number(whole) && is_number(decimals) && whole.len() <= 12 && decimals.len() == 3;
    millis.parse().ok().filter(|_| is_duration)
}

/// `state` if it has the form of a SQLSTATE.
pub(super) fn sqlstate(state: &str) -> Option<&str> {
    let is_one = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit();
    Some(state).filter(|state| state.len() == 5 && state.bytes().all(is_one))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_forms_leave_and_nothing_else() {
        let check = |text: &str, kept: &str, is_less: bool| {
            assert_eq!(message(text, None), Told { text: kept.to_owned(), is_less }, "{text}");
        };
        let same = |text: &str| check(text, text, false);
        same("deadlock detected");
        same("database system is ready to accept connections");
        same("");
        check("checkpoint starting: time", "checkpoint starting", true);
        check("relation \"orders\" does not exist", "relation \"?\" does not exist", true);
        check("relation \"a\" does not", "(text of 21 characters)", true);
        check("duration: 0.123 ms", "duration: ? ms", true);
        let statement = "duration: ? ms  statement";
        check("duration: 1.500 ms  statement: SELECT 'x'", statement, true);
        check("duration: 1.500 ms  plan:\nQuery Text: S", "duration: ? ms  plan", true);
        check("statement: SELECT 'secret'", "statement: ?", true);
        check("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT 1", "AUDIT: SESSION", true);
        check("cron job 1 starting: DELETE FROM t", "cron job ? starting", true);
        check("my own words", "(text of 12 characters)", true);
        check("\u{e9}t\u{e9}", "(text of 3 characters)", true);
        let told = message("la relation n'existe pas", Some("42P01"));
        assert_eq!(told.text, "syntax error or access rule violation (text of 24 characters)");
        assert_eq!(message("x", Some("ZZ999")).text, "(text of 1 characters)");
    }

    #[test]
    fn durations_are_the_servers() {
        let check = |text: &str, expected: Option<f64>| assert_eq!(duration(text), expected);
        check("duration: 1.500 ms", Some(1.5));
        check("duration: 12345.678 ms  statement: SELECT 1", Some(12345.678));
        for other in ["duration: 1.5 ms", "duration: 1e3 ms", "duration: -1.500 ms", "x"] {
            check(other, None);
        }
    }

    proptest! {
        /// Whatever a message says: a form of the table, or its class and length.
        #[test]
        fn no_byte_of_a_message_leaves(tail in ".{0,60}", form in 0..FORMS.len()) {
            let told = message(&tail, None).text;
            let length = format!("(text of {} characters)", tail.chars().count());
            prop_assert!(FORMS.contains(&told.as_str()) || told == length || tail.is_empty());
            let told = message(&(FORMS[form].to_owned() + &tail), None).text;
            prop_assert!(FORMS.contains(&told.as_str()));
        }
    }
}
