//! What is asked of a server's certificate: a CA, with better reasons, a fingerprint, nothing.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::{Fingerprint, Judge, Pin, Validity};
use crate::link::{LinkError, ServerClock};

/// The server's certificate is signed by its own key and is not itself trusted.
#[derive(Debug)]
pub(super) struct SelfSigned;

/// No certificate the server shows has the fingerprint that was asked for.
#[derive(Debug)]
pub(super) struct OtherFingerprint {
    shown: Vec<Fingerprint>,
}

impl fmt::Display for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("self-signed certificate")
    }
}

impl fmt::Display for OtherFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server shows other certificates than the fingerprint's:")?;
        self.shown.iter().try_for_each(|shown| write!(f, " {shown}"))
    }
}

impl StdError for SelfSigned {}
impl StdError for OtherFingerprint {}

fn other(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Verifies a server's certificate by a [`Rule`]. Whatever that is, the server must have the
/// certificate's key: the handshake's signature is always checked.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) rule: Rule,
    pub(super) provider: Arc<CryptoProvider>,
}

/// Which certificates are accepted.
#[derive(Debug)]
pub(super) enum Rule {
    /// Those of a CA.
    Chain(Chain),
    /// The same at the time that the [`Judge`] says; tells the clock what it has seen.
    Timed(Chain, ServerClock, Judge),
    /// The one with a fingerprint, or those whose chain ends in it.
    Pinned(Pin),
    /// `tls.verify = false`: any.
    Anything,
}

/// The ordinary verification, which tells a self-signed certificate from an unknown CA's.
#[derive(Debug)]
pub(super) struct Chain(Arc<WebPkiServerVerifier>);

/// What a server has shown, to whom it was connected, and when.
#[derive(Clone, Copy)]
struct Shown<'a> {
    end_entity: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    server_name: &'a ServerName<'a>,
    ocsp_response: &'a [u8],
    now: UnixTime,
}

impl Chain {
    pub(super) fn new(
        roots: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, LinkError> {
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build()
                .map_err(|error| {
                    LinkError::new(
                        format!("the CA certificates cannot be used: {error}"),
                        "set tls.ca_file to the backend's CA",
                    )
                })?;
        Ok(Self(inner))
    }

    fn verify(&self, shown: Shown<'_>) -> Result<ServerCertVerified, Error> {
        let Shown { end_entity, intermediates, server_name, ocsp_response, now } = shown;
        self.0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| match &error {
                Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::Other(_),
                ) if is_self_signed(end_entity) => other(SelfSigned),
                _ => error,
            })
    }
}

impl Rule {
    fn verify(
        &self,
        shown: Shown<'_>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Self::Chain(chain) => chain.verify(shown),
            Self::Timed(chain, clock, judge) => {
                let validity = Validity::of(shown.end_entity);
                let now = match (judge, validity) {
                    (Judge::Nobody, Some(validity)) => validity.nearest(shown.now),
                    _ => shown.now,
                };
                let verified = chain.verify(Shown { now, ..shown })?;
                if let Some(validity) = validity {
                    clock.saw(validity);
                }
                Ok(verified)
            }
            Self::Pinned(pin) => pin.verify(shown, provider),
            Self::Anything => Ok(ServerCertVerified::assertion()),
        }
    }
}

impl Pin {
    fn verify(
        &self,
        shown: Shown<'_>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<ServerCertVerified, Error> {
        let is_it =
            |certificate: &CertificateDer<'_>| Fingerprint::of(certificate) == self.fingerprint;
        if is_it(shown.end_entity) {
            // The very certificate was named; its key is proven by the handshake's signature.
            self.remember(shown.end_entity);
            return Ok(ServerCertVerified::assertion());
        }
        let Some(ca) = shown.intermediates.iter().find(|above| is_it(above)) else {
            let all = std::iter::once(shown.end_entity).chain(shown.intermediates);
            return Err(other(OtherFingerprint { shown: all.map(Fingerprint::of).collect() }));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        Chain::new(roots, provider)
            .map_err(|error| Error::General(error.to_string()))?
            .verify(shown)
            .inspect(|_| self.remember(ca))
    }

    fn remember(&self, certificate: &CertificateDer<'_>) {
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(certificate.clone().into_owned());
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Shown { end_entity, intermediates, server_name, ocsp_response, now };
        self.rule.verify(shown, &self.provider)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.issuer() == parsed.subject())
}
