//! JSON objects that are objects: where a struct is expected, serde takes an array, too, and reads
//! its elements in the order of the fields.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A struct that is read from an object only.
pub struct Object<T>(pub T);

/// For `deserialize_with` of a field that must be an object.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// [`object`] for a field that may be absent.
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(value.map(|Object(value)| value))
}

/// For `deserialize_with` of a list of at most `N` elements: what is refused for its length is not
/// read to its end first.
pub(super) fn at_most<'de, const N: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Elements<const N: usize, T>(PhantomData<T>);

    impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for Elements<N, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {N} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = seq.next_element()? {
                if elements.len() == N {
                    return Err(serde::de::Error::invalid_length(N + 1, &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(Elements::<N, T>(PhantomData))
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Pair {
        a: u8,
        #[serde(default, deserialize_with = "optional")]
        inner: Option<Inner>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Inner {
        b: u8,
    }

    #[test]
    fn an_array_is_no_object() {
        let read = |text: &str| {
            let read = serde_json::from_str::<Object<Pair>>(text);
            read.map(|Object(pair)| (pair.a, pair.inner.map(|inner| inner.b))).ok()
        };
        assert_eq!(read(r#"{"a": 1}"#), Some((1, None)));
        assert_eq!(read(r#"{"a": 1, "inner": null}"#), Some((1, None)));
        assert_eq!(read(r#"{"a": 1, "inner": {"b": 2}}"#), Some((1, Some(2))));
        for text in ["[1, null]", r#"{"a": 1, "inner": [2]}"#, r#"{"a": 1, "a": 1}"#, "5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_has_its_limit() {
        #[derive(serde::Deserialize)]
        struct Few(#[serde(deserialize_with = "at_most::<2, _, _>")] Vec<u8>);
        let read = |text: &str| serde_json::from_str::<Few>(text).map(|few| few.0).ok();
        assert_eq!(read("[1, 2]"), Some(vec![1, 2]));
        assert_eq!(read("[1, 2, 3]"), None);
    }
}
