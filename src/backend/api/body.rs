//! Bodies: read up to a limit, told apart by their first bytes, decompressed up to a limit.

use std::io::Read;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Bodies other than pushes.
const SMALL: Sizes = Sizes { received_max: 256 << 10, inflated_max: 256 << 10 };
/// A zstd frame may ask for so much memory before its first byte: 2^24 bytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;

/// Limits of a body, bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Sizes {
    /// Over the wire.
    pub(in crate::backend) received_max: u64,
    /// After decompression.
    pub(in crate::backend) inflated_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
    Zlib,
}

/// Reads a whole body.
pub(in crate::backend) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: u64,
) -> Result<Bytes, ApiError> {
    let declared = content_length(headers).unwrap_or(0);
    if declared > limit {
        return Err(ApiError::too_large(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(declared).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::bad_request("the body ended early"))?;
        let Some(data) = frame.data_ref() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(ApiError::too_large(limit));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

/// Undoes the compression that the first bytes show; the label must be a known one.
pub(in crate::backend) fn inflate(
    label: Option<&str>,
    body: Bytes,
    limit: u64,
) -> Result<Bytes, ApiError> {
    check_label(label)?;
    let source: &[u8] = &body;
    let inflated = match encoding(source) {
        Encoding::Identity if body.len() as u64 > limit => Err(ApiError::too_large(limit)),
        Encoding::Identity => return Ok(body),
        Encoding::Gzip => take(flate2::read::MultiGzDecoder::new(source), source.len(), limit),
        Encoding::Zlib => take(flate2::read::ZlibDecoder::new(source), source.len(), limit),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged)?;
            take(decoder, source.len(), limit)
        }
    };
    inflated.map(Bytes::from)
}

/// A small JSON body.
pub(in crate::backend) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = small(headers, body).await?;
    serde_json::from_slice(&bytes)
        .map_err(|err| ApiError::bad_request(format!("the body is not as expected: {err}")))
}

/// A small body of any kind.
pub(in crate::backend) async fn small(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let bytes = read(headers, body, SMALL.received_max).await?;
    inflate(label(headers), bytes, SMALL.inflated_max)
}

/// The `Content-Encoding`.
pub(in crate::backend) fn label(headers: &HeaderMap) -> Option<&str> {
    // A label that is no text is no known label.
    headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_label(label: Option<&str>) -> Result<(), ApiError> {
    let Some(label) = label else { return Ok(()) };
    let known = ["", "identity", "gzip", "x-gzip", "zstd", "deflate", "zlib"];
    if known.iter().any(|name| name.eq_ignore_ascii_case(label.trim())) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_encoding",
        "the content encoding is not known: gzip, zstd, deflate or identity",
    ))
}

fn encoding(body: &[u8]) -> Encoding {
    match body {
        [0x1f, 0x8b, ..] => Encoding::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Encoding::Zstd,
        [0x78, ..] => Encoding::Zlib,
        _ => Encoding::Identity,
    }
}

/// Stops one byte after the limit: a bomb costs no more than that.
fn take(decoder: impl Read, compressed: usize, limit: u64) -> Result<Vec<u8>, ApiError> {
    let guess = compressed.saturating_mul(4).min(usize::try_from(limit).unwrap_or(usize::MAX));
    let mut bytes = Vec::with_capacity(guess);
    decoder.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() as u64 > limit { Err(ApiError::too_large(limit)) } else { Ok(bytes) }
}

fn damaged(_: std::io::Error) -> ApiError {
    ApiError::bad_request("the compressed body is damaged")
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

    fn status(result: Result<Bytes, ApiError>) -> Result<Bytes, u16> {
        use axum::response::IntoResponse as _;
        result.map_err(|error| error.into_response().status().as_u16())
    }

    /// The first bytes rule, whatever the label says.
    #[test]
    fn a_body_is_told_by_its_first_bytes() {
        let zstd = zstd::stream::encode_all(TEXT, 1).expect("to memory");
        for body in [TEXT.to_vec(), gzip(TEXT), zlib(TEXT), zstd] {
            for label in [None, Some("gzip"), Some("zstd"), Some("Identity"), Some("deflate")] {
                let read = status(inflate(label, body.clone().into(), 1000));
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
            assert_eq!(status(inflate(None, body.into(), limit - 1)), Err(413));
        }
    }

    #[test]
    fn a_damaged_or_unknown_body_is_refused() {
        let whole = gzip(TEXT);
        let cut = whole.get(..whole.len() - 3).expect("longer").to_vec();
        assert_eq!(status(inflate(None, cut.into(), 1000)), Err(400));
        let trailing = [whole, b"{}".to_vec()].concat();
        assert_eq!(status(inflate(None, trailing.into(), 1000)), Err(400));
        assert_eq!(status(inflate(Some("br"), Bytes::from_static(TEXT), 1000)), Err(415));
        assert_eq!(status(inflate(Some("gzip, gzip"), Bytes::from_static(TEXT), 1000)), Err(415));
    }

    /// A frame that asks for a window of 2^27 bytes is refused before it gets one.
    #[test]
    fn a_zstd_window_is_bounded() {
        let mut encoder = zstd::stream::write::Encoder::new(vec![], 1).expect("an encoder");
        encoder.window_log(27).expect("a window");
        encoder.write_all(TEXT).expect("to memory");
        let body = encoder.finish().expect("to memory");
        assert_eq!(status(inflate(None, body.into(), 1000)), Err(400));
    }
}
