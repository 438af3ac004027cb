//! What rustls does not read of a certificate: its common name, and what a login is bound to.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// Whether the certificate has no other names of hosts, and its common name is that of the server,
/// as libpq compares them.
pub(super) fn common_name_is(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let Some(parsed) = parse(certificate) else { return false };
    let host = name.to_str();
    !has_names(&parsed)
        && parsed
            .subject()
            .iter_common_name()
            .filter_map(|common| common.as_str().ok())
            .any(|common| is_meant(common, &host))
}

/// Whether `now` is between the certificate's dates.
pub(super) fn is_in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let bad = |reason| Err(Error::InvalidCertificate(reason));
    let Some(parsed) = parse(certificate) else { return bad(CertificateError::BadEncoding) };
    let time = |at: x509_parser::time::ASN1Time| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(at.timestamp()).unwrap_or(0),
        ))
    };
    let (not_before, not_after) =
        (time(parsed.validity().not_before), time(parsed.validity().not_after));
    if now > not_after {
        return bad(CertificateError::ExpiredContext { time: now, not_after });
    }
    if now < not_before {
        return bad(CertificateError::NotValidYetContext { time: now, not_before });
    }
    Ok(())
}

/// `tls-server-end-point`: the certificate's digest, by the algorithm that it is signed with. None
/// for a certificate whose algorithm has no digest of its own: PostgreSQL binds nothing to it
/// either.
pub(super) fn digest(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = parse(certificate)?;
    let signed_with = &parsed.signature_algorithm;
    let oid = match SignatureAlgorithm::try_from(signed_with) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => {
            parameters.hash_algorithm_oid().to_id_string()
        }
        _ => signed_with.algorithm.to_id_string(),
    };
    let digest = ring::digest::digest(algorithm(&oid)?, certificate);
    Some(digest.as_ref().to_vec())
}

/// MD5 and SHA-1 count as SHA-256, says RFC 5929.
fn algorithm(oid: &str) -> Option<&'static Algorithm> {
    match oid {
        "1.2.840.113549.1.1.4" // MD5 with RSA
        | "1.2.840.113549.1.1.5" // SHA-1 with RSA
        | "1.2.840.10045.4.1" // ECDSA with SHA-1
        | "1.3.14.3.2.26" // SHA-1
        | "1.2.840.113549.1.1.11" // SHA-256 with RSA
        | "1.2.840.10045.4.3.2" // ECDSA with SHA-256
        | "2.16.840.1.101.3.4.2.1" => Some(&SHA256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Some(&SHA384)
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Some(&SHA512)
        }
        _ => None,
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(certificate).ok().map(|(_, parsed)| parsed)
}

fn has_names(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name();
    let is_host = |name: &GeneralName<'_>| {
        matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
    };
    match names {
        Ok(names) => names.is_some_and(|names| names.value.general_names.iter().any(is_host)),
        // One that stands there twice, or cannot be read, is not a reason to look elsewhere.
        Err(_) => true,
    }
}

/// A `*` at the beginning stands for one label.
fn is_meant(common: &str, host: &str) -> bool {
    if common.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(rest), Some((_, domain))) = (common.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    rest.contains('.') && rest.eq_ignore_ascii_case(domain)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519,
    };

    use super::*;

    fn certificate(common: &str, names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_common_name_counts_where_there_is_no_other() {
        let check = |common: &str, names: &[&str], host: &str, expected: bool| {
            let name = ServerName::try_from(host.to_owned()).unwrap();
            let certificate = certificate(common, names);
            assert_eq!(common_name_is(&certificate, &name), expected, "{common} {names:?} {host}");
        };
        check("db.example.com", &[], "db.example.com", true);
        check("DB.example.com", &[], "db.Example.com", true);
        check("db.example.com", &["other.example.com"], "db.example.com", false);
        check("db.example.com", &["192.0.2.1"], "db.example.com", false);
        check("db.example.com", &[], "example.com", false);
        check("*.example.com", &[], "db.example.com", true);
        check("*.example.com", &[], "a.db.example.com", false);
        check("*.example.com", &[], "example.com", false);
        check("*.com", &[], "example.com", false);
        check("*", &[], "db", false);
        check("192.0.2.1", &[], "192.0.2.1", true);
    }

    /// The digest has the length of that of the signature; Ed25519 has none.
    #[test]
    fn the_end_point_is_digested_as_it_is_signed() {
        let signed = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec!["db".to_owned()]).unwrap();
            digest(params.self_signed(&key).unwrap().der()).map(|digest| digest.len())
        };
        assert_eq!(signed(&PKCS_ECDSA_P256_SHA256), Some(32));
        assert_eq!(signed(&PKCS_ECDSA_P384_SHA384), Some(48));
        assert_eq!(signed(&PKCS_ED25519), None);
        assert!(algorithm("1.2.840.113549.1.1.5").is_some_and(|it| *it == SHA256));
        assert!(algorithm("1.2.840.113549.1.1.13").is_some_and(|it| *it == SHA512));
    }
}
