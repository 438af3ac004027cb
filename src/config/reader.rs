//! Reads a TOML file key by key and remembers every mistake with its line.
//!
//! Each getter names its key, its default and its range, so that one pass over a file gives the
//! values, all the mistakes at once, and the list of keys that exist ([`Key`]) for the sample file.
//! Section and key names are case sensitive.
//!
//! A second text may lie over the first, key by key: what the backend wants of this agent over what
//! its host says. It may set the keys that are marked so where they are read ([`Section::remote`]);
//! any other is the host's alone, and taken out of the second text. A value that would cost more
//! than the host allows ([`Bound`]) is limited. Both are told ([`Withheld`]), and neither is a
//! mistake.

mod bound; // what the backend may set, and how far
mod entries; // sections that stand several times
mod own; // what only the host's own file has
mod problem; // mistakes, and what of them may leave the host
mod unknown; // names that nobody has asked for

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use secrecy::SecretString;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub use self::bound::{Bound, Withheld, WithheldKind};
pub use self::entries::{Entry, is_name as is_entry_name};
use self::problem::PROBLEMS_MAX;
pub use self::problem::{ConfigError, Problem};
use self::unknown::{report_unknown, short};
use crate::{link::endpoint::without_user_info, units};

/// What is wrong with a value.
#[derive(Debug, Clone, Copy)]
struct Mistake<'a> {
    /// Without the value.
    kind: &'static str,
    /// For who reads the file.
    detail: &'a str,
    hint: &'a str,
}

/// A TOML document being read. Ask for every key, then call [`Document::finish`].
#[derive(Debug)]
pub struct Document<'t> {
    /// The host's file, and what lies over it.
    layers: Vec<Layer<'t>>,
    keys: Vec<Key>,
    problems: Vec<Problem>,
    withheld: Vec<Withheld>,
}

/// One text of a [`Document`].
#[derive(Debug)]
struct Layer<'t> {
    origin: Origin,
    file: PathBuf,
    text: &'t str,
    root: DeTable<'t>,
}

/// A text and the name that messages give it.
#[derive(Debug, Clone, Copy)]
pub struct Text<'t> {
    /// The file's name, or what stands for it.
    pub file: &'t Path,
    /// TOML.
    pub text: &'t str,
}

/// One section of a [`Document`]; a section that the file lacks gives defaults.
#[derive(Debug)]
pub struct Section<'a, 't> {
    document: &'a mut Document<'t>,
    name: String,
    /// Holds for every key of the section.
    marks: Marks,
    /// Holds for the next key.
    next: Marks,
}

/// What is special about a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Marks {
    remote: Option<&'static str>,
    change: Change,
    bound: Option<Bound>,
}

/// Who has set a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The host's own file.
    File,
    /// The backend.
    Remote,
}

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change {
    /// At once.
    #[default]
    Live,
    /// At the next start.
    Restart,
}

/// A key that the program knows, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The section's name, `queue`; `postgres.replica` for an entry that has a name.
    pub section: String,
    /// The key's name, `bytes_max`.
    pub name: &'static str,
    /// The default as TOML text, `"1GiB"`.
    pub default: String,
    /// The value in force as TOML text; that of a secret is not told.
    pub value: String,
    /// Who has set it.
    pub origin: Origin,
    /// Why the backend may set it, too; `None` when only the host's own file may.
    pub remote: Option<&'static str>,
    /// When a changed value takes effect.
    pub change: Change,
    /// The value as it was understood: `60` and `"1min"` are one.
    meaning: String,
}

/// The text of the configuration file at `file`; the error says what to do when it is missing.
pub fn read_text(file: &Path) -> Result<String, ConfigError> {
    fs_err::read_to_string(file).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound {
            format!("`agent config init > {}` writes one", file.display())
        } else {
            "the file must be readable UTF-8 text".to_owned()
        };
        ConfigError::whole(file, format!("cannot read the configuration: {error}"), hint)
    })
}

impl Key {
    /// Its name with its section: `queue.bytes_max`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Whether both values mean the same.
    pub fn means(&self, other: &Self) -> bool {
        self.meaning == other.meaning
    }
}

impl<'t> Layer<'t> {
    fn parse(origin: Origin, Text { file, text }: Text<'t>) -> Result<Self, ConfigError> {
        let parsed = DeTable::parse(text).map_err(|error| ConfigError {
            file: file.to_owned(),
            problems: vec![Problem {
                file: file.to_owned(),
                line: error.span().map(|span| line_of(text, &span)),
                message: format!("not valid TOML: {}", error.message()),
                hint: "strings need quotes, sections stand in [brackets]".to_owned(),
                report: origin.report("", "not valid TOML"),
            }],
            unlisted: 0,
        })?;
        Ok(Self { origin, file: file.to_owned(), text, root: parsed.into_inner() })
    }

    fn get(&self, section: &str, key: &str) -> Option<&Spanned<DeValue<'t>>> {
        self.root.get(section)?.get_ref().as_table()?.get(key)
    }

    fn source_of(&self, value: &Spanned<DeValue<'t>>) -> &'t str {
        self.text.get(value.span()).unwrap_or_default()
    }

    /// A mistake at `at`; `subject` and `kind` are what a backend hears of the host's own.
    fn problem(
        &self,
        at: &Range<usize>,
        (subject, kind): (&str, &'static str),
        message: String,
        hint: String,
    ) -> Problem {
        let (file, line) = (self.file.clone(), Some(line_of(self.text, at)));
        Problem { file, line, message, hint, report: self.origin.report(subject, kind) }
    }
}

impl<'t> Document<'t> {
    /// Parses `text`, which came from `file`.
    pub fn parse(file: &'t Path, text: &'t str) -> Result<Self, ConfigError> {
        Self::layered(Text { file, text }, None)
    }

    /// Parses the host's file and what the backend lays over it.
    pub fn layered(own: Text<'t>, remote: Option<Text<'t>>) -> Result<Self, ConfigError> {
        let mut layers = vec![Layer::parse(Origin::File, own)?];
        if let Some(remote) = remote {
            layers.push(Layer::parse(Origin::Remote, remote)?);
        }
        let (keys, problems, withheld) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { layers, keys, problems, withheld })
    }

    /// The section `[name]`.
    pub fn section(&mut self, name: &str) -> Section<'_, 't> {
        for layer in &self.layers {
            if let Some(value) = layer.root.get(name)
                && !value.get_ref().is_table()
            {
                let kind = "a section was expected";
                let (message, hint) = (format!("{name}: {kind}"), format!("write [{name}]"));
                let problem = layer.problem(&value.span(), (name, kind), message, hint);
                self.problems.push(problem);
            }
        }
        let (name, marks, next) = (name.to_owned(), Marks::default(), Marks::default());
        Section { document: self, name, marks, next }
    }

    /// Ends the reading: unknown sections and keys are mistakes too. Returns the known keys.
    pub fn finish(mut self) -> Result<Vec<Key>, ConfigError> {
        let mut unlisted = 0;
        for layer in &self.layers {
            unlisted += report_unknown(layer, &self.keys, &mut self.problems);
        }
        if self.problems.is_empty() {
            return Ok(self.keys);
        }
        self.problems.sort_by_key(|problem| problem.line);
        let file = self.layers.pop().map(|layer| layer.file).unwrap_or_default();
        Err(ConfigError::of(file, self.problems, unlisted))
    }

    /// The value that counts, and its layer.
    fn get(&self, section: &str, key: &str) -> Option<(&Layer<'t>, &Spanned<DeValue<'t>>)> {
        self.layers.iter().rev().find_map(|layer| Some((layer, layer.get(section, key)?)))
    }
}

impl<'t> Section<'_, 't> {
    /// A change of the next key takes effect at the next start.
    #[must_use]
    pub fn at_start(&mut self) -> &mut Self {
        self.next.change = Change::Restart;
        self
    }

    /// [`Section::at_start`] for every key of the section.
    #[must_use]
    pub fn all_at_start(mut self) -> Self {
        self.marks.change = Change::Restart;
        self
    }

    /// A string, `default` when it is absent.
    pub fn text(&mut self, key: &'static str, default: &str) -> String {
        let take = |value: &DeValue<'_>| value.as_str().map(str::to_owned);
        let known = self.know(key, format!("{default:?}"));
        self.read(known, "a string in quotes", default.to_owned(), take)
    }

    /// A string that may be absent; an empty string counts as absent.
    pub fn optional_text(&mut self, key: &'static str) -> Option<String> {
        Some(self.text(key, "")).filter(|text| !text.is_empty())
    }

    /// A secret: its value never appears in a message, and only the host's own file may set it.
    pub fn secret(&mut self, key: &'static str) -> SecretString {
        self.next.remote = None;
        let known = self.know(key, "\"\"".to_owned());
        let found = self.document.get(&self.name, key);
        let secret = found.map(|(_, value)| value.get_ref().as_str().map(str::to_owned));
        if secret == Some(None) {
            let kind = "is not a string";
            self.problem(key, None, Mistake { kind, detail: kind, hint: "put it in quotes" });
        }
        let secret = secret.flatten().unwrap_or_default();
        let told = if secret.is_empty() { "\"\"" } else { "\"(not shown)\"" };
        self.note(known, Some(told), mark_of(&secret));
        SecretString::from(secret)
    }

    /// A file or directory name. Only the host's own file may set it.
    pub fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        self.next.remote = None;
        PathBuf::from(self.text(key, default))
    }

    /// A file or directory name that may be absent or empty.
    pub fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        Some(self.path(key, "")).filter(|path| !path.as_os_str().is_empty())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let bound = self.next.bound;
        let known = self.know(key, default.to_string());
        let value = self.read(known, "true or false", default, DeValue::as_bool);
        let own = self.own(key).map_or(Some(default), DeValue::as_bool);
        if bound == Some(Bound::NotOn) && value && own == Some(false) {
            self.limit(known, "false");
            return false;
        }
        value
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let bound = self.next.bound;
        let known = self.know(key, default.to_string());
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let take = |value: &DeValue<'_>| integer_of(value).filter(|n| range.contains(n));
        let value = self.read(known, &expected, default, take);
        self.at_most(known, bound, value, default, take)
    }

    /// A duration such as `"30s"`; a plain integer is seconds. `default` and the ends of `range`
    /// are durations in the same notation.
    pub fn duration(&mut self, key: &'static str, default: &str, range: [&str; 2]) -> Duration {
        let bound = self.next.bound;
        let number = default.parse::<u64>().is_ok();
        let known =
            self.know(key, if number { default.to_owned() } else { format!("{default:?}") });
        let [low, high] = range.map(|end| units::parse_duration(end).unwrap_or_default());
        let expected = format!(
            "a duration such as \"30s\", or seconds, from {} to {}",
            units::show_duration(low),
            units::show_duration(high)
        );
        let default = units::parse_duration(default).unwrap_or_default();
        let take = |value: &DeValue<'_>| {
            let read = match value.as_str() {
                Some(text) => units::parse_duration(text),
                None => integer_of(value).map(Duration::from_secs),
            };
            read.filter(|duration| (low..=high).contains(duration))
        };
        let value = self.read(known, &expected, default, take);
        let own = self.own(key).and_then(take).unwrap_or(default);
        match bound {
            Some(Bound::AtLeast(least)) if value < least.min(own) => {
                let least = least.min(own);
                self.limit(known, &format!("{:?}", units::show_duration(least)));
                least
            }
            _ => value,
        }
    }

    /// A size such as `"64MiB"`; a plain integer is bytes. See [`Section::duration`].
    pub fn size(&mut self, key: &'static str, default: &str, range: [&str; 2]) -> u64 {
        let bound = self.next.bound;
        let known = self.know(key, format!("{default:?}"));
        let [low, high] = range.map(|end| units::parse_size(end).unwrap_or_default());
        let expected = format!("a size such as \"64MiB\", from {} to {}", range[0], range[1]);
        let default = units::parse_size(default).unwrap_or_default();
        let take = |value: &DeValue<'_>| {
            let read = match value.as_str() {
                Some(text) => units::parse_size(text),
                None => integer_of(value),
            };
            read.filter(|size| (low..=high).contains(size))
        };
        let value = self.read(known, &expected, default, take);
        self.at_most(known, bound, value, default, take)
    }

    /// One of `choices`, as its position; the first is the default.
    pub fn choice(&mut self, key: &'static str, choices: &[&str]) -> usize {
        let known = self.know(key, format!("{:?}", choices.first().copied().unwrap_or_default()));
        let expected = format!("one of {}", choices.join(", "));
        self.read(known, &expected, 0, |value| {
            value.as_str().and_then(|text| choices.iter().position(|choice| *choice == text))
        })
    }

    /// A list of names: a TOML array of strings, or one string with commas, with or without
    /// square brackets around it.
    pub fn list(&mut self, key: &'static str, default: &str) -> Vec<String> {
        let bound = self.next.bound;
        let known = self.know(key, format!("{default:?}"));
        let expected = "a list such as [\"a\", \"b\"] or \"a, b\"";
        let names = self.read(known, expected, split_list(default), list_of);
        self.no_longer(known, bound, names)
    }

    /// An address and port such as `127.0.0.1:8080`.
    pub fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let known = self.know(key, format!("\"{default}\""));
        let expected = "an address and a port such as \"127.0.0.1:8080\"";
        self.read(known, expected, default, |value| value.as_str()?.parse().ok())
    }

    /// Whether any layer sets `key`.
    pub fn has(&self, key: &str) -> bool {
        self.document.get(&self.name, key).is_some()
    }

    /// Adds a mistake about `key` that only its meaning shows.
    pub fn reject(&mut self, key: &'static str, kind: &'static str, hint: &str) {
        self.reject_for(key, kind, kind, hint);
    }

    /// [`Section::reject`] with a `detail` that may hold a value of the file: it stays on the host.
    pub fn reject_for(&mut self, key: &'static str, kind: &'static str, detail: &str, hint: &str) {
        let found = self.document.get(&self.name, key);
        let shown = found.map(|(layer, value)| layer.source_of(value));
        self.problem(key, shown, Mistake { kind, detail, hint });
    }

    /// [`Section::reject`] for a key whose value is not shown.
    pub fn reject_secret(&mut self, key: &'static str, detail: &str, hint: &str) {
        self.problem(key, None, Mistake { kind: "is not usable", detail, hint });
    }

    /// Adds a key to the list, and takes it from the backend where it is the host's alone. Returns
    /// its place in the list.
    fn know(&mut self, name: &'static str, default: String) -> usize {
        let next = std::mem::take(&mut self.next);
        let remote = next.remote;
        let restart = [next.change, self.marks.change].contains(&Change::Restart);
        let change = if restart { Change::Restart } else { Change::Live };
        if remote.is_none()
            && let Some((file, line)) = self.document.forbid(&self.name, name)
        {
            let message = format!("{}.{name}: only the host's own file may set it", self.name);
            let hint =
                "leave it out; docs/CONFIGURATION.md lists what a backend may set".to_owned();
            let (line, report) = (Some(line), None);
            let problem = Problem { file, line, message, hint, report };
            self.document.withheld.push(Withheld { kind: WithheldKind::Forbidden, problem });
        }
        let found = self.document.get(&self.name, name);
        let origin = found.map_or(Origin::Default, |(layer, _)| layer.origin);
        let (value, meaning) = (default.clone(), String::new());
        let section = self.name.clone();
        let key = Key { section, name, default, value, origin, remote, change, meaning };
        self.document.keys.push(key);
        self.document.keys.len() - 1
    }

    fn read<T: fmt::Debug>(
        &mut self,
        known: usize,
        expected: &str,
        default: T,
        take: impl FnOnce(&DeValue<'t>) -> Option<T>,
    ) -> T {
        let Some(key) = self.document.keys.get(known).map(|key| key.name) else { return default };
        let Some((layer, value)) = self.document.get(&self.name, key) else {
            let meaning = format!("{default:?}");
            self.note(known, None, meaning);
            return default;
        };
        let (shown, taken) = (layer.source_of(value), take(value.get_ref()));
        if taken.is_none() {
            let kind = "is not allowed";
            self.problem(key, Some(shown), Mistake { kind, detail: kind, hint: expected });
        }
        let value = taken.unwrap_or(default);
        self.note(known, Some(shown), format!("{value:?}"));
        value
    }

    /// Writes a key's value down; without `shown` it is the default.
    fn note(&mut self, known: usize, shown: Option<&str>, meaning: String) {
        let Some(key) = self.document.keys.get_mut(known) else { return };
        if let Some(shown) = shown {
            shown.clone_into(&mut key.value);
        }
        key.meaning = meaning;
    }

    fn problem(&mut self, key: &str, value: Option<&str>, mistake: Mistake<'_>) {
        let Mistake { kind, detail, hint } = mistake;
        let found = self.document.get(&self.name, key);
        let layer = found.map(|(layer, _)| layer).or(self.document.layers.last());
        let file = layer.map(|layer| layer.file.clone()).unwrap_or_default();
        let origin = layer.map_or(Origin::File, |layer| layer.origin);
        let line = found.map(|(layer, value)| line_of(layer.text, &value.span()));
        let shown = value.map(|value| format!(" = {}", short(&without_user_info(value))));
        let message = format!("{}.{key}{}: {detail}", self.name, shown.unwrap_or_default());
        let report = origin.report(&format!("{}.{key}", self.name), kind);
        let problem = Problem { file, line, message, hint: hint.to_owned(), report };
        self.document.problems.push(problem);
    }
}

impl Origin {
    /// What the backend hears of a mistake: of the host's own file the kind of mistake, without a
    /// value; of what it has said itself, everything.
    fn report(self, subject: &str, kind: &'static str) -> Option<String> {
        let separator = if subject.is_empty() { "" } else { ": " };
        (self != Self::Remote).then(|| format!("{subject}{separator}{kind}"))
    }
}

/// Tells one secret from another, and says nothing about it outside of this process.
fn mark_of(secret: &str) -> String {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    format!("{:x}", KEY.hash_one(secret))
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

fn list_of(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(|text| text.trim().to_owned()))
            .collect(),
        other => other.as_str().map(split_list),
    }
}

fn split_list(text: &str) -> Vec<String> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    inner
        .split(',')
        .map(|name| name.trim().trim_matches(['"', '\'']).to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests;
