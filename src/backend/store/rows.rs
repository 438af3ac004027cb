//! What goes into a store and what comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::refusals::RefusalCount;

/// Which part of a long list: pages count from 1.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// From 1.
    pub number: u32,
    /// Rows of a page.
    pub size: u32,
}

impl Page {
    /// The first `size` rows.
    pub fn first(size: u32) -> Self {
        Self { number: 1, size }
    }

    /// Rows of a page, as databases take it.
    pub fn limit(self) -> i64 {
        i64::from(self.size)
    }

    /// Rows before the page.
    pub fn offset(self) -> i64 {
        i64::from(self.number.saturating_sub(1)) * i64::from(self.size)
    }
}

/// The entries of a collector's losses that are kept: the newest.
pub const LOST_KEPT_MAX: i64 = 5_000;

/// What admins say of a collector: texts by their keys.
pub type Labels = BTreeMap<String, String>;

/// Labels as they are stored.
pub(super) fn labels_text(labels: &Labels) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}

/// Labels from the store, which has none but those of [`labels_text`].
pub(super) fn labels_of(text: &str) -> Labels {
    serde_json::from_str(text).unwrap_or_default()
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    /// The page's rows.
    pub rows: Vec<T>,
    /// Rows of all pages.
    pub total: u64,
}

/// A collector as the API shows it.
#[derive(Debug, Clone)]
pub struct Collector {
    /// Its id.
    pub id: Uuid,
    /// Its unique name.
    pub name: String,
    /// Its host.
    pub hostname: String,
    /// As the host gave it.
    pub address: Option<String>,
    /// The agent's version at registration.
    pub version: Option<String>,
    /// SHA-256 of the client certificate, lower-case hex.
    pub thumbprint: Option<String>,
    /// End of the client certificate.
    pub certificate_expires_at: Option<Timestamp>,
    /// First registration.
    pub created_at: Timestamp,
    /// Last registration or change.
    pub updated_at: Timestamp,
    /// Last push.
    pub last_seen_at: Option<Timestamp>,
    /// When its rights were taken away.
    pub deregistered_at: Option<Timestamp>,
    /// Its name, without regard to case, was another's before: one of them is to be renamed.
    pub name_collides: bool,
    /// Newest configuration kept for it, 0 for none.
    pub config_version: i64,
    /// Metrics stored so far.
    pub metrics_total: u64,
    /// Metrics stored in the last 24 hours.
    pub metrics_24h: u64,
    /// The `agent` object of its last push that had one, JSON.
    pub report: Option<String>,
    /// What admins say of it.
    pub labels: Labels,
    /// Entries of its losses that went for newer ones; see [`LOST_KEPT_MAX`].
    pub lost_forgotten: u64,
    /// What it sent and was not taken, by reason.
    pub refusals: Vec<RefusalCount>,
}

/// What a collector's requests are checked against.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Its host, for the tokens.
    pub hostname: String,
    /// SHA-256 of the client certificate, lower-case hex.
    pub thumbprint: Option<String>,
    /// The same of a renewed certificate that has not been used yet.
    pub next_thumbprint: Option<String>,
    /// The collector's own token secret, sealed.
    pub sealed_secret: Vec<u8>,
    /// What it was given when it registered over its certificate, until it uses that.
    pub pending: Option<PendingPair>,
}

/// The identity of a registration whose answer may not have arrived.
#[derive(Debug, Clone)]
pub struct PendingPair {
    /// SHA-256 of its client certificate, lower-case hex.
    pub thumbprint: String,
    /// Its token secret, sealed.
    pub sealed_secret: Vec<u8>,
}

impl Credentials {
    /// The sealed secret of tokens that come with this certificate.
    pub fn sealed_secret_with(&self, thumbprint: Option<&str>) -> &[u8] {
        match &self.pending {
            Some(pending) if thumbprint == Some(&*pending.thumbprint) => &pending.sealed_secret,
            _ => &self.sealed_secret,
        }
    }

    /// Whether this certificate is one that waits for its first use.
    pub fn waits(&self, thumbprint: &str) -> bool {
        self.next_thumbprint.as_deref() == Some(thumbprint)
            || self.pending.as_ref().is_some_and(|pending| pending.thumbprint == thumbprint)
    }

    /// Whether this certificate is the collector's, used or not.
    pub fn has(&self, thumbprint: &str) -> bool {
        self.thumbprint.as_deref() == Some(thumbprint) || self.waits(thumbprint)
    }
}

/// A certificate that a collector has been given in place of its present one.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The collector.
    pub id: Uuid,
    /// SHA-256 of the new certificate, lower-case hex.
    pub thumbprint: String,
    /// Its end.
    pub certificate_expires_at: Timestamp,
    /// When, by whom.
    pub audit: Audit,
}

/// One push, checked and ready to be written.
#[derive(Debug, Clone)]
pub struct Push {
    /// Who pushes.
    pub collector_id: Uuid,
    /// The host that the metrics are of: names the server row.
    pub hostname: String,
    /// It is a host that the collector brings with a replay, not its own.
    pub is_brought: bool,
    /// Hosts that a collector may have brought.
    pub brought_max: u32,
    /// The `Idempotency-Key`.
    pub batch_id: Option<String>,
    /// The backend's clock.
    pub received_at: Timestamp,
    /// Valid metrics.
    pub metrics: Vec<MetricRow>,
    /// Refused metrics as the answer lists them, a JSON array; `None` for none.
    pub rejected: Option<String>,
    /// How many those are, for the collector's counts; a known batch's are counted already.
    pub refused: Option<RefusalCount>,
    /// The envelope's `agent` object, JSON.
    pub report: Option<String>,
    /// What it says of its configuration.
    pub config: ConfigOutcome,
    /// The loss ledger's entries of the envelope.
    pub lost: Vec<LostRows>,
}

impl Push {
    /// The key of one of its rows, within server and time: the record's digest, or else the text's.
    /// A push that names neither batch nor records has rows without keys.
    pub(super) fn key(&self, metric: &MetricRow) -> Option<Digest> {
        metric.record.or_else(|| self.batch_id.as_ref().map(|_| metric.digest))
    }

    /// The latest time of a row that is known by its text alone.
    pub(super) fn text_until(&self) -> Option<Timestamp> {
        let by_text = |metric: &&MetricRow| metric.record.is_none() && self.batch_id.is_some();
        self.metrics.iter().filter(by_text).map(|metric| metric.at).max()
    }
}

/// What has become of configurations at their agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigOutcome {
    /// The version in force.
    pub applied: Option<i64>,
    /// A version that it does not take, and why.
    pub refused: Option<(i64, String)>,
}

/// One metric as a row.
#[derive(Debug, Clone)]
pub struct MetricRow {
    /// The metric's `type`.
    pub kind: String,
    /// The metric's `database`.
    pub database: Option<String>,
    /// The metric's `timestamp`.
    pub at: Timestamp,
    /// The metric's own JSON text.
    pub document: String,
    /// Tells the metric's text from every other of its server and time, see [`MetricRow::new`].
    pub digest: Digest,
    /// Tells the record from every other, see [`MetricRow::of_record`]; `None` when it is not known
    /// which record it is.
    pub record: Option<Digest>,
}

/// The start of a SHA-256.
pub type Digest = [u8; 16];

impl MetricRow {
    /// A row with its digest: the start of SHA-256 over everything but the time.
    pub fn new(kind: String, database: Option<String>, at: Timestamp, document: String) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for text in [kind.as_str(), database.as_deref().unwrap_or_default(), &document] {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text.as_bytes());
        }
        let digest = start_of(context.finish().as_ref());
        Self { kind, database, at, document, digest, record: None }
    }

    /// The same as the record that `queue_id` gave this number. Its digest is over the text, too:
    /// hosts that were cloned with their queue give the same numbers to records that differ.
    #[must_use]
    pub fn of_record(self, queue_id: Uuid, number: u64) -> Self {
        let named = [queue_id.as_bytes(), &number.to_le_bytes()[..], &self.digest].concat();
        let record = ring::digest::digest(&ring::digest::SHA256, &named);
        Self { record: Some(start_of(record.as_ref())), ..self }
    }
}

fn start_of(whole: &[u8]) -> Digest {
    let mut start = Digest::default();
    for (to, from) in start.iter_mut().zip(whole) {
        *to = *from;
    }
    start
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The batch id was known: no metric was written.
    pub duplicate: bool,
    /// Metrics that were not there yet and are now.
    pub inserted: u64,
    /// What the first push of a known batch id answered as refused.
    pub rejected: Option<String>,
    /// Newest configuration of the collector, 0 for none.
    pub config_version: i64,
}

/// A known hole: records that an agent had to give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostRows {
    /// The agent's queue.
    pub queue_id: Uuid,
    /// First record lost.
    pub from: u64,
    /// Last record lost.
    pub to: u64,
    /// How many.
    pub records: u64,
    /// Why.
    pub reason: String,
    /// When it was noticed, by the agent's clock.
    #[serde(serialize_with = "rfc3339")]
    pub at: Timestamp,
    /// The time of the first record, where the agent knows it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rfc3339_option")]
    pub first_at: Option<Timestamp>,
    /// The time of the last record.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rfc3339_option")]
    pub last_at: Option<Timestamp>,
}

/// A configuration to keep.
#[derive(Debug, Clone)]
pub struct NewConfig {
    /// Whose.
    pub collector_id: Uuid,
    /// TOML.
    pub text: String,
    /// Who wrote it.
    pub audit: Audit,
}

/// A kept configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptConfig {
    /// From 1.
    pub version: i64,
    /// TOML; empty in lists.
    pub text: String,
    /// When it was kept.
    pub created_at: Timestamp,
    /// Who wrote it.
    pub updated_by: String,
    /// When its agent first said that it is in force.
    pub applied_at: Option<Timestamp>,
    /// Why its agent does not take it.
    pub error: Option<String>,
}

/// A host whose metrics are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its host name, of the collector's last push.
    pub hostname: String,
    /// As the collector registered it.
    pub address: String,
    /// `production`, `staging`, `development` or `test`.
    pub environment: String,
    /// The collector that reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collector_id: Option<Uuid>,
    /// That collector has brought its metrics with a replay, and is not on it.
    pub brought: bool,
    /// Whether its collector may still push.
    pub is_active: bool,
    /// First push.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: Timestamp,
    /// Last change.
    #[serde(serialize_with = "rfc3339")]
    pub updated_at: Timestamp,
}

/// Which stored metrics.
#[derive(Debug, Clone)]
pub struct MetricQuery {
    /// Of this server.
    pub server_id: i64,
    /// Of this type; `None` for all.
    pub kind: Option<String>,
    /// Not before.
    pub start: Timestamp,
    /// Before.
    pub end: Timestamp,
    /// One metric of each type and database per step: the last.
    pub step: Option<Duration>,
    /// The newest so many.
    pub limit: u32,
    /// The newest whose documents have so many bytes together; the newest alone may have more.
    pub bytes_max: usize,
}

/// What was found, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The metrics.
    pub metrics: Vec<StoredMetric>,
    /// Older ones are left out for their bytes.
    pub is_cut: bool,
    bytes: usize,
}

impl Found {
    /// Takes the next older metric; `false` when there is no room for it.
    pub(super) fn take(&mut self, metric: StoredMetric, query: &MetricQuery) -> bool {
        let bytes = self.bytes.saturating_add(metric.document.len());
        self.is_cut = bytes > query.bytes_max && !self.metrics.is_empty();
        if !self.is_cut {
            self.bytes = bytes;
            self.metrics.push(metric);
        }
        !self.is_cut
    }

    /// With the oldest first.
    pub(super) fn in_order(mut self) -> Self {
        self.metrics.reverse();
        self
    }
}

/// A stored metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMetric {
    /// The metric's `type`.
    pub kind: String,
    /// The metric's `database`.
    pub database: Option<String>,
    /// The metric's `timestamp`.
    pub at: Timestamp,
    /// JSON text, equal to what was pushed but for spaces and the order of keys.
    pub document: String,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Looks and acknowledges.
    User,
    /// Changes.
    Admin,
}

impl Role {
    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }

    /// Reads what [`Role::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::User, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// A user to add.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Unique.
    pub username: String,
    /// May be empty.
    pub email: String,
    /// For people.
    pub full_name: Option<String>,
    /// What it may do.
    pub role: Role,
    /// Argon2id, in PHC form.
    pub password_hash: String,
    /// When, by whom.
    pub audit: Audit,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Its id.
    pub id: i64,
    /// Unique.
    pub username: String,
    /// May be empty.
    pub email: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_name: Option<String>,
    /// What it may do.
    pub role: Role,
    /// Whether it may log in.
    pub is_active: bool,
    /// Its last login.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rfc3339_option")]
    pub last_login: Option<Timestamp>,
    /// When it was added.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: Timestamp,
    /// Last change.
    #[serde(serialize_with = "rfc3339")]
    pub updated_at: Timestamp,
}

/// A user with what its login is checked against.
#[derive(Debug, Clone)]
pub struct Account {
    /// The user.
    pub user: User,
    /// Argon2id, in PHC form.
    pub password_hash: String,
}

/// A login: the family of its access and refresh tokens.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id, in every token of the family.
    pub id: Uuid,
    /// Who logged in.
    pub user_id: i64,
    /// The id of the only refresh token that is good now.
    pub refresh_id: Uuid,
    /// When.
    pub at: Timestamp,
    /// End of the refresh token.
    pub expires_at: Timestamp,
}

/// An exchange of refresh tokens.
#[derive(Debug, Clone)]
pub struct Rotate {
    /// The session.
    pub session: Uuid,
    /// The refresh token that was presented.
    pub presented: Uuid,
    /// The one that replaces it.
    pub next: Uuid,
    /// When.
    pub at: Timestamp,
    /// End of the next one.
    pub expires_at: Timestamp,
}

/// What became of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotation {
    /// The next token is the good one now.
    Done(Box<User>),
    /// An exchanged token was presented again: the session is dead now.
    Reused,
    /// The session is over, or its user is.
    Dead,
}

/// Who did what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// When.
    pub at: Timestamp,
    /// A user, a collector, or the address of a stranger.
    pub actor: String,
    /// `collector.register`, `user.add`, ...
    pub action: String,
    /// The id or name of what it was done to.
    pub subject: String,
}

/// A time as the contract writes it.
pub(super) fn rfc3339<S: serde::Serializer>(at: &Timestamp, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&crate::clock::rfc3339(*at))
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn rfc3339_option<S: serde::Serializer>(at: &Option<Timestamp>, out: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => rfc3339(at, out),
        None => out.serialize_none(),
    }
}
