//! Accepts connections and serves a router on them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use secrecy::ExposeSecret as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::BackendError;
use super::api::{Channel, Peer};
use super::config::Limits;
use super::keys::Keys;
use super::pki;

/// After an accept failed, as it does when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests in the works at the end have so long to finish.
const GRACE: Duration = Duration::from_secs(5);
/// HTTP/2: streams of a connection at a time, and how its peer is found to be gone.
const STREAMS_MAX: u32 = 32;
const PING_EVERY: Duration = Duration::from_secs(30);
const HEADERS_BYTES_MAX: u32 = 64 << 10;

/// One port and what is served there.
pub(super) struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
}

#[derive(Clone)]
struct Connection {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
}

impl Listener {
    /// Listens; port 0 takes a free one.
    pub(super) async fn bind(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        router: Router,
        limits: &Limits,
    ) -> Result<Self, BackendError> {
        let tcp = TcpListener::bind(address)
            .await
            .map_err(|reason| BackendError::Listen { address, reason })?;
        Ok(Self { tcp, tls, router, limits: limits.clone() })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Result<SocketAddr, BackendError> {
        Ok(self.tcp.local_addr()?)
    }

    /// Serves until `stop` turns true; open requests are finished.
    pub(super) fn start(self, stop: watch::Receiver<bool>) -> JoinHandle<()> {
        tokio::spawn(self.serve(stop))
    }

    async fn serve(self, mut stop: watch::Receiver<bool>) {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(self.limits.connections_max));
        let connection = Connection { tls: self.tls, router: self.router, limits: self.limits };
        let mut connections = JoinSet::new();
        loop {
            let (place, accepted) = tokio::select! {
                accepted = accept(&self.tcp, &places) => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let (connection, watcher) = (connection.clone(), graceful.watcher());
                    connections.spawn(async move {
                        connection.serve(stream, address, watcher).await;
                        drop(place);
                    });
                }
                Err(err) => {
                    tracing::warn!(%err, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        // Handshakes that are not through yet hold no request: they end with the set.
        let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// Takes a place first: connections over the limit wait in the kernel.
async fn accept(
    tcp: &TcpListener,
    places: &Arc<Semaphore>,
) -> (Option<Place>, io::Result<(TcpStream, SocketAddr)>) {
    let place = Arc::clone(places).acquire_owned().await.ok();
    (place, tcp.accept().await)
}

impl Connection {
    async fn serve(self, stream: TcpStream, address: SocketAddr, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let address = address.ip().to_canonical();
        let Some(acceptor) = &self.tls else {
            let peer = Peer { address, channel: Channel::Plain };
            return self.talk(TokioIo::new(stream), Protocol::Http1, peer, watcher).await;
        };
        let handshake = acceptor.accept(stream);
        match tokio::time::timeout(self.limits.handshake_timeout, handshake).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let channel = channel_of(session.peer_certificates());
                let protocol = match session.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                let peer = Peer { address, channel };
                self.talk(TokioIo::new(stream), protocol, peer, watcher).await;
            }
            Ok(Err(err)) => tracing::debug!(%address, %err, "TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
        }
    }

    async fn talk<I>(self, io: I, protocol: Protocol, peer: Peer, watcher: Watcher)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .max_buf_size(HEADERS_BYTES_MAX as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX);
        let builder = match protocol {
            Protocol::Http1 => builder.http1_only(),
            Protocol::Http2 => builder.http2_only(),
        };
        let (router, from) = (self.router, peer.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(from.clone());
            router.clone().call(request)
        });
        let connection = builder.serve_connection(io, service);
        if let Err(err) = watcher.watch(connection).await {
            tracing::debug!(address = %peer.address, %err, "connection ended");
        }
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

fn channel_of(certificates: Option<&[CertificateDer<'_>]>) -> Channel {
    match certificates.and_then(<[_]>::first) {
        Some(certificate) => Channel::Mutual(pki::thumbprint(certificate).into()),
        None => Channel::Tls,
    }
}

/// TLS 1.3 only. A client certificate is asked for, and must be of the backend's authority when
/// one is shown; which endpoints need it is the API's business.
pub(super) fn tls(keys: &Keys) -> Result<TlsAcceptor, BackendError> {
    let unusable = |what: &str, err: &dyn std::fmt::Display| {
        BackendError::Keys(format!("the {what} cannot be used: {err}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(keys.authority.certificate_pem().as_bytes())
        .map_err(|err| unusable("authority's certificate", &err))?;
    roots.add(authority.clone()).map_err(|err| unusable("authority's certificate", &err))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|err| unusable("authority's certificate", &err))?;
    let mut chain = CertificateDer::pem_slice_iter(keys.server_certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|err| unusable("server certificate", &err))?;
    // A host that registers knows at most the authority's fingerprint: it must see the authority.
    chain.push(authority);
    let key = PrivateKeyDer::from_pem_slice(keys.server_key.expose_secret().as_bytes())
        .map_err(|err| unusable("server key", &err))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|err| unusable("TLS configuration", &err))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|err| unusable("server certificate", &err))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
