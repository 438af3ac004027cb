//! The limits of what an agent says of itself with a push (contract section 5).
//!
//! What is over a limit is left out and counted, and the metrics beside it are stored: a refusal
//! would send sound records to the dead letters.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize as Read, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::envelope::{AgentInfo, Backlog, LostRange, ReplayOf, kind_of, words};
use super::object::{Object, object, optional};
use super::{Invalid, sequences::Sequences};

/// The longest `config_error`, bytes.
pub const CONFIG_ERROR_BYTES_MAX: usize = 4 << 10;
/// The most entries of `lost`.
pub const LOST_MAX: usize = 1_000;
/// How a record may be lost.
pub const LOST_REASONS: &[&str] = &["reject", "evict", "refuse", "corrupt"];
/// The largest `clock_offset_ms` that is believed, either way: 100 years.
pub const CLOCK_OFFSET_MS_MAX: i64 = 100 * 31_557_600_000;

/// What was left out of an `agent` object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Bytes of `config_error`: too many, or the character 0, which no database keeps.
    #[serde(skip_serializing_if = "is_zero")]
    pub config_error_bytes: u64,
    /// Entries of `lost`: too many, of an unknown reason, or not readable.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Numbers out of their range, which count as 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub numbers: u64,
    /// Times that no clock shows, which count as not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub times: u64,
}

impl Cut {
    /// Nothing was left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An `agent` object as it is said: numbers and lists are not believed yet.
#[derive(Read)]
struct Members<'a> {
    queue_id: Uuid,
    #[serde(borrow, default)]
    sequences: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "optional")]
    replay_of: Option<ReplayOf>,
    #[serde(borrow)]
    config_version: &'a RawValue,
    #[serde(default)]
    config_error: Option<String>,
    #[serde(borrow, default)]
    config_error_version: Option<&'a RawValue>,
    #[serde(borrow)]
    clock_offset_ms: &'a RawValue,
    #[serde(borrow, deserialize_with = "object")]
    backlog: BacklogMembers<'a>,
    #[serde(default)]
    lost: Losses,
}

#[derive(Read)]
struct BacklogMembers<'a> {
    #[serde(borrow)]
    segments: &'a RawValue,
    #[serde(borrow)]
    batches: &'a RawValue,
    #[serde(borrow)]
    records: &'a RawValue,
    #[serde(borrow)]
    bytes: &'a RawValue,
    #[serde(default)]
    oldest_at: Option<String>,
}

/// The first entries of `lost` that can be read, and how many others there are.
#[derive(Default)]
struct Losses {
    entries: Vec<LostRange>,
    others: u64,
}

/// Reads an `agent` object, with a sequence number for each of `metrics` if it has any, and brings
/// it within the limits.
pub(super) fn read(text: &str, metrics: usize) -> Result<(AgentInfo, Cut), Invalid> {
    let Object(said) = serde_json::from_str::<Object<Members<'_>>>(text)
        .map_err(|error| Invalid::new("agent", words(&error)))?;
    let sequences = said.sequences.map(|text| read_sequences(text.get(), metrics)).transpose()?;
    let mut cut = Cut { lost: said.lost.others, ..Cut::default() };
    let config_error = said.config_error.map(|text| cut_text(text, &mut cut));
    let backlog = said.backlog;
    let agent = AgentInfo {
        queue_id: said.queue_id,
        sequences,
        replay_of: said.replay_of,
        config_version: number("config_version", said.config_version, &mut cut)?,
        config_error,
        config_error_version: match said.config_error_version {
            Some(version) => Some(number("config_error_version", version, &mut cut)?),
            None => None,
        },
        clock_offset_ms: number::<Offset>("clock_offset_ms", said.clock_offset_ms, &mut cut)?.0,
        backlog: Backlog {
            segments: number("backlog.segments", backlog.segments, &mut cut)?,
            batches: number("backlog.batches", backlog.batches, &mut cut)?,
            records: number("backlog.records", backlog.records, &mut cut)?,
            bytes: number("backlog.bytes", backlog.bytes, &mut cut)?,
            oldest_at: backlog.oldest_at.and_then(|text| time(&text, &mut cut)),
        },
        lost: said.lost.entries,
    };
    Ok((agent, cut))
}

fn read_sequences(text: &str, metrics: usize) -> Result<Sequences, Invalid> {
    let invalid = |message| Invalid::new("agent.sequences", message);
    let read = serde_json::from_str::<Object<Sequences>>(text);
    let Object(sequences) = read.map_err(|error| invalid(words(&error)))?;
    sequences.check(metrics).map_err(invalid)?;
    Ok(sequences)
}

fn cut_text(mut text: String, cut: &mut Cut) -> String {
    let said = text.len();
    text.retain(|c| c != '\0');
    let most = text.len().min(CONFIG_ERROR_BYTES_MAX);
    let kept = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(kept);
    cut.config_error_bytes = (said - kept) as u64;
    text
}

/// A number that is out of its range counts as 0.
fn number<T: FromStr + Default>(name: &str, said: &RawValue, cut: &mut Cut) -> Result<T, Invalid> {
    let found = kind_of(said);
    if found != "a number" {
        let message = format!("expected a number, found {found}");
        return Err(Invalid::new(format!("agent.{name}"), message));
    }
    Ok(said.get().parse().unwrap_or_else(|_| {
        cut.numbers += 1;
        T::default()
    }))
}

fn time(text: &str, cut: &mut Cut) -> Option<Timestamp> {
    let time = text.parse().ok();
    cut.times += u64::from(time.is_none());
    time
}

/// A `clock_offset_ms` that a clock may have.
#[derive(Default)]
struct Offset(i64);

impl FromStr for Offset {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let offset = text.parse().map_err(|_| ())?;
        let is_one = (-CLOCK_OFFSET_MS_MAX..=CLOCK_OFFSET_MS_MAX).contains(&offset);
        is_one.then_some(Self(offset)).ok_or(())
    }
}

impl<'de> Deserialize<'de> for Losses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Losses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of losses")
            }

            fn visit_unit<E>(self) -> Result<Losses, E> {
                Ok(Losses::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Losses, A::Error> {
                let (mut losses, mut place) = (Losses::default(), 0);
                while let Some(text) = seq.next_element::<&RawValue>()? {
                    place += 1;
                    match (place <= LOST_MAX).then(|| loss(text)).flatten() {
                        Some(entry) => losses.entries.push(entry),
                        None => losses.others += 1,
                    }
                }
                Ok(losses)
            }
        }

        deserializer.deserialize_any(Entries)
    }
}

fn loss(text: &RawValue) -> Option<LostRange> {
    let Object(entry) = serde_json::from_str::<Object<LostRange>>(text.get()).ok()?;
    LOST_REASONS.contains(&entry.reason.as_str()).then_some(entry)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_over_a_limit_is_cut_and_counted() {
        let check = |key: &str, said: Value, kept: Value, expected: Cut| {
            let mut agent = json!({
                "queue_id": Uuid::nil(), "config_version": 1, "clock_offset_ms": 0,
                "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
            });
            agent[key] = said;
            let (agent, cut) = read(&agent.to_string(), 0).expect("an agent object");
            let agent = serde_json::to_value(&agent).expect("JSON");
            assert_eq!((&agent[key], cut), (&kept, expected));
        };
        let none = Cut::default();
        check("config_error", json!("x".repeat(4096)), json!("x".repeat(4096)), none);
        let cut = Cut { config_error_bytes: 2, ..none };
        check("config_error", json!("\u{e9}".repeat(2049)), json!("\u{e9}".repeat(2048)), cut);
        check("config_error", json!("\0a\0b"), json!("ab"), cut);
        let loss = |reason: &str| {
            let at = "2026-01-01T00:00:00Z";
            json!({"from": 1, "to": 2, "records": 2, "reason": reason, "at": at})
        };
        let many = json!(vec![loss("evict"); 1005]);
        check("lost", many, json!(vec![loss("evict"); 1000]), Cut { lost: 5, ..none });
        let odd = json!([loss("evict"), loss("else"), loss("corrupt"), {"from": -1}, 5, []]);
        check("lost", odd, json!([loss("evict"), loss("corrupt")]), Cut { lost: 4, ..none });
        check("lost", Value::Null, json!([]), none);
        let out = Cut { numbers: 1, ..none };
        let century = CLOCK_OFFSET_MS_MAX;
        check("clock_offset_ms", json!(-century), json!(-century), none);
        check("clock_offset_ms", json!(century + 1), json!(0), out);
        check("clock_offset_ms", json!(-1e15), json!(0), out);
        check("clock_offset_ms", json!(i64::MIN), json!(0), out);
        check("config_version", json!(u64::MAX), json!(0), out);
        check("config_error_version", json!(1e300), json!(0), out);
        let backlog = |more: &Value| {
            let mut backlog = json!({"segments": 5, "batches": 0, "records": 0, "bytes": 0});
            let more = more.as_object().expect("an object").clone();
            backlog.as_object_mut().expect("an object").extend(more);
            backlog
        };
        let odd = backlog(&json!({"records": -1, "bytes": 1e300}));
        check("backlog", odd, backlog(&json!({})), Cut { numbers: 2, ..none });
        let odd = backlog(&json!({"oldest_at": "9999-12-31T23:59:59Z"}));
        check("backlog", odd, backlog(&json!({})), Cut { times: 1, ..none });
    }

    /// A wrong type, or a key that stands twice, refuses the whole object.
    #[test]
    fn what_is_no_agent_object_is_refused() {
        let sound = r#"{"queue_id": "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", "config_version": 3,
            "clock_offset_ms": 0, "lost": [],
            "backlog": {"segments": 2, "batches": 3, "records": 44, "bytes": 5000}}"#;
        read(sound, 0).expect("an agent object");
        let check = |from: &str, to: &str, path: &str, part: &str| {
            let text = sound.replace(from, to);
            assert_ne!(text, sound);
            let refused = read(&text, 0).expect_err(to);
            assert_eq!(refused.path, path, "{refused}");
            assert!(refused.message.contains(part) && refused.message.len() < 250, "{refused}");
        };
        check("\"lost\": []", "\"lost\": [], \"lost\": []", "agent", "duplicate field `lost`");
        check("\"lost\": []", "\"lost\": {}", "agent", "invalid type: map");
        check("\"bytes\"", "\"records\"", "agent", "duplicate field `records`");
        check("\"bytes\"", "\"byte\"", "agent", "missing field `bytes`");
        check(": 44", ": \"44\"", "agent.backlog.records", "expected a number, found a string");
        check("3,", "null,", "agent.config_version", "expected a number, found null");
        check("{\"segments\": 2,", "[2, {", "agent", "");
        let array = r#"["6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", null, null, 0]"#;
        assert!(read(array, 0).expect_err("no object").message.contains("expected an object"));
    }
}
