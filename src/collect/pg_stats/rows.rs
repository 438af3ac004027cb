//! Rows of the server as parts of the document.

use std::error::Error;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::sizes::{Answer, Oid, Shown};
use crate::metric::Time;
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_stats::{DatabaseSummary, Index, Relations, Table, Usage};

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

/// A row of `queries::DATABASES`; absent when its name is not text.
pub(super) fn database(row: &Row) -> Option<Database> {
    let may_connect = row.flag("may_connect").unwrap_or(false);
    Some(Database { oid: oid(row)?, may_connect, summary: DatabaseSummary::read(row)? })
}

/// A row of `queries::TABLES` with its size.
pub(super) fn table(row: &Row, size: Shown) -> Option<Table> {
    let Shown { bytes: size_bytes, age_s: size_age_s, status } = size;
    Some(Table { size_bytes, size_age_s, status, ..Table::read(row)? })
}

/// A row of `queries::INDEXES` with its size.
pub(super) fn index(row: &Row, size: Shown) -> Option<Index> {
    let Shown { bytes: size_bytes, age_s: size_age_s, status: size_status } = size;
    let index = Index::read(row)?;
    let used = |scans| if scans > 0 { Usage::Used } else { Usage::Unused };
    let status = index.scans.map(used);
    Some(Index { size_bytes, size_age_s, size_status, status, ..index })
}

/// The totals of a list that is not known to be whole; 0 of 0 when it is empty.
pub(super) fn relations(tables: Option<&[Row]>, indexes: Option<&[Row]>) -> Relations {
    let tables = tables.map(totals);
    let indexes = indexes.map(totals);
    Relations {
        tables_total: tables.map(|t| t.count),
        tables_left_out: tables.map(|t| t.left_out),
        tables_left_out_bytes: tables.map(|t| t.left_out_bytes),
        indexes_total: indexes.map(|t| t.count),
        indexes_left_out: indexes.map(|t| t.left_out),
        indexes_left_out_bytes: indexes.map(|t| t.left_out_bytes),
    }
}

/// The OID of a row of `queries::TABLES`, `INDEXES` or a size.
pub(super) fn oid(row: &Row) -> Option<Oid> {
    column(row, "oid")
}

/// A row of one of the queries for sizes. A size that is NULL is that of a relation which was
/// dropped while it was asked for.
pub(super) fn size(row: &Row) -> Option<(Oid, Answer)> {
    let answer = match row.count("size_bytes") {
        Some(bytes) => Answer::Size(bytes),
        None if row.flag("locked") == Some(true) => Answer::Locked,
        None => return None,
    };
    Some((oid(row)?, answer))
}

#[derive(Clone, Copy)]
struct Totals {
    count: u64,
    left_out: u64,
    left_out_bytes: u64,
}

fn totals(rows: &[Row]) -> Totals {
    let first = |column| rows.first().and_then(|row| row.count(column)).unwrap_or(0);
    let listed = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    let listed_pages: u64 = rows.iter().filter_map(|row| row.count("pages")).sum();
    let pages = first("total_pages").saturating_sub(listed_pages);
    Totals {
        count: first("total"),
        left_out: first("total").saturating_sub(listed),
        left_out_bytes: pages.saturating_mul(first("block_size")),
    }
}
