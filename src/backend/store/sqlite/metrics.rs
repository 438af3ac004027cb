//! Pushes, and the servers and metrics they bring.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::super::rows::{
    Found, LOST_KEPT_MAX, Listing, LostRows, MetricQuery, Page, Push, Pushed, Server, StoredMetric,
};
use super::super::{HOLES_MAX, StoreError, check_brought};
use super::{claims, configs, count, counted, micros, refusals, time, time_option, uuid};

const SERVER: &str = "SELECT s.*, coalesce(c.address, '') AS address,
       c.deregistered_at IS NULL AS is_active
  FROM servers s JOIN collectors c ON c.id = s.collector_id";

/// The newest `:limit` of the range, newest first, one per step, type and database when there is a
/// step. They are answered from the index alone.
const IDS_BY_STEP: &str = "SELECT max(id) AS id FROM metrics
     WHERE server_id = :server AND type IN (SELECT value FROM json_each(:types))
       AND at >= :start AND at < :end
     GROUP BY type, database, at / :step
     ORDER BY max(at) DESC, max(id) DESC LIMIT :limit";

const IDS: &str = "SELECT id FROM metrics
     WHERE server_id = :server AND type IN (SELECT value FROM json_each(:types))
       AND at >= :start AND at < :end
     ORDER BY at DESC, id DESC LIMIT :limit";

const METRIC: &str = "SELECT type, database, at, document FROM metrics WHERE id = ?1";

pub(super) fn push(db: &Transaction<'_>, push: &Push) -> Result<Pushed, StoreError> {
    let collector = push.collector_id.to_string();
    let inserted = db
        .prepare_cached(
            "INSERT INTO pushes (collector_id, batch_id, received_at, metrics, rejected)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (collector_id, batch_id) DO NOTHING",
        )?
        .execute(params![
            collector,
            push.batch_id,
            micros(push.received_at),
            count(push.metrics.len() as u64),
            push.rejected
        ])?;
    let config_version = configs::version(db, &collector)?;
    if inserted == 0 {
        let rejected = db
            .prepare_cached(
                "SELECT rejected FROM pushes WHERE collector_id = ?1 AND batch_id = ?2",
            )?
            .query_row(params![collector, push.batch_id], |row| row.get(0))?;
        note_collector(db, push, &collector, 0)?;
        return Ok(Pushed { duplicate: true, inserted: 0, rejected, config_version });
    }
    let push_id = db.last_insert_rowid();
    if let Some(refused) = &push.refused {
        refusals::add(db, push.collector_id, refused)?;
    }
    let inserted = insert_metrics(db, push, push_id, &collector)?;
    if inserted != push.metrics.len() as u64 {
        db.prepare_cached("UPDATE pushes SET metrics = ?2 WHERE id = ?1")?
            .execute(params![push_id, count(inserted)])?;
    }
    note_collector(db, push, &collector, inserted)?;
    Ok(Pushed { duplicate: false, inserted, rejected: None, config_version })
}

/// Returns how many were not there yet (S5).
fn insert_metrics(
    db: &Transaction<'_>,
    push: &Push,
    push_id: i64,
    collector: &str,
) -> Result<u64, StoreError> {
    let (server_id, text_until) = server_of(db, push, collector)?;
    let mut insert = db.prepare_cached(
        "INSERT INTO metrics (push_id, server_id, type, database, at, document, digest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (server_id, at, digest) WHERE digest IS NOT NULL DO NOTHING",
    )?;
    claims::note_texts(db, push, server_id, text_until)?;
    let mut inserted = 0;
    for metric in &push.metrics {
        let may_be_text = text_until.is_some_and(|until| micros(metric.at) <= until);
        if may_be_text && claims::has_row(db, server_id, metric)? {
            continue;
        }
        inserted += insert.execute(params![
            push_id,
            server_id,
            metric.kind,
            metric.database,
            micros(metric.at),
            metric.document,
            push.key(metric),
        ])? as u64;
    }
    Ok(inserted)
}

/// What every push says of its collector, a known batch's too.
fn note_collector(
    db: &Transaction<'_>,
    push: &Push,
    collector: &str,
    inserted: u64,
) -> Result<(), StoreError> {
    for lost in &push.lost {
        insert_lost(db, collector, lost)?;
    }
    if !push.lost.is_empty() {
        forget_lost(db, collector)?;
    }
    configs::note(db, collector, &push.config, push.received_at)?;
    db.prepare_cached(
        "UPDATE collectors SET last_seen_at = max(coalesce(last_seen_at, 0), ?2),
                metrics_total = metrics_total + ?3, report = coalesce(?4, report)
          WHERE id = ?1",
    )?
    .execute(params![collector, micros(push.received_at), count(inserted), push.report])?;
    Ok(())
}

/// The row of a host that the collector brings metrics of, made by the first push, and the latest
/// time of its rows that are known by their text alone.
fn server_of(
    db: &Transaction<'_>,
    push: &Push,
    collector: &str,
) -> Result<(i64, Option<i64>), StoreError> {
    let known = db
        .prepare_cached(
            "SELECT id, text_until FROM servers
              WHERE collector_id = ?1 AND hostname = ?2 AND brought = ?3",
        )?
        .query_row(params![collector, push.hostname, push.is_brought], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    if push.is_brought {
        let brought = "SELECT count(*) AS n FROM servers WHERE collector_id = ?1 AND brought";
        let brought = db.query_row(brought, [collector], |row| counted(row, "n"))?;
        check_brought(brought, push)?;
    }
    let id = db
        .prepare_cached(
            "INSERT INTO servers (collector_id, name, hostname, created_at, updated_at, brought)
             VALUES (?1, ?2, ?2, ?3, ?3, ?4)
             RETURNING id",
        )?
        .query_row(
            params![collector, push.hostname, micros(push.received_at), push.is_brought],
            |row| row.get(0),
        )?;
    Ok((id, None))
}

fn insert_lost(db: &Transaction<'_>, collector: &str, lost: &LostRows) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO lost
             (collector_id, queue_id, first, last, records, reason, at, first_at, last_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        collector,
        lost.queue_id.to_string(),
        count(lost.from),
        count(lost.to),
        count(lost.records),
        lost.reason,
        micros(lost.at),
        lost.first_at.map(micros),
        lost.last_at.map(micros),
    ])?;
    Ok(())
}

/// The oldest losses go when a collector has too many, and are counted.
fn forget_lost(db: &Transaction<'_>, collector: &str) -> Result<(), StoreError> {
    let gone = db
        .prepare_cached(
            "DELETE FROM lost WHERE collector_id = ?1
                AND (queue_id, first, last, reason, at, records) IN (
                    SELECT queue_id, first, last, reason, at, records FROM lost
                     WHERE collector_id = ?1
                     ORDER BY at DESC, first DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![collector, LOST_KEPT_MAX])?;
    if gone > 0 {
        let add = "UPDATE collectors SET lost_forgotten = lost_forgotten + ?2 WHERE id = ?1";
        db.execute(add, params![collector, count(gone as u64)])?;
    }
    Ok(())
}

pub(super) fn servers(db: &Transaction<'_>, page: Page) -> Result<Listing<Server>, StoreError> {
    let total = db.query_row("SELECT count(*) AS n FROM servers", [], |row| counted(row, "n"))?;
    let mut statement = db
        .prepare_cached(&format!("{SERVER} ORDER BY s.brought, s.name, s.id LIMIT ?1 OFFSET ?2"))?;
    let rows = statement
        .query_map(params![page.limit(), page.offset()], as_server)?
        .collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) fn server(db: &Transaction<'_>, id: i64) -> Result<Option<Server>, StoreError> {
    let mut statement = db.prepare_cached(&format!("{SERVER} WHERE s.id = ?1"))?;
    Ok(statement.query_row([id], as_server).optional()?)
}

pub(super) fn select(db: &Transaction<'_>, query: &MetricQuery) -> Result<Found, StoreError> {
    // One by one: what has no room is not read.
    let (mut found, mut metric) = (Found::default(), db.prepare_cached(METRIC)?);
    for id in ids(db, query)? {
        if !found.take(metric.query_row([id], stored)?, query) {
            break;
        }
    }
    Ok(found.in_order())
}

fn ids(db: &Transaction<'_>, query: &MetricQuery) -> Result<Vec<i64>, StoreError> {
    // Naming every type keeps the index in use: it begins with server and type.
    let types = match &query.kind {
        Some(kind) => vec![kind.clone()],
        None => types_of(db, query.server_id)?,
    };
    let types = serde_json::Value::from(types).to_string();
    let (start, end) = (micros(query.start), micros(query.end));
    let id = |row: &Row<'_>| row.get("id");
    let found = match query.step {
        Some(step) => db
            .prepare_cached(IDS_BY_STEP)?
            .query_map(
                named_params! {
                    ":server": query.server_id, ":types": types, ":start": start, ":end": end,
                    ":limit": query.limit,
                    ":step": i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1),
                },
                id,
            )?
            .collect::<Result<_, _>>()?,
        None => db
            .prepare_cached(IDS)?
            .query_map(
                named_params! {
                    ":server": query.server_id, ":types": types, ":start": start, ":end": end,
                    ":limit": query.limit,
                },
                id,
            )?
            .collect::<Result<_, _>>()?,
    };
    Ok(found)
}

/// The types stored of one server, by jumping from one to the next in the index.
fn types_of(db: &Transaction<'_>, server: i64) -> Result<Vec<String>, StoreError> {
    let mut statement = db.prepare_cached(
        "WITH RECURSIVE kinds (type) AS (
             SELECT min(type) FROM metrics WHERE server_id = ?1
             UNION ALL
             SELECT (SELECT min(m.type) FROM metrics m
                      WHERE m.server_id = ?1 AND m.type > kinds.type)
               FROM kinds WHERE kinds.type IS NOT NULL)
         SELECT type FROM kinds WHERE type IS NOT NULL",
    )?;
    Ok(statement.query_map([server], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

pub(super) fn lost(
    db: &Transaction<'_>,
    id: Uuid,
    page: Page,
) -> Result<Listing<LostRows>, StoreError> {
    let total = db.query_row(
        "SELECT count(*) AS n FROM lost WHERE collector_id = ?1",
        [id.to_string()],
        |row| counted(row, "n"),
    )?;
    let mut statement = db.prepare_cached(
        "SELECT * FROM lost WHERE collector_id = ?1 ORDER BY at DESC, first LIMIT ?2 OFFSET ?3",
    )?;
    let rows = statement
        .query_map(params![id.to_string(), page.limit(), page.offset()], as_lost)?
        .collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) fn holes(
    db: &Transaction<'_>,
    id: Uuid,
    start: Timestamp,
    end: Timestamp,
) -> Result<Vec<LostRows>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT * FROM (
             SELECT *, coalesce(first_at, at) AS began FROM lost
              WHERE collector_id = ?1 AND coalesce(last_at, at) >= ?2
                AND coalesce(first_at, at) < ?3
              ORDER BY began DESC, first DESC LIMIT ?4)
          ORDER BY began, first",
    )?;
    let values = params![id.to_string(), micros(start), micros(end), HOLES_MAX];
    Ok(statement.query_map(values, as_lost)?.collect::<Result<_, _>>()?)
}

fn as_lost(row: &Row<'_>) -> rusqlite::Result<LostRows> {
    Ok(LostRows {
        queue_id: uuid(row, "queue_id")?,
        from: counted(row, "first")?,
        to: counted(row, "last")?,
        records: counted(row, "records")?,
        reason: row.get("reason")?,
        at: time(row, "at")?,
        first_at: time_option(row, "first_at")?,
        last_at: time_option(row, "last_at")?,
    })
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredMetric> {
    Ok(StoredMetric {
        kind: row.get("type")?,
        database: row.get("database")?,
        at: time(row, "at")?,
        document: row.get("document")?,
    })
}

fn as_server(row: &Row<'_>) -> rusqlite::Result<Server> {
    Ok(Server {
        id: row.get("id")?,
        name: row.get("name")?,
        hostname: row.get("hostname")?,
        address: row.get("address")?,
        environment: row.get("environment")?,
        collector_id: Some(uuid(row, "collector_id")?),
        brought: row.get("brought")?,
        is_active: row.get("is_active")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    })
}
