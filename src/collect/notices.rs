//! A log line when a state changes, and none while it lasts.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::metric::pg_stats::MAIN_INSTANCE;

/// What is wrong now, by the part it concerns.
#[derive(Debug, Default)]
pub struct Notices {
    /// The server, where it is not the main one.
    instance: Option<String>,
    failing: BTreeMap<String, String>,
}

impl Notices {
    /// None wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// None wrong yet with a server, whose name the log's lines have.
    pub fn of(instance: &str) -> Self {
        let instance = (instance != MAIN_INSTANCE).then(|| instance.to_owned());
        Self { instance, ..Self::default() }
    }

    /// Passes a good value on; an error is logged when it is not the one `part` already has.
    pub fn ok<T, E: Display>(&mut self, part: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.recovered(part);
                Some(value)
            }
            Err(error) => {
                self.failed(part, &error.to_string());
                None
            }
        }
    }

    /// `part` has failed with `message`. Returns whether that is news.
    pub fn failed(&mut self, part: &str, message: &str) -> bool {
        if self.failing.get(part).is_some_and(|known| known == message) {
            return false;
        }
        tracing::warn!(instance = self.instance, part, "{message}");
        self.failing.insert(part.to_owned(), message.to_owned());
        true
    }

    /// Everything that is wrong now, a line for each part.
    pub fn told(&self) -> Vec<String> {
        self.failing.iter().map(|(part, message)| format!("{part}: {message}")).collect()
    }

    /// Forgets parts that are not there any more: they neither fail nor work again.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.failing.retain(|part, _| is_there(part));
    }

    /// `part` works. Returns whether that is news.
    pub fn recovered(&mut self, part: &str) -> bool {
        let news = self.failing.remove(part).is_some();
        if news {
            tracing::info!(instance = self.instance, part, "works again");
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_news() {
        let mut notices = Notices::new();
        assert!(!notices.recovered("a"));
        assert!(notices.failed("a", "x"));
        assert!(!notices.failed("a", "x"));
        assert!(notices.failed("a", "y"));
        assert!(notices.failed("b", "y"));
        assert!(notices.recovered("a"));
        assert!(!notices.recovered("a"));
        assert_eq!(notices.ok("b", Ok::<_, String>(5)), Some(5));
        assert_eq!(notices.ok("b", Err::<u8, _>("z")), None);
        assert!(!notices.failed("b", "z"));
        assert_eq!(notices.told(), ["b: z"]);
        notices.keep(|part| part != "b");
        assert!(notices.told().is_empty() && !notices.recovered("b"));
    }
}
