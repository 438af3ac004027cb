//! One batch as a body: the envelope around the records' own JSON, compressed.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

use crate::{encoding::Encoding, metric::envelope::EnvelopeHead};

/// A body ready for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The bytes to send.
    pub bytes: Bytes,
    /// How they are packed.
    pub encoding: Encoding,
    /// What they were before compression.
    pub raw_bytes: u64,
}

/// How a body is packed, and how much work that is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Identity,
    /// RFC 1952; 0 (fast) to 9 (small).
    Gzip(u32),
    /// RFC 8878; 1 (fast) to 19 (small).
    Zstd(i32),
}

/// Joins the records' JSON into an envelope and compresses it.
pub fn encode(head: &EnvelopeHead<'_>, metrics: &[Bytes], packing: Packing) -> Body {
    let expected: usize = metrics.iter().map(|metric| metric.len() + 1).sum();
    let mut envelope = Vec::with_capacity(expected + 1024);
    head.encode(metrics, &mut envelope);
    let raw_bytes = envelope.len() as u64;
    // Compression into memory fails only for want of memory, which aborts anyway.
    let (packed, encoding) = match packing {
        Packing::Identity => (Ok(envelope), Encoding::Identity),
        Packing::Gzip(level) => {
            let gzip = Vec::with_capacity(expected / 8);
            let mut gzip = GzEncoder::new(gzip, Compression::new(level));
            (gzip.write_all(&envelope).and_then(|()| gzip.finish()), Encoding::Gzip)
        }
        Packing::Zstd(level) => (zstd::bulk::compress(&envelope, level), Encoding::Zstd),
    };
    let mut bytes = packed.expect("compression into memory");
    bytes.shrink_to_fit();
    Body { bytes: Bytes::from(bytes), encoding, raw_bytes }
}

#[cfg(test)]
mod tests {
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

    fn encode_some(count: usize, packing: Packing) -> Body {
        let timestamp = Timestamp::UNIX_EPOCH;
        let head = EnvelopeHead { collector_id: "c", hostname: "h", timestamp, agent: None };
        encode(&head, &metrics(count), packing)
    }

    /// C1, C2, C6, C31: what is sent is an envelope that the other side reads, packed as is wanted.
    #[test]
    fn a_body_is_read_back() {
        for (packing, encoding) in [
            (Packing::Identity, Encoding::Identity),
            (Packing::Gzip(6), Encoding::Gzip),
            (Packing::Zstd(3), Encoding::Zstd),
        ] {
            let body = encode_some(400, packing);
            assert_eq!((body.encoding, Encoding::of(&body.bytes)), (encoding, encoding));
            let envelope = crate::encoding::inflate(None, body.bytes, 1 << 20).unwrap();
            assert_eq!(envelope.len() as u64, body.raw_bytes);
            let request = PushRequest::parse(&envelope).unwrap();
            assert_eq!((request.metrics.len(), request.version.as_str()), (400, "1.0.0"));
        }
    }

    /// C17
    #[test]
    fn similar_metrics_compress_well_and_always_the_same() {
        for packing in [Packing::Gzip(6), Packing::Zstd(3)] {
            let percent = |count| {
                let body = encode_some(count, packing);
                assert_eq!(body, encode_some(count, packing));
                body.bytes.len() as u64 * 100 / body.raw_bytes
            };
            assert!(percent(50) < 70);
            assert!(percent(1) < 100);
        }
    }
}
