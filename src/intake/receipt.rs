//! What is remembered with an idempotency key: enough to answer again, and small.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::KEY_KEPT;

/// What a request with a key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Metrics taken.
    pub(super) inserted: u64,
    /// The body after inflating, so that other content under the same key is noticed.
    pub(super) body_crc: u32,
    /// When it is void by the clock of then, milliseconds since 1970 UTC. Earlier versions went by
    /// this; now it says when the request came.
    pub(super) until_ms: i64,
}

impl Receipt {
    /// Of a request that came at `taken_at`.
    pub(super) fn new(inserted: u64, body_crc: u32, taken_at: Timestamp) -> Self {
        let until = taken_at.saturating_add(kept()).expect("not a span of calendar units");
        Self { inserted, body_crc, until_ms: until.as_millisecond() }
    }

    /// When the request came, as its host's clock said.
    pub(super) fn taken_at(self) -> Timestamp {
        let until = Timestamp::from_millisecond(self.until_ms).unwrap_or_default();
        until.saturating_sub(kept()).expect("not a span of calendar units")
    }

    /// As bytes: three numbers, little endian.
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = Vec::with_capacity(20);
        bytes.extend_from_slice(&self.inserted.to_le_bytes());
        bytes.extend_from_slice(&self.until_ms.to_le_bytes());
        bytes.extend_from_slice(&self.body_crc.to_le_bytes());
        bytes.into()
    }

    /// The receipt; other bytes are none. The queue says how long it is good, by a clock that does
    /// not jump.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (inserted, rest) = bytes.split_first_chunk()?;
        let (until_ms, rest) = rest.split_first_chunk()?;
        Some(Self {
            inserted: u64::from_le_bytes(*inserted),
            until_ms: i64::from_le_bytes(*until_ms),
            body_crc: u32::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

fn kept() -> SignedDuration {
    SignedDuration::try_from(KEY_KEPT).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_says_when_its_request_came() {
        let at = Timestamp::from_millisecond(1_800_000_000_123).unwrap();
        let receipt = Receipt::new(7, 0, at);
        assert_eq!(Receipt::decode(&receipt.encode()).unwrap().taken_at(), at);
    }

    #[test]
    fn a_receipt_survives_encoding() {
        let receipt = Receipt { inserted: 7, body_crc: 0xdead_beef, until_ms: 1_000 };
        let bytes = receipt.encode();
        assert_eq!(Receipt::decode(&bytes), Some(receipt));
        for cut in 0..bytes.len() {
            assert_eq!(Receipt::decode(&bytes[..cut]), None);
        }
        assert_eq!(Receipt::decode(&[bytes, Bytes::from_static(b"x")].concat()), None);
    }
}
