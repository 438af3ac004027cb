//! The client certificate that this host shows, replaced while the agent runs.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::pem::{private_key_from_pem, read_certificates};
use crate::link::{LinkError, files};

/// A certificate chain and its private key, not yet checked against each other.
#[derive(Debug)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: String,
}

/// When a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub begins: Timestamp,
    /// To.
    pub ends: Timestamp,
}

/// What every new connection shows to a server that asks.
#[derive(Debug)]
pub struct OwnCertificate {
    shown: RwLock<Arc<CertifiedKey>>,
}

impl ClientCertificate {
    /// Reads both files. The key's file must be readable by its owner only.
    pub fn read(cert_file: &Path, key_file: &Path) -> Result<Self, LinkError> {
        Self::read_with(cert_file, key_file, |path| files::read_private(path, "tls.key_file"))
    }

    /// The same of a pair that is about to be replaced, such as that of an original collector: its
    /// key counts although others can read it.
    pub fn read_to_replace(cert_file: &Path, key_file: &Path) -> Result<Self, LinkError> {
        Self::read_with(cert_file, key_file, |path| {
            let (key, mode) = files::read(path, "tls.key_file")?;
            if mode & 0o077 != 0 {
                let path = path.display();
                tracing::warn!("others can read {path} (mode {mode:04o}): a new key replaces it");
            }
            Ok(key)
        })
    }

    fn read_with(
        cert_file: &Path,
        key_file: &Path,
        read_key: impl FnOnce(&Path) -> Result<Vec<u8>, LinkError>,
    ) -> Result<Self, LinkError> {
        let chain = read_certificates(cert_file, "tls.cert_file")?;
        let key = read_key(key_file).map_err(|error| registered_first(error, key_file))?;
        let key = private_key_from_pem(&key, &format!("tls.key_file {}", key_file.display()))?;
        let files = format!("tls.cert_file {} and tls.key_file", cert_file.display());
        Ok(Self { chain, key, files: format!("{files} {}", key_file.display()) })
    }

    /// A pair from elsewhere than files, the key as PEM text.
    pub fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        key_pem: &str,
    ) -> Result<Self, LinkError> {
        let key = private_key_from_pem(key_pem.as_bytes(), "the key")?;
        Ok(Self { chain, key, files: "certificate and key".to_owned() })
    }

    /// Checks that the key belongs to the first certificate.
    pub fn check(self) -> Result<(), LinkError> {
        self.certified().map(drop)
    }

    fn certified(self) -> Result<Arc<CertifiedKey>, LinkError> {
        let provider: CryptoProvider = rustls::crypto::ring::default_provider();
        let certified =
            CertifiedKey::from_der(self.chain, self.key, &provider).map_err(|error| {
                LinkError::new(
                    format!("{} do not belong together or are damaged: {error}", self.files),
                    "restore the pair, or make a new one with `agent register --force`",
                )
            })?;
        Ok(Arc::new(certified))
    }
}

impl OwnCertificate {
    /// Shows this pair. Errors: the key is not the certificate's.
    pub fn new(pair: ClientCertificate) -> Result<Self, LinkError> {
        Ok(Self { shown: RwLock::new(pair.certified()?) })
    }

    /// Shows another pair from now on; connections that are made keep what they have shown.
    pub fn replace(&self, pair: ClientCertificate) -> Result<(), LinkError> {
        let next = pair.certified()?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The certificate itself, first of its chain.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.current().cert.first().cloned()
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.current();
        current.key.choose_scheme(schemes).is_some().then_some(current)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Validity {
    /// Reads it from a certificate; `None` for one that cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).ok();
        let validity = parsed.validity();
        Some(Self { begins: time(validity.not_before)?, ends: time(validity.not_after)? })
    }

    /// Its whole length.
    pub fn life(&self) -> SignedDuration {
        self.ends.duration_since(self.begins)
    }

    /// The moment of it that is next to `at`.
    pub fn nearest(&self, at: UnixTime) -> UnixTime {
        let (begins, ends) = (unix_time(self.begins), unix_time(self.ends));
        at.max(begins).min(ends)
    }

    /// Whether it holds `at`.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.begins <= at && at <= self.ends
    }
}

/// A time as rustls has it; there is none before 1970.
pub(in crate::link) fn unix_time(at: Timestamp) -> UnixTime {
    let seconds = u64::try_from(at.as_second()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn registered_first(error: LinkError, key_file: &Path) -> LinkError {
    if key_file.exists() {
        return error;
    }
    LinkError { hint: "`agent register` makes it; or set tls.key_file".to_owned(), ..error }
}
