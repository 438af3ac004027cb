//! Which databases `pg_stats` visits, and that nobody is in anybody's way because of that.

use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::metric::validate;
use serde_json::Value;

use crate::support::postgres::Postgres;
use crate::support::until_async;

const LIMIT: Duration = Duration::from_secs(20);
const AGENTS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'pganalytics-agent/%' AND datname = $1";

fn config(server: &Postgres, databases: &[&str]) -> PgStatsConfig {
    let host = server.socket_dir().display().to_string();
    PgStatsConfig {
        connection: PgConnection { host, ..PgConnection::default() },
        databases: databases.iter().map(ToString::to_string).collect(),
        ..PgStatsConfig::default()
    }
}

async fn collect(collector: &mut PgStatsCollector) -> Vec<Value> {
    let now = clock::now();
    let metrics = collector.collect(now).await.expect("collects").metrics;
    for metric in &metrics {
        validate(metric, now).unwrap_or_else(|invalid| panic!("{invalid} in {metric}"));
    }
    metrics
}

fn visited(metrics: &[Value]) -> Vec<&str> {
    let tables = metrics.iter().filter(|metric| !metric["tables"].is_null());
    tables.filter_map(|metric| metric["database"].as_str()).collect()
}

/// Between two visits a database can be dropped, renamed and copied, on old and new majors.
#[tokio::test(flavor = "multi_thread")]
async fn a_visited_database_is_free_between_visits() {
    for major in [10, 14, 18] {
        let server = Postgres::start(major);
        for name in ["dropped", "renamed", "copied"] {
            server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        }
        let mut collector = PgStatsCollector::new(config(&server, &["*"]));
        for (sql, then) in [
            ("DROP DATABASE dropped", &["copied", "postgres", "renamed"][..]),
            ("ALTER DATABASE renamed RENAME TO named", &["copied", "named", "postgres"]),
            ("CREATE DATABASE copy TEMPLATE copied", &["copied", "copy", "named", "postgres"]),
        ] {
            assert!(collect(&mut collector).await.iter().all(|metric| metric["status"] == "ok"));
            server.execute("postgres", sql).await;
            let metrics = collect(&mut collector).await;
            let mut visited = visited(&metrics);
            visited.sort_unstable();
            assert_eq!(visited, then, "{major}: {sql}");
        }
        assert!(collector.notices().is_empty(), "{:?}", collector.notices());
    }
}

/// A visit that is given up leaves no session behind either.
#[tokio::test(flavor = "multi_thread")]
async fn a_visit_that_is_given_up_ends() {
    let server = Postgres::start(17);
    server.execute("postgres", "CREATE DATABASE slow").await;
    let mut config = config(&server, &["slow"]);
    config.timeouts.lock = LIMIT * 3;
    config.timeouts.statement = LIMIT * 4;
    config.timeouts.client = LIMIT * 5;
    let mut collector = PgStatsCollector::new(config);
    collect(&mut collector).await;
    let (blocker, admin) = (server.client("slow").await, server.client("postgres").await);
    // A new session does not wait for it, its first statement does.
    let lock = "BEGIN; LOCK TABLE pg_namespace IN ACCESS EXCLUSIVE MODE";
    blocker.batch_execute(lock).await.expect("locks");
    let sql = format!("{AGENTS} AND wait_event_type = 'Lock'");
    let count = async |sql: &str| -> i64 {
        admin.query_one(sql, &[&"slow"]).await.expect("answers").get(0)
    };
    tokio::select! {
        ended = collector.collect(clock::now()) => panic!("{ended:?}"),
        () = until_async("it waits", LIMIT, async || count(&sql).await == 1) => {}
    }
    assert_eq!(count(AGENTS).await, 1);
    collector.given_up().await;
    until_async("nobody is there", LIMIT, async || count(AGENTS).await == 0).await;
    blocker.batch_execute("ROLLBACK").await.expect("unlocks");
    assert_eq!(visited(&collect(&mut collector).await), ["slow"]);
}

/// `*` finds what can be visited and nothing else; a name is visited whatever a pattern says.
#[tokio::test(flavor = "multi_thread")]
async fn patterns_find_what_can_be_visited() {
    for major in [10, 18] {
        let server = Postgres::start(major);
        for name in ["app_a", "app_old", "closed", "forbidden", "half", "mould", "rdsadmin", "x"] {
            server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        }
        let change = "CREATE ROLE agent LOGIN;
            GRANT pg_monitor TO agent;
            ALTER DATABASE closed ALLOW_CONNECTIONS false;
            ALTER DATABASE mould IS_TEMPLATE true;
            REVOKE CONNECT ON DATABASE forbidden FROM public;
            UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'";
        server.execute("postgres", change).await;
        let check = async |databases: &[&str], expected: &[&str], notices: usize| {
            let mut config = config(&server, databases);
            config.connection.user = "agent".to_owned();
            let mut collector = PgStatsCollector::new(config);
            let metrics = collect(&mut collector).await;
            assert_eq!(visited(&metrics), expected, "{major} {databases:?}");
            assert_eq!(collector.notices().len(), notices, "{:?}", collector.notices());
        };
        check(&["*"], &["app_a", "app_old", "postgres", "x"], 0).await;
        check(&["app_*", "!app_old"], &["app_a"], 0).await;
        check(&["!app_*"], &["postgres", "x"], 0).await;
        check(&["x", "*", "!x"], &["x", "app_a", "app_old", "postgres"], 0).await;
        check(&["rdsadmin"], &["rdsadmin"], 0).await;
        check(&["none_*"], &[], 0).await;
        check(&["forbidden", "half"], &[], 2).await;
        check(&[], &["postgres"], 0).await;
    }
}

/// Databases that are too many for one collection have their turns; how old what is known of each
/// is stands beside it.
#[tokio::test(flavor = "multi_thread")]
async fn many_databases_take_turns() {
    let server = Postgres::start(16);
    for name in ["a", "b", "c", "d"] {
        server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    }
    let config = PgStatsConfig { visits_max: 2, ..config(&server, &["d", "*"]) };
    let mut collector = PgStatsCollector::new(config);
    let ages = |metrics: &[Value]| -> Vec<bool> {
        let cluster = metrics.iter().find(|metric| metric["database"] == "postgres");
        let all = cluster.expect("the maintenance database")["databases"].as_array().cloned();
        all.expect("a list").iter().map(|one| !one["visit_age_s"].is_null()).collect()
    };
    let metrics = collect(&mut collector).await;
    assert_eq!(visited(&metrics), ["d", "a", "b"]);
    assert_eq!(ages(&metrics), [true, true, false, true, false], "a b c d postgres");
    let metrics = collect(&mut collector).await;
    assert_eq!(visited(&metrics), ["d", "c", "postgres"]);
    assert_eq!(ages(&metrics), [true; 5]);
    assert_eq!(visited(&collect(&mut collector).await), ["d", "a", "b"]);
}

/// Where a collection has no time for more, it makes one visit, and the others have their turns.
#[tokio::test(flavor = "multi_thread")]
async fn slow_visits_take_turns() {
    let server = Postgres::start(16);
    for name in ["a", "b", "c"] {
        server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    }
    let config = PgStatsConfig { visits_time: Duration::ZERO, ..config(&server, &["c", "*"]) };
    let mut collector = PgStatsCollector::new(config);
    for expected in [["c", "a"], ["c", "b"], ["c", "postgres"], ["c", "a"]] {
        assert_eq!(visited(&collect(&mut collector).await), expected);
    }
}
