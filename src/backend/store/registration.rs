//! What a registration writes, by what right, and what comes of it.

use jiff::Timestamp;
use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

use super::rows::Audit;
use crate::backend::names::is_unseen;

/// One registration, first or repeated.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The collector's id, the old one when it registers again.
    pub id: Uuid,
    /// Unique among collectors.
    pub name: String,
    /// The host that the name belongs to.
    pub hostname: String,
    /// As the host gave it.
    pub address: Option<String>,
    /// The agent's version.
    pub version: Option<String>,
    /// The collector's own token secret, sealed.
    pub sealed_secret: Vec<u8>,
    /// SHA-256 of the client certificate, lower-case hex.
    pub thumbprint: String,
    /// End of the client certificate.
    pub certificate_expires_at: Timestamp,
    /// By what right.
    pub right: Right,
    /// When, by whom.
    pub audit: Audit,
}

/// By what right a host registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// As a new collector, with the secret of this row, of which one use is gone then.
    New(i64),
    /// As a collector that there is, deregistered or not, with the secret of this row, likewise.
    Back(i64),
    /// As the collector whose certificate it has shown.
    Certificate,
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// It is written.
    Done,
    /// The name is, or was, another collector's.
    NameTaken,
    /// The host is a live collector's already.
    HostTaken,
    /// The secret has been used up, or has ended, meanwhile.
    SecretUsedUp,
    /// The collector has been deregistered meanwhile.
    Deregistered,
}

/// A collector by one of its names, or by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: Uuid,
    /// The name that it bears now.
    pub name: String,
    /// Its host.
    pub hostname: String,
    /// It is not deregistered.
    pub is_live: bool,
}

/// What became of a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// The collector bears it; the old one stays reserved.
    Done,
    /// It is, or was, another collector's.
    NameTaken,
    /// The id is unknown.
    Unknown,
}

/// What makes two names the same: their letters, without regard to case, to how Unicode writes
/// them (composed or not, wide, as a ligature), and to characters that cannot be seen, which names
/// of an earlier version may have. It is made here, not in SQL: a database's `lower`
/// follows its locale, and that of SQLite knows ASCII alone.
pub fn name_key(name: &str) -> String {
    let seen: String = name.nfkc().filter(|c| !is_unseen(*c)).collect();
    // By way of the upper case: that of both small sigmas is one.
    let upper = seen.trim().chars().flat_map(char::to_uppercase);
    let folded: String = upper.flat_map(char::to_lowercase).collect();
    folded.nfkc().collect()
}

/// A registration secret to keep.
#[derive(Debug, Clone)]
pub struct NewSecret {
    /// What the backend's operator calls it; unique.
    pub name: String,
    /// A keyed hash of it.
    pub mark: Vec<u8>,
    /// How often it may be used; `None` for any number.
    pub uses_max: Option<u64>,
    /// Its end.
    pub expires_at: Option<Timestamp>,
    /// It brings the collectors back that bear the names.
    pub reclaims: bool,
    /// It brings this collector back, and registers no other.
    pub collector_id: Option<Uuid>,
    /// When, by whom.
    pub audit: Audit,
}

impl NewSecret {
    /// The name of the revoked secret that had this one's before: it stays, because it must stay
    /// revoked.
    pub(super) fn name_until(&self) -> String {
        format!("{}, until {}", self.name, self.audit.at)
    }

    /// Whether `name` is one that [`NewSecret::name_until`] has made.
    pub(super) fn was_named(&self, name: &str) -> bool {
        name.strip_prefix(self.name.as_str()).is_some_and(|rest| rest.starts_with(", until "))
    }
}

/// A registration secret, without itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSecret {
    /// The row.
    pub id: i64,
    /// What the backend's operator calls it.
    pub name: String,
    /// How often it was used.
    pub uses: u64,
    /// How often it may be used; `None` for any number.
    pub uses_max: Option<u64>,
    /// Its end.
    pub expires_at: Option<Timestamp>,
    /// It brings the collectors back that bear the names.
    pub reclaims: bool,
    /// It brings this collector back, and registers no other.
    pub collector_id: Option<Uuid>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used.
    pub used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl KeptSecret {
    /// Whether it lets a host register at `now`.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none()
            && self.expires_at.is_none_or(|end| now < end)
            && self.uses_max.is_none_or(|max| self.uses < max)
    }
}
