//! Whether a certificate that the backend has given is one to show to it: an answer that is wrong,
//! or of another authority, must not take the place of a pair that works.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::certificate::X509Certificate;

use super::own::{Validity, unix_time};
use super::roots;
use crate::clock;
use crate::link::LinkError;

/// Checks a certificate, first of its chain, by the backend's time `now`: it is good now, for a
/// client, and of one of the `authorities`, where there are any.
pub fn check_issued(
    chain: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), LinkError> {
    let (leaf, parsed) = first(chain)?;
    let validity = Validity::of(leaf).ok_or_else(|| unusable("has no time that can be read"))?;
    if !validity.contains(now) {
        let (begins, ends) = (clock::rfc3339(validity.begins), clock::rfc3339(validity.ends));
        let now = clock::rfc3339(now);
        return Err(unusable(&format!("is good from {begins} to {ends}, and it is {now} there")));
    }
    let usage = parsed.extended_key_usage().map_err(|error| unusable(&error.to_string()))?;
    if usage.is_some_and(|usage| !usage.value.client_auth && !usage.value.any) {
        return Err(unusable("is not for clients"));
    }
    match authorities {
        [] => Ok(()),
        _ => verify(chain, authorities, unix_time(now)),
    }
}

/// Checks a certificate that is to follow `present`. Where that one is not of the `authorities`
/// that servers are trusted by, clients have another one, and the new one must be of it, too.
pub fn check_renewed(
    chain: &[CertificateDer<'static>],
    present: &CertificateDer<'static>,
    authorities: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), LinkError> {
    let began = Validity::of(present).map_or(now, |validity| validity.begins);
    let before = std::slice::from_ref(present);
    if !authorities.is_empty() && verify(before, authorities, unix_time(began)).is_ok() {
        return check_issued(chain, authorities, now);
    }
    check_issued(chain, &[], now)?;
    let ((_, new), (_, old)) = (first(chain)?, first(before)?);
    if new.issuer() == old.issuer() {
        return Ok(());
    }
    Err(unusable(&format!("is of {}, and the present one of {}", new.issuer(), old.issuer())))
}

fn verify(
    chain: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
    at: UnixTime,
) -> Result<(), LinkError> {
    let (leaf, above) = chain.split_first().ok_or_else(|| unusable("is missing"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(roots(authorities)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
    let verifier = verifier.map_err(|error| unusable(&error.to_string()))?;
    verifier.verify_client_cert(leaf, above, at).map(drop).map_err(|error| {
        unusable(&format!("is not of the authority that this host trusts ({error})"))
    })
}

fn first<'a>(
    chain: &'a [CertificateDer<'static>],
) -> Result<(&'a CertificateDer<'static>, X509Certificate<'a>), LinkError> {
    let leaf = chain.first().ok_or_else(|| unusable("is missing"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| unusable(&format!("is damaged: {error}")))?;
    Ok((leaf, parsed))
}

fn unusable(why: &str) -> LinkError {
    LinkError::new(
        format!("the certificate of the backend's answer {why}; it is not taken"),
        "look at the backend's authority and clock, and at what answers in its place",
    )
}
