//! What collectors send and is not taken, counted by reason.

use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::refusals::{RefusalCount, RefusalReason};
use super::{count, counted, micros, time};

/// Adds to a collector's counts. One that is not there has none.
pub(super) fn add(db: &Transaction<'_>, id: Uuid, new: &RefusalCount) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO refusals (collector_id, reason, count, last_at, last_message)
         SELECT id, ?2, ?3, ?4, ?5 FROM collectors WHERE id = ?1
         ON CONFLICT (collector_id, reason) DO UPDATE SET
             count = count + excluded.count,
             last_message = CASE WHEN excluded.last_at >= last_at
                                 THEN excluded.last_message ELSE last_message END,
             last_at = max(last_at, excluded.last_at)",
    )?
    .execute(params![
        id.to_string(),
        new.reason.as_str(),
        count(new.count),
        micros(new.last_at),
        new.last_message,
    ])?;
    Ok(())
}

/// A collector's counts, by reason.
pub(super) fn of(db: &Transaction<'_>, id: Uuid) -> Result<Vec<RefusalCount>, StoreError> {
    let select = "SELECT * FROM refusals WHERE collector_id = ?1 ORDER BY reason";
    let mut statement = db.prepare_cached(select)?;
    let found: Vec<_> =
        statement.query_map([id.to_string()], refusal)?.collect::<Result<_, _>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// `None` for a reason of a later version.
fn refusal(row: &Row<'_>) -> rusqlite::Result<Option<RefusalCount>> {
    let Some(reason) = RefusalReason::parse(row.get_ref("reason")?.as_str()?) else {
        return Ok(None);
    };
    Ok(Some(RefusalCount {
        reason,
        count: counted(row, "count")?,
        last_at: time(row, "last_at")?,
        last_message: row.get("last_message")?,
    }))
}
