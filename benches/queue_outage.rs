//! How much disk one day without the backend takes on an ordinary host: a server with 100 tables
//! and 200 indexes, all four collectors, an interval and a push window of 60 s.
//!
//! The documents are real: each simulated minute, the real collectors read the real server once,
//! after a minute's worth of light load on it. What is simulated is the time between: the minutes
//! follow each other as fast as sysstat can be read, so timestamps, the ages of sizes and the
//! host's uptime are rewritten to the minute's. `BENCH_WINDOWS` sets how many minutes.
//!
//! - `queue_day_ratio`: allocated bytes on disk at the end per byte of JSON.
//! - `queue_day_mib`, `queue_day_json_mib`: the two of them.
//! - `queue_day_peak_mib`: the most that was allocated at the end of a minute.
//! - `queue_day_cpu_s`: CPU of this process in the queue's own work: append, seal, merge.
//! - `queue_day_writes`: bytes to the device per byte of JSON, merging included.

#![allow(clippy::cast_precision_loss, reason = "measurements")]
#![allow(clippy::print_stdout, reason = "a bench prints its results")]

mod common;
#[path = "common/host.rs"]
mod host;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use common::{allocated, device_bytes, directory, result, setting};
use host::{Collectors, PAUSE, TABLES, own_cpu};
use jiff::{SignedDuration, Timestamp};
use pganalytics::{
    collect::Collected,
    queue::{Group, Log, NewRecord, Position, WriteDisk},
};
use serde_json::Value;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
/// `sizes_every`, ten minutes, in the bench's minutes.
const SIZES_EVERY: Duration = Duration::from_millis(10 * 220);
/// Tables that a minute's load touches.
const TABLES_TOUCHED: u32 = 20;

/// What the queue has cost so far.
#[derive(Default)]
struct Cost {
    cpu: Duration,
    device_bytes: u64,
}

/// When each object's size was measured, in minutes, and the age that was shown last.
#[derive(Default)]
struct Ages(HashMap<String, (u32, u64)>);

fn main() {
    let whole = std::env::args().any(|argument| argument == "--bench");
    let windows = setting("BENCH_WINDOWS", if whole { 24 * 60 } else { 3 });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(u32::try_from(windows).expect("a few days")));
}

async fn run(windows: u32) {
    // Vacuuming follows the bench's minutes, which are short.
    let Some(server) = host::server(&[("autovacuum_naptime", "1s")]).await else {
        println!("skipped: PostgreSQL is not installed; hint: tests/run installs it");
        return;
    };
    let dir = directory();
    let mut log = common::queue_config(dir.path()).open_log().expect("the queue opens");
    let mut collectors = Collectors::new(&server, SIZES_EVERY);
    let load = server.client("postgres").await;
    let (mut ages, mut cost) = (Ages::default(), Cost::default());
    let (mut json, mut records, mut peak) = (0, 0, 0);
    for window in 0..windows {
        let turn = tokio::time::sleep(PAUSE);
        work(&load, window).await;
        let at = minute(window);
        let groups: Vec<Group> = collectors
            .collect(at)
            .await
            .into_iter()
            .map(|(name, collected)| group(name, collected, window, &mut ages))
            .collect();
        let taken = groups.iter().flat_map(|group| &group.records);
        for record in taken {
            json += record.payload.len() as u64;
            records += 1;
        }
        cost.of(|| keep(&mut log, groups, at));
        peak = peak.max(allocated(dir.path()));
        turn.await;
    }
    let disk = allocated(dir.path());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    result("queue_day_windows", f64::from(windows), "windows");
    result("queue_day_json_mib", mib(json), "MiB");
    result("queue_day_mib", mib(disk), "MiB");
    result("queue_day_peak_mib", mib(peak), "MiB");
    result("queue_day_ratio", disk as f64 / json as f64, "1");
    result("queue_day_cpu_s", cost.cpu.as_secs_f64(), "s");
    result("queue_day_writes", cost.device_bytes as f64 / json as f64, "1");
    assert_eq!(drain(log), (records, json), "every byte can be delivered");
}

/// One minute of the queue: a cycle's groups share an append, the window ends, and the disk is
/// tidied up while nobody drains.
fn keep<D: WriteDisk>(log: &mut Log<D>, groups: Vec<Group>, at: Timestamp) {
    let at_ms = at.as_millisecond();
    log.append(groups, at_ms);
    log.seal(at_ms + 1_000);
    while log.tend(at_ms + 2_000) {}
}

/// Reads everything back, as a drain does: records and their bytes.
fn drain<D: WriteDisk>(mut log: Log<D>) -> (u64, u64) {
    let (mut records, mut bytes) = (0, 0);
    while let Some(batch) = log.next_batch(i64::MAX) {
        let count = batch.records.len() as u64;
        records += count;
        bytes += batch.records.iter().map(|record| record.payload.len() as u64).sum::<u64>();
        log.delivered(batch.key, count, &[]).expect("the disk works");
    }
    (records, bytes)
}

fn minute(window: u32) -> Timestamp {
    let first: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    first + MINUTE * i32::try_from(window).expect("a few days")
}

impl Cost {
    fn of(&mut self, work: impl FnOnce()) {
        let (cpu, bytes) = (own_cpu(), device_bytes());
        work();
        self.cpu += own_cpu().saturating_sub(cpu);
        self.device_bytes += device_bytes().saturating_sub(bytes);
    }
}

/// A minute's load: some tables are read and written, the first ones most, and now and then
/// somebody makes a mistake that the log notes.
async fn work(client: &tokio_postgres::Client, window: u32) {
    let mut random = fastrand::Rng::with_seed(u64::from(window));
    for _ in 0..TABLES_TOUCHED {
        let skewed = random.f64() * random.f64();
        let table = (skewed * f64::from(TABLES)).floor();
        let (id, rows) = (random.u32(1..500), random.u32(1..12));
        let new = 1_000 + window * 1_000 + random.u32(0..1_000);
        let sql = format!(
            "SELECT * FROM t{table} WHERE id = {id};
             SELECT count(*) FROM t{table} WHERE id BETWEEN {id} AND {id} + {rows};
             UPDATE t{table} SET v = md5(v) WHERE id BETWEEN {id} AND {id} + {rows};
             INSERT INTO t{table}
                 SELECT n, md5(n::text) FROM generate_series({new}, {new} + {rows}) n
                 ON CONFLICT DO NOTHING;
             DELETE FROM t{table} WHERE id = {new};"
        );
        client.batch_execute(&sql).await.expect("a light load");
    }
    if random.u32(0..3) == 0 {
        client.batch_execute("SELECT no_such_column").await.expect_err("an error");
    }
    // A backend reports its numbers once a second; these minutes are shorter than that.
    client.batch_execute("SELECT pg_stat_force_next_flush()").await.expect("flushed");
}

fn group(name: &str, collected: Collected, window: u32, ages: &mut Ages) -> Group {
    let position = collected.state.map(|bytes| Position {
        collector: name.to_owned(),
        bytes: Bytes::from(bytes),
        keep_until_ms: None,
    });
    let records = collected.metrics.into_iter().map(|mut metric| {
        ages.rewrite(&mut metric, "", window);
        let text = |key: &str| metric.get(key).and_then(Value::as_str).unwrap_or_default();
        NewRecord {
            kind: text("type").to_owned(),
            at_ms: minute(window).as_millisecond(),
            payload: Bytes::from(metric.to_string()),
        }
    });
    Group { position, ..Group::of(records.collect()) }
}

impl Ages {
    /// Sizes were measured whole minutes ago, and the host has been up for a minute more.
    fn rewrite(&mut self, value: &mut Value, place: &str, window: u32) {
        match value {
            Value::Array(items) => {
                for item in items {
                    let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
                    let place = format!("{place}/{name}");
                    self.rewrite(item, &place, window);
                }
            }
            Value::Object(members) => {
                for (key, member) in members {
                    match key.as_str() {
                        "size_age_s" => *member = self.age(place, member.as_u64(), window).into(),
                        "uptime_s" => *member = (1_000_000 + u64::from(window) * 60).into(),
                        _ => self.rewrite(member, &format!("{place}.{key}"), window),
                    }
                }
            }
            _ => {}
        }
    }

    /// An age below the last one means that the size was measured again.
    fn age(&mut self, place: &str, shown: Option<u64>, window: u32) -> u64 {
        let shown = shown.unwrap_or(0);
        let known = self.0.entry(place.to_owned()).or_insert((window, shown));
        if shown < known.1 {
            known.0 = window;
        }
        known.1 = shown;
        u64::from(window - known.0) * 60
    }
}
