//! A request's body off the wire, within the limits of one and of all.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::answer::Refusal;

/// What is read of a body that is not wanted, so that its sender hears why: a client that is
/// still writing when the connection closes may never see the answer.
const UNWANTED_BYTES_MAX: u64 = 64 << 20;

/// Memory for the bodies of all requests in the works. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    used: Arc<AtomicU64>,
    bytes_max: u64,
}

/// A part of the room; given back with the value.
#[derive(Debug)]
pub(super) struct Share {
    room: Room,
    bytes: u64,
}

impl Room {
    /// Room for so many bytes, counted in `used`.
    pub(super) fn new(bytes_max: u64, used: Arc<AtomicU64>) -> Self {
        Self { used, bytes_max }
    }

    pub(super) fn share(&self) -> Share {
        Share { room: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Makes the share at least `bytes` large.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        let used = &self.room.used;
        if used.fetch_add(more, Ordering::Relaxed) + more > self.room.bytes_max {
            used.fetch_sub(more, Ordering::Relaxed);
            return Err(Refusal::busy());
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a whole body of at most `limit` bytes within `timeout`.
pub(super) async fn read(
    headers: &HeaderMap,
    body: &mut Incoming,
    limit: u64,
    timeout: Duration,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
    let declared = content_length(headers).unwrap_or(0);
    if declared > limit {
        return Err(Refusal::too_large(limit));
    }
    let read = collect(body, declared, limit, share);
    tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| Err(Refusal::timeout()))
}

/// Reads on and forgets, for a while.
pub(super) async fn discard(mut body: Incoming, timeout: Duration) {
    let mut bytes = 0;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            if bytes > UNWANTED_BYTES_MAX {
                return;
            }
        }
    };
    // When it takes longer, the connection is closed on a client that is still sending.
    tokio::time::timeout(timeout, read).await.ok();
}

async fn collect(
    body: &mut Incoming,
    declared: u64,
    limit: u64,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
    let mut bytes: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad_request("the body ended early"))?;
        let Some(data) = frame.data_ref() else { continue };
        let length = (bytes.len() + data.len()) as u64;
        if length > limit {
            return Err(Refusal::too_large(limit));
        }
        share.grow_to(length)?;
        if bytes.is_empty() {
            // What is declared is believed when a part of it has come; untouched memory costs
            // nothing, and it is at most the limit.
            bytes.reserve_exact(usize::try_from(declared).unwrap_or(0));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_and_given_back() {
        let room = Room::new(10, Arc::default());
        let mut first = room.share();
        first.grow_to(6).unwrap();
        first.grow_to(4).unwrap();
        let mut second = room.share();
        assert_eq!(second.grow_to(5), Err(Refusal::busy()));
        second.grow_to(4).unwrap();
        assert_eq!(first.grow_to(7), Err(Refusal::busy()));
        drop(second);
        first.grow_to(10).unwrap();
        drop(first);
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
    }
}
