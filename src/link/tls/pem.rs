//! Certificates and keys between files and rustls.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::files;
use crate::link::LinkError;

/// Reads a PEM file with one or more certificates; `key` is the configuration key that named it.
pub fn read_certificates(
    file: &Path,
    key: &str,
) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let pem = files::read_file(file).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let hint = if missing {
            format!("`agent register` makes it; or set {key} to a file that exists")
        } else {
            format!("let the agent's user read it, or set {key} to another file")
        };
        LinkError::new(format!("{key}: {error}"), hint)
    })?;
    certificates_from_pem(&pem, &format!("{key} {}", file.display()))
}

/// Reads certificates from PEM text; `what` names the source in errors.
pub fn certificates_from_pem(
    pem: &[u8],
    what: &str,
) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let hint = "it must hold PEM: -----BEGIN CERTIFICATE-----";
    let damaged = |why: String| LinkError::new(format!("{what} {why}"), hint);
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| damaged(format!("is damaged: {error}")))?;
    if certificates.is_empty() {
        return Err(damaged("holds no certificate".to_owned()));
    }
    for certificate in &certificates {
        x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| damaged(format!("holds a damaged certificate: {error}")))?;
    }
    Ok(certificates)
}

/// Reads a private key (PKCS#8, PKCS#1 or SEC1) from PEM text; `what` names the source in errors.
pub fn private_key_from_pem(pem: &[u8], what: &str) -> Result<PrivateKeyDer<'static>, LinkError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        // The error's text never contains the key.
        LinkError::new(
            format!("{what} holds no usable private key: {error}"),
            "it must hold an unencrypted PEM key: -----BEGIN PRIVATE KEY-----",
        )
    })
}

/// The certificates as PEM text, each once, in order.
pub fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for (n, certificate) in certificates.iter().enumerate() {
        if certificates[..n].contains(certificate) {
            continue;
        }
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = STANDARD.encode(certificate);
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
