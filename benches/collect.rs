//! What one collection cycle of all four collectors costs, on an ordinary server: 100 tables,
//! 200 indexes, a few lines in the log. The bench starts that server itself.
//!
//! - `collect_cycle_cpu_ms`: CPU of the agent's process for one cycle, metrics validated and
//!   encoded, sizes measured in every cycle.
//! - `collect_cycle_db_ms`: CPU of the server's process behind the agent's connection for the same
//!   cycle. By default sizes are measured every ten minutes, so this is the dear kind of cycle.
//! - `collect_cycle_db_counters_ms`: the same for a cycle without sizes, the usual kind.

#![allow(missing_docs, reason = "a bench has no callers")]
#![allow(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "common/host.rs"]
mod host;

use std::time::Duration;

use host::{Collectors, PAUSE, Postgres, cpu_of, own_cpu};
use pganalytics::clock;
use pganalytics::metric::validate;

#[derive(Default)]
struct Cost {
    agent: Duration,
    server: Duration,
}

fn main() {
    let cycles = if std::env::args().any(|argument| argument == "--bench") { 100 } else { 2 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(cycles));
}

async fn run(cycles: u32) {
    let Some(server) = host::server(&[]).await else {
        println!("skipped: PostgreSQL is not installed; hint: tests/run installs it");
        return;
    };
    let with_sizes = measure(&server, Duration::ZERO, cycles).await;
    let counters = measure(&server, Duration::from_secs(3600), cycles).await;
    let each = |cost: Duration| cost.as_secs_f64() * 1000.0 / f64::from(cycles);
    println!("RESULT collect_cycle_cpu_ms {:.2} ms", each(with_sizes.agent));
    println!("RESULT collect_cycle_db_ms {:.2} ms", each(with_sizes.server));
    println!("RESULT collect_cycle_db_counters_ms {:.2} ms", each(counters.server));
}

async fn measure(server: &Postgres, sizes_every: Duration, cycles: u32) -> Cost {
    let mut collectors = Collectors::new(server, sizes_every);
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
        // The threads that ask file systems end before CPU is read; they spend some microseconds.
        let (agent, server) = (own_cpu(), cpu_of(pid));
        cycle(&mut collectors).await;
        cost.agent += own_cpu().saturating_sub(agent);
        cost.server += cpu_of(pid).saturating_sub(server);
    }
    cost
}

async fn cycle(collectors: &mut Collectors) {
    let now = clock::now();
    for (_, collected) in collectors.collect(now).await {
        for metric in collected.metrics {
            validate(&metric, now + Duration::from_secs(5)).expect("a valid metric");
            std::hint::black_box(serde_json::to_vec(&metric).expect("encodes"));
        }
    }
}
