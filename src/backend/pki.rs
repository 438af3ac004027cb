//! The backend's certificate authority: it signs its own server certificate and those of
//! collectors.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use ring::digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;

use super::auth::random;

/// How far behind a host's clock may be and still find the certificates begun. That of a client is
/// backdated by a tenth of its life at most: agents renew by the part of it that has passed.
const BACKDATE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The authority outlives the hosts that trust it: changing it means visiting each.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(20 * 365 * 24);
/// Renewed when [`RENEW_BEFORE`] is left.
const SERVER_LIFE: SignedDuration = SignedDuration::from_hours(2 * 365 * 24);
/// Long enough for a person to see to a disk that does not take the new one.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(180 * 24);

/// The key and certificate that sign all others.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A collector's new certificate.
#[derive(Debug)]
pub(super) struct Issued {
    /// The certificate, PEM.
    pub(super) certificate: String,
    /// Its key, PEM, only when it was made here.
    pub(super) private_key: Option<String>,
    /// SHA-256 of the certificate, lower-case hex.
    pub(super) thumbprint: String,
    /// Its end.
    pub(super) expires_at: Timestamp,
}

/// What a client's certificate proves.
#[derive(Debug, Clone)]
pub(super) struct ClientCertificate {
    /// SHA-256 of the certificate, lower-case hex.
    pub(super) thumbprint: String,
    /// Its end.
    pub(super) ends: Timestamp,
    /// The collector that it was made for, as its subject says.
    pub(super) collector: Option<Uuid>,
}

/// What is to be done about the server certificate that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing: it is good for a while.
    Good,
    /// It is made anew, for this reason.
    Stale(&'static str),
    /// Another authority has signed it: whoever put it there renews it.
    Foreign,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PkiError {
    /// The request is none, or is not signed by its own key.
    #[error("not a usable certificate signing request: {0}")]
    Request(rcgen::Error),
    /// A key or certificate of the backend's own cannot be used.
    #[error("{0}")]
    Own(#[from] rcgen::Error),
    /// A certificate cannot be read.
    #[error("not a certificate in PEM form")]
    Unreadable,
}

impl Authority {
    /// A new authority and its key in PEM.
    pub(super) fn create(now: Timestamp) -> Result<(Self, String), PkiError> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("pgAnalytics backend authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        (params.not_before, params.not_after) = span(now, AUTHORITY_LIFE);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok((Self::load(certificate_pem, &key_pem)?, key_pem))
    }

    /// The authority whose certificate and key were kept.
    pub(super) fn load(certificate_pem: String, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// The certificate that agents trust, PEM.
    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// From when to when the authority's own certificate is good.
    pub(super) fn validity(&self) -> Result<(Timestamp, Timestamp), PkiError> {
        let der = der_of(&self.certificate_pem)?;
        validity(&parse(&der)?)
    }

    /// What is to be done about a server certificate for `names`: one of this authority is made
    /// anew when it has other names, its end is near, or it has not begun, as one that was made
    /// while the clock was ahead.
    pub(super) fn standing(
        &self,
        certificate_pem: &str,
        names: &[String],
        now: Timestamp,
    ) -> Result<Standing, PkiError> {
        let (der, own) = (der_of(certificate_pem)?, der_of(&self.certificate_pem)?);
        let certificate = parse(&der)?;
        if !is_signed_by(&certificate, &parse(&own)?) {
            return Ok(Standing::Foreign);
        }
        let (begins, ends) = validity(&certificate)?;
        if now < begins {
            return Ok(Standing::Stale("it was not valid yet"));
        }
        if ends.duration_since(now) < RENEW_BEFORE {
            return Ok(Standing::Stale("its end was near"));
        }
        let wanted = CertificateParams::new(names)?.subject_alt_names.len();
        let held = certificate.subject_alternative_name().map_err(|_| PkiError::Unreadable)?;
        let held: Vec<String> = held
            .map(|names| names.value.general_names.iter().map(shown).collect())
            .unwrap_or_default();
        let is_for_names = held.len() == wanted && names.iter().all(|name| held.contains(name));
        Ok(if is_for_names { Standing::Good } else { Standing::Stale("it was for other names") })
    }

    /// A server certificate for `names`, PEM.
    pub(super) fn certify_server(
        &self,
        names: &[String],
        key: &KeyPair,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named("pgAnalytics backend");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        (params.not_before, params.not_after) = span(now, SERVER_LIFE);
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// A client certificate for the key that signed `csr`. Nothing else of the request is taken:
    /// the subject is `name`, the purpose is to be a client.
    pub(super) fn certify_client(
        &self,
        csr: &str,
        name: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr).map_err(PkiError::Request)?;
        let expires_at = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let tenth = SignedDuration::try_from(life / 10).unwrap_or(BACKDATE);
        params.not_before = moment(now.saturating_sub(tenth.min(BACKDATE)).unwrap_or(now));
        params.not_after = moment(expires_at);
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        if !has_key_of(certificate.der(), csr) {
            return Err(PkiError::Request(rcgen::Error::UnsupportedSignatureAlgorithm));
        }
        Ok(Issued {
            certificate: certificate.pem(),
            private_key: None,
            thumbprint: thumbprint(certificate.der()),
            expires_at,
        })
    }

    /// A client certificate and its key, for a collector that cannot make a request.
    pub(super) fn certify_client_with_key(
        &self,
        name: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        let issued = self.certify_client(&csr, name, now, life)?;
        Ok(Issued { private_key: Some(key.serialize_pem()), ..issued })
    }
}

/// Reads a client's certificate; `None` unless its usage is to be a client.
pub(super) fn client_certificate(der: &[u8]) -> Option<ClientCertificate> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let usage = certificate.extended_key_usage().ok()??;
    if !usage.value.client_auth {
        return None;
    }
    let ends = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
    let subject = certificate.subject().iter_common_name().next();
    let collector = subject.and_then(|name| name.as_str().ok()?.parse().ok());
    Some(ClientCertificate { thumbprint: thumbprint(der), ends, collector })
}

/// Whether a certificate has the key that `csr` is for, kind and curve included: these the signer
/// infers from the algorithm that signed the request, which need not be the one of such a key.
fn has_key_of(certificate: &[u8], csr: &str) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(csr.as_bytes()) else { return false };
    let request = X509CertificationRequest::from_der(&pem.contents);
    let (Ok((_, request)), Ok(certificate)) = (request, parse(certificate)) else { return false };
    request.certification_request_info.subject_pki.raw == certificate.public_key().raw
}

fn der_of(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Unreadable)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let parsed = x509_parser::parse_x509_certificate(der).map_err(|_| PkiError::Unreadable)?;
    Ok(parsed.1)
}

fn validity(certificate: &X509Certificate<'_>) -> Result<(Timestamp, Timestamp), PkiError> {
    let validity = certificate.validity();
    let time = |at: i64| Timestamp::from_second(at).map_err(|_| PkiError::Unreadable);
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// Whether a certificate names `authority` and its key as its issuer. All authorities that were
/// made here have one name. No signature is checked: who may write the file has the keys, too.
fn is_signed_by(certificate: &X509Certificate<'_>, authority: &X509Certificate<'_>) -> bool {
    let issuer =
        certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(of) => of.key_identifier.as_ref(),
            _ => None,
        });
    let own =
        authority.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(own) => Some(own),
            _ => None,
        });
    certificate.issuer() == authority.subject() && issuer.is_some() && issuer == own
}

/// SHA-256 of a certificate in DER, lower-case hex.
pub(super) fn thumbprint(der: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, der).as_ref())
}

/// Bytes as lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn shown(name: &x509_parser::extensions::GeneralName<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                std::net::Ipv4Addr::from(v4).to_string()
            } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                std::net::Ipv6Addr::from(v6).to_string()
            } else {
                String::new()
            }
        }
        other => other.to_string(),
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// 127 random bits: positive, as X.509 asks.
fn serial() -> SerialNumber {
    let mut bytes = random::<16>();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn span(now: Timestamp, life: SignedDuration) -> (OffsetDateTime, OffsetDateTime) {
    let from = now.saturating_sub(BACKDATE).unwrap_or(now);
    (moment(from), moment(now.saturating_add(life).unwrap_or(Timestamp::MAX)))
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_server_certificate_is_renewed_for_new_names_and_near_its_end() {
        let (authority, _) = Authority::create(now()).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let held = names(&["localhost", "127.0.0.1", "::1"]);
        let pem = authority.certify_server(&held, &key, now()).expect("a certificate");
        let check = |wanted: &[&str], days: i64, expected: Standing| {
            let at = now() + SignedDuration::from_hours(days * 24);
            assert_eq!(authority.standing(&pem, &names(wanted), at).expect("readable"), expected);
        };
        let all = ["localhost", "127.0.0.1", "::1"];
        check(&all, 0, Standing::Good);
        check(&["::1", "localhost", "127.0.0.1"], 500, Standing::Good);
        check(&all, 600, Standing::Stale("its end was near"));
        check(&all, 1_000, Standing::Stale("its end was near"));
        check(&all, -29, Standing::Good);
        check(&all, -31, Standing::Stale("it was not valid yet"));
        let other_names = Standing::Stale("it was for other names");
        check(&["localhost", "127.0.0.1"], 0, other_names);
        check(&["localhost", "127.0.0.1", "db.example.com"], 0, other_names);
        let (other, _) = Authority::create(now()).expect("an authority");
        assert_eq!(other.standing(&pem, &held, now()).expect("readable"), Standing::Foreign);
    }

    #[test]
    fn only_the_key_of_a_request_is_taken() {
        let (authority, _) = Authority::create(now()).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names(&["evil.example.com"])).expect("a name");
        params.distinguished_name = named("somebody else");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).expect("a request");
        let life = Duration::from_secs(3600);
        let issued = authority.certify_client(&csr, "c-1", now(), life).expect("a certificate");
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM");
        assert_eq!(issued.thumbprint, thumbprint(&der));
        let (_, read) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        assert_eq!(read.subject().to_string(), "CN=c-1");
        assert!(!read.is_ca());
        assert!(read.subject_alternative_name().expect("readable").is_none());
        assert_eq!(read.validity().not_after.timestamp(), now().as_second() + 3600);
        assert_eq!(read.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let (authority, _) = Authority::create(now()).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        let mut der = csr.der().to_vec();
        *der.last_mut().expect("not empty") ^= 1;
        let pem = pem_of(&der);
        let life = Duration::from_secs(3600);
        for text in [pem.as_str(), "", "no PEM"] {
            let refused = authority.certify_client(text, "c-1", now(), life);
            assert!(matches!(refused, Err(PkiError::Request(_))), "{text}");
        }
    }

    /// Requests whose hash is not the one that goes with their curve: P-384 with SHA-256 and P-256
    /// with SHA-384.
    const CROSSED: [&str; 2] = [
        "MIH3MH8CAQAwADB2MBAGByqGSM49AgEGBSuBBAAiA2IABMuwuLCl1Q45ONfi5rdd\
         8l4g7YJ+M/0nzNpUHprkJJt9TpJp0xNYg9ZCPpRnOmkVFuqMHub/yDldbZJ+EB5s\
         B1vyqELD6ISNd35aVNLe55TNtz2pK0UUkbW40UoVJbkZwqAAMAoGCCqGSM49BAMC\
         A2gAMGUCMGx07GVWwmtC10Wc0sAgl7XcKmoHh4unVeyfeSmRYXFkyCfx3fAOp4Zy\
         OUXIuc7gegIxAIh/oiECyqkQSUFX83HJChIr/D6DrS47DF/3UTV4Q7KiR2pMFvMt\
         wa76K5XwDggfoQ==",
        "MIG5MGICAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABGt9tji26uwEQeaE\
         DebYzDNQ7hft3lxZLYr5Ff1ySUW3Q/LJWYssx8+LBC2faEFdiNj8LEeY83A08Si+\
         sKF8QFygADAKBggqhkjOPQQDAwNHADBEAiB3jn+sn7x1vGVqGRuo7ZjCeUVD1uMW\
         2ryntFHYQPXyagIgPeY1ugyvaZs+dY/5c7EvMvneUXLTbCYzxVU5CpcKVY0=",
    ];

    const RSA: &str = "MIICRTCCAS0CAQAwADCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBANZr\
         iLpKkf2dL7d//gyW7v+GpUA/R/SKSTO1cUsURQea+jvSkwLI2AicQOX4INfBAVU5\
         oyZ1ZFiK6sZXjOlwOVWA+4rMlUQ5KG+LWUZo3L0hWXND+ADYJzE0ZNY3FMH2y3D5\
         h9iWQyOtLvlanmd/+6hQGk3ygbO+zsHQwNu7AQ+TlZtp0SV/fdKHAggByt5wsVFR\
         jQMuZeGAbPXgEruCogMBm23YJJTpkrzX6BrikTLkaOC3YvPLc28eQ5brE1r4yMbN\
         FgNKb2a5GAu94GBxM4BGcjaGMNdZHsRLmcUoYNrHl6OCL9ijz4V/3pwHRknaZE37\
         IKgxcYLzIr+PDqit3j8CAwEAAaAAMA0GCSqGSIb3DQEBCwUAA4IBAQCBLQnkBJhT\
         ovas3C1oGNwtH1nmYcUFbVXtM23h66qD6ieOrpv7tTPuZWNLxrAsANOu6DFOUqlM\
         yMJnh/nQne9A7KaJKHBeY911rFZLvnBiJasUjje6BBaMe/3aBggN2ek1Ms45+FwJ\
         HGWBuHTM0G2lXpgmkUTZTmV0kpJRln8c48Ic8YeLkziRw8IgAG9wKcczADH+Kkzs\
         hL5azDFP443JOniiDyHpIsLzWp9fcLt97ZhYIheTUu3+WZnkrueTNqtREUSIC7lb\
         oBQk2kqj3QFfGj26ZjHgJ+kKT4MpmDYIrqGzPPTli5gOHqMriHEXmcF4D3APx0Ye\
         WC2Vxk9V9KoF";

    /// A certificate has the key of its request, or is not made.
    #[test]
    fn a_request_whose_key_would_not_be_certified_is_refused() {
        let (authority, _) = Authority::create(now()).expect("an authority");
        for request in CROSSED {
            let pem = labelled(request);
            let refused = authority.certify_client(&pem, "c-1", now(), Duration::from_secs(3600));
            assert!(matches!(refused, Err(PkiError::Request(_))), "{refused:?}");
        }
        let rsa = labelled(RSA);
        authority.certify_client(&rsa, "c-1", now(), Duration::from_secs(3600)).expect("sound");
    }

    fn pem_of(der: &[u8]) -> String {
        use base64::Engine as _;
        labelled(&base64::engine::general_purpose::STANDARD.encode(der))
    }

    fn labelled(text: &str) -> String {
        let label = "CERTIFICATE REQUEST";
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }
}
