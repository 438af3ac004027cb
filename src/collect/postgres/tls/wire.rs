//! A line that is made before the driver gets it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Tells the driver that its stream is as encrypted as it is going to be. The driver takes it when
/// it is told to require TLS and not to ask for it.
#[derive(Debug, Clone, Default)]
pub(in crate::collect::postgres) struct Established {
    /// What a login is bound to; absent without TLS.
    pub(in crate::collect::postgres) end_point: Option<Vec<u8>>,
}

/// The stream, and what a login on it is bound to.
#[derive(Debug)]
pub(in crate::collect::postgres) struct Wire<S> {
    stream: S,
    end_point: Option<Vec<u8>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for Established {
    type Stream = Wire<S>;
    type Error = Infallible;
    type Future = Ready<Result<Wire<S>, Infallible>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(Wire { stream, end_point: self.end_point }))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Wire<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let bound = self.end_point.clone().map(ChannelBinding::tls_server_end_point);
        bound.unwrap_or_else(ChannelBinding::none)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
