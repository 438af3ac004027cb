//! The wire to the backend: one kept connection, TLS 1.3 with a client certificate, a Bearer token.
//!
//! [`Link`] attaches a token, sends, and returns the backend's [`Answer`] or a [`SendError`]. It
//! gives no verdict on an answer and holds nothing back: what to do next is the forwarder's
//! decision, and the data stays in the queue until that decision is "delivered".

pub mod client; // hyper with connect, request and size limits
pub mod dates; // what headers say about time: retry-after, the server's clock
pub mod endpoint; // backend.url, checked
pub mod error; // why nothing came back
pub mod files; // files that others must not read, replaced atomically
pub mod identity; // <state_dir>/identity.json
mod key; // a key pair made on this host
pub mod proxy; // forward.proxy, or what the environment says
pub mod register; // enrolment: key, request, certificate, identity
pub mod renew; // the certificate, before its end
pub mod skew; // the server's clock, and what it decides
pub mod tls; // trust, the client certificate, what each TLS failure means
pub mod token; // minted, renewed or read from a file

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, RwLock, watch};
use uuid::Uuid;

pub use crate::answer::Answer;
pub use client::InUse;
pub use error::{LinkError, SendError, SendErrorKind};
pub use identity::Identity;
pub use skew::{CertificateClock, ServerClock};

use crate::answer::Meaning;
use client::{Client, Outgoing};
use endpoint::Endpoint;
use proxy::ProxySetting;
use skew::TimeAsker;
use tls::{ClientCertificate, OwnCertificate, Validity};
use token::{Token, TokenSource};

/// Where a push goes, under `backend.url`.
pub const PUSH_PATH: &str = "/api/v1/metrics/push";
const REFRESH_PATH: &str = "/api/v1/collectors/refresh-token";
/// How often a token file is looked at while its token is of no use.
const TOKEN_FILE_LOOK: Duration = Duration::from_secs(1);

/// How to reach the backend. `Default` holds the documented defaults.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// `backend.url`: scheme, host, port, and a path prefix if a proxy adds one.
    pub url: String,
    /// The further ones of `backend.urls`, in order; they share one store with the first.
    pub more_urls: Vec<String>,
    /// `backend.return_after`: how long after its last failure an earlier backend is asked again.
    pub return_after: Duration,
    /// `forward.proxy`: the way to the backend.
    pub proxy: ProxySetting,
    /// Limit for name lookup, TCP, a proxy's `CONNECT` and TLS together.
    pub connect_timeout: Duration,
    /// Limit for a whole request, from connecting to the last byte of the answer.
    pub request_timeout: Duration,
    /// `backend.allow_plaintext`: plain HTTP may be used, to loopback only.
    pub allow_plaintext: bool,
    /// Certificates and trust.
    pub tls: TlsConfig,
    /// A file that another program keeps filled with a collector token; it wins over the identity.
    pub token_file: Option<PathBuf>,
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// Answers with a longer body are refused.
    pub answer_bytes_max: usize,
    /// This host's clock, and what is known of the server's.
    pub clock: ServerClock,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            url: "https://localhost:8080".to_owned(),
            more_urls: Vec::new(),
            return_after: Duration::from_secs(60),
            proxy: ProxySetting::default(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            allow_plaintext: false,
            tls: TlsConfig::default(),
            token_file: None,
            user_agent: concat!("pganalytics-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            answer_bytes_max: 4 << 20,
            clock: ServerClock::default(),
        }
    }
}

/// The `[tls]` section.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// `false` accepts any server certificate; it is logged at WARN on every start.
    pub verify: bool,
    /// This host's certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM, readable by its owner only.
    pub key_file: PathBuf,
    /// The only CA trusted for the backend; without it the one learned at registration, else the
    /// system's roots.
    pub ca_file: Option<PathBuf>,
    /// Whose clock decides whether the server's certificate is good now.
    pub clock: CertificateClock,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            verify: true,
            cert_file: PathBuf::from("/etc/pganalytics/collector.crt"),
            key_file: PathBuf::from("/etc/pganalytics/collector.key"),
            ca_file: None,
            clock: CertificateClock::Server,
        }
    }
}

/// One push, ready for the wire.
#[derive(Debug, Clone)]
pub struct Push {
    /// The encoded envelope.
    pub body: Bytes,
    /// The body's `Content-Encoding`; `identity` sends no such header.
    pub encoding: &'static str,
    /// The batch this body is the content of, for ever; sent as `Idempotency-Key`.
    pub batch_id: Option<Uuid>,
}

/// The agent's connection to its backend. Cheap to share by reference; one per process.
#[derive(Debug)]
pub struct Link {
    client: Client,
    tokens: Mutex<TokenSource>,
    state: Mutex<Identity>,
    own: Option<Own>,
    clock: ServerClock,
    time_asker: Option<TimeAsker>,
    /// Held for reading by requests, for writing while the certificate changes: one that is under
    /// way with the old certificate must not arrive after one with the new.
    passage: RwLock<()>,
    certificate: watch::Sender<Option<CertificateState>>,
    token_ends: watch::Sender<Option<Timestamp>>,
}

/// The certificate that this host shows, and where it is kept.
#[derive(Debug)]
struct Own {
    shown: Arc<OwnCertificate>,
    files: OwnFiles,
    /// Whose certificates are trusted of the backend, where that is said.
    authorities: Vec<CertificateDer<'static>>,
}

#[derive(Debug, Clone)]
struct OwnFiles {
    cert: PathBuf,
    key: PathBuf,
}

/// The client certificate and its renewal. Times are the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateState {
    /// When it is good.
    pub validity: Validity,
    /// When the backend is asked for a new one.
    pub renew_at: Option<Timestamp>,
    /// When it was renewed, if that was since the start.
    pub renewed_at: Option<Timestamp>,
    /// Why it is not renewed by itself.
    pub by_hand: Option<String>,
    /// Why the last try to renew it failed, with a hint.
    pub error: Option<String>,
}

impl CertificateState {
    fn new(validity: Validity) -> Self {
        Self { validity, renew_at: None, renewed_at: None, by_hand: None, error: None }
    }
}

impl Link {
    /// Reads certificates and keys and prepares the client; connects to nothing yet.
    ///
    /// Errors: a URL that may not be used, a missing, malformed or too widely readable file, an
    /// identity with neither secret nor token.
    pub fn new(config: &LinkConfig, identity: Identity) -> Result<Self, LinkError> {
        let tokens = TokenSource::choose(config.token_file.as_deref(), &identity)?;
        let endpoints = config.endpoints()?;
        let (tls, own, time_asker) = if endpoints.iter().all(Endpoint::is_plaintext) {
            (None, None, None)
        } else {
            let trust = tls::Trust::for_pushes(&config.tls, identity.ca_file.as_deref())?;
            let own = Own::read(&config.tls, trust.named())?;
            let shown = Some(Arc::clone(&own.shown));
            let asker = TimeAsker::new(&endpoints, config, &trust, shown.as_ref());
            let judge = tls::Judge::of(config.tls.clock);
            let tls = tls::timed_client_config(trust, shown, &config.clock, judge)?;
            (Some(tls), Some(own), asker)
        };
        let client = Client::new(endpoints, config, tls.as_ref())?;
        let token_ends = match &tokens {
            TokenSource::Renewed(token) => Some(token.expires_at()),
            TokenSource::Minted(_) | TokenSource::File(_) => None,
        };
        let leaf = own.as_ref().and_then(|own| own.shown.leaf());
        let validity = leaf.and_then(|leaf| Validity::of(&leaf));
        Ok(Self {
            client,
            tokens: Mutex::new(tokens),
            state: Mutex::new(identity),
            own,
            clock: config.clock.clone(),
            time_asker,
            passage: RwLock::new(()),
            certificate: watch::Sender::new(validity.map(CertificateState::new)),
            token_ends: watch::Sender::new(token_ends),
        })
    }

    /// Sends one push. A 401 renews the token and sends once more; what comes back then is
    /// returned as it is, a second 401 included.
    pub async fn push(&self, push: Push) -> Result<Answer, SendError> {
        let mut request = Outgoing::data(PUSH_PATH)
            .header(header::CONTENT_TYPE, "application/json")
            .body(push.body);
        if push.encoding != "identity" {
            request = request.header(header::CONTENT_ENCODING, push.encoding);
        }
        if let Some(id) = push.batch_id {
            request =
                request.header(header::HeaderName::from_static("idempotency-key"), &id.to_string());
        }
        self.send(request).await
    }

    /// GETs a configuration at `path` (below `backend.url`) with this collector's token.
    pub async fn get(&self, path: &str) -> Result<Answer, SendError> {
        self.send(Outgoing::config(path)).await
    }

    /// GETs `path` unless it is still what `tag` names, an `ETag`: then the answer is 304.
    pub async fn get_unless(&self, path: &str, tag: &str) -> Result<Answer, SendError> {
        self.send(Outgoing::config(path).header(header::IF_NONE_MATCH, tag)).await
    }

    /// POSTs a JSON `body` to `path` (below `backend.url`) with this collector's token.
    pub async fn post(&self, path: &str, body: Bytes) -> Result<Answer, SendError> {
        let request = Outgoing::new(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        self.send(request).await
    }

    /// Asks for the backend's version, without a token: the cheapest sign of life, for probes.
    pub async fn probe(&self) -> Result<Answer, SendError> {
        let _passage = self.passage.read().await;
        let send = || self.client.send(Outgoing::probe("/version"));
        match send().await {
            Err(error) if self.learns_time(&error).await => send().await,
            outcome => outcome,
        }
    }

    /// The server's clock minus this host's, in milliseconds; 0 until the first answer.
    pub fn clock_offset_ms(&self) -> i64 {
        self.clock.offset_ms()
    }

    /// The backend in use.
    pub fn in_use(&self) -> InUse {
        self.client.in_use()
    }

    /// Asks an earlier backend than the one in use for a sign of life, if it is time to, and goes
    /// back to it when it gives one.
    pub async fn return_to_earlier(&self) {
        self.client.return_to_earlier().await;
    }

    /// The proxy on the way to the backend, without user and password.
    pub fn proxy(&self) -> Option<String> {
        self.client.proxy()
    }

    /// Why the latest push or probe failed, by its name in metrics; `None` when it went well.
    pub fn trouble(&self) -> Option<&'static str> {
        self.client.trouble()
    }

    /// The client certificate and its renewal; `None` without TLS.
    pub fn certificate(&self) -> Option<CertificateState> {
        self.certificate.borrow().clone()
    }

    /// The end of the token that the backend gave, by its clock; `None` when the agent mints its
    /// own or reads it from a file.
    pub fn token_expires_at(&self) -> Option<Timestamp> {
        *self.token_ends.borrow()
    }

    /// Ends when a token file whose token was of no use has been replaced; never for an agent that
    /// has another source of tokens. So a pause that such a token has brought ends at once.
    pub async fn token_is_replaced(&self) {
        loop {
            match &mut *self.tokens.lock().await {
                TokenSource::File(file) => {
                    if file.is_replaced().await {
                        return;
                    }
                }
                TokenSource::Minted(_) | TokenSource::Renewed(_) => break,
            }
            tokio::time::sleep(TOKEN_FILE_LOOK).await;
        }
        std::future::pending::<()>().await;
    }

    /// This host's clock, and what is known of the server's.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// The server's time, as far as it is known.
    pub fn server_now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Host and port of the backend, for messages and status.
    pub fn authority(&self) -> &str {
        self.client.authority()
    }

    /// Whether what is known of the server's clock does not hold: nothing has been answered yet, or
    /// this host's clock was set since.
    pub fn wants_time(&self) -> bool {
        !self.clock.is_current()
    }

    /// Whether an answer has told the server's time.
    fn knows_server_time(&self) -> bool {
        self.clock.is_known()
    }

    /// Whether a request failed for want of the right time, which is known now.
    async fn learns_time(&self, error: &SendError) -> bool {
        match &self.time_asker {
            Some(asker) => asker.helps(error).await,
            None => false,
        }
    }

    fn note_certificate(&self, change: impl FnOnce(&mut CertificateState)) {
        self.certificate.send_modify(|state| {
            if let Some(state) = state {
                change(state);
            }
        });
    }

    /// Shows another certificate from now on. Requests under way end first, and no connection that
    /// has shown the old one is used again.
    async fn show_certificate(&self, pair: ClientCertificate) -> Result<(), LinkError> {
        let _passage = self.passage.write().await;
        if let Some(own) = &self.own {
            own.shown.replace(pair)?;
        }
        self.client.reconnect();
        Ok(())
    }

    async fn send(&self, request: Outgoing) -> Result<Answer, SendError> {
        let _passage = self.passage.read().await;
        let outcome = match self.authorised(request.clone()).await {
            Err(error) if self.learns_time(&error).await => self.authorised(request).await,
            outcome => outcome,
        };
        if let TokenSource::File(file) = &mut *self.tokens.lock().await {
            match &outcome {
                Ok(answer) if answer.is_about_the_token() => file.refused(),
                Err(error) if error.kind == SendErrorKind::Token => file.refused(),
                Ok(_) => file.accepted(),
                Err(_) => {} // the backend has not seen it
            }
        }
        outcome
    }

    async fn authorised(&self, request: Outgoing) -> Result<Answer, SendError> {
        let token = match self.token(None).await {
            // An expired token that the backend does not renew: its own word is the answer.
            Err(error) if error.kind == SendErrorKind::Token => {
                let spent = self.spent_token().await.ok_or(error)?;
                return self.client.send(request.bearer(&spent)).await;
            }
            token => token?,
        };
        let answer = self.client.send(request.clone().bearer(&token)).await?;
        if answer.meaning() != Meaning::Unauthorized {
            return Ok(answer);
        }
        let renewed = match self.token(Some(&token)).await {
            Ok(renewed) if renewed.same_as(&token) => return Ok(answer), // external, not replaced
            Ok(renewed) => renewed,
            Err(error) if error.kind == SendErrorKind::Token => {
                tracing::warn!(%error, "the backend refused the token, and there is no other");
                return Ok(answer);
            }
            Err(error) => return Err(error),
        };
        tracing::info!(backend = self.authority(), "the backend refused the token: renewed it");
        self.client.send(request.bearer(&renewed)).await
    }

    /// A token that is good for more than a minute of the server's time, and is not `refused`.
    async fn token(&self, refused: Option<&Token>) -> Result<Token, SendError> {
        let mut tokens = self.tokens.lock().await;
        let now = self.server_now();
        match &mut *tokens {
            TokenSource::Minted(minter) => minter.token(now, refused).map_err(SendError::from),
            TokenSource::File(file) => file.read(now).await.map_err(SendError::from),
            TokenSource::Renewed(current) => {
                let usable = refused.is_none_or(|token| !token.same_as(current));
                if usable && current.is_valid(now) {
                    return Ok(current.clone());
                }
                let renewed = self.renew(current).await?;
                *current = renewed.clone();
                Ok(renewed)
            }
        }
    }

    /// The token that the backend gave last, expired or not.
    async fn spent_token(&self) -> Option<Token> {
        match &*self.tokens.lock().await {
            TokenSource::Renewed(current) => Some(current.clone()),
            TokenSource::Minted(_) | TokenSource::File(_) => None,
        }
    }

    /// Asks the backend for a new token, as an agent without a secret has to.
    async fn renew(&self, current: &Token) -> Result<Token, SendError> {
        let request = Outgoing::new(Method::POST, REFRESH_PATH).bearer(current);
        let answer = self.client.send(request).await?;
        let token = Token::from_refresh(&answer)?;
        let mut identity = self.state.lock().await;
        identity.token = Some(token.clone());
        self.token_ends.send_replace(Some(token.expires_at()));
        if let Err(error) = identity.save() {
            tracing::warn!(%error, "the renewed token could not be kept for the next start");
        }
        Ok(token)
    }
}

/// The values of `reason` in [`crate::telemetry::counter::SEND_FAILURES`].
pub fn failure_reasons() -> impl Iterator<Item = &'static str> {
    client::reasons()
}

impl Own {
    fn read(tls: &TlsConfig, authorities: &[CertificateDer<'static>]) -> Result<Self, LinkError> {
        let (cert, key) = (tls.cert_file.clone(), tls.key_file.clone());
        let pair = ClientCertificate::read(&cert, &key)?;
        let shown = Arc::new(OwnCertificate::new(pair)?);
        let authorities = authorities.to_vec();
        Ok(Self { shown, files: OwnFiles { cert, key }, authorities })
    }
}

/// Where registration leaves the identity below `state_dir`.
pub fn identity_file(state_dir: &Path) -> PathBuf {
    state_dir.join("identity.json")
}

impl Outgoing {
    fn bearer(self, token: &Token) -> Self {
        let value = format!("Bearer {}", token.expose().expose_secret());
        self.secret_header(header::AUTHORIZATION, &value)
    }
}
