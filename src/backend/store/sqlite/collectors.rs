//! Collectors and the keys that seal their secrets.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{Audit, Collector, Credentials, Enrolment, Listing, Page, Renewal};
use super::{counted, micros, time, time_option, users, uuid};

const COLLECTOR: &str = "SELECT c.*,
       coalesce((SELECT max(version) FROM configs WHERE collector_id = c.id), 0) AS config_version,
       coalesce((SELECT sum(metrics) FROM pushes
                  WHERE collector_id = c.id AND received_at >= :since), 0) AS metrics_24h
  FROM collectors c";

pub(super) fn bound_keys(db: &Transaction<'_>) -> Result<Option<String>, StoreError> {
    Ok(db.query_row("SELECT fingerprint FROM keys", [], |row| row.get(0)).optional()?)
}

pub(super) fn bind_keys(db: &Transaction<'_>, fingerprint: &str) -> Result<(), StoreError> {
    let insert = "INSERT INTO keys (singleton, fingerprint) VALUES (1, ?1) ON CONFLICT DO NOTHING";
    db.execute(insert, [fingerprint])?;
    if bound_keys(db)?.as_deref() == Some(fingerprint) {
        return Ok(());
    }
    Err(StoreError::Conflict("its secrets are sealed with other keys".to_owned()))
}

pub(super) fn enrol(db: &Transaction<'_>, new: &Enrolment) -> Result<(), StoreError> {
    let written = db.execute(
        "INSERT INTO collectors (id, name, hostname, address, version, sealed_secret, thumbprint,
                                 certificate_expires_at, created_at, updated_at)
         VALUES (:id, :name, :hostname, :address, :version, :sealed_secret, :thumbprint,
                 :certificate_expires_at, :at, :at)
         ON CONFLICT (name) DO UPDATE SET
             address = excluded.address, version = excluded.version,
             sealed_secret = excluded.sealed_secret, thumbprint = excluded.thumbprint,
             certificate_expires_at = excluded.certificate_expires_at,
             next_thumbprint = NULL, next_certificate_expires_at = NULL,
             updated_at = excluded.updated_at, deregistered_at = NULL
         WHERE id = excluded.id AND hostname = excluded.hostname",
        named_params! {
            ":id": new.id.to_string(), ":name": new.name, ":hostname": new.hostname,
            ":address": new.address, ":version": new.version,
            ":sealed_secret": new.sealed_secret, ":thumbprint": new.thumbprint,
            ":certificate_expires_at": micros(new.certificate_expires_at),
            ":at": micros(new.audit.at),
        },
    )?;
    if written == 0 {
        return Err(StoreError::Conflict(format!("the name {:?} is taken", new.name)));
    }
    users::audit(db, &new.audit)
}

pub(super) fn one(
    db: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<Collector>, StoreError> {
    let mut statement = db.prepare_cached(&format!("{COLLECTOR} WHERE c.id = :id"))?;
    let found = statement
        .query_row(named_params! { ":id": id.to_string(), ":since": since(now) }, collector)
        .optional()?;
    Ok(found)
}

pub(super) fn all(
    db: &Transaction<'_>,
    page: Page,
    now: Timestamp,
) -> Result<Listing<Collector>, StoreError> {
    let total =
        db.query_row("SELECT count(*) AS n FROM collectors", [], |row| counted(row, "n"))?;
    let mut statement =
        db.prepare_cached(&format!("{COLLECTOR} ORDER BY c.name LIMIT :limit OFFSET :offset"))?;
    let rows = statement
        .query_map(
            named_params! {
                ":since": since(now), ":limit": page.limit(), ":offset": page.offset(),
            },
            collector,
        )?
        .collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) fn named(
    db: &Transaction<'_>,
    name: &str,
) -> Result<Option<(Uuid, String)>, StoreError> {
    let mut statement = db.prepare_cached("SELECT id, hostname FROM collectors WHERE name = ?1")?;
    let found = statement
        .query_row([name], |row| Ok((uuid(row, "id")?, row.get("hostname")?)))
        .optional()?;
    Ok(found)
}

pub(super) fn credentials(
    db: &Transaction<'_>,
    id: Uuid,
) -> Result<Option<Credentials>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT hostname, thumbprint, next_thumbprint, sealed_secret FROM collectors
          WHERE id = ?1 AND deregistered_at IS NULL",
    )?;
    let found = statement
        .query_row([id.to_string()], |row| {
            Ok(Credentials {
                hostname: row.get("hostname")?,
                thumbprint: row.get("thumbprint")?,
                next_thumbprint: row.get("next_thumbprint")?,
                sealed_secret: row.get("sealed_secret")?,
            })
        })
        .optional()?;
    Ok(found)
}

pub(super) fn renew_certificate(
    db: &Transaction<'_>,
    renewal: &Renewal,
) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE collectors SET next_thumbprint = ?2, next_certificate_expires_at = ?3,
                               updated_at = ?4
          WHERE id = ?1 AND deregistered_at IS NULL",
        params![
            renewal.id.to_string(),
            renewal.thumbprint,
            micros(renewal.certificate_expires_at),
            micros(renewal.audit.at),
        ],
    )?;
    if changed > 0 {
        users::audit(db, &renewal.audit)?;
    }
    Ok(changed > 0)
}

pub(super) fn replace_certificate(
    db: &Transaction<'_>,
    id: Uuid,
    thumbprint: &str,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE collectors SET thumbprint = next_thumbprint,
                               certificate_expires_at = next_certificate_expires_at,
                               next_thumbprint = NULL, next_certificate_expires_at = NULL,
                               updated_at = ?3
          WHERE id = ?1 AND next_thumbprint = ?2",
        params![id.to_string(), thumbprint, micros(audit.at)],
    )?;
    if changed > 0 {
        users::audit(db, audit)?;
    }
    Ok(changed > 0)
}

pub(super) fn deregister(
    db: &Transaction<'_>,
    id: Uuid,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE collectors SET deregistered_at = ?2, updated_at = ?2
          WHERE id = ?1 AND deregistered_at IS NULL",
        params![id.to_string(), micros(audit.at)],
    )?;
    if changed > 0 {
        users::audit(db, audit)?;
    }
    Ok(changed > 0)
}

fn since(now: Timestamp) -> i64 {
    micros(now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(now))
}

fn collector(row: &Row<'_>) -> rusqlite::Result<Collector> {
    Ok(Collector {
        id: uuid(row, "id")?,
        name: row.get("name")?,
        hostname: row.get("hostname")?,
        address: row.get("address")?,
        version: row.get("version")?,
        thumbprint: row.get("thumbprint")?,
        certificate_expires_at: time_option(row, "certificate_expires_at")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        last_seen_at: time_option(row, "last_seen_at")?,
        deregistered_at: time_option(row, "deregistered_at")?,
        config_version: row.get("config_version")?,
        metrics_total: counted(row, "metrics_total")?,
        metrics_24h: counted(row, "metrics_24h")?,
        report: row.get("report")?,
    })
}
