//! The agent's own health as a metric: what `agent status` and `/metrics` read, once an interval.

use std::{collections::BTreeMap, time::Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use super::door::{Collections, CollectorStatus};
use crate::{
    clock,
    collect::{CollectError, Collected, Collector, document, round2},
    forward::ForwardStatus,
    metric::{
        Time,
        agent_health::{self, AgentHealth, CollectorHealth, Forwarder, Lost, Ring},
    },
    queue::{Loss, Queue, QueueStatus},
};

/// When the agent started, by the wall clock and by the monotonic one.
pub(super) type Started = (Timestamp, Instant);

/// Where the numbers are.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) queue: Queue,
    pub(super) collections: Collections,
    pub(super) forward: watch::Receiver<ForwardStatus>,
    pub(super) started: Started,
}

/// Makes documents of type `agent`.
#[derive(Debug)]
pub(super) struct HealthCollector(pub(super) Sources);

/// What the system says of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Process {
    rss_bytes: Option<u64>,
    device_bytes_written: Option<u64>,
}

impl Collector for HealthCollector {
    fn name(&self) -> &'static str {
        agent_health::TYPE
    }

    /// Gives nothing while the backend in use does not know the type.
    async fn collect(&mut self, now: Timestamp) -> Result<Collected, CollectError> {
        let Sources { queue, collections, forward, started } = &self.0;
        let forward = forward.borrow().clone();
        if forward.refuses_health {
            return Ok(Collected::default());
        }
        let closed = |error| CollectError::new(format!("{error}"));
        let status = queue.status().await.map_err(closed)?;
        let losses = queue.losses().await.map_err(closed)?;
        let process = Process::read();
        let is_known = status.state_error.is_none();
        let health = AgentHealth {
            timestamp: Time(now),
            started_at: Some(Time(started.0)),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            uptime_s: Some(started.1.elapsed().as_secs_f64().round()),
            rss_bytes: process.rss_bytes,
            cpu_s: Some(round2(clock::process_cpu().as_secs_f64())),
            device_bytes_written: process.device_bytes_written,
            queue: Some(queue_health(&status)),
            ring: Some(Ring {
                records: Some(status.ring_records),
                bytes: Some(status.ring_bytes),
                bytes_max: Some(status.ring_bytes_max),
            }),
            forwarder: Some(forwarder(&forward, &status)),
            collectors: collectors(collections.snapshot()),
            lost: is_known.then(|| lost(&losses, &status)),
        };
        Ok(Collected { metrics: vec![document(&health)?], state: None })
    }
}

impl Process {
    fn read() -> Self {
        let read = |name: &str| fs_err::read_to_string(name).unwrap_or_default();
        Self::of(&read("/proc/self/status"), &read("/proc/self/io"))
    }

    /// Reads proc(5)'s `status`, whose sizes are in KiB, and `io`.
    fn of(status: &str, io: &str) -> Self {
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Self {
            rss_bytes: number(status, "VmRSS:").and_then(|kib| kib.checked_mul(1024)),
            device_bytes_written: number(io, "write_bytes:"),
        }
    }
}

/// What waits is not known while the queue's state cannot be read.
fn queue_health(status: &QueueStatus) -> agent_health::Queue {
    let is_known = status.state_error.is_none();
    let known = |number| is_known.then_some(number);
    agent_health::Queue {
        segments: known(status.segments),
        batches: known(status.batches),
        records: known(status.records),
        bytes: known(status.usage_bytes),
        bytes_max: Some(status.bytes_max),
        oldest_at: status.oldest_at.map(Time),
        degraded: Some(status.disk_error.is_some()),
        records_appended: known(status.counts.appended_records),
        bytes_appended: known(status.counts.appended_bytes),
    }
}

fn forwarder(forward: &ForwardStatus, queue: &QueueStatus) -> Forwarder {
    Forwarder {
        state: Some(forward.state.as_str().to_owned()),
        in_flight: Some(forward.in_flight),
        batches_delivered: Some(queue.counts.delivered_batches),
        records_delivered: Some(queue.counts.delivered_records),
        bytes_sent: Some(forward.sent_bytes),
        bytes_sent_raw: Some(forward.raw_bytes),
        failures: Some(forward.failures),
        last_delivered_at: forward.last_delivery_at.map(Time),
    }
}

fn collectors(all: BTreeMap<String, CollectorStatus>) -> BTreeMap<String, CollectorHealth> {
    let health = |status: CollectorStatus| CollectorHealth {
        runs: Some(status.collections + status.failures),
        failures: Some(status.failures),
        metrics: Some(status.metrics),
        rejected: Some(status.rejected),
        cpu_ms: Some(status.cpu_ms()),
        last_ms: Some(status.last_ms),
        last_run_at: status.last_at.map(Time),
    };
    all.into_iter().map(|(name, status)| (name, health(status))).collect()
}

fn lost(losses: &[Loss], queue: &QueueStatus) -> Lost {
    Lost {
        ranges: Some(losses.len() as u64),
        records: Some(losses.iter().map(|loss| loss.records).sum()),
        rejected: Some(queue.counts.rejected_records),
        evicted: Some(queue.counts.evicted_records),
        refused: Some(queue.counts.refused_records + queue.counts.unknown_records),
        corrupt: Some(queue.counts.corrupt_records),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::{
        metric,
        queue::{Group, Log, LogLimits, LossReason, MemoryDisk, NewRecord},
    };

    #[test]
    fn what_the_system_says_is_read_or_absent() {
        let status = "Name:\tagent\nVmPeak:\t  99 kB\nVmRSS:\t   12 kB\nRssAnon:\t 5 kB\n";
        let io = "rchar: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        let both = Process { rss_bytes: Some(12_288), device_bytes_written: Some(4_096) };
        assert_eq!(Process::of(status, io), both);
        assert_eq!(Process::of("", ""), Process::default());
        assert_eq!(Process::of("VmRSS: many kB", "write_bytes:"), Process::default());
        assert!(Process::read().rss_bytes > Some(1 << 20), "{:?}", Process::read());
    }

    async fn read(collector: &mut HealthCollector) -> Vec<Value> {
        let collected = collector.collect(clock::now()).await.unwrap();
        for document in &collected.metrics {
            metric::validate(document, clock::now()).unwrap();
        }
        collected.metrics
    }

    /// The document says what queue and forwarder say of themselves, is sound, and small; a backend
    /// that does not know it gets none.
    #[tokio::test]
    async fn it_says_what_the_parts_say() {
        let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).unwrap();
        let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
        let payload: bytes::Bytes = b"{\"n\":1}".to_vec().into();
        let record = NewRecord { kind: "custom.x".to_owned(), at_ms: 1, payload };
        let group = Group { rejected: 2, ..Group::of(vec![record; 3]) };
        queue.append(group).await.unwrap();
        let (shown, forward) = watch::channel(ForwardStatus::default());
        shown.send_modify(|status| (status.sent_bytes, status.failures) = (77, 5));
        let started: Started = (clock::now(), clock::monotonic());
        let collections = Collections::default();
        let sources = Sources { queue: queue.clone(), collections, forward, started };
        let mut collector = HealthCollector(sources);
        let [health] = &read(&mut collector).await[..] else { panic!("one document") };
        let is = |pointer: &str, expected: u64| {
            assert_eq!(health.pointer(pointer), Some(&expected.into()), "{pointer}: {health}");
        };
        is("/queue/records", 3);
        is("/queue/records_appended", 3);
        is("/queue/bytes_appended", 3 * 7);
        is("/ring/records", 3);
        is("/ring/bytes_max", 4 << 20);
        is("/forwarder/bytes_sent", 77);
        is("/forwarder/failures", 5);
        is("/lost/ranges", 1);
        is("/lost/records", 2);
        is("/lost/rejected", 2);
        assert_eq!(health["started_at"], clock::rfc3339(started.0));
        assert!(health.to_string().len() < 2_048, "{health}");
        shown.send_modify(|status| status.refuses_health = true);
        assert!(read(&mut collector).await.is_empty());
        shown.send_modify(|status| status.refuses_health = false);
        assert_eq!(read(&mut collector).await.len(), 1);
        assert_eq!(queue.losses().await.unwrap()[0].reason, LossReason::Reject);
        queue.close().await.unwrap();
        collector.collect(clock::now()).await.expect_err("closed");
        thread.join();
    }
}
