//! A relay that sees requests: it ends the agent's TLS with the backend's own certificate, and
//! speaks to the backend with the agent's. What it does to a push no network below TLS can do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::backend::{Ask, Client, Reply};

/// What the relay does to each push from now on; other requests are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meddling {
    /// Passes pushes on.
    None,
    /// The push arrives whole, its answer does not.
    LostAnswer,
    /// Half of the answer arrives.
    TruncatedAnswer,
    /// The push arrives again after it was answered; the agent gets the second answer.
    Again,
    /// The push arrives twice at the same time.
    Twice,
    /// The push arrives again when the agent has its answer and has gone on.
    Late,
    /// One of the above, by chance, for each push.
    Random,
}

impl Meddling {
    pub const ALL: [Self; 5] =
        [Self::LostAnswer, Self::TruncatedAnswer, Self::Again, Self::Twice, Self::Late];

    fn drawn(self) -> Self {
        match self {
            Self::Random if fastrand::bool() => Self::ALL[fastrand::usize(..Self::ALL.len())],
            Self::Random => Self::None,
            other => other,
        }
    }
}

/// Whose keys the relay has.
pub struct Keys {
    /// Of the backend: certificate and key.
    pub server: [PathBuf; 2],
    /// Of the agent.
    pub agent: [PathBuf; 2],
    /// The certificate of the backend's authority.
    pub authority: String,
}

/// A running relay; it ends with the value.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    backend: Client,
    tls: TlsAcceptor,
    meddling: watch::Sender<Meddling>,
    struck: AtomicU64,
}

impl Relay {
    /// Relays to the backend at `target` from a port of its own.
    pub async fn start(target: SocketAddr, keys: &Keys) -> Self {
        let read = |path: &PathBuf| fs_err::read_to_string(path).expect("read a key");
        let [certificate, key] = keys.server.each_ref().map(read);
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let [certificate, key] = keys.agent.each_ref().map(read);
        let shared = Arc::new(Shared {
            backend: Client::new(target, &keys.authority, Some((&certificate, &key))),
            tls: TlsAcceptor::from(Arc::new(config)),
            meddling: watch::channel(Meddling::None).0,
            struck: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("a bound address");
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, Arc::clone(&serving)));
            }
        });
        Self { address, shared, accepting }
    }

    /// Where the agent's connections go.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what is done to pushes.
    pub fn set(&self, meddling: Meddling) {
        self.shared.meddling.send_replace(meddling);
    }

    /// How many pushes something was done to.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(tcp: TcpStream, shared: Arc<Shared>) {
    let Ok(stream) = shared.tls.clone().accept(tcp).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let ask = Ask::read(request).await.map_err(io::Error::other)?;
            if ask.path() != "/api/v1/metrics/push" {
                return shared.send(ask).await.map(whole);
            }
            let meddling = shared.meddling.borrow().drawn();
            if meddling != Meddling::None {
                shared.struck.fetch_add(1, Ordering::Relaxed);
            }
            Box::pin(shared.meddle(meddling, ask)).await
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    http.serve_connection(TokioIo::new(stream), service).await.ok();
}

impl Shared {
    async fn send(&self, ask: Ask) -> io::Result<Reply> {
        let sent = self.backend.try_send(ask).await;
        sent.map_err(|error| io::Error::other(error.to_string()))
    }

    /// Passes a push on. An error ends the agent's connection without an answer.
    async fn meddle(&self, meddling: Meddling, ask: Ask) -> io::Result<Response<Body>> {
        match meddling {
            Meddling::LostAnswer => {
                self.send(ask).await?;
                Err(io::Error::other("the answer is lost"))
            }
            Meddling::TruncatedAnswer => self.send(ask).await.map(half),
            Meddling::Again => {
                self.send(ask.clone()).await?;
                self.send(ask).await.map(whole)
            }
            Meddling::Twice => {
                let (first, second) = tokio::join!(self.send(ask.clone()), self.send(ask));
                first.or(second).map(whole)
            }
            Meddling::Late => {
                let answer = self.send(ask.clone()).await?;
                let backend = self.backend.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    backend.try_send(ask).await.map(drop).ok()
                });
                Ok(whole(answer))
            }
            Meddling::None | Meddling::Random => self.send(ask).await.map(whole),
        }
    }
}

type Frames = Vec<Result<Frame<Bytes>, io::Error>>;
type Body =
    Either<Full<Bytes>, StreamBody<futures_util::stream::Iter<<Frames as IntoIterator>::IntoIter>>>;

fn whole(reply: Reply) -> Response<Body> {
    let body = reply.body.clone();
    answer(reply, Either::Left(Full::new(body)))
}

/// The head promises the whole body, half of it follows.
fn half(reply: Reply) -> Response<Body> {
    let part = reply.body.slice(..reply.body.len() / 2);
    let frames = vec![Ok(Frame::data(part)), Err(io::Error::other("the answer is cut off"))];
    answer(reply, Either::Right(StreamBody::new(futures_util::stream::iter(frames))))
}

fn answer(reply: Reply, body: Body) -> Response<Body> {
    let length = reply.body.len();
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(reply.status).expect("a status");
    *answer.headers_mut() = reply.headers;
    answer.headers_mut().remove(header::TRANSFER_ENCODING);
    answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    answer
}
