//! Documents of existing pgAnalytics collectors, brought into the shape of the contract.

use serde_json::{Map, Value};

/// Splits a `pg_stats` metric that nests tables and indexes in `databases[]` and has no top-level
/// `database` into one metric for each database. Every other metric comes back as it is.
///
/// The first metric keeps the list itself, without what was nested, as the contract's `databases`;
/// fields beside the list go to every metric. A database without a name gives a metric without
/// `database`, which [`super::validate`] refuses.
pub fn split_compat(metric: Value) -> Vec<Value> {
    match metric {
        Value::Object(members) if is_nested(&members) => split(members),
        other => vec![other],
    }
}

/// About how many bytes [`split_compat`] makes of `metric`, whose text has `bytes`: what stands
/// beside the databases goes to each of them.
pub fn split_bytes(metric: &Value, bytes: usize) -> usize {
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

fn split(mut shared: Map<String, Value>) -> Vec<Value> {
    let Some(Value::Array(databases)) = shared.remove("databases") else {
        return vec![Value::Object(shared)];
    };
    let list: Vec<Value> = databases.iter().filter_map(summary).collect();
    let mut split: Vec<Value> =
        databases.into_iter().map(|database| one(shared.clone(), database)).collect();
    if let Some(Value::Object(first)) = split.first_mut()
        && !list.is_empty()
    {
        first.insert("databases".into(), Value::Array(list));
    }
    split
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
