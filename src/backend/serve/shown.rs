//! The certificate that new connections are shown, which is renewed while the backend serves.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use secrecy::ExposeSecret as _;

use crate::backend::BackendError;
use crate::backend::keys::Keys;

/// The server certificate with its key and the authority's certificate.
pub(in crate::backend) struct Shown {
    provider: Arc<CryptoProvider>,
    pair: RwLock<Arc<CertifiedKey>>,
}

impl Shown {
    /// Shows the certificate that the keys were loaded with.
    pub(super) fn new(keys: &Keys, provider: Arc<CryptoProvider>) -> Result<Self, BackendError> {
        let pair = pair(keys, &keys.server_certificate, &provider)?;
        Ok(Self { provider, pair: RwLock::new(Arc::new(pair)) })
    }

    /// Shows another certificate of the same key, PEM, from now on.
    pub(in crate::backend) fn replace(
        &self,
        keys: &Keys,
        certificate: &str,
    ) -> Result<(), BackendError> {
        let pair = Arc::new(pair(keys, certificate, &self.provider)?);
        *self.pair.write().unwrap_or_else(PoisonError::into_inner) = pair;
        Ok(())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.pair.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn pair(
    keys: &Keys,
    certificate: &str,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, BackendError> {
    let unusable = |what: &str, err: &dyn fmt::Display| {
        BackendError::Keys(format!("the {what} cannot be used: {err}"))
    };
    let mut chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|err| unusable("server certificate", &err))?;
    let authority = CertificateDer::from_pem_slice(keys.authority.certificate_pem().as_bytes())
        .map_err(|err| unusable("authority's certificate", &err))?;
    // A host that registers knows at most the authority's fingerprint: it must see the authority.
    chain.push(authority);
    let key = PrivateKeyDer::from_pem_slice(keys.server_key.expose_secret().as_bytes())
        .map_err(|err| unusable("server key", &err))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|err| unusable("server certificate", &err))
}
