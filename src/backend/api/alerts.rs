//! Alerts: the backend has no rules that would raise one, and says so in the contract's words.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;

use super::Shared;
use super::access::{self, Peer};
use super::error::{ApiError, ok};
use super::request::{Params, paginated};
use crate::backend::store::{Listing, Role};

const SEVERITIES: [&str; 3] = ["info", "warning", "critical"];

/// GET `/alerts`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let page = params.page()?;
    if params.get("severity").is_some_and(|severity| !SEVERITIES.contains(&severity)) {
        let message = format!("severity is one of {}", SEVERITIES.join(", "));
        return Err(ApiError::bad_request(message));
    }
    let none = Listing::<()> { rows: Vec::new(), total: 0 };
    Ok(ok(&paginated(none, page, |alert| alert)))
}

/// GET `/alerts/{id}` and POST `/alerts/{id}/acknowledge`.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    Err(ApiError::not_found("the alert"))
}
