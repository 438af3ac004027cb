//! Bodies: read up to a limit, and inflated up to a limit.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::bodies::{Room, Share};
use super::error::ApiError;
use crate::backend::store::RefusalReason;
use crate::encoding::{self, InflateError};
use crate::metric::object::Object;

/// Bodies other than pushes.
const SMALL: Sizes = Sizes { received_max: 256 << 10, inflated_max: 256 << 10 };
/// Bodies of anyone: a user name and a password, or a token.
const TINY: Sizes = Sizes { received_max: 16 << 10, inflated_max: 16 << 10 };
/// The most memory that is taken for a body on its announcement alone.
const RESERVED_MAX: usize = 1 << 20;

/// Limits of a body, bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Sizes {
    /// Over the wire.
    pub(in crate::backend) received_max: u64,
    /// After decompression.
    pub(in crate::backend) inflated_max: u64,
}

/// Reads a whole body, of a collector or of somebody else. Its share of the room is held as long
/// as the body.
pub(in crate::backend) async fn read(
    room: &Room,
    of: Option<Uuid>,
    headers: &HeaderMap,
    body: Body,
    limit: u64,
) -> Result<(Bytes, Share), ApiError> {
    let announced = content_length(headers);
    if announced.is_some_and(|bytes| bytes > limit) {
        return Err(ApiError::too_large(limit));
    }
    let mut share = room.share(of, announced).await?;
    let bytes = collect(headers, body, limit, |bytes| share.grow_to(bytes)).await?;
    Ok((bytes, share))
}

/// Reads a body, and asks `grow` before it becomes as long.
async fn collect(
    headers: &HeaderMap,
    mut body: Body,
    limit: u64,
    mut grow: impl FnMut(u64) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    let announced = content_length(headers).unwrap_or(0);
    if announced > limit {
        return Err(ApiError::too_large(limit));
    }
    // What is announced is not here yet.
    let expected = usize::try_from(announced).unwrap_or(0).min(RESERVED_MAX);
    let mut bytes = Vec::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ended_early())?;
        let Some(data) = frame.data_ref() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(ApiError::too_large(limit));
        }
        grow((bytes.len() + data.len()) as u64)?;
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
    encoding::inflate(label, body, limit).map_err(|error| match error {
        InflateError::TooLarge => ApiError::too_large(limit),
        InflateError::Damaged => ApiError::bad_request("the compressed body is damaged"),
        InflateError::UnknownLabel => ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "the content encoding is not known: gzip, zstd, deflate or identity",
        )
        .counted_as(RefusalReason::BadPush),
    })
}

/// The network's fault, not what the client has to say.
fn ended_early() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_request", "the body ended early")
}

/// A small JSON body: an object.
pub(in crate::backend) async fn json<T: DeserializeOwned>(
    room: &Room,
    of: Option<Uuid>,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    parse(&small(room, of, headers, body).await?)
}

/// A JSON object from anyone. It is too small to take room, and strangers take none from hosts.
pub(in crate::backend) async fn tiny_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = collect(headers, body, TINY.received_max, |_| Ok(())).await?;
    parse(&inflate(label(headers), bytes, TINY.inflated_max)?)
}

/// A small body of any kind.
pub(in crate::backend) async fn small(
    room: &Room,
    of: Option<Uuid>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, ApiError> {
    let (bytes, _share) = read(room, of, headers, body, SMALL.received_max).await?;
    inflate(label(headers), bytes, SMALL.inflated_max)
}

/// The `Content-Encoding`.
pub(in crate::backend) fn label(headers: &HeaderMap) -> Option<&str> {
    // A label that is no text is no known label.
    headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice::<Object<T>>(bytes)
        .map(|Object(body)| body)
        .map_err(|err| ApiError::bad_request(format!("the body is not as expected: {err}")))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
