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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::{SignedDuration, Timestamp};
    use rcgen::{CertificateParams, KeyPair};
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::backend::pki::Authority;

    /// A certificate of an hour shows whose host it was for 400 days after its end, and proves
    /// nothing before its time or of another authority.
    #[test]
    fn an_ended_certificate_is_forgiven_for_400_days() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let hour = Duration::from_secs(3600);
        let (authority, _) = Authority::create(start).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem());
        let csr = csr.expect("a request");
        let issued = authority.certify_client(&csr, "c-1", start, hour).expect("a certificate");
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM");
        let late = |authority: &Authority| {
            let mut roots = RootCertStore::empty();
            let pem = authority.certificate_pem().as_bytes();
            roots.add(CertificateDer::from_pem_slice(pem).expect("PEM")).expect("a root");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            Late(builder.build().expect("a verifier"))
        };
        let judge = |late: &Late, after: SignedDuration| {
            let at = (start + hour + after).as_second().try_into().expect("after 1970");
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            late.verify_client_cert(&der, &[], now).map(|_| ())
        };
        let check = |after: SignedDuration, is_forgiven: bool| {
            let judged = judge(&late(&authority), after);
            assert_eq!(judged.is_ok(), is_forgiven, "{after}: {judged:?}");
            let has_ended = matches!(
                judged,
                Ok(())
                    | Err(Error::InvalidCertificate(
                        CertificateError::Expired | CertificateError::ExpiredContext { .. }
                    ))
            );
            assert!(has_ended, "{after}: {judged:?}");
        };
        let (day, second) = (SignedDuration::from_hours(24), SignedDuration::from_secs(1));
        check(-second, true);
        check(second, true);
        check(day * 399, true);
        check(day * 400 - second, true);
        check(day * 400, false);
        check(day * 401, false);
        let (stranger, _) = Authority::create(start).expect("an authority");
        assert!(judge(&late(&stranger), second).is_err());
        let before = judge(&late(&authority), -day * 4);
        assert!(before.is_err(), "it has not begun");
    }
}
