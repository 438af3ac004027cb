//! Collectors and the keys that seal their secrets.

use deadpool_postgres::{Client, Transaction};
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::StoreError;
use super::super::registration::{Enrolled, Enrolment, Known, Renamed, Right, name_key};
use super::super::rows::{
    Audit, Collector, Credentials, Labels, Listing, Page, PendingPair, Renewal, labels_of,
    labels_text,
};
use super::{counted, refusals, secrets, users};

const COLLECTOR: &str = "SELECT c.*,
       coalesce((SELECT max(version) FROM configs WHERE collector_id = c.id), 0) AS config_version,
       coalesce((SELECT sum(metrics) FROM pushes
                  WHERE collector_id = c.id AND received_at >= $1), 0)::bigint AS metrics_24h,
       NOT EXISTS (SELECT 1 FROM names WHERE collector_id = c.id) AS name_collides
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

/// Reserves the names of collectors that have none reserved yet, those of a store of before.
pub(super) async fn reserve_names(db: &mut Client) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    renew_keys(&transaction).await?;
    let rows = transaction
        .query(
            "SELECT id, name FROM collectors c
              WHERE NOT EXISTS (SELECT 1 FROM names WHERE collector_id = c.id)
              ORDER BY created_at, id",
            &[],
        )
        .await?;
    for row in rows {
        let (id, name): (Uuid, String) = (row.try_get("id")?, row.try_get("name")?);
        if !reserve(&transaction, &name, id).await? {
            tracing::warn!(collector = %id, name, "this name is the same as another's");
        }
    }
    Ok(transaction.commit().await?)
}

/// Makes the keys anew that [`name_key`] made otherwise before. Of two that are one now the one
/// that was right stays, else that of the older collector.
async fn renew_keys(db: &Transaction<'_>) -> Result<(), StoreError> {
    let select = "SELECT n.key, n.collector_id FROM names n
                    JOIN collectors c ON c.id = n.collector_id ORDER BY c.created_at, c.id";
    for row in db.query(select, &[]).await? {
        let (key, id): (String, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        if name_key(&key) != key {
            db.execute("DELETE FROM names WHERE key = $1", &[&key]).await?;
            reserve(db, &key, id).await?;
        }
    }
    Ok(())
}

/// Whether the name is the collector's from now on.
async fn reserve(db: &Transaction<'_>, name: &str, id: Uuid) -> Result<bool, StoreError> {
    let key = name_key(name);
    let insert = "INSERT INTO names (key, collector_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    db.execute(insert, &[&key, &id]).await?;
    let select = "SELECT collector_id FROM names WHERE key = $1";
    let owner: Uuid = db.query_one(select, &[&key]).await?.try_get(0)?;
    Ok(owner == id)
}

pub(super) async fn enrol(db: &mut Client, new: &Enrolment) -> Result<Enrolled, StoreError> {
    let transaction = db.transaction().await?;
    // Two registrations at once, of one name or of one host, come one after the other.
    transaction.batch_execute("LOCK TABLE names IN SHARE ROW EXCLUSIVE MODE").await?;
    let enrolled = match new.right {
        Right::New(secret) => insert(&transaction, new, secret).await?,
        Right::Back(secret) if secrets::use_up(&transaction, secret, new.audit.at).await? => {
            update(&transaction, new).await?
        }
        Right::Back(_) => Enrolled::SecretUsedUp,
        Right::Certificate => update(&transaction, new).await?,
    };
    if enrolled == Enrolled::Done {
        users::audit(&transaction, &new.audit).await?;
        transaction.commit().await?;
    }
    Ok(enrolled)
}

async fn insert(
    db: &Transaction<'_>,
    new: &Enrolment,
    secret: i64,
) -> Result<Enrolled, StoreError> {
    if is_host_taken(db, new).await? {
        return Ok(Enrolled::HostTaken);
    }
    let name = "SELECT count(*) AS n FROM names WHERE key = $1";
    if counted(&db.query_one(name, &[&name_key(&new.name)]).await?, "n")? > 0 {
        return Ok(Enrolled::NameTaken);
    }
    db.execute(
        "INSERT INTO collectors (id, name, hostname, address, version, sealed_secret,
                                 thumbprint, certificate_expires_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
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
    reserve(db, &new.name, new.id).await?;
    let is_good = secrets::use_up(db, secret, new.audit.at).await?;
    Ok(if is_good { Enrolled::Done } else { Enrolled::SecretUsedUp })
}

/// Whether the host is another live collector's. Who has it already keeps it, although two had it
/// in a store of before.
async fn is_host_taken(db: &Transaction<'_>, new: &Enrolment) -> Result<bool, StoreError> {
    let select = "SELECT count(*) AS n, coalesce(bool_or(id = $2), false) AS is_own FROM collectors
                   WHERE deregistered_at IS NULL AND rtrim(lower(hostname), '.') = lower($1)";
    let row = db.query_one(select, &[&new.hostname, &new.id]).await?;
    let is_own: bool = row.try_get("is_own")?;
    Ok(counted(&row, "n")? > 0 && !is_own)
}

async fn update(db: &Transaction<'_>, new: &Enrolment) -> Result<Enrolled, StoreError> {
    if is_host_taken(db, new).await? {
        return Ok(Enrolled::HostTaken);
    }
    // The collector's own server row goes with it to its new host name.
    db.execute(
        "UPDATE servers SET hostname = $2, name = $2, updated_at = $3
          WHERE collector_id = $1 AND NOT brought AND hostname <> $2
            AND hostname = (SELECT hostname FROM collectors WHERE id = $1)
            AND NOT EXISTS (SELECT 1 FROM servers
                             WHERE collector_id = $1 AND NOT brought AND hostname = $2)",
        &[&new.id, &new.hostname, &new.audit.at],
    )
    .await?;
    let update = match new.right {
        // The answer may be lost: what the host has shown is good until it shows the new pair.
        Right::Certificate => {
            "UPDATE collectors SET
                 hostname = $2, address = $3, version = $4, pending_sealed_secret = $5,
                 pending_thumbprint = $6, pending_certificate_expires_at = $7, updated_at = $8
              WHERE id = $1 AND deregistered_at IS NULL"
        }
        Right::New(_) | Right::Back(_) => {
            "UPDATE collectors SET
                 hostname = $2, address = $3, version = $4, sealed_secret = $5, thumbprint = $6,
                 certificate_expires_at = $7, next_thumbprint = NULL,
                 next_certificate_expires_at = NULL, pending_sealed_secret = NULL,
                 pending_thumbprint = NULL, pending_certificate_expires_at = NULL,
                 updated_at = $8, deregistered_at = NULL
              WHERE id = $1"
        }
    };
    let written = db
        .execute(
            update,
            &[
                &new.id,
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
    Ok(if written == 0 { Enrolled::Deregistered } else { Enrolled::Done })
}

pub(super) async fn rename(
    db: &mut Client,
    id: Uuid,
    name: &str,
    audit: &Audit,
) -> Result<Renamed, StoreError> {
    let transaction = db.transaction().await?;
    let known = "SELECT count(*) AS n FROM collectors WHERE id = $1";
    if counted(&transaction.query_one(known, &[&id]).await?, "n")? == 0 {
        return Ok(Renamed::Unknown);
    }
    if !reserve(&transaction, name, id).await? {
        return Ok(Renamed::NameTaken);
    }
    let update = "UPDATE collectors SET name = $2, updated_at = $3 WHERE id = $1";
    transaction.execute(update, &[&id, &name, &audit.at]).await?;
    users::audit(&transaction, audit).await?;
    transaction.commit().await?;
    Ok(Renamed::Done)
}

pub(super) async fn label(
    db: &mut Client,
    id: Uuid,
    labels: &Labels,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let update = "UPDATE collectors SET labels = $2, updated_at = $3 WHERE id = $1";
    if transaction.execute(update, &[&id, &labels_text(labels), &audit.at]).await? == 0 {
        return Ok(false);
    }
    users::audit(&transaction, audit).await?;
    transaction.commit().await?;
    Ok(true)
}

pub(super) async fn one(
    db: &Client,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<Collector>, StoreError> {
    let statement = db.prepare_cached(&format!("{COLLECTOR} WHERE c.id = $2")).await?;
    let row = db.query_opt(&statement, &[&since(now), &id]).await?;
    let found = row.as_ref().map(collector).transpose()?;
    Ok(with_refusals(db, found.into_iter().collect()).await?.pop())
}

async fn with_refusals(
    db: &Client,
    mut found: Vec<Collector>,
) -> Result<Vec<Collector>, StoreError> {
    let ids: Vec<Uuid> = found.iter().map(|collector| collector.id).collect();
    let mut refusals = refusals::of(db, &ids).await?;
    for collector in &mut found {
        collector.refusals = refusals.remove(&collector.id).unwrap_or_default();
    }
    Ok(found)
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
    Ok(Listing { rows: with_refusals(db, rows).await?, total })
}

pub(super) async fn named(db: &Client, name: &str) -> Result<Option<Known>, StoreError> {
    let select = "SELECT c.id, c.name, c.hostname, c.deregistered_at
                    FROM names n JOIN collectors c ON c.id = n.collector_id WHERE n.key = $1";
    let statement = db.prepare_cached(select).await?;
    db.query_opt(&statement, &[&name_key(name)]).await?.as_ref().map(known).transpose()
}

pub(super) async fn shown(db: &Client, thumbprint: &str) -> Result<Option<Known>, StoreError> {
    let select = "SELECT id, name, hostname, deregistered_at FROM collectors
                   WHERE $1 IN (thumbprint, next_thumbprint, pending_thumbprint)
                   ORDER BY deregistered_at IS NOT NULL LIMIT 1";
    let statement = db.prepare_cached(select).await?;
    db.query_opt(&statement, &[&thumbprint]).await?.as_ref().map(known).transpose()
}

fn known(row: &Row) -> Result<Known, StoreError> {
    let deregistered_at: Option<Timestamp> = row.try_get("deregistered_at")?;
    Ok(Known {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hostname: row.try_get("hostname")?,
        is_live: deregistered_at.is_none(),
    })
}

pub(super) async fn credentials(db: &Client, id: Uuid) -> Result<Option<Credentials>, StoreError> {
    let statement = db
        .prepare_cached(
            "SELECT hostname, thumbprint, next_thumbprint, sealed_secret, pending_thumbprint,
                    pending_sealed_secret
               FROM collectors WHERE id = $1 AND deregistered_at IS NULL",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&id]).await? else { return Ok(None) };
    let pending: Option<String> = row.try_get("pending_thumbprint")?;
    let pending = pending.zip(row.try_get("pending_sealed_secret")?);
    Ok(Some(Credentials {
        hostname: row.try_get("hostname")?,
        thumbprint: row.try_get("thumbprint")?,
        next_thumbprint: row.try_get("next_thumbprint")?,
        sealed_secret: row.try_get("sealed_secret")?,
        pending: pending
            .map(|(thumbprint, sealed_secret)| PendingPair { thumbprint, sealed_secret }),
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
    let registered = "UPDATE collectors SET
             thumbprint = pending_thumbprint, sealed_secret = pending_sealed_secret,
             certificate_expires_at = pending_certificate_expires_at,
             next_thumbprint = NULL, next_certificate_expires_at = NULL,
             pending_thumbprint = NULL, pending_certificate_expires_at = NULL,
             pending_sealed_secret = NULL, updated_at = $3
          WHERE id = $1 AND pending_thumbprint = $2";
    let renewed = "UPDATE collectors SET
             thumbprint = next_thumbprint, certificate_expires_at = next_certificate_expires_at,
             next_thumbprint = NULL, next_certificate_expires_at = NULL, updated_at = $3
          WHERE id = $1 AND next_thumbprint = $2";
    let transaction = db.transaction().await?;
    for update in [registered, renewed] {
        if transaction.execute(update, &[&id, &thumbprint, &audit.at]).await? > 0 {
            users::audit(&transaction, audit).await?;
            transaction.commit().await?;
            return Ok(true);
        }
    }
    Ok(false)
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
        secrets::end_releases(&transaction, id, audit.at).await?;
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
        name_collides: row.try_get("name_collides")?,
        config_version: row.try_get("config_version")?,
        metrics_total: counted(row, "metrics_total")?,
        metrics_24h: counted(row, "metrics_24h")?,
        report: row.try_get("report")?,
        labels: labels_of(row.try_get("labels")?),
        lost_forgotten: counted(row, "lost_forgotten")?,
        refusals: Vec::new(),
    })
}
