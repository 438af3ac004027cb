//! The page: agents and the charts of one host, for whoever sits at the backend.
//!
//! It has no login, so it is served on loopback only, and only to requests that ask for a loopback
//! name: a page of another site that made its own name point here is turned away.

mod series;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;

use super::api::{self, ApiError, Asker, Id, Params, Peer, Shared, Status, status_of};
use super::serve::to_its_end;
use super::store::{Collector, MetricQuery, Page, RefusalReason, Server};
use crate::{clock, units};
use series::{Charts, charts};

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// Agents and hosts shown at most.
const ROWS_MAX: u32 = 500;
/// Points of a line.
const POINTS: u32 = 240;
/// Metrics read for one kind of chart: [`POINTS`] of many databases.
const METRICS_MAX: u32 = 10_000;
/// Bytes of their documents.
const METRICS_BYTES_MAX: usize = 12 << 20;
const RANGE: SignedDuration = SignedDuration::from_mins(15);
const RANGE_MAX: SignedDuration = SignedDuration::from_hours(31 * 24);

#[derive(Serialize)]
struct Overview {
    now: i64,
    version: &'static str,
    agents: Vec<Agent>,
    servers: Vec<Server>,
}

#[derive(Serialize)]
struct Agent {
    id: String,
    name: String,
    hostname: String,
    version: Option<String>,
    status: Status,
    last_seen: Option<i64>,
    metrics_24h: u64,
    metrics_total: u64,
    config_version: i64,
    report: Option<Value>,
}

#[derive(Serialize)]
struct Host {
    server: Server,
    start: i64,
    end: i64,
    step: i64,
    charts: Charts,
    /// The beginning of the range is left out: it has too many bytes.
    cut: bool,
    lost: Vec<Hole>,
    refusals: Vec<Refused>,
}

/// What the host's collector sent and was not taken. What was said of it may have words of a log in
/// it, which are for those who log in.
#[derive(Serialize)]
struct Refused {
    reason: RefusalReason,
    count: u64,
    last_at: i64,
}

/// Records that are known to be lost, by their own times; by the time their loss was noticed when
/// the agent did not say.
#[derive(Serialize)]
struct Hole {
    from: i64,
    to: i64,
    records: u64,
    reason: String,
}

/// The page and the data it asks for.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let document = Arc::new(Document::new());
    let html = move || {
        let document = Arc::clone(&document);
        async move { document.answer() }
    };
    let router = Router::new()
        .route("/", get(html))
        .route("/data/overview", get(overview))
        .route("/data/servers/{id}", get(host));
    api::finish(router, shared)
        .layer(from_fn(local_only))
        .layer(map_response(api::shielded))
        .with_state(Arc::clone(shared))
}

/// The page in one piece, and the policy that lets nothing else run in it.
struct Document {
    html: String,
    policy: HeaderValue,
}

impl Document {
    fn new() -> Self {
        let html = HTML.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        let policy = HeaderValue::from_str(&policy).expect("a policy is ASCII");
        Self { html, policy }
    }

    fn answer(&self) -> Response {
        let mut response = self.html.clone().into_response();
        let headers = response.headers_mut();
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, html);
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn hash(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("sha256-{}", STANDARD.encode(digest))
}

async fn local_only(request: Request, next: Next) -> Response {
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| host_header(request.headers()));
    if host.as_deref().is_some_and(is_local_name) {
        return next.run(request).await;
    }
    let message = "ask for localhost, 127.0.0.1 or [::1]";
    ApiError::new(StatusCode::FORBIDDEN, "foreign_host", message).into_response()
}

fn host_header(headers: &HeaderMap) -> Option<String> {
    headers.get(header::HOST)?.to_str().ok().map(str::to_owned)
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|local| local.eq_ignore_ascii_case(name))
}

async fn overview(State(shared): State<Arc<Shared>>) -> Result<Response, ApiError> {
    let (now, page) = (clock::now(), Page::first(ROWS_MAX));
    let collectors = shared.store.collectors(page, now).await?;
    let servers = shared.store.servers(page).await?;
    Ok(api::ok(&Overview {
        now: now.as_millisecond(),
        version: env!("CARGO_PKG_VERSION"),
        agents: collectors.rows.into_iter().map(|collector| agent(collector, now)).collect(),
        servers: servers.rows,
    }))
}

async fn host(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    id: Id,
    params: Params,
) -> Result<Response, ApiError> {
    let server = shared.store.server(id.of("the server")?).await?;
    let server = server.ok_or_else(|| ApiError::not_found("the server"))?;
    let range = params.get("range").map_or(Some(RANGE), range_of);
    let range = range.ok_or_else(|| ApiError::bad_request("range is a duration such as 1h"))?;
    let end = clock::now();
    let start = end.saturating_sub(range).unwrap_or(end);
    let step = std::time::Duration::from_millis(
        u64::try_from(range.as_millis()).unwrap_or(0).max(u64::from(POINTS)) / u64::from(POINTS),
    );
    let turn = shared.answers.turn(Asker::from(&peer)).await?;
    to_its_end(async move {
        let (mut metrics, mut cut) = (Vec::new(), false);
        for kind in ["sysstat", "disk_usage", "pg_stats"] {
            let query = MetricQuery {
                server_id: server.id,
                kind: Some(kind.to_owned()),
                start,
                end,
                step: Some(step),
                limit: METRICS_MAX,
                bytes_max: METRICS_BYTES_MAX,
            };
            let found = shared.store.metrics(query).await?;
            cut |= found.is_cut;
            metrics.extend(found.metrics);
        }
        let charts =
            tokio::task::spawn_blocking(move || charts(&metrics)).await.map_err(|err| {
                tracing::error!(%err, "charts could not be made");
                ApiError::internal()
            })?;
        let lost = match server.collector_id {
            Some(id) => shared.store.holes(id, start, end).await?,
            None => Vec::new(),
        };
        let refusals = refusals(&shared, &server, end).await?;
        let hole = |lost: super::store::LostRows| Hole {
            from: lost.first_at.unwrap_or(lost.at).as_millisecond(),
            to: lost.last_at.unwrap_or(lost.at).as_millisecond(),
            records: lost.records,
            reason: lost.reason,
        };
        Ok(turn.answered(api::ok(&Host {
            server,
            start: start.as_millisecond(),
            end: end.as_millisecond(),
            step: i64::try_from(step.as_millis()).unwrap_or(i64::MAX),
            charts,
            cut,
            lost: lost.into_iter().map(hole).collect(),
            refusals,
        })))
    })
    .await
}

/// A host that was brought by another's collector has sent nothing itself.
async fn refusals(
    shared: &Shared,
    server: &Server,
    now: Timestamp,
) -> Result<Vec<Refused>, ApiError> {
    let Some(id) = server.collector_id.filter(|_| !server.brought) else { return Ok(Vec::new()) };
    let found = shared.store.collector(id, now).await?;
    let counts = found.into_iter().flat_map(|collector| collector.refusals);
    let shown = |refused: super::store::RefusalCount| Refused {
        reason: refused.reason,
        count: refused.count,
        last_at: refused.last_at.as_millisecond(),
    };
    Ok(counts.map(shown).collect())
}

fn range_of(text: &str) -> Option<SignedDuration> {
    let range = SignedDuration::try_from(units::parse_duration(text)?).ok()?;
    (range > SignedDuration::ZERO && range <= RANGE_MAX).then_some(range)
}

fn agent(collector: Collector, now: Timestamp) -> Agent {
    Agent {
        status: status_of(&collector, now),
        id: collector.id.to_string(),
        name: collector.name,
        hostname: collector.hostname,
        version: collector.version,
        last_seen: collector.last_seen_at.map(Timestamp::as_millisecond),
        metrics_24h: collector.metrics_24h,
        metrics_total: collector.metrics_total,
        config_version: collector.config_version,
        report: collector.report.and_then(|report| serde_json::from_str(&report).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for local in ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "127.0.0.1", "[::1]:9", "[::1]"]
        {
            assert!(is_local_name(local), "{local}");
        }
        for foreign in
            ["", "evil.example.com", "localhost.evil.com:8081", "127.0.0.1.nip.io", "::1"]
        {
            assert!(!is_local_name(foreign), "{foreign}");
        }
    }
}
