//! What collectors send and is not taken, counted by reason.

use std::collections::HashMap;

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::StoreError;
use super::super::refusals::{RefusalCount, RefusalReason};
use super::{count, counted};

pub(super) async fn note(db: &mut Client, all: &[(Uuid, RefusalCount)]) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    // In one order: two backends that write the same rows do not wait for each other.
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by_key(|(id, refusals)| (*id, refusals.reason));
    for (id, refusals) in all {
        add(&transaction, *id, refusals).await?;
    }
    Ok(transaction.commit().await?)
}

/// Adds to a collector's counts. One that is not there has none.
pub(super) async fn add(
    transaction: &Transaction<'_>,
    id: Uuid,
    new: &RefusalCount,
) -> Result<(), StoreError> {
    let statement = transaction
        .prepare_cached(
            "INSERT INTO refusals AS kept (collector_id, reason, count, last_at, last_message)
             SELECT id, $2::text, $3::bigint, $4::timestamptz, $5::text
               FROM collectors WHERE id = $1
             ON CONFLICT (collector_id, reason) DO UPDATE SET
                 count = kept.count + excluded.count,
                 last_message = CASE WHEN excluded.last_at >= kept.last_at
                                     THEN excluded.last_message ELSE kept.last_message END,
                 last_at = greatest(kept.last_at, excluded.last_at)",
        )
        .await?;
    let (reason, number) = (new.reason.as_str(), count(new.count));
    let values: [&(dyn ToSql + Sync); 5] = [&id, &reason, &number, &new.last_at, &new.last_message];
    transaction.execute(&statement, &values).await?;
    Ok(())
}

/// The counts of these collectors, by reason.
pub(super) async fn of(
    db: &Client,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Vec<RefusalCount>>, StoreError> {
    let select = "SELECT * FROM refusals WHERE collector_id = ANY ($1) ORDER BY reason";
    let statement = db.prepare_cached(select).await?;
    let mut found: HashMap<Uuid, Vec<RefusalCount>> = HashMap::new();
    for row in db.query(&statement, &[&ids]).await? {
        // One of a later version is not known.
        let Some(reason) = RefusalReason::parse(row.try_get("reason")?) else { continue };
        found.entry(row.try_get("collector_id")?).or_default().push(RefusalCount {
            reason,
            count: counted(&row, "count")?,
            last_at: row.try_get("last_at")?,
            last_message: row.try_get("last_message")?,
        });
    }
    Ok(found)
}
