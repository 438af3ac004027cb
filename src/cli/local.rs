//! The queue of this host: asked of the running agent, else read from its directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::config::Config;
use crate::control::{Client, ClientError};
use crate::queue::{BatchInfo, Log, QueueConfig, QueueStatus, SegmentInfo, SledView};

/// Where the agent of this host is found.
#[derive(Debug, Clone)]
pub struct Local {
    /// `control.socket`.
    pub socket: PathBuf,
    /// The queue as the agent opens it.
    pub queue: QueueConfig,
}

/// Who has told what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The running agent.
    Agent,
    /// Nobody: no agent runs, the files were read.
    Directory,
}

/// A queue as it was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen<T> {
    /// By whom.
    pub source: Source,
    /// The queue in one screen.
    pub queue: QueueStatus,
    /// The parts that were asked for.
    #[serde(flatten)]
    pub parts: T,
}

/// Segments, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Segments {
    /// The segments.
    pub segments: Vec<SegmentInfo>,
}

/// Batches, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Batches {
    /// The batches.
    pub batches: Vec<BatchInfo>,
}

impl Local {
    /// Where this configuration puts it.
    pub fn of(config: &Config) -> Self {
        Self { socket: config.control_socket.clone(), queue: config.queue.clone() }
    }

    /// The segments, live or from the directory, which is only read.
    pub async fn segments(&self) -> anyhow::Result<Seen<Segments>> {
        if let Some((client, queue)) = self.agent().await? {
            let parts = Segments { segments: client.segments().await? };
            return Ok(Seen { source: Source::Agent, queue, parts });
        }
        let log = self.view()?;
        let parts = Segments { segments: log.segments() };
        Ok(Seen { source: Source::Directory, queue: log.status(), parts })
    }

    /// The batches, live or from the directory, which is only read.
    pub async fn batches(&self) -> anyhow::Result<Seen<Batches>> {
        if let Some((client, queue)) = self.agent().await? {
            let parts = Batches { batches: client.batches().await? };
            return Ok(Seen { source: Source::Agent, queue, parts });
        }
        let mut log = self.view()?;
        let parts = Batches { batches: log.batches()? };
        Ok(Seen { source: Source::Directory, queue: log.status(), parts })
    }

    /// The queue in its directory, to look at.
    pub fn view(&self) -> anyhow::Result<Log<SledView>> {
        let dir = &self.queue.dir;
        if matches!(dir.try_exists(), Ok(false)) {
            anyhow::bail!(
                "no queue in {}: the directory does not exist\n  \
                 hint: has the agent run with this configuration? see queue.dir",
                dir.display()
            );
        }
        let view = SledView::open(dir).with_context(|| format!("no queue in {}", dir.display()))?;
        Ok(Log::open(view, self.queue.limits)?)
    }

    /// A client of the agent and its queue; `None` when no agent runs.
    async fn agent(&self) -> Result<Option<(Client, QueueStatus)>, ClientError> {
        let client = Client::new(&self.socket);
        match client.status().await {
            Ok(status) => Ok(Some((client, status.queue))),
            Err(ClientError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Prints why a command has failed, and gives its exit code.
pub(super) fn finish(command: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("agent {command}: {}", format!("{error:#}").replace("; hint: ", "\n  hint: "));
        ExitCode::FAILURE
    })
}
