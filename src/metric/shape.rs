//! The shape of a document as data, and the one walk that holds a JSON value against it.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Invalid;
use super::declare::{Field, Kind, Role};

/// The longest string of a document, in bytes.
pub const STRING_BYTES_MAX: usize = 64 * 1024;
/// The most elements of one array.
pub const ARRAY_ELEMENTS_MAX: usize = 100_000;
/// The deepest nesting of objects and arrays, the metric itself being the first level.
pub const DEPTH_MAX: usize = 16;
/// What rounding may add to a percentage, or take from it.
const PERCENT_SLACK: f64 = 0.1;
/// How far ahead of our clock another host's clock may be.
const AHEAD_HOURS_MAX: i64 = 24;

/// 2000-01-01T00:00:00Z.
const EARLIEST: Timestamp = Timestamp::constant(946_684_800, 0);

/// The field that no declaration has: the metric's type.
pub(super) const COMMON: [Field; 1] = [Field::bare::<String>("type", Role::Key)];

/// Checks a metric's members: the common fields, then those of its type, then the limits of
/// everything else in it.
pub(super) fn check_metric(
    members: &Map<String, Value>,
    fields: &'static [Field],
    now: Timestamp,
) -> Result<(), Invalid> {
    let walk = Walk { bounds: TimeBounds::new(now) };
    walk.object(members, &Fields { own: fields, common: &COMMON }, &At::root())
}

/// Checks that `text` is an instant as the contract writes it, without bounds.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if !text.ends_with('Z') {
        return Err(format!("{} does not end in `Z`: timestamps are UTC", shown(text)));
    }
    text.parse().map_err(|_| format!("{} is no RFC 3339 timestamp", shown(text)))
}

/// The JSON type of `value`, with an article.
pub(super) fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Where the walk is; becomes text only when something is wrong.
struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
    depth: usize,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

struct Fields {
    own: &'static [Field],
    common: &'static [Field],
}

struct Walk {
    bounds: TimeBounds,
}

/// The instants that a document may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeBounds {
    earliest: Timestamp,
    latest: Timestamp,
}

impl TimeBounds {
    /// As a host with the time `now` sees them.
    pub(super) fn new(now: Timestamp) -> Self {
        let ahead = jiff::SignedDuration::from_hours(AHEAD_HOURS_MAX);
        let latest = now.checked_add(ahead).unwrap_or(Timestamp::MAX);
        Self { earliest: EARLIEST, latest }
    }

    /// Whether `time` lies within.
    pub(super) fn contain(&self, time: Timestamp) -> bool {
        (self.earliest..=self.latest).contains(&time)
    }
}

impl<'a> At<'a> {
    fn root() -> At<'static> {
        At { parent: None, step: Step::Root, depth: 1 }
    }

    fn key(&'a self, key: &'a str) -> At<'a> {
        At { parent: Some(self), step: Step::Key(key), depth: self.depth + 1 }
    }

    fn index(&'a self, index: usize) -> At<'a> {
        At { parent: Some(self), step: Step::Index(index), depth: self.depth + 1 }
    }

    fn invalid(&self, message: impl Into<String>) -> Invalid {
        Invalid::new(self.path(), message)
    }

    fn path(&self) -> String {
        let parent = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => parent,
            Step::Index(index) => format!("{parent}[{index}]"),
            Step::Key(key) => {
                let key: String = key.chars().take(80).collect();
                if parent.is_empty() { key } else { format!("{parent}.{key}") }
            }
        }
    }
}

impl Fields {
    fn find(&self, name: &str) -> Option<&'static Field> {
        self.own.iter().chain(self.common).find(|field| field.name == name)
    }
}

impl Walk {
    fn object(
        &self,
        members: &Map<String, Value>,
        fields: &Fields,
        at: &At<'_>,
    ) -> Result<(), Invalid> {
        check_depth(at)?;
        let needed = fields.own.iter().chain(fields.common).filter(|field| field.required);
        for field in needed {
            if members.get(field.name).is_none_or(Value::is_null) {
                return Err(at.key(field.name).invalid("missing"));
            }
        }
        for (name, value) in members {
            let at = at.key(name);
            if name.len() > STRING_BYTES_MAX {
                return Err(at.invalid(too_long(name.len())));
            }
            match fields.find(name) {
                Some(_) if value.is_null() => {}
                Some(field) => self.value(value, field.kind, &at)?,
                None => self.value(value, Kind::Any, &at)?,
            }
        }
        Ok(())
    }

    fn map(&self, members: &Map<String, Value>, kind: Kind, at: &At<'_>) -> Result<(), Invalid> {
        check_depth(at)?;
        for (name, value) in members {
            let at = at.key(name);
            if name.len() > STRING_BYTES_MAX {
                return Err(at.invalid(too_long(name.len())));
            }
            self.value(value, kind, &at)?;
        }
        Ok(())
    }

    fn array(&self, elements: &[Value], kind: Kind, at: &At<'_>) -> Result<(), Invalid> {
        check_depth(at)?;
        if elements.len() > ARRAY_ELEMENTS_MAX {
            return Err(at.invalid(format!(
                "{} elements, the limit is {ARRAY_ELEMENTS_MAX}",
                elements.len()
            )));
        }
        for (index, element) in elements.iter().enumerate() {
            self.value(element, kind, &at.index(index))?;
        }
        Ok(())
    }

    fn value(&self, value: &Value, kind: Kind, at: &At<'_>) -> Result<(), Invalid> {
        let expected = match (kind, value) {
            (Kind::Any, Value::Object(members)) => {
                return self.object(members, &Fields { own: &[], common: &[] }, at);
            }
            (Kind::Any, Value::Array(elements)) => return self.array(elements, Kind::Any, at),
            (Kind::Any | Kind::Text, Value::String(text)) => {
                return check_text(text, at);
            }
            (Kind::Any, _) | (Kind::Bool, Value::Bool(_)) => return Ok(()),
            (Kind::Name, Value::String(text)) => {
                return if text.is_empty() {
                    Err(at.invalid("empty"))
                } else {
                    check_text(text, at)
                };
            }
            (Kind::OneOf(words), Value::String(text)) => return check_word(text, words, at),
            (Kind::Time, Value::String(text)) => {
                return parse_time(text).map(drop).map_err(|message| at.invalid(message));
            }
            (Kind::Taken, Value::String(text)) => return self.taken(text, at),
            (Kind::Object(own), Value::Object(members)) => {
                return self.object(members, &Fields { own, common: &[] }, at);
            }
            (Kind::Array(element), Value::Array(elements)) => {
                return self.array(elements, *element, at);
            }
            (Kind::Map(value), Value::Object(members)) => return self.map(members, *value, at),
            (Kind::Count | Kind::Amount | Kind::Number | Kind::Percent, Value::Number(number)) => {
                return check_number(number, kind, at);
            }
            (Kind::Text | Kind::Name | Kind::OneOf(_), _) => "a string",
            (Kind::Count | Kind::Amount | Kind::Number | Kind::Percent, _) => "a number",
            (Kind::Time | Kind::Taken, _) => "a timestamp",
            (Kind::Bool, _) => "a boolean",
            (Kind::Object(_) | Kind::Map(_), _) => "an object",
            (Kind::Array(_), _) => "an array",
        };
        Err(at.invalid(format!("expected {expected}, found {}", kind_name(value))))
    }

    fn taken(&self, text: &str, at: &At<'_>) -> Result<(), Invalid> {
        let time = parse_time(text).map_err(|message| at.invalid(message))?;
        if time < self.bounds.earliest {
            return Err(at.invalid(format!("{} is before 2000-01-01", shown(text))));
        }
        if time > self.bounds.latest {
            return Err(at.invalid(format!(
                "{} is more than {AHEAD_HOURS_MAX} h ahead of this host's clock",
                shown(text)
            )));
        }
        Ok(())
    }
}

fn check_depth(at: &At<'_>) -> Result<(), Invalid> {
    if at.depth > DEPTH_MAX {
        return Err(at.invalid(format!("nested more than {DEPTH_MAX} levels deep")));
    }
    Ok(())
}

fn check_text(text: &str, at: &At<'_>) -> Result<(), Invalid> {
    if text.len() > STRING_BYTES_MAX { Err(at.invalid(too_long(text.len()))) } else { Ok(()) }
}

fn check_word(text: &str, words: &[&str], at: &At<'_>) -> Result<(), Invalid> {
    if words.contains(&text) {
        return Ok(());
    }
    Err(at.invalid(format!("{} is none of {}", shown(text), words.join(", "))))
}

fn check_number(number: &serde_json::Number, kind: Kind, at: &At<'_>) -> Result<(), Invalid> {
    let Some(value) = number.as_f64().filter(|value| value.is_finite()) else {
        return Err(at.invalid("not a finite number"));
    };
    match kind {
        Kind::Percent if !(-PERCENT_SLACK..=100.0 + PERCENT_SLACK).contains(&value) => {
            Err(at.invalid(format!("{number} is no percentage of 0 to 100")))
        }
        Kind::Count | Kind::Amount if value < 0.0 => {
            Err(at.invalid(format!("{number} is negative")))
        }
        Kind::Count if value.fract() != 0.0 => {
            Err(at.invalid(format!("{number} is no whole number")))
        }
        _ => Ok(()),
    }
}

fn too_long(bytes: usize) -> String {
    format!("{bytes} bytes long, the limit is {STRING_BYTES_MAX}")
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}
