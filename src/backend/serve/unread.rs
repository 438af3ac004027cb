//! Answers that wait for their peer to read them, and what they hold until then.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf as _, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// So much of an answer is handed to the connection at a time, bytes.
const PIECE_BYTES: usize = 32 << 10;

/// An answer whose peer has not read it for too long.
#[derive(Debug)]
struct NotRead;

/// The body of such an answer.
struct Unread {
    waiting: Arc<Waiting>,
    watch: JoinHandle<()>,
}

/// What is left of an answer, until it is read, dropped or given up.
struct Waiting {
    rest: Mutex<Rest>,
}

enum Rest {
    Some(Left),
    /// It is all handed over, or has failed.
    None,
    /// The peer has read nothing for too long.
    GivenUp,
}

struct Left {
    body: Body,
    /// What has come of the body and is not handed over.
    bytes: Bytes,
    moved_at: Instant,
    /// Given back with the bytes.
    _held: Box<dyn Send>,
}

/// The answer, which gives `held` back with the last piece that is handed to the connection. A peer
/// that takes nothing for `patience` gets an error in place of the rest: neither the bytes nor what
/// they hold wait for it any longer, though nobody asks for the next piece.
pub(in crate::backend) fn until_read(
    response: Response,
    held: impl Send + 'static,
    patience: Duration,
) -> Response {
    response.map(|body| {
        let left =
            Left { body, bytes: Bytes::new(), moved_at: Instant::now(), _held: Box::new(held) };
        let waiting = Arc::new(Waiting { rest: Mutex::new(Rest::Some(left)) });
        let watch = tokio::spawn(watch(Arc::downgrade(&waiting), patience));
        Body::new(Unread { waiting, watch })
    })
}

/// Gives the answer up when its peer takes nothing of it for `patience`.
async fn watch(waiting: Weak<Waiting>, patience: Duration) {
    while let Some(end) = waiting.upgrade().and_then(|waiting| waiting.end(patience)) {
        tokio::time::sleep_until(end).await;
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it is given up; `None` when it is, or when nothing is left.
    fn end(&self, patience: Duration) -> Option<Instant> {
        let mut rest = self.lock();
        let Rest::Some(left) = &*rest else { return None };
        let end = left.moved_at + patience;
        if end > Instant::now() {
            return Some(end);
        }
        tracing::debug!("an answer is given up: its peer does not read it");
        *rest = Rest::GivenUp;
        None
    }
}

impl Left {
    /// The next piece. It is a copy: a part of the bytes would keep all of them in memory.
    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.bytes.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            match frame.into_data() {
                Ok(bytes) => self.bytes = bytes,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let length = self.bytes.len().min(PIECE_BYTES);
        let piece = Bytes::copy_from_slice(&self.bytes[..length]);
        self.bytes.advance(length);
        self.moved_at = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.body.is_end_stream()
    }
}

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut rest = self.waiting.lock();
        let (piece, is_over) = match &mut *rest {
            Rest::Some(left) => {
                let piece = ready!(left.poll_piece(context));
                let is_over = left.is_over() || !matches!(piece, Some(Ok(_)));
                (piece, is_over)
            }
            Rest::GivenUp => (Some(Err(axum::Error::new(NotRead))), true),
            Rest::None => (None, true),
        };
        if is_over {
            *rest = Rest::None;
        }
        Poll::Ready(piece)
    }

    fn is_end_stream(&self) -> bool {
        matches!(*self.waiting.lock(), Rest::None)
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.waiting.lock() {
            Rest::Some(left) => {
                let (more, here) = (left.body.size_hint(), left.bytes.len() as u64);
                let mut hint = SizeHint::new();
                hint.set_lower(more.lower() + here);
                if let Some(upper) = more.upper() {
                    hint.set_upper(upper + here);
                }
                hint
            }
            Rest::None => SizeHint::with_exact(0),
            Rest::GivenUp => SizeHint::new(),
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer was not read in time")
    }
}

impl std::error::Error for NotRead {}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);
    const NEARLY: Duration = Duration::from_millis(14_999);

    /// An answer of so many bytes; what it holds is counted by the strong references.
    fn answer(bytes: usize) -> (Body, Arc<()>) {
        let held = Arc::new(());
        let response = Response::new(Body::from(vec![b'x'; bytes]));
        (until_read(response, Arc::clone(&held), PATIENCE).into_body(), held)
    }

    fn is_held(held: &Arc<()>) -> bool {
        Arc::strong_count(held) > 1
    }

    /// What is held goes with the last piece, not with the first.
    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_all_and_then_nothing_is_held() {
        let (mut body, held) = answer(3 * PIECE_BYTES + 1);
        assert_eq!(body.size_hint().exact(), Some(3 * PIECE_BYTES as u64 + 1));
        let mut seen = 0;
        while seen < 3 * PIECE_BYTES + 1 {
            assert!(is_held(&held) && !body.is_end_stream(), "after {seen}");
            // As slow as it may be.
            tokio::time::sleep(NEARLY).await;
            let frame = body.frame().await.expect("more").expect("sound");
            seen += frame.into_data().expect("data").len();
        }
        assert!(!is_held(&held) && body.is_end_stream());
        assert!(body.frame().await.is_none());
    }

    /// Nobody asks for the next piece, and still it ends, at the first or in the middle.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_loses_the_answer() {
        for pieces in [0, 2] {
            let (mut body, held) = answer(3 * PIECE_BYTES);
            for _ in 0..pieces {
                body.frame().await.expect("more").expect("sound");
            }
            tokio::time::sleep(NEARLY).await;
            assert!(is_held(&held), "after {pieces}");
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(!is_held(&held), "after {pieces}");
            let error = body.frame().await.expect("an end").expect_err("not the rest");
            assert!(error.to_string().contains("not read in time"), "{error}");
            assert!(body.frame().await.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_answer_holds_nothing() {
        let (mut body, held) = answer(3 * PIECE_BYTES);
        body.frame().await.expect("more").expect("sound");
        drop(body);
        assert!(!is_held(&held));
    }
}
