//! Asks a running agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::look::{DeadLetters, RecordQuery, Records, Scan};
use super::status::Status;
use crate::queue::{
    BatchInfo, DeadCount, Loss, Quarantined, SegmentCheck, SegmentDetail, SegmentInfo,
};

/// An agent answers from memory; reading the batches of a large backlog takes longest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a running agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No agent runs with this socket.
    #[error("no agent answers on {0}; hint: is `agent run` running with this configuration?")]
    NotRunning(PathBuf),
    /// An agent runs, as another user.
    #[error("{0} belongs to another user; hint: run this as the agent's user or as root")]
    Forbidden(PathBuf),
    /// What was asked for is not there.
    #[error("{0}")]
    Absent(String),
    /// The agent broke off or answered something else.
    #[error("the agent at {path}: {why}; hint: look at the agent's log")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// The body of an answer that is none.
#[derive(Deserialize)]
struct Failure {
    message: String,
}

/// A client of one agent's socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Asks the agent whose `control.socket` this is; connects at each request.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The agent and its queue.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status").await
    }

    /// All segments, oldest first.
    pub async fn segments(&self) -> Result<Vec<SegmentInfo>, ClientError> {
        self.ask(Method::GET, "/v1/segments").await
    }

    /// All batches, oldest first.
    pub async fn batches(&self) -> Result<Vec<BatchInfo>, ClientError> {
        self.ask(Method::GET, "/v1/batches").await
    }

    /// A segment from inside; `None` when no segment of this number is queued.
    pub async fn segment(&self, id: u64) -> Result<Option<SegmentDetail>, ClientError> {
        match self.ask(Method::GET, &format!("/v1/segments/{id}")).await {
            Err(ClientError::Absent(_)) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// A page of records.
    pub async fn records(&self, query: &RecordQuery) -> Result<Records, ClientError> {
        let path = ["/v1/records?", &query.to_query()].concat();
        self.ask(Method::GET, &path).await
    }

    /// Has a part of a segment read and checked, from a frame on.
    pub async fn verify(&self, segment: u64, from: u64) -> Result<SegmentCheck, ClientError> {
        let path = format!("/v1/verify?segment={segment}&from={from}");
        self.ask(Method::POST, &path).await
    }

    /// The ledger of records that are not delivered.
    pub async fn losses(&self) -> Result<Vec<Loss>, ClientError> {
        self.ask(Method::GET, "/v1/ledger").await
    }

    /// A page of the dead letters, from a byte of their file on.
    pub async fn dead(&self, from: u64, limit: usize) -> Result<DeadLetters, ClientError> {
        self.ask(Method::GET, &format!("/v1/dead?from={from}&limit={limit}")).await
    }

    /// How many dead letters there are.
    pub async fn dead_count(&self) -> Result<DeadCount, ClientError> {
        self.ask(Method::GET, "/v1/dead/count").await
    }

    /// What is in quarantine.
    pub async fn quarantine(&self, scan: Scan) -> Result<Vec<Quarantined>, ClientError> {
        let path = match scan {
            Scan::No => "/v1/quarantine",
            Scan::Yes => "/v1/quarantine?scan=yes",
        };
        self.ask(Method::GET, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.ask_with(method, path, Bytes::new()).await
    }

    /// [`Client::ask`] with a body.
    pub(super) async fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let body = self.text(method, path, body).await?;
        serde_json::from_slice(&body).map_err(|error| self.failed(format!("{path}: {error}")))
    }

    async fn text(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await {
            Ok(result) => result,
            Err(_) => Err(self.failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.path.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.path.clone()),
            _ => self.failed(error.to_string()),
        })?;
        let failed = |error: hyper::Error| self.failed(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "agent")
            .body(Full::new(body))
            .map_err(|error| self.failed(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            let message = serde_json::from_slice(&body).map(|failure: Failure| failure.message);
            let message = message.unwrap_or_else(|_| status.to_string());
            Err(match status {
                StatusCode::NOT_FOUND => ClientError::Absent(message),
                _ => self.failed(message),
            })
        };
        // The connection has to be driven while the answer is awaited; it may end first.
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => return answer,
            _ = &mut connection => {}
        }
        answer.await
    }

    fn failed(&self, why: String) -> ClientError {
        ClientError::Failed { path: self.path.clone(), why }
    }
}
