//! Name lookup, TCP, proxy and TLS for the client, and why a TLS connection ended.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use rustls::ClientConfig;
use tower::{BoxError, Service};

use super::super::error::{ConnectTimedOut, LookupFailed};
use super::allowance::Allowance;
use super::tunnel::{Road, Through, Way};

/// How often a quiet TCP connection is checked by the kernel.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How much of a connection is read at a time, bytes.
const PIECE_BYTES: usize = 8 << 10;

/// Where a lookup may lead: `localhost` must not take plain HTTP off this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hosts {
    All,
    LoopbackOnly,
}

/// Looks names up like the system does, and says when that is what failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver {
    hosts: Hosts,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = LookupFailed;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let hosts = self.hosts;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|error| LookupFailed(error.to_string()))?;
            let found: Vec<SocketAddr> =
                found.filter(|address| hosts == Hosts::All || address.ip().is_loopback()).collect();
            if found.is_empty() {
                return Err(LookupFailed("the name has no usable address".to_owned()));
            }
            Ok(found.into_iter())
        })
    }
}

/// TCP, a proxy's `CONNECT`, and TLS within one limit.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<Way>,
    limit: Duration,
    refusal: Refusal,
    allowance: Allowance,
}

impl Connector {
    pub(super) fn new(
        hosts: Hosts,
        limit: Duration,
        tls: Option<ClientConfig>,
        through: Option<Arc<Through>>,
        allowance: Allowance,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver { hosts });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_connect_timeout(Some(limit));
        let way = Way::new(tcp, through);
        let inner = match tls {
            Some(tls) => HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_only()
                .enable_all_versions()
                .wrap_connector(way),
            None => HttpsConnector::from((way, no_tls())),
        };
        Self { inner, limit, refusal: Refusal::default(), allowance }
    }
}

/// The endpoint is plain HTTP, so this is never used: it trusts nobody.
fn no_tls() -> ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has the suites of TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

impl Service<Uri> for Connector {
    type Response = Watched;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let (limit, refusal) = (self.limit, self.refusal.clone());
        let allowance = self.allowance.clone();
        refusal.take();
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(result) => result.map(|stream| Watched { stream, refusal, allowance }),
                Err(_) => Err(ConnectTimedOut.into()),
            }
        })
    }
}

impl Connector {
    /// What the TLS layer said when the newest connection ended.
    pub(super) fn refusal(&self) -> Refusal {
        self.refusal.clone()
    }
}

/// The last TLS failure of a connection that had been made.
///
/// With TLS 1.3 a server refuses a client certificate only after the client counts the connection
/// as made. The alert then reaches whatever reads next, and HTTP/2 passes on no more than its text.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<rustls::Error>>>);

impl Refusal {
    /// Takes the failure, if there was one since the newest connection was asked for.
    pub(super) fn take(&self) -> Option<rustls::Error> {
        self.0.lock().ok()?.take()
    }

    fn note(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let (Some(tls), Ok(mut slot)) = (tls, self.0.lock()) {
            *slot = Some(tls.clone());
        }
    }

    fn watch<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.note(error);
        }
        result
    }
}

/// A connection whose TLS failures are noted, and that ends when the backend sends too much.
pub(super) struct Watched {
    stream: MaybeHttpsStream<Road>,
    refusal: Refusal,
    allowance: Allowance,
}

impl Connection for Watched {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // A cursor does not tell what was read into it.
        let mut piece = [0; PIECE_BYTES];
        let (piece, _) = piece.split_at_mut(buffer.remaining().min(PIECE_BYTES));
        let mut piece = ReadBuf::new(piece);
        let result = Pin::new(&mut self.stream).poll_read(context, piece.unfilled());
        if let Poll::Ready(Ok(())) = &result {
            self.allowance.spend(piece.filled().len())?;
            buffer.put_slice(piece.filled());
        }
        self.refusal.watch(result)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.refusal.watch(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.refusal.watch(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.refusal.watch(result)
    }
}
