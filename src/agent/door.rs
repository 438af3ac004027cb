//! From collectors to the queue: each on its own interval with its own deadline, and validated at
//! the door.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    clock,
    collect::{Collected, Collector, schedule::Schedule},
    config::Timing,
    metric,
    queue::{Group, NewRecord, Position, Queue, QueueClosed},
    shutdown::Shutdown,
    telemetry::counter,
    units,
};

/// What the collectors have done.
#[derive(Debug, Clone, Default)]
pub struct Collections(Arc<Mutex<BTreeMap<&'static str, CollectorStatus>>>);

/// What one collector has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorStatus {
    /// Collections that gave something.
    pub collections: u64,
    /// Metrics that the queue took.
    pub metrics: u64,
    /// Metrics that were refused at the door.
    pub rejected: u64,
    /// The last one of those: its type, the place in its JSON, and what is wrong there.
    pub last_rejected: Option<String>,
    /// Collections that failed or were given up.
    pub failures: u64,
    /// Why the last collection failed; `None` when it did not.
    pub error: Option<String>,
    /// When the last collection began.
    pub last_at: Option<Timestamp>,
    /// How long it took.
    pub last_ms: u64,
}

/// Checks metrics and hands them to the queue.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) queue: Queue,
    pub(super) collections: Collections,
}

impl Collections {
    /// What every collector has done, by its name.
    pub fn snapshot(&self) -> BTreeMap<String, CollectorStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, status)| ((*name).to_owned(), status.clone())).collect()
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut CollectorStatus)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }
}

/// Runs a collector until the shutdown.
pub(super) async fn run_collector<C: Collector>(
    mut collector: C,
    timing: Timing,
    door: Door,
    mut shutdown: Shutdown,
) {
    let name = collector.name();
    let mut schedule = Schedule::new(timing.interval, Duration::ZERO);
    let mut more = false;
    loop {
        let mut wait = Duration::ZERO;
        if !std::mem::take(&mut more) {
            let tick = schedule.next(clock::now());
            metrics::counter!(counter::MISSED, "collector" => name).increment(tick.missed);
            wait = tick.after;
        }
        let collect = async {
            tokio::time::sleep(wait).await;
            collect_once(&mut collector, timing.deadline, &door).await
        };
        let collected = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            collected = collect => collected,
        };
        // What has been collected is stored even when the shutdown comes now.
        let Some(collected) = collected else { continue };
        match door.admit(name, collected).await {
            Ok(()) => {
                collector.committed();
                more = collector.has_more();
            }
            Err(QueueClosed) => return,
        }
    }
}

async fn collect_once<C: Collector>(
    collector: &mut C,
    deadline: Duration,
    door: &Door,
) -> Option<Collected> {
    let (name, at, begun) = (collector.name(), clock::now(), clock::monotonic());
    let result = tokio::time::timeout(deadline, collector.collect(at)).await;
    let (result, collected, error) = match result {
        Ok(Ok(collected)) => ("ok", Some(collected), None),
        Ok(Err(error)) => ("error", None, Some(error.to_string())),
        Err(_) => {
            let limit = units::show_duration(deadline);
            let text = format!("not done within {limit}\n  hint: raise {name}.timeout");
            ("deadline", None, Some(text))
        }
    };
    metrics::counter!(counter::COLLECTIONS, "collector" => name, "result" => result).increment(1);
    let took = begun.elapsed();
    door.collections.change(name, |status| {
        log_change(name, status.error.as_deref(), error.as_deref());
        status.last_at = Some(at);
        status.last_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        status.collections += u64::from(error.is_none());
        status.failures += u64::from(error.is_some());
        status.error = error;
    });
    collected
}

/// Logs only when something is different from the last time.
fn log_change(collector: &str, before: Option<&str>, now: Option<&str>) {
    match now {
        Some(error) if before != now => {
            tracing::warn!(collector, error, "a collector fails; the others go on");
        }
        None if before.is_some() => tracing::info!(collector, "the collector works again"),
        _ => {}
    }
}

impl Door {
    /// Validates metrics and appends those that are sound, with the collector's position.
    async fn admit(&self, name: &'static str, collected: Collected) -> Result<(), QueueClosed> {
        let now = clock::now();
        let sound = |metric: &Value| match metric::validate(metric, now) {
            Ok(_) => true,
            Err(invalid) => {
                self.reject(name, metric, &invalid);
                false
            }
        };
        let records: Vec<NewRecord> =
            collected.metrics.iter().filter(|metric| sound(metric)).map(record).collect();
        let position = collected
            .state
            .map(|bytes| Position { collector: name.to_owned(), bytes: Bytes::from(bytes) });
        if records.is_empty() && position.is_none() {
            return Ok(());
        }
        let appended = self.queue.append(Group { records, position }).await?;
        let counter = metrics::counter!(counter::APPENDED, "collector" => name);
        counter.increment(appended.records);
        self.collections.change(name, |status| status.metrics += appended.records);
        Ok(())
    }

    fn reject(&self, name: &'static str, metric: &Value, invalid: &metric::Invalid) {
        let kind = metric.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
        let text = format!("{kind}: {invalid}");
        let path = without_indexes(&invalid.path);
        metrics::counter!(counter::REJECTED, "type" => kind, "path" => path).increment(1);
        self.collections.change(name, |status| {
            if status.last_rejected.as_ref() != Some(&text) {
                tracing::error!(collector = name, metric = text, "a metric was refused");
            }
            status.rejected += 1;
            status.last_rejected = Some(text);
        });
    }
}

fn record(metric: &Value) -> NewRecord {
    let text = |key| metric.get(key).and_then(Value::as_str).unwrap_or_default();
    let at = text("timestamp").parse::<Timestamp>().map_or(0, Timestamp::as_millisecond);
    // A JSON value always becomes text.
    let payload = Bytes::from(serde_json::to_vec(metric).unwrap_or_default());
    NewRecord { kind: text("type").to_owned(), at_ms: at, payload }
}

/// `tables[17].name` as `tables[].name`: a label with few values.
fn without_indexes(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}
