//! Bodies: told apart by their first bytes, inflated up to a limit.
//!
//! The label is not believed, because existing collectors label a zlib stream or plain JSON as
//! `gzip`; but it must be a known one.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

/// A zstd frame may ask for so much memory before its first byte: 2^24 bytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// By so many bytes an inflated body grows, and may be over its limit before that is seen.
const ZLIB_STEP: usize = 64 << 10;
const LABELS: [&str; 7] = ["", "identity", "gzip", "x-gzip", "zstd", "deflate", "zlib"];

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// RFC 1950.
    Zlib,
}

/// Why a body cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The body is larger than the limit, as it came or inflated.
    #[error("larger than the limit")]
    TooLarge,
    /// It does not unpack.
    #[error("damaged")]
    Damaged,
    /// `Content-Encoding` names none that is known.
    #[error("unknown encoding")]
    UnknownLabel,
}

impl Encoding {
    /// Its name in `Content-Encoding`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Zlib => "deflate",
        }
    }

    /// What the first bytes show.
    pub fn of(body: &[u8]) -> Self {
        match body {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x78, ..] => Self::Zlib,
            _ => Self::Identity,
        }
    }
}

/// Undoes the compression that the first bytes show; the label must be a known one. A bomb costs
/// no more than `limit` bytes.
pub fn inflate(label: Option<&str>, body: Bytes, limit: u64) -> Result<Bytes, InflateError> {
    check_label(label)?;
    let damaged = |_: io::Error| InflateError::Damaged;
    let source: &[u8] = &body;
    let inflated = match Encoding::of(source) {
        Encoding::Identity if body.len() as u64 > limit => Err(InflateError::TooLarge),
        Encoding::Identity => return Ok(body),
        Encoding::Gzip => take(flate2::read::MultiGzDecoder::new(source), source.len(), limit),
        Encoding::Zlib => inflate_zlib(source, limit),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged)?;
            take(decoder, source.len(), limit)
        }
    };
    inflated.map(Bytes::from)
}

/// Whether a `Content-Encoding` is one that is known.
pub fn check_label(label: Option<&str>) -> Result<(), InflateError> {
    let is_known =
        |label: &str| LABELS.iter().any(|known| known.eq_ignore_ascii_case(label.trim()));
    if label.is_none_or(is_known) { Ok(()) } else { Err(InflateError::UnknownLabel) }
}

/// Stops one byte after the limit.
fn take(decoder: impl Read, compressed: usize, limit: u64) -> Result<Vec<u8>, InflateError> {
    let mut bytes = Vec::with_capacity(guess(compressed, limit));
    let read = decoder.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|_| InflateError::Damaged)?;
    if bytes.len() as u64 > limit { Err(InflateError::TooLarge) } else { Ok(bytes) }
}

/// One zlib stream, whole and with nothing behind it. Of gzip and zstd several may follow each
/// other (RFC 1952 section 2.2, RFC 8878 section 3); RFC 1950 knows one. `flate2`'s readers stop at
/// its end, and take the end of a stream that was cut off for the end of the data.
fn inflate_zlib(source: &[u8], limit: u64) -> Result<Vec<u8>, InflateError> {
    let mut stream = Decompress::new(true);
    let mut bytes = Vec::with_capacity(guess(source.len(), limit));
    loop {
        if bytes.len() as u64 > limit {
            return Err(InflateError::TooLarge);
        }
        if bytes.len() == bytes.capacity() {
            bytes.reserve(ZLIB_STEP);
        }
        let before = (stream.total_in(), stream.total_out());
        let consumed = usize::try_from(before.0).map_err(|_| InflateError::Damaged)?;
        let rest = source.get(consumed..).unwrap_or_default();
        let status = stream.decompress_vec(rest, &mut bytes, FlushDecompress::None);
        match status.map_err(|_| InflateError::Damaged)? {
            Status::StreamEnd => break,
            _ if (stream.total_in(), stream.total_out()) == before => {
                return Err(InflateError::Damaged);
            }
            _ => {}
        }
    }
    if bytes.len() as u64 > limit {
        return Err(InflateError::TooLarge);
    }
    if stream.total_in() != source.len() as u64 {
        return Err(InflateError::Damaged);
    }
    Ok(bytes)
}

/// Memory to begin with.
fn guess(compressed: usize, limit: u64) -> usize {
    compressed.saturating_mul(4).min(usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const TEXT: &[u8] = b"{\"a\": \"text text text text text text text text\"}";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(vec![], flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    /// The first bytes rule, whatever the label says.
    #[test]
    fn a_body_is_told_by_its_first_bytes() {
        let zstd = zstd::stream::encode_all(TEXT, 1).expect("to memory");
        for body in [TEXT.to_vec(), gzip(TEXT), zlib(TEXT), zstd] {
            for label in [None, Some("gzip"), Some("zstd"), Some("Identity"), Some("deflate")] {
                let read = inflate(label, body.clone().into(), 1000);
                assert_eq!(read.as_deref(), Ok(TEXT), "{label:?} {body:x?}");
            }
        }
    }

    #[test]
    fn a_body_over_the_limit_is_refused() {
        let zstd = zstd::stream::encode_all(TEXT, 1).expect("to memory");
        let limit = TEXT.len() as u64;
        for body in [TEXT.to_vec(), gzip(TEXT), zlib(TEXT), zstd] {
            assert!(inflate(None, body.clone().into(), limit).is_ok());
            assert_eq!(inflate(None, body.into(), limit - 1), Err(InflateError::TooLarge));
        }
    }

    #[test]
    fn a_damaged_or_unknown_body_is_refused() {
        let check = |label, body: Vec<u8>, expected| {
            assert_eq!(inflate(label, body.into(), 1000), Err(expected));
        };
        let whole = gzip(TEXT);
        let cut = whole.get(..whole.len() - 3).expect("longer").to_vec();
        check(None, cut, InflateError::Damaged);
        check(None, [whole, b"{}".to_vec()].concat(), InflateError::Damaged);
        check(Some("br"), TEXT.to_vec(), InflateError::UnknownLabel);
        check(Some("gzip, gzip"), TEXT.to_vec(), InflateError::UnknownLabel);
    }

    /// Of several streams one after the other all are read, or none: a part of a body that nobody
    /// has read is lost.
    #[test]
    fn no_part_of_a_body_is_passed_over() {
        let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).expect("to memory");
        let (first, second) = TEXT.split_at(20);
        let limit = TEXT.len() as u64;
        for pack in [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &zstd] {
            let body = Bytes::from([pack(first), pack(b""), pack(second)].concat());
            assert_eq!(inflate(None, body.clone(), limit).as_deref(), Ok(TEXT));
            assert_eq!(inflate(None, body, limit - 1), Err(InflateError::TooLarge), "of all");
        }
        let two = [zlib(first), zlib(second)].concat();
        assert_eq!(inflate(None, two.into(), 1000), Err(InflateError::Damaged));
        for whole in [gzip(TEXT), zlib(TEXT), zstd(TEXT)] {
            for more in [&b"x"[..], b"{}", b"\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"] {
                let body = [&whole, more].concat();
                assert_eq!(
                    inflate(None, body.into(), 1000),
                    Err(InflateError::Damaged),
                    "{more:?}"
                );
            }
            for length in 4..whole.len() {
                let cut = Bytes::copy_from_slice(&whole[..length]);
                assert_eq!(inflate(None, cut, 1000), Err(InflateError::Damaged), "{length} bytes");
            }
        }
    }

    /// A body that is larger than the first guess, and one that is a bomb.
    #[test]
    fn a_long_body_is_inflated_up_to_the_limit() {
        let long = vec![b'x'; 3 << 20];
        let limit = long.len() as u64;
        assert_eq!(inflate(None, zlib(&long).into(), limit).as_deref(), Ok(&*long));
        assert_eq!(inflate(None, zlib(&long).into(), limit - 1), Err(InflateError::TooLarge));
        assert_eq!(inflate(None, zlib(&long).into(), 10), Err(InflateError::TooLarge));
    }

    /// A frame that asks for a window of 2^27 bytes is refused before it gets one.
    #[test]
    fn a_zstd_window_is_bounded() {
        let mut encoder = zstd::stream::write::Encoder::new(vec![], 1).expect("an encoder");
        encoder.window_log(27).expect("a window");
        encoder.write_all(TEXT).expect("to memory");
        let body = encoder.finish().expect("to memory");
        assert_eq!(inflate(None, body.into(), 1000), Err(InflateError::Damaged));
    }
}
