//! The client certificate is renewed while it is good: a new key is made on this host, the backend
//! certifies it, and new connections show it.
//!
//! The new pair is on disk before it is used, and the backend takes the old one until it sees the
//! new one: whenever this host goes down, it comes back with a pair that the backend takes.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::files::{self, Readers};
use super::key::NewKey;
use super::register::journal;
use super::tls::{self, ClientCertificate, Validity};
use super::{CertificateState, Identity, Link, LinkError, OwnFiles};
use crate::answer::{Answer, Meaning};
use crate::shutdown::Shutdown;

const RENEW_PATH: &str = "/api/v1/collectors/renew-certificate";
/// A backend that does not know the request is asked again so often: it may be updated.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// `RenewResponse` of the contract, as far as it is needed.
#[derive(Deserialize)]
struct Renewed {
    certificate: String,
}

/// Why there is no new certificate yet.
enum Failure {
    /// The backend does not know the request.
    Unknown(u16),
    /// It did not work this time.
    Other(String, Option<Duration>),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Other(error.to_string(), None)
    }
}

/// What it takes to renew.
struct Renewer {
    link: Arc<Link>,
    files: OwnFiles,
    validity: Validity,
    due: Timestamp,
    failures: u32,
    unknown_said: bool,
}

/// Keeps the link's certificate good until the shutdown.
pub async fn run(link: Arc<Link>, mut shutdown: Shutdown) {
    let Some(mut renewer) = Renewer::new(link).await else { return shutdown.wait().await };
    loop {
        let step = async {
            let wait = renewer.step().await;
            tokio::time::sleep(wait).await;
        };
        tokio::select! {
            biased;
            () = shutdown.wait() => return,
            () = step => {}
        }
    }
}

impl Renewer {
    /// `None` when there is no certificate, or it is not the backend's to renew: that is said here.
    async fn new(link: Arc<Link>) -> Option<Self> {
        let own = link.own.as_ref()?;
        let (leaf, files) = (own.shown.leaf()?, own.files.clone());
        let validity = Validity::of(&leaf)?;
        let (due, by_hand) = {
            let identity = link.state.lock().await;
            let draw = plan::lot(&identity.collector_id, &leaf);
            (plan::due(validity, draw), made_by_hand(&identity, validity))
        };
        if let Some(why) = by_hand {
            let ends = validity.ends;
            tracing::info!(%ends, "the certificate is not renewed by itself: {why}");
            link.note_certificate(|state| state.by_hand = Some(why.to_owned()));
            return None;
        }
        link.note_certificate(|state| state.renew_at = Some(due));
        Some(Self { link, files, validity, due, failures: 0, unknown_said: false })
    }

    /// Renews when it is time; returns how long to wait for the next look.
    async fn step(&mut self) -> Duration {
        if self.link.server_now() >= self.due && !self.link.knows_server_time() {
            // By a clock that nobody has confirmed: an answer brings the time.
            self.link.probe().await.ok();
        }
        let now = self.link.server_now();
        if now < self.due {
            return plan::wait(now, self.due);
        }
        match self.renew().await {
            Ok(leaf) => self.renewed(&leaf).await,
            Err(Failure::Unknown(status)) => self.unknown(status),
            Err(Failure::Other(why, asked)) => self.failed(why, asked),
        }
    }

    async fn renewed(&mut self, leaf: &CertificateDer<'_>) -> Duration {
        let now = self.link.server_now();
        self.validity = Validity::of(leaf).unwrap_or(self.validity);
        let draw = plan::lot(&self.link.state.lock().await.collector_id, leaf);
        self.due = plan::due_after_renewal(self.validity, now, draw);
        self.failures = 0;
        let (due, validity) = (self.due, self.validity);
        self.link.note_certificate(|state| {
            *state = CertificateState { renewed_at: Some(now), ..CertificateState::new(validity) };
            state.renew_at = Some(due);
        });
        tracing::info!(ends = %validity.ends, "the certificate was renewed");
        plan::wait(now, due)
    }

    fn unknown(&mut self, status: u16) -> Duration {
        let ends = self.validity.ends;
        let why = format!(
            "this backend renews no certificates ({status}): run `agent register --force` before \
             {ends}"
        );
        if !std::mem::replace(&mut self.unknown_said, true) {
            tracing::warn!("{why}");
        }
        self.link.note_certificate(|state| state.by_hand = Some(why));
        UNKNOWN_PAUSE
    }

    fn failed(&mut self, why: String, asked: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let left = plan::left(self.validity, self.link.server_now());
        let pause = plan::pause(self.failures, left, asked, fastrand::f64());
        if self.failures == 1 {
            let again = crate::units::show_duration(pause);
            tracing::warn!(error = why, again, "the certificate was not renewed");
        }
        self.link.note_certificate(|state| state.error = Some(why));
        pause
    }

    /// Asks for a certificate, keeps it, shows it. Returns it.
    async fn renew(&self) -> Result<CertificateDer<'static>, Failure> {
        let identity = self.link.state.lock().await.clone();
        let state_dir = identity.state_dir()?;
        let (files, shown) = (self.files.clone(), self.own().shown.leaf());
        // Held until the pair is in place: a registration would mix its files with these.
        let prepared = blocking(move || {
            let lock = journal::lock(&state_dir)?;
            journal::finish(&state_dir)?;
            files.check_shown(shown.as_ref())?;
            let key = NewKey::generate(&identity.hostname)?;
            // A folder that cannot be written must show before the backend is asked.
            for path in [&files.key, &files.cert, &identity.file()?] {
                files::prepare(&files::next_to(path), b"", Readers::Owner)?;
            }
            Ok((lock, key))
        });
        let (lock, key) = prepared.await?;
        let outcome = self.exchange(&key).await;
        let chain = match outcome {
            Ok(chain) => chain,
            Err(failure) => {
                self.forget().await;
                return Err(failure);
            }
        };
        let kept = self.keep(chain, key).await;
        drop(lock);
        if kept.is_err() {
            self.forget().await;
        }
        Ok(kept?)
    }

    /// Sends the request, and checks that the answer is for its key and can be shown.
    async fn exchange(&self, key: &NewKey) -> Result<Vec<CertificateDer<'static>>, Failure> {
        let body = serde_json::json!({"csr": key.csr()}).to_string();
        let answer = self.link.post(RENEW_PATH, Bytes::from(body)).await;
        let answer = answer.map_err(|error| Failure::Other(error.to_string(), None))?;
        match answer.meaning() {
            Meaning::Success => {}
            Meaning::NotHere => return Err(Failure::Unknown(answer.status)),
            _ => {
                let message = format!("the backend says {}", answer.shown());
                return Err(Failure::Other(message, answer.retry_after));
            }
        }
        let chain = read_chain(&answer)?;
        ClientCertificate::from_parts(chain.clone(), key.pem())?.check()?;
        let own = self.own();
        if let Some(present) = own.shown.leaf() {
            let now = self.link.server_now();
            tls::check_renewed(&chain, &present, &own.authorities, now)?;
        }
        Ok(chain)
    }

    /// Puts the pair and the identity that names its end into place, then shows the pair.
    async fn keep(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: NewKey,
    ) -> Result<CertificateDer<'static>, LinkError> {
        let mut state = self.link.state.lock().await;
        let leaf = chain.first().cloned();
        let leaf = leaf.ok_or_else(|| LinkError::new("no certificate", "report this"))?;
        let ends = Validity::of(&leaf).map(|validity| validity.ends);
        let identity = Identity { certificate_expires_at: ends, ..state.clone() };
        let (files, next) = (self.files.clone(), identity.clone());
        let pair = blocking(move || {
            let pair = ClientCertificate::from_parts(chain.clone(), key.pem())?;
            write(&files, &next, &tls::certificates_to_pem(&chain), &key)?;
            Ok(pair)
        });
        let pair = pair.await?;
        *state = identity;
        drop(state);
        self.link.show_certificate(pair).await?;
        Ok(leaf)
    }

    /// Removes what was prepared.
    async fn forget(&self) {
        let identity = self.link.state.lock().await.clone();
        let files = self.files.clone();
        let removed = blocking(move || {
            if journal::exists(&identity.state_dir()?) {
                return Ok(()); // promised
            }
            for path in [&files.key, &files.cert, &identity.file()?] {
                files::remove(&files::next_to(path))?;
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "a left-over of a renewal stays");
        }
    }

    fn own(&self) -> &super::Own {
        self.link.own.as_ref().expect("a renewer is made for a link that has a certificate")
    }
}

impl OwnFiles {
    /// Whether the certificate on disk is the one that is shown: another registration has its own.
    fn check_shown(&self, shown: Option<&CertificateDer<'_>>) -> Result<(), LinkError> {
        let on_disk = tls::read_certificates(&self.cert, "tls.cert_file")?;
        if on_disk.first() == shown {
            return Ok(());
        }
        Err(LinkError::new(
            format!("{} was replaced while the agent runs", self.cert.display()),
            "restart the agent, so that it uses it",
        ))
    }
}

/// Why a certificate is not the backend's to renew; `None` when it is.
fn made_by_hand(identity: &Identity, validity: Validity) -> Option<&'static str> {
    if identity.state_dir().is_err() {
        return Some(
            "this host is not registered, it uses a token and a certificate from elsewhere",
        );
    }
    let given = identity.certificate_expires_at?;
    (given.as_second() != validity.ends.as_second())
        .then_some("it is not the one of the registration")
}

fn read_chain(answer: &Answer) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let renewed: Renewed = serde_json::from_slice(&answer.body).map_err(|error| {
        let what = format!("the backend's answer holds no certificate: {error}");
        LinkError::new(what, "is the backend up to date?")
    })?;
    tls::certificates_from_pem(renewed.certificate.as_bytes(), "certificate of the answer")
}

/// Durable, and all or nothing: the journal is the point of no return.
fn write(files: &OwnFiles, next: &Identity, chain: &str, key: &NewKey) -> Result<(), LinkError> {
    let (state_dir, identity) = (next.state_dir()?, next.file()?);
    files::prepare(&files::next_to(&files.key), key.pem().as_bytes(), Readers::Owner)?;
    files::prepare(&files::next_to(&files.cert), chain.as_bytes(), Readers::Everyone)?;
    let encoded = next.encode();
    let encoded = encoded.expose_secret().as_bytes();
    files::prepare(&files::next_to(&identity), encoded, Readers::Owner)?;
    let written = [files.key.clone(), files.cert.clone(), identity];
    match journal::write(&state_dir, &written).and_then(|()| journal::finish(&state_dir)) {
        // It is promised: whoever reads the files next completes it first.
        Err(error) if journal::exists(&state_dir) => {
            tracing::warn!(%error, "the renewed certificate is not in its place yet");
            Ok(())
        }
        done => done,
    }
}

async fn blocking<T, F>(work: F) -> Result<T, LinkError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LinkError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(LinkError::new(format!("the renewal broke off: {error}"), "report this"))
    })
}
