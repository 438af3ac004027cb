//! Rows of the statistics views as JSON, read by the names of fields.

use serde_json::{Map, Value};
use tokio_postgres::Row;

use crate::metric::Time;
use crate::metric::declare::{Columns, Declared};

/// A row of a view with the names of its columns, whichever the server's major has.
pub(super) struct JsonRow(pub(super) Map<String, Value>);

/// A column of another name or unit than the field's.
pub(super) struct Renamed {
    field: &'static str,
    /// Its names, the newest first.
    columns: &'static [&'static str],
    /// It is in milliseconds, and the field in seconds.
    is_ms: bool,
}

pub(super) const fn renamed(field: &'static str, columns: &'static [&'static str]) -> Renamed {
    Renamed { field, columns, is_ms: false }
}

pub(super) const fn seconds(field: &'static str, columns: &'static [&'static str]) -> Renamed {
    Renamed { field, columns, is_ms: true }
}

/// The view's columns as fields, with those of other names.
struct Mapped<'a> {
    row: &'a JsonRow,
    renamed: &'static [Renamed],
}

impl Mapped<'_> {
    /// The column of a field, and whether it is in milliseconds.
    fn column(&self, field: &str) -> Option<(&Value, bool)> {
        let members = &self.row.0;
        let found = self.renamed.iter().find(|renamed| renamed.field == field);
        let Some(Renamed { columns, is_ms, .. }) = found else {
            return members.get(field).map(|value| (value, false));
        };
        columns.iter().find_map(|name| members.get(*name)).map(|value| (value, *is_ms))
    }
}

impl Columns for Mapped<'_> {
    fn count(&self, name: &str) -> Option<u64> {
        self.column(name)?.0.as_u64()
    }

    fn integer(&self, name: &str) -> Option<i64> {
        self.column(name)?.0.as_i64()
    }

    fn amount(&self, name: &str) -> Option<f64> {
        let (value, is_ms) = self.column(name)?;
        let amount = value.as_f64().filter(|amount| *amount >= 0.0)?;
        Some(if is_ms { amount / 1000.0 } else { amount })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.column(name)?.0.as_str().map(ToOwned::to_owned)
    }

    fn time(&self, name: &str) -> Option<Time> {
        self.column(name)?.0.as_str()?.parse().ok().map(Time)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.column(name)?.0.as_bool()
    }
}

impl JsonRow {
    pub(super) fn of(row: &Row) -> Option<Self> {
        match row.try_get("row") {
            Ok(Value::Object(members)) => Some(Self(members)),
            _ => None,
        }
    }

    pub(super) fn read<T: Declared>(&self, renamed: &'static [Renamed]) -> Option<T> {
        T::read(&Mapped { row: self, renamed })
    }
}
