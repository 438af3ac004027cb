//! The way to the backend below TLS: straight, or through a proxy that is asked to `CONNECT`.
//!
//! hyper-util's own tunnel does not tell what a proxy answered, and an operator needs to know; so
//! the request is hyper's, which reads the answer as that of any other request.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service};

use super::connect::Resolver;
use crate::link::proxy::Proxy;

/// Makes connections to the backend.
#[derive(Clone)]
pub(super) struct Way {
    tcp: HttpConnector<Resolver>,
    through: Option<Arc<Through>>,
}

/// A proxy and, when the way to it is TLS, whom that trusts.
pub(super) struct Through {
    pub(super) proxy: Proxy,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

impl Way {
    pub(super) fn new(tcp: HttpConnector<Resolver>, through: Option<Arc<Through>>) -> Self {
        Self { tcp, through }
    }
}

impl Service<Uri> for Way {
    type Response = Road;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Road, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, backend: Uri) -> Self::Future {
        let Some(through) = self.through.clone() else {
            let connecting = self.tcp.call(backend);
            return Box::pin(async { Ok(Road::Straight(connecting.await?)) });
        };
        let connecting = self.tcp.call(through.proxy.uri().clone());
        Box::pin(async move {
            let failed = |what| ProxyFailed { proxy: through.proxy.to_string(), what };
            let tcp = connecting.await.map_err(|error| failed(What::Unreachable(error.into())))?;
            through.open(tcp, &backend).await.map(Road::Tunnel).map_err(|what| failed(what).into())
        })
    }
}

impl Through {
    async fn open(&self, tcp: TokioIo<TcpStream>, backend: &Uri) -> Result<Upgraded, What> {
        let Some(tls) = &self.tls else { return self.ask(tcp, backend).await };
        let host = self.proxy.uri().host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host).map_err(|error| What::Tls(io::Error::other(error)))?;
        let tls = TlsConnector::from(Arc::clone(tls));
        let stream = tls.connect(name, tcp.into_inner()).await.map_err(What::Tls)?;
        self.ask(TokioIo::new(stream), backend).await
    }

    async fn ask<T>(&self, stream: T, backend: &Uri) -> Result<Upgraded, What>
    where
        T: Read + Write + Unpin + Send + 'static,
    {
        let to = match (backend.host(), backend.port_u16()) {
            (Some(host), port) => format!("{host}:{}", port.unwrap_or(443)),
            (None, _) => return Err(What::Broken("the backend has no host".into())),
        };
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&to)
            .header(header::HOST, &to)
            .body(Empty::<Bytes>::new())
            .map_err(|error| What::Broken(error.into()))?;
        if let Some(authorization) = self.proxy.authorization() {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        let broken = |error: hyper::Error| What::Broken(error.into());
        let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            if answer.status().is_success() {
                return hyper::upgrade::on(answer).await.map_err(broken);
            }
            Err(What::Refused(answer.status(), self.credentials()))
        };
        // The connection is over when it has become a tunnel; what it has to say, the answer says.
        let (mut asking, connection) = (pin!(asking), pin!(connection.with_upgrades()));
        tokio::select! {
            biased;
            opened = &mut asking => return opened,
            _ = connection => {}
        }
        asking.await
    }

    fn credentials(&self) -> Credentials {
        if self.proxy.authorization().is_some() { Credentials::Sent } else { Credentials::None }
    }
}

/// Whether the proxy was told a user and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link) enum Credentials {
    None,
    Sent,
}

/// The proxy did not open the way.
#[derive(Debug)]
pub(in crate::link) struct ProxyFailed {
    /// Scheme, host and port.
    pub(in crate::link) proxy: String,
    pub(in crate::link) what: What,
}

/// What a proxy did instead.
#[derive(Debug)]
pub(in crate::link) enum What {
    /// No address, no connection.
    Unreachable(BoxError),
    /// No TLS with it.
    Tls(io::Error),
    /// It answered so.
    Refused(StatusCode, Credentials),
    /// It did not answer as HTTP does.
    Broken(BoxError),
}

impl fmt::Display for ProxyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no way through the proxy {}", self.proxy)
    }
}

// No `source`: what lies below is about the proxy, and must not be taken for the backend's.
impl Error for ProxyFailed {}

/// What a connection to the backend runs over.
pub(super) enum Road {
    Straight(TokioIo<TcpStream>),
    Tunnel(Upgraded),
}

impl Connection for Road {
    fn connected(&self) -> Connected {
        match self {
            Self::Straight(stream) => stream.connected(),
            Self::Tunnel(_) => Connected::new(),
        }
    }
}

impl Read for Road {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Straight(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tunnel(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for Road {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Straight(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tunnel(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Straight(stream) => Pin::new(stream).poll_flush(context),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Straight(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Straight(stream) => stream.is_write_vectored(),
            Self::Tunnel(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Straight(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }
}
