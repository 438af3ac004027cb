//! A section for each collector.

use std::time::Duration;

use super::{
    Bounds, Collectors, PACE, Timing,
    postgres::Server,
    reader::{Bound, Document, Section},
};
use crate::collect::{
    disk_usage::DiskUsageConfig,
    pg_log::{PgLogConfig, Redaction, StartAt},
    pg_stats::PgStatsConfig,
    postgres::Timeouts,
    sysstat::SysstatConfig,
};

/// Why the backend may set a key.
const SWITCH: &str = "says whether a collector runs";
const LESS: &str = "says whether the log is read; what the host has switched off stays off";
const GIVE_UP: &str = "says when a collection is given up";
const DETAIL: &str = "says how many rows a document has, within `remote.tables_max`";

/// The sections of the collectors. `interval` is that of collectors without one of their own.
pub(super) fn read(
    document: &mut Document<'_>,
    interval: Duration,
    servers: &[Server],
    bounds: &Bounds,
) -> Collectors {
    let mut section = document.section("sysstat");
    let sysstat = timing(section.remote(SWITCH), interval, bounds);
    let sysstat = sysstat.map(|timing| (timing, SysstatConfig::default()));
    let mut section = document.section("disk_usage");
    let disk_usage = timing(section.remote(SWITCH), interval, bounds).map(|timing| {
        let mut config = DiskUsageConfig::default();
        config.timeout = config.timeout.min(timing.deadline / 2);
        (timing, config)
    });
    let mut section = document.section("pg_stats");
    let pg_stats_timing = timing(section.remote(SWITCH), interval, bounds);
    let all = pg_stats(&mut section, bounds);
    let pg_stats = pg_stats_timing.map(|timing| {
        let of = |server: &Server| PgStatsConfig {
            instance: server.instance.clone(),
            connection: server.connection.clone(),
            databases: server.databases.clone(),
            visits_time: timing.deadline / 2,
            ..all.clone()
        };
        (timing, servers.iter().map(of).collect())
    });
    let mut section = document.section("pg_log");
    // What leaves of a log is the host's alone to say.
    let pg_log_timing = timing(section.remote(LESS).within(Bound::NotOn), interval, bounds);
    let first = pg_log(&mut section);
    let pg_log = pg_log_timing.map(|timing| {
        let files_timeout = timing.deadline / 2;
        let first = PgLogConfig { files_timeout, ..first };
        // Where a log is, and how it is written, is the first server's; the others are asked.
        let others = PgLogConfig { path: None, prefix: None, timezone: None, ..first.clone() };
        let read = servers.iter().zip(std::iter::once(first).chain(std::iter::repeat(others)));
        let read = read.filter(|(server, _)| server.reads_log);
        let of = |(server, config): (&Server, PgLogConfig)| PgLogConfig {
            instance: server.instance.clone(),
            connection: server.connection.clone(),
            ..config
        };
        (timing, read.map(of).collect())
    });
    let mut section = document.section("agent");
    let agent = timing(section.remote(SWITCH), interval, bounds);
    Collectors { sysstat, disk_usage, pg_stats, pg_log, agent }
}

/// `enabled`, with the marks that `section` has for it, `interval` and `timeout` of a collector;
/// `None` when it is disabled.
fn timing(section: &mut Section<'_, '_>, interval: Duration, bounds: &Bounds) -> Option<Timing> {
    let enabled = section.boolean("enabled", true);
    let pace = section.remote(PACE).within(bounds.interval);
    let own = pace.duration("interval", "60", ["100ms", "1d"]);
    let interval = if section.has("interval") { own } else { interval };
    let timeout = section.remote(GIVE_UP).duration("timeout", "10s", ["100ms", "10min"]);
    enabled.then_some(Timing { interval, deadline: timeout.min(interval) })
}

/// What is alike for every server.
fn pg_stats(section: &mut Section<'_, '_>, bounds: &Bounds) -> PgStatsConfig {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let timeouts = Timeouts {
        lock: section.duration("lock_timeout", "250ms", ["1ms", "1min"]),
        statement: section.duration("statement_timeout", "5s", ["10ms", "10min"]),
        client: section.duration("client_timeout", "7s", ["10ms", "10min"]),
    };
    if timeouts.lock >= timeouts.statement || timeouts.statement >= timeouts.client {
        section.reject(
            "statement_timeout",
            "the timeouts are out of order",
            "lock_timeout < statement_timeout < client_timeout",
        );
    }
    PgStatsConfig {
        visits_max: count(section.integer("visits_max", 50, 1..=1_000)),
        timeouts,
        tables_max: count(section.remote(DETAIL).within(bounds.tables).integer(
            "tables_max",
            200,
            1..=10_000,
        )),
        indexes_max: count(section.remote(DETAIL).within(bounds.tables).integer(
            "indexes_max",
            200,
            1..=10_000,
        )),
        sizes_every: section.duration("sizes_every", "10min", ["0s", "1d"]),
        statements_max: count(section.integer("statements_max", 50, 0..=500)),
        // What leaves of a statement is the host's alone to say.
        statements_text: section.boolean("statements_text", false),
        ..PgStatsConfig::default()
    }
}

fn pg_log(section: &mut Section<'_, '_>) -> PgLogConfig {
    let redacted = section.boolean("redact", true);
    PgLogConfig {
        path: section.optional_path("path"),
        prefix: section.optional_text("line_prefix"),
        timezone: section.optional_text("timezone"),
        redaction: if redacted { Redaction::On } else { Redaction::Off },
        start_at: match section.choice("start_at", &["end", "beginning"]) {
            0 => StartAt::End,
            _ => StartAt::Beginning,
        },
        ..PgLogConfig::default()
    }
}
