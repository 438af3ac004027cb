//! Collectors and the keys that seal their secrets.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::registration::{Enrolled, Enrolment, Known, Renamed, Right, name_key};
use super::super::rows::{
    Audit, Collector, Credentials, Labels, Listing, Page, PendingPair, Renewal, labels_of,
    labels_text,
};
use super::{counted, micros, refusals, secrets, time, time_option, users, uuid};

const COLLECTOR: &str = "SELECT c.*,
       coalesce((SELECT max(version) FROM configs WHERE collector_id = c.id), 0) AS config_version,
       coalesce((SELECT sum(metrics) FROM pushes
                  WHERE collector_id = c.id AND received_at >= :since), 0) AS metrics_24h,
       NOT EXISTS (SELECT 1 FROM names WHERE collector_id = c.id) AS name_collides
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

/// Reserves the names of collectors that have none reserved yet, those of a store of before.
pub(super) fn reserve_names(db: &Transaction<'_>) -> Result<(), StoreError> {
    renew_keys(db)?;
    let mut statement = db.prepare(
        "SELECT id, name FROM collectors c
          WHERE NOT EXISTS (SELECT 1 FROM names WHERE collector_id = c.id)
          ORDER BY created_at, id",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get("id")?, row.get("name")?)))?;
    for (id, name) in rows.collect::<Result<Vec<(String, String)>, _>>()? {
        if !reserve(db, &name, &id)? {
            tracing::warn!(collector = id, name, "this name is the same as another's");
        }
    }
    Ok(())
}

/// Makes the keys anew that [`name_key`] made otherwise before. Of two that are one now the one
/// that was right stays, else that of the older collector.
fn renew_keys(db: &Transaction<'_>) -> Result<(), StoreError> {
    let mut statement = db.prepare(
        "SELECT n.key, n.collector_id FROM names n JOIN collectors c ON c.id = n.collector_id
          ORDER BY c.created_at, c.id",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows = rows.collect::<Result<Vec<(String, String)>, _>>()?;
    let stale = rows.iter().filter(|(key, _)| name_key(key) != *key);
    for (key, id) in stale {
        db.execute("DELETE FROM names WHERE key = ?1", [key])?;
        reserve(db, key, id)?;
    }
    Ok(())
}

/// Whether the name is the collector's from now on.
fn reserve(db: &Transaction<'_>, name: &str, id: &str) -> Result<bool, StoreError> {
    let key = name_key(name);
    db.execute(
        "INSERT INTO names (key, collector_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        [&key, id],
    )?;
    let select = "SELECT collector_id FROM names WHERE key = ?1";
    let owner: String = db.query_row(select, [&key], |row| row.get(0))?;
    Ok(owner == id)
}

pub(super) fn enrol(db: &Transaction<'_>, new: &Enrolment) -> Result<Enrolled, StoreError> {
    let enrolled = match new.right {
        Right::New(secret) => insert(db, new, secret)?,
        Right::Back(secret) if secrets::use_up(db, secret, new.audit.at)? => update(db, new)?,
        Right::Back(_) => Enrolled::SecretUsedUp,
        Right::Certificate => update(db, new)?,
    };
    if enrolled == Enrolled::Done {
        users::audit(db, &new.audit)?;
    }
    Ok(enrolled)
}

fn insert(db: &Transaction<'_>, new: &Enrolment, secret: i64) -> Result<Enrolled, StoreError> {
    if is_host_taken(db, new)? {
        return Ok(Enrolled::HostTaken);
    }
    let name = "SELECT count(*) AS n FROM names WHERE key = ?1";
    if db.query_row(name, [name_key(&new.name)], |row| counted(row, "n"))? > 0 {
        return Ok(Enrolled::NameTaken);
    }
    let id = new.id.to_string();
    db.execute(
        "INSERT INTO collectors (id, name, hostname, address, version, sealed_secret, thumbprint,
                                 certificate_expires_at, created_at, updated_at)
         VALUES (:id, :name, :hostname, :address, :version, :sealed_secret, :thumbprint,
                 :certificate_expires_at, :at, :at)",
        named_params! {
            ":id": id, ":name": new.name, ":hostname": new.hostname,
            ":address": new.address, ":version": new.version,
            ":sealed_secret": new.sealed_secret, ":thumbprint": new.thumbprint,
            ":certificate_expires_at": micros(new.certificate_expires_at),
            ":at": micros(new.audit.at),
        },
    )?;
    reserve(db, &new.name, &id)?;
    let is_good = secrets::use_up(db, secret, new.audit.at)?;
    Ok(if is_good { Enrolled::Done } else { Enrolled::SecretUsedUp })
}

/// Whether the host is another live collector's. Who has it already keeps it, although two had it
/// in a store of before.
fn is_host_taken(db: &Transaction<'_>, new: &Enrolment) -> Result<bool, StoreError> {
    let select = "SELECT count(*) AS n, coalesce(max(id = ?2), 0) AS is_own FROM collectors
                   WHERE deregistered_at IS NULL AND rtrim(lower(hostname), '.') = lower(?1)";
    let (holders, is_own) =
        db.query_row(select, params![new.hostname, new.id.to_string()], |row| {
            Ok((counted(row, "n")?, row.get::<_, bool>("is_own")?))
        })?;
    Ok(holders > 0 && !is_own)
}

fn update(db: &Transaction<'_>, new: &Enrolment) -> Result<Enrolled, StoreError> {
    if is_host_taken(db, new)? {
        return Ok(Enrolled::HostTaken);
    }
    let id = new.id.to_string();
    // The collector's own server row goes with it to its new host name.
    db.execute(
        "UPDATE OR IGNORE servers SET hostname = ?2, name = ?2, updated_at = ?3
          WHERE collector_id = ?1 AND brought = 0 AND hostname <> ?2
            AND hostname = (SELECT hostname FROM collectors WHERE id = ?1)",
        params![id, new.hostname, micros(new.audit.at)],
    )?;
    let update = match new.right {
        // The answer may be lost: what the host has shown is good until it shows the new pair.
        Right::Certificate => {
            "UPDATE collectors SET
                 hostname = :hostname, address = :address, version = :version,
                 pending_sealed_secret = :sealed_secret, pending_thumbprint = :thumbprint,
                 pending_certificate_expires_at = :certificate_expires_at, updated_at = :at
              WHERE id = :id AND deregistered_at IS NULL"
        }
        Right::New(_) | Right::Back(_) => {
            "UPDATE collectors SET
                 hostname = :hostname, address = :address, version = :version,
                 sealed_secret = :sealed_secret, thumbprint = :thumbprint,
                 certificate_expires_at = :certificate_expires_at,
                 next_thumbprint = NULL, next_certificate_expires_at = NULL,
                 pending_sealed_secret = NULL, pending_thumbprint = NULL,
                 pending_certificate_expires_at = NULL,
                 updated_at = :at, deregistered_at = NULL
              WHERE id = :id"
        }
    };
    let written = db.execute(
        update,
        named_params! {
            ":id": id, ":hostname": new.hostname,
            ":address": new.address, ":version": new.version,
            ":sealed_secret": new.sealed_secret, ":thumbprint": new.thumbprint,
            ":certificate_expires_at": micros(new.certificate_expires_at),
            ":at": micros(new.audit.at),
        },
    )?;
    Ok(if written == 0 { Enrolled::Deregistered } else { Enrolled::Done })
}

pub(super) fn rename(
    db: &Transaction<'_>,
    id: Uuid,
    name: &str,
    audit: &Audit,
) -> Result<Renamed, StoreError> {
    let id = id.to_string();
    let known = "SELECT count(*) AS n FROM collectors WHERE id = ?1";
    if db.query_row(known, [&id], |row| counted(row, "n"))? == 0 {
        return Ok(Renamed::Unknown);
    }
    if !reserve(db, name, &id)? {
        return Ok(Renamed::NameTaken);
    }
    let update = "UPDATE collectors SET name = ?2, updated_at = ?3 WHERE id = ?1";
    db.execute(update, params![id, name, micros(audit.at)])?;
    users::audit(db, audit)?;
    Ok(Renamed::Done)
}

pub(super) fn label(
    db: &Transaction<'_>,
    id: Uuid,
    labels: &Labels,
    audit: &Audit,
) -> Result<bool, StoreError> {
    let update = "UPDATE collectors SET labels = ?2, updated_at = ?3 WHERE id = ?1";
    let values = params![id.to_string(), labels_text(labels), micros(audit.at)];
    if db.execute(update, values)? == 0 {
        return Ok(false);
    }
    users::audit(db, audit)?;
    Ok(true)
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
    found.map(|found| with_refusals(db, found)).transpose()
}

fn with_refusals(db: &Transaction<'_>, found: Collector) -> Result<Collector, StoreError> {
    Ok(Collector { refusals: refusals::of(db, found.id)?, ..found })
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
        .collect::<Result<Vec<_>, _>>()?;
    let rows = rows.into_iter().map(|found| with_refusals(db, found)).collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

pub(super) fn named(db: &Transaction<'_>, name: &str) -> Result<Option<Known>, StoreError> {
    let select = "SELECT c.id, c.name, c.hostname, c.deregistered_at
                    FROM names n JOIN collectors c ON c.id = n.collector_id WHERE n.key = ?1";
    Ok(db.prepare_cached(select)?.query_row([name_key(name)], known).optional()?)
}

pub(super) fn shown(db: &Transaction<'_>, thumbprint: &str) -> Result<Option<Known>, StoreError> {
    let select = "SELECT id, name, hostname, deregistered_at FROM collectors
                   WHERE ?1 IN (thumbprint, next_thumbprint, pending_thumbprint)
                   ORDER BY deregistered_at IS NOT NULL LIMIT 1";
    Ok(db.prepare_cached(select)?.query_row([thumbprint], known).optional()?)
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        id: uuid(row, "id")?,
        name: row.get("name")?,
        hostname: row.get("hostname")?,
        is_live: time_option(row, "deregistered_at")?.is_none(),
    })
}

pub(super) fn credentials(
    db: &Transaction<'_>,
    id: Uuid,
) -> Result<Option<Credentials>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT hostname, thumbprint, next_thumbprint, sealed_secret, pending_thumbprint,
                pending_sealed_secret
           FROM collectors WHERE id = ?1 AND deregistered_at IS NULL",
    )?;
    let found = statement
        .query_row([id.to_string()], |row| {
            let pending = row.get::<_, Option<_>>("pending_thumbprint")?;
            let pending = pending.zip(row.get("pending_sealed_secret")?);
            Ok(Credentials {
                hostname: row.get("hostname")?,
                thumbprint: row.get("thumbprint")?,
                next_thumbprint: row.get("next_thumbprint")?,
                sealed_secret: row.get("sealed_secret")?,
                pending: pending
                    .map(|(thumbprint, sealed_secret)| PendingPair { thumbprint, sealed_secret }),
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
    let registered = "UPDATE collectors SET
             thumbprint = pending_thumbprint, sealed_secret = pending_sealed_secret,
             certificate_expires_at = pending_certificate_expires_at,
             next_thumbprint = NULL, next_certificate_expires_at = NULL,
             pending_thumbprint = NULL, pending_certificate_expires_at = NULL,
             pending_sealed_secret = NULL, updated_at = ?3
          WHERE id = ?1 AND pending_thumbprint = ?2";
    let renewed = "UPDATE collectors SET
             thumbprint = next_thumbprint, certificate_expires_at = next_certificate_expires_at,
             next_thumbprint = NULL, next_certificate_expires_at = NULL, updated_at = ?3
          WHERE id = ?1 AND next_thumbprint = ?2";
    for update in [registered, renewed] {
        if db.execute(update, params![id.to_string(), thumbprint, micros(audit.at)])? > 0 {
            users::audit(db, audit)?;
            return Ok(true);
        }
    }
    Ok(false)
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
        secrets::end_releases(db, id, audit.at)?;
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
        name_collides: row.get("name_collides")?,
        config_version: row.get("config_version")?,
        metrics_total: counted(row, "metrics_total")?,
        metrics_24h: counted(row, "metrics_24h")?,
        report: row.get("report")?,
        labels: labels_of(&row.get::<_, String>("labels")?),
        lost_forgotten: counted(row, "lost_forgotten")?,
        refusals: Vec::new(),
    })
}
