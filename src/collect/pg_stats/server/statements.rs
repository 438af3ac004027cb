//! `pg_stat_statements`: where it is, its entries, and who they belong to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::visit;
use super::deltas::{COUNTERS, Entry, Key, Listed, Since, pick};
use super::texts;
use super::{CollectError, Cost, Document, PgStatsCollector, Problem, Query, Recovery};
use crate::clock;
use crate::collect::postgres::Session;
use crate::metric::Status;
use crate::metric::declare::Columns;
use crate::metric::pg_statements::{Statement, Statements};

/// How long the other databases are left alone when the extension is in none of them.
const SEARCH_AGAIN: Duration = Duration::from_secs(3_600);
/// How often a text is sent.
const TEXT_EVERY: Duration = Duration::from_secs(86_400);
/// How often texts are asked for: the extension reads its whole file of them for that.
const TEXTS_PAUSE: Duration = Duration::from_secs(600);
/// How many texts a document has at most; further ones have their turn at the next time.
const TEXTS_IN_DOCUMENT: usize = 100;
/// The numbers of statements that are remembered for their texts.
const TEXTS_MAX: usize = 10_000;

/// Where the extension is not loaded, its functions are errors: that it is shows in its settings.
/// The statements of a superuser's session of the agent are not counted, see [`Session`].
const EXTENSION: Query = Query {
    name: "statements_extension",
    sql: "SELECT e.extversion AS version, quote_ident(n.nspname) AS schema,
       current_database() AS found_in,
       EXISTS (SELECT FROM pg_settings g WHERE g.name = 'pg_stat_statements.max') AS loaded,
       CASE WHEN current_setting('is_superuser') <> 'on'
            THEN (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user)::int8 END AS own
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'pg_stat_statements'",
    rows_max: 1,
};

const INFO: Query = Query {
    name: "statements_info",
    sql: "SELECT i.dealloc AS deallocations, i.stats_reset
  FROM {schema}.pg_stat_statements_info i",
    rows_max: 1,
};

/// A number stands for the same statement whoever runs it. An honest answer has 8 KiB a row.
const TEXTS: Query = Query {
    name: "statements_texts",
    sql: "SELECT DISTINCT ON (s.queryid) s.queryid, left(s.query, 2048) AS query
  FROM {schema}.pg_stat_statements(true) s
 WHERE s.queryid = ANY ($1)
 LIMIT 100",
    rows_max: 600,
};

const NAMES: Query = Query {
    name: "statements_names",
    sql: "SELECT true AS is_database, d.oid::int8 AS id, d.datname::text AS name
  FROM pg_database d WHERE d.oid = ANY ($1)
 UNION ALL
SELECT false, r.oid::int8, r.rolname::text FROM pg_roles r WHERE r.oid = ANY ($2)",
    rows_max: 1_000,
};

/// The statement for entries, with the columns of a version: the counters in the order of
/// [`COUNTERS`], times in microseconds.
macro_rules! entries {
    (
        $name:literal, $toplevel:literal, $exec:literal, $plans:literal, $plan:literal,
        $read:literal, $write:literal, $records:literal, $images:literal, $bytes:literal
    ) => {
        Query {
            name: $name,
            sql: concat!(
                "SELECT s.userid, s.dbid, s.queryid, ",
                $toplevel,
                " AS toplevel, count(*) OVER () AS entries, s.calls,\n       round(",
                $exec,
                " * 1000)::int8 AS exec, ",
                $plans,
                ", round(",
                $plan,
                " * 1000)::int8 AS plan, s.rows,
       s.shared_blks_hit, s.shared_blks_read, s.shared_blks_dirtied, s.shared_blks_written,
       s.local_blks_read, s.local_blks_written, s.temp_blks_read, s.temp_blks_written,
       round((",
                $read,
                ") * 1000)::int8 AS read, round((",
                $write,
                ") * 1000)::int8 AS write,\n       ",
                $records,
                ", ",
                $images,
                ", ",
                $bytes,
                "::int8 AS wal_bytes
  FROM {schema}.pg_stat_statements(false) s
 ORDER BY ",
                $exec,
                " DESC, s.userid, s.dbid, s.queryid\n LIMIT 20000"
            ),
            rows_max: 20_000,
        }
    };
}

/// Up to 1.7 there are no plans and no log.
const ENTRIES_1_4: Query = entries!(
    "statements_1_4",
    "NULL::bool",
    "s.total_time",
    "NULL::int8 AS plans",
    "NULL::float8",
    "s.blk_read_time",
    "s.blk_write_time",
    "NULL::int8 AS wal_records",
    "NULL::int8 AS wal_fpi",
    "NULL::int8"
);

const ENTRIES_1_8: Query = entries!(
    "statements_1_8",
    "NULL::bool",
    "s.total_exec_time",
    "s.plans",
    "s.total_plan_time",
    "s.blk_read_time",
    "s.blk_write_time",
    "s.wal_records",
    "s.wal_fpi",
    "s.wal_bytes"
);

const ENTRIES_1_9: Query = entries!(
    "statements_1_9",
    "s.toplevel",
    "s.total_exec_time",
    "s.plans",
    "s.total_plan_time",
    "s.blk_read_time",
    "s.blk_write_time",
    "s.wal_records",
    "s.wal_fpi",
    "s.wal_bytes"
);

const ENTRIES_1_11: Query = entries!(
    "statements_1_11",
    "s.toplevel",
    "s.total_exec_time",
    "s.plans",
    "s.total_plan_time",
    "s.shared_blk_read_time + s.local_blk_read_time",
    "s.shared_blk_write_time + s.local_blk_write_time",
    "s.wal_records",
    "s.wal_fpi",
    "s.wal_bytes"
);

/// What is kept between two collections.
#[derive(Debug, Default)]
pub(in crate::collect::pg_stats) struct StatementsSeen {
    /// As of the last document that is in the queue: what is told adds up, also where one is lost.
    committed: Option<Since>,
    /// As of the document that is not in the queue yet.
    collected: Option<Since>,
    /// The database that has the extension, where that is not the maintenance database.
    elsewhere: Option<String>,
    /// When it was last looked for in all databases, and not found.
    searched: Option<Instant>,
    /// When the text of a number came into the queue.
    texts: HashMap<i64, Instant>,
    /// The numbers whose texts are in the document that is not in the queue yet.
    texts_told: Vec<i64>,
    /// When texts were last asked for.
    texts_asked: Option<Instant>,
}

impl StatementsSeen {
    /// The document is in the queue.
    pub(in crate::collect::pg_stats) fn commit(&mut self) {
        let now = clock::monotonic();
        if let Some(collected) = self.collected.take() {
            self.committed = Some(collected);
        }
        self.texts.extend(self.texts_told.drain(..).map(|query| (query, now)));
        if self.texts.len() > TEXTS_MAX {
            self.texts.retain(|_, at| elapsed(*at) < TEXT_EVERY);
        }
        if self.texts.len() > TEXTS_MAX {
            self.texts.clear();
        }
    }

    /// Of these statements, those whose text is due.
    fn texts_due(&self, entries: &[Listed]) -> Vec<i64> {
        if self.texts_asked.is_some_and(|at| elapsed(at) < TEXTS_PAUSE) {
            return Vec::new();
        }
        let is_due =
            |query: &i64| self.texts.get(query).is_none_or(|at| elapsed(*at) >= TEXT_EVERY);
        let queries = entries.iter().filter_map(|entry| entry.key.query);
        queries.filter(is_due).take(TEXTS_IN_DOCUMENT).collect()
    }
}

fn elapsed(since: Instant) -> Duration {
    clock::monotonic().saturating_duration_since(since)
}

/// Where the extension is.
struct Found {
    /// Absent: the maintenance database.
    database: Option<String>,
    row: Row,
}

/// What a collection adds to.
pub(super) struct Account<'a> {
    pub(super) recovery: Recovery,
    pub(super) cost: &'a mut Cost,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl PgStatsCollector {
    pub(super) async fn add_statements(
        &mut self,
        document: &mut Document,
        mut account: Account<'_>,
    ) -> Result<(), CollectError> {
        self.statements.texts_told.clear();
        self.statements.collected = None;
        if self.config.statements_max == 0 {
            return Ok(());
        }
        let disabled = Statements { status: Some(Status::Disabled), ..Statements::default() };
        let Some(found) = self.find_extension(&mut account).await? else {
            self.statements.committed = None;
            document.statements = Some(disabled);
            return Ok(());
        };
        let version = found.row.text("version").unwrap_or_default();
        let about = Statements {
            found_in: found.row.text("found_in"),
            version: Some(version.clone()),
            ..Statements::default()
        };
        if found.row.flag("loaded") != Some(true) {
            self.statements.committed = None;
            document.statements = Some(Statements { status: disabled.status, ..about });
            return Ok(());
        }
        document.statements = Some(self.read_entries(about, &found, &version, account).await?);
        Ok(())
    }

    async fn read_entries(
        &mut self,
        about: Statements,
        found: &Found,
        version: &str,
        mut account: Account<'_>,
    ) -> Result<Statements, CollectError> {
        let failed = |about| Statements { status: Some(Status::Error), ..about };
        let (has_info, query) = match minor(version) {
            Some(11..) => (true, ENTRIES_1_11),
            Some(9..) => (true, ENTRIES_1_9),
            Some(8) => (false, ENTRIES_1_8),
            Some(4..) => (false, ENTRIES_1_4),
            _ => return Ok(Statements { status: Some(Status::UnsupportedVersion), ..about }),
        };
        let info = if has_info { self.ask(found, INFO, &[], &mut account).await? } else { None };
        let info = info.and_then(|rows| rows.into_iter().next());
        let (now, stats_reset) =
            (clock::monotonic(), info.as_ref().and_then(|i| i.time("stats_reset")));
        let Some(rows) = self.ask(found, query, &[], &mut account).await? else {
            return Ok(failed(about));
        };
        let all = rows.first().and_then(|row| row.count("entries")).unwrap_or(0);
        let own = found.row.integer("own");
        let entries: Vec<Entry> =
            rows.iter().filter_map(entry).filter(|e| Some(i64::from(e.key.user)) != own).collect();
        let hidden = entries.iter().filter(|entry| entry.key.query.is_none()).count();
        let read = rows.len() as u64;
        drop(rows);
        let before = self.statements.committed.as_ref();
        let (collected, deltas) = Since::next(before, entries, stats_reset, now);
        self.statements.collected = Some(collected);
        let mut statements = Statements {
            status: Some(Status::Ok),
            entries: Some(all),
            not_read: Some(all.saturating_sub(read)),
            hidden: Some(hidden as u64),
            deallocations: info.as_ref().and_then(|info| info.count("deallocations")),
            stats_reset,
            ..about
        };
        if let Some(deltas) = deltas {
            let listed = pick(&deltas, self.config.statements_max as usize);
            let texts = self.texts(found, &listed.entries, &mut account).await?;
            statements.list = self.named(&listed.entries, texts, account).await?;
            statements.interval_s = Some(deltas.interval.as_secs_f64());
            statements.total = Some(listed.total.as_part());
            statements.other = Some(listed.other.as_part());
        }
        Ok(statements)
    }

    /// The texts that are due, without constants.
    async fn texts(
        &mut self,
        found: &Found,
        entries: &[Listed],
        account: &mut Account<'_>,
    ) -> Result<HashMap<i64, String>, CollectError> {
        if !self.config.statements_text {
            return Ok(HashMap::new());
        }
        let due = self.statements.texts_due(entries);
        if due.is_empty() {
            return Ok(HashMap::new());
        }
        self.statements.texts_asked = Some(clock::monotonic());
        let rows = self.ask(found, TEXTS, &[&due], account).await?.unwrap_or_default();
        let text = |row: &Row| Some((row.integer("queryid")?, texts::shown(&row.text("query")?)?));
        let texts: HashMap<i64, String> = rows.iter().filter_map(text).collect();
        self.statements.texts_told.extend(texts.keys());
        Ok(texts)
    }

    /// The entries with the names of their databases and roles.
    async fn named(
        &mut self,
        entries: &[Listed],
        texts: HashMap<i64, String>,
        account: Account<'_>,
    ) -> Result<Vec<Statement>, CollectError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let databases: Vec<u32> = entries.iter().map(|entry| entry.key.database).collect();
        let users: Vec<u32> = entries.iter().map(|entry| entry.key.user).collect();
        let Account { cost, problems, .. } = account;
        let names = self.ask_main(NAMES, &[&databases, &users], cost, problems).await?;
        let names = names.unwrap_or_default();
        let name = |is_database: bool, id: u32| {
            let of_id = |row: &&Row| {
                row.flag("is_database") == Some(is_database)
                    && row.count("id") == Some(u64::from(id))
            };
            names.iter().find(of_id).and_then(|row| row.text("name")).unwrap_or(id.to_string())
        };
        let statement = |listed: &Listed| {
            let Key { user, database, query, is_top } = listed.key;
            let level = is_top.map(|is_top| if is_top { "top" } else { "nested" });
            Some(Statement {
                database: Some(name(true, database)),
                user: Some(name(false, user)),
                query_id: query?.to_string(),
                level: level.map(ToOwned::to_owned),
                query: texts.get(&query?).cloned(),
                counts: listed.counts.as_part(),
            })
        };
        Ok(entries.iter().filter_map(statement).collect())
    }

    /// The database that has the extension: the maintenance database first, then where it was last
    /// time, then all that are visited.
    async fn find_extension(
        &mut self,
        account: &mut Account<'_>,
    ) -> Result<Option<Found>, CollectError> {
        let rows = self.ask_main(EXTENSION, &[], account.cost, account.problems).await?;
        if let Some(row) = rows.into_iter().flatten().next() {
            return Ok(Some(Found { database: None, row }));
        }
        let again = |at: Instant| elapsed(at) < SEARCH_AGAIN;
        let candidates = match &self.statements.elsewhere {
            Some(known) => vec![known.clone()],
            None if self.statements.searched.is_some_and(again) => return Ok(None),
            None => {
                // Of a thousand names that are configured, those that are there.
                let mut visited: Vec<String> = self.relations.keys().cloned().collect();
                visited.sort();
                visited
            }
        };
        let main = self.config.connection.database.clone();
        for name in candidates.into_iter().filter(|name| *name != main) {
            if let Some(row) = self.extension_in(&name, account).await {
                self.statements.elsewhere = Some(name.clone());
                return Ok(Some(Found { database: Some(name), row }));
            }
        }
        // The next collection looks again where it has just gone from one.
        let was_known = self.statements.elsewhere.take().is_some();
        self.statements.searched = (!was_known).then(clock::monotonic);
        Ok(None)
    }

    /// The extension in a database beside the maintenance database. What fails there is told by
    /// the visit.
    async fn extension_in(&mut self, name: &str, account: &mut Account<'_>) -> Option<Row> {
        let is_open = self.visited.as_ref().is_some_and(|(open, _)| open == name);
        if !is_open {
            // Closed first: there are never more than two connections.
            self.leave().await;
            account.cost.connects += 1;
            let (place, timeouts) = (&self.config.connection, &self.config.timeouts);
            let mut session = Session::open(place, name, timeouts).await.ok()?;
            session.set_standby(account.recovery).await.ok()?;
            self.visited = Some((name.to_owned(), session));
        }
        let (_, session) = self.visited.as_mut()?;
        match session.rows(EXTENSION, &[], account.cost).await {
            Ok(rows) => rows.into_iter().next(),
            Err(failure) => {
                if failure.lost {
                    self.visited = None;
                }
                None
            }
        }
    }

    /// Runs a statement where the extension is. `None`: it failed, which is noted.
    async fn ask(
        &mut self,
        found: &Found,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
        account: &mut Account<'_>,
    ) -> Result<Option<Vec<Row>>, CollectError> {
        let session = match &found.database {
            None => self.main.as_mut(),
            Some(_) => self.visited.as_mut().map(|(_, session)| session),
        };
        let Some(session) = session else { return Ok(None) };
        let schema = found.row.text("schema").unwrap_or_default();
        let part = format!("statement {}", query.name);
        match session.rows_in(&schema, query, parameters, account.cost).await {
            Ok(rows) => {
                self.notices.recovered(&part);
                Ok(Some(rows))
            }
            Err(failure) if failure.lost && found.database.is_none() => {
                Err(self.main_lost(&failure))
            }
            Err(failure) => {
                if failure.lost {
                    self.visited = None;
                }
                self.notices.failed(&part, &failure.message);
                account.problems.push(visit::failed(query, &failure));
                Ok(None)
            }
        }
    }
}

/// The second number of a version such as `1.11`; only the first one is known.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.parse().ok()
}

/// A row of one of the statements for entries.
fn entry(row: &Row) -> Option<Entry> {
    let key = Key {
        user: row.try_get("userid").ok()?,
        database: row.try_get("dbid").ok()?,
        query: row.integer("queryid"),
        is_top: row.flag("toplevel"),
    };
    let mut counters = [None; COUNTERS];
    for (at, counter) in counters.iter_mut().enumerate() {
        // Behind the key and the number of entries.
        *counter = row.try_get::<_, Option<i64>>(5 + at).ok().flatten();
    }
    Some(Entry { key, counters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_and_not_text() {
        assert_eq!(minor("1.4"), Some(4));
        assert_eq!(minor("1.11"), Some(11));
        for other in ["2.0", "1", "1.", "1.x", ""] {
            assert_eq!(minor(other), None, "{other}");
        }
    }
}
