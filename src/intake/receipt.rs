//! What is remembered with an idempotency key: enough to answer again, and small.

use bytes::Bytes;

/// What a request with a key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Metrics taken.
    pub(super) inserted: u64,
    /// The body after inflating, so that other content under the same key is noticed.
    pub(super) body_crc: u32,
    /// When it is void, milliseconds since 1970 UTC: earlier versions went by this.
    pub(super) until_ms: i64,
}

impl Receipt {
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

#[cfg(test)]
mod tests {
    use super::*;

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
