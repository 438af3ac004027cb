//! Keys that stand twice in an object: readers differ in which of the two they take.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::Invalid;

/// Refuses a text in which an object names a key twice; `value` is what the text was read as.
pub(super) fn check_keys(text: &str, value: &Value) -> Result<(), Invalid> {
    if names_a_key_twice(text, value) {
        return Err(Invalid::new("", "a key stands twice in one object"));
    }
    Ok(())
}

pub(super) fn names_a_key_twice(text: &str, value: &Value) -> bool {
    // A key that stands twice in the text stands once in the value.
    serde_json::from_str::<Members>(text).is_ok_and(|members| members.0 != count(value))
}

/// How many members all objects of a text have.
struct Members(u64);

struct Count;

fn count(value: &Value) -> u64 {
    match value {
        Value::Array(elements) => elements.iter().map(count).sum(),
        Value::Object(members) => members.values().map(|value| 1 + count(value)).sum(),
        _ => 0,
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Count).map(Self)
    }
}

impl<'de> Visitor<'de> for Count {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_u64<E>(self, _: u64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_str<E>(self, _: &str) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<u64, A::Error> {
        let mut total = 0;
        while let Some(Members(members)) = elements.next_element()? {
            total += members;
        }
        Ok(total)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<u64, A::Error> {
        let mut total = 0;
        while members.next_key::<serde::de::IgnoredAny>()?.is_some() {
            let Members(inner) = members.next_value()?;
            total += 1 + inner;
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_found() {
        let check = |text: &str, twice: bool| {
            let value = serde_json::from_str(text).expect("JSON");
            assert_eq!(names_a_key_twice(text, &value), twice, "{text}");
        };
        check("5", false);
        check(r#"{"a": [1, -1, 1.5, "x", null, true, {"a": {}}], "b": {"a": 1}}"#, false);
        check(r#"{"a": 1, "b": 2, "a": 1}"#, true);
        check(r#"{"a": 1, "\u0061": 2}"#, true);
        check(r#"[{"a": {"b": [{"c": 1, "c": {"d": 2}}]}}]"#, true);
    }
}
