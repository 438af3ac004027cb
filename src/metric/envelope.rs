//! What stands around the metrics of one push, and what the backend answers.

mod members;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::agent_limits::{self, Cut};
use super::bounds::parse_time;
use super::{Invalid, compat, sequences::Sequences};
use crate::clock;

pub(crate) use members::{Members, check_string};
use members::{Metrics, check_count, needed};
pub(super) use members::{kind_of, words};

/// The version of the documents, in every envelope.
pub const SCHEMA_VERSION: &str = "1.0.0";

/// The most metrics of one push.
pub const METRICS_MAX: usize = 100_000;
/// The most rejected metrics that an answer names; the others are counted.
pub const REJECTED_NAMED_MAX: usize = 1_000;
/// The most bytes of what is said of them.
pub const REJECTED_BYTES_MAX: usize = 256 << 10;

/// A push as it arrived: the envelope is checked, the metrics are not yet. They are slices of the
/// body: nothing is built of them before they are found sound.
#[derive(Debug, Clone)]
pub struct PushRequest<'a> {
    /// Who sends; the caller compares it with the token.
    pub collector_id: String,
    /// The host the metrics are about.
    pub hostname: String,
    /// When the push was made.
    pub timestamp: Timestamp,
    /// The sender's version of the documents; empty when an original collector does not say it.
    pub version: String,
    /// Each for [`super::each_document`].
    pub metrics: Vec<&'a RawValue>,
    /// Absent from original collectors.
    pub agent: Option<AgentInfo>,
    /// What was left out of `agent`.
    pub cut: Cut,
}

/// Why a push is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPush {
    /// It is none.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It has more than [`METRICS_MAX`] metrics.
    #[error("more than {METRICS_MAX} metrics")]
    TooMany,
}

/// What stands before the metrics; the metrics are joined to it without decoding them.
#[derive(Debug, Clone, Copy)]
pub struct EnvelopeHead<'a> {
    /// The agent's id at the backend.
    pub collector_id: &'a str,
    /// This host.
    pub hostname: &'a str,
    /// When the push is made.
    pub timestamp: Timestamp,
    /// The agent's own state.
    pub agent: Option<&'a AgentInfo>,
}

/// Whose queue is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOf {
    /// The queue that another host has left.
    pub queue_id: Uuid,
}

/// What the agent says about itself with a push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Names the agent's queue; a new one after the queue was begun anew. Nil when the sender does
    /// not know the agent's state: then it is not the queue of its records, and this not a report.
    pub queue_id: Uuid,
    /// Which records the metrics are; absent from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<Sequences>,
    /// The metrics are of another host than the sender's, which it brings with a replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<ReplayOf>,
    /// The version of the configuration in use.
    pub config_version: i64,
    /// Why a newer configuration is not in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// The version that `config_error` is about; absent when it is the host's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_error_version: Option<i64>,
    /// The server's clock less this host's, milliseconds.
    pub clock_offset_ms: i64,
    /// What waits.
    pub backlog: Backlog,
    /// Entries of the loss ledger that no 2xx has acknowledged yet.
    #[serde(default)]
    pub lost: Vec<LostRange>,
}

/// What waits in the queue at the time of a push.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Backlog {
    /// Segments with records not delivered.
    pub segments: u64,
    /// Batches not delivered.
    pub batches: u64,
    /// Records not delivered.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// When the oldest was made; absent when nothing waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Timestamp>,
}

/// Records that were not delivered and never will be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostRange {
    /// The entry's number in the agent's ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The first sequence number.
    pub from: u64,
    /// The last sequence number.
    pub to: u64,
    /// How many of them were records.
    pub records: u64,
    /// One of [`agent_limits::LOST_REASONS`].
    pub reason: String,
    /// When it was found.
    pub at: Timestamp,
    /// The time of the first of them, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// The time of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
}

/// The answer to a push that is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushResponse {
    /// `success`.
    pub status: String,
    /// The sender.
    pub collector_id: String,
    /// Metrics stored durably before this answer was written.
    pub metrics_inserted: u64,
    /// The body's size as it came over the wire.
    pub bytes_received: u64,
    /// How long the backend took.
    pub processing_time_ms: u64,
    /// A number above the agent's own means: pull the configuration.
    pub next_config_version: i64,
    /// When the backend expects the next push.
    pub next_check_in_seconds: u64,
    /// The batch had been stored before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<bool>,
    /// Metrics of this push that were not stored: the first [`REJECTED_NAMED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// How many there are, when not all of them are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_total: Option<u64>,
}

/// One metric that is no valid document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its place in the push's `metrics`.
    pub index: usize,
    /// The place in its JSON, such as `cpu.user`.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// The body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status.
    pub code: u16,
    /// A short slug for programs.
    pub error: String,
    /// A sentence for people: no driver text, no SQL, no paths.
    pub message: String,
    /// More, by the slug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

impl<'a> PushRequest<'a> {
    /// Reads an envelope field by field; the error names the first that is missing or of the wrong
    /// type, or stands twice. `metrics_count` may be absent; when it is there it must be the
    /// array's length.
    ///
    /// An original collector, which sends no `agent`, may leave out `version`, send `metrics` as
    /// null, count otherwise, and write the time with another offset or as PostgreSQL does.
    pub fn parse(body: &'a [u8]) -> Result<Self, NoPush> {
        let said = Members::read(body)?;
        let is_original = said.agent.is_none();
        let collector_id = needed("collector_id", said.collector_id)?;
        let hostname = needed("hostname", said.hostname)?;
        let timestamp = needed("timestamp", said.timestamp)?;
        let timestamp = match parse_time(&timestamp) {
            Err(message) => {
                let instant = is_original.then(|| compat::instant(&timestamp)).flatten();
                instant.ok_or_else(|| Invalid::new("timestamp", message))?
            }
            Ok(timestamp) => timestamp,
        };
        let version = match said.version {
            None if is_original => String::new(),
            said => needed("version", said)?,
        };
        let (count, said_agent) = (said.metrics_count, said.agent);
        let metrics = match said.metrics {
            Metrics::Null if is_original => Vec::new(),
            metrics => metrics.list()?,
        };
        if !is_original {
            check_count(count, metrics.len())?;
        }
        let (agent, cut) = match said_agent {
            None => (None, Cut::default()),
            Some(said) => {
                let (agent, cut) = agent_limits::read(said.get(), metrics.len())?;
                (Some(agent), cut)
            }
        };
        Ok(Self { collector_id, hostname, timestamp, version, metrics, agent, cut })
    }
}

impl AgentInfo {
    /// From a sender that does not know the agent's state, such as a replay by another process.
    pub fn unknown(clock_offset_ms: i64) -> Self {
        Self {
            queue_id: Uuid::nil(),
            sequences: None,
            replay_of: None,
            config_version: 0,
            config_error: None,
            config_error_version: None,
            clock_offset_ms,
            backlog: Backlog::default(),
            lost: Vec::new(),
        }
    }
}

impl EnvelopeHead<'_> {
    /// Appends the whole envelope to `out`. Each of `metrics` is one metric's JSON.
    pub fn encode(&self, metrics: &[impl AsRef<[u8]>], out: &mut Vec<u8>) {
        let head = WireHead {
            collector_id: self.collector_id,
            hostname: self.hostname,
            timestamp: clock::rfc3339(self.timestamp),
            version: SCHEMA_VERSION,
            metrics_count: metrics.len(),
            agent: self.agent,
        };
        let bytes: usize = metrics.iter().map(|metric| metric.as_ref().len() + 1).sum();
        out.reserve(bytes + 512);
        serde_json::to_writer(&mut *out, &head).expect("strings and numbers always encode");
        // The head's closing brace makes room for the array.
        out.pop();
        out.extend_from_slice(b",\"metrics\":[");
        for (index, metric) in metrics.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(metric.as_ref());
        }
        out.extend_from_slice(b"]}");
    }
}

#[derive(Serialize)]
struct WireHead<'a> {
    collector_id: &'a str,
    hostname: &'a str,
    timestamp: String,
    version: &'a str,
    metrics_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a AgentInfo>,
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn body(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "collector_id": "c-1", "hostname": "db1", "timestamp": "2026-01-01T00:00:00Z",
            "version": "1.0.0", "metrics_count": 1,
            "metrics": [{"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z"}],
            "agent": AgentInfo::unknown(0),
        });
        change(value.as_object_mut().expect("an object"));
        value.to_string().into_bytes()
    }

    /// C1, C2, C5, C6: five typed fields, UTC, an empty array is valid, the version is 1.0.0.
    #[test]
    fn encoded_envelope_is_read_back() {
        let check = |metrics: &[&str]| {
            let sequences = Some(Sequences::of(Uuid::nil(), 7..7 + metrics.len() as u64));
            let agent = AgentInfo { config_version: 3, sequences, ..AgentInfo::unknown(-20) };
            let head = EnvelopeHead {
                collector_id: "c \"1\"",
                hostname: "db-\u{fc}",
                timestamp: Timestamp::UNIX_EPOCH,
                agent: Some(&agent),
            };
            let mut out = b"kept".to_vec();
            head.encode(metrics, &mut out);
            let read = PushRequest::parse(out.strip_prefix(b"kept").expect("appended"));
            let read = read.expect("a valid envelope");
            assert_eq!(read.collector_id, head.collector_id);
            assert_eq!(read.hostname, head.hostname);
            assert_eq!(read.timestamp, head.timestamp);
            assert_eq!(read.version, "1.0.0");
            assert_eq!(read.agent.as_ref(), Some(&agent));
            let texts: Vec<&str> = read.metrics.iter().map(|metric| metric.get()).collect();
            assert_eq!(texts, metrics);
        };
        check(&[]);
        check(&["{\"type\":\"sysstat\"}"]);
        check(&["{}", "[1]"]);
    }

    /// C3: each field is needed and has its type.
    #[test]
    fn envelope_without_a_field_is_refused() {
        for field in ["collector_id", "hostname", "timestamp", "version", "metrics"] {
            let refused = |body: Vec<u8>| match PushRequest::parse(&body) {
                Err(NoPush::Invalid(invalid)) => invalid,
                other => panic!("{field}: {other:?}"),
            };
            let missing = Invalid::new(field, "missing");
            assert_eq!(refused(body(|m| drop(m.remove(field)))), missing);
            assert_eq!(refused(body(|m| drop(m.insert(field.into(), Value::Null)))), missing);
            let wrong = refused(body(|m| drop(m.insert(field.into(), true.into()))));
            assert_eq!(wrong.path, field);
            assert!(wrong.message.ends_with("found a boolean"), "{wrong}");
        }
        for text in ["", "{", "[]", "5", "null"] {
            match PushRequest::parse(text.as_bytes()) {
                Err(NoPush::Invalid(refused)) => assert_eq!(refused.path, "", "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn refused_envelope_names_the_field() {
        let check = |change: fn(&mut Map<String, Value>), expected: &str| {
            let shown = PushRequest::parse(&body(change)).map(|_| ()).map_err(|e| e.to_string());
            let expected = if expected.is_empty() { Ok(()) } else { Err(expected.to_owned()) };
            assert_eq!(shown, expected);
        };
        check(|_| {}, "");
        check(|m| drop(m.remove("metrics_count")), "");
        check(
            |m| drop(m.insert("metrics".into(), 5.into())),
            "metrics: expected an array, found a number",
        );
        check(
            |m| drop(m.insert("metrics_count".into(), 2.into())),
            "metrics_count: 2 announced, the array holds 1",
        );
        check(
            |m| drop(m.insert("metrics_count".into(), "1".into())),
            "metrics_count: expected a number, found a string",
        );
        check(|m| drop(m.insert("hostname".into(), "".into())), "hostname: empty");
        check(
            |m| drop(m.insert("agent".into(), 1.into())),
            "agent: invalid type: integer `1`, expected an object",
        );
    }

    /// Readers differ in which of the two they take.
    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let sound = String::from_utf8(body(|_| {})).expect("text");
        for key in ["collector_id", "hostname", "timestamp", "version", "metrics", "agent"] {
            for more in ["null", "\"x\"", "[]"] {
                let twice = format!("{{\"{key}\":{more},{}", &sound[1..]);
                let twice = match key {
                    "agent" => format!("{{\"agent\":{more},{}", &twice[1..]),
                    _ => twice,
                };
                let refused = PushRequest::parse(twice.as_bytes()).map(drop);
                assert_eq!(refused, Err(Invalid::new(key, "the key stands twice").into()));
            }
        }
    }

    /// Without an `agent` object it is that of an original collector, which is taken as it is.
    #[test]
    fn an_originals_envelope_is_taken() {
        let original = |change: fn(&mut Map<String, Value>)| {
            let body = body(|members| {
                members.remove("agent");
                change(members);
            });
            PushRequest::parse(&body).map(|push| (push.timestamp.to_string(), push.metrics.len()))
        };
        let taken = |at: &str, metrics| Ok((at.to_owned(), metrics));
        let at = "2026-01-01T00:00:00Z";
        assert_eq!(original(|m| drop(m.remove("version"))), taken(at, 1));
        assert_eq!(original(|m| drop(m.insert("metrics_count".into(), 7.into()))), taken(at, 1));
        assert_eq!(original(|m| drop(m.insert("metrics".into(), Value::Null))), taken(at, 0));
        assert_eq!(
            original(|m| drop(m.insert("timestamp".into(), "2026-01-01T01:00:00+01:00".into()))),
            taken(at, 1)
        );
        assert_eq!(
            original(|m| drop(m.insert("timestamp".into(), "2026-01-01 00:00:00.5+00".into()))),
            taken("2026-01-01T00:00:00.5Z", 1)
        );
        let missing = |name: &str| Err(Invalid::new(name, "missing").into());
        assert_eq!(original(|m| drop(m.remove("metrics"))), missing("metrics"));
        assert_eq!(original(|m| drop(m.remove("hostname"))), missing("hostname"));
        assert!(original(|m| drop(m.insert("timestamp".into(), "yesterday".into()))).is_err());
    }

    #[test]
    fn so_many_metrics_are_a_push() {
        let of = |count: usize| {
            body(|m| {
                m.remove("metrics_count");
                m.insert("metrics".into(), vec![0; count].into());
            })
        };
        let most = of(METRICS_MAX);
        assert_eq!(PushRequest::parse(&most).map(|push| push.metrics.len()), Ok(METRICS_MAX));
        let more = of(METRICS_MAX + 1);
        assert_eq!(PushRequest::parse(&more).map(drop), Err(NoPush::TooMany));
    }
}
