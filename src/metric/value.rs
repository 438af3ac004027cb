//! JSON text as values, every key as it stands.
//!
//! `serde_json` reads an object whose first key is `$serde_json::private::RawValue` as the value of
//! the text behind that key. A document of somebody else's program may have any key: it must be
//! judged by what it is, and not by another that it quotes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads one JSON text. Of a key that stands twice in an object, the last one counts.
pub fn parse_value(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Plain>(text).map(|plain| plain.0)
}

struct Plain(Value);

struct Build;

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build).map(Self)
    }
}

impl<'de> Visitor<'de> for Build {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Plain(value)) = elements.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((key, Plain(value))) = members.next_entry::<String, _>()? {
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_the_values_that_they_are() {
        let check = |text: &str| {
            let read: Value = serde_json::from_str(text).expect(text);
            assert_eq!(parse_value(text.as_bytes()).expect(text), read, "{text}");
        };
        check(
            r#" {"a": [1, -1, 1.5, -0, 1e300, 18446744073709551615, "\u00e9\n", null, true, {}]} "#,
        );
        check(r#"{"a": 1, "a": 2}"#);
        check("5");
        for text in ["", "{", "[1,]", "{} x", "1e999", "\"\\ud800\""] {
            assert!(parse_value(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(parse_value(deep.as_bytes()).is_err(), "the depth is bounded");
    }

    /// Wherever the key stands, and whatever is behind it.
    #[test]
    fn no_key_has_a_meaning_of_its_own() {
        let key = "$serde_json::private::RawValue";
        for inner in [r#""{\"type\":\"sysstat\"}""#, r#""no json""#, "5", "null", "{}"] {
            for text in [
                format!("{{\"{key}\": {inner}}}"),
                format!("[{{\"{key}\": {inner}, \"b\": 1}}]"),
                format!("{{\"a\": {{\"{key}\": {inner}}}}}"),
            ] {
                let value = parse_value(text.as_bytes()).expect(&text);
                let shown = value.to_string();
                assert!(shown.contains(key), "{text} became {shown}");
                let again = parse_value(shown.as_bytes()).expect(&shown);
                assert_eq!(again, value);
            }
        }
    }
}
