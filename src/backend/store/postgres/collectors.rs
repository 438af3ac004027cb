//! Collectors and the keys that seal their secrets.

use deadpool_postgres::Client;
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{Audit, Collector, Credentials, Enrolment, Listing, Page, Renewal};
use super::{counted, users};

const COLLECTOR: &str = "SELECT c.*,
       coalesce((SELECT max(version) FROM configs WHERE collector_id = c.id), 0) AS config_version,
       coalesce((SELECT sum(metrics) FROM pushes
                  WHERE collector_id = c.id AND received_at >= $1), 0)::bigint AS metrics_24h
  FROM collectors c";

pub(super) async fn bound_keys(db: &Client) -> Result<Option<String>, StoreError> {
    let row = db.query_opt("SELECT fingerprint FROM keys", &[]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

pub(super) async fn bind_keys(db: &Client, fingerprint: &str) -> Result<(), StoreError> {
    let insert = "INSERT INTO keys (singleton, fingerprint) VALUES (1, $1) ON CONFLICT DO NOTHING";
    db.execute(insert, &[&fingerprint]).await?;
    if bound_keys(db).await?.as_deref() == Some(fingerprint) {
        return Ok(());
    }
    Err(StoreError::Conflict("its secrets are sealed with other keys".to_owned()))
}

pub(super) async fn enrol(db: &mut Client, new: &Enrolment) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    let statement = transaction
        .prepare_cached(
            "INSERT INTO collectors (id, name, hostname, address, version, sealed_secret,
                                     thumbprint, certificate_expires_at, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
             ON CONFLICT (name) DO UPDATE SET
                 address = excluded.address, version = excluded.version,
                 sealed_secret = excluded.sealed_secret, thumbprint = excluded.thumbprint,
                 certificate_expires_at = excluded.certificate_expires_at,
                 next_thumbprint = NULL, next_certificate_expires_at = NULL,
                 updated_at = excluded.updated_at, deregistered_at = NULL
             WHERE collectors.id = excluded.id AND collectors.hostname = excluded.hostname",
        )
        .await?;
    let written = transaction
        .execute(
            &statement,
            &[
                &new.id,
                &new.name,
                &new.hostname,
                &new.address,
                &new.version,
                &new.sealed_secret,
                &new.thumbprint,
                &new.certificate_expires_at,
                &new.audit.at,
            ],
        )
        .await?;
    if written == 0 {
        return Err(StoreError::Conflict(format!("the name {:?} is taken", new.name)));
    }
    users::audit(&transaction, &new.audit).await?;
    Ok(transaction.commit().await?)
}

pub(super) async fn one(
    db: &Client,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<Collector>, StoreError> {
    let statement = db.prepare_cached(&format!("{COLLECTOR} WHERE c.id = $2")).await?;
    let row = db.query_opt(&statement, &[&since(now), &id]).await?;
    row.as_ref().map(collector).transpose()
}

pub(super) async fn all(
    db: &Client,
    page: Page,
    now: Timestamp,
) -> Result<Listing<Collector>, StoreError> {
    let total = counted(&db.query_one("SELECT count(*) AS n FROM collectors", &[]).await?, "n")?;
    let statement =
        db.prepare_cached(&format!("{COLLECTOR} ORDER BY c.name LIMIT $2 OFFSET $3")).await?;
    let rows = db.query(&statement, &[&since(now), &page.limit(), &page.offset()]).await?;
    let rows = rows.iter().map(collector).collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) async fn named(db: &Client, name: &str) -> Result<Option<(Uuid, String)>, StoreError> {
    let statement =
        db.prepare_cached("SELECT id, hostname FROM collectors WHERE name = $1").await?;
    match db.query_opt(&statement, &[&name]).await? {
        Some(row) => Ok(Some((row.try_get("id")?, row.try_get("hostname")?))),
        None => Ok(None),
    }
}

pub(super) async fn credentials(db: &Client, id: Uuid) -> Result<Option<Credentials>, StoreError> {
    let statement = db
        .prepare_cached(
            "SELECT hostname, thumbprint, next_thumbprint, sealed_secret FROM collectors
              WHERE id = $1 AND deregistered_at IS NULL",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&id]).await? else { return Ok(None) };
    Ok(Some(Credentials {
        hostname: row.try_get("hostname")?,
        thumbprint: row.try_get("thumbprint")?,
        next_thumbprint: row.try_get("next_thumbprint")?,
        sealed_secret: row.try_get("sealed_secret")?,
    }))
}

pub(super) async fn renew_certificate(
    db: &mut Client,
    renewal: &Renewal,
) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let changed = transaction
        .execute(
            "UPDATE collectors SET next_thumbprint = $2, next_certificate_expires_at = $3,
                                   updated_at = $4
              WHERE id = $1 AND deregistered_at IS NULL",
            &[&renewal.id, &renewal.thumbprint, &renewal.certificate_expires_at, &renewal.audit.at],
        )
        .await?;
    if changed > 0 {
        users::audit(&transaction, &renewal.audit).await?;
    }
    transaction.commit().await?;
    Ok(changed > 0)
}

pub(super) async fn replace_certificate(
    db: &mut Client,
    id: Uuid,
    thumbprint: &str,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let changed = transaction
        .execute(
            "UPDATE collectors SET thumbprint = next_thumbprint,
                                   certificate_expires_at = next_certificate_expires_at,
                                   next_thumbprint = NULL, next_certificate_expires_at = NULL,
                                   updated_at = $3
              WHERE id = $1 AND next_thumbprint = $2",
            &[&id, &thumbprint, &audit.at],
        )
        .await?;
    if changed > 0 {
        users::audit(&transaction, audit).await?;
    }
    transaction.commit().await?;
    Ok(changed > 0)
}

pub(super) async fn deregister(
    db: &mut Client,
    id: Uuid,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let changed = transaction
        .execute(
            "UPDATE collectors SET deregistered_at = $2, updated_at = $2
              WHERE id = $1 AND deregistered_at IS NULL",
            &[&id, &audit.at],
        )
        .await?;
    if changed > 0 {
        users::audit(&transaction, audit).await?;
    }
    transaction.commit().await?;
    Ok(changed > 0)
}

fn since(now: Timestamp) -> Timestamp {
    now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(now)
}

fn collector(row: &Row) -> Result<Collector, StoreError> {
    Ok(Collector {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hostname: row.try_get("hostname")?,
        address: row.try_get("address")?,
        version: row.try_get("version")?,
        thumbprint: row.try_get("thumbprint")?,
        certificate_expires_at: row.try_get("certificate_expires_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        last_seen_at: row.try_get("last_seen_at")?,
        deregistered_at: row.try_get("deregistered_at")?,
        config_version: row.try_get("config_version")?,
        metrics_total: counted(row, "metrics_total")?,
        metrics_24h: counted(row, "metrics_24h")?,
        report: row.try_get("report")?,
    })
}
