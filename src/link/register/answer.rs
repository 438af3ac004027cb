//! What the backend said to a registration: the parts, checked, or the reason in plain words.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use uuid::Uuid;

use super::{RegisterError, Registration};
use crate::answer::{Answer, Meaning};
use crate::link::LinkError;
use crate::link::tls::{ClientCertificate, certificates_from_pem};
use crate::link::token::Token;

/// `RegisterResponse` of the contract; the optional parts are missing from older backends.
#[derive(Deserialize)]
struct Body {
    collector_id: String,
    name: Option<String>,
    token: Option<String>,
    certificate: String,
    private_key: Option<String>,
    ca_certificate: Option<String>,
    secret: Option<String>,
    expires_at: Option<Timestamp>,
    certificate_expires_at: Option<Timestamp>,
}

/// A checked answer.
pub(super) struct Accepted {
    pub(super) collector_id: String,
    /// The name that the collector has, which may not be the one that was asked for.
    pub(super) name: Option<String>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) ca_certificates: Vec<CertificateDer<'static>>,
    pub(super) secret: Option<SecretString>,
    pub(super) token: Option<Token>,
    pub(super) certificate_expires_at: Option<Timestamp>,
    private_key: Option<SecretString>,
}

impl Accepted {
    /// The key that the certificate is for: ours, or that of a backend which ignores requests for
    /// signing and makes keys itself.
    pub(super) fn private_key_for<'a>(&'a self, ours: &'a str) -> Result<&'a str, LinkError> {
        let fits = |key: &str| {
            ClientCertificate::from_parts(self.certificates.clone(), key)
                .and_then(ClientCertificate::check)
                .is_ok()
        };
        if fits(ours) {
            return Ok(ours);
        }
        match self.private_key.as_ref().map(ExposeSecret::expose_secret) {
            Some(theirs) if fits(theirs) => Ok(theirs),
            _ => Err(LinkError::new(
                "the certificate of the backend's answer is for another key",
                "report this to the backend's operator",
            )),
        }
    }
}

/// Reads a registration's answer.
pub(super) fn read(
    answer: &Answer,
    registration: &Registration,
) -> Result<Accepted, RegisterError> {
    if answer.meaning() != Meaning::Success {
        return Err(RegisterError::Refused(refusal(answer, registration)));
    }
    let damaged = |why: String| {
        let what = format!("the backend's answer cannot be used: {why}");
        LinkError::new(what, "is backend.url really the pgAnalytics backend, and up to date?")
    };
    let body: Body =
        serde_json::from_slice(&answer.body).map_err(|error| damaged(error.to_string()))?;
    // It becomes a part of paths, headers and lines.
    let id = Uuid::try_parse(&body.collector_id).ok();
    let id = id.filter(|id| id.to_string().eq_ignore_ascii_case(&body.collector_id));
    if id.is_none() {
        return Err(damaged("collector_id is not a UUID".to_owned()).into());
    }
    if body.secret.is_none() && body.token.is_none() {
        return Err(damaged("it holds neither secret nor token".to_owned()).into());
    }
    let source = "the backend's answer";
    let ca_certificates = match &body.ca_certificate {
        Some(pem) => certificates_from_pem(pem.as_bytes(), &format!("ca_certificate of {source}"))?,
        None => Vec::new(),
    };
    let certificates =
        certificates_from_pem(body.certificate.as_bytes(), &format!("certificate of {source}"))?;
    Ok(Accepted {
        collector_id: body.collector_id,
        name: body.name,
        certificates,
        ca_certificates,
        secret: body.secret.map(SecretString::from),
        token: body.token.map(|token| {
            // Without a time it counts as used up, and is renewed before the first push.
            Token::new(SecretString::from(token), body.expires_at.unwrap_or(Timestamp::UNIX_EPOCH))
        }),
        certificate_expires_at: body.certificate_expires_at,
        private_key: body.private_key.map(SecretString::from),
    })
}

fn refusal(answer: &Answer, registration: &Registration) -> LinkError {
    let (status, message, shown) = (answer.status, answer.message(), answer.shown());
    let url = &registration.link.url;
    let check_url = "check backend.url: host, port, and no path of a page";
    match answer.meaning() {
        Meaning::Unauthorized
        | Meaning::Forbidden
        | Meaning::CertificateMismatch
        | Meaning::CertificateExpired
        | Meaning::CertificateRequired
        | Meaning::CollectorMismatch => {
            let (shown, hint) = match registration.secret {
                Some(_) => (
                    "the registration secret",
                    "ask the backend's operator for a good one: for a new host `agent backend \
                     secret add NAME` makes it, for one that comes back `agent backend collector \
                     release NAME`",
                ),
                None => (
                    "the certificate of this host",
                    "ask the backend's operator for the secret of `agent backend collector release \
                     NAME`, and pass it with --secret-file",
                ),
            };
            LinkError::new(format!("{url} does not accept {shown} ({status}): {message}"), hint)
        }
        Meaning::NotHere => {
            LinkError::new(format!("{url} has no registration ({status})"), check_url)
        }
        Meaning::Stranger => LinkError::new(
            format!("{url} redirects elsewhere ({status}), which is not followed"),
            check_url,
        ),
        meaning if !meaning.is_alive() => LinkError::new(
            format!("{url} cannot register this host now ({shown})"),
            match answer.retry_after {
                Some(wait) => format!("try again in {}", crate::units::show_duration(wait)),
                None => "try again later; nothing on this host has changed".to_owned(),
            },
        ),
        Meaning::Conflict => LinkError::new(
            format!("{url} does not register {:?}: {message}", registration.name),
            "for a new host set --name and collector.hostname to its own; for one that comes back, \
             ask the backend's operator for the secret of `agent backend collector release NAME`",
        ),
        _ => LinkError::new(
            format!("{url} refuses this registration: {shown}"),
            "check --name and collector.hostname",
        ),
    }
}
