//! From a TLS failure to its class, what it means and what to do.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::verify::{OtherFingerprint, SelfSigned};
use crate::clock;
use crate::link::{SendError, SendErrorKind};

/// Explains a failure of the connection to `authority`.
pub(crate) fn explain(error: &Error, authority: &str) -> SendError {
    match error {
        Error::InvalidCertificate(reason) => explain_certificate(reason, authority),
        Error::AlertReceived(alert) => explain_alert(*alert, authority),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => too_old(authority),
        Error::PeerIncompatible(why) => SendError::new(
            SendErrorKind::TlsVersion,
            &format!("no TLS 1.3 parameters in common with {authority}: {why:?}"),
            "the server must speak TLS 1.3; check a proxy that stands between",
        ),
        Error::InvalidMessage(_) => SendError::new(
            SendErrorKind::TlsOther,
            &format!("no TLS from {authority}: {error}"),
            "check the port and the scheme (https or http) in backend.url",
        ),
        Error::NoCertificatesPresented => SendError::new(
            SendErrorKind::TlsOther,
            &format!("no certificate from {authority}"),
            "configure a server certificate on the backend",
        ),
        _ => other(authority, &error.to_string()),
    }
}

fn other(authority: &str, why: &str) -> SendError {
    let hint = "look at the backend's log for the same moment";
    SendError::new(SendErrorKind::TlsOther, &format!("TLS with {authority} failed: {why}"), hint)
}

fn too_old(authority: &str) -> SendError {
    SendError::new(
        SendErrorKind::TlsVersion,
        &format!("no TLS 1.3 from {authority}"),
        "enable TLS 1.3 on the backend or on the proxy in front of it; older versions are refused",
    )
}

fn explain_certificate(reason: &CertificateError, authority: &str) -> SendError {
    let (kind, what, hint) = match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            SendErrorKind::TlsUnknownIssuer,
            "is from a CA that this host does not trust".to_owned(),
            "set tls.ca_file to the CA that signed the backend's certificate",
        ),
        CertificateError::NotValidForNameContext { expected, presented } => (
            SendErrorKind::TlsWrongName,
            format!("is for {}, not for {}", show_names(presented), expected.to_str()),
            "use a name of the certificate in backend.url, or give the backend a certificate for \
             this one",
        ),
        CertificateError::NotValidForName => (
            SendErrorKind::TlsWrongName,
            "is for another host name".to_owned(),
            "use a name of the certificate in backend.url",
        ),
        CertificateError::Expired => (SendErrorKind::TlsExpired, "has expired".into(), RENEW),
        CertificateError::ExpiredContext { not_after, .. } => (
            SendErrorKind::TlsExpired,
            format!("expired at {}; this host's clock says {}", show(*not_after), our_time()),
            RENEW,
        ),
        CertificateError::NotValidYet => {
            (SendErrorKind::TlsNotYetValid, "is not valid yet".into(), SET_CLOCK)
        }
        CertificateError::NotValidYetContext { not_before, .. } => (
            SendErrorKind::TlsNotYetValid,
            format!("is valid from {}; this host's clock says {}", show(*not_before), our_time()),
            SET_CLOCK,
        ),
        CertificateError::Other(inner) if inner.0.is::<SelfSigned>() => (
            SendErrorKind::TlsSelfSigned,
            "is self-signed and not known to this host".to_owned(),
            "set tls.ca_file to that certificate if it is really the backend's, or give the \
             backend one from a CA",
        ),
        CertificateError::Other(inner) if inner.0.is::<OtherFingerprint>() => (
            SendErrorKind::TlsUnknownIssuer,
            format!("does not match: {}", inner.0),
            "compare with the backend's CA; the backend must send its CA in the chain, else give \
             the fingerprint of its own certificate or use --ca FILE",
        ),
        _ => (SendErrorKind::TlsOther, format!("is refused: {reason}"), "replace the certificate"),
    };
    SendError::new(kind, &format!("server certificate of {authority} {what}"), hint)
}

const RENEW: &str = "renew the backend's certificate, or set this host's clock right";
const SET_CLOCK: &str = "is this host's clock behind?";

/// rustls gives names as `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn show_names(presented: &[String]) -> String {
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
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("{} s", at.as_secs()), clock::rfc3339)
}

fn our_time() -> String {
    clock::rfc3339(clock::now())
}

fn explain_alert(alert: AlertDescription, authority: &str) -> SendError {
    use AlertDescription as A;
    let refused = |kind, why: &str, hint: &str| {
        let what = format!("client certificate refused by {authority}: {why}");
        SendError::new(kind, &what, hint)
    };
    let again = "register again with `agent register --force`; if the backend refuses that, with \
                 the secret of `agent backend collector release NAME`";
    match alert {
        A::CertificateRequired | A::NoCertificate => {
            let hint = "set tls.cert_file and tls.key_file";
            refused(SendErrorKind::TlsNoClientCert, "it wants one and got none", hint)
        }
        A::UnknownCA => {
            let why = "it does not know the CA that signed it";
            refused(SendErrorKind::TlsClientCert, why, again)
        }
        A::CertificateExpired => {
            refused(SendErrorKind::TlsClientCertExpired, "it has expired", again)
        }
        A::CertificateRevoked => {
            refused(SendErrorKind::TlsClientCertRevoked, "it is revoked", again)
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::AccessDenied
        | A::DecryptError => refused(SendErrorKind::TlsClientCert, &format!("{alert:?}"), again),
        A::ProtocolVersion | A::InsufficientSecurity => too_old(authority),
        A::HandshakeFailure => SendError::new(
            SendErrorKind::TlsVersion,
            &format!("no TLS 1.3 parameters in common with {authority}"),
            "the server must speak TLS 1.3; check a proxy that stands between",
        ),
        A::UnrecognisedName => SendError::new(
            SendErrorKind::TlsWrongName,
            &format!("no host of that name at {authority}"),
            "check the host name in backend.url",
        ),
        _ => other(authority, &format!("it answered with the alert {alert:?}")),
    }
}
