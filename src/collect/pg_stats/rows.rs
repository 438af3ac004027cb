//! Rows of the server as parts of the document.

use std::collections::HashMap;
use std::error::Error;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::choice::{Catalog, Listed};
use super::sizes::{Answer, Bytes, Oid, Shown};
use super::visit::Whole;
use crate::metric::Time;
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_objects::{Partitioned, PartitionedTables};
use crate::metric::pg_stats::{DatabaseSummary, Index, Table, Usage};

/// A database and whether the role may connect to it.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) oid: Oid,
    pub(super) may_connect: bool,
    pub(super) summary: DatabaseSummary,
}

/// Columns of the server's types. The statements cast what is of another one.
impl Columns for Row {
    fn count(&self, name: &str) -> Option<u64> {
        self.integer(name).and_then(|value| u64::try_from(value).ok())
    }

    fn integer(&self, name: &str) -> Option<i64> {
        column(self, name)
    }

    fn amount(&self, name: &str) -> Option<f64> {
        column(self, name).filter(|value| *value >= 0.0)
    }

    fn text(&self, name: &str) -> Option<String> {
        column(self, name).map(|Lossy(text)| text)
    }

    fn time(&self, name: &str) -> Option<Time> {
        column(self, name).map(Time)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        column(self, name)
    }
}

/// Text of the server, in which bytes that are not UTF-8 are replaced: a database with the encoding
/// `SQL_ASCII` keeps any.
struct Lossy(String);

impl<'a> FromSql<'a> for Lossy {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        <String as FromSql>::accepts(kind)
    }
}

fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Option<T> {
    row.try_get::<_, Option<T>>(name).ok().flatten()
}

/// A row of `details::databases`; absent when its name is not text.
pub(super) fn database(row: &Row) -> Option<Database> {
    let may_connect = row.flag("may_connect").unwrap_or(false);
    Some(Database { oid: oid(row)?, may_connect, summary: DatabaseSummary::read(row)? })
}

/// A row of `details::tables` with its size.
pub(super) fn table(row: &Row, size: Shown) -> Option<Table> {
    let Shown { bytes, estimate: estimated_bytes, age_s: size_age_s, status } = size;
    let (index_bytes, toast_bytes) = (bytes.and_then(|b| b.indexes), bytes.and_then(|b| b.toast));
    let size_bytes = bytes.map(|bytes| bytes.total);
    let table = Table::read(row)?;
    Some(Table {
        size_bytes,
        index_bytes,
        toast_bytes,
        estimated_bytes,
        size_age_s,
        status,
        ..table
    })
}

/// A row of `details::indexes` with its size.
pub(super) fn index(row: &Row, size: Shown) -> Option<Index> {
    let Shown { bytes, estimate: estimated_bytes, age_s: size_age_s, status: size_status } = size;
    let size_bytes = bytes.map(|bytes| bytes.total);
    let index = Index::read(row)?;
    let used = |scans| if scans > 0 { Usage::Used } else { Usage::Unused };
    let status = index.scans.map(used);
    Some(Index { size_bytes, estimated_bytes, size_age_s, size_status, status, ..index })
}

/// The rows of `queries::TABLES` or `INDEXES`.
pub(super) fn catalog(rows: &[Row]) -> Catalog {
    let first = |column| rows.first().and_then(|row| row.count(column)).unwrap_or(0);
    let listed = rows.iter().flat_map(listed).collect();
    Catalog { listed, total: first("total"), total_bytes: first("total_bytes") }
}

fn listed(row: &Row) -> Vec<Listed> {
    let oids: Vec<Oid> = column(row, "oids").unwrap_or_default();
    let amounts = |name| -> Vec<Option<i64>> { column(row, name).unwrap_or_default() };
    let (bytes, activity, ages) = (amounts("bytes"), amounts("activity"), amounts("ages"));
    let at = |all: &[Option<i64>], index: usize| all.get(index).copied().flatten();
    let count = |value: Option<i64>| value.and_then(|it| it.try_into().ok()).unwrap_or(0);
    let roots: Vec<Oid> = column(row, "roots").unwrap_or_default();
    let relation = |(index, oid): (usize, Oid)| Listed {
        oid,
        root: roots.get(index).copied().filter(|root| *root != 0),
        estimate: count(at(&bytes, index)),
        activity: count(at(&activity, index)),
        age: at(&ages, index),
    };
    oids.into_iter().enumerate().map(relation).collect()
}

/// The rows of `details::PARTITIONED` with the sizes of their parts.
pub(super) fn partitioned(rows: &[Row], wholes: &HashMap<Oid, Whole>) -> PartitionedTables {
    let table = |row: &Row| {
        let whole = oid(row).and_then(|oid| wholes.get(&oid)).copied().unwrap_or_default();
        let (size_bytes, parts_estimated) = (Some(whole.bytes), Some(whole.estimated));
        Some(Partitioned { size_bytes, parts_estimated, ..Partitioned::read(row)? })
    };
    let mut largest: Vec<Partitioned> = rows.iter().filter_map(table).collect();
    largest.sort_by_key(|table| std::cmp::Reverse(table.size_bytes));
    let total = rows.first().map_or(Some(0), |row| row.count("total"));
    let left_out = total.map(|total| total.saturating_sub(largest.len() as u64));
    PartitionedTables { total, left_out, largest }
}

/// The OID of a row about a relation or a size.
pub(super) fn oid(row: &Row) -> Option<Oid> {
    column(row, "oid")
}

/// A row of one of the queries for sizes. A size that is NULL is that of a relation which was
/// dropped while it was asked for.
pub(super) fn size(row: &Row) -> Option<(Oid, Answer)> {
    let (indexes, toast) = (row.count("index_bytes"), row.count("toast_bytes"));
    let answer = match row.count("size_bytes") {
        Some(total) => Answer::Size(Bytes { total, indexes, toast }),
        None if row.flag("locked") == Some(true) => Answer::Locked,
        None => return None,
    };
    Some((oid(row)?, answer))
}
