//! Which databases are visited: those that are named, those that a pattern finds, and who of these
//! has its turn.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Databases of providers, which nobody else may look into. Patterns pass over them.
const PROVIDERS: [&str; 5] =
    ["rdsadmin", "azure_maintenance", "cloudsqladmin", "alloydbadmin", "alloydbmetadata"];

/// `postgres.databases`, understood: names, patterns with `*` and `?`, and exclusions, which begin
/// with `!`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Each once, in the order of the list.
    pub(super) names: Vec<String>,
    patterns: Vec<String>,
    excluded: Vec<String>,
}

/// When each database was visited last.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<String, Instant>);

impl Wanted {
    /// Without any name or pattern it is `maintenance`; with nothing but exclusions, everything
    /// else.
    pub(super) fn read(list: &[String], maintenance: &str) -> Self {
        let mut wanted = Self::default();
        let mut seen = HashSet::new();
        for item in list.iter().filter(|item| !item.is_empty()) {
            if let Some(excluded) = item.strip_prefix('!') {
                wanted.excluded.push(excluded.to_owned());
            } else if item.contains(['*', '?']) {
                wanted.patterns.push(item.clone());
            } else if seen.insert(item) {
                wanted.names.push(item.clone());
            }
        }
        if wanted.names.is_empty() && wanted.patterns.is_empty() {
            if wanted.excluded.is_empty() {
                wanted.names.push(maintenance.to_owned());
            } else {
                wanted.patterns.push("*".to_owned());
            }
        }
        wanted
    }

    /// The databases of `there` that a pattern finds, beside those that are named.
    pub(super) fn found<'a>(&self, there: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let is_any = |patterns: &[String], name: &str| {
            patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
        };
        let is_found = |name: &&str| {
            is_any(&self.patterns, name)
                && !is_any(&self.excluded, name)
                && !PROVIDERS.contains(name)
                && !self.names.iter().any(|named| named == name)
        };
        there.filter(is_found).collect()
    }
}

impl Turns {
    /// The `most` of `found` whose turn it is: first those that were never visited, then those that
    /// were longest ago.
    pub(super) fn next(&self, found: &[&str], most: usize) -> Vec<String> {
        let mut by_age: Vec<_> = found.iter().enumerate().collect();
        by_age.sort_by_key(|(at, name)| (self.0.get(**name), *at));
        by_age.into_iter().take(most).map(|(_, name)| (*name).to_owned()).collect()
    }

    pub(super) fn visited(&mut self, name: &str, now: Instant) {
        self.0.insert(name.to_owned(), now);
    }

    /// How long ago `name` was visited.
    pub(super) fn age(&self, name: &str, now: Instant) -> Option<Duration> {
        self.0.get(name).map(|at| now.saturating_duration_since(*at))
    }

    /// Forgets every other database.
    pub(super) fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_there(name));
    }
}

/// Whether `name` is of the form of `pattern`. Each `*` is tried where it began last, and nowhere
/// before: no pattern takes longer than its length times that of the name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if name.get(n) == Some(byte) => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(list: &[&str]) -> Wanted {
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        Wanted::read(&list, "postgres")
    }

    /// C42: no databases means the maintenance database; doubles count once.
    #[test]
    fn databases_fall_back_to_the_maintenance_database() {
        let check = |list: &[&str], names: &[&str]| assert_eq!(wanted(list).names, names);
        check(&[], &["postgres"]);
        check(&[""], &["postgres"]);
        check(&["b", "a", "b"], &["b", "a"]);
        check(&["*"], &[]);
        check(&["!a"], &[]);
        check(&["b", "a*"], &["b"]);
    }

    #[test]
    fn patterns_find_what_is_not_excluded() {
        let there = ["app_a", "app_old", "azure_maintenance", "postgres", "rdsadmin", "x"];
        let check = |list: &[&str], found: &[&str]| {
            assert_eq!(wanted(list).found(there.into_iter()), found, "{list:?}");
        };
        check(&["*"], &["app_a", "app_old", "postgres", "x"]);
        check(&["app_*", "!app_old"], &["app_a"]);
        check(&["!app_*"], &["postgres", "x"]);
        check(&["*", "!app_old", "app_old"], &["app_a", "postgres", "x"]);
        check(&["?"], &["x"]);
        check(&["app_a"], &[]);
        check(&[], &[]);
        assert_eq!(
            wanted(&["*", "!app_old", "app_old", "rdsadmin"]).names,
            ["app_old", "rdsadmin"]
        );
    }

    #[test]
    fn a_pattern_is_of_the_whole_name() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        };
        check("*", "", true);
        check("a*", "a", true);
        check("a*c", "abc", true);
        check("a*c", "abcd", false);
        check("*b*b", "abab", true);
        check("*ab", "aab", true);
        check("a?c", "abc", true);
        check("a?c", "ac", false);
        check("**", "x", true);
        check("A*", "ab", false);
        let long = "a".repeat(10_000);
        check(&"*a".repeat(500), &long, true);
        check(&format!("{}b", "*a".repeat(500)), &long, false);
    }

    /// Each has its turn before anybody has a second one, also when others come and go.
    #[test]
    fn everybody_has_a_turn() {
        let begin = crate::clock::monotonic();
        let mut turns = Turns::default();
        let mut at = 0;
        let mut cycle = |there: &[&str]| {
            at += 1;
            let next = turns.next(there, 2);
            for name in &next {
                turns.visited(name, begin + Duration::from_secs(at));
            }
            turns.keep(|name| there.contains(&name));
            next
        };
        let all = ["a", "b", "c", "d", "e"];
        assert_eq!(cycle(&all), ["a", "b"]);
        assert_eq!(cycle(&all), ["c", "d"]);
        assert_eq!(cycle(&all), ["e", "a"]);
        assert_eq!(cycle(&["a", "b", "d", "e", "new"]), ["new", "b"]);
        assert_eq!(cycle(&["a", "b", "d", "e", "new"]), ["d", "a"]);
        assert_eq!(cycle(&["a"]), ["a"]);
        assert_eq!(turns.age("a", begin + Duration::from_secs(9)), Some(Duration::from_secs(3)));
        assert_eq!(turns.age("b", begin), None);
    }
}
