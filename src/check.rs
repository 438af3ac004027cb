//! Whether each part would work, why not, and what mends it: `agent check`.
//!
//! Everything is tried as the agent does it: a collection is made, a request is sent. Nothing is
//! changed, queued or delivered.

mod backend;
mod host;
mod postgres;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::clock;
use crate::collect::{CollectError, Collected, Collector};
use crate::config::{Config, Timing};
use crate::link::{Identity, LinkError};
use crate::units::show_duration;

/// One thing that was looked at, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The section of the configuration: `postgres`, `pg_log`, `backend` and so on.
    pub part: &'static str,
    /// The server, by its name in `[[postgres]]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What of it, such as `database "app"`.
    pub of: String,
    /// What came of it.
    pub verdict: Verdict,
    /// What is there, or what is missing and why.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The same for PostgreSQL: statements for a superuser to run, each whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sql: Vec<String>,
}

/// How something does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should.
    Ok,
    /// As it should; with a setting it would show more.
    Could,
    /// Some of it is missing.
    Limited,
    /// Not at all.
    Failed,
}

/// Which parts are looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    #[default]
    All,
    /// PostgreSQL's statistics and log.
    Postgres,
}

impl Finding {
    fn new(part: &'static str, of: &str, verdict: Verdict, says: impl Into<String>) -> Self {
        let (of, says) = (of.to_owned(), says.into());
        Self { part, instance: None, of, verdict, says, hint: None, sql: Vec::new() }
    }

    fn ok(part: &'static str, of: &str, says: impl Into<String>) -> Self {
        Self::new(part, of, Verdict::Ok, says)
    }

    fn failed(part: &'static str, of: &str, error: &impl fmt::Display) -> Self {
        Self::of_error(part, of, Verdict::Failed, error)
    }

    /// An error's text holds its hint.
    fn of_error(part: &'static str, of: &str, verdict: Verdict, error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        match text.split_once("; hint: ") {
            Some((says, hint)) => Self::new(part, of, verdict, says).hint(hint),
            None => Self::new(part, of, verdict, text),
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn sql(mut self, sql: impl IntoIterator<Item = String>) -> Self {
        self.sql.extend(sql);
        self
    }
}

/// How long a person waits for one part, at least: a collector that runs often has less.
const PATIENCE: Duration = Duration::from_secs(10);

/// Collects once.
async fn collected(
    collector: &mut impl Collector,
    timing: Timing,
) -> Result<Collected, CollectError> {
    let limit = timing.deadline.max(PATIENCE);
    let done = tokio::time::timeout(limit, collector.collect(clock::now())).await;
    done.unwrap_or_else(|_| {
        let limit = show_duration(limit);
        Err(CollectError::new(format!("the collection is not done within {limit}")))
    })
}

/// Looks at everything that is enabled, in the order in which metrics flow. `identity` is what this
/// host would push with.
pub async fn check(
    config: &Config,
    identity: Result<Identity, LinkError>,
    scope: Scope,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if scope == Scope::All {
        findings.extend(host::collectors(&config.collectors).await);
    }
    findings.extend(postgres::check(&config.collectors).await);
    if scope == Scope::All {
        findings.extend(host::places(config));
        findings.extend(backend::check(config, identity).await);
    }
    findings
}
