//! The agent's side of the control socket.

use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use super::gauges::{Facts, Gauges};
use super::look;
use super::replay::{self, ReplayError, ReplayProgress, ReplayRequest};
use super::status::{AgentStatus, Status};
use crate::clock;
use crate::queue::{Queue, QueueClosed, QueueError};
use crate::socket::{Peers, Socket, SocketError};

/// The agent, as far as the socket needs it.
pub trait Subject: Clone + Send + Sync + 'static {
    /// Its word about itself.
    fn describe(&self) -> AgentStatus;

    /// Ends the window and pushes what waits, backoff or not.
    fn push_now(&self) -> impl Future<Output = ()> + Send;

    /// Begins a replay beside what it pushes anyway.
    fn start_replay(
        &self,
        request: ReplayRequest,
    ) -> impl Future<Output = Result<ReplayProgress, ReplayError>> + Send;

    /// The replay that is under way, or the last one.
    fn replay(&self) -> Option<ReplayProgress>;

    /// Ends the replay that is under way; `None` when there is none.
    fn stop_replay(&self) -> impl Future<Output = Option<ReplayProgress>> + Send;
}

/// What the answers are made from.
#[derive(Clone)]
pub struct Sources<A> {
    /// The queue.
    pub queue: Queue,
    /// The agent.
    pub agent: A,
    /// The process's metrics, if it counts any.
    pub metrics: Option<PrometheusHandle>,
}

/// The control socket, listening.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
}

impl Server {
    /// Takes the socket; one that a killed agent left is replaced.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::bind(path, Peers::Own).await? })
    }

    /// Answers until `shutdown`; then what is being answered is finished and the socket removed.
    pub async fn serve<A: Subject>(
        self,
        sources: Sources<A>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        // Serving ends by the shutdown only: axum waits out errors of accept.
        let server = axum::serve(self.socket, router(sources)).with_graceful_shutdown(shutdown);
        if let Err(error) = server.await {
            tracing::error!(%error, "the control socket has ended");
        }
    }
}

fn router<A: Subject>(sources: Sources<A>) -> Router {
    let gauges = Arc::new(Gauges::new());
    Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/segments", get(segments::<A>))
        .route("/v1/batches", get(batches::<A>))
        .route("/v1/replay", replay::route())
        .route("/metrics", get(async |sources: State<Sources<A>>| metrics(sources, gauges).await))
        .merge(look::routes())
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "no such path".to_owned()))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method".to_owned())
        })
        .with_state(sources)
}

/// An answer that is none, in the shape of the backend's errors.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    code: u16,
    error: &'static str,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: String) -> Self {
        let error = match status {
            StatusCode::BAD_REQUEST => "bad_request",
            StatusCode::CONFLICT => "conflict",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            _ => "internal",
        };
        Self { code: status.as_u16(), error, message }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

impl From<QueueClosed> for Failure {
    fn from(error: QueueClosed) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Closed(closed) => closed.into(),
            QueueError::Store(error) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}

async fn status<A: Subject>(State(sources): State<Sources<A>>) -> Result<Response, Failure> {
    let queue = sources.queue.status().await?;
    Ok(Json(Status::new(sources.agent.describe(), queue)).into_response())
}

async fn segments<A: Subject>(State(sources): State<Sources<A>>) -> Result<Response, Failure> {
    Ok(Json(sources.queue.segments().await?).into_response())
}

async fn batches<A: Subject>(State(sources): State<Sources<A>>) -> Result<Response, Failure> {
    Ok(Json(sources.queue.batches().await?).into_response())
}

async fn metrics<A: Subject>(
    State(sources): State<Sources<A>>,
    gauges: Arc<Gauges>,
) -> Result<Response, Failure> {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let queue = &sources.queue;
    let (status, segments, losses) =
        (queue.status().await?, queue.segments().await?, queue.losses().await?);
    let agent = sources.agent.describe();
    let facts = Facts { queue: &status, segments: &segments, losses: &losses, agent: &agent };
    gauges.show(&facts, clock::now());
    let text = sources.metrics.map(|metrics| {
        metrics.run_upkeep();
        metrics.render()
    });
    Ok((headers, text.unwrap_or_default()).into_response())
}
