//! Enrolment: a key that never leaves this host, a certificate for it, and the identity.
//!
//! A new registration is prepared beside the old files (`<file>.new`). Writing the journal
//! (`<state_dir>/registration.json`) is the point of no return: before it the old identity is whole
//! and in place, after it [`finish`] moves the new one into place, now or at the next start.

mod answer;
pub(super) mod journal;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderName};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use thiserror::Error;

use super::client::{Client, Outgoing};
use super::endpoint::Endpoint;
use super::files::{self, Readers};
use super::key::NewKey;
use super::skew::TimeAsker;
use super::tls::{self, ClientCertificate, Fingerprint, OwnCertificate, Pin, Trust};
use super::{Answer, Identity, LinkConfig, LinkError, SendError, SendErrorKind, identity_file};
use crate::clock;

pub use journal::finish;

const REGISTER_PATH: &str = "/api/v1/collectors/register";
/// Disk that is held for each file of an answer before it is asked for; certificates are a few KiB.
const ANSWER_ROOM_BYTES: usize = 32 << 10;

/// What to register, where, and whom to trust.
#[derive(Debug)]
pub struct Registration {
    /// The backend, and where certificate, key and CA are written.
    pub link: LinkConfig,
    /// Where the identity is written.
    pub state_dir: PathBuf,
    /// The collector's name, unique in the backend.
    pub name: String,
    /// This host's name.
    pub hostname: String,
    /// How the backend proves itself at this first contact.
    pub contact: Contact,
    /// The registration secret that the backend's operator gave out; a host that shows its
    /// certificate needs none.
    pub secret: Option<SecretString>,
}

/// How the backend proves itself before this host knows its CA.
#[derive(Debug, Clone)]
pub enum Contact {
    /// By `tls.ca_file`, else the CA of an earlier registration, else the system's roots.
    Configured,
    /// By a CA in this file.
    Ca(PathBuf),
    /// By a certificate with this fingerprint in the chain that it shows.
    Fingerprint(Fingerprint),
}

/// A registration that is complete.
#[derive(Debug)]
pub struct Registered {
    /// What the agent starts with from now on.
    pub identity: Identity,
    /// The files that were written, the identity last.
    pub written: Vec<PathBuf>,
    /// The backend has made the private key itself: it was not on this host alone.
    pub is_key_from_backend: bool,
}

/// Why a host is not registered. An identity that was there before is still there.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// A file or setting on this host is wrong; the backend was not asked, or its answer could not
    /// be kept.
    #[error(transparent)]
    Setup(#[from] LinkError),
    /// The backend did not answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The backend answered no.
    #[error("{0}")]
    Refused(LinkError),
}

#[derive(Serialize)]
struct RegisterRequest<'a> {
    name: &'a str,
    hostname: &'a str,
    version: &'a str,
    csr: &'a str,
}

/// Registers this host and puts key, certificate, CA and identity into place.
pub async fn register(registration: &Registration) -> Result<Registered, RegisterError> {
    let _lock = journal::lock(&registration.state_dir)?;
    finish(&registration.state_dir)?;
    // A damaged identity must not keep this host from getting a new one.
    let old = Identity::find(&registration.state_dir).ok().flatten();
    let endpoints = registration.link.endpoints()?;
    let plaintext = endpoints.iter().all(Endpoint::is_plaintext);
    let former = old.as_ref().map(|old| (old.collector_id.clone(), old.collector_since));
    let trust = if plaintext { None } else { Some(first_trust(registration, old)?) };
    let key = NewKey::generate(&registration.hostname)?;
    let places = Places::of(registration);
    let outcome = enrol(registration, (endpoints, trust), &key, &places, former).await;
    if outcome.is_err() {
        places.forget();
    }
    outcome
}

async fn enrol(
    registration: &Registration,
    (endpoints, trust): (Vec<Endpoint>, Option<Trust>),
    key: &NewKey,
    places: &Places,
    former: Option<(String, Option<Timestamp>)>,
) -> Result<Registered, RegisterError> {
    // A folder that cannot be written, or a disk that is full, must show before the backend has
    // enrolled this host: what it answers then is good, and the old pair is not.
    files::prepare(&files::next_to(&places.key), key.pem().as_bytes(), Readers::Owner)?;
    let room = vec![b' '; ANSWER_ROOM_BYTES];
    for path in [&places.cert, &places.ca, &places.identity] {
        files::prepare(&files::next_to(path), &room, Readers::Owner)?;
    }
    let base = endpoints.first().map(|first| first.base().to_owned()).unwrap_or_default();
    let witness = Witness::of(trust.as_ref());
    let response = contact(registration, endpoints, trust, key).await?;
    let response = answer::read(&response, registration)?;

    let mut written = vec![places.key.clone(), places.cert.clone()];
    let private_key = response.private_key_for(key.pem())?;
    let is_key_from_backend = private_key != key.pem();
    let authorities = witness.authorities(&response.ca_certificates);
    let now = registration.link.clock.now();
    tls::check_issued(&response.certificates, &authorities, now)?;
    files::prepare(&files::next_to(&places.key), private_key.as_bytes(), Readers::Owner)?;
    let chain = tls::certificates_to_pem(&response.certificates);
    files::prepare(&files::next_to(&places.cert), chain.as_bytes(), Readers::Everyone)?;
    let learned = witness.is_named().then_some(authorities);
    match &learned {
        Some(ca) => {
            let ca = tls::certificates_to_pem(ca);
            files::prepare(&files::next_to(&places.ca), ca.as_bytes(), Readers::Everyone)?;
            written.push(places.ca.clone());
        }
        None => files::remove(&files::next_to(&places.ca))?,
    }
    let identity = Identity {
        name: response.name.unwrap_or_else(|| registration.name.clone()),
        backend_url: base,
        registered_at: registration.link.clock.now(),
        collector_since: match former {
            Some((collector_id, since)) if collector_id == response.collector_id => since,
            _ => Some(clock::now()),
        },
        certificate_expires_at: response.certificate_expires_at,
        ca_file: learned.map(|_| places.ca.clone()),
        secret: response.secret,
        token: response.token,
        ..Identity::new(&response.collector_id, &registration.hostname)
    };
    let encoded = identity.encode();
    let next = files::next_to(&places.identity);
    files::prepare(&next, encoded.expose_secret().as_bytes(), Readers::Owner)?;
    written.push(places.identity.clone());
    journal::write(&registration.state_dir, &written)?;
    finish(&registration.state_dir)?;
    let identity = Identity::load(&registration.state_dir)?;
    Ok(Registered { identity, written, is_key_from_backend })
}

/// Sends the request over a connection that shows the certificate which this host has, if any: it
/// comes back as who it was. A backend that does not know that certificate's CA is shown none.
async fn contact(
    registration: &Registration,
    endpoints: Vec<Endpoint>,
    trust: Option<Trust>,
    key: &NewKey,
) -> Result<Answer, RegisterError> {
    use SendErrorKind::{TlsClientCert, TlsClientCertExpired, TlsClientCertRevoked};
    let own = present(registration);
    let (again, is_shown) = ((endpoints.clone(), trust.clone()), own.is_some());
    let answer = ask(registration, endpoints, trust, key, own).await;
    match answer {
        Err(RegisterError::Send(SendError {
            kind: TlsClientCert | TlsClientCertExpired | TlsClientCertRevoked,
            ..
        })) if is_shown => {
            let (endpoints, trust) = again;
            ask(registration, endpoints, trust, key, None).await
        }
        answer => answer,
    }
}

/// Sends the request; again when nothing but this host's clock stood between.
async fn ask(
    registration: &Registration,
    endpoints: Vec<Endpoint>,
    trust: Option<Trust>,
    key: &NewKey,
    own: Option<Arc<OwnCertificate>>,
) -> Result<Answer, RegisterError> {
    let settings = &registration.link;
    let time_asker =
        trust.as_ref().and_then(|trust| TimeAsker::new(&endpoints, settings, trust, None));
    let judge = tls::Judge::of(settings.tls.clock);
    let tls = trust
        .map(|trust| tls::timed_client_config(trust, own, &settings.clock, judge))
        .transpose()?;
    let client = Client::new(endpoints, settings, tls.as_ref())?;
    let request = request(registration, key.csr())?;
    let mut response = client.send(request.clone()).await;
    if let (Err(error), Some(asker)) = (&response, &time_asker)
        && asker.helps(error).await
    {
        response = client.send(request).await;
    }
    Ok(response.map_err(|error| at_first_contact(error, &registration.contact))?)
}

/// At a first contact there is more to do about an unknown CA than later.
fn at_first_contact(error: SendError, contact: &Contact) -> SendError {
    use SendErrorKind::{TlsSelfSigned, TlsUnknownIssuer};
    match (contact, error.kind) {
        (Contact::Configured, TlsUnknownIssuer | TlsSelfSigned) => {
            let hint = "bring its CA here by a way you trust and pass --ca FILE, or compare its \
                        fingerprint and pass --ca-fingerprint SHA256";
            SendError::new(error.kind, &error.what, hint)
        }
        _ => error,
    }
}

fn request(registration: &Registration, csr: &str) -> Result<Outgoing, RegisterError> {
    let body = serde_json::to_vec(&RegisterRequest {
        name: &registration.name,
        hostname: &registration.hostname,
        version: env!("CARGO_PKG_VERSION"),
        csr,
    })
    .map_err(|error| {
        LinkError::new(format!("the request cannot be built: {error}"), "report it")
    })?;
    let outgoing = Outgoing::new(Method::POST, REGISTER_PATH)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body));
    Ok(match &registration.secret {
        Some(secret) => {
            let name = HeaderName::from_static("x-registration-secret");
            outgoing.secret_header(name, secret.expose_secret())
        }
        None => outgoing,
    })
}

/// The pair that this host has, if it is to be shown and can be.
fn present(registration: &Registration) -> Option<Arc<OwnCertificate>> {
    let tls = &registration.link.tls;
    if !tls.key_file.exists() {
        return None;
    }
    let read = ClientCertificate::read_to_replace(&tls.cert_file, &tls.key_file);
    match read.and_then(OwnCertificate::new) {
        Ok(own) => Some(Arc::new(own)),
        Err(error) => {
            tracing::warn!(%error, "the present certificate is not shown");
            None
        }
    }
}

/// Where the files of this registration belong.
struct Places {
    key: PathBuf,
    cert: PathBuf,
    ca: PathBuf,
    identity: PathBuf,
}

/// Where the CA that the backend names is kept. A file that the operator has put at `tls.ca_file`
/// is only ever read: it may hold other CAs too, or belong to somebody else.
fn learned_ca(tls: &super::TlsConfig) -> PathBuf {
    let beside = tls.cert_file.with_file_name("ca.crt");
    match &tls.ca_file {
        Some(configured) if !configured.exists() => configured.clone(),
        Some(configured) if *configured == beside => tls.cert_file.with_file_name("learned-ca.crt"),
        _ => beside,
    }
}

impl Places {
    fn of(registration: &Registration) -> Self {
        let tls = &registration.link.tls;
        Self {
            key: tls.key_file.clone(),
            cert: tls.cert_file.clone(),
            ca: learned_ca(tls),
            identity: identity_file(&registration.state_dir),
        }
    }

    /// Removes what was prepared, unless it is promised by the journal.
    fn forget(&self) {
        let folder = self.identity.parent().unwrap_or(Path::new("."));
        if journal::exists(folder) {
            return;
        }
        for path in [&self.key, &self.cert, &self.ca, &self.identity] {
            if let Err(error) = files::remove(&files::next_to(path)) {
                tracing::warn!(%error, "a left-over of the failed registration stays");
            }
        }
    }
}

fn first_trust(registration: &Registration, old: Option<Identity>) -> Result<Trust, LinkError> {
    let tls = &registration.link.tls;
    match &registration.contact {
        Contact::Ca(file) => match tls::read_certificates(file, "--ca") {
            Err(error) if matches!(file.try_exists(), Ok(false)) => Err(LinkError {
                hint: "it is `keys/ca.crt` in the backend's data directory; bring it to this host"
                    .to_owned(),
                ..error
            }),
            read => Ok(Trust::Only(read?)),
        },
        Contact::Fingerprint(fingerprint) => Ok(Trust::Pinned(Pin::new(*fingerprint))),
        Contact::Configured => {
            if let Some(missing) = tls.ca_file.as_deref().filter(|file| !file.exists()) {
                return Err(LinkError::new(
                    format!("tls.ca_file {} does not exist", missing.display()),
                    "pass --ca FILE or --ca-fingerprint SHA256 and it is written, or remove the \
                     key to trust the system's CA certificates",
                ));
            }
            let learned = old.and_then(|old| old.ca_file).filter(|file| file.exists());
            Trust::for_pushes(tls, learned.as_deref())
        }
    }
}

/// What vouched for the backend, to be trusted from now on.
enum Witness {
    Certificates(Vec<CertificateDer<'static>>),
    Pin(Pin),
    /// The system's roots, or nothing: there is no reason to trust a CA of this backend's own.
    Unnamed,
}

impl Witness {
    fn of(trust: Option<&Trust>) -> Self {
        match trust {
            Some(Trust::Only(certificates)) => Self::Certificates(certificates.clone()),
            Some(Trust::Pinned(pin)) => Self::Pin(pin.clone()),
            Some(Trust::System | Trust::SystemAnd(_) | Trust::Anything) | None => Self::Unnamed,
        }
    }

    /// Whether what vouched for the backend is to be trusted from now on.
    fn is_named(&self) -> bool {
        !matches!(self, Self::Unnamed)
    }

    /// What vouched for the backend, and what it says that its authority is.
    fn authorities(
        &self,
        from_backend: &[CertificateDer<'static>],
    ) -> Vec<CertificateDer<'static>> {
        let mut certificates = match self {
            Self::Certificates(certificates) => certificates.clone(),
            Self::Pin(pin) => pin.seen().into_iter().collect(),
            Self::Unnamed => Vec::new(),
        };
        certificates.extend_from_slice(from_backend);
        certificates
    }
}
