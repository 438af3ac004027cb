//! Why the link could not be set up, and why a request got no answer.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;

use super::client::{Credentials, ProxyAnswer, ProxyFailed};
use super::proxy::Proxy;
use super::tls;
use super::token::TokenError;

/// The link cannot be set up: a file, a URL or an identity is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkError {
    /// What is wrong, with its value.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl LinkError {
    /// An error with a next step.
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; hint: {}", self.what, self.hint)
    }
}

impl Error for LinkError {}

/// A request that got no whole answer. Whether the backend has acted on it is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendError {
    /// The class, for counters and for what `agent status` shows.
    pub kind: SendErrorKind,
    /// For people: what happened, with its value.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; hint: {}", self.what, self.hint)
    }
}

impl Error for SendError {}

/// The classes of [`SendError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendErrorKind {
    /// No whole answer within the request timeout.
    Timeout,
    /// No connection (TCP and TLS) within the connect timeout.
    ConnectTimeout,
    /// Refused or unreachable.
    Connect,
    /// The host name has no address.
    Dns,
    /// The connection broke while the request was under way.
    Reset,
    /// The answer ended before it was complete.
    Partial,
    /// The peer does not speak HTTP.
    Protocol,
    /// The answer's body, or all that comes with it, is over the limit.
    AnswerTooLarge,
    /// The server's certificate is from a CA that is not trusted.
    TlsUnknownIssuer,
    /// The server's certificate is signed by itself.
    TlsSelfSigned,
    /// The server's certificate is for other names.
    TlsWrongName,
    /// The server's certificate has expired.
    TlsExpired,
    /// The server's certificate is not valid yet.
    TlsNotYetValid,
    /// The server wants a certificate of this host and got none.
    TlsNoClientCert,
    /// The server finds this host's certificate expired.
    TlsClientCertExpired,
    /// The server finds this host's certificate revoked.
    TlsClientCertRevoked,
    /// The server refused this host's certificate for another reason: an unknown CA, mostly.
    TlsClientCert,
    /// The server does not speak TLS 1.3.
    TlsVersion,
    /// Any other TLS failure.
    TlsOther,
    /// No connection to the proxy.
    ProxyConnect,
    /// No TLS with the proxy.
    ProxyTls,
    /// The proxy wants a user and a password, or others than it got.
    ProxyAuth,
    /// The proxy does not open the way, or does not answer as a proxy does.
    ProxyRefused,
    /// There is no usable token.
    Token,
}

impl SendErrorKind {
    /// Every class.
    pub const ALL: [Self; 24] = [
        Self::Timeout,
        Self::ConnectTimeout,
        Self::Connect,
        Self::Dns,
        Self::Reset,
        Self::Partial,
        Self::Protocol,
        Self::AnswerTooLarge,
        Self::TlsUnknownIssuer,
        Self::TlsSelfSigned,
        Self::TlsWrongName,
        Self::TlsExpired,
        Self::TlsNotYetValid,
        Self::TlsNoClientCert,
        Self::TlsClientCertExpired,
        Self::TlsClientCertRevoked,
        Self::TlsClientCert,
        Self::TlsVersion,
        Self::TlsOther,
        Self::ProxyConnect,
        Self::ProxyTls,
        Self::ProxyAuth,
        Self::ProxyRefused,
        Self::Token,
    ];

    /// The name in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect => "connect",
            Self::Dns => "dns",
            Self::Reset => "reset",
            Self::Partial => "partial_answer",
            Self::Protocol => "protocol",
            Self::AnswerTooLarge => "answer_too_large",
            Self::TlsUnknownIssuer => "tls_unknown_issuer",
            Self::TlsSelfSigned => "tls_self_signed",
            Self::TlsWrongName => "tls_wrong_name",
            Self::TlsExpired => "tls_expired",
            Self::TlsNotYetValid => "tls_not_yet_valid",
            Self::TlsNoClientCert => "tls_no_client_certificate",
            Self::TlsClientCertExpired => "tls_client_certificate_expired",
            Self::TlsClientCertRevoked => "tls_client_certificate_revoked",
            Self::TlsClientCert => "tls_client_certificate",
            Self::TlsVersion => "tls_version",
            Self::TlsOther => "tls_other",
            Self::ProxyConnect => "proxy_connect",
            Self::ProxyTls => "proxy_tls",
            Self::ProxyAuth => "proxy_authentication",
            Self::ProxyRefused => "proxy_refused",
            Self::Token => "token",
        }
    }

    /// A certificate or protocol version is wrong: trying again changes nothing until a human acts.
    pub fn is_tls(self) -> bool {
        matches!(
            self,
            Self::TlsUnknownIssuer
                | Self::TlsSelfSigned
                | Self::TlsWrongName
                | Self::TlsExpired
                | Self::TlsNotYetValid
                | Self::TlsNoClientCert
                | Self::TlsClientCertExpired
                | Self::TlsClientCertRevoked
                | Self::TlsClientCert
                | Self::TlsVersion
                | Self::TlsOther
        )
    }
}

impl fmt::Display for SendErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The connector's own limit passed.
#[derive(Debug)]
pub(super) struct ConnectTimedOut;

/// The name lookup failed; the text is the resolver's.
#[derive(Debug)]
pub(super) struct LookupFailed(pub(super) String);

impl fmt::Display for ConnectTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connect timed out")
    }
}

impl fmt::Display for LookupFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ConnectTimedOut {}
impl Error for LookupFailed {}

/// What a failure is explained with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    pub(super) authority: &'a str,
    pub(super) proxy: Option<&'a Proxy>,
    pub(super) connect_timeout: Duration,
    pub(super) request_timeout: Duration,
}

impl SendError {
    pub(super) fn new(kind: SendErrorKind, what: &str, hint: &str) -> Self {
        Self { kind, what: what.to_owned(), hint: hint.to_owned() }
    }

    pub(super) fn timeout(at: Circumstances<'_>) -> Self {
        let limit = crate::units::show_duration(at.request_timeout);
        Self::new(
            SendErrorKind::Timeout,
            &format!("no whole answer from {} within {limit}", at.authority),
            "is the backend overloaded, or backend.request_timeout too short for the way to it?",
        )
    }

    /// The backend sends on and on, and its answer does not end.
    pub(super) fn endless(at: Circumstances<'_>) -> Self {
        Self::new(
            SendErrorKind::AnswerTooLarge,
            &format!("{} sends more than an answer has, without an end", at.authority),
            "is backend.url really the pgAnalytics backend?",
        )
    }

    /// Finds the class of a failed request in the chain of its causes.
    pub(super) fn classify(error: &(dyn Error + 'static), at: Circumstances<'_>) -> Self {
        let mut http = None;
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = explain(error, at) {
                return found;
            }
            if let Some(hyper) = error.downcast_ref::<hyper::Error>() {
                http = http.or_else(|| explain_http(hyper, at));
            }
            cause = error.source();
        }
        http.unwrap_or_else(|| {
            let what = format!("request to {} failed: {}", at.authority, chain(error));
            Self::new(SendErrorKind::Reset, &what, "nothing is lost; it is tried again")
        })
    }
}

impl From<TokenError> for SendError {
    fn from(error: TokenError) -> Self {
        Self::new(SendErrorKind::Token, &error.what, error.hint)
    }
}

fn explain(error: &(dyn Error + 'static), at: Circumstances<'_>) -> Option<SendError> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls::explain(tls, at.authority));
    }
    if let Some(failed) = error.downcast_ref() {
        return Some(explain_proxy(failed, at));
    }
    if error.is::<ConnectTimedOut>() {
        return Some(connect_timed_out(at));
    }
    if let Some(LookupFailed(text)) = error.downcast_ref() {
        return Some(SendError::new(
            SendErrorKind::Dns,
            &format!("no address for {}: {text}", at.authority),
            "check the host name in backend.url and this host's resolver",
        ));
    }
    if error.is::<http_body_util::LengthLimitError>() {
        return Some(SendError::new(
            SendErrorKind::AnswerTooLarge,
            &format!("answer over the size limit from {}", at.authority),
            "is backend.url really the pgAnalytics backend?",
        ));
    }
    explain_io(error.downcast_ref::<io::Error>()?, at)
}

/// An I/O error may carry the cause that matters inside.
fn explain_io(error: &io::Error, at: Circumstances<'_>) -> Option<SendError> {
    if let Some(inner) = error.get_ref() {
        let mut cause: Option<&(dyn Error + 'static)> = Some(inner);
        while let Some(error) = cause {
            if let Some(found) = explain(error, at) {
                return Some(found);
            }
            cause = error.source();
        }
    }
    let to = at.authority;
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(SendError::new(
            SendErrorKind::Connect,
            &format!("connection refused by {to}"),
            "is the backend running, and are host and port of backend.url right?",
        )),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(SendError::new(
            SendErrorKind::Connect,
            &format!("no way to {to}: {error}"),
            "check this host's network and routes",
        )),
        io::ErrorKind::TimedOut => Some(connect_timed_out(at)),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some(SendError::new(
            SendErrorKind::Reset,
            &format!("connection to {to} broke: {error}"),
            "if this happens on every try: does a proxy stand between, or does the backend refuse \
             this host's certificate?",
        )),
        _ => None,
    }
}

fn connect_timed_out(at: Circumstances<'_>) -> SendError {
    let limit = crate::units::show_duration(at.connect_timeout);
    if let Some(proxy) = at.proxy {
        return SendError::new(
            SendErrorKind::ConnectTimeout,
            &format!("no connection to {} through the proxy {proxy} within {limit}", at.authority),
            "is the proxy up, and can it reach the backend?",
        );
    }
    SendError::new(
        SendErrorKind::ConnectTimeout,
        &format!("no connection to {} within {limit}", at.authority),
        "is the backend up, and does a firewall let this host through?",
    )
}

/// What a proxy did in place of opening the way.
fn explain_proxy(failed: &ProxyFailed, at: Circumstances<'_>) -> SendError {
    let ProxyFailed { proxy, what } = failed;
    let to = at.authority;
    match what {
        ProxyAnswer::Unreachable(error) => SendError::new(
            SendErrorKind::ProxyConnect,
            &format!("no connection to the proxy {proxy}: {}", chain(error.as_ref())),
            "check forward.proxy or the variable HTTPS_PROXY, and whether the proxy runs",
        ),
        ProxyAnswer::Tls(error) => SendError::new(
            SendErrorKind::ProxyTls,
            &format!("no TLS with the proxy {proxy}: {error}"),
            "write http:// if the proxy does not speak TLS itself; else its certificate must be of \
             a CA of this system or of tls.ca_file",
        ),
        ProxyAnswer::Refused(StatusCode::PROXY_AUTHENTICATION_REQUIRED, credentials) => {
            let (why, hint) = match credentials {
                Credentials::None => {
                    ("wants a user and a password", "write them as http://user:password@proxy:3128")
                }
                Credentials::Sent => (
                    "does not accept this user and password",
                    "check both; characters such as @ in them are written %40; only the scheme \
                     Basic is supported",
                ),
            };
            SendError::new(
                SendErrorKind::ProxyAuth,
                &format!("the proxy {proxy} {why} (407)"),
                &format!("{hint}, in forward.proxy or HTTPS_PROXY"),
            )
        }
        ProxyAnswer::Refused(status, _) => {
            let hint = match status.as_u16() {
                502..=504 => {
                    "the proxy cannot reach the backend: is that up, and backend.url right?"
                }
                400..=499 => "its rules must let this host CONNECT to that host and port",
                _ => "is it a proxy for CONNECT?",
            };
            let what = format!("the proxy {proxy} answers {} for {to}", status.as_u16());
            SendError::new(SendErrorKind::ProxyRefused, &what, hint)
        }
        ProxyAnswer::Broken(error) => SendError::new(
            SendErrorKind::ProxyRefused,
            &format!("the proxy {proxy} does not answer CONNECT: {}", chain(error.as_ref())),
            "check host, port and scheme (http or https) of forward.proxy or HTTPS_PROXY",
        ),
    }
}

fn explain_http(error: &hyper::Error, at: Circumstances<'_>) -> Option<SendError> {
    if error.is_incomplete_message() || error.is_body_write_aborted() {
        return Some(SendError::new(
            SendErrorKind::Partial,
            &format!("incomplete answer from {}", at.authority),
            "nothing is lost; it is tried again",
        ));
    }
    error.is_parse().then(|| {
        SendError::new(
            SendErrorKind::Protocol,
            &format!("no HTTP from {}: {error}", at.authority),
            "check the port and the scheme (https or http) in backend.url",
        )
    })
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
