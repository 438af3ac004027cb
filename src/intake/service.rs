//! One request: read, decoded, taken, answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::{
    BODIES_AT_ONCE, IntakeConfig, IntakeView, KEY_BYTES_MAX, Key, PUSH_PATH, Push, Sink, Taken,
    answer::{Answer, Novelty, Refusal, success},
    body::{self, Room, Share},
    decode::{self, Decoded, Format, Rejects},
    keys::Keys,
    receipt::Receipt,
};
use crate::{
    clock,
    encoding::{self, Encoding},
};

/// Bodies up to this size are decoded where they are read: that takes less than a millisecond.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// How long a large or packed body waits for its turn before it is sent away.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// How often metrics in memory are asked after.
const DURABLE_POLL: Duration = Duration::from_millis(100);

/// What all requests share.
#[derive(Debug)]
pub(super) struct Service<S> {
    sink: S,
    config: IntakeConfig,
    view: IntakeView,
    room: Room,
    keys: Keys,
    /// The turn of large and packed bodies: one at a time.
    heavy: Arc<Semaphore>,
    /// Set when the disk has failed, until it is known to be back.
    in_doubt: AtomicBool,
}

/// A body, read.
struct Received {
    bytes: Bytes,
    format: Format,
    key: Option<String>,
}

impl<S: Sink> Service<S> {
    pub(super) fn new(sink: S, config: IntakeConfig, view: IntakeView) -> Self {
        let room = Room::new(config.body_bytes_max * BODIES_AT_ONCE, view.body_bytes());
        let (heavy, in_doubt) = (Arc::new(Semaphore::new(1)), AtomicBool::new(false));
        Self { sink, config, view, room, keys: Keys::default(), heavy, in_doubt }
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, mut body) = request.into_parts();
        let mut share = self.room.share();
        let done = async {
            check_target(&head.method, head.uri.path(), &head.headers)?;
            let received = self.receive(&head.headers, &mut body, &mut share).await?;
            self.push(received, &mut share).await
        };
        let answer = match done.await {
            Ok(answer) => answer,
            Err(refusal) => {
                // Its memory is free while the rest of an unwanted body goes by.
                drop(share);
                body::discard(body, self.config.timeout).await;
                tracing::debug!(status = refusal.status.as_u16(), "intake: a request was refused");
                refusal.into_answer()
            }
        };
        self.view.answered(answer.status());
        answer
    }

    async fn receive(
        &self,
        headers: &HeaderMap,
        body: &mut Incoming,
        share: &mut Share,
    ) -> Result<Received, Refusal> {
        let (limit, timeout) = (self.config.body_bytes_max, self.config.timeout);
        let key = key(headers)?;
        encoding::check_label(label(headers)).map_err(|error| Refusal::inflate(error, limit))?;
        let bytes = body::read(headers, body, limit, timeout, share).await?;
        Ok(Received { bytes, format: format(headers), key })
    }

    async fn push(&self, received: Received, share: &mut Share) -> Result<Answer, Refusal> {
        let Received { bytes, format, key } = received;
        let now = clock::now();
        let (inflated, decoded) = self.decode(bytes, format, now, share).await?;
        self.view.rejected(decoded.rejects.total);
        let Some(name) = key else { return self.take(decoded, None).await };
        // Under a key metrics are taken once.
        let _turn = self.keys.turn(&name).await;
        let body_crc = crc32c::crc32c(&inflated);
        let known = self.sink.receipt(&name).await;
        let Some(receipt) = known.and_then(|bytes| Receipt::decode(&bytes)) else {
            let inserted = decoded.metrics.len() as u64;
            let receipt = Receipt::new(inserted, body_crc, now);
            let key = Key { name, receipt: receipt.encode(), keep_until_ms: receipt.until_ms };
            return self.take(decoded, Some(key)).await;
        };
        // Known from memory while the disk takes nothing: it is not durable yet.
        if !self.sink.is_durable().await {
            return Err(Refusal::no_disk());
        }
        self.view.duplicate();
        if receipt.body_crc != body_crc {
            tracing::warn!(key = name, "intake: other content under a key that is known");
            return Ok(success(receipt.inserted, &Rejects::default(), Novelty::Duplicate));
        }
        // What was too far ahead of the clock when it came was rejected, and still is.
        drop(decoded);
        let body_bytes = inflated.len();
        let then = receipt.taken_at();
        let work =
            move || decode::decode(&inflated, format, then).map_err(|e| Refusal::envelope(&e));
        let first = self.heavy(body_bytes, work).await?;
        Ok(success(receipt.inserted, &first.rejects, Novelty::Duplicate))
    }

    /// Inflates and decodes, elsewhere when it takes long; times are held against `now`.
    async fn decode(
        &self,
        body: Bytes,
        format: Format,
        now: Timestamp,
        share: &mut Share,
    ) -> Result<(Bytes, Decoded), Refusal> {
        let limit = self.config.body_bytes_max;
        let decode = move |body: Bytes| {
            let body = encoding::inflate(None, body, limit)
                .map_err(|error| Refusal::inflate(error, limit))?;
            let decoded = decode::decode(&body, format, now);
            Ok((body, decoded.map_err(|invalid| Refusal::envelope(&invalid))?))
        };
        if body.len() <= INLINE_BYTES_MAX && Encoding::of(&body) == Encoding::Identity {
            return decode(body);
        }
        let (body, decoded) = self.heavy(usize::MAX, move || decode(body)).await?;
        share.grow_to(body.len() as u64)?;
        Ok((body, decoded))
    }

    /// Works on a body of so many bytes: elsewhere when it is large, one at a time.
    async fn heavy<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        if bytes <= INLINE_BYTES_MAX {
            return work();
        }
        let turn = Arc::clone(&self.heavy).acquire_owned();
        let turn = tokio::time::timeout(TURN_PATIENCE, turn).await.map_err(|_| Refusal::busy())?;
        let work = move || {
            let _turn = turn; // until it is done, whether somebody waits for it or not
            work()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "intake: a body could not be decoded");
            Err(Refusal::bad_request("the body cannot be read"))
        })
    }

    async fn take(&self, decoded: Decoded, key: Option<Key>) -> Result<Answer, Refusal> {
        let Decoded { metrics, rejects } = decoded;
        let inserted = metrics.len() as u64;
        if inserted > 0 {
            // Metrics that are not durable would have to be sent again, and be there twice.
            if self.in_doubt.load(Ordering::Relaxed) {
                if !self.sink.is_durable().await {
                    return Err(Refusal::no_disk());
                }
                self.in_doubt.store(false, Ordering::Relaxed);
            }
            let taken = match self.sink.take(Push { metrics, key }).await {
                Taken::InMemory => self.until_durable().await,
                taken => taken,
            };
            if let Some(refusal) = Refusal::of(taken) {
                return Err(refusal);
            }
            self.view.taken(inserted);
        }
        Ok(success(inserted, &rejects, Novelty::New))
    }

    /// The disk has failed just now. It may be back before the client has to be told.
    async fn until_durable(&self) -> Taken {
        self.in_doubt.store(true, Ordering::Relaxed);
        let durable = async {
            while !self.sink.is_durable().await {
                tokio::time::sleep(DURABLE_POLL).await;
            }
        };
        match tokio::time::timeout(self.config.timeout, durable).await {
            Ok(()) => Taken::Durable,
            Err(_) => Taken::InMemory,
        }
    }
}

fn check_target(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    if path != PUSH_PATH {
        return Err(Refusal::not_found());
    }
    if method != Method::POST {
        return Err(Refusal::method());
    }
    if headers.contains_key(header::ORIGIN) { Err(Refusal::browser()) } else { Ok(()) }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let message = format!("an Idempotency-Key has 1 to {KEY_BYTES_MAX} ASCII characters");
        return Err(Refusal::bad_request(message));
    }
    Ok(Some(key.to_owned()))
}

/// The `Content-Encoding`; one that is no text is none that is known.
fn label(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"))
}

fn format(headers: &HeaderMap) -> Format {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    let lines = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
    if lines.iter().any(|name| name.eq_ignore_ascii_case(kind)) {
        Format::Lines
    } else {
        Format::Any
    }
}
