//! How a document is declared: once, field by field.
//!
//! From a declaration come the struct and its JSON in both directions, what
//! [`admit`](super::admit) holds a text against, the reader of a row of PostgreSQL, `agent metrics`
//! and `docs/METRICS.md`. A field is its meaning and one line:
//!
//! ```text
//! /// Reads completed.
//! read_ops: Option<u64> = counter("operations" since "boot_at") from "reads completed";
//! ```
//!
//! - The type is `Option` unless the contract requires the field: absent means "not known". A list
//!   or a map without `Option` is left out when it is empty.
//! - The role is one of `key`, `text`, `state`, `time(host)`, `time(server)`, `gauge("unit")`,
//!   `counter("unit" since "field")` and `part`: an object, or several in a list or under names.
//!   The unit is one of [`UNITS`]; `since` names the time, in the same object or one around it, at
//!   which the counter was 0. `by "key"` behind the unit says what the names of a map are.
//! - `from` says where it comes from, beyond what is said of the whole struct; `on 14..=18` the
//!   majors of PostgreSQL that have it, where not all do.
//! - `..name: Struct;` at the end takes in the fields of another struct.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::{Status, Time};

/// The units of gauges and counters: what is counted, in the plural, or a measure; `1` is a plain
/// number, and `/s` behind a unit a rate.
pub const UNITS: &[&str] = &[
    "%",
    "1",
    "batches",
    "blocks",
    "bytes",
    "bytes/s",
    "calls",
    "collections",
    "connections",
    "CPUs",
    "databases",
    "deadlocks",
    "entries",
    "errors",
    "extensions",
    "faults",
    "files",
    "functions",
    "GiB",
    "indexes",
    "inodes",
    "locks",
    "metrics",
    "MiB",
    "MiB/s",
    "ms",
    "operations",
    "operations/s",
    "packets",
    "packets/s",
    "pages",
    "pushes",
    "queries",
    "records",
    "requests",
    "rows",
    "runs",
    "s",
    "scans",
    "sectors",
    "segments",
    "sequences",
    "switches/s",
    "tables",
    "tasks",
    "transactions",
    "tuples",
    "us",
];

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Any string.
    Text,
    /// A string with at least one character.
    Name,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A whole number, not negative.
    Count,
    /// A number, not negative.
    Amount,
    /// A number.
    Number,
    /// 0 to 100.
    Percent,
    /// RFC 3339, UTC, ending in `Z`.
    Time,
    /// The same for when a document was taken, which lies near the present of its reader.
    Taken,
    /// `true` or `false`.
    Bool,
    /// An object with these fields.
    Object(&'static [Field]),
    /// A list of such values.
    Array(&'static Kind),
    /// An object with any names, and such a value under each.
    Map(&'static Kind),
    /// Anything within the common limits.
    Any,
}

/// What a field is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Names what the numbers beside it are about.
    Key,
    /// Words.
    Text,
    /// A word out of a few, or yes or no.
    State,
    /// An instant by this clock.
    Time(Clock),
    /// A number that goes up and down.
    Gauge,
    /// A number that only grows, from 0 at the time that the field with this name holds; that
    /// stands in the same object or in one around it.
    Counter(&'static str),
    /// An object, or several.
    Part,
}

/// Whose clock a time is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The agent's host's.
    Host,
    /// The PostgreSQL server's.
    Server,
}

/// One named field of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its key in JSON.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Must be there and not null.
    pub required: bool,
    /// What it is for.
    pub role: Role,
    /// One of [`UNITS`]; empty unless the field is a gauge or a counter.
    pub unit: &'static str,
    /// What the keys of a map are, such as `collector`; empty unless the field is a map.
    pub by: &'static str,
    /// What it says, with the blanks of the comment that it was written as.
    pub meaning: &'static str,
    /// Where it comes from: view and column, function, or file.
    pub source: &'static str,
    /// The first and the last major of PostgreSQL that has it.
    pub majors: (u16, u16),
    /// How [`find`] finds it.
    pub(super) table: Table,
}

/// What a list of fields knows of itself, spread over its fields: a hash table of their names, and
/// where the required ones end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// The first field whose name has this field's place in the list as its hash.
    first: u8,
    /// The next field whose name has the same hash as this one's.
    next: u8,
    /// How many fields of the list there are up to its last required one.
    required: u8,
}

/// No field.
const NONE: u8 = u8::MAX;
/// A list of fields is shorter: who walks over an object has a bit for each, and one for its type.
pub(super) const FIELDS_MAX: usize = u128::BITS as usize;

/// The field with this name in a list of a [`Declared`], and its place there.
pub(super) fn find<'f>(fields: &'f [Field], name: &str) -> Option<(usize, &'f Field)> {
    let mut at = fields.get(place(name, fields.len()))?.table.first;
    loop {
        let field = fields.get(usize::from(at))?;
        if field.name == name {
            return Some((usize::from(at), field));
        }
        at = field.table.next;
    }
}

/// The fields of a list of a [`Declared`] up to its last required one.
pub(super) fn up_to_required(fields: &[Field]) -> &[Field] {
    let count = fields.first().map_or(0, |field| usize::from(field.table.required));
    fields.get(..count).unwrap_or_default()
}

/// Where a name stands in the table of a list of `count` fields, mostly alone.
#[expect(clippy::cast_possible_truncation, reason = "a length that is cut is a hash, too")]
const fn place(name: &str, count: usize) -> usize {
    let bytes = name.as_bytes();
    let length = bytes.len();
    if length == 0 || count == 0 {
        return 0;
    }
    let (first, middle, last) = (bytes[0], bytes[length / 2], bytes[length - 1]);
    let sum = length as u32 + 31 * first as u32 + 7 * middle as u32 + 3 * last as u32;
    // The high bits of the product say which part of all hashes it lies in: no division.
    let hash = sum.wrapping_mul(0x9e37_79b1);
    ((hash as u64 * count as u64) >> 32) as usize
}

/// A struct that was declared.
pub trait Declared: Sized {
    /// What it is, with the blanks of the comment that it was written as.
    const ABOUT: &'static str;
    /// Its fields in JSON.
    const FIELDS: &'static [Field];

    /// Reads it out of a row; absent when a required field is not known.
    fn read(row: &impl Columns) -> Option<Self>;
}

/// A row whose columns have the names of fields. A column that is not there, NULL, or no value of
/// the wanted type, is not known.
pub trait Columns {
    /// A whole number, not negative.
    fn count(&self, name: &str) -> Option<u64>;
    /// A whole number.
    fn integer(&self, name: &str) -> Option<i64>;
    /// A number, not negative.
    fn amount(&self, name: &str) -> Option<f64>;
    /// A string.
    fn text(&self, name: &str) -> Option<String>;
    /// An instant.
    fn time(&self, name: &str) -> Option<Time>;
    /// Yes or no.
    fn flag(&self, name: &str) -> Option<bool>;
}

/// What the type of a field can hold.
pub trait FieldType: Sized {
    /// The same in words for the validator.
    const KIND: Kind;
    /// Whether the field must be there.
    const REQUIRED: bool = true;

    /// Reads it out of a row, where it is one column.
    fn read(row: &impl Columns, name: &str) -> Option<Self>;

    /// Reads it out of the JSON of a document that was admitted.
    fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error>;

    /// Whether it is left out of the JSON.
    fn is_unknown(&self) -> bool {
        false
    }
}

impl Field {
    /// The majors of PostgreSQL that the agent reads.
    pub const MAJORS: (u16, u16) = (10, 18);

    /// A field without words about it.
    pub(super) const fn bare<T: FieldType>(name: &'static str, role: Role) -> Self {
        let kind = match (role, T::KIND) {
            (Role::Key, Kind::Text) if T::REQUIRED => Kind::Name,
            (Role::Time(Clock::Host), Kind::Time) if is(name, "timestamp") => Kind::Taken,
            (_, kind) => kind,
        };
        Self {
            name,
            kind,
            required: T::REQUIRED,
            role,
            unit: "",
            by: "",
            meaning: "",
            source: "",
            majors: Self::MAJORS,
            table: Table { first: NONE, next: NONE, required: 0 },
        }
    }

    /// The same in this unit. Percentages are 0 to 100.
    pub(super) const fn of(self, unit: &'static str) -> Self {
        let kind = match self.kind {
            Kind::Amount if is(unit, "%") => Kind::Percent,
            kind => kind,
        };
        Self { kind, unit, ..self }
    }
}

/// `a == b`, which is not to be had in a constant.
const fn is(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// The fields of `own`, then those of `more`; `N` is how many they are.
pub(super) const fn joined<const N: usize>(own: &[Field], more: &[Field]) -> [Field; N] {
    assert!(own.len() + more.len() == N, "the number of fields");
    let mut all = [own[0]; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < own.len() { own[at] } else { more[at - own.len()] };
        at += 1;
    }
    tabled(all)
}

#[expect(clippy::cast_possible_truncation, reason = "a place is a byte")]
const fn tabled<const N: usize>(mut all: [Field; N]) -> [Field; N] {
    assert!(N < FIELDS_MAX, "a list of fields is not so long");
    let (mut required, mut at) = (0, 0);
    while at < N {
        all[at].table.first = NONE;
        all[at].table.next = NONE;
        at += 1;
        if all[at - 1].required {
            required = at as u8;
        }
    }
    while at > 0 {
        at -= 1;
        let place = place(all[at].name, N);
        all[at].table.next = all[place].table.first;
        all[place].table.first = at as u8;
        all[at].table.required = required;
    }
    all
}

/// Declares documents and their parts; see the module.
macro_rules! declare {
    ($(
        $(#[doc = $about:literal])+
        pub struct $name:ident $(= $type_name:literal)?, from $from:literal {
            $(
                $(#[doc = $meaning:literal])+
                $field:ident : $type:ty = $role:ident $(($($detail:tt)+))?
                    $(from $source:literal)? $(on $first:literal ..= $last:literal)?;
            )+
            $(..$more:ident : $more_type:ty;)?
        }
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[serde(tag = "type", rename = $type_name)])?
        #[serde(default)]
        pub struct $name {
            $(
                $(#[doc = $meaning])+
                #[serde(
                    skip_serializing_if = "crate::metric::declare::FieldType::is_unknown",
                    deserialize_with = "crate::metric::declare::FieldType::from_json"
                )]
                pub $field: $type,
            )+
            $(
                /// Further fields of the same object.
                #[serde(flatten)]
                pub $more: $more_type,
            )?
        }

        const _: () = {
            use serde::de::{Deserialize, Deserializer};

            use crate::metric::declare::{Columns, Declared, Field, FieldType, Kind, Role};

            const OWN: &[Field] = &[$(
                Field {
                    meaning: concat!($($meaning, "\n"),+),
                    source: declare!(@first $($source,)? $from,),
                    majors: declare!(@first $(($first, $last),)? Field::MAJORS,),
                    ..declare!(@role $field $type, $role $(($($detail)+))?)
                },
            )+];
            const MORE: &[Field] = declare!(@first $(<$more_type as Declared>::FIELDS,)? &[],);
            const ALL: [Field; OWN.len() + MORE.len()] =
                crate::metric::declare::joined(OWN, MORE);

            impl Declared for $name {
                const ABOUT: &'static str = concat!($($about, "\n"),+);
                const FIELDS: &'static [Field] = &ALL;

                fn read(row: &impl Columns) -> Option<Self> {
                    Some(Self {
                        $($field: <$type as FieldType>::read(row, stringify!($field))?,)+
                        $($more: <$more_type as Declared>::read(row)?,)?
                    })
                }
            }

            impl FieldType for $name {
                const KIND: Kind = Kind::Object(&ALL);

                fn read(_: &impl Columns, _: &str) -> Option<Self> {
                    None
                }

                fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
                    Self::deserialize(json)
                }
            }
        };
    )+};
    (@first $first:expr, $($rest:expr,)?) => { $first };
    (@role $name:ident $type:ty, key) => { declare!(@bare $name $type, Role::Key) };
    (@role $name:ident $type:ty, text) => { declare!(@bare $name $type, Role::Text) };
    (@role $name:ident $type:ty, state) => { declare!(@bare $name $type, Role::State) };
    (@role $name:ident $type:ty, part) => { declare!(@bare $name $type, Role::Part) };
    (@role $name:ident $type:ty, part(by $key:literal)) => {
        Field { by: $key, ..declare!(@bare $name $type, Role::Part) }
    };
    (@role $name:ident $type:ty, time(host)) => {
        declare!(@bare $name $type, Role::Time(crate::metric::declare::Clock::Host))
    };
    (@role $name:ident $type:ty, time(server)) => {
        declare!(@bare $name $type, Role::Time(crate::metric::declare::Clock::Server))
    };
    (@role $name:ident $type:ty, gauge($unit:literal $(by $key:literal)?)) => {
        Field {
            by: declare!(@first $($key,)? "",),
            ..declare!(@bare $name $type, Role::Gauge).of($unit)
        }
    };
    (@role $name:ident $type:ty, counter($unit:literal since $since:literal)) => {
        declare!(@bare $name $type, Role::Counter($since)).of($unit)
    };
    (@bare $name:ident $type:ty, $role:expr) => {
        Field::bare::<$type>(stringify!($name), $role)
    };
}
pub(super) use declare;

/// How the types that are one column are read.
macro_rules! columns {
    ($($type:ty => $kind:ident by $read:ident;)+) => {$(
        impl FieldType for $type {
            const KIND: Kind = Kind::$kind;

            fn read(row: &impl Columns, name: &str) -> Option<Self> {
                row.$read(name)
            }

            fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
                Self::deserialize(json)
            }
        }
    )+};
}

columns! {
    i64 => Number by integer;
    f64 => Amount by amount;
    String => Text by text;
    Time => Time by time;
    bool => Bool by flag;
}

impl FieldType for u64 {
    const KIND: Kind = Kind::Count;

    fn read(row: &impl Columns, name: &str) -> Option<Self> {
        row.count(name)
    }

    /// A whole number may be written as one with a fraction.
    fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_u64(Whole)
    }
}

struct Whole;

impl Visitor<'_> for Whole {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, not negative")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is beyond the range is the largest"
    )]
    fn visit_f64<E: Error>(self, number: f64) -> Result<u64, E> {
        if number < 0.0 || number.fract() != 0.0 {
            return Err(E::invalid_value(Unexpected::Float(number), &self));
        }
        Ok(number as u64)
    }
}

/// A value that is not null, as its type is read.
struct Known<T>(T);

impl<'de, T: FieldType> Deserialize<'de> for Known<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        T::from_json(json).map(Self)
    }
}

/// Words out of a few, which are no column of their own.
macro_rules! words {
    ($($type:ty),+) => {$(
        impl crate::metric::declare::FieldType for $type {
            const KIND: crate::metric::declare::Kind =
                crate::metric::declare::Kind::OneOf(Self::NAMES);

            fn read(_: &impl crate::metric::declare::Columns, _: &str) -> Option<Self> {
                None
            }

            fn from_json<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
                serde::Deserialize::deserialize(json)
            }
        }
    )+};
}
pub(super) use words;

words!(Status);

impl<T: FieldType> FieldType for Option<T> {
    const KIND: Kind = T::KIND;
    const REQUIRED: bool = false;

    fn read(row: &impl Columns, name: &str) -> Option<Self> {
        Some(T::read(row, name))
    }

    fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let known = Option::<Known<T>>::deserialize(json)?;
        Ok(known.map(|Known(value)| value))
    }

    fn is_unknown(&self) -> bool {
        self.is_none()
    }
}

impl<T: FieldType> FieldType for Vec<T> {
    const KIND: Kind = Kind::Array(&T::KIND);
    const REQUIRED: bool = false;

    fn read(_: &impl Columns, _: &str) -> Option<Self> {
        Some(Self::new())
    }

    fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let known = Option::<Vec<Known<T>>>::deserialize(json)?;
        Ok(known.into_iter().flatten().map(|Known(value)| value).collect())
    }

    fn is_unknown(&self) -> bool {
        self.is_empty()
    }
}

impl<T: FieldType> FieldType for BTreeMap<String, T> {
    const KIND: Kind = Kind::Map(&T::KIND);
    const REQUIRED: bool = false;

    fn read(_: &impl Columns, _: &str) -> Option<Self> {
        Some(Self::new())
    }

    fn from_json<'de, D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let known = Option::<BTreeMap<String, Known<T>>>::deserialize(json)?;
        Ok(known.into_iter().flatten().map(|(name, Known(value))| (name, value)).collect())
    }

    fn is_unknown(&self) -> bool {
        self.is_empty()
    }
}
