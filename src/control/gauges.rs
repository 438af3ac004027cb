//! The numbers of queue and forwarder in `/metrics`, taken when somebody asks for them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::status::AgentStatus;
use crate::metric::agent_health::ForwarderState;
use crate::queue::{Loss, QueueStatus, SegmentInfo, SegmentState};
use crate::telemetry::counter as telemetry;

/// What the numbers are made from.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) queue: &'a QueueStatus,
    pub(super) segments: &'a [SegmentInfo],
    pub(super) losses: &'a [Loss],
    pub(super) agent: &'a AgentStatus,
}

/// Sets the numbers; remembers how the queue has grown.
#[derive(Debug, Default)]
pub(super) struct Gauges(Mutex<Growth>);

/// How the queue has grown lately, by what was seen of it when somebody asked.
#[derive(Debug, Default)]
struct Growth {
    /// Seconds since 1970 and bytes, oldest first.
    seen: VecDeque<(i64, u64)>,
}

/// How far back growth is measured: background merging makes it uneven over shorter times.
const GROWTH_SPAN_S: i64 = 3_600;
/// Below this it is not known.
const GROWTH_SPAN_MIN_S: i64 = 120;
/// How far apart what is remembered is at least.
const GROWTH_STEP_S: i64 = 30;

impl Gauges {
    /// Explains every series, once.
    pub(super) fn new() -> Self {
        for (name, what) in GAUGES {
            describe_gauge!(*name, *what);
        }
        for (name, what) in COUNTERS {
            describe_counter!(*name, Unit::Count, *what);
        }
        Self::default()
    }

    /// Makes the series say what `facts` say.
    pub(super) fn show(&self, facts: &Facts<'_>, now: Timestamp) {
        // What is set aside for the open segment comes and goes with every window.
        let open = |segment: &&SegmentInfo| segment.state == SegmentState::Open;
        let aside: u64 = facts.segments.iter().filter(open).map(|open| open.disk_bytes).sum();
        let settled = facts.queue.usage_bytes.saturating_sub(aside);
        let growth = {
            let mut growth = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            growth.note(now.as_second(), settled);
            growth.per_second()
        };
        for (name, value) in values(facts, now, growth) {
            gauge!(name).set(value);
        }
        let backend = &facts.agent.backend;
        for (name, end) in [
            (CERTIFICATE_EXPIRES, backend.certificate.as_ref().map(|own| own.expires_at)),
            (TOKEN_EXPIRES, backend.token_expires_at),
        ] {
            let left = end.map(|end| end.duration_since(backend.server_time(now)).as_secs_f64());
            if let Some(left) = left {
                gauge!(name).set(left);
            }
        }
        for state in ForwarderState::ALL {
            let is_it = state == backend.forwarding;
            gauge!(FORWARD_STATE, "state" => state.as_str()).set(f64::from(u8::from(is_it)));
        }
        counter!("agent_forward_sent_bytes_total").absolute(backend.sent_bytes);
        let counts = &facts.queue.counts;
        counter!("agent_queue_appended_records_total").absolute(counts.appended_records);
        counter!("agent_queue_appended_bytes_total").absolute(counts.appended_bytes);
        counter!("agent_queue_delivered_records_total").absolute(counts.delivered_records);
        counter!("agent_queue_delivered_batches_total").absolute(counts.delivered_batches);
        counter!("agent_queue_unknown_records_total").absolute(counts.unknown_records);
        counter!("agent_queue_merged_segments_total").absolute(counts.merged_segments);
        counter!("agent_queue_thinned_records_total").absolute(counts.thinned_records);
        for (reason, records) in [
            ("reject", counts.rejected_records),
            ("evict", counts.evicted_records),
            ("refuse", counts.refused_records),
            ("corrupt", counts.corrupt_records),
        ] {
            counter!("agent_queue_lost_records_total", "reason" => reason).absolute(records);
        }
    }
}

const COUNTERS: &[(&str, &str)] = &[
    (telemetry::SEND_FAILURES, "Requests to the backend that failed or were refused, by reason."),
    (telemetry::BACKEND_CHANGES, "How often another of backend.urls came into use."),
    (telemetry::ANSWERS, "Answers of the backend, by status."),
    ("agent_forward_sent_bytes_total", "Bytes of bodies that the backend has taken, as sent."),
    ("agent_queue_appended_records_total", "Records taken since the start."),
    ("agent_queue_appended_bytes_total", "Their bytes before compression."),
    ("agent_queue_delivered_records_total", "Records delivered since the start."),
    ("agent_queue_delivered_batches_total", "Batches delivered since the start."),
    (
        "agent_queue_unknown_records_total",
        "Records about the agent itself that the backend does not know; they are not kept.",
    ),
    ("agent_queue_merged_segments_total", "Segments that became part of a larger one."),
    ("agent_queue_thinned_records_total", "Records that went so that others of their time stay."),
    (
        "agent_queue_lost_records_total",
        "Records that will not be delivered, by reason, since the start; the refused ones are in \
         the dead letters.",
    ),
];

const CERTIFICATE_EXPIRES: &str = "agent_certificate_expires_seconds";
const TOKEN_EXPIRES: &str = "agent_token_expires_seconds";
const FORWARD_STATE: &str = "agent_forward_state";

const GAUGES: &[(&str, &str)] = &[
    (
        CERTIFICATE_EXPIRES,
        "Until the client certificate ends, by the backend's clock; below 0 after.",
    ),
    (
        TOKEN_EXPIRES,
        "Until the token ends that the backend gave; absent when the agent mints its own.",
    ),
    (FORWARD_STATE, "1 for what the forwarder does, 0 for the others."),
    ("agent_forward_in_flight", "Batches on their way."),
    ("agent_forward_next_try_seconds", "Until the next try, while everything waits; else 0."),
    (
        "agent_forward_drain_eta_seconds",
        "Until the backlog is gone, at the speed of the last minute; 0 while none drains, +Inf \
         while nothing may leave.",
    ),
    ("agent_queue_segments", "Segments that wait, the open one included."),
    ("agent_queue_kept_segments", "Delivered segments that are kept."),
    ("agent_queue_batches", "Batches to deliver."),
    ("agent_queue_records", "Records in segments that wait."),
    ("agent_queue_raw_bytes", "Their bytes before compression."),
    ("agent_queue_disk_bytes", "Bytes on disk of segments that wait."),
    ("agent_queue_usage_bytes", "Bytes on disk that count towards queue.bytes_max."),
    ("agent_queue_bytes_max", "queue.bytes_max."),
    ("agent_queue_fill_ratio", "Usage as a part of queue.bytes_max, 0 to 1."),
    ("agent_queue_ring_bytes", "Bytes of memory that records occupy."),
    ("agent_queue_oldest_age_seconds", "Age of the oldest window that waits; 0 when none does."),
    ("agent_queue_next_seq", "The next sequence number."),
    ("agent_queue_degraded", "1 while the disk takes no records and they stay in memory."),
    ("agent_queue_blocked", "Collectors that wait because the queue is full."),
    (
        "agent_queue_capacity_seconds",
        "How long an outage queue.bytes_max holds at the growth of the last hour; +Inf when the \
         queue does not grow.",
    ),
    ("agent_queue_eta_full_seconds", "When the queue is full at that growth; +Inf as above."),
    ("agent_queue_losses_unacknowledged", "Entries of the ledger that the backend has not heard."),
];

#[expect(clippy::cast_precision_loss, reason = "what a gauge holds")]
fn values(
    facts: &Facts<'_>,
    now: Timestamp,
    growth: Option<f64>,
) -> impl IntoIterator<Item = (&'static str, f64)> {
    let queue = facts.queue;
    let number = |value: u64| value as f64;
    let max = number(queue.bytes_max);
    let used = number(queue.usage_bytes);
    let age = queue.oldest_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
    let lasts = |bytes: f64| growth.map_or(f64::INFINITY, |growth| bytes.max(0.0) / growth);
    let blocked = facts.agent.collectors.iter().filter(|c| c.blocked_since.is_some()).count();
    let backend = &facts.agent.backend;
    let next_try = backend.next_try_at.map_or(0.0, |at| at.duration_since(now).as_secs_f64());
    let drain_eta = match backend.drain.and_then(|drain| drain.seconds_for(queue.batches)) {
        Some(eta) => number(eta),
        None if backend.forwarding == ForwarderState::Flowing || queue.batches == 0 => 0.0,
        None => f64::INFINITY,
    };
    let unheard = facts.losses.iter().filter(|loss| !loss.acknowledged).count();
    [
        ("agent_forward_in_flight", number(backend.in_flight)),
        ("agent_forward_next_try_seconds", next_try.max(0.0)),
        ("agent_forward_drain_eta_seconds", drain_eta),
        ("agent_queue_segments", number(queue.segments)),
        ("agent_queue_kept_segments", number(queue.kept_segments)),
        ("agent_queue_batches", number(queue.batches)),
        ("agent_queue_records", number(queue.records)),
        ("agent_queue_raw_bytes", number(queue.raw_bytes)),
        ("agent_queue_disk_bytes", number(queue.disk_bytes)),
        ("agent_queue_usage_bytes", used),
        ("agent_queue_bytes_max", max),
        ("agent_queue_fill_ratio", if max > 0.0 { used / max } else { 0.0 }),
        ("agent_queue_ring_bytes", number(queue.ring_bytes)),
        ("agent_queue_oldest_age_seconds", age),
        ("agent_queue_next_seq", number(queue.next_seq)),
        ("agent_queue_degraded", f64::from(u8::from(queue.disk_error.is_some()))),
        ("agent_queue_blocked", number(blocked as u64)),
        ("agent_queue_capacity_seconds", lasts(max)),
        ("agent_queue_eta_full_seconds", lasts(max - used)),
        ("agent_queue_losses_unacknowledged", number(unheard as u64)),
    ]
}

impl Growth {
    fn note(&mut self, second: i64, bytes: u64) {
        match self.seen.back() {
            // A clock that was set back: what was seen does not help any more.
            Some((last, _)) if second < *last => self.seen.clear(),
            Some((last, _)) if second - last < GROWTH_STEP_S => return,
            _ => {}
        }
        self.seen.push_back((second, bytes));
        while self.seen.front().is_some_and(|(first, _)| second - first > GROWTH_SPAN_S) {
            self.seen.pop_front();
        }
    }

    /// Bytes per second; `None` when the queue does not grow, or nobody has looked long enough.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn per_second(&self) -> Option<f64> {
        let ((first, before), (last, after)) = (self.seen.front()?, self.seen.back()?);
        let span = last - first;
        (span >= GROWTH_SPAN_MIN_S && after > before).then(|| (after - before) as f64 / span as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `(second, bytes)` and returns the growth in the end.
    fn growth(seen: &[(i64, u64)]) -> Option<f64> {
        let mut growth = Growth::default();
        for (second, bytes) in seen {
            growth.note(*second, *bytes);
        }
        growth.per_second()
    }

    #[test]
    fn growth_is_that_of_the_last_hour() {
        assert_eq!(growth(&[]), None);
        assert_eq!(growth(&[(0, 0), (60, 6_000)]), None, "too short to tell");
        assert_eq!(growth(&[(0, 0), (60, 100), (120, 12_000)]), Some(100.0));
        assert_eq!(growth(&[(0, 9), (120, 9)]), None, "it does not grow");
        assert_eq!(growth(&[(0, 9_000), (120, 9)]), None, "it drains");
        // An outage that began an hour ago hides behind nothing that was before.
        assert_eq!(growth(&[(0, 0), (100, 0), (3_700, 36_000)]), Some(10.0));
        // Asked every second, it remembers no more than it needs.
        let mut often = Growth::default();
        (0..10_000).for_each(|second| often.note(second, 7 * second.unsigned_abs()));
        assert_eq!(often.per_second(), Some(7.0));
        assert!(often.seen.len() <= 121, "{}", often.seen.len());
    }

    #[test]
    fn a_clock_that_was_set_back_is_a_new_beginning() {
        assert_eq!(growth(&[(10_000, 5), (10_300, 900), (100, 950), (160, 1_000)]), None);
        assert_eq!(growth(&[(10_000, 5), (100, 950), (220, 1_070)]), Some(1.0));
    }

    #[test]
    fn every_series_is_explained_once() {
        let mut names: Vec<_> = GAUGES.iter().chain(COUNTERS).map(|(name, _)| *name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
