//! A key pair made on this host, and the request to certify it. The key never leaves the host.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use secrecy::{ExposeSecret, SecretString};

use super::LinkError;

/// A key pair and its certificate signing request, both PEM.
pub(super) struct NewKey {
    pem: SecretString,
    csr: String,
}

impl NewKey {
    /// Makes a key for this host.
    pub(super) fn generate(hostname: &str) -> Result<Self, LinkError> {
        let failed = |error: rcgen::Error| {
            LinkError::new(format!("no key for {hostname:?}: {error}"), "check collector.hostname")
        };
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, hostname);
        let csr = params.serialize_request(&pair).and_then(|csr| csr.pem()).map_err(failed)?;
        Ok(Self { pem: SecretString::from(pair.serialize_pem()), csr })
    }

    /// The private key.
    pub(super) fn pem(&self) -> &str {
        self.pem.expose_secret()
    }

    /// The request.
    pub(super) fn csr(&self) -> &str {
        &self.csr
    }
}
