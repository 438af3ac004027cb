//! One kept HTTP connection (HTTP/1.1, or HTTP/2 by ALPN) to each backend that is needed, with
//! limits on time and size.

mod allowance;
mod backend;
mod connect;
mod route;
mod tally;
mod tunnel;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use rustls::ClientConfig;

use super::dates::{self, Exchange};
use super::endpoint::Endpoint;
use super::error::Circumstances;
use super::{LinkConfig, LinkError, SendError, SendErrorKind, tls};
use crate::answer::{Answer, Meaning, Purpose};
use crate::clock;
use backend::Backend;
pub use backend::IDLE_MAX;
use route::{Change, Outcome, Routes};
use tally::Tally;

pub(super) use tally::reasons;
pub(super) use tunnel::{Credentials, ProxyFailed, What as ProxyAnswer};

/// What an earlier backend is asked before it is used again: it answers 200 only while its store
/// takes metrics.
const HEALTH_PATH: &str = "/api/v1/health";

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
        let (purpose, path) = (Purpose::Other, path.to_owned());
        Self { purpose, method, path, headers, body, invalid: None }
    }

    /// A request that brings data to `path`.
    pub fn data(path: &str) -> Self {
        Self { purpose: Purpose::Data, ..Self::new(Method::POST, path) }
    }

    /// A request for a sign of life.
    pub fn probe(path: &str) -> Self {
        Self { purpose: Purpose::Probe, ..Self::new(Method::GET, path) }
    }

    /// A request for a configuration.
    pub fn config(path: &str) -> Self {
        Self { purpose: Purpose::Config, ..Self::new(Method::GET, path) }
    }

    /// A question whether the store takes metrics.
    fn health() -> Self {
        Self { purpose: Purpose::Health, ..Self::new(Method::GET, HEALTH_PATH) }
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

/// Sends requests to the first of the backends that stands.
pub struct Client {
    backends: Vec<Backend>,
    routes: Mutex<Routes>,
    settings: LinkConfig,
    tally: Tally,
}

/// The backend in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Its URL.
    pub url: String,
    /// Its place among all, from 1.
    pub number: usize,
    /// Since when.
    pub since: Timestamp,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<_> = self.backends.iter().map(|backend| &backend.endpoint).collect();
        f.debug_struct("Client").field("endpoints", &endpoints).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for these backends, the first preferred; `tls` is not needed for plain HTTP to
    /// loopback.
    ///
    /// Errors: a proxy that cannot be used.
    pub fn new(
        endpoints: Vec<Endpoint>,
        settings: &LinkConfig,
        tls: Option<&ClientConfig>,
    ) -> Result<Self, LinkError> {
        let routes = Routes::new(endpoints.len(), settings.return_after, clock::now());
        let backend = |endpoint| Backend::new(endpoint, settings, tls.cloned());
        let backends = endpoints.into_iter().map(backend).collect::<Result<_, _>>()?;
        Ok(Self {
            backends,
            routes: Mutex::new(routes),
            settings: settings.clone(),
            tally: Tally::new(),
        })
    }

    /// Makes new connections from now on; requests under way end on theirs.
    pub fn reconnect(&self) {
        self.backends.iter().for_each(Backend::reconnect);
    }

    /// Sends a request and reads its whole answer, within the limits of time and size.
    pub async fn send(&self, request: Outgoing) -> Result<Answer, SendError> {
        let (limit, purpose) = (self.settings.request_timeout, request.purpose);
        let mut asked = self.routes().order().first().copied().unwrap_or(0);
        let whole = tokio::time::timeout(limit, self.try_in_turn(request, &mut asked)).await;
        let result = whole.unwrap_or_else(|_| {
            let result = Err(SendError::timeout(self.circumstances(asked)));
            self.note(asked, &result);
            result
        });
        self.tally.count(purpose, &result);
        result
    }

    /// Asks one backend after the other until one stands; `asked` is the one that is being asked.
    async fn try_in_turn(&self, request: Outgoing, asked: &mut usize) -> Result<Answer, SendError> {
        let order = self.routes().order();
        let last = order.last().copied().unwrap_or(0);
        for route in order {
            *asked = route;
            let result = self.exchange(route, request.clone()).await;
            self.note(route, &result);
            if route == last || self.routes().stands(route) {
                return result;
            }
            Tally::passed_over(&result);
        }
        self.exchange(last, request).await
    }

    /// Notes what a backend has answered, and says so when that changes where requests go.
    fn note(&self, route: usize, result: &Result<Answer, SendError>) {
        let now = (clock::monotonic(), clock::now());
        let change = self.routes().note(route, Outcome::of(result), now);
        if self.backends.len() < 2 {
            return;
        }
        let backend = self.backend(route).map(|backend| backend.endpoint.authority());
        match change {
            Some(Change::Down) => {
                let why = match result {
                    Ok(answer) => answer.shown(),
                    Err(error) => error.to_string(),
                };
                tracing::warn!(backend, why, "a backend is down; the next one is asked");
            }
            Some(Change::InUse) => {
                Tally::changed();
                tracing::warn!(backend, "another backend is in use now");
            }
            None => {}
        }
    }

    /// Asks an earlier backend than the one in use for a sign of life, if it is time to, and goes
    /// back to it when it gives one.
    pub async fn return_to_earlier(&self) {
        let Some(route) = self.routes().due(clock::monotonic()) else { return };
        let limit = self.settings.request_timeout;
        let asking = self.exchange(route, Outgoing::health());
        match tokio::time::timeout(limit, asking).await {
            Ok(Ok(answer)) if answer.meaning() == Meaning::Success => {
                self.routes().returned(route, clock::now());
                Tally::changed();
                let backend = self.backend(route).map(|backend| backend.endpoint.authority());
                tracing::info!(backend, "an earlier backend is back, and in use again");
            }
            _ => self.routes().still_down(route, clock::monotonic()),
        }
    }

    /// The backend in use.
    pub fn in_use(&self) -> InUse {
        let (route, since) = self.routes().in_use();
        let url = self.backend(route).map(|backend| backend.endpoint.base().to_owned());
        InUse { url: url.unwrap_or_default(), number: route + 1, since }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backend(&self, route: usize) -> Option<&Backend> {
        self.backends.get(route)
    }

    /// Why the latest push or probe failed, by its name in metrics; `None` when it went well.
    pub fn trouble(&self) -> Option<&'static str> {
        self.tally.reason()
    }

    /// Host and port of the backend in use.
    pub fn authority(&self) -> &str {
        let route = self.routes().in_use().0;
        self.backend(route).map_or("", |backend| backend.endpoint.authority())
    }

    /// The proxy on the way to the backend in use, without user and password.
    pub fn proxy(&self) -> Option<String> {
        let route = self.routes().in_use().0;
        Some(self.backend(route)?.proxy.as_ref()?.to_string())
    }

    async fn exchange(&self, route: usize, request: Outgoing) -> Result<Answer, SendError> {
        let Some(backend) = self.backend(route) else {
            let hint = "set backend.url";
            return Err(SendError::new(SendErrorKind::Protocol, "there is no backend", hint));
        };
        let purpose = request.purpose;
        let request = self.build(&backend.endpoint, request)?;
        let clock = &self.settings.clock;
        let sent = clock.moment();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            if backend.allowance.take_exceeded() {
                return SendError::endless(self.circumstances(route));
            }
            let found = SendError::classify(error, self.circumstances(route));
            match backend.refusal.take() {
                Some(refusal) if !found.kind.is_tls() => {
                    tls::explain(&refusal, backend.endpoint.authority())
                }
                _ => found,
            }
        };
        backend.allowance.grant();
        let response = backend.http().request(request).await.map_err(|error| failed(&error))?;
        let exchange = Exchange { sent, received: clock.host_now() };
        let (head, body) = response.into_parts();
        if let Some(date) = dates::date(&head.headers) {
            clock.learn(exchange, date);
        }
        clock.answered(exchange.sent);
        let body = Limited::new(body, self.settings.answer_bytes_max)
            .collect()
            .await
            .map_err(|error| failed(error.as_ref()))?
            .to_bytes();
        let server_now = dates::shift(exchange.received, clock.offset_ms());
        let mut answer = Answer::new(purpose, head.status.as_u16(), body);
        answer.retry_after = dates::retry_after(&head.headers, server_now);
        answer.headers = head.headers;
        backend.endpoint.base().clone_into(&mut answer.backend);
        Ok(answer)
    }

    fn build(
        &self,
        endpoint: &Endpoint,
        request: Outgoing,
    ) -> Result<http::Request<Full<Bytes>>, SendError> {
        let impossible = |what: &str| {
            let kind = SendErrorKind::Protocol;
            SendError::new(kind, what, "report this: the request cannot be built")
        };
        if let Some(name) = request.invalid {
            return Err(impossible(&format!("header {name} has a value that HTTP cannot carry")));
        }
        let url = endpoint.url(&request.path);
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

    fn circumstances(&self, route: usize) -> Circumstances<'_> {
        let backend = self.backend(route);
        Circumstances {
            authority: backend.map_or("", |backend| backend.endpoint.authority()),
            proxy: backend.and_then(|backend| backend.proxy.as_ref()),
            connect_timeout: self.settings.connect_timeout,
            request_timeout: self.settings.request_timeout,
        }
    }
}
