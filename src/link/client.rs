//! One kept HTTP connection (HTTP/1.1, or HTTP/2 by ALPN) with limits on time and size.

mod connect;
mod tally;
mod tunnel;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::answer::{self, Answer, Exchange};
use super::endpoint::Endpoint;
use super::error::Circumstances;
use super::proxy::Proxy;
use super::{LinkConfig, LinkError, SendError, SendErrorKind, tls};
use crate::clock;
use connect::{Connector, Hosts, Refusal};
use tally::Tally;
use tunnel::Through;

pub(super) use tally::reasons;
pub(super) use tunnel::{Credentials, ProxyFailed, What as ProxyAnswer};

/// A connection that has been quiet for longer is closed by this side: proxies forget theirs.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Connections of HTTP/1.1 that are kept: one for each batch that may be on its way, and one more.
const IDLE_CONNECTIONS_MAX: usize = 17;
/// How often an HTTP/2 connection is checked while a request is under way.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whether a request is about this host's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is: what comes of it says how the agent does.
    Work,
    /// It asks for a sign of life only.
    Probe,
}

/// A request without the parts that are the same for all.
#[derive(Debug, Clone)]
pub struct Outgoing {
    purpose: Purpose,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    invalid: Option<HeaderName>,
}

impl Outgoing {
    /// A request for `path`, below the backend's URL.
    pub fn new(method: Method, path: &str) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let (purpose, path) = (Purpose::Work, path.to_owned());
        Self { purpose, method, path, headers, body, invalid: None }
    }

    /// A request for a sign of life.
    pub fn probe(path: &str) -> Self {
        Self { purpose: Purpose::Probe, ..Self::new(Method::GET, path) }
    }

    /// Sets a header.
    #[must_use]
    pub fn header(self, name: HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value);
        self.set(name, value)
    }

    /// Sets a header whose value is never shown.
    #[must_use]
    pub fn secret_header(self, name: HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value).map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self.set(name, value)
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    fn set<E>(mut self, name: HeaderName, value: Result<HeaderValue, E>) -> Self {
        match value {
            Ok(value) => _ = self.headers.insert(name, value),
            Err(_) => self.invalid = Some(name),
        }
        self
    }
}

type Http = legacy::Client<Connector, Full<Bytes>>;

/// Sends requests to one backend.
pub struct Client {
    http: Mutex<Http>,
    connector: Connector,
    refusal: Refusal,
    endpoint: Endpoint,
    proxy: Option<Proxy>,
    settings: LinkConfig,
    clock_offset_ms: AtomicI64,
    tally: Tally,
    time_known: AtomicBool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for this backend; `tls` is not needed for plain HTTP to loopback.
    ///
    /// Errors: a proxy that cannot be used.
    pub fn new(
        endpoint: Endpoint,
        settings: &LinkConfig,
        tls: Option<ClientConfig>,
    ) -> Result<Self, LinkError> {
        let hosts = if endpoint.is_plaintext() { Hosts::LoopbackOnly } else { Hosts::All };
        let proxy = settings.proxy.choose(&endpoint)?;
        if let Some(proxy) = &proxy {
            tracing::info!(backend = endpoint.authority(), %proxy, "a proxy is on the way");
        }
        let through = proxy.clone().map(|proxy| through(proxy, settings)).transpose()?;
        let connector = Connector::new(hosts, settings.connect_timeout, tls, through);
        let refusal = connector.refusal();
        let http = Mutex::new(pool(&connector, settings));
        Ok(Self {
            http,
            connector,
            refusal,
            endpoint,
            proxy,
            settings: settings.clone(),
            clock_offset_ms: AtomicI64::new(0),
            time_known: AtomicBool::new(false),
            tally: Tally::new(),
        })
    }

    /// Makes new connections from now on; requests under way end on theirs.
    pub fn reconnect(&self) {
        let fresh = pool(&self.connector, &self.settings);
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// Sends a request and reads its whole answer, within the limits of time and size.
    pub async fn send(&self, request: Outgoing) -> Result<Answer, SendError> {
        let (limit, purpose) = (self.settings.request_timeout, request.purpose);
        let outcome = match tokio::time::timeout(limit, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(SendError::timeout(self.circumstances())),
        };
        self.tally.count(purpose, &outcome);
        outcome
    }

    /// Why the latest request failed, by its name in metrics; `None` when it went well.
    pub fn trouble(&self) -> Option<&'static str> {
        self.tally.reason()
    }

    /// The server's clock minus this host's, in milliseconds; 0 until the first answer.
    pub fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Ordering::Relaxed)
    }

    /// Whether an answer has told the server's time.
    pub fn knows_server_time(&self) -> bool {
        self.time_known.load(Ordering::Relaxed)
    }

    /// Host and port of the backend.
    pub fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    /// The proxy on the way, without user and password.
    pub fn proxy(&self) -> Option<String> {
        self.proxy.as_ref().map(ToString::to_string)
    }

    async fn exchange(&self, request: Outgoing) -> Result<Answer, SendError> {
        let request = self.build(request)?;
        let sent = clock::now();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let found = SendError::classify(error, self.circumstances());
            match self.refusal.take() {
                Some(refusal) if !found.kind.is_tls() => tls::explain(&refusal, self.authority()),
                _ => found,
            }
        };
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let response = http.request(request).await.map_err(|error| failed(&error))?;
        let exchange = Exchange { sent, received: clock::now() };
        let (head, body) = response.into_parts();
        self.learn_clock(&head.headers, exchange);
        let body = Limited::new(body, self.settings.answer_bytes_max)
            .collect()
            .await
            .map_err(|error| failed(error.as_ref()))?
            .to_bytes();
        let server_now = answer::shift(exchange.received, self.clock_offset_ms());
        Ok(Answer {
            status: head.status.as_u16(),
            retry_after: answer::retry_after(&head.headers, server_now),
            headers: head.headers,
            body,
        })
    }

    fn build(&self, request: Outgoing) -> Result<http::Request<Full<Bytes>>, SendError> {
        let impossible = |what: &str| {
            let kind = SendErrorKind::Protocol;
            SendError::new(kind, what, "report this: the request cannot be built")
        };
        if let Some(name) = request.invalid {
            return Err(impossible(&format!("header {name} has a value that HTTP cannot carry")));
        }
        let url = self.endpoint.url(&request.path);
        let mut built = http::Request::builder()
            .method(request.method)
            .uri(&url)
            .body(Full::new(request.body))
            .map_err(|error| impossible(&format!("{url}: {error}")))?;
        *built.headers_mut() = request.headers;
        if let Ok(agent) = HeaderValue::from_str(&self.settings.user_agent) {
            built.headers_mut().insert(header::USER_AGENT, agent);
        }
        Ok(built)
    }

    fn learn_clock(&self, headers: &HeaderMap, exchange: Exchange) {
        let Some(date) = answer::date(headers) else { return };
        let before = self.clock_offset_ms();
        let offset = answer::next_offset_ms(before, exchange, date);
        self.clock_offset_ms.store(offset, Ordering::Relaxed);
        self.time_known.store(true, Ordering::Relaxed);
        if offset.abs_diff(before) >= 5_000 {
            tracing::warn!(
                offset_ms = offset,
                "this host's clock differs from the backend's; tokens follow the backend's clock"
            );
        }
    }

    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances {
            authority: self.endpoint.authority(),
            proxy: self.proxy.as_ref(),
            connect_timeout: self.settings.connect_timeout,
            request_timeout: self.settings.request_timeout,
        }
    }
}

/// What a proxy needs beyond its name. It never sees this host's certificate.
fn through(proxy: Proxy, settings: &LinkConfig) -> Result<Arc<Through>, LinkError> {
    let tls = if proxy.is_tls() {
        let trust = tls::Trust::for_proxies(&settings.tls)?;
        Some(Arc::new(tls::client_config(trust, None)?))
    } else {
        None
    };
    Ok(Arc::new(Through { proxy, tls }))
}

fn pool(connector: &Connector, settings: &LinkConfig) -> Http {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(settings.connect_timeout)
        .build(connector.clone())
}
