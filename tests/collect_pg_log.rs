//! `pg_log`: the logs of real servers, and what happens to the files of a log.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use pganalytics::clock;
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig, Redaction, StartAt};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::collect::{Collected, Collector};
use pganalytics::metric::validate;
use serde_json::Value;

use crate::support::postgres::{Postgres, majors, shared};
use crate::support::{directory, until};

const LIMIT: Duration = Duration::from_secs(20);

/// A log of our own making, and the agent's state as its queue would keep it.
pub struct Log {
    pub directory: tempfile::TempDir,
    pub config: PgLogConfig,
    pub collector: PgLogCollector,
    pub stored: Option<Vec<u8>>,
}

impl Log {
    /// Follows `name` in a new directory; an empty name follows the directory.
    pub fn new(name: &str) -> Self {
        let directory = directory();
        let config = PgLogConfig {
            path: Some(directory.path().join(name)),
            prefix: Some("%m [%p] ".to_owned()),
            timezone: Some("UTC".to_owned()),
            start_at: StartAt::Beginning,
            // For tests of the files the messages must be seen.
            redaction: Redaction::Off,
            ..PgLogConfig::default()
        };
        let collector = PgLogCollector::new(config.clone(), None);
        Self { directory, config, collector, stored: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn append(&self, name: &str, text: &str) {
        let mut file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(name))
            .expect("open the log");
        file.write_all(text.as_bytes()).expect("write the log");
    }

    /// Sets when a file was last written, for the order of a directory.
    pub fn set_age(&self, name: &str, age: Duration) {
        let file = fs_err::File::options().append(true).open(self.path(name)).expect("open");
        let then = SystemTime::from(clock::now()) - age;
        file.set_modified(then).expect("set the time");
    }

    /// Reads as one would a minute later, when whatever is in the file is complete.
    pub async fn read(&mut self) -> Collected {
        let later = clock::now() + Duration::from_secs(60);
        let collected = self.collector.collect(later).await.expect("collects");
        for metric in &collected.metrics {
            validate(metric, later).unwrap_or_else(|invalid| panic!("{invalid} in {metric}"));
        }
        collected
    }

    /// The new messages, taken into the queue.
    pub async fn messages(&mut self) -> Vec<String> {
        let collected = self.read().await;
        let messages = messages(&collected.metrics);
        if collected.state.is_some() {
            self.stored = collected.state;
        }
        self.collector.committed();
        messages
    }

    pub fn restart(&mut self) {
        self.collector = PgLogCollector::new(self.config.clone(), self.stored.as_deref());
    }
}

fn entries(metrics: &[Value]) -> Vec<&Value> {
    metrics.iter().flat_map(|m| m["entries"].as_array().expect("a list")).collect()
}

fn messages(metrics: &[Value]) -> Vec<String> {
    let text = |entry: &&Value| entry["message"].as_str().expect("text").to_owned();
    entries(metrics).iter().map(text).collect()
}

pub fn line(message: &str) -> String {
    format!("2026-03-01 12:00:00.000 UTC [7] LOG:  {message}\n")
}

#[tokio::test]
async fn position_moves_only_when_the_queue_has_the_entries() {
    let mut log = Log::new("pg.log");
    log.append("pg.log", &line("one"));
    assert_eq!(messages(&log.read().await.metrics), ["one"]);
    // Not committed: the same again, and after a restart too.
    assert_eq!(messages(&log.read().await.metrics), ["one"]);
    log.restart();
    assert_eq!(log.messages().await, ["one"]);
    assert_eq!(log.messages().await, [""; 0]);
    log.append("pg.log", &line("two"));
    log.restart();
    assert_eq!(log.messages().await, ["two"]);
    log.restart();
    assert_eq!(log.messages().await, [""; 0]);
}

#[tokio::test]
async fn first_start_is_at_the_end_and_survives_a_restart() {
    let mut log = Log::new("pg.log");
    log.config.start_at = StartAt::End;
    log.restart();
    log.append("pg.log", &line("before"));
    let first = log.read().await;
    assert_eq!(first.metrics.len(), 1, "a metric carries the position: {:?}", first.metrics);
    assert_eq!(log.messages().await, [""; 0]);
    log.append("pg.log", &line("while the agent was down"));
    log.restart();
    assert_eq!(log.messages().await, ["while the agent was down"]);
}

#[tokio::test]
async fn partial_lines_and_open_entries_wait() {
    let mut log = Log::new("pg.log");
    log.append("pg.log", &(line("one") + "2026-03-01 12:00:00.000 UTC [7] LOG:  tw"));
    assert_eq!(log.messages().await, ["one"]);
    log.append("pg.log", "o\n");
    assert_eq!(log.messages().await, ["two"]);
    // Right after it was written an entry may still go on.
    log.append("pg.log", &line("three"));
    let soon = log.collector.collect(clock::now()).await.expect("collects");
    assert_eq!(messages(&soon.metrics), [""; 0]);
    log.append("pg.log", "\tgoes on\n");
    assert_eq!(log.messages().await, ["three\ngoes on"]);
}

#[tokio::test]
async fn rotated_file_is_finished_before_the_next() {
    let mut log = Log::new("pg.log");
    log.append("pg.log", &line("one"));
    assert_eq!(log.messages().await, ["one"]);
    log.append("pg.log", &line("two"));
    fs_err::rename(log.path("pg.log"), log.path("pg.log.1")).expect("rotate");
    log.append("pg.log", &line("three"));
    assert_eq!(log.messages().await, ["two", "three"]);
    // The same over a restart, when the agent has no file open.
    log.append("pg.log", &line("four"));
    fs_err::rename(log.path("pg.log"), log.path("pg.log.2")).expect("rotate");
    log.append("pg.log", &line("five"));
    log.restart();
    assert_eq!(log.messages().await, ["four", "five"]);
    // Removed at once: what was written is still read from the open file.
    log.append("pg.log", &line("six"));
    fs_err::remove_file(log.path("pg.log")).expect("remove");
    log.append("pg.log", &line("seven"));
    assert_eq!(log.messages().await, ["six", "seven"]);
}

#[tokio::test]
async fn truncated_and_rewritten_files_are_read_from_their_start() {
    let mut log = Log::new("pg.log");
    log.append("pg.log", &(line("one") + &line("two")));
    assert_eq!(log.messages().await, ["one", "two"]);
    fs_err::write(log.path("pg.log"), line("three")).expect("truncate");
    assert_eq!(log.messages().await, ["three"]);
    // Truncated and grown beyond the old position between two looks.
    let grown: String = ["a", "b", "c", "d"].map(line).concat();
    fs_err::write(log.path("pg.log"), grown).expect("truncate");
    assert_eq!(log.messages().await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn directory_is_followed_in_the_order_of_writing() {
    let mut log = Log::new("");
    log.append("zz.log", &line("one"));
    log.set_age("zz.log", Duration::from_secs(50));
    assert_eq!(log.messages().await, ["one"]);
    log.append("zz.log", &line("two"));
    log.set_age("zz.log", Duration::from_secs(40));
    log.append("mm.log", &line("three"));
    log.set_age("mm.log", Duration::from_secs(30));
    log.append("aa.log", &line("four"));
    log.set_age("aa.log", Duration::from_secs(20));
    for other in ["x.csv", "x.json", "zz.log.gz"] {
        log.append(other, &line("of no concern"));
    }
    log.restart();
    assert_eq!(log.messages().await, ["two", "three", "four"]);
    log.append("aa.log", &line("five"));
    assert_eq!(log.messages().await, ["five"]);
}

#[tokio::test]
async fn limits_split_metrics_and_collections_without_loss() {
    let mut log = Log::new("pg.log");
    log.config.read_bytes_max = 40_000;
    log.config.metric_bytes_max = 10_000;
    log.restart();
    let sent: Vec<String> = (0..1_000).map(|i| format!("message {i} {}", "x".repeat(50))).collect();
    log.append("pg.log", &sent.iter().map(|m| line(m)).collect::<String>());
    let (mut received, mut from) = (Vec::new(), 0);
    loop {
        let collected = log.read().await;
        for metric in &collected.metrics {
            assert!(metric.to_string().len() <= 10_000);
            assert_eq!(metric["from_offset"], from, "stretches of the file meet");
            from = metric["to_offset"].as_u64().expect("a number");
            assert_eq!(metric["skipped_bytes"], 0);
            assert_eq!(metric["counts"]["LOG"], metric["entries"].as_array().expect("list").len());
        }
        received.extend(messages(&collected.metrics));
        log.collector.committed();
        if !log.collector.has_more() {
            break;
        }
    }
    assert_eq!(received, sent);
    // One entry longer than a whole collection does not hold its place for ever.
    log.append("pg.log", &(line("long") + &"\tmore\n".repeat(20_000) + &line("after")));
    let mut rest = Vec::new();
    for _ in 0..10 {
        rest.extend(log.messages().await);
    }
    assert_eq!(rest.len(), 2, "{rest:?}");
    assert!(rest[0].starts_with("long\nmore") && rest[1] == "after");
}

/// C46: without its zone a time is not known, so its entries wait until the server has said it.
#[tokio::test]
async fn entries_wait_for_their_zone() {
    let mut log = Log::new("pg.log");
    log.config.timezone = None;
    log.config.connection.host = log.directory.path().display().to_string();
    log.restart();
    log.append("pg.log", "2026-03-01 12:00:00.000 CET [7] LOG:  one\n");
    let later = clock::now() + Duration::from_secs(60);
    let error = log.collector.collect(later).await.expect_err("no zone").to_string();
    assert!(error.contains("pg_log.timezone"), "{error}");
    log.config.timezone = Some("Europe/Berlin".to_owned());
    log.restart();
    let collected = log.read().await;
    assert_eq!(entries(&collected.metrics)[0]["timestamp"], "2026-03-01T11:00:00.000Z");
}

#[tokio::test]
async fn unreadable_logs_are_errors_with_a_hint() {
    let mut log = Log::new("absent.log");
    let error = log.collector.collect(clock::now()).await.expect_err("absent").to_string();
    assert!(error.contains("absent.log") && error.contains("hint:"), "{error}");
    // A prefix that fits no line is a mistake in the configuration, not a log without entries.
    let mut log = Log::new("pg.log");
    log.append("pg.log", &"something else entirely\n".repeat(60));
    let error = log.collector.collect(clock::now()).await.expect_err("another prefix").to_string();
    assert!(error.contains("pg_log.line_prefix"), "{error}");
    // Without a server and a path nothing is known.
    let connection = PgConnection {
        host: log.directory.path().display().to_string(),
        ..PgConnection::default()
    };
    let config = PgLogConfig { connection, ..PgLogConfig::default() };
    let mut collector = PgLogCollector::new(config, Some(b"damaged"));
    let error = collector.collect(clock::now()).await.expect_err("no server").to_string();
    assert!(error.contains("is PostgreSQL running there?"), "{error}");
    let again = collector.collect(clock::now()).await.expect_err("no server").to_string();
    assert_eq!(error, again, "the same while the cause is");
}

fn asking(server: &Postgres) -> PgLogConfig {
    let host = server.socket_dir().display().to_string();
    PgLogConfig {
        connection: PgConnection { host, ..PgConnection::default() },
        start_at: StartAt::Beginning,
        ..PgLogConfig::default()
    }
}

async fn logged(server: &Postgres, statement: &str) {
    let failed = server.client("postgres").await.batch_execute(statement).await;
    failed.expect_err("the statement fails");
}

fn wait_for(file: &Path, text: &str) {
    until(text, LIMIT, || fs_err::read_to_string(file).unwrap_or_default().contains(text));
}

/// Everything that a session can have logged, with a secret in it.
const TELL: &str = "SET log_statement = 'all'; SET log_min_duration_statement = 0;
    SET log_error_verbosity = 'verbose'; SET log_min_messages = 'debug1'";
const TELLING: &str = "DO $$ BEGIN
      RAISE LOG 'checkpoint starting: secret'; RAISE WARNING 'relation \"secret\" of mine';
      RAISE NOTICE 'secret'; RAISE DEBUG 'SECRT: secret';
      EXECUTE 'SELECT ''secret''';
    END $$";
const RAISING: &str = "DO $$ BEGIN RAISE EXCEPTION 'a secret' USING
    DETAIL = 'a detail with a secret', HINT = 'a hint with a secret'; END $$";

/// C46: on every major the log is found by asking the server, and its entries have the time at
/// which they were written; nothing of a statement or a value leaves the host.
#[tokio::test]
async fn logs_of_every_major_are_read() {
    for major in majors() {
        let server = shared(major);
        let before = clock::now();
        logged(server, "SELECT 'secret'::int").await;
        logged(server, "SELECT '1e400secret'::float8").await;
        logged(server, "SELECT *\n  FROM no_such_table -- secret").await;
        let session = server.client("postgres").await;
        session.batch_execute(TELL).await.expect("the session logs everything");
        session.batch_execute(TELLING).await.expect("statements that tell a secret");
        logged(server, RAISING).await;
        wait_for(&server.log_file(), "a hint with a secret");
        let mut collector = PgLogCollector::new(asking(server), None);
        let later = clock::now() + Duration::from_secs(5);
        let collected = collector.collect(later).await.expect("collects");
        for metric in &collected.metrics {
            validate(metric, later).unwrap_or_else(|invalid| panic!("{invalid} in {metric}"));
            assert_eq!(metric["database"], "postgres");
            assert_eq!(metric["file"], server.log_file().display().to_string());
        }
        let all = entries(&collected.metrics);
        let find = |text: &str| -> &Value {
            let found =
                all.iter().rev().find(|e| e["message"].as_str().expect("text").contains(text));
            found.unwrap_or_else(|| panic!("{text} in {all:?}"))
        };
        find("database system is ready to accept connections");
        let missing = find("relation \"?\" does not exist");
        assert!(!missing["pid"].is_null() && missing["redacted"] == true, "{missing}");
        let value = find("invalid input syntax for ?");
        find("statement: ?");
        find("duration: ? ms");
        for entry in [missing, value] {
            let at: Timestamp = entry["timestamp"].as_str().expect("text").parse().expect("a time");
            assert!(at >= before - Duration::from_millis(1) && at <= clock::now(), "{entry}");
            assert_eq!(entry["level"], "ERROR");
        }
        let sent = serde_json::to_string(&collected.metrics).expect("encodes");
        assert!(!sent.contains("secret") && !sent.contains("no_such_table"), "{sent}");
    }
}

/// The prefix and the zone are the server's own, redaction can be switched off, and a position
/// outlives both the agent and the server.
#[tokio::test]
async fn settings_of_the_server_are_used() {
    let settings = [
        ("log_line_prefix", "%t:%r:%u@%d:[%p]:%l:%e:%a:"),
        ("log_timezone", "Europe/Berlin"),
        ("log_error_verbosity", "verbose"),
    ];
    let mut server = Postgres::start_with(16, &settings);
    let before = clock::now();
    logged(&server, "SELECT *\n  FROM no_such_table").await;
    wait_for(&server.log_file(), "FROM no_such_table");
    let config = PgLogConfig { redaction: Redaction::Off, ..asking(&server) };
    let mut collector = PgLogCollector::new(config.clone(), None);
    let later = clock::now() + Duration::from_secs(5);
    let collected = collector.collect(later).await.expect("collects");
    let all = entries(&collected.metrics);
    let entry = all.iter().find(|e| e["sqlstate"] == "42P01").unwrap_or_else(|| panic!("{all:?}"));
    assert_eq!(entry["message"], "relation \"no_such_table\" does not exist at character 17");
    assert_eq!(entry["statement"], "SELECT *\n  FROM no_such_table");
    assert_eq!((&entry["user"], &entry["database"]), (&"postgres".into(), &"postgres".into()));
    assert_eq!(entry["client"], "[local]");
    let at: Timestamp = entry["timestamp"].as_str().expect("text").parse().expect("a time");
    assert!(at.as_second() >= before.as_second() && at <= clock::now(), "{entry}");
    let counts: BTreeMap<String, u64> =
        serde_json::from_value(collected.metrics[0]["counts"].clone()).expect("counts");
    assert_eq!(counts.get("ERROR"), Some(&1), "{counts:?}");

    // The agent stops, then the server: what it writes last is read without asking it.
    server.stop();
    let mut collector = PgLogCollector::new(config, collected.state.as_deref());
    let begun = clock::monotonic();
    loop {
        let later = clock::now() + Duration::from_secs(5);
        let collected = collector.collect(later).await.expect("collects");
        if messages(&collected.metrics).iter().any(|m| m.contains("database system is shut down")) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "the server's last words: {collected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
