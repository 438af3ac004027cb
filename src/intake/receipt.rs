//! What is remembered with an idempotency key: enough to answer again, and small.

use bytes::Bytes;

/// What a request with a key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Metrics taken.
    pub(super) inserted: u64,
    /// The body after inflating, so that other content under the same key is noticed.
    pub(super) body_crc: u32,
    /// When it is void, milliseconds since 1970 UTC.
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

    /// The receipt that is still good at `now_ms`; other bytes are none.
    pub(super) fn decode(bytes: &[u8], now_ms: i64) -> Option<Self> {
        let (inserted, rest) = bytes.split_first_chunk()?;
        let (until_ms, rest) = rest.split_first_chunk()?;
        let receipt = Self {
            inserted: u64::from_le_bytes(*inserted),
            until_ms: i64::from_le_bytes(*until_ms),
            body_crc: u32::from_le_bytes(rest.try_into().ok()?),
        };
        (now_ms < receipt.until_ms).then_some(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_good_until_its_time() {
        let receipt = Receipt { inserted: 7, body_crc: 0xdead_beef, until_ms: 1_000 };
        let bytes = receipt.encode();
        assert_eq!(Receipt::decode(&bytes, 999), Some(receipt));
        assert_eq!(Receipt::decode(&bytes, 1_000), None);
        for cut in 0..bytes.len() {
            assert_eq!(Receipt::decode(&bytes[..cut], 0), None);
        }
        assert_eq!(Receipt::decode(&[bytes, Bytes::from_static(b"x")].concat(), 0), None);
    }
}
