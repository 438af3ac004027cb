//! Registration secrets, and what is done with collectors by hand.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::auth::{Sealer, encode, random};
use super::store::{Audit, Collector, KeptSecret, NewSecret, Page, Renamed, Store, StoreError};
use super::{BackendConfig, BackendError, by_hand, names, open};
use crate::clock;

/// The name of the secret that stands in the backend's file.
pub(super) const OF_FILE: &str = "file";
/// How long a secret of [`release`] lasts.
const RELEASE_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Collectors that are read at once.
const PAGE_ROWS: u32 = 100;

/// A secret to be made by hand.
#[derive(Debug)]
pub struct SecretRequest {
    /// What the operator calls it; unique.
    pub name: String,
    /// How often it may be used; `None` for any number.
    pub uses_max: Option<u64>,
    /// How long it lasts; `None` for ever.
    pub life: Option<Duration>,
    /// It brings the collectors back that bear the names.
    pub reclaims: bool,
}

/// A secret with which one host comes back.
#[derive(Debug)]
pub struct Released {
    /// The secret; it is told this once.
    pub secret: String,
    /// Its end.
    pub expires_at: Timestamp,
}

/// Makes a registration secret and returns it; only its mark is kept.
pub async fn add_secret(
    config: &BackendConfig,
    request: SecretRequest,
) -> Result<String, BackendError> {
    let name = names::checked("the name", &request.name).map_err(BackendError::Enrolment)?;
    let (store, keys) = open(config).await?;
    let (secret, now) = (new_secret(), clock::now());
    let expires_at = request.life.map(|life| {
        let life = SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX);
        now.saturating_add(life).unwrap_or(Timestamp::MAX)
    });
    let action = if request.reclaims { "secret.add (reclaims)" } else { "secret.add" };
    let new = NewSecret {
        mark: keys.sealer.mark(&secret),
        uses_max: request.uses_max,
        expires_at,
        reclaims: request.reclaims,
        collector_id: None,
        audit: by_hand(action, &name),
        name,
    };
    let name = new.name.clone();
    let added = store.add_secret(new).await;
    store.close().await;
    added.map_err(|error| match error {
        StoreError::Conflict(_) => {
            BackendError::Enrolment(format!("there is, or was, a secret {name}"))
        }
        other => other.into(),
    })?;
    Ok(secret)
}

/// All registration secrets, by name.
pub async fn secrets(config: &BackendConfig) -> Result<Vec<KeptSecret>, BackendError> {
    let (store, _) = open(config).await?;
    let secrets = store.secrets().await;
    store.close().await;
    Ok(secrets?)
}

/// Ends a registration secret.
pub async fn revoke_secret(config: &BackendConfig, name: &str) -> Result<(), BackendError> {
    let (store, _) = open(config).await?;
    let revoked = store.revoke_secret(name, by_hand("secret.revoke", name)).await;
    store.close().await;
    if revoked? {
        return Ok(());
    }
    Err(BackendError::Enrolment(format!("there is no secret {name}")))
}

/// All collectors, by name.
pub async fn collectors(config: &BackendConfig) -> Result<Vec<Collector>, BackendError> {
    let (store, _) = open(config).await?;
    let found = all(store.as_ref()).await;
    store.close().await;
    Ok(found?)
}

/// Gives a collector another name; the old one stays reserved.
pub async fn rename(config: &BackendConfig, name: &str, to: &str) -> Result<(), BackendError> {
    let to = names::checked("the name", to).map_err(BackendError::Enrolment)?;
    let (store, _) = open(config).await?;
    let collector = named(store.as_ref(), name).await?;
    let audit = by_hand("collector.rename", &collector.id.to_string());
    let renamed = store.rename(collector.id, &to, audit).await;
    store.close().await;
    match renamed? {
        Renamed::Done => Ok(()),
        Renamed::NameTaken => {
            Err(BackendError::Enrolment(format!("the name {to} is, or was, another collector's")))
        }
        Renamed::Unknown => Err(unknown(name)),
    }
}

/// Makes the secret with which a host comes back as this collector.
pub async fn release_named(config: &BackendConfig, name: &str) -> Result<Released, BackendError> {
    let (store, keys) = open(config).await?;
    let collector = named(store.as_ref(), name).await?;
    let by = by_hand("", "").actor;
    let released = release(store.as_ref(), &keys.sealer, &collector, by).await;
    store.close().await;
    Ok(released?)
}

/// Takes a collector's rights away.
pub async fn remove(config: &BackendConfig, name: &str) -> Result<(), BackendError> {
    let (store, _) = open(config).await?;
    let collector = named(store.as_ref(), name).await?;
    let audit = by_hand("collector.deregister", &collector.id.to_string());
    let removed = store.deregister(collector.id, audit).await;
    store.close().await;
    if removed? {
        return Ok(());
    }
    Err(BackendError::Enrolment(format!("the collector {name} is removed already")))
}

/// A secret for one use within a day that brings a host back as `collector`.
pub(super) async fn release(
    store: &dyn Store,
    sealer: &Sealer,
    collector: &Collector,
    by: String,
) -> Result<Released, StoreError> {
    let (secret, now) = (new_secret(), clock::now());
    let expires_at = now.saturating_add(RELEASE_LIFE).unwrap_or(Timestamp::MAX);
    let new = NewSecret {
        name: format!("release of {} {}", collector.name, encode(&random::<6>())),
        mark: sealer.mark(&secret),
        uses_max: Some(1),
        expires_at: Some(expires_at),
        reclaims: false,
        collector_id: Some(collector.id),
        audit: Audit {
            at: now,
            actor: by,
            action: "collector.release".to_owned(),
            subject: collector.id.to_string(),
        },
    };
    store.add_secret(new).await?;
    Ok(Released { secret, expires_at })
}

/// Keeps what stands in the backend's file as a secret among the others.
pub(super) async fn keep_file_secret(
    store: &dyn Store,
    sealer: &Sealer,
    secret: &str,
) -> Result<(), StoreError> {
    let new = NewSecret {
        name: OF_FILE.to_owned(),
        mark: sealer.mark(secret),
        uses_max: None,
        expires_at: None,
        reclaims: false,
        collector_id: None,
        audit: by_hand("secret.add", OF_FILE),
    };
    store.keep_file_secret(new).await
}

/// The collector with this id, else exactly this name, else a name that is the same. In a store of
/// before, names that are the same can be those of several collectors.
async fn named(store: &dyn Store, name: &str) -> Result<Collector, BackendError> {
    let id = match name.parse() {
        Ok(id) => id,
        Err(_) => match all(store).await?.into_iter().find(|collector| collector.name == name) {
            Some(collector) => return Ok(collector),
            None => store.collector_named(name).await?.ok_or_else(|| unknown(name))?.id,
        },
    };
    store.collector(id, clock::now()).await?.ok_or_else(|| unknown(name))
}

async fn all(store: &dyn Store) -> Result<Vec<Collector>, StoreError> {
    let mut found = Vec::new();
    for number in 1.. {
        let page = Page { number, size: PAGE_ROWS };
        let listing = store.collectors(page, clock::now()).await?;
        let is_last = listing.rows.len() < PAGE_ROWS as usize;
        found.extend(listing.rows);
        if is_last {
            break;
        }
    }
    Ok(found)
}

fn unknown(name: &str) -> BackendError {
    BackendError::Enrolment(format!("there is no collector {name}"))
}

fn new_secret() -> String {
    encode(&random::<24>())
}
