//! Accepts connections and serves a router on them.
//!
//! What a peer can cost is bounded before anything is known of it: [`places`] says how many
//! connections there are, [`progress`] how long each may take for what it does, and [`socket`]
//! stops to read a peer that does not read.

mod late;
mod places;
mod progress;
mod shown;
mod socket;
mod standing;
mod to_its_end;
mod unread;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::BackendError;
use super::api::{Channel, Peer, Shared};
use super::config::Limits;
use super::keys::{self, Keys};
use super::pki::{self, ClientCertificate};
use super::store::Store;
use crate::clock;
use late::Late;
use places::{Bounds, Place, Places};
use progress::Patience;
pub(super) use shown::Shown;
use socket::Socket;
use standing::{Shows, Standing};
pub(super) use to_its_end::to_its_end;
pub(super) use unread::until_read;

/// After an accept failed, as it does when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the server certificate is looked at: a clock that was years off when the backend was
/// started, and has been set since, is noticed so.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(3600);
/// Requests in the works at the end have so long to finish.
const GRACE: Duration = Duration::from_secs(5);
/// HTTP/2: how a connection's peer is found to be gone.
const PING_EVERY: Duration = Duration::from_secs(30);
/// HTTP/2: streams of a connection at a time. A peer without a certificate has no batches to send.
const STREAMS_MAX: u32 = 32;
const STREAMS_UNVERIFIED_MAX: u32 = 8;
/// HTTP/2: what a peer may send before it is read, bytes: held for each connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Longest head of a request, bytes. Tokens are the largest part, and have a few hundred.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// HTTP/2: bytes of an answer that a stream holds beside the socket.
const SEND_BUFFER: usize = 64 << 10;

/// How long it may take to look up whose a certificate is; then its peer is a stranger.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(2);

/// How a port is served with TLS.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    /// Says whose the certificates are.
    store: Arc<dyn Store>,
}

/// One port and what is served there.
pub(super) struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    router: Router,
    limits: Limits,
}

#[derive(Clone)]
struct Connection {
    tls: Option<Tls>,
    router: Router,
    patience: Patience,
}

impl Listener {
    /// Listens; port 0 takes a free one.
    pub(super) async fn bind(
        address: SocketAddr,
        tls: Option<Tls>,
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
        let bounds = match &self.tls {
            Some(_) => Bounds::of(&self.limits),
            None => Bounds::local(&self.limits),
        };
        let (places, patience) = (Places::new(bounds), Patience::from(&self.limits));
        let connection = Connection { tls: self.tls, router: self.router, patience };
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let (stream, address) = match accepted {
                Ok((stream, address)) => (stream, address.ip().to_canonical()),
                Err(err) => {
                    note_failure(&err).await;
                    continue;
                }
            };
            let place = tokio::select! {
                place = places.take(address) => place,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let (connection, watcher) = (connection.clone(), graceful.watcher());
            connections.spawn(connection.serve(stream, address, place, watcher));
        }
        drop(self.tcp);
        // Handshakes that are not through yet hold no request: they end with the set.
        let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    }
}

async fn note_failure(err: &io::Error) {
    tracing::warn!(%err, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Connection {
    /// Serves until the peer has enough, takes too long, or must make room.
    async fn serve(self, stream: TcpStream, address: IpAddr, place: Place, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let patience = self.patience;
        let socket = Socket::new(stream, Arc::clone(place.progress()));
        let place = Arc::new(place);
        tokio::select! {
            () = self.talk(socket, address, &place, watcher) => {}
            overdue = place.progress().watch(&patience) => {
                tracing::debug!(%address, reason = %overdue, "connection closed");
            }
            () = place.taken_away() => {
                tracing::debug!(%address, reason = "others need its place", "connection closed");
            }
        }
    }

    async fn talk(self, socket: Socket, address: IpAddr, place: &Arc<Place>, watcher: Watcher) {
        let Some(tls) = &self.tls else {
            let peer = Peer { address, channel: Channel::Plain, certificate_ends: None };
            place.progress().greeted();
            let terms = Terms { protocol: Protocol::Http1, streams_max: STREAMS_UNVERIFIED_MAX };
            let asks = Asks { peer, standing: None };
            return self.answer(TokioIo::new(socket), terms, asks, place, watcher).await;
        };
        match tls.acceptor.accept(socket).await {
            Ok(stream) => {
                let session = stream.get_ref().1;
                let shown = session.peer_certificates().and_then(<[_]>::first);
                let protocol = match session.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                let (peer, certificate) = peer_of(address, shown);
                let standing = tls.standing(certificate, place).await;
                place.progress().greeted();
                let streams_max =
                    if standing.is_some() { STREAMS_MAX } else { STREAMS_UNVERIFIED_MAX };
                let terms = Terms { protocol, streams_max };
                let asks = Asks { peer, standing: standing.map(Arc::new) };
                self.answer(TokioIo::new(stream), terms, asks, place, watcher).await;
            }
            Err(err) => tracing::debug!(%address, %err, "TLS handshake failed"),
        }
    }

    async fn answer<I>(self, io: I, terms: Terms, asks: Asks, place: &Place, watcher: Watcher)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let builder = http(terms, &self.patience);
        let (router, address) = (self.router, asks.peer.address);
        let progress = Arc::clone(place.progress());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (work, progress) = (progress.begin(), Arc::clone(&progress));
            request.extensions_mut().insert(asks.peer.clone());
            let (mut router, standing) = (router.clone(), asks.standing.clone());
            async move {
                // Who does not read its answers is given no more of them.
                progress.writable().await;
                if let Some(standing) = &standing {
                    standing.before_request().await;
                }
                let response = router.call(request).await?;
                if let Some(standing) = &standing {
                    standing.after_answer(response.status()).await;
                }
                Ok::<_, std::convert::Infallible>(
                    response.map(|body: Body| work.until_the_end_of(body)),
                )
            }
        });
        let connection = builder.serve_connection(io, service);
        if let Err(err) = watcher.watch(connection).await {
            tracing::debug!(%address, %err, "connection ended");
        }
    }
}

impl Tls {
    /// Gives the place to the collector that has shown its present certificate, or the one that is
    /// to replace it, is not removed, and whose certificate has not ended. Nobody else has the
    /// places of a host.
    async fn standing(
        &self,
        certificate: Option<ClientCertificate>,
        place: &Arc<Place>,
    ) -> Option<Standing> {
        let certificate = certificate?;
        let Shows::Collector(id) = self.shows(&certificate).await else { return None };
        place.verified(id);
        Some(Standing::new(self.clone(), certificate, Arc::downgrade(place)))
    }

    /// Whose present certificate this is.
    async fn shows(&self, certificate: &ClientCertificate) -> Shows {
        let ClientCertificate { thumbprint, ends, collector } = certificate;
        let Some(id) = *collector else { return Shows::Nobody };
        if *ends <= clock::now() {
            return Shows::Another;
        }
        let known = tokio::time::timeout(LOOKED_UP_WITHIN, self.store.credentials(id)).await;
        let Ok(Ok(known)) = known else { return Shows::Unknown };
        let Some(known) = known else { return Shows::Nobody };
        if known.has(thumbprint) { Shows::Collector(id) } else { Shows::Another }
    }
}

fn http(terms: Terms, patience: &Patience) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.idle)
        .max_buf_size(HEADERS_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(terms.streams_max)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS_BYTES_MAX);
    match terms.protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
    }
}

/// Who asks on a connection.
struct Asks {
    peer: Peer,
    /// Of a collector.
    standing: Option<Arc<Standing>>,
}

/// What is spoken on a connection, and how much of it at once.
#[derive(Clone, Copy)]
struct Terms {
    protocol: Protocol,
    streams_max: u32,
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

fn peer_of(
    address: IpAddr,
    shown: Option<&CertificateDer<'_>>,
) -> (Peer, Option<ClientCertificate>) {
    let certificate = shown.and_then(|shown| pki::client_certificate(shown));
    if shown.is_some() && certificate.is_none() {
        tracing::debug!(%address, "shows a certificate that is not a client's");
    }
    let channel = match &certificate {
        Some(certificate) => Channel::Mutual(certificate.thumbprint.as_str().into()),
        None => Channel::Tls,
    };
    let certificate_ends = certificate.as_ref().map(|certificate| certificate.ends);
    (Peer { address, channel, certificate_ends }, certificate)
}

/// TLS 1.3 only. A client certificate is asked for, and must be of the backend's authority when
/// one is shown; which endpoints need it is the API's business.
pub(super) fn tls(keys: &Keys, store: &Arc<dyn Store>) -> Result<(Tls, Arc<Shown>), BackendError> {
    let unusable = |what: &str, err: &dyn std::fmt::Display| {
        BackendError::Keys(format!("the {what} cannot be used: {err}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(keys.authority.certificate_pem().as_bytes())
        .map_err(|err| unusable("authority's certificate", &err))?;
    roots.add(authority).map_err(|err| unusable("authority's certificate", &err))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|err| unusable("authority's certificate", &err))?;
    let shown = Arc::new(Shown::new(keys, Arc::clone(&provider))?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|err| unusable("TLS configuration", &err))?
        .with_client_cert_verifier(Arc::new(Late(verifier)))
        .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Ok((Tls { acceptor, store: Arc::clone(store) }, shown))
}

/// Looks at the server certificate now and then, until `stop` turns true.
pub(super) fn keep_certificate(
    shared: Arc<Shared>,
    shown: Arc<Shown>,
    mut stop: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if let Err(error) = renew_certificate(&shared, &shown).await {
                tracing::error!(%error, "the server certificate was not made anew");
            }
        }
    })
}

/// Makes the server certificate anew when it has to be, and shows it to new connections.
pub(super) async fn renew_certificate(
    shared: &Arc<Shared>,
    shown: &Arc<Shown>,
) -> Result<(), BackendError> {
    let (shared, shown) = (Arc::clone(shared), Arc::clone(shown));
    let renew = move || match keys::renewed(&shared.config, &shared.keys, clock::now())? {
        Some(certificate) => shown.replace(&shared.keys, &certificate),
        None => Ok(()),
    };
    let renewed = tokio::task::spawn_blocking(renew).await;
    renewed.unwrap_or_else(|err| Err(BackendError::Keys(err.to_string())))
}
