//! Client certificates whose end has passed: their hosts may register again, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::backend::pki;

/// How long after its end a certificate still shows whose host it was.
const FORGIVEN: Duration = Duration::from_secs(400 * 86_400);

/// Judges a certificate that has just ended by the last second of its life.
#[derive(Debug)]
pub(super) struct Late(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Late {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judge = |at| self.0.verify_client_cert(end_entity, intermediates, at);
        let has_ended = |error: &Error| {
            use CertificateError::{Expired, ExpiredContext};
            matches!(error, Error::InvalidCertificate(Expired | ExpiredContext { .. }))
        };
        match judge(now) {
            Err(error) if has_ended(&error) => {
                let end = pki::client_certificate(end_entity).map(|shown| shown.ends.as_second());
                let end = end.and_then(|end| u64::try_from(end).ok()).map(Duration::from_secs);
                let is_forgiven = |end: &Duration| now.as_secs() < (*end + FORGIVEN).as_secs();
                match end.filter(is_forgiven) {
                    Some(end) => judge(UnixTime::since_unix_epoch(end)),
                    None => Err(error),
                }
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
