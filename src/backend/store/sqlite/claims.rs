//! Rows that are known by their text alone, and the records that claim them (S7).

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::super::StoreError;
use super::super::rows::{Digest, MetricRow, Push};
use super::micros;

/// Whether the store has the metric's row under its text: claimed by its record earlier, or now.
/// Only rows until `text_until` of the server can be of that kind.
pub(super) fn has_row(
    db: &Transaction<'_>,
    server_id: i64,
    metric: &MetricRow,
) -> Result<bool, StoreError> {
    let Some(record) = metric.record else { return Ok(false) };
    let by_digest = "SELECT id, claimed_by FROM metrics
                      WHERE server_id = ?1 AND at = ?2 AND digest = ?3";
    let mut by_digest = db.prepare_cached(by_digest)?;
    let mut find = |digest: Digest| {
        let key = params![server_id, micros(metric.at), digest];
        let row =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Digest>>(1)?));
        by_digest.query_row(key, row).optional()
    };
    let Some((id, claimed_by)) = find(metric.digest)? else { return Ok(false) };
    if claimed_by.is_some() {
        return Ok(claimed_by == Some(record));
    }
    if find(record)?.is_some() {
        return Ok(true);
    }
    db.prepare_cached("UPDATE metrics SET claimed_by = ?2 WHERE id = ?1")?
        .execute(params![id, record])?;
    Ok(true)
}

/// Notes until when rows are known by their text alone, before a push brings some.
pub(super) fn note_texts(
    db: &Transaction<'_>,
    push: &Push,
    server_id: i64,
    known: Option<i64>,
) -> Result<(), StoreError> {
    let brought = push.text_until().map(micros);
    if brought > known {
        db.prepare_cached("UPDATE servers SET text_until = ?2 WHERE id = ?1")?
            .execute(params![server_id, brought])?;
    }
    Ok(())
}
