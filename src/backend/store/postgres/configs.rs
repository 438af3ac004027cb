//! Configurations of collectors, every version kept.

use deadpool_postgres::{Client, GenericClient};
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{ConfigOutcome, KeptConfig, Listing, NewConfig, Page};
use super::{counted, users};

pub(super) async fn newest(
    db: &impl GenericClient,
    id: Uuid,
) -> Result<Option<KeptConfig>, StoreError> {
    let statement = db
        .prepare_cached(
            "SELECT version, text, created_at, updated_by, applied_at, error FROM configs
              WHERE collector_id = $1 ORDER BY version DESC LIMIT 1",
        )
        .await?;
    let row = db.query_opt(&statement, &[&id]).await?;
    row.as_ref().map(config).transpose()
}

pub(super) async fn versions(
    db: &Client,
    id: Uuid,
    page: Page,
) -> Result<Listing<KeptConfig>, StoreError> {
    let counting = "SELECT count(*) AS n FROM configs WHERE collector_id = $1";
    let total = counted(&db.query_one(counting, &[&id]).await?, "n")?;
    let rows = db
        .query(
            "SELECT version, '' AS text, created_at, updated_by, applied_at, error FROM configs
              WHERE collector_id = $1 ORDER BY version DESC LIMIT $2 OFFSET $3",
            &[&id, &page.limit(), &page.offset()],
        )
        .await?;
    Ok(Listing { rows: rows.iter().map(config).collect::<Result<_, _>>()?, total })
}

pub(super) async fn first(db: &mut Client, new: &NewConfig) -> Result<KeptConfig, StoreError> {
    let transaction = db.transaction().await?;
    lock(&transaction, new.collector_id).await?;
    if newest(&transaction, new.collector_id).await?.is_none() {
        insert(&transaction, new, 1).await?;
    }
    let kept = newest(&transaction, new.collector_id).await?;
    transaction.commit().await?;
    kept.ok_or_else(|| StoreError::Damaged("a configuration is gone again".to_owned()))
}

pub(super) async fn next(db: &mut Client, new: &NewConfig) -> Result<i64, StoreError> {
    let transaction = db.transaction().await?;
    lock(&transaction, new.collector_id).await?;
    let newest = newest(&transaction, new.collector_id).await?;
    let next = newest.map_or(1, |config| config.version + 1);
    insert(&transaction, new, next).await?;
    transaction.commit().await?;
    Ok(next)
}

/// One writer at a time for each collector; a conflict when there is no such collector.
async fn lock(db: &impl GenericClient, id: Uuid) -> Result<(), StoreError> {
    let locking = "SELECT 1 FROM collectors WHERE id = $1 FOR NO KEY UPDATE";
    match db.query_opt(locking, &[&id]).await? {
        Some(_) => Ok(()),
        None => Err(StoreError::Conflict(format!("there is no collector {id}"))),
    }
}

async fn insert(db: &impl GenericClient, new: &NewConfig, version: i64) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO configs (collector_id, version, text, created_at, updated_by)
         VALUES ($1, $2, $3, $4, $5)",
        &[&new.collector_id, &version, &new.text, &new.audit.at, &new.audit.actor],
    )
    .await?;
    users::audit(db, &new.audit).await
}

/// Notes what an agent says of its configurations.
pub(super) async fn note(
    db: &impl GenericClient,
    id: Uuid,
    outcome: &ConfigOutcome,
    at: Timestamp,
) -> Result<(), StoreError> {
    if let Some(version) = outcome.applied {
        let statement = db
            .prepare_cached(
                "UPDATE configs SET applied_at = coalesce(applied_at, $3), error = NULL
                  WHERE collector_id = $1 AND version = $2
                    AND (applied_at IS NULL OR error IS NOT NULL)",
            )
            .await?;
        db.execute(&statement, &[&id, &version, &at]).await?;
    }
    if let Some((version, error)) = &outcome.refused {
        let statement = db
            .prepare_cached(
                "UPDATE configs SET error = $3
                  WHERE collector_id = $1 AND version = $2 AND error IS DISTINCT FROM $3",
            )
            .await?;
        db.execute(&statement, &[&id, version, error]).await?;
    }
    Ok(())
}

fn config(row: &Row) -> Result<KeptConfig, StoreError> {
    Ok(KeptConfig {
        version: row.try_get("version")?,
        text: row.try_get("text")?,
        created_at: row.try_get("created_at")?,
        updated_by: row.try_get("updated_by")?,
        applied_at: row.try_get("applied_at")?,
        error: row.try_get("error")?,
    })
}
