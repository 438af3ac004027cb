//! From a failed handshake to what it means and what to do.

use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use super::TlsFailure;
use crate::clock;

const RENEW: &str = "renew the server's certificate, or set this host's clock right";
const SET_CLOCK: &str = "is this host's clock behind?";
const NAME: &str =
    "write postgres.host as the certificate has it, or give the server a certificate for this name";
const CA: &str = "set postgres.sslrootcert to the certificate of the CA that signed the server's";

/// Explains an error of a TLS stream; also one that comes later: with TLS 1.3 a server refuses the
/// agent's certificate after the handshake.
pub(in crate::collect::postgres) fn explain(error: &io::Error) -> TlsFailure {
    match tls_error(error) {
        Some(Error::InvalidCertificate(reason)) => explain_certificate(reason),
        Some(Error::AlertReceived(alert)) => explain_alert(*alert),
        Some(Error::PeerIncompatible(why)) => TlsFailure::new(
            format!("the server and the agent have no TLS in common: {why:?}"),
            "the server must speak TLS 1.2 or 1.3",
        ),
        _ => TlsFailure::new(
            format!("TLS with the server failed: {error}"),
            "the server's log says more; is something between that ends connections?",
        ),
    }
}

/// The error of TLS that `error` carries.
pub(in crate::collect::postgres) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn explain_certificate(reason: &CertificateError) -> TlsFailure {
    let (what, hint) = match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("is from a CA that this host does not trust".to_owned(), CA)
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let (names, expected) = (names(presented), expected.to_str());
            (format!("is for {names}, not for {expected}"), NAME)
        }
        CertificateError::NotValidForName => ("is for another host".to_owned(), NAME),
        CertificateError::Expired => ("has expired".to_owned(), RENEW),
        CertificateError::ExpiredContext { not_after, .. } => {
            (format!("expired at {}; this host's clock says {}", show(*not_after), now()), RENEW)
        }
        CertificateError::NotValidYet => ("is not valid yet".to_owned(), SET_CLOCK),
        CertificateError::NotValidYetContext { not_before, .. } => (
            format!("is valid from {}; this host's clock says {}", show(*not_before), now()),
            SET_CLOCK,
        ),
        reason => {
            let hint = "replace it: an X.509 certificate of version 3, for a server";
            (format!("is refused: {reason}"), hint)
        }
    };
    TlsFailure::new(format!("the server's certificate {what}"), hint)
}

fn explain_alert(alert: AlertDescription) -> TlsFailure {
    use AlertDescription as A;
    let (why, hint) = match alert {
        A::CertificateRequired | A::NoCertificate => {
            ("it wants a certificate".to_owned(), "set postgres.sslcert and postgres.sslkey")
        }
        A::UnknownCA => (
            "it does not know the CA of the agent's certificate".to_owned(),
            "postgres.sslcert must be of a CA in the server's ssl_ca_file",
        ),
        A::CertificateExpired => {
            ("the agent's certificate has expired".to_owned(), "renew postgres.sslcert")
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::CertificateRevoked
        | A::AccessDenied
        | A::DecryptError => {
            (format!("{alert:?} (the agent's certificate)"), "check postgres.sslcert")
        }
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity => {
            (format!("{alert:?}"), "the server must speak TLS 1.2 or 1.3")
        }
        _ => (format!("{alert:?}"), "the server's log says more"),
    };
    TlsFailure::new(format!("the server ends TLS: {why}"), hint)
}

/// rustls gives names as `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    match presented {
        [] => "no name at all".to_owned(),
        names => names.iter().map(bare).collect::<Vec<_>>().join(", "),
    }
}

fn show(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| format!("{} s", at.as_secs()), clock::rfc3339)
}

fn now() -> String {
    clock::rfc3339(clock::now())
}
