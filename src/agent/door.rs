//! From collectors to the queue: each on its own interval with its own deadline, and validated at
//! the door.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    clock,
    collect::{Collected, Collector, label, schedule::Schedule},
    config::Timing,
    metric,
    queue::{AppendError, Appended, Group, Haste, NewRecord, Position, Queue},
    shutdown::Shutdown,
    telemetry::counter,
    units,
};

/// What the collectors have done.
#[derive(Debug, Clone, Default)]
pub struct Collections(Arc<Mutex<BTreeMap<String, CollectorStatus>>>);

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
    /// What is wrong while it gives what it can.
    pub notices: Vec<String>,
    /// Since when it waits with what it has collected, because the queue is full and `on_full` is
    /// `block`.
    pub blocked_since: Option<Timestamp>,
    /// When the last collection began.
    pub last_at: Option<Timestamp>,
    /// How long it took.
    pub last_ms: u64,
    /// CPU of this process for its collections, up to the queue.
    pub cpu: Duration,
}

/// Why the queue has not taken what a collector brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// It is closed.
    Closed,
    /// It had no room until the shutdown came.
    Shutdown,
}

/// How often a full queue is asked whether it has room again.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// How long a collector may take to close what a collection has left open.
const GIVE_UP_MAX: Duration = Duration::from_secs(2);

/// Checks metrics and hands them to the queue.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) queue: Queue,
    pub(super) collections: Collections,
}

impl CollectorStatus {
    /// [`CollectorStatus::cpu`] in whole milliseconds.
    pub fn cpu_ms(&self) -> u64 {
        u64::try_from(self.cpu.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Collections {
    /// What every collector has done, by its name.
    pub fn snapshot(&self) -> BTreeMap<String, CollectorStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }

    /// A collector does not run any more: what was wrong with it is not wrong now.
    pub(super) fn ended(&self, name: &str) {
        self.change(name, |status| {
            status.error = None;
            status.notices = Vec::new();
            status.blocked_since = None;
        });
    }

    /// Runs `work` to its end, at the cost of the collector `name`.
    async fn charge<T>(&self, name: &str, work: impl Future<Output = T>) -> T {
        let (done, cpu) = metered(work).await;
        self.change(name, |status| status.cpu += cpu);
        done
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut CollectorStatus)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(name.to_owned()).or_default());
    }
}

/// What comes of `work`, and the CPU time of the threads that have polled it.
async fn metered<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let (mut work, mut cpu) = (pin!(work), Duration::ZERO);
    let done = poll_fn(|context| {
        let before = clock::thread_cpu();
        let polled = work.as_mut().poll(context);
        cpu += clock::thread_cpu().saturating_sub(before);
        polled
    });
    (done.await, cpu)
}

/// Runs a collector until the shutdown.
pub(super) async fn run_collector<C: Collector>(
    mut collector: C,
    timing: Timing,
    door: Door,
    mut shutdown: Shutdown,
) {
    let name = label(collector.name(), collector.instance());
    let mut schedule = Schedule::new(timing.interval, Duration::ZERO);
    let mut more = false;
    loop {
        let mut wait = Duration::ZERO;
        if !std::mem::take(&mut more) {
            let tick = schedule.next(clock::now());
            metrics::counter!(counter::MISSED, "collector" => name.clone()).increment(tick.missed);
            wait = tick.after;
        }
        let collect = async {
            tokio::time::sleep(wait).await;
            let once = collect_once(&name, &mut collector, timing.deadline, &door);
            door.collections.charge(&name, once).await
        };
        let collected = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            collected = collect => collected,
        };
        // What has been collected is stored even when the shutdown comes now.
        let Some(collected) = collected else { continue };
        let admit = door.admit(&name, collected, &mut shutdown);
        match door.collections.charge(&name, admit).await {
            Ok(()) => {
                collector.committed();
                more = collector.has_more();
            }
            // Not committed: what can be read again is read again at the next start.
            Err(Refused::Shutdown | Refused::Closed) => return,
        }
    }
}

async fn collect_once<C: Collector>(
    name: &str,
    collector: &mut C,
    deadline: Duration,
    door: &Door,
) -> Option<Collected> {
    let (at, begun) = (clock::now(), clock::monotonic());
    let result = tokio::time::timeout(deadline, collector.collect(at)).await;
    let (result, collected, error) = match result {
        Ok(Ok(collected)) => ("ok", Some(collected), None),
        Ok(Err(error)) => ("error", None, Some(error.to_string())),
        Err(_) => {
            tokio::time::timeout(GIVE_UP_MAX, collector.given_up()).await.ok();
            let limit = units::show_duration(deadline);
            let text =
                format!("not done within {limit}\n  hint: raise {}.timeout", collector.name());
            ("deadline", None, Some(text))
        }
    };
    let label = name.to_owned();
    metrics::counter!(counter::COLLECTIONS, "collector" => label, "result" => result).increment(1);
    let (took, notices) = (begun.elapsed(), collector.notices());
    door.collections.change(name, |status| {
        log_change(name, status.error.as_deref(), error.as_deref());
        status.last_at = Some(at);
        status.last_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        status.collections += u64::from(error.is_none());
        status.failures += u64::from(error.is_some());
        status.error = error;
        status.notices = notices;
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
    async fn admit(
        &self,
        name: &str,
        collected: Collected,
        shutdown: &mut Shutdown,
    ) -> Result<(), Refused> {
        let now = clock::now();
        let mut records = Vec::with_capacity(collected.metrics.len());
        for metric in &collected.metrics {
            match record(metric, now) {
                Ok(record) => records.push(record),
                Err(invalid) => self.reject(name, metric, &invalid),
            }
        }
        let position = collected.state.map(|bytes| Position {
            collector: name.to_owned(),
            bytes: Bytes::from(bytes),
            keep_until_ms: None,
        });
        let rejected = (collected.metrics.len() - records.len()) as u64;
        if records.is_empty() && position.is_none() && rejected == 0 {
            return Ok(());
        }
        let group = Group { records, position, rejected, haste: Haste::Linger };
        let appended = self.append(name, group, shutdown).await?;
        let counter = metrics::counter!(counter::APPENDED, "collector" => name.to_owned());
        counter.increment(appended.records);
        self.collections.change(name, |status| status.metrics += appended.records);
        Ok(())
    }

    /// Appends; while the queue is full and `on_full` is `block`, waits until there is room. Only
    /// the collector that brings the group is held back by that.
    async fn append(
        &self,
        name: &str,
        group: Group,
        shutdown: &mut Shutdown,
    ) -> Result<Appended, Refused> {
        let mut since = None;
        loop {
            match self.queue.append(group.clone()).await {
                Err(AppendError::Full) => {}
                answer => {
                    if since.is_some() {
                        tracing::info!(collector = name, "the queue has room again");
                        self.collections.change(name, |status| status.blocked_since = None);
                    }
                    return answer.map_err(|_| Refused::Closed);
                }
            }
            if since.is_none() {
                since = Some(clock::now());
                tracing::error!(collector = name, "the queue is full: the collector waits");
                self.collections.change(name, |status| status.blocked_since = since);
            }
            tokio::select! {
                biased;
                () = shutdown.wait() => return Err(Refused::Shutdown),
                () = tokio::time::sleep(ROOM_RETRY) => {}
            }
        }
    }

    fn reject(&self, name: &str, metric: &Value, invalid: &metric::Invalid) {
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

fn record(metric: &Value, now: Timestamp) -> Result<NewRecord, metric::Invalid> {
    let text = metric.to_string();
    let sound = metric::admit(&text, now)?;
    let (kind, at_ms) = (sound.metric_type.to_string(), sound.at.as_millisecond());
    Ok(NewRecord { kind, at_ms, payload: Bytes::from(text) })
}

/// `tables[17].name` as `tables[].name`: a label with few values.
fn without_indexes(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        collect::CollectError,
        queue::{Budget, Log, LogLimits, LossReason, MemoryDisk, OnFull},
        shutdown,
    };

    /// Gives what it is told to, once per call, and then waits for ever.
    struct Scripted {
        steps: Vec<Step>,
        given_up: u32,
    }

    impl Scripted {
        fn new(steps: Vec<Step>) -> Self {
            Self { steps, given_up: 0 }
        }
    }

    /// Q6, `on_full = "block"`: a full queue holds the collector back with what it has, takes it
    /// as soon as there is room, and a shutdown does not wait for that.
    #[tokio::test]
    async fn a_full_queue_holds_the_collector_back() {
        let mut limits = LogLimits::default();
        let budget = Budget { on_full: OnFull::Block, ..Budget::UNBOUNDED };
        limits.budget = Budget { bytes_max: limits.reserve_bytes(), ..budget };
        let log = Log::open(MemoryDisk::new().open(), limits).unwrap();
        let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
        let door = Door { queue: queue.clone(), collections: Collections::default() };
        let collections = door.collections.clone();
        let metrics = || Step::Metrics(vec![sysstat(7.0)]);
        let steps = vec![metrics(), metrics(), metrics()];
        let (trigger, shutdown) = shutdown::channel();
        let timing =
            Timing { interval: Duration::from_millis(500), deadline: Duration::from_secs(1) };
        let running = tokio::spawn(run_collector(Scripted::new(steps), timing, door, shutdown));
        let reaches = async |what: &str, reached: fn(&CollectorStatus) -> bool| {
            let status = async {
                while !collections.snapshot().get("scripted").is_some_and(reached) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), status).await.expect(what);
        };
        reaches("the first is taken", |status| status.metrics == 1).await;
        queue.seal().await.unwrap();
        reaches("the second waits", |status| status.blocked_since.is_some()).await;
        assert_eq!(queue.status().await.unwrap().next_seq, 1, "nothing was taken");
        let batch = queue.next_batch().await.unwrap().expect("the first");
        queue.delivered(batch.key, 1, Vec::new()).await.unwrap();
        reaches("there is room", |s| s.metrics == 2 && s.blocked_since.is_none()).await;
        queue.seal().await.unwrap();
        reaches("the third waits", |status| status.blocked_since.is_some()).await;
        trigger.stop();
        tokio::time::timeout(Duration::from_secs(30), running).await.expect("ends").unwrap();
        assert_eq!(queue.status().await.unwrap().next_seq, 2);
        queue.close().await.unwrap();
        thread.join();
    }

    fn sysstat(user: f64) -> Value {
        json!({"type": "sysstat", "timestamp": clock::now(), "cpu": {"user": user}})
    }

    enum Step {
        Metrics(Vec<Value>),
        Fails,
        Hangs,
    }

    impl Collector for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }

        async fn collect(&mut self, _now: Timestamp) -> Result<Collected, CollectError> {
            match self.steps.pop() {
                Some(Step::Metrics(metrics)) => Ok(Collected { metrics, state: None }),
                Some(Step::Fails) => Err(CollectError::new("out of order")),
                Some(Step::Hangs) | None => std::future::pending().await,
            }
        }

        fn notices(&self) -> Vec<String> {
            vec![format!("given up {}", self.given_up)]
        }

        async fn given_up(&mut self) {
            self.given_up += 1;
        }
    }

    /// What a future computes is its cost, in all of its pieces; what others do meanwhile is not.
    #[tokio::test]
    async fn what_is_computed_is_metered() {
        const PIECE: Duration = Duration::from_millis(3);
        let spin = || {
            let end = clock::thread_cpu() + PIECE;
            while clock::thread_cpu() < end {}
        };
        let ((), ((begun, ended), cpu)) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                spin();
            },
            metered(async {
                let begun = clock::thread_cpu();
                spin();
                tokio::time::sleep(Duration::from_millis(5)).await;
                spin();
                (begun, clock::thread_cpu())
            }),
        );
        assert!(cpu >= 2 * PIECE, "{cpu:?}");
        assert!(begun + cpu + PIECE / 2 <= ended, "{cpu:?}: what others did is not in it");
    }

    /// C28: a metric that is refused is counted with its place and stops no other; a collection
    /// that fails and one that hangs are counted, and the next one is made.
    #[tokio::test]
    async fn what_is_wrong_with_one_stops_no_other() {
        let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).unwrap();
        let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
        let door = Door { queue: queue.clone(), collections: Collections::default() };
        let steps =
            vec![Step::Metrics(vec![sysstat(-5.0), sysstat(7.0)]), Step::Hangs, Step::Fails];
        let (trigger, shutdown) = shutdown::channel();
        let timing =
            Timing { interval: Duration::from_millis(10), deadline: Duration::from_millis(20) };
        let collections = door.collections.clone();
        let running = tokio::spawn(run_collector(Scripted::new(steps), timing, door, shutdown));
        let collected = async {
            loop {
                let status = collections.snapshot().remove("scripted").unwrap_or_default();
                if status.metrics > 0 {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(30);
        let status = tokio::time::timeout(limit, collected).await.expect("metrics in the end");
        trigger.stop();
        running.await.unwrap();
        assert_eq!((status.metrics, status.rejected), (1, 1));
        assert!(status.failures >= 2, "{status:?}");
        assert_ne!(status.notices, ["given up 0"], "it was told, and its word is in the status");
        assert!(status.cpu > Duration::ZERO, "{status:?}");
        let refused = status.last_rejected.unwrap();
        assert!(refused.starts_with("sysstat: cpu.user: "), "{refused}");
        assert_eq!(queue.status().await.unwrap().records, 1);
        // The refused one has a number, so that whoever counts them finds no unexplained hole.
        let losses = queue.losses().await.unwrap();
        let rejected = losses.iter().map(|loss| (loss.from, loss.records, loss.reason));
        assert_eq!(rejected.collect::<Vec<_>>(), [(1, 1, LossReason::Reject)]);
        queue.close().await.unwrap();
        thread.join();
    }
}
