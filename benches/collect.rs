//! What one collection cycle of all four collectors costs, on an ordinary server: 100 tables,
//! 200 indexes, a few lines in the log. The bench starts that server itself.
//!
//! - `collect_cycle_cpu_ms`: CPU of the agent's process for one cycle, metrics validated and
//!   encoded, sizes measured in every cycle.
//! - `collect_cycle_db_ms`: CPU of the server's process behind the agent's connection for the same
//!   cycle. By default sizes are measured every five minutes, so this is the dear kind of cycle.
//! - `collect_cycle_db_counters_ms`: the same for a cycle without sizes, the usual kind.

#![allow(missing_docs, reason = "a bench has no callers")]
#![allow(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use more of it")]
mod postgres;

use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::disk_usage::{DiskUsageCollector, DiskUsageConfig};
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig};
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::collect::sysstat::{SysstatCollector, SysstatConfig};
use pganalytics::metric::validate;
use postgres::{Postgres, installed};

const MAJOR: u32 = 17;
/// Longer than the shortest time between two readings of sysstat, which would else wait.
const PAUSE: Duration = Duration::from_millis(210);

struct Collectors {
    sysstat: SysstatCollector,
    disk_usage: DiskUsageCollector,
    pg_stats: PgStatsCollector,
    pg_log: PgLogCollector,
}

#[derive(Default)]
struct Cost {
    agent: Duration,
    server: Duration,
}

fn main() {
    if !installed(MAJOR) {
        println!("skipped: PostgreSQL {MAJOR} is not installed; hint: tests/run installs it");
        return;
    }
    let cycles = if std::env::args().any(|argument| argument == "--bench") { 100 } else { 2 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(cycles));
}

async fn run(cycles: u32) {
    let server = Postgres::start(MAJOR);
    fill(&server).await;
    let with_sizes = measure(&server, Duration::ZERO, cycles).await;
    let counters = measure(&server, Duration::from_secs(3600), cycles).await;
    let each = |cost: Duration| cost.as_secs_f64() * 1000.0 / f64::from(cycles);
    println!("RESULT collect_cycle_cpu_ms {:.2} ms", each(with_sizes.agent));
    println!("RESULT collect_cycle_db_ms {:.2} ms", each(with_sizes.server));
    println!("RESULT collect_cycle_db_counters_ms {:.2} ms", each(counters.server));
}

async fn fill(server: &Postgres) {
    let client = server.client("postgres").await;
    for table in 0..100 {
        let sql = format!(
            "CREATE TABLE t{table} (id int PRIMARY KEY, v text);
             CREATE INDEX t{table}_v ON t{table} (v);
             INSERT INTO t{table} SELECT i, md5(i::text) FROM generate_series(1, 500) i"
        );
        client.batch_execute(&sql).await.expect("fill");
    }
    client.batch_execute("VACUUM ANALYZE").await.expect("analyze");
}

async fn measure(server: &Postgres, sizes_every: Duration, cycles: u32) -> Cost {
    let host = server.socket_dir().display().to_string();
    let connection = PgConnection { host, ..PgConnection::default() };
    let pg_stats =
        PgStatsConfig { connection: connection.clone(), sizes_every, ..PgStatsConfig::default() };
    let mut collectors = Collectors {
        sysstat: SysstatCollector::new(SysstatConfig::default()),
        disk_usage: DiskUsageCollector::new(DiskUsageConfig::default()),
        pg_stats: PgStatsCollector::new(pg_stats),
        pg_log: PgLogCollector::new(PgLogConfig { connection, ..PgLogConfig::default() }, None),
    };
    // The server plans a prepared statement anew for its first five runs.
    for _ in 0..6 {
        cycle(&mut collectors).await;
        tokio::time::sleep(PAUSE).await;
    }
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pganalytics-agent/%'";
    let rows = server.query("postgres", sql).await;
    let [row] = rows.as_slice() else { panic!("one connection is kept") };
    let pid: i32 = row.get(0);
    let log_writer = server.client("postgres").await;
    let mut cost = Cost::default();
    for _ in 0..cycles {
        for _ in 0..5 {
            log_writer.batch_execute("SELECT no_such_column").await.expect_err("an error");
        }
        tokio::time::sleep(PAUSE).await;
        let (agent, server) = (agent_cpu(), on_cpu(pid));
        cycle(&mut collectors).await;
        cost.agent += agent_cpu().saturating_sub(agent);
        cost.server += on_cpu(pid).saturating_sub(server);
    }
    cost
}

async fn cycle(collectors: &mut Collectors) {
    let now = clock::now();
    let mut metrics = Vec::new();
    metrics.extend(collectors.sysstat.collect(now).await.expect("sysstat").metrics);
    metrics.extend(collectors.disk_usage.collect(now).await.expect("disk_usage").metrics);
    metrics.extend(collectors.pg_stats.collect(now).await.expect("pg_stats").metrics);
    metrics.extend(collectors.pg_log.collect(now).await.expect("pg_log").metrics);
    collectors.pg_log.committed();
    for metric in metrics {
        validate(&metric, now + Duration::from_secs(5)).expect("a valid metric");
        std::hint::black_box(serde_json::to_vec(&metric).expect("encodes"));
    }
}

/// What the server's module waits with.
fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = clock::monotonic() + limit;
    while !condition() {
        assert!(clock::monotonic() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// CPU of this process's threads. The threads that ask file systems end before it is read; they
/// spend some microseconds.
fn agent_cpu() -> Duration {
    let tasks = fs_err::read_dir("/proc/self/task").expect("read the threads");
    let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    ids.map(|id: i32| on_cpu(id)).sum()
}

/// Nanoseconds that a thread has run, from the scheduler's own count.
fn on_cpu(pid: i32) -> Duration {
    let text = fs_err::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
