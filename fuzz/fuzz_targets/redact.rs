//! Redaction: whatever a line of a log says, what leaves of its message is text of the agent's own.
//! So no secret leaves, those of the corpus (`tests/pg_log/corpus.txt`, the seeds) among them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pganalytics_agent_fuzz::pg_log::{classes, forms, text_of, told};

const PREFIXES: [&str; 3] = ["%m [%p] ", "%m [%p] %q%u@%d ", ""];
/// More lines of one input would say nothing new, and take long.
const LINES_MAX: usize = 16;
/// Before the corpus's lines, which have none of their own.
const HEAD: &str = "2026-03-01 12:00:00.000 UTC [7] ";

fuzz_target!(|input: &[u8]| {
    for line in String::from_utf8_lossy(input).lines().take(LINES_MAX) {
        check(line);
        for line in [line.to_owned(), format!("{HEAD}{line}")] {
            for prefix in PREFIXES {
                if let Some(text) = text_of(&line, prefix) {
                    check(text);
                }
            }
        }
    }
});

fn check(message: &str) {
    for sqlstate in [None, Some("42601")] {
        let told = told(message, sqlstate);
        let length = format!("(text of {} characters)", message.chars().count());
        let class = told.strip_suffix(&length).map(str::trim_end);
        let is_class =
            class.is_some_and(|class| class.is_empty() || classes().any(|name| name == class));
        let is_own = told.is_empty() || is_class || forms().contains(&told.as_str());
        assert!(is_own, "{told:?} of {message:?}");
    }
}
