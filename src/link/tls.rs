//! Trust and the client certificate: TLS 1.3 only, ring, and what each failure means.

mod explain;
mod issued; // what the backend gives
mod own;
mod pem;
mod verify;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use self::verify::Rule;
use super::{CertificateClock, LinkError, ServerClock, TlsConfig};

pub(super) use explain::explain;
pub(super) use issued::{check_issued, check_renewed};
pub(super) use own::unix_time;
pub use own::{ClientCertificate, OwnCertificate, Validity};
pub use pem::{
    certificates_from_pem, certificates_to_pem, private_key_from_pem, read_certificates,
};

/// Whose certificates are accepted from the server.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The roots of the operating system.
    System,
    /// These CA certificates and no others.
    Only(Vec<CertificateDer<'static>>),
    /// The roots of the operating system, and these CA certificates.
    SystemAnd(Vec<CertificateDer<'static>>),
    /// The one certificate with this fingerprint: a CA above the server's certificate, or that
    /// certificate itself.
    Pinned(Pin),
    /// `tls.verify = false`: any certificate. Said loudly where it is chosen.
    Anything,
}

impl Trust {
    /// What pushes trust: `tls.ca_file`, else the CA learned at registration, else the system.
    pub fn for_pushes(tls: &TlsConfig, learned_ca: Option<&Path>) -> Result<Self, LinkError> {
        if !tls.verify {
            tracing::warn!(
                "tls.verify = false: any server certificate is accepted, so anyone on the way can \
                 read and answer what this host sends"
            );
            return Ok(Self::Anything);
        }
        match tls.ca_file.as_deref().or(learned_ca) {
            Some(file) => Ok(Self::Only(read_certificates(file, "tls.ca_file")?)),
            None => Ok(Self::System),
        }
    }

    /// The CA certificates that are trusted by name; none where the system's roots or nothing is.
    pub(super) fn named(&self) -> &[CertificateDer<'static>] {
        match self {
            Self::Only(certificates) => certificates,
            Self::System | Self::SystemAnd(_) | Self::Pinned(_) | Self::Anything => &[],
        }
    }

    /// What is trusted of an `https` proxy: the system's roots, and `tls.ca_file` if it exists: a
    /// registration may be about to write it.
    pub fn for_proxies(tls: &TlsConfig) -> Result<Self, LinkError> {
        if !tls.verify {
            return Ok(Self::Anything);
        }
        match tls.ca_file.as_deref().filter(|file| file.exists()) {
            Some(file) => Ok(Self::SystemAnd(read_certificates(file, "tls.ca_file")?)),
            None => Ok(Self::System),
        }
    }
}

/// A certificate known by its SHA-256 before the first contact.
#[derive(Debug, Clone)]
pub struct Pin {
    fingerprint: Fingerprint,
    seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

impl Pin {
    /// Trusts the certificate with this fingerprint.
    pub fn new(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, seen: Arc::default() }
    }

    /// The certificate with the fingerprint, once a server has shown it.
    pub fn seen(&self) -> Option<CertificateDer<'static>> {
        self.seen.lock().ok()?.clone()
    }
}

/// The SHA-256 of a certificate's DER form, as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate.as_ref());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl FromStr for Fingerprint {
    type Err = LinkError;

    /// Takes 64 hexadecimal digits, with or without colons and a `sha256:` in front.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bare = text.trim().to_ascii_lowercase().replace("sha256:", "").replace(':', "");
        let mut bytes = [0; 32];
        let digits = bare.as_bytes().chunks_exact(2);
        if bare.len() != 64 || !bare.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(LinkError::new(
                format!("{text:?} is no SHA-256 fingerprint: 64 hexadecimal digits are needed"),
                "on the backend: openssl x509 -in ca.crt -noout -fingerprint -sha256",
            ));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let digit = |b: u8| (b as char).to_digit(16).unwrap_or(0);
            *byte = pair.iter().fold(0, |value, b| (value << 4) | (digit(*b) & 0xf) as u8);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// Who says whether the server's certificate is good now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// The host's clock.
    Host,
    /// The server's clock as far as it is known, where certain CA certificates are trusted.
    Server,
    /// Nobody: all but the time is verified, to ask for the time.
    Nobody,
}

impl Judge {
    /// The one that is configured.
    pub(super) fn of(clock: CertificateClock) -> Self {
        match clock {
            CertificateClock::Server => Self::Server,
            CertificateClock::Host => Self::Host,
        }
    }
}

/// A TLS 1.3 client with this trust, which shows `own` to servers that ask.
pub fn client_config(
    trust: Trust,
    own: Option<Arc<OwnCertificate>>,
) -> Result<ClientConfig, LinkError> {
    timed_client_config(trust, own, &ServerClock::default(), Judge::Host)
}

/// The same with another clock than the process's.
pub(super) fn timed_client_config(
    trust: Trust,
    own: Option<Arc<OwnCertificate>>,
    clock: &ServerClock,
    judge: Judge,
) -> Result<ClientConfig, LinkError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // A public CA certifies for anybody: there the host's own clock decides.
    let judge = if matches!(trust, Trust::Only(_)) { judge } else { Judge::Host };
    let verifier = verifier(trust, Arc::clone(&provider), clock, judge)?;
    let builder = ClientConfig::builder_with_details(provider, clock.for_certificates(judge))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| LinkError::new(format!("TLS 1.3 is unavailable: {error}"), "reinstall"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    // A resumed session would go on with the certificate that was shown when it began.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn verifier(
    trust: Trust,
    provider: Arc<CryptoProvider>,
    clock: &ServerClock,
    judge: Judge,
) -> Result<Arc<dyn ServerCertVerifier>, LinkError> {
    let chain = |roots| verify::Chain::new(roots, &provider);
    let rule = match trust {
        Trust::System => Rule::Chain(chain(system_roots()?)?),
        Trust::SystemAnd(certificates) => {
            let mut store = roots(&certificates)?;
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Rule::Chain(chain(store)?)
        }
        Trust::Only(certificates) => {
            Rule::Timed(chain(roots(&certificates)?)?, clock.clone(), judge)
        }
        Trust::Pinned(pin) => Rule::Pinned(pin),
        Trust::Anything => Rule::Anything,
    };
    Ok(Arc::new(verify::Verifier { rule, provider }))
}

fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, LinkError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate.clone()).map_err(|error| {
            LinkError::new(
                format!("a CA certificate is damaged: {error}"),
                "replace it with the backend's CA certificate (PEM)",
            )
        })?;
    }
    Ok(store)
}

fn system_roots() -> Result<RootCertStore, LinkError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(LinkError::new(
            format!("this system has no CA certificates{why}"),
            "set tls.ca_file to the backend's CA, or install the package ca-certificates",
        ));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_tools_print_them() {
        let hex = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let colons = "00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:\
                      00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF";
        let check = |text: &str| {
            let read = text.parse::<Fingerprint>().map(|f| f.to_string());
            assert_eq!(read, Ok(colons.to_owned()), "{text}");
        };
        check(hex);
        check(colons);
        check(&format!("SHA256:{hex}"));
        let refuse = |text: &str| {
            let error = text.parse::<Fingerprint>().expect_err(text).to_string();
            assert!(error.contains("64 hexadecimal digits"), "{error}");
        };
        refuse("");
        refuse(&hex[2..]);
        refuse(&hex.replace('0', "g"));
        refuse(&"\u{e9}".repeat(32));
    }
}
