//! Servers and their stored metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use jiff::SignedDuration;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Shared;
use super::access::{self, Peer};
use super::answers::{Asker, DOCUMENTS_BYTES_MAX};
use super::error::{ApiError, ok};
use super::request::{Id, Params, paginated};
use crate::backend::serve::to_its_end;
use crate::backend::store::{LostRows, MetricQuery, Role, Server, StoreError};
use crate::{clock, units};

/// Metrics of an answer unless the request says otherwise.
const METRICS: u32 = 1000;
const METRICS_MAX: u32 = 10_000;

#[derive(Serialize)]
struct Found {
    server_id: i64,
    metric_type: String,
    start_time: String,
    end_time: String,
    metrics: Vec<Box<RawValue>>,
    /// Older ones of the range are left out: together they have too many bytes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
    /// Known holes of the range; left out when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<LostRows>,
}

/// GET `/servers`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let page = params.page()?;
    let listing = shared.store.servers(page).await?;
    Ok(ok(&paginated(listing, page, |server| server)))
}

/// GET `/servers/{id}`.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    Ok(ok(&known(&shared, &id).await?))
}

/// GET `/servers/{id}/metrics`: the last hour unless the request says otherwise.
pub(super) async fn metrics(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
    params: Params,
) -> Result<Response, ApiError> {
    let user = access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let server = known(&shared, &id).await?;
    let server_id = server.id;
    let end = params.time("end_time")?.unwrap_or_else(clock::now);
    let hour_before = end.saturating_sub(SignedDuration::from_hours(1)).unwrap_or(end);
    let start = params.time("start_time")?.unwrap_or(hour_before);
    let kind = params.get("metric_type").filter(|kind| *kind != "all").map(str::to_owned);
    let limit = params.parse("limit")?.unwrap_or(METRICS);
    if !(1..=METRICS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {METRICS_MAX}")));
    }
    let step = params.get("step").map(step).transpose()?;
    let bytes_max = DOCUMENTS_BYTES_MAX;
    let query = MetricQuery { server_id, kind: kind.clone(), start, end, step, limit, bytes_max };
    let turn = shared.answers.turn(Asker::User(user.id)).await?;
    to_its_end(async move {
        let found = shared.store.metrics(query).await?;
        let metrics = found
            .metrics
            .into_iter()
            .map(|metric| RawValue::from_string(metric.document))
            .collect::<Result<_, _>>()
            .map_err(|err| StoreError::Damaged(err.to_string()))?;
        let lost = match server.collector_id {
            Some(id) => shared.store.holes(id, start, end).await?,
            None => Vec::new(),
        };
        Ok(turn.answered(ok(&Found {
            server_id,
            metric_type: kind.unwrap_or_else(|| "all".to_owned()),
            start_time: clock::rfc3339(start),
            end_time: clock::rfc3339(end),
            metrics,
            cut: found.is_cut,
            lost,
        })))
    })
    .await
}

async fn known(shared: &Shared, id: &Id) -> Result<Server, ApiError> {
    let server = shared.store.server(id.of("the server")?).await?;
    server.ok_or_else(|| ApiError::not_found("the server"))
}

fn step(text: &str) -> Result<Duration, ApiError> {
    let step = units::parse_duration(text).filter(|step| !step.is_zero());
    step.ok_or_else(|| ApiError::bad_request("step is a duration such as 5min"))
}
