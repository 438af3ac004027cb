//! Mistakes in a configuration, and what of them may leave the host.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Mistakes that are told of one configuration: who repairs these reads it again.
pub(super) const PROBLEMS_MAX: usize = 20;

/// A configuration that cannot be used, with the mistakes found in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file that was read.
    pub file: PathBuf,
    /// What is wrong with it, in the order of its lines: the first mistakes.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub unlisted: usize,
}

/// One mistake in a configuration file, or what is to be said of it else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file it is in.
    pub file: PathBuf,
    /// The line, from 1; `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong, with the key and the value.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// What the backend hears in place of message and hint; `None` when both may be told, because
    /// the backend itself has set the value.
    pub report: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listed(Problem::to_string))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  hint: {}", self.place(), self.message, self.hint)
    }
}

impl Problem {
    fn place(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{}{line}", self.file.display())
    }

    fn report(&self) -> String {
        match &self.report {
            Some(report) => format!("{}: {report}", self.place()),
            None => self.to_string(),
        }
    }
}

impl ConfigError {
    /// The first of these mistakes, and how many more there are beside `unlisted` others.
    pub fn of(file: PathBuf, mut problems: Vec<Problem>, unlisted: usize) -> Self {
        let unlisted = unlisted + problems.len().saturating_sub(PROBLEMS_MAX);
        problems.truncate(PROBLEMS_MAX);
        Self { file, problems, unlisted }
    }

    /// A mistake of the file as a whole.
    pub fn whole(file: &Path, message: String, hint: String) -> Self {
        let report = Some("cannot be read".to_owned());
        let problem = Problem { file: file.to_owned(), line: None, message, hint, report };
        Self { file: file.to_owned(), problems: vec![problem], unlisted: 0 }
    }

    /// The same for the backend: the host's own file may hold secrets anywhere, so that no value of
    /// it is told.
    pub fn report(&self) -> String {
        self.listed(Problem::report)
    }

    fn listed(&self, tell: impl Fn(&Problem) -> String) -> String {
        let mut lines: Vec<String> = self.problems.iter().map(tell).collect();
        if self.unlisted > 0 {
            lines.push(format!("and {} more like these", self.unlisted));
        }
        lines.join("\n")
    }
}
