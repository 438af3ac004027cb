//! Documents of existing pgAnalytics collectors, brought into the shape of the contract.

use std::iter;

use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::admit::{self, COMMON};
use super::declare::{Field, Kind};
use super::object::Object;
use super::{Invalid, MetricType, parse_value};
use crate::clock;

/// A document that is split makes at most so many times its bytes, and what a small one needs.
const SPLIT_FACTOR: usize = 4;
const SPLIT_FLOOR: usize = 64 << 10;
/// The most memory that a document may take as a value: it can be a hundred times its text.
const MEMORY_MAX: usize = 32 << 20;

/// Splits a `pg_stats` metric that nests tables and indexes in `databases[]` and has no top-level
/// `database` into one metric for each database. Every other metric comes back as it is.
///
/// The first metric keeps the list itself, without what was nested, as the contract's `databases`;
/// fields beside the list go to every metric. A database without a name gives a metric without
/// `database`, which [`admit`](super::admit) refuses.
pub fn split_compat(metric: Value) -> Box<dyn Iterator<Item = Value>> {
    match metric {
        Value::Object(members) if is_nested(&members) => Box::new(split(members)),
        other => Box::new(iter::once(other)),
    }
}

/// A text as a value, when [`split_compat`] has something to split of it.
pub(super) fn nested(text: &str) -> Result<Option<Value>, Invalid> {
    #[derive(Default, serde::Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        database: Option<&'a RawValue>,
        #[serde(borrow, default)]
        databases: Option<&'a RawValue>,
    }
    // One that names a key twice is refused as it is.
    let head = serde_json::from_str::<Object<Head<'_>>>(text).map(|Object(head)| head);
    let head = head.unwrap_or_default();
    if head.database.is_some() || head.databases.is_none() {
        return Ok(None);
    }
    let value = built(text)?;
    Ok(value.as_object().is_some_and(is_nested).then_some(value))
}

/// A text as a value, within the common limits, when that and its split do not take too much.
pub(super) fn built(text: &str) -> Result<Value, Invalid> {
    let bytes = admit::memory_of(text)?;
    if bytes > MEMORY_MAX {
        let message = format!("would take {bytes} bytes of memory, the limit is {MEMORY_MAX}");
        return Err(Invalid::new("", message));
    }
    let value = parse_value(text.as_bytes())
        .map_err(|error| Invalid::new("", format!("no JSON: column {}", error.column())))?;
    check_split(&value, text.len())?;
    Ok(value)
}

/// Brings what an original collector wrote in another form into the contract's: an instant as
/// PostgreSQL writes it or with an offset, `""` and `"never"` for one that is not known, and an
/// empty mount point, for which the device stands. What has no such form is left, and refused.
pub(super) fn adopt(metric: &mut Value) {
    let name = metric.get("type").and_then(Value::as_str);
    let Some(metric_type) = name.and_then(|name| name.parse::<MetricType>().ok()) else { return };
    let Some(members) = metric.as_object_mut() else { return };
    adopt_members(members, metric_type.fields());
    adopt_members(members, &COMMON);
    let filesystems = members.get_mut("filesystems").and_then(Value::as_array_mut);
    for filesystem in filesystems.into_iter().flatten().filter_map(Value::as_object_mut) {
        if filesystem.get("mount").and_then(Value::as_str) == Some("")
            && let Some(device) = filesystem.get("device").cloned()
        {
            filesystem.insert("mount".to_owned(), device);
        }
    }
}

fn adopt_members(members: &mut Map<String, Value>, fields: &[Field]) {
    for field in fields {
        if let Some(value) = members.get_mut(field.name) {
            adopt_value(value, field.kind);
        }
    }
}

fn adopt_value(value: &mut Value, kind: Kind) {
    match (kind, value) {
        (Kind::Time | Kind::Taken, value @ Value::String(_)) => {
            let text = value.as_str().unwrap_or_default();
            if matches!(text, "" | "never") {
                *value = Value::Null;
            } else if let Some(at) = instant(text) {
                *value = clock::rfc3339(at).into();
            }
        }
        (Kind::Object(fields), Value::Object(members)) => adopt_members(members, fields),
        (Kind::Array(kind), Value::Array(elements)) => {
            for element in elements {
                adopt_value(element, *kind);
            }
        }
        (Kind::Map(kind), Value::Object(members)) => {
            for value in members.values_mut() {
                adopt_value(value, *kind);
            }
        }
        _ => {}
    }
}

/// An instant with any offset, as RFC 3339 or PostgreSQL writes it.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Refuses a metric with a text of `bytes` of which [`split_compat`] would make a multiple: what
/// stands beside the databases goes to each of them.
fn check_split(metric: &Value, bytes: usize) -> Result<(), Invalid> {
    let most = bytes.saturating_mul(SPLIT_FACTOR).max(SPLIT_FLOOR);
    if split_bytes(metric, bytes) <= most {
        return Ok(());
    }
    let message = format!("split by its databases it would be more than {most} bytes");
    Err(Invalid::new("databases", message))
}

fn split_bytes(metric: &Value, bytes: usize) -> usize {
    let Some(members) = metric.as_object().filter(|members| is_nested(members)) else {
        return bytes;
    };
    let databases = members.get("databases").and_then(Value::as_array).map_or(0, Vec::len);
    let beside = members.iter().filter(|(key, _)| *key != "databases");
    let shared: usize = beside.map(|(key, value)| key.len() + value.to_string().len() + 4).sum();
    databases.saturating_mul(shared).saturating_add(bytes)
}

fn is_nested(members: &Map<String, Value>) -> bool {
    let nests = |database: &Value| ["tables", "indexes"].iter().any(|key| has(database, key));
    members.get("type").and_then(Value::as_str) == Some("pg_stats")
        && members.get("database").is_none_or(Value::is_null)
        && members.get("databases").and_then(Value::as_array).is_some_and(|l| l.iter().any(nests))
}

fn has(value: &Value, key: &str) -> bool {
    value.as_object().is_some_and(|members| members.contains_key(key))
}

/// One at a time: together they are much more than what they are made of.
fn split(mut shared: Map<String, Value>) -> impl Iterator<Item = Value> {
    let databases = match shared.remove("databases") {
        Some(Value::Array(databases)) => databases,
        _ => Vec::new(),
    };
    let mut list: Vec<Value> = databases.iter().filter_map(summary).collect();
    databases.into_iter().map(move |database| {
        let mut metric = one(shared.clone(), database);
        if let Value::Object(first) = &mut metric
            && !list.is_empty()
        {
            first.insert("databases".into(), Value::Array(std::mem::take(&mut list)));
        }
        metric
    })
}

/// The database's entry in the list of all: what it nested is left out.
fn summary(database: &Value) -> Option<Value> {
    let mut members = database.as_object()?.clone();
    let name = members.remove("database").or_else(|| members.remove("name"))?;
    members.retain(|_, value| !matches!(value, Value::Array(_) | Value::Object(_)));
    members.insert("name".into(), name);
    Some(Value::Object(members))
}

fn one(mut metric: Map<String, Value>, database: Value) -> Value {
    let Value::Object(mut members) = database else {
        return database;
    };
    if let Some(name) = members.remove("database").or_else(|| members.remove("name")) {
        metric.insert("database".into(), name);
    }
    for key in ["type", "timestamp"] {
        members.remove(key);
    }
    metric.extend(members);
    Value::Object(metric)
}
