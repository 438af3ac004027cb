//! Reads a TOML file key by key and remembers every mistake with its line.
//!
//! Each getter names its key, its default and its range, so that one pass over a file gives the
//! values, all the mistakes at once, and the list of keys that exist ([`Key`]) for the sample file.
//! Section and key names are case sensitive.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::units;

/// A TOML document being read. Ask for every key, then call [`Document::finish`].
#[derive(Debug)]
pub struct Document<'t> {
    file: PathBuf,
    text: &'t str,
    root: DeTable<'t>,
    keys: Vec<Key>,
    problems: Vec<Problem>,
}

/// One section of a [`Document`]; a section that the file lacks gives defaults.
#[derive(Debug)]
pub struct Section<'a, 't> {
    document: &'a mut Document<'t>,
    name: &'static str,
}

/// A key that the program knows, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The section's name, `queue`.
    pub section: &'static str,
    /// The key's name, `bytes_max`.
    pub name: &'static str,
    /// The default as TOML text, `"1GiB"`.
    pub default: String,
}

/// A configuration that cannot be used, with every mistake found in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file that was read.
    pub file: PathBuf,
    /// What is wrong with it, in the order of its lines.
    pub problems: Vec<Problem>,
}

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong, with the key and the value.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": {}\n  hint: {}", problem.message, problem.hint)?;
        }
        Ok(())
    }
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

impl<'t> Document<'t> {
    /// Parses `text`, which came from `file`.
    pub fn parse(file: &Path, text: &'t str) -> Result<Self, ConfigError> {
        let parsed = DeTable::parse(text).map_err(|error| ConfigError {
            file: file.to_owned(),
            problems: vec![Problem {
                line: error.span().map(|span| line_of(text, &span)),
                message: format!("not valid TOML: {}", error.message()),
                hint: "strings need quotes, sections stand in [brackets]".to_owned(),
            }],
        })?;
        Ok(Self {
            file: file.to_owned(),
            text,
            root: parsed.into_inner(),
            keys: Vec::new(),
            problems: Vec::new(),
        })
    }

    /// The section `[name]`.
    pub fn section(&mut self, name: &'static str) -> Section<'_, 't> {
        if let Some(value) = self.root.get(name)
            && !value.get_ref().is_table()
        {
            let line = Some(line_of(self.text, &value.span()));
            let message = format!("{name}: a section was expected");
            self.problems.push(Problem { line, message, hint: format!("write [{name}]") });
        }
        Section { document: self, name }
    }

    /// Ends the reading: unknown sections and keys are mistakes too. Returns the known keys.
    pub fn finish(mut self) -> Result<Vec<Key>, ConfigError> {
        self.report_unknown();
        if self.problems.is_empty() {
            return Ok(self.keys);
        }
        self.problems.sort_by_key(|problem| problem.line);
        Err(ConfigError { file: self.file, problems: self.problems })
    }

    fn report_unknown(&mut self) {
        let mut known: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for key in &self.keys {
            known.entry(key.section).or_default().push(key.name);
        }
        for (section, value) in &self.root {
            let name: &str = section.get_ref();
            let Some(keys) = known.get(name) else {
                let near = nearest(name, known.keys().copied());
                self.problems.push(Problem {
                    line: Some(line_of(self.text, &section.span())),
                    message: format!("[{name}]: unknown section"),
                    hint: near_hint(near, &known.keys().copied().collect::<Vec<_>>()),
                });
                continue;
            };
            for key in value.get_ref().as_table().into_iter().flat_map(|table| table.keys()) {
                let key_name: &str = key.get_ref();
                if !keys.contains(&key_name) {
                    self.problems.push(Problem {
                        line: Some(line_of(self.text, &key.span())),
                        message: format!("{name}.{key_name}: unknown key"),
                        hint: near_hint(nearest(key_name, keys.iter().copied()), keys),
                    });
                }
            }
        }
    }
}

impl ConfigError {
    /// A mistake of the file as a whole.
    pub fn whole(file: &Path, message: String, hint: String) -> Self {
        Self { file: file.to_owned(), problems: vec![Problem { line: None, message, hint }] }
    }
}

impl<'t> Section<'_, 't> {
    /// A string, `default` when it is absent.
    pub fn text(&mut self, key: &'static str, default: &str) -> String {
        self.know(key, format!("{default:?}"));
        self.read(key, "a string in quotes", |value| value.as_str().map(str::to_owned))
            .unwrap_or_else(|| default.to_owned())
    }

    /// A string that may be absent; an empty string counts as absent.
    pub fn optional_text(&mut self, key: &'static str) -> Option<String> {
        Some(self.text(key, "")).filter(|text| !text.is_empty())
    }

    /// A secret: its value never appears in a message.
    pub fn secret(&mut self, key: &'static str) -> SecretString {
        self.know(key, "\"\"".to_owned());
        let text = self.get(key).map(|value| value.get_ref().as_str().map(str::to_owned));
        match text {
            Some(Some(secret)) => SecretString::from(secret),
            Some(None) => {
                self.problem(key, None, "is not a string", "put it in quotes");
                SecretString::from("")
            }
            None => SecretString::from(""),
        }
    }

    /// A file or directory name.
    pub fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        PathBuf::from(self.text(key, default))
    }

    /// A file or directory name that may be absent or empty.
    pub fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.optional_text(key).map(PathBuf::from)
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.know(key, default.to_string());
        self.read(key, "true or false", DeValue::as_bool).unwrap_or(default)
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.know(key, default.to_string());
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| integer_of(value).filter(|n| range.contains(n)))
            .unwrap_or(default)
    }

    /// A duration such as `"30s"`; a plain integer is seconds. `default` and the ends of `range`
    /// are durations in the same notation.
    pub fn duration(&mut self, key: &'static str, default: &str, range: [&str; 2]) -> Duration {
        let number = default.parse::<u64>().is_ok();
        self.know(key, if number { default.to_owned() } else { format!("{default:?}") });
        let [low, high] = range.map(|end| units::parse_duration(end).unwrap_or_default());
        let expected = format!(
            "a duration such as \"30s\", or seconds, from {} to {}",
            units::show_duration(low),
            units::show_duration(high)
        );
        self.read(key, &expected, |value| {
            let read = match value.as_str() {
                Some(text) => units::parse_duration(text),
                None => integer_of(value).map(Duration::from_secs),
            };
            read.filter(|duration| (low..=high).contains(duration))
        })
        .unwrap_or_else(|| units::parse_duration(default).unwrap_or_default())
    }

    /// A size such as `"64MiB"`; a plain integer is bytes. See [`Section::duration`].
    pub fn size(&mut self, key: &'static str, default: &str, range: [&str; 2]) -> u64 {
        self.know(key, format!("{default:?}"));
        let [low, high] = range.map(|end| units::parse_size(end).unwrap_or_default());
        let expected = format!("a size such as \"64MiB\", from {} to {}", range[0], range[1]);
        self.read(key, &expected, |value| {
            let read = match value.as_str() {
                Some(text) => units::parse_size(text),
                None => integer_of(value),
            };
            read.filter(|size| (low..=high).contains(size))
        })
        .unwrap_or_else(|| units::parse_size(default).unwrap_or_default())
    }

    /// One of `choices`, as its position; the first is the default.
    pub fn choice(&mut self, key: &'static str, choices: &[&str]) -> usize {
        self.know(key, format!("{:?}", choices.first().copied().unwrap_or_default()));
        let expected = format!("one of {}", choices.join(", "));
        self.read(key, &expected, |value| {
            value.as_str().and_then(|text| choices.iter().position(|choice| *choice == text))
        })
        .unwrap_or(0)
    }

    /// A list of names: a TOML array of strings, or one string with commas, with or without
    /// square brackets around it.
    pub fn list(&mut self, key: &'static str, default: &str) -> Vec<String> {
        self.know(key, format!("{default:?}"));
        self.read(key, "a list such as [\"a\", \"b\"] or \"a, b\"", |value| match value {
            DeValue::Array(items) => items
                .iter()
                .map(|item| item.get_ref().as_str().map(|text| text.trim().to_owned()))
                .collect(),
            other => other.as_str().map(split_list),
        })
        .unwrap_or_else(|| split_list(default))
    }

    /// An address and port such as `127.0.0.1:8080`.
    pub fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        self.know(key, format!("\"{default}\""));
        self.read(key, "an address and a port such as \"127.0.0.1:8080\"", |value| {
            value.as_str()?.parse().ok()
        })
        .unwrap_or(default)
    }

    /// Whether the file sets `key`.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Adds a mistake about `key` that only its meaning shows.
    pub fn reject(&mut self, key: &'static str, message: &str, hint: &str) {
        let shown = self.get(key).map(|value| self.source_of(value).to_owned());
        self.problem(key, shown.as_deref(), message, hint);
    }

    /// [`Section::reject`] for a key whose value is not shown.
    pub fn reject_secret(&mut self, key: &'static str, message: &str, hint: &str) {
        self.problem(key, None, message, hint);
    }

    fn know(&mut self, name: &'static str, default: String) {
        self.document.keys.push(Key { section: self.name, name, default });
    }

    fn get(&self, key: &str) -> Option<&Spanned<DeValue<'t>>> {
        self.document.root.get(self.name)?.get_ref().as_table()?.get(key)
    }

    fn source_of(&self, value: &Spanned<DeValue<'t>>) -> &str {
        self.document.text.get(value.span()).unwrap_or_default()
    }

    fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        take: impl FnOnce(&DeValue<'t>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let taken = take(value.get_ref());
        if taken.is_none() {
            let shown = self.source_of(value).to_owned();
            self.problem(key, Some(&shown), "is not allowed", expected);
        }
        taken
    }

    fn problem(&mut self, key: &str, value: Option<&str>, message: &str, hint: &str) {
        let line = self.get(key).map(|value| line_of(self.document.text, &value.span()));
        let shown = value.map(|value| format!(" = {value}")).unwrap_or_default();
        let message = format!("{}.{key}{shown}: {message}", self.name);
        self.document.problems.push(Problem { line, message, hint: hint.to_owned() });
    }
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
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

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn near_hint(near: Option<&str>, all: &[&str]) -> String {
    match near {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known here: {}", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(text: &str, take: impl FnOnce(&mut Section<'_, '_>) -> T) -> Result<T, String> {
        let mut document =
            Document::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())?;
        let value = take(&mut document.section("queue"));
        document.finish().map(|_| value).map_err(|error| error.to_string())
    }

    /// C21
    #[test]
    fn absent_keys_have_their_defaults() {
        let sizes = read("", |s| (s.size("bytes_max", "1GiB", ["16MiB", "1TiB"]), s.list("l", "")));
        assert_eq!(sizes, Ok((1 << 30, vec![])));
    }

    #[test]
    fn a_value_out_of_range_names_line_key_value_and_range() {
        let error = read("[queue]\n\nbytes_max = \"1MiB\"\n", |s| {
            s.size("bytes_max", "1GiB", ["16MiB", "1TiB"])
        });
        let expected = "agent.toml:3: queue.bytes_max = \"1MiB\": is not allowed\n  hint: a size \
                        such as \"64MiB\", from 16MiB to 1TiB";
        assert_eq!(error, Err(expected.to_owned()));
    }

    /// C23
    #[test]
    fn unknown_names_are_errors_with_the_nearest_known_name() {
        let check = |text: &str, expected: &str| {
            let error = read(text, |s| s.size("bytes_max", "1GiB", ["0", "1TiB"]))
                .expect_err("unknown name");
            assert!(error.contains(expected), "{error}");
        };
        check("[queue]\nbyte_max = 1", "agent.toml:2: queue.byte_max: unknown key");
        check("[queue]\nbyte_max = 1", "did you mean `bytes_max`?");
        check("[queue]\nBytes_max = 1", "did you mean `bytes_max`?");
        check("[Queue]\nbytes_max = 1", "[Queue]: unknown section");
        check("[elsewhere]\n", "known here: queue");
        check("queue = 1", "a section was expected");
    }

    /// C24
    #[test]
    fn malformed_toml_names_its_line() {
        let error = read("[queue]\nbytes_max = = 1", |_| ()).expect_err("malformed");
        assert!(error.starts_with("agent.toml:2: not valid TOML"), "{error}");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let error = read("[queue]\na = \"x\"\nb = 3\nc = 9\n", |s| {
            (s.boolean("a", true), s.text("b", ""), s.integer("c", 1, 1..=5))
        })
        .expect_err("three mistakes");
        assert_eq!(error.lines().count(), 6, "{error}");
    }

    #[test]
    fn a_secret_is_not_shown() {
        let error = read("[queue]\npassword = 4711\n", |s| s.secret("password").clone());
        let error = error.map(|_| ()).expect_err("not a string");
        assert!(!error.contains("4711"), "{error}");
    }

    /// C22, C43
    #[test]
    fn lists_are_arrays_or_comma_lists() {
        let check = |text: &str, expected: &[&str]| {
            let list = read(&format!("[queue]\nnames = {text}\n"), |s| s.list("names", ""));
            assert_eq!(list.expect(text), expected, "{text}");
        };
        check(r#""a, b""#, &["a", "b"]);
        check(r#"["a", "b c"]"#, &["a", "b c"]);
        check(r#""[a, b]""#, &["a", "b"]);
        check(r#""""#, &[]);
        check("[]", &[]);
    }
}
