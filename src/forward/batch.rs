//! One batch as a body: the envelope around the records' own JSON, compressed.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

use crate::metric::envelope::EnvelopeHead;

/// A body ready for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The bytes to send.
    pub bytes: Bytes,
    /// What they were before compression.
    pub raw_bytes: u64,
}

/// Joins the records' JSON into an envelope and compresses it with gzip (RFC 1952).
pub fn encode(head: &EnvelopeHead<'_>, metrics: &[Bytes], level: u32) -> Body {
    let expected: usize = metrics.iter().map(|metric| metric.len() + 1).sum();
    let mut envelope = Vec::with_capacity(expected + 1024);
    head.encode(metrics, &mut envelope);
    let mut gzip = GzEncoder::new(Vec::with_capacity(expected / 4), Compression::new(level));
    // Compression into memory fails only for want of memory, which aborts anyway.
    let written = gzip.write_all(&envelope).and_then(|()| gzip.finish());
    Body {
        bytes: Bytes::from(written.expect("compression into memory")),
        raw_bytes: envelope.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use jiff::Timestamp;

    use super::*;
    use crate::metric::envelope::PushRequest;

    fn metrics(count: usize) -> Vec<Bytes> {
        let one = |n: usize| {
            let cpu = format!(r#"{{"user":{}}}"#, n % 60);
            let time = format!("2026-01-01T00:{:02}:00Z", n % 60);
            Bytes::from(format!(r#"{{"type":"sysstat","timestamp":"{time}","cpu":{cpu}}}"#))
        };
        (0..count).map(one).collect()
    }

    fn encode_some(count: usize) -> Body {
        let timestamp = Timestamp::UNIX_EPOCH;
        let head = EnvelopeHead { collector_id: "c", hostname: "h", timestamp, agent: None };
        encode(&head, &metrics(count), 6)
    }

    /// C1, C2, C6, C31: what is sent is gzip of an envelope that the other side reads.
    #[test]
    fn a_body_is_read_back() {
        let body = encode_some(400);
        assert_eq!(body.bytes[..2], [0x1f, 0x8b]);
        let mut envelope = Vec::new();
        flate2::read::GzDecoder::new(&body.bytes[..]).read_to_end(&mut envelope).unwrap();
        assert_eq!(envelope.len() as u64, body.raw_bytes);
        let request = PushRequest::parse(&envelope).unwrap();
        assert_eq!((request.metrics.len(), request.version.as_str()), (400, "1.0.0"));
    }

    /// C17
    #[test]
    fn similar_metrics_compress_well_and_always_the_same() {
        let percent = |count| {
            let body = encode_some(count);
            assert_eq!(body, encode_some(count));
            body.bytes.len() as u64 * 100 / body.raw_bytes
        };
        assert!(percent(50) < 70);
        assert!(percent(1) < 100);
    }
}
