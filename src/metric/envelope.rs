//! What stands around the metrics of one push, and what the backend answers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::agent_limits::{self, Cut};
use super::{Invalid, sequences::Sequences, shape, value};
use crate::clock;

/// The version of the documents, in every envelope.
pub const SCHEMA_VERSION: &str = "1.0.0";

/// The most that is said of what cannot be read, characters.
const MESSAGE_CHARACTERS_MAX: usize = 200;

/// A push as it arrived: the envelope is checked, the metrics are not yet.
#[derive(Debug, Clone, PartialEq)]
pub struct PushRequest {
    /// Who sends; the caller compares it with the token.
    pub collector_id: String,
    /// The host the metrics are about.
    pub hostname: String,
    /// When the push was made.
    pub timestamp: Timestamp,
    /// The sender's version of the documents.
    pub version: String,
    /// Each for [`super::validate`].
    pub metrics: Vec<Value>,
    /// Absent from collectors that are not this agent.
    pub agent: Option<AgentInfo>,
    /// What was left out of `agent`.
    pub cut: Cut,
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
    /// Metrics of this push that were not stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
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

impl PushRequest {
    /// Reads an envelope field by field; the error names the first that is missing or of the wrong
    /// type. `metrics_count` may be absent; when it is there it must be the array's length.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        let value = value::parse_value(body).map_err(|e| {
            Invalid::new(
                "",
                format!("the body is no JSON: line {}, column {}", e.line(), e.column()),
            )
        })?;
        let Value::Object(mut members) = value else {
            let found = shape::kind_name(&value);
            return Err(Invalid::new("", format!("expected an object, found {found}")));
        };
        let collector_id = take_text(&mut members, "collector_id")?;
        let hostname = take_text(&mut members, "hostname")?;
        let timestamp = take_text(&mut members, "timestamp")?;
        let timestamp = shape::parse_time(&timestamp).map_err(|m| Invalid::new("timestamp", m))?;
        let version = take_text(&mut members, "version")?;
        let metrics = match members.remove("metrics") {
            None | Some(Value::Null) => return Err(Invalid::new("metrics", "missing")),
            Some(Value::Array(metrics)) => metrics,
            Some(other) => return Err(wrong_kind("metrics", "an array", &other)),
        };
        check_count(members.get("metrics_count"), metrics.len())?;
        let (agent, cut) = match members.remove("agent") {
            None | Some(Value::Null) => (None, Cut::default()),
            Some(mut value) => {
                let cut = value.as_object_mut().map(agent_limits::bound).unwrap_or_default();
                (Some(AgentInfo::read(value, metrics.len())?), cut)
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

    /// Reads the object, with a sequence number for each of `metrics` if it has any.
    fn read(mut value: Value, metrics: usize) -> Result<Self, Invalid> {
        // What is wrong may be as long as the body.
        let cut = |error: serde_json::Error| -> String {
            error.to_string().chars().take(MESSAGE_CHARACTERS_MAX).collect()
        };
        let invalid = |message| Invalid::new("agent.sequences", message);
        let sequences = value.as_object_mut().and_then(|members| members.remove("sequences"));
        let sequences = sequences.filter(|value| !value.is_null()).map(|value| {
            let read: Sequences = serde_json::from_value(value).map_err(|e| invalid(cut(e)))?;
            read.check(metrics).map_err(invalid).map(|()| read)
        });
        let sequences = sequences.transpose()?;
        let agent: Self =
            serde_json::from_value(value).map_err(|e| Invalid::new("agent", cut(e)))?;
        Ok(Self { sequences, ..agent })
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

fn take_text(members: &mut Map<String, Value>, name: &str) -> Result<String, Invalid> {
    match members.remove(name) {
        None | Some(Value::Null) => Err(Invalid::new(name, "missing")),
        Some(Value::String(text)) if text.is_empty() => Err(Invalid::new(name, "empty")),
        Some(Value::String(text)) if text.len() > shape::STRING_BYTES_MAX => {
            Err(Invalid::new(name, "too long"))
        }
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_kind(name, "a string", &other)),
    }
}

fn check_count(count: Option<&Value>, metrics: usize) -> Result<(), Invalid> {
    match count {
        None | Some(Value::Null) => Ok(()),
        Some(count) if count.as_u64() == u64::try_from(metrics).ok() => Ok(()),
        Some(count @ Value::Number(_)) => Err(Invalid::new(
            "metrics_count",
            format!("{count} announced, the array holds {metrics}"),
        )),
        Some(other) => Err(wrong_kind("metrics_count", "a number", other)),
    }
}

fn wrong_kind(name: &str, expected: &str, found: &Value) -> Invalid {
    Invalid::new(name, format!("expected {expected}, found {}", shape::kind_name(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "collector_id": "c-1", "hostname": "db1", "timestamp": "2026-01-01T00:00:00Z",
            "version": "1.0.0", "metrics_count": 1,
            "metrics": [{"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z"}],
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
            let texts: Vec<String> = read.metrics.iter().map(Value::to_string).collect();
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
            let refused = |body: Vec<u8>| PushRequest::parse(&body).expect_err(field);
            let missing = Invalid::new(field, "missing");
            assert_eq!(refused(body(|m| drop(m.remove(field)))), missing);
            assert_eq!(refused(body(|m| drop(m.insert(field.into(), Value::Null)))), missing);
            let wrong = refused(body(|m| drop(m.insert(field.into(), true.into()))));
            assert_eq!(wrong.path, field);
            assert!(wrong.message.ends_with("found a boolean"), "{wrong}");
        }
        for text in ["", "{", "[]", "5", "null"] {
            let refused = PushRequest::parse(text.as_bytes()).expect_err(text);
            assert_eq!(refused.path, "");
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
            "agent: invalid type: integer `1`, expected struct AgentInfo",
        );
    }
}
