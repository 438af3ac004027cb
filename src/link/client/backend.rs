//! One backend: the way to it and the connections that are kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::allowance::Allowance;
use super::connect::{Connector, Hosts, Refusal};
use super::tunnel::Through;
use crate::link::endpoint::Endpoint;
use crate::link::proxy::Proxy;
use crate::link::{LinkConfig, LinkError, tls};

/// A connection that has been quiet for longer is closed by this side. That is well before the
/// backend closes it (`limits.idle_timeout`), and before most proxies forget it: a request that is
/// sent on a connection while the other side closes it fails.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Connections of HTTP/1.1 that are kept: one for each batch that may be on its way, and one more.
const IDLE_CONNECTIONS_MAX: usize = 17;
/// How often an HTTP/2 connection is checked while a request is under way.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

type Http = legacy::Client<Connector, Full<Bytes>>;

/// One backend and the connections to it.
pub(super) struct Backend {
    pub(super) endpoint: Endpoint,
    pub(super) proxy: Option<Proxy>,
    pub(super) refusal: Refusal,
    pub(super) allowance: Allowance,
    http: Mutex<Http>,
    connector: Connector,
    connect_timeout: Duration,
}

impl Backend {
    /// `tls` is not needed for plain HTTP to loopback. Errors: a proxy that cannot be used.
    pub(super) fn new(
        endpoint: Endpoint,
        settings: &LinkConfig,
        tls: Option<ClientConfig>,
    ) -> Result<Self, LinkError> {
        let (hosts, tls) = match tls {
            _ if endpoint.is_plaintext() => (Hosts::LoopbackOnly, None),
            tls => (Hosts::All, tls),
        };
        let proxy = settings.proxy.choose(&endpoint)?;
        if let Some(proxy) = &proxy {
            tracing::info!(backend = endpoint.authority(), %proxy, "a proxy is on the way");
        }
        let through = proxy.clone().map(|proxy| through(proxy, settings)).transpose()?;
        let connect_timeout = settings.connect_timeout;
        let allowance = Allowance::new(settings.answer_bytes_max, IDLE_CONNECTIONS_MAX);
        let connector = Connector::new(hosts, connect_timeout, tls, through, allowance.clone());
        let refusal = connector.refusal();
        let http = Mutex::new(pool(&connector, connect_timeout));
        Ok(Self { endpoint, proxy, refusal, allowance, http, connector, connect_timeout })
    }

    /// Sends requests, over a kept connection if there is one.
    pub(super) fn http(&self) -> Http {
        self.http.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes new connections from now on; requests under way end on theirs.
    pub(super) fn reconnect(&self) {
        let fresh = pool(&self.connector, self.connect_timeout);
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
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

fn pool(connector: &Connector, connect_timeout: Duration) -> Http {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(connect_timeout)
        .build(connector.clone())
}
