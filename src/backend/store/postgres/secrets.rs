//! What lets hosts register.

use deadpool_postgres::{Client, Transaction};
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::StoreError;
use super::super::registration::{KeptSecret, NewSecret};
use super::super::rows::Audit;
use super::{count, counted, users};

pub(super) async fn add(db: &mut Client, new: &NewSecret) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    insert(&transaction, new).await?;
    Ok(transaction.commit().await?)
}

async fn insert(db: &Transaction<'_>, new: &NewSecret) -> Result<(), StoreError> {
    if let Some(id) = new.collector_id {
        end_releases(db, id, new.audit.at).await?;
    }
    db.execute(
        "INSERT INTO registration_secrets
             (name, mark, uses_max, expires_at, reclaims, collector_id, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            &new.name,
            &new.mark,
            &new.uses_max.map(count),
            &new.expires_at,
            &new.reclaims,
            &new.collector_id,
            &new.audit.at,
        ],
    )
    .await?;
    users::audit(db, &new.audit).await
}

/// Ends the secrets that bring this collector back.
pub(super) async fn end_releases(
    db: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.execute(
        "UPDATE registration_secrets SET revoked_at = $2
          WHERE collector_id = $1 AND revoked_at IS NULL",
        &[&id, &now],
    )
    .await?;
    Ok(())
}

pub(super) async fn keep_of_file(db: &mut Client, new: &NewSecret) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    // Several backends of one store start at once.
    let lock = "LOCK TABLE registration_secrets IN SHARE ROW EXCLUSIVE MODE";
    transaction.batch_execute(lock).await?;
    let same = "SELECT * FROM registration_secrets WHERE mark = $1";
    let same = transaction.query_opt(same, &[&new.mark]).await?;
    let same = same.as_ref().map(secret).transpose()?;
    if same.as_ref().is_some_and(|same| same.name == new.name) {
        return Ok(());
    }
    let revoked =
        "UPDATE registration_secrets SET name = $2 WHERE name = $1 AND revoked_at IS NOT NULL";
    transaction.execute(revoked, &[&new.name, &new.name_until()]).await?;
    let before = "DELETE FROM registration_secrets WHERE name = $1";
    transaction.execute(before, &[&new.name]).await?;
    match same {
        None => insert(&transaction, new).await?,
        Some(same) if new.was_named(&same.name) => {
            let rename = "UPDATE registration_secrets SET name = $2 WHERE id = $1";
            transaction.execute(rename, &[&same.id, &new.name]).await?;
        }
        Some(_) => {}
    }
    Ok(transaction.commit().await?)
}

pub(super) async fn all(db: &Client) -> Result<Vec<KeptSecret>, StoreError> {
    let rows = db.query("SELECT * FROM registration_secrets ORDER BY name", &[]).await?;
    rows.iter().map(secret).collect()
}

pub(super) async fn marked(db: &Client, mark: &[u8]) -> Result<Option<KeptSecret>, StoreError> {
    let select = "SELECT * FROM registration_secrets WHERE mark = $1";
    db.query_opt(select, &[&mark]).await?.as_ref().map(secret).transpose()
}

pub(super) async fn revoke(db: &mut Client, name: &str, audit: &Audit) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let changed = transaction
        .execute(
            "UPDATE registration_secrets SET revoked_at = coalesce(revoked_at, $2) WHERE name = $1",
            &[&name, &audit.at],
        )
        .await?;
    if changed > 0 {
        users::audit(&transaction, audit).await?;
    }
    transaction.commit().await?;
    Ok(changed > 0)
}

/// Takes one use; `false` when there is none to take.
pub(super) async fn use_up(
    db: &Transaction<'_>,
    id: i64,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = db
        .execute(
            "UPDATE registration_secrets SET uses = uses + 1, used_at = $2
              WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
                AND (uses_max IS NULL OR uses < uses_max)",
            &[&id, &now],
        )
        .await?;
    Ok(changed > 0)
}

fn secret(row: &Row) -> Result<KeptSecret, StoreError> {
    let uses_max: Option<i64> = row.try_get("uses_max")?;
    Ok(KeptSecret {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        uses: counted(row, "uses")?,
        uses_max: uses_max.map(|max| u64::try_from(max).unwrap_or(0)),
        expires_at: row.try_get("expires_at")?,
        reclaims: row.try_get("reclaims")?,
        collector_id: row.try_get("collector_id")?,
        created_at: row.try_get("created_at")?,
        used_at: row.try_get("used_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}
