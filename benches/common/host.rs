//! An ordinary host: a PostgreSQL server with 100 tables and 200 indexes, started here, and the
//! agent's four collectors before it.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part of it")]

#[path = "../../tests/support/postgres.rs"]
mod postgres;

use std::time::Duration;

use jiff::Timestamp;
use pganalytics::clock;
use pganalytics::collect::disk_usage::{DiskUsageCollector, DiskUsageConfig};
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig};
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::collect::sysstat::{SysstatCollector, SysstatConfig};
use pganalytics::collect::{Collected, Collector};
pub use postgres::Postgres;

pub const TABLES: u32 = 100;
/// Longer than the shortest time between two readings of sysstat, which would else wait.
pub const PAUSE: Duration = Duration::from_millis(210);

const MAJOR: u32 = 17;

/// One of each.
pub struct Collectors {
    sysstat: SysstatCollector,
    disk_usage: DiskUsageCollector,
    pg_stats: PgStatsCollector,
    pg_log: PgLogCollector,
}

/// The server, filled; `None` when it is not installed.
pub async fn server(settings: &[(&str, &str)]) -> Option<Postgres> {
    if !postgres::installed(MAJOR) {
        return None;
    }
    let server = Postgres::start_with(MAJOR, settings);
    let client = server.client("postgres").await;
    for table in 0..TABLES {
        let sql = format!(
            "CREATE TABLE t{table} (id int PRIMARY KEY, v text);
             CREATE INDEX t{table}_v ON t{table} (v);
             INSERT INTO t{table} SELECT i, md5(i::text) FROM generate_series(1, 500) i"
        );
        client.batch_execute(&sql).await.expect("fill");
    }
    client.batch_execute("VACUUM ANALYZE").await.expect("analyze");
    Some(server)
}

impl Collectors {
    /// With their default settings, apart from how long a size is shown.
    pub fn new(server: &Postgres, sizes_every: Duration) -> Self {
        let host = server.socket_dir().display().to_string();
        let connection = PgConnection { host, ..PgConnection::default() };
        let pg_stats = PgStatsConfig {
            connection: connection.clone(),
            sizes_every,
            ..PgStatsConfig::default()
        };
        Self {
            sysstat: SysstatCollector::new(SysstatConfig::default()),
            disk_usage: DiskUsageCollector::new(DiskUsageConfig::default()),
            pg_stats: PgStatsCollector::new(pg_stats),
            pg_log: PgLogCollector::new(PgLogConfig { connection, ..PgLogConfig::default() }, None),
        }
    }

    /// One collection of each, stamped `now`.
    pub async fn collect(&mut self, now: Timestamp) -> [(&'static str, Collected); 4] {
        let all = [
            ("sysstat", self.sysstat.collect(now).await.expect("sysstat")),
            ("disk_usage", self.disk_usage.collect(now).await.expect("disk_usage")),
            ("pg_stats", self.pg_stats.collect(now).await.expect("pg_stats")),
            ("pg_log", self.pg_log.collect(now).await.expect("pg_log")),
        ];
        self.pg_log.committed();
        all
    }
}

/// CPU of this process's threads, from the scheduler's own count. Threads that have ended are not
/// in it.
pub fn own_cpu() -> Duration {
    let tasks = fs_err::read_dir("/proc/self/task").expect("read the threads");
    let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    ids.map(|id: i32| cpu_of(id)).sum()
}

/// How long a thread has run.
pub fn cpu_of(id: i32) -> Duration {
    let text = fs_err::read_to_string(format!("/proc/{id}/schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// What the server's module waits with.
fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = clock::monotonic() + limit;
    while !condition() {
        assert!(clock::monotonic() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
