//! Pushes, and the servers and metrics they bring.

use std::borrow::Cow;
use std::pin::pin;

use deadpool_postgres::{Client, Transaction};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::rows::{
    Found, LOST_KEPT_MAX, Listing, LostRows, MetricQuery, MetricRow, Page, Push, Pushed, Server,
    StoredMetric,
};
use super::super::{HOLES_MAX, StoreError, check_brought};
use super::{claims, configs, count, counted, refusals, text};
use crate::metric;

/// Rows of one statement: a few hundred KiB of documents.
const ROWS_AT_ONCE: usize = 500;

const SERVER: &str = "SELECT s.*, coalesce(c.address, '') AS address,
       c.deregistered_at IS NULL AS is_active
  FROM servers s JOIN collectors c ON c.id = s.collector_id";

const INSERT: &str =
    "INSERT INTO metrics (push_id, server_id, type, database, at, document, digest)
    SELECT $1, $2, m.type, m.database, m.at, m.document::jsonb, m.digest
      FROM unnest($3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::uuid[])
           WITH ORDINALITY AS m (type, database, at, document, digest, n)
     ORDER BY m.n
    ON CONFLICT (server_id, at, digest) WHERE digest IS NOT NULL DO NOTHING";

/// Locks the collector until the commit: two batches with the same metrics in another order would
/// else wait for each other.
const CONFIG_VERSION: &str = "SELECT
       (SELECT coalesce(max(version), 0) FROM configs WHERE collector_id = c.id)
  FROM collectors c WHERE c.id = $1 FOR NO KEY UPDATE";

/// The newest of the range, newest first: one per step, type and database when there is a step.
/// They are answered from the index alone.
const IDS_BY_STEP: &str = "SELECT max(id) AS id FROM metrics
     WHERE server_id = $1 AND type = ANY ($2) AND at >= $3 AND at < $4
     GROUP BY type, database, (extract(epoch FROM at) * 1000000)::bigint / $6
     ORDER BY max(at) DESC, max(id) DESC LIMIT $5";

const IDS: &str = "SELECT id FROM metrics
     WHERE server_id = $1 AND type = ANY ($2) AND at >= $3 AND at < $4
     ORDER BY at DESC, id DESC LIMIT $5";

/// Metrics in the order of their ids. Behind `OFFSET` each is looked up by itself, when its turn
/// comes: sorted by the server, all their documents would be unpacked and written down first.
const METRICS: &str = "SELECT m.type, m.database, m.at, m.document
  FROM unnest($1::bigint[]) AS i (id)
 CROSS JOIN LATERAL (
    SELECT type, database, at, document::text FROM metrics WHERE id = i.id OFFSET 0) m";

/// Metrics of one statement. The server sends them all, whether there is room for them or not.
const METRICS_AT_ONCE: usize = 256;
/// Of the first: large documents are seen before many of them are asked for.
const METRICS_AT_FIRST: usize = 4;

pub(super) async fn push(db: &mut Client, push: &Push) -> Result<Pushed, StoreError> {
    let transaction = db.transaction().await?;
    let statement = transaction
        .prepare_cached(
            "INSERT INTO pushes (collector_id, batch_id, received_at, metrics, rejected)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (collector_id, batch_id) DO NOTHING
             RETURNING id",
        )
        .await?;
    let metrics = count(push.metrics.len() as u64);
    let inserted = transaction
        .query_opt(
            &statement,
            &[&push.collector_id, &push.batch_id, &push.received_at, &metrics, &push.rejected],
        )
        .await?;
    let statement = transaction.prepare_cached(CONFIG_VERSION).await?;
    let config_version =
        transaction.query_one(&statement, &[&push.collector_id]).await?.try_get(0)?;
    let pushed = if let Some(row) = inserted {
        if let Some(refused) = &push.refused {
            refusals::add(&transaction, push.collector_id, refused).await?;
        }
        let inserted = insert_metrics(&transaction, push, row.try_get(0)?).await?;
        Pushed { duplicate: false, inserted, rejected: None, config_version }
    } else {
        let rejected = first_rejected(&transaction, push).await?;
        Pushed { duplicate: true, inserted: 0, rejected, config_version }
    };
    note_collector(&transaction, push, pushed.inserted).await?;
    transaction.commit().await?;
    Ok(pushed)
}

/// Returns how many were not there yet (S5).
async fn insert_metrics(
    transaction: &Transaction<'_>,
    push: &Push,
    push_id: i64,
) -> Result<u64, StoreError> {
    let (server_id, text_until) = server_of(transaction, push).await?;
    claims::note_texts(transaction, push, server_id, text_until).await?;
    let mut inserted = 0;
    for rows in push.metrics.chunks(ROWS_AT_ONCE) {
        let rows = claims::without_rows(transaction, server_id, text_until, rows).await?;
        inserted += insert(transaction, push, (push_id, server_id), &rows).await?;
    }
    if inserted != push.metrics.len() as u64 {
        let correct = "UPDATE pushes SET metrics = $2 WHERE id = $1";
        transaction.execute(correct, &[&push_id, &count(inserted)]).await?;
    }
    Ok(inserted)
}

/// What every push says of its collector, a known batch's too.
async fn note_collector(
    transaction: &Transaction<'_>,
    push: &Push,
    inserted: u64,
) -> Result<(), StoreError> {
    for lost in &push.lost {
        insert_lost(transaction, push.collector_id, lost).await?;
    }
    if !push.lost.is_empty() {
        forget_lost(transaction, push.collector_id).await?;
    }
    configs::note(transaction, push.collector_id, &push.config, push.received_at).await?;
    let statement = transaction
        .prepare_cached(
            "UPDATE collectors SET last_seen_at = greatest(last_seen_at, $2),
                    metrics_total = metrics_total + $3, report = coalesce($4, report)
              WHERE id = $1",
        )
        .await?;
    let inserted = count(inserted);
    let values: [&(dyn ToSql + Sync); 4] =
        [&push.collector_id, &push.received_at, &inserted, &push.report];
    transaction.execute(&statement, &values).await?;
    Ok(())
}

/// What the first push of a batch id answered as refused.
async fn first_rejected(
    transaction: &Transaction<'_>,
    push: &Push,
) -> Result<Option<String>, StoreError> {
    let rejected = "SELECT rejected FROM pushes WHERE collector_id = $1 AND batch_id = $2";
    let statement = transaction.prepare_cached(rejected).await?;
    let row = transaction.query_one(&statement, &[&push.collector_id, &push.batch_id]).await?;
    Ok(row.try_get(0)?)
}

/// The row of a host that the collector brings metrics of, made by the first push, and the latest
/// time of its rows that are known by their text alone.
async fn server_of(
    transaction: &Transaction<'_>,
    push: &Push,
) -> Result<(i64, Option<Timestamp>), StoreError> {
    let known = "SELECT id, text_until FROM servers
                  WHERE collector_id = $1 AND hostname = $2 AND brought = $3";
    let statement = transaction.prepare_cached(known).await?;
    let values: [&(dyn ToSql + Sync); 3] = [&push.collector_id, &push.hostname, &push.is_brought];
    let row = transaction.query_opt(&statement, &values).await?;
    if let Some(row) = row {
        return Ok((row.try_get(0)?, row.try_get(1)?));
    }
    if push.is_brought {
        let brought = "SELECT count(*) AS n FROM servers WHERE collector_id = $1 AND brought";
        let brought = transaction.query_one(brought, &[&push.collector_id]).await?;
        check_brought(counted(&brought, "n")?, push)?;
    }
    let row = transaction
        .query_one(
            "INSERT INTO servers (collector_id, name, hostname, created_at, updated_at, brought)
             VALUES ($1, $2, $2, $3, $3, $4)
             ON CONFLICT (collector_id, hostname, brought)
             DO UPDATE SET updated_at = excluded.updated_at
             RETURNING id, text_until",
            &[&push.collector_id, &push.hostname, &push.received_at, &push.is_brought],
        )
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

async fn insert(
    transaction: &Transaction<'_>,
    push: &Push,
    (push_id, server_id): (i64, i64),
    rows: &[&MetricRow],
) -> Result<u64, StoreError> {
    let kinds: Vec<&str> = rows.iter().map(|row| row.kind.as_str()).collect();
    let databases: Vec<Option<Cow<'_, str>>> =
        rows.iter().map(|row| row.database.as_deref().map(text)).collect();
    let times: Vec<Timestamp> = rows.iter().map(|row| row.at).collect();
    let documents: Vec<Cow<'_, str>> = rows.iter().map(|row| document(&row.document)).collect();
    let digests: Vec<Option<Uuid>> =
        rows.iter().map(|row| push.key(row).map(Uuid::from_bytes)).collect();
    let statement = transaction.prepare_cached(INSERT).await?;
    let values: [&(dyn ToSql + Sync); 7] =
        [&push_id, &server_id, &kinds, &databases, &times, &documents, &digests];
    Ok(transaction.execute(&statement, &values).await?)
}

/// A document as `jsonb` takes it, which has no character 0.
fn document(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u0000") {
        return json.into();
    }
    match metric::parse_value(json.as_bytes()) {
        Ok(value) => without_zeros(value).to_string().into(),
        Err(_) => json.into(),
    }
}

fn without_zeros(value: Value) -> Value {
    match value {
        Value::String(string) => Value::String(text(&string).into_owned()),
        Value::Array(items) => items.into_iter().map(without_zeros).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| (text(&key).into_owned(), without_zeros(value)))
            .collect(),
        other => other,
    }
}

async fn insert_lost(
    transaction: &Transaction<'_>,
    collector: Uuid,
    lost: &LostRows,
) -> Result<(), StoreError> {
    let statement = transaction
        .prepare_cached(
            "INSERT INTO lost
                 (collector_id, queue_id, first, last, records, reason, at, first_at, last_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        )
        .await?;
    let (from, to, records) = (count(lost.from), count(lost.to), count(lost.records));
    let (queue, reason) = (&lost.queue_id, text(&lost.reason));
    let times = (&lost.at, &lost.first_at, &lost.last_at);
    let values: [&(dyn ToSql + Sync); 9] =
        [&collector, queue, &from, &to, &records, &reason, times.0, times.1, times.2];
    transaction.execute(&statement, &values).await?;
    Ok(())
}

/// The oldest losses go when a collector has too many, and are counted.
async fn forget_lost(transaction: &Transaction<'_>, collector: Uuid) -> Result<(), StoreError> {
    let statement = transaction
        .prepare_cached(
            "DELETE FROM lost WHERE collector_id = $1
                AND (queue_id, first, last, reason, at, records) IN (
                    SELECT queue_id, first, last, reason, at, records FROM lost
                     WHERE collector_id = $1
                     ORDER BY at DESC, first DESC OFFSET $2)",
        )
        .await?;
    let gone = transaction.execute(&statement, &[&collector, &LOST_KEPT_MAX]).await?;
    if gone > 0 {
        let add = "UPDATE collectors SET lost_forgotten = lost_forgotten + $2 WHERE id = $1";
        transaction.execute(add, &[&collector, &count(gone)]).await?;
    }
    Ok(())
}

pub(super) async fn servers(db: &Client, page: Page) -> Result<Listing<Server>, StoreError> {
    let total = counted(&db.query_one("SELECT count(*) AS n FROM servers", &[]).await?, "n")?;
    let select = format!("{SERVER} ORDER BY s.brought, s.name, s.id LIMIT $1 OFFSET $2");
    let rows = db.query(&select, &[&page.limit(), &page.offset()]).await?;
    Ok(Listing { rows: rows.iter().map(as_server).collect::<Result<_, _>>()?, total })
}

pub(super) async fn server(db: &Client, id: i64) -> Result<Option<Server>, StoreError> {
    let row = db.query_opt(&format!("{SERVER} WHERE s.id = $1"), &[&id]).await?;
    row.as_ref().map(as_server).transpose()
}

pub(super) async fn select(db: &Client, query: &MetricQuery) -> Result<Found, StoreError> {
    // Naming every type keeps the index in use: it begins with server and type.
    let kinds = match &query.kind {
        Some(kind) => vec![text(kind).into_owned()],
        None => types_of(db, query.server_id).await?,
    };
    let (start, end) = (within(query.start), within(query.end));
    let limit = i64::from(query.limit);
    let values: [&(dyn ToSql + Sync); 5] = [&query.server_id, &kinds, &start, &end, &limit];
    let rows = if let Some(step) = query.step {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1);
        let statement = db.prepare_cached(IDS_BY_STEP).await?;
        db.query(&statement, &[&values[..], &[&step]].concat()).await?
    } else {
        let statement = db.prepare_cached(IDS).await?;
        db.query(&statement, &values).await?
    };
    let ids: Vec<i64> = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
    let statement = db.prepare_cached(METRICS).await?;
    let (mut found, mut rest, mut bytes) = (Found::default(), &ids[..], 0);
    let mut at_once = METRICS_AT_FIRST;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(at_once.min(rest.len()));
        rest = later;
        // Row by row: what has no room is not held.
        let mut rows = pin!(db.query_raw(&statement, [&now]).await?);
        while let Some(row) = rows.try_next().await? {
            let metric = stored(&row)?;
            bytes += metric.document.len();
            if !found.take(metric, query) {
                return Ok(found.in_order());
            }
        }
        // As many as there is room for, if they go on like this.
        let average = bytes / (ids.len() - rest.len());
        let room = query.bytes_max.saturating_sub(bytes);
        at_once = (room / average.max(1)).clamp(1, METRICS_AT_ONCE);
    }
    Ok(found.in_order())
}

/// No metric is older than 2000, and PostgreSQL's calendar begins after jiff's.
fn within(at: Timestamp) -> Timestamp {
    at.max(Timestamp::UNIX_EPOCH)
}

/// The types stored of one server, by jumping from one to the next in the index.
async fn types_of(db: &Client, server: i64) -> Result<Vec<String>, StoreError> {
    let statement = db
        .prepare_cached(
            "WITH RECURSIVE kinds (type) AS (
                 SELECT min(type) FROM metrics WHERE server_id = $1
                 UNION ALL
                 SELECT (SELECT min(m.type) FROM metrics m
                          WHERE m.server_id = $1 AND m.type > kinds.type)
                   FROM kinds WHERE kinds.type IS NOT NULL)
             SELECT type FROM kinds WHERE type IS NOT NULL",
        )
        .await?;
    let rows = db.query(&statement, &[&server]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

pub(super) async fn lost(
    db: &Client,
    id: Uuid,
    page: Page,
) -> Result<Listing<LostRows>, StoreError> {
    let counting = "SELECT count(*) AS n FROM lost WHERE collector_id = $1";
    let total = counted(&db.query_one(counting, &[&id]).await?, "n")?;
    let rows = db
        .query(
            "SELECT * FROM lost WHERE collector_id = $1
              ORDER BY at DESC, first LIMIT $2 OFFSET $3",
            &[&id, &page.limit(), &page.offset()],
        )
        .await?;
    Ok(Listing { rows: rows.iter().map(as_lost).collect::<Result<_, _>>()?, total })
}

pub(super) async fn holes(
    db: &Client,
    id: Uuid,
    start: Timestamp,
    end: Timestamp,
) -> Result<Vec<LostRows>, StoreError> {
    let rows = db
        .query(
            "SELECT * FROM (
                 SELECT *, coalesce(first_at, at) AS began FROM lost
                  WHERE collector_id = $1 AND coalesce(last_at, at) >= $2
                    AND coalesce(first_at, at) < $3
                  ORDER BY began DESC, first DESC LIMIT $4) AS newest
              ORDER BY began, first",
            &[&id, &within(start), &within(end), &i64::from(HOLES_MAX)],
        )
        .await?;
    rows.iter().map(as_lost).collect()
}

fn as_lost(row: &Row) -> Result<LostRows, StoreError> {
    Ok(LostRows {
        queue_id: row.try_get("queue_id")?,
        from: counted(row, "first")?,
        to: counted(row, "last")?,
        records: counted(row, "records")?,
        reason: row.try_get("reason")?,
        at: row.try_get("at")?,
        first_at: row.try_get("first_at")?,
        last_at: row.try_get("last_at")?,
    })
}

fn stored(row: &Row) -> Result<StoredMetric, StoreError> {
    Ok(StoredMetric {
        kind: row.try_get("type")?,
        database: row.try_get("database")?,
        at: row.try_get("at")?,
        document: row.try_get("document")?,
    })
}

fn as_server(row: &Row) -> Result<Server, StoreError> {
    Ok(Server {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hostname: row.try_get("hostname")?,
        address: row.try_get("address")?,
        environment: row.try_get("environment")?,
        collector_id: Some(row.try_get("collector_id")?),
        brought: row.try_get("brought")?,
        is_active: row.try_get("is_active")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
