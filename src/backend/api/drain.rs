//! Reads what a refused request still sends.
//!
//! An answer that comes before the end of the body would leave bytes in the socket, and closing a
//! socket with unread bytes resets the connection: the client would see that reset, and perhaps
//! never the answer that says what to do about it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::oneshot;

use super::Shared;

/// So many times the limit of a body are read in all; who sends more is cut off.
const FACTOR: u64 = 4;
/// An answer waits no longer for the rest of a body.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that comes back when the handler lets go of it before its end.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

/// Lends the body to the handler and reads what is left of it.
pub(super) async fn drain(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    // A client that expects to be told whether to send is told by the answer.
    if body.is_end_stream() || parts.headers.contains_key(header::EXPECT) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let (back, mut rest) = oneshot::channel();
    let lent = Body::new(Lent { body, back: Some(back) });
    let response = next.run(Request::from_parts(parts, lent)).await;
    // Whoever ran out of time sends nothing that is worth waiting for.
    let is_late = response.status() == StatusCode::REQUEST_TIMEOUT;
    if let (Ok(rest), false) = (rest.try_recv(), is_late) {
        let most = shared.config.limits.body_bytes_max.saturating_mul(FACTOR);
        let _ = tokio::time::timeout(PATIENCE, discard(rest, most)).await;
    }
    response
}

async fn discard(mut body: Body, most: u64) {
    let mut seen = 0;
    while seen < most {
        match body.frame().await {
            Some(Ok(frame)) => seen += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => break,
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take()
            && !self.body.is_end_stream()
        {
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}
