//! JSON of somebody else's, read as it stands. No tree of values is made of it: for a body that is
//! made for that it would be hundreds of times as large.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Hands each member of an object to `take`. `false`: the text is not a JSON object; what was
/// taken of it is to be forgotten.
pub fn each_member<'de>(text: &'de [u8], take: impl FnMut(&str, &'de RawValue)) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let mut reader = serde_json::Deserializer::from_str(text);
    reader.deserialize_map(Members(take)).is_ok() && reader.end().is_ok()
}

/// Hands each entry of a list to `take` until it returns `false`. `false`: the text is not a
/// JSON list, or `take` has ended it.
pub fn each_entry<'de>(list: &'de RawValue, take: impl FnMut(&'de RawValue) -> bool) -> bool {
    serde_json::Deserializer::from_str(list.get()).deserialize_seq(Entries(take)).is_ok()
}

/// A JSON string; `None` of anything else.
pub fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            (self.0)(&name, map.next_value()?);
        }
        Ok(())
    }
}

struct Entries<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> bool> Visitor<'de> for Entries<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            if !(self.0)(entry) {
                return Err(A::Error::custom("enough"));
            }
        }
        Ok(())
    }
}
