//! The members of an envelope as they stand in a body.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{METRICS_MAX, NoPush};
use crate::metric::bounds::STRING_BYTES_MAX;
use crate::metric::object::Object;
use crate::metric::{Invalid, admit};

/// The most that is said of what cannot be read, characters.
const MESSAGE_CHARACTERS_MAX: usize = 200;

/// The members of an envelope as they stand in a body, each of them at most once. Their values are
/// not looked into, but for how many metrics there are.
#[derive(Deserialize)]
pub(crate) struct Members<'a> {
    #[serde(borrow, default)]
    pub(crate) collector_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) hostname: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) metrics_count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) metrics: Metrics<'a>,
    #[serde(borrow, default)]
    pub(super) agent: Option<&'a RawValue>,
}

/// What stands where the metrics should.
#[derive(Default)]
pub(super) enum Metrics<'a> {
    /// Nothing.
    #[default]
    Absent,
    /// `null`.
    Null,
    /// A value of another type, with an article.
    Other(&'static str),
    /// More than [`METRICS_MAX`].
    TooMany,
    /// Them.
    List(Vec<&'a RawValue>),
}

impl<'a> Members<'a> {
    /// Reads a body that is an envelope.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, Invalid> {
        let read = serde_json::from_slice::<Object<Self>>(body);
        read.map(|Object(members)| members).map_err(|error| no_envelope(&error))
    }

    /// The metrics, in the number that is announced, if one is.
    pub(crate) fn metrics(self) -> Result<Vec<&'a RawValue>, NoPush> {
        let metrics = self.metrics.list()?;
        check_count(self.metrics_count, metrics.len())?;
        Ok(metrics)
    }
}

impl<'a> Metrics<'a> {
    pub(super) fn list(self) -> Result<Vec<&'a RawValue>, NoPush> {
        match self {
            Self::List(metrics) => Ok(metrics),
            Self::TooMany => Err(NoPush::TooMany),
            Self::Absent | Self::Null => Err(Invalid::new("metrics", "missing").into()),
            Self::Other(found) => {
                let message = format!("expected an array, found {found}");
                Err(Invalid::new("metrics", message).into())
            }
        }
    }
}

/// The JSON type of a value, with an article.
pub(in crate::metric) fn kind_of(value: &RawValue) -> &'static str {
    admit::kind_of(value.get().bytes().next().unwrap_or_default())
}

/// What is wrong, without its place in a text that nobody sees, and not as long as that.
pub(in crate::metric) fn words(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let words = words.rsplit_once(" at line ").map_or(words.as_str(), |(words, _)| words);
    words.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

/// The members of an envelope are not looked into yet: what is wrong is the text, or that it is no
/// object, or that a key stands twice.
fn no_envelope(error: &serde_json::Error) -> Invalid {
    if !error.is_data() {
        let (line, column) = (error.line(), error.column());
        return Invalid::new("", format!("the body is no JSON: line {line}, column {column}"));
    }
    let words = words(error);
    let twice = words.strip_prefix("duplicate field `").and_then(|rest| rest.strip_suffix('`'));
    match twice {
        Some(name) => Invalid::new(name, "the key stands twice"),
        None => Invalid::new("", words),
    }
}

/// A text that must be there.
pub(super) fn needed(name: &str, value: Option<&RawValue>) -> Result<String, Invalid> {
    text(name, value.ok_or_else(|| Invalid::new(name, "missing"))?)
}

/// Refuses what is not a string.
pub(crate) fn check_string(name: &str, value: &RawValue) -> Result<(), Invalid> {
    if kind_of(value) == "a string" { Ok(()) } else { Err(wrong_kind(name, "a string", value)) }
}

fn text(name: &str, value: &RawValue) -> Result<String, Invalid> {
    check_string(name, value)?;
    let text: String =
        serde_json::from_str(value.get()).map_err(|error| Invalid::new(name, words(&error)))?;
    match text.len() {
        0 => Err(Invalid::new(name, "empty")),
        bytes if bytes > STRING_BYTES_MAX => Err(Invalid::new(name, "too long")),
        _ => Ok(text),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Metrics<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadMetrics)
    }
}

struct ReadMetrics;

impl<'de> Visitor<'de> for ReadMetrics {
    type Value = Metrics<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of metrics")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut metrics = Vec::new();
        while let Some(metric) = seq.next_element()? {
            if metrics.len() == METRICS_MAX {
                // What is left must be JSON all the same.
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Metrics::TooMany);
            }
            metrics.push(metric);
        }
        Ok(Metrics::List(metrics))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Metrics::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Metrics::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Metrics::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Metrics::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Metrics::Other("a number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Metrics::Other("a string"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Metrics::Other("an object"))
    }
}

pub(super) fn check_count(count: Option<&RawValue>, metrics: usize) -> Result<(), Invalid> {
    match count {
        None => Ok(()),
        Some(count) if count.get() == metrics.to_string() => Ok(()),
        Some(count) if kind_of(count) == "a number" => {
            let count: String = count.get().chars().take(MESSAGE_CHARACTERS_MAX).collect();
            let message = format!("{count} announced, the array holds {metrics}");
            Err(Invalid::new("metrics_count", message))
        }
        Some(other) => Err(wrong_kind("metrics_count", "a number", other)),
    }
}

fn wrong_kind(name: &str, expected: &str, found: &RawValue) -> Invalid {
    Invalid::new(name, format!("expected {expected}, found {}", kind_of(found)))
}
