//! Who this host is to its backend: `<state_dir>/identity.json`, readable by its owner only.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::files::{self, Readers};
use super::token::Token;
use super::{LinkError, identity_file, register};

/// What registration left behind.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The id that the backend gave to this collector.
    pub collector_id: String,
    /// The host name that was registered.
    pub hostname: String,
    /// The name that was registered.
    pub name: String,
    /// The backend it was registered with.
    pub backend_url: String,
    /// When.
    pub registered_at: Timestamp,
    /// Since when, by this host's clock, it is the collector that it is: what was delivered before
    /// may have been delivered as another. Absent when that is not known.
    pub collector_since: Option<Timestamp>,
    /// The end of the client certificate, when the backend said it.
    pub certificate_expires_at: Option<Timestamp>,
    /// The key for minting tokens, base64url; older backends give none.
    pub secret: Option<SecretString>,
    /// The last token the backend gave.
    pub token: Option<Token>,
    /// The CA to trust for the backend, learned at registration; absent when the system's roots
    /// vouched for it.
    pub ca_file: Option<PathBuf>,
    pub(super) file: Option<PathBuf>,
}

/// The file's content. Unknown keys are kept out: an older agent must not drop what it cannot read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    collector_id: String,
    hostname: String,
    name: String,
    backend_url: String,
    registered_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collector_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<StoredToken>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct StoredToken {
    token: String,
    expires_at: Timestamp,
}

const VERSION: u32 = 1;

impl Identity {
    /// An identity that is in no file yet.
    pub fn new(collector_id: &str, hostname: &str) -> Self {
        Self {
            collector_id: collector_id.to_owned(),
            hostname: hostname.to_owned(),
            name: hostname.to_owned(),
            backend_url: String::new(),
            registered_at: Timestamp::UNIX_EPOCH,
            collector_since: None,
            certificate_expires_at: None,
            secret: None,
            token: None,
            ca_file: None,
            file: None,
        }
    }

    /// Reads the identity of this host; a registration that was cut short after its point of no
    /// return is completed first.
    ///
    /// Errors: not registered, unreadable, readable by others, damaged.
    pub fn load(state_dir: &Path) -> Result<Self, LinkError> {
        Self::find(state_dir)?.ok_or_else(|| {
            LinkError::new(
                format!(
                    "this host is not registered: {} does not exist",
                    identity_file(state_dir).display()
                ),
                "run `agent register` first",
            )
        })
    }

    /// Like [`Self::load`], with `None` when this host was never registered.
    pub fn find(state_dir: &Path) -> Result<Option<Self>, LinkError> {
        register::finish(state_dir)?;
        let file = identity_file(state_dir);
        if matches!(file.try_exists(), Ok(false)) {
            return Ok(None);
        }
        let text = files::read_private(&file, "identity")?;
        Self::decode(&text)
            .map(|identity| Some(Self { file: Some(file.clone()), ..identity }))
            .map_err(|why| {
                LinkError::new(
                    format!("{} is damaged: {why}", file.display()),
                    "restore it from a backup, or register again with `agent register --force`, \
                     which shows the certificate",
                )
            })
    }

    /// The file that it was read from. Errors: it is from no file.
    pub(super) fn file(&self) -> Result<PathBuf, LinkError> {
        self.file.clone().ok_or_else(|| {
            LinkError::new("this host is not registered", "run `agent register` first")
        })
    }

    /// The directory of its file. Errors: it is from no file.
    pub(super) fn state_dir(&self) -> Result<PathBuf, LinkError> {
        Ok(self.file()?.parent().unwrap_or(Path::new(".")).to_owned())
    }

    /// Replaces the file it was read from; an identity from no file is not written.
    pub fn save(&self) -> Result<(), LinkError> {
        let Some(file) = &self.file else { return Ok(()) };
        files::replace(file, self.encode().expose_secret().as_bytes(), Readers::Owner)
    }

    /// The file's content.
    pub fn encode(&self) -> SecretString {
        let stored = Stored {
            version: VERSION,
            collector_id: self.collector_id.clone(),
            hostname: self.hostname.clone(),
            name: self.name.clone(),
            backend_url: self.backend_url.clone(),
            registered_at: self.registered_at,
            collector_since: self.collector_since,
            certificate_expires_at: self.certificate_expires_at,
            secret: self.secret.as_ref().map(|secret| secret.expose_secret().to_owned()),
            token: self.token.as_ref().map(|token| StoredToken {
                token: token.expose().expose_secret().to_owned(),
                expires_at: token.expires_at(),
            }),
            ca_file: self.ca_file.clone(),
        };
        // Strings and times always become JSON; only a path that is no UTF-8 does not.
        SecretString::from(serde_json::to_string_pretty(&stored).unwrap_or_default())
    }

    fn decode(text: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if stored.version != VERSION {
            return Err(format!("version {} is not {VERSION}", stored.version));
        }
        Ok(Self {
            collector_id: stored.collector_id,
            hostname: stored.hostname,
            name: stored.name,
            backend_url: stored.backend_url,
            registered_at: stored.registered_at,
            collector_since: stored.collector_since,
            certificate_expires_at: stored.certificate_expires_at,
            secret: stored.secret.map(SecretString::from),
            token: stored
                .token
                .map(|token| Token::new(SecretString::from(token.token), token.expires_at)),
            ca_file: stored.ca_file,
            file: None,
        })
    }
}
