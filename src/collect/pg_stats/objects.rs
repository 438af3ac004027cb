//! Sequences, functions and extensions of a database.

use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::level::Level;
use super::sizes::Plan;
use super::visit::Lister;
use crate::collect::postgres::{Query, Recovery};
use crate::metric::Status;
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_objects::{Extension, Extensions, Function, Functions, Sequence, Sequences};

/// To read a value a sequence is opened, and locked as by one who takes the next value: those that
/// someone locks against that, or waits to, are not touched.
const SEQUENCES: Query = Query {
    name: "sequences",
    rows_max: 50,
    sql: "WITH locked AS (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.relation IS NOT NULL
       AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
sequences AS (
    SELECT c.oid, n.nspname AS schema, c.relname AS name, r.relname AS table,
           a.attname AS column, s.seqmin, s.seqmax, s.seqincrement > 0 AS is_rising, s.seqcycle,
           CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647
                ELSE 9223372036854775807 END AS column_max,
           has_sequence_privilege(c.oid, 'SELECT, USAGE') AS may_read,
           EXISTS (SELECT FROM locked l WHERE l.relation = c.oid) AS is_locked,
           row_number() OVER (ORDER BY c.oid) AS place
      FROM pg_sequence s
      JOIN pg_class c ON c.oid = s.seqrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_depend d
        ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
       AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
      LEFT JOIN pg_class r ON r.oid = d.refobjid
      LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE c.relpersistence <> 't'),
readings AS (
    SELECT q.*, CASE WHEN q.is_rising THEN least(q.seqmax, q.column_max)
                     ELSE greatest(q.seqmin, -q.column_max - 1) END AS end_value,
           CASE WHEN q.may_read AND NOT q.is_locked AND NOT q.seqcycle AND q.place <= 2000
                THEN pg_sequence_last_value(q.oid) END AS last_value
      FROM sequences q),
shares AS (
    SELECT q.*, CASE WHEN q.is_rising
                THEN (q.last_value::float8 - q.seqmin)
                     / nullif(q.end_value::float8 - q.seqmin, 0)
                ELSE (q.seqmax::float8 - q.last_value)
                     / nullif(q.seqmax::float8 - q.end_value, 0) END AS share
      FROM readings q),
totals AS (
    SELECT count(*) AS total, count(*) FILTER (WHERE NOT q.may_read) AS hidden,
           count(*) FILTER (WHERE q.may_read AND q.is_locked) AS locked,
           count(*) FILTER (WHERE q.may_read AND NOT q.is_locked AND q.place > 2000) AS unread,
           count(*) FILTER (WHERE q.share >= 0.5) AS near_end
      FROM shares q),
nearest AS (
    SELECT q.schema, q.name, q.table, q.column, q.last_value, q.end_value,
           least(100 * q.share, 100) AS used_percent
      FROM shares q
     WHERE q.share >= 0.5
     ORDER BY q.share DESC, q.oid
     LIMIT 50)
SELECT t.*, n.* FROM totals t LEFT JOIN nearest n ON true ORDER BY n.used_percent DESC",
};

/// The same functions that the view has. What it joins is left out.
const FUNCTIONS: Query = Query {
    name: "user_functions",
    rows_max: 50,
    sql: "WITH functions AS (
    SELECT p.oid, p.proname, p.pronamespace, pg_stat_get_function_calls(p.oid) AS calls
      FROM pg_proc p
     WHERE p.prolang <> 12 AND pg_stat_get_function_calls(p.oid) IS NOT NULL),
top AS (
    SELECT n.nspname AS schema, f.proname AS name, f.calls,
           left(pg_get_function_identity_arguments(f.oid), 200) AS arguments,
           pg_stat_get_function_total_time(f.oid) / 1000 AS total_s,
           pg_stat_get_function_self_time(f.oid) / 1000 AS self_s
      FROM functions f JOIN pg_namespace n ON n.oid = f.pronamespace
     ORDER BY pg_stat_get_function_total_time(f.oid) DESC, f.calls DESC, f.oid
     LIMIT 50)
SELECT (SELECT count(*) FROM functions) AS total,
       current_setting('track_functions') <> 'none' AS are_tracked, t.*
  FROM (SELECT) o LEFT JOIN top t ON true
 ORDER BY t.total_s DESC, t.calls DESC",
};

const EXTENSIONS: Query = Query {
    name: "extensions",
    rows_max: 100,
    sql: "SELECT count(*) OVER () AS total, e.extname AS name, e.extversion AS version
  FROM pg_extension e
 ORDER BY e.extname
 LIMIT 100",
};

/// The same with what the server finds in its directory of extensions. One file there that it does
/// not understand fails the statement.
const EXTENSIONS_AND_DEFAULTS: Query = Query {
    name: "extension_defaults",
    rows_max: 100,
    sql: "SELECT count(*) OVER () AS total, e.extname AS name, e.extversion AS version,
       a.default_version
  FROM pg_extension e LEFT JOIN pg_available_extensions() a ON a.name = e.extname
 ORDER BY e.extname
 LIMIT 100",
};

/// What is read seldom, and when it was.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    sequences: Reading<Sequences>,
    extensions: Reading<Extensions>,
    /// The default versions could not be read: each try would be an error in the server's log.
    without_defaults: bool,
}

#[derive(Debug)]
struct Reading<T> {
    last: Option<(T, Instant)>,
    /// When to ask again.
    due: Option<Instant>,
}

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self { last: None, due: None }
    }
}

impl<T: Clone> Reading<T> {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// Notes what was read. After a failure the last reading stays, and it is tried again sooner.
    fn take(&mut self, read: Option<T>, plan: &Plan) {
        let wait = if read.is_some() { plan.every } else { plan.retry };
        self.due = plan.now.checked_add(wait);
        if let Some(read) = read {
            self.last = Some((read, plan.now));
        }
    }

    /// The last reading and its age in seconds.
    fn show(&self, now: Instant) -> Option<(T, Option<u64>)> {
        let (read, at) = self.last.as_ref()?;
        let age = now.saturating_duration_since(*at);
        Some((read.clone(), Some(age.as_secs()).filter(|_| age >= Duration::from_secs(1))))
    }
}

impl Lister<'_, '_> {
    /// The sequences. On a standby they are not opened: replay may hold their locks.
    pub(super) async fn sequences(&mut self, seldom: &mut Seldom) -> Option<Sequences> {
        if self.recovery == Recovery::Standby {
            return Some(Sequences { status: Some(Status::Recovery), ..Sequences::default() });
        }
        let reading = &mut seldom.sequences;
        if reading.is_due(self.plan.now) {
            let rows = self.rows(SEQUENCES, &[]).await;
            reading.take(rows.as_deref().and_then(sequences), &self.plan);
        }
        let (shown, age_s) = reading.show(self.plan.now)?;
        Some(Sequences { age_s, ..shown })
    }

    pub(super) async fn functions(&mut self) -> Option<Functions> {
        functions(&self.rows(FUNCTIONS, &[]).await?)
    }

    /// The extensions. Files of extensions that are newer than the server are usual before 13,
    /// which added a parameter to them: there no default versions are asked for.
    pub(super) async fn extensions(
        &mut self,
        seldom: &mut Seldom,
        level: Level,
    ) -> Option<Extensions> {
        let reading = &mut seldom.extensions;
        if reading.is_due(self.plan.now) {
            let (query, status) = match (level >= Level::V13, seldom.without_defaults) {
                (false, _) => (EXTENSIONS, Some(Status::UnsupportedVersion)),
                (true, true) => (EXTENSIONS, Some(Status::Error)),
                (true, false) => (EXTENSIONS_AND_DEFAULTS, None),
            };
            let rows = self.rows(query, &[]).await;
            seldom.without_defaults |= rows.is_none();
            reading.take(rows.map(|rows| extensions(&rows, status)), &self.plan);
        }
        let (shown, age_s) = reading.show(self.plan.now)?;
        Some(Extensions { age_s, ..shown })
    }
}

/// Rows of [`SEQUENCES`]: the totals stand in each, and in one without a sequence when none is near
/// its end.
fn sequences(rows: &[Row]) -> Option<Sequences> {
    let totals = Sequences::read(rows.first()?)?;
    let nearest: Vec<Sequence> = rows.iter().filter_map(Sequence::read).collect();
    let left_out = totals.near_end.map(|count| count.saturating_sub(nearest.len() as u64));
    Some(Sequences { left_out, nearest, ..totals })
}

/// Rows of [`FUNCTIONS`], likewise.
fn functions(rows: &[Row]) -> Option<Functions> {
    let first = rows.first()?;
    let totals = Functions::read(first)?;
    if totals.total == Some(0) && first.flag("are_tracked") == Some(false) {
        return None;
    }
    let top: Vec<Function> = rows.iter().filter_map(Function::read).collect();
    let left_out = totals.total.map(|total| total.saturating_sub(top.len() as u64));
    Some(Functions { left_out, top, ..totals })
}

/// Rows of [`EXTENSIONS`]; `status` is why they have no default versions.
fn extensions(rows: &[Row], status: Option<Status>) -> Extensions {
    let installed: Vec<Extension> = rows.iter().filter_map(Extension::read).collect();
    let total = rows.first().map_or(Some(0), |row| row.count("total"));
    let left_out = total.map(|total| total.saturating_sub(installed.len() as u64));
    Extensions { total, left_out, age_s: None, status, installed }
}
