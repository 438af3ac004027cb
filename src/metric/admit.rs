//! How a document is admitted: one pass over its text, the same for collectors, intake and backend.
//!
//! Nothing is built of the text but a list of the keys of the objects that are open, and the words
//! on what is refused. What the declarations do not know is passed over within the common limits.

use std::borrow::Cow;
use std::collections::HashSet;

use jiff::Timestamp;

use super::bounds::{
    DEPTH_MAX, ELEMENTS_MAX, STRING_BYTES_MAX, TimeBounds, parse_time, shown, too_long,
};
use super::declare::{self, Field, Kind, Role};
use super::members::{each_member, text as text_of};
use super::number::{GROWTH_MAX, Number, PLACES_MAX};
use super::{Invalid, MetricType, scan};

/// Keys of one object that are compared one by one; of more, a set is made.
const KEYS_COMPARED_MAX: usize = 32;
/// Characters of a key that a path shows.
const KEY_CHARACTERS_MAX: usize = 80;
/// About what an object takes as a value, with its first member, bytes.
const OBJECT_BYTES: usize = 640;
/// About what another member or element takes.
const VALUE_BYTES: usize = 100;

/// The field that no declaration has: the metric's type.
pub(super) const COMMON: [Field; 1] = [Field::bare::<String>("type", Role::Key)];

/// A sound metric, as far as the queue and the store want to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound<'a> {
    /// Its type.
    pub metric_type: MetricType,
    /// When it was taken.
    pub at: Timestamp,
    /// Its `database`, when that is a string.
    pub database: Option<Cow<'a, str>>,
}

/// Holds one metric's text against section 5 of the contract. `text` must be one JSON value, as a
/// [`RawValue`](serde_json::value::RawValue) is; `now` bounds the time at which it was taken. Paths
/// are relative to the metric.
///
/// # Examples
///
/// ```
/// use pganalytics::metric::{MetricType, admit};
///
/// let now = "2026-01-02T00:00:00Z".parse()?;
/// let good = r#"{"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z"}"#;
/// assert_eq!(admit(good, now).map(|sound| sound.metric_type), Ok(MetricType::Sysstat));
///
/// let bad = r#"{"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z", "cpu": {"user": 101}}"#;
/// assert_eq!(admit(bad, now).unwrap_err().path, "cpu.user");
/// # Ok::<(), jiff::Error>(())
/// ```
pub fn admit(text: &str, now: Timestamp) -> Result<Sound<'_>, Invalid> {
    // The type may stand anywhere in the object. The first guess is nearly always right, and it is
    // checked on the way.
    if let Some(guess) = guess_type(text) {
        let mut walk = Walk::new(text, now, guess.into());
        let found = walk.metric();
        if walk.is_type_seen {
            return found.map_err(|Refused| walk.refusal());
        }
    }
    let mut walk = Walk::new(text, now, type_of(text)?.into());
    walk.metric().map_err(|Refused| walk.refusal())
}

/// Holds a text of any form against the common limits, and says about how many bytes of memory it
/// takes as a value.
pub(super) fn memory_of(text: &str) -> Result<usize, Invalid> {
    let mut walk = Walk::new(text, Timestamp::MAX, "".into());
    walk.value(Kind::Any, 0).map_err(|Refused| walk.refusal())?;
    let values = walk.values.saturating_mul(VALUE_BYTES);
    Ok(walk.objects.saturating_mul(OBJECT_BYTES).saturating_add(values))
}

fn guess_type(text: &str) -> Option<&str> {
    const KEY: &str = "\"type\"";
    let at = memchr::memmem::find(text.as_bytes(), KEY.as_bytes())? + KEY.len();
    let value = text.get(at..)?.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(name, _)| name)
}

/// What the metric itself says.
fn type_of(text: &str) -> Result<String, Invalid> {
    let mut said = None;
    let is_object = each_member(text.as_bytes(), |name, value| {
        if name == "type" {
            said.get_or_insert(value);
        }
    });
    if !is_object {
        let message = match text.trim_start().bytes().next() {
            None | Some(b'{') => "no JSON".to_owned(),
            Some(other) => format!("a metric is an object, not {}", kind_of(other)),
        };
        return Err(Invalid::new("", message));
    }
    let said = said.ok_or_else(|| Invalid::new("type", "missing"))?;
    match said.get().bytes().next().unwrap_or_default() {
        b'"' => text_of(said).ok_or_else(|| Invalid::new("type", "no JSON")),
        b'n' => Err(Invalid::new("type", "missing")),
        other => Err(Invalid::new("type", format!("expected a string, found {}", kind_of(other)))),
    }
}

/// The JSON type of a value that begins with this byte, with an article.
pub(super) fn kind_of(first: u8) -> &'static str {
    match first {
        b'"' => "a string",
        b'{' => "an object",
        b'[' => "an array",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}

struct Walk<'a> {
    text: &'a str,
    at: usize,
    bounds: TimeBounds,
    /// The metric's type, as it is believed to be.
    believed: Cow<'a, str>,
    /// The metric says that it is of that type.
    is_type_seen: bool,
    /// When the metric was taken.
    taken: Option<Timestamp>,
    database: Option<Cow<'a, str>>,
    /// The keys so far of each object that is open, but those of fields, outermost first.
    keys: Vec<Cow<'a, str>>,
    /// By how much its numbers grow when they are written out.
    growth: u64,
    /// Objects so far.
    objects: usize,
    /// Members and elements so far, but the first of each.
    values: usize,
    /// What is wrong, from where the walk ended outwards.
    refusal: Option<Invalid>,
}

/// The walk has ended early; the walk knows why.
struct Refused;

type Found<T = ()> = Result<T, Refused>;

/// A string as it stands in the text, with its quotes.
#[derive(Clone, Copy)]
struct Raw<'a> {
    quoted: &'a str,
    is_plain: bool,
}

impl<'a> Raw<'a> {
    /// Between the quotes.
    fn text(self) -> &'a str {
        self.quoted.get(1..self.quoted.len() - 1).unwrap_or_default()
    }
}

impl<'a> Walk<'a> {
    fn new(text: &'a str, now: Timestamp, believed: Cow<'a, str>) -> Self {
        Self {
            text,
            at: 0,
            bounds: TimeBounds::new(now),
            believed,
            is_type_seen: false,
            taken: None,
            database: None,
            keys: Vec::new(),
            growth: 0,
            objects: 0,
            values: 0,
            refusal: None,
        }
    }

    fn metric(&mut self) -> Found<Sound<'a>> {
        let metric_type: MetricType = match self.believed.parse() {
            Ok(metric_type) => metric_type,
            Err(message) => {
                return self.refuse(message).map_err(|refused| self.under(refused, "type"));
            }
        };
        self.peek()?;
        self.members(metric_type.fields(), &COMMON, Kind::Any, 1)?;
        match self.taken {
            Some(at) => Ok(Sound { metric_type, at, database: self.database.take() }),
            None => self.refuse("missing").map_err(|refused| self.under(refused, "timestamp")),
        }
    }

    fn refusal(&mut self) -> Invalid {
        self.refusal.take().unwrap_or_else(|| Invalid::new("", "no JSON"))
    }

    #[cold]
    fn refuse<T>(&mut self, message: impl Into<String>) -> Found<T> {
        self.refusal = Some(Invalid::new("", message));
        Err(Refused)
    }

    /// The refusal, seen from the object that has what is refused under this key.
    #[cold]
    fn under(&mut self, refused: Refused, key: &str) -> Refused {
        let key: String = key.chars().take(KEY_CHARACTERS_MAX).collect();
        self.refusal = self.refusal.take().map(|refusal| refusal.under(&key));
        refused
    }

    fn byte(&self, at: usize) -> Found<u8> {
        self.text.as_bytes().get(at).copied().ok_or(Refused)
    }

    /// The next byte that is not a space.
    fn peek(&mut self) -> Found<u8> {
        loop {
            match self.byte(self.at)? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Ok(byte),
            }
        }
    }

    fn eat(&mut self, expected: u8) -> Found {
        if self.peek()? != expected {
            return Err(Refused);
        }
        self.at += 1;
        Ok(())
    }

    /// Eats the beginning of an object or array; whether it ends at once.
    fn open(&mut self, begin: u8, end: u8, depth: usize) -> Found<bool> {
        if depth > DEPTH_MAX {
            return self.refuse(format!("nested more than {DEPTH_MAX} levels deep"));
        }
        self.eat(begin)?;
        let is_empty = self.peek()? == end;
        self.at += usize::from(is_empty);
        Ok(is_empty)
    }

    /// Whether the next byte is `end`, which is eaten, or a comma, which is eaten too.
    fn ends(&mut self, end: u8) -> Found<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => {
                self.values += 1;
                Ok(false)
            }
            byte if byte == end => Ok(true),
            _ => Err(Refused),
        }
    }

    /// An object with these fields, and values of the kind `other` under other keys.
    fn members(&mut self, own: &[Field], common: &[Field], other: Kind, depth: usize) -> Found {
        self.objects += 1;
        let mut ended = self.open(b'{', b'}', depth)?;
        let mut others = Others { outer: self.keys.len(), many: None };
        let mut present = 0_u128;
        while !ended {
            let key = self.key()?;
            let found = match find(own, common, &key) {
                Some((index, field)) => {
                    let bit = 1_u128 << index;
                    if present & bit != 0 {
                        return self.refuse_twice();
                    }
                    present |= bit;
                    self.field(field, depth)
                }
                None if others.is_new(&mut self.keys, key.clone()) => {
                    self.other(&key, other, depth)
                }
                None => return self.refuse_twice(),
            };
            found.map_err(|refused| self.under(refused, &key))?;
            if others.are_too_many() {
                return self.refuse(format!("more than {ELEMENTS_MAX} members"));
            }
            ended = self.ends(b'}')?;
        }
        self.keys.truncate(others.outer);
        self.check_required(own, common, present)
    }

    fn check_required(&mut self, own: &[Field], common: &[Field], present: u128) -> Found {
        let required = declare::up_to_required(own).iter().enumerate();
        let mut required = required.chain((own.len()..).zip(common));
        let is_missing = |index: usize| present & (1_u128 << index) == 0;
        match required.find(|(index, field)| field.required && is_missing(*index)) {
            None => Ok(()),
            Some((_, field)) => {
                self.refuse("missing").map_err(|refused| self.under(refused, field.name))
            }
        }
    }

    #[cold]
    fn refuse_twice(&mut self) -> Found {
        self.refuse("a key stands twice in one object")
    }

    /// A key and its colon.
    fn key(&mut self) -> Found<Cow<'a, str>> {
        self.peek()?;
        let key = self.string()?;
        let key = self.decoded(key)?;
        if key.len() > STRING_BYTES_MAX {
            let message = too_long(key.len());
            return self.refuse(message).map_err(|refused| self.under(refused, &key));
        }
        self.eat(b':')?;
        Ok(key)
    }

    fn field(&mut self, field: &Field, depth: usize) -> Found {
        if self.peek()? == b'n' {
            // Not known, which a required field must not be.
            return if field.required { self.refuse("missing") } else { self.word("null") };
        }
        match (depth, field.name, self.peek()?) {
            (1, "type", b'"') => {
                let name = self.string()?;
                self.is_type_seen = self.decoded(name)? == self.believed;
                if self.is_type_seen { Ok(()) } else { Err(Refused) }
            }
            (1, "timestamp", b'"') => {
                let text = self.string()?;
                let text = self.decoded(text)?;
                self.taken = Some(self.taken(&text)?);
                Ok(())
            }
            (1, "database", _) => self.database(field.kind),
            _ => self.value(field.kind, depth),
        }
    }

    /// The value under a key that is not declared.
    fn other(&mut self, key: &str, kind: Kind, depth: usize) -> Found {
        if depth == 1 && key == "database" { self.database(kind) } else { self.value(kind, depth) }
    }

    fn database(&mut self, kind: Kind) -> Found {
        self.peek()?;
        let begin = self.at;
        self.value(kind, 1)?;
        let quoted = self.text.get(begin..self.at).unwrap_or_default();
        if quoted.starts_with('"') {
            let is_plain = !quoted.contains('\\');
            self.database = Some(self.decoded(Raw { quoted, is_plain })?);
        }
        Ok(())
    }

    fn elements(&mut self, kind: Kind, depth: usize) -> Found {
        let mut ended = self.open(b'[', b']', depth)?;
        self.values += 1;
        let mut index = 0;
        while !ended {
            if index == ELEMENTS_MAX {
                return self.refuse(format!("more than {ELEMENTS_MAX} elements"));
            }
            self.value(kind, depth)
                .map_err(|refused| self.under(refused, &format!("[{index}]")))?;
            index += 1;
            ended = self.ends(b']')?;
        }
        Ok(())
    }

    /// A value in the object or array at `depth`.
    fn value(&mut self, kind: Kind, depth: usize) -> Found {
        match (self.peek()?, kind) {
            (b'{', Kind::Any) => self.members(&[], &[], Kind::Any, depth + 1),
            (b'{', Kind::Object(own)) => self.members(own, &[], Kind::Any, depth + 1),
            (b'{', Kind::Map(value)) => self.members(&[], &[], *value, depth + 1),
            (b'[', Kind::Any) => self.elements(Kind::Any, depth + 1),
            (b'[', Kind::Array(element)) => self.elements(*element, depth + 1),
            (b'"', Kind::Any | Kind::Text | Kind::Name) => {
                let text = self.string()?;
                self.check_text(text, kind)
            }
            (b'"', Kind::OneOf(words)) => {
                let text = self.string()?;
                let text = self.decoded(text)?;
                if words.contains(&&*text) {
                    return Ok(());
                }
                self.refuse(format!("{} is none of {}", shown(&text), words.join(", ")))
            }
            (b'"', Kind::Time | Kind::Taken) => {
                let text = self.string()?;
                let text = self.decoded(text)?;
                match kind {
                    Kind::Taken => self.taken(&text).map(drop),
                    _ => parse_time(&text).map(drop).or_else(|message| self.refuse(message)),
                }
            }
            (b't', Kind::Any | Kind::Bool) => self.word("true"),
            (b'f', Kind::Any | Kind::Bool) => self.word("false"),
            (b'n', Kind::Any) => self.word("null"),
            (
                b'-' | b'0'..=b'9',
                Kind::Any | Kind::Number | Kind::Amount | Kind::Count | Kind::Percent,
            ) => self.number(kind),
            (found, kind) => {
                self.refuse(format!("expected {}, found {}", expected(kind), kind_of(found)))
            }
        }
    }

    fn word(&mut self, word: &str) -> Found {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(Refused);
        }
        self.at += word.len();
        Ok(())
    }

    /// A string; its first quote is the next byte.
    fn string(&mut self) -> Found<Raw<'a>> {
        let start = self.at;
        self.eat(b'"')?;
        let (mut is_plain, mut has_surrogates) = (true, false);
        loop {
            let rest = self.text.as_bytes().get(self.at..).ok_or(Refused)?;
            self.at += scan::quote_or_escape(rest).ok_or(Refused)?;
            if self.byte(self.at)? == b'"' {
                self.at += 1;
                let quoted = self.text.get(start..self.at).ok_or(Refused)?;
                let raw = Raw { quoted, is_plain };
                if has_surrogates {
                    // One half of a pair alone does not stand for a character.
                    self.decoded(raw)?;
                }
                return Ok(raw);
            }
            is_plain = false;
            has_surrogates |=
                self.byte(self.at + 1)? == b'u' && matches!(self.byte(self.at + 2)?, b'd' | b'D');
            self.at += 2;
        }
    }

    /// A string without its escapes.
    #[inline]
    fn decoded(&mut self, raw: Raw<'a>) -> Found<Cow<'a, str>> {
        if raw.is_plain { Ok(raw.text().into()) } else { self.unescaped(raw) }
    }

    #[cold]
    fn unescaped(&mut self, raw: Raw<'a>) -> Found<Cow<'a, str>> {
        match serde_json::from_str::<String>(raw.quoted) {
            Ok(text) => Ok(text.into()),
            Err(_) => self.refuse("no JSON: an escape does not stand for a character"),
        }
    }

    fn check_text(&mut self, raw: Raw<'a>, kind: Kind) -> Found {
        let text = raw.text();
        if text.is_empty() && matches!(kind, Kind::Name) {
            return self.refuse("empty");
        }
        if text.len() <= STRING_BYTES_MAX {
            return Ok(());
        }
        let bytes = self.decoded(raw)?.len();
        if bytes > STRING_BYTES_MAX { self.refuse(too_long(bytes)) } else { Ok(()) }
    }

    fn taken(&mut self, text: &str) -> Found<Timestamp> {
        let checked = parse_time(text).and_then(|at| self.bounds.check(at, text).map(|()| at));
        checked.or_else(|message| self.refuse(message))
    }

    fn number(&mut self, kind: Kind) -> Found {
        let number = Number::at(self.text, self.at).ok_or(Refused)?;
        self.at += number.text.len();
        if number.is_clear(kind) {
            return Ok(());
        }
        let Some(growth) = number.grows_by() else {
            return self
                .refuse(format!("a number has at most {PLACES_MAX} digits after the point"));
        };
        self.growth = self.growth.saturating_add(growth);
        if self.growth > GROWTH_MAX {
            let message = format!("the numbers up to here are more than {GROWTH_MAX} digits");
            return self.refuse(message);
        }
        match number.refused_as(kind) {
            None => Ok(()),
            Some(message) => self.refuse(message),
        }
    }
}

/// The keys of one object that are not those of fields.
struct Others<'a> {
    /// Where they begin among the keys of all open objects.
    outer: usize,
    /// Those beyond the first few.
    many: Option<HashSet<Cow<'a, str>>>,
}

impl<'a> Others<'a> {
    /// Notes a key, unless it is there already.
    fn is_new(&mut self, keys: &mut Vec<Cow<'a, str>>, key: Cow<'a, str>) -> bool {
        let first = keys.get(self.outer..).unwrap_or_default();
        if first.contains(&key) {
            return false;
        }
        if first.len() < KEYS_COMPARED_MAX {
            keys.push(key);
            return true;
        }
        self.many.get_or_insert_default().insert(key)
    }

    fn are_too_many(&self) -> bool {
        self.many.as_ref().is_some_and(|many| KEYS_COMPARED_MAX + many.len() > ELEMENTS_MAX)
    }
}

/// What a value of this kind is, with an article.
fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Name | Kind::OneOf(_) => "a string",
        Kind::Count | Kind::Amount | Kind::Number | Kind::Percent => "a number",
        Kind::Time | Kind::Taken => "a timestamp",
        Kind::Bool => "a boolean",
        Kind::Object(_) | Kind::Map(_) => "an object",
        Kind::Array(_) => "an array",
        Kind::Any => "a value",
    }
}

/// The field with this name, and which one it is.
fn find<'f>(own: &'f [Field], common: &'f [Field], name: &str) -> Option<(usize, &'f Field)> {
    let rest = || (own.len()..).zip(common).find(|(_, field)| field.name == name);
    declare::find(own, name).or_else(rest)
}

#[cfg(test)]
mod tests;
