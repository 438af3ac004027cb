//! Configurations of collectors, every version kept.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{ConfigOutcome, KeptConfig, Listing, NewConfig, Page};
use super::{counted, micros, time, time_option, users};

pub(super) fn newest(db: &Transaction<'_>, id: Uuid) -> Result<Option<KeptConfig>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT version, text, created_at, updated_by, applied_at, error FROM configs
          WHERE collector_id = ?1 ORDER BY version DESC LIMIT 1",
    )?;
    Ok(statement.query_row([id.to_string()], config).optional()?)
}

pub(super) fn version(db: &Transaction<'_>, id: &str) -> Result<i64, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT coalesce(max(version), 0) FROM configs WHERE collector_id = ?1")?;
    Ok(statement.query_row([id], |row| row.get(0))?)
}

pub(super) fn versions(
    db: &Transaction<'_>,
    id: Uuid,
    page: Page,
) -> Result<Listing<KeptConfig>, StoreError> {
    let total = db.query_row(
        "SELECT count(*) AS n FROM configs WHERE collector_id = ?1",
        [id.to_string()],
        |row| counted(row, "n"),
    )?;
    let mut statement = db.prepare_cached(
        "SELECT version, '' AS text, created_at, updated_by, applied_at, error FROM configs
          WHERE collector_id = ?1 ORDER BY version DESC LIMIT ?2 OFFSET ?3",
    )?;
    let rows = statement
        .query_map(params![id.to_string(), page.limit(), page.offset()], config)?
        .collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) fn first(db: &Transaction<'_>, new: &NewConfig) -> Result<KeptConfig, StoreError> {
    if let Some(kept) = newest(db, new.collector_id)? {
        return Ok(kept);
    }
    let version = next(db, new)?;
    Ok(KeptConfig {
        version,
        text: new.text.clone(),
        created_at: new.audit.at,
        updated_by: new.audit.actor.clone(),
        applied_at: None,
        error: None,
    })
}

pub(super) fn next(db: &Transaction<'_>, new: &NewConfig) -> Result<i64, StoreError> {
    let id = new.collector_id.to_string();
    let next = version(db, &id)? + 1;
    db.execute(
        "INSERT INTO configs (collector_id, version, text, created_at, updated_by)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, next, new.text, micros(new.audit.at), new.audit.actor],
    )?;
    users::audit(db, &new.audit)?;
    Ok(next)
}

/// Notes what an agent says of its configurations.
pub(super) fn note(
    db: &Transaction<'_>,
    id: &str,
    outcome: &ConfigOutcome,
    at: Timestamp,
) -> Result<(), StoreError> {
    if let Some(version) = outcome.applied {
        db.prepare_cached(
            "UPDATE configs SET applied_at = coalesce(applied_at, ?3), error = NULL
              WHERE collector_id = ?1 AND version = ?2
                AND (applied_at IS NULL OR error IS NOT NULL)",
        )?
        .execute(params![id, version, micros(at)])?;
    }
    if let Some((version, error)) = &outcome.refused {
        db.prepare_cached(
            "UPDATE configs SET error = ?3
              WHERE collector_id = ?1 AND version = ?2 AND error IS NOT ?3",
        )?
        .execute(params![id, version, error])?;
    }
    Ok(())
}

fn config(row: &Row<'_>) -> rusqlite::Result<KeptConfig> {
    Ok(KeptConfig {
        version: row.get("version")?,
        text: row.get("text")?,
        created_at: time(row, "created_at")?,
        updated_by: row.get("updated_by")?,
        applied_at: time_option(row, "applied_at")?,
        error: row.get("error")?,
    })
}
