//! What is sound, said of a tree of values.

use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::super::super::bounds::{DEPTH_MAX, ELEMENTS_MAX, STRING_BYTES_MAX};
use super::super::super::declare::{Field, Kind};
use super::super::super::number::{GROWTH_MAX, Number};
use super::super::{COMMON, MetricType};

/// A value with every member of its objects, those that stand twice, too.
enum Tree {
    Null,
    Bool,
    Number(f64),
    Text(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

/// Whether `text` is sound for a host with the time `now`.
pub(super) fn verdict(text: &str, now: Timestamp) -> Result<(), ()> {
    let Ok(tree) = serde_json::from_str::<Tree>(text) else { return Err(()) };
    let Tree::Object(members) = &tree else { return Err(()) };
    let Some((_, Tree::Text(name))) = members.iter().find(|(key, _)| key == "type") else {
        return Err(());
    };
    let metric_type: MetricType = name.parse().map_err(drop)?;
    let fields: Vec<&Field> = metric_type.fields().iter().chain(&COMMON).collect();
    let is_sound = numbers_are_sound(text) && object(members, &fields, 1, now);
    if is_sound { Ok(()) } else { Err(()) }
}

fn object(members: &[(String, Tree)], fields: &[&Field], depth: usize, now: Timestamp) -> bool {
    let names_once = {
        let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.windows(2).all(|pair| pair[0] != pair[1])
    };
    let others = members.iter().filter(|(name, _)| fields.iter().all(|f| f.name != name));
    let there = |field: &&Field| {
        members.iter().any(|(name, value)| name == field.name && !matches!(value, Tree::Null))
    };
    depth <= DEPTH_MAX
        && names_once
        && others.count() <= ELEMENTS_MAX
        && fields.iter().filter(|field| field.required).all(there)
        && members.iter().all(|(name, value)| {
            let field = fields.iter().find(|field| field.name == name);
            name.len() <= STRING_BYTES_MAX
                && match field {
                    Some(_) if matches!(value, Tree::Null) => true,
                    Some(field) => is_of(value, field.kind, depth, now),
                    None => is_of(value, Kind::Any, depth, now),
                }
        })
}

fn is_of(value: &Tree, kind: Kind, depth: usize, now: Timestamp) -> bool {
    let time = |text: &str| text.parse::<Timestamp>().ok().filter(|_| text.ends_with('Z'));
    match (kind, value) {
        (Kind::Any, Tree::Object(members)) => object(members, &[], depth + 1, now),
        (Kind::Object(fields), Tree::Object(members)) => {
            object(members, &fields.iter().collect::<Vec<_>>(), depth + 1, now)
        }
        (Kind::Map(kind), Tree::Object(members)) => {
            members.iter().all(|(_, value)| is_of(value, *kind, depth + 1, now))
                && object(members, &[], depth + 1, now)
        }
        (Kind::Any, Tree::Array(elements)) => array(elements, Kind::Any, depth + 1, now),
        (Kind::Array(kind), Tree::Array(elements)) => array(elements, *kind, depth + 1, now),
        (Kind::Any | Kind::Text, Tree::Text(text)) => text.len() <= STRING_BYTES_MAX,
        (Kind::Name, Tree::Text(text)) => (1..=STRING_BYTES_MAX).contains(&text.len()),
        (Kind::OneOf(words), Tree::Text(text)) => words.contains(&text.as_str()),
        (Kind::Time, Tree::Text(text)) => time(text).is_some(),
        (Kind::Taken, Tree::Text(text)) => time(text).is_some_and(|at| {
            at.as_second() >= 946_684_800 && at.duration_since(now).as_secs_f64() <= 86_400.0
        }),
        (Kind::Any, Tree::Null | Tree::Bool | Tree::Number(_))
        | (Kind::Bool, Tree::Bool)
        | (Kind::Number, Tree::Number(_)) => true,
        (Kind::Amount, Tree::Number(number)) => *number >= 0.0,
        (Kind::Count, Tree::Number(number)) => *number >= 0.0 && number.fract() == 0.0,
        (Kind::Percent, Tree::Number(number)) => (-0.1..=100.1).contains(number),
        _ => false,
    }
}

fn array(elements: &[Tree], kind: Kind, depth: usize, now: Timestamp) -> bool {
    depth <= DEPTH_MAX
        && elements.len() <= ELEMENTS_MAX
        && elements.iter().all(|element| is_of(element, kind, depth, now))
}

/// Whether a store can hold the numbers of a JSON text, and what they are written out.
fn numbers_are_sound(text: &str) -> bool {
    let (mut at, mut in_string, mut growth) = (0, false, 0_u64);
    while let Some(byte) = text.as_bytes().get(at) {
        match (byte, in_string) {
            (b'\\', true) => at += 1,
            (b'"', _) => in_string = !in_string,
            (b'-' | b'0'..=b'9', false) => {
                let Some(number) = Number::at(text, at) else { return false };
                let Some(more) = number.grows_by() else { return false };
                growth += more;
                at += number.text.len() - 1;
            }
            _ => {}
        }
        at += 1;
    }
    growth <= GROWTH_MAX
}

struct Build;

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

#[expect(clippy::cast_precision_loss, reason = "as JSON numbers are compared")]
impl<'de> Visitor<'de> for Build {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Tree, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = elements.next_element()? {
            values.push(value);
        }
        Ok(Tree::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
        let mut values = Vec::new();
        while let Some(member) = members.next_entry()? {
            values.push(member);
        }
        Ok(Tree::Object(values))
    }
}
