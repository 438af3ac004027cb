//! What lets hosts register.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::registration::{KeptSecret, NewSecret};
use super::super::rows::Audit;
use super::{count, counted, micros, time, time_option, users, wrong};

pub(super) fn add(db: &Transaction<'_>, new: &NewSecret) -> Result<(), StoreError> {
    if let Some(id) = new.collector_id {
        end_releases(db, id, new.audit.at)?;
    }
    db.execute(
        "INSERT INTO registration_secrets
             (name, mark, uses_max, expires_at, reclaims, collector_id, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            new.name,
            new.mark,
            new.uses_max.map(count),
            new.expires_at.map(micros),
            new.reclaims,
            new.collector_id.map(|id| id.to_string()),
            micros(new.audit.at),
        ],
    )?;
    users::audit(db, &new.audit)
}

/// Ends the secrets that bring this collector back.
pub(super) fn end_releases(
    db: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.execute(
        "UPDATE registration_secrets SET revoked_at = ?2
          WHERE collector_id = ?1 AND revoked_at IS NULL",
        params![id.to_string(), micros(now)],
    )?;
    Ok(())
}

pub(super) fn keep_of_file(db: &Transaction<'_>, new: &NewSecret) -> Result<(), StoreError> {
    let same = marked(db, &new.mark)?;
    if same.as_ref().is_some_and(|same| same.name == new.name) {
        return Ok(());
    }
    db.execute(
        "UPDATE registration_secrets SET name = ?2 WHERE name = ?1 AND revoked_at IS NOT NULL",
        [&new.name, &new.name_until()],
    )?;
    db.execute("DELETE FROM registration_secrets WHERE name = ?1", [&new.name])?;
    match same {
        None => add(db, new),
        Some(same) => {
            if new.was_named(&same.name) {
                let rename = "UPDATE registration_secrets SET name = ?2 WHERE id = ?1";
                db.execute(rename, params![same.id, new.name])?;
            }
            Ok(())
        }
    }
}

pub(super) fn all(db: &Transaction<'_>) -> Result<Vec<KeptSecret>, StoreError> {
    let mut statement = db.prepare_cached("SELECT * FROM registration_secrets ORDER BY name")?;
    Ok(statement.query_map([], secret)?.collect::<Result<_, _>>()?)
}

pub(super) fn marked(db: &Transaction<'_>, mark: &[u8]) -> Result<Option<KeptSecret>, StoreError> {
    let mut statement = db.prepare_cached("SELECT * FROM registration_secrets WHERE mark = ?1")?;
    Ok(statement.query_row([mark], secret).optional()?)
}

pub(super) fn revoke(db: &Transaction<'_>, name: &str, audit: &Audit) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE registration_secrets SET revoked_at = coalesce(revoked_at, ?2) WHERE name = ?1",
        params![name, micros(audit.at)],
    )?;
    if changed > 0 {
        users::audit(db, audit)?;
    }
    Ok(changed > 0)
}

/// Takes one use; `false` when there is none to take.
pub(super) fn use_up(db: &Transaction<'_>, id: i64, now: Timestamp) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE registration_secrets SET uses = uses + 1, used_at = ?2
          WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)
            AND (uses_max IS NULL OR uses < uses_max)",
        params![id, micros(now)],
    )?;
    Ok(changed > 0)
}

fn secret(row: &Row<'_>) -> rusqlite::Result<KeptSecret> {
    let uses_max: Option<i64> = row.get("uses_max")?;
    let collector_id: Option<String> = row.get("collector_id")?;
    Ok(KeptSecret {
        id: row.get("id")?,
        name: row.get("name")?,
        uses: counted(row, "uses")?,
        uses_max: uses_max.map(|max| u64::try_from(max).unwrap_or(0)),
        expires_at: time_option(row, "expires_at")?,
        reclaims: row.get("reclaims")?,
        collector_id: collector_id.map(|id| id.parse()).transpose().map_err(wrong)?,
        created_at: time(row, "created_at")?,
        used_at: time_option(row, "used_at")?,
        revoked_at: time_option(row, "revoked_at")?,
    })
}
