//! The queue of this host: asked of the running agent, else read from its directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::cli::terminal;
use crate::config::Config;
use crate::control::{Client, ClientError, DeadLetters, RecordQuery, Records, Scan};
use crate::queue::{
    Aside, BatchInfo, DeadCount, Log, LookedAt, Loss, Quarantined, QueueConfig, QueueStatus,
    SegmentCheck, SegmentDetail, SegmentInfo,
};

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

/// The queue, asked or read. Made anew for each look: an agent may start or end between two.
#[derive(Debug)]
pub enum Reader {
    /// The running agent is asked.
    Agent(Client),
    /// No agent runs: the directory is read, and nothing in it is changed.
    Directory(Box<Directory>),
}

/// A queue's directory, opened to look at.
#[derive(Debug)]
pub struct Directory {
    log: Log<LookedAt>,
    aside: Aside,
}

impl Local {
    /// Where this configuration puts it.
    pub fn of(config: &Config) -> Self {
        Self { socket: config.control_socket.clone(), queue: config.queue.clone() }
    }

    /// The queue and its status: of the agent when it runs, else from the directory.
    pub async fn open(&self) -> anyhow::Result<(Reader, QueueStatus)> {
        let client = Client::new(&self.socket);
        match client.status().await {
            Ok(status) => {
                known(&status.queue)?;
                Ok((Reader::Agent(client), status.queue))
            }
            Err(ClientError::NotRunning(_)) => {
                let log = self.view()?;
                let status = log.status();
                let aside = Aside::of(&self.queue.dir);
                Ok((Reader::Directory(Box::new(Directory { log, aside })), status))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The queue in its directory, to look at.
    pub fn view(&self) -> anyhow::Result<Log<LookedAt>> {
        let dir = &self.queue.dir;
        if matches!(dir.try_exists(), Ok(false)) {
            anyhow::bail!(
                "no queue in {}: the directory does not exist\n  \
                 hint: has the agent run with this configuration? see queue.dir",
                dir.display()
            );
        }
        Log::look(LookedAt::at(dir), self.queue.limits)
            .with_context(|| format!("no queue in {}", dir.display()))
    }
}

impl Reader {
    /// Who is asked.
    pub fn source(&self) -> Source {
        match self {
            Reader::Agent(_) => Source::Agent,
            Reader::Directory(_) => Source::Directory,
        }
    }

    /// All segments, oldest first.
    pub async fn segments(&self) -> anyhow::Result<Vec<SegmentInfo>> {
        match self {
            Reader::Agent(client) => Ok(client.segments().await?),
            Reader::Directory(directory) => Ok(directory.log.segments()),
        }
    }

    /// All batches, oldest first.
    pub async fn batches(&mut self) -> anyhow::Result<Vec<BatchInfo>> {
        match self {
            Reader::Agent(client) => Ok(client.batches().await?),
            Reader::Directory(directory) => Ok(directory.log.batches()?),
        }
    }

    /// A segment from inside; `None` when no segment of this number is queued.
    pub async fn segment(&mut self, id: u64) -> anyhow::Result<Option<SegmentDetail>> {
        match self {
            Reader::Agent(client) => Ok(client.segment(id).await?),
            Reader::Directory(directory) => Ok(directory.log.look_segment(id)?),
        }
    }

    /// A page of records.
    pub async fn records(&mut self, query: &RecordQuery) -> anyhow::Result<Records> {
        match self {
            Reader::Agent(client) => Ok(client.records(query).await?),
            Reader::Directory(directory) => {
                Ok(directory.log.look_records(query.filter(), query.limit()).into())
            }
        }
    }

    /// Reads and checks a part of a segment, from a frame on.
    pub async fn verify(&mut self, segment: u64, from: u64) -> anyhow::Result<SegmentCheck> {
        match self {
            Reader::Agent(client) => Ok(client.verify(segment, from).await?),
            Reader::Directory(directory) => Ok(directory.log.look_check(segment, from)),
        }
    }

    /// The ledger of records that are not delivered.
    pub async fn losses(&self) -> anyhow::Result<Vec<Loss>> {
        match self {
            Reader::Agent(client) => Ok(client.losses().await?),
            Reader::Directory(directory) => Ok(directory.log.losses()),
        }
    }

    /// A page of the dead letters, from a byte of their file on.
    pub async fn dead(&self, from: u64, limit: usize) -> anyhow::Result<DeadLetters> {
        match self {
            Reader::Agent(client) => Ok(client.dead(from, limit).await?),
            Reader::Directory(directory) => Ok(directory.aside.dead(from, limit)?.into()),
        }
    }

    /// How many dead letters there are.
    pub async fn dead_count(&self) -> anyhow::Result<DeadCount> {
        match self {
            Reader::Agent(client) => Ok(client.dead_count().await?),
            Reader::Directory(directory) => Ok(directory.aside.dead_count()?),
        }
    }

    /// What is in quarantine.
    pub async fn quarantine(&self, scan: Scan) -> anyhow::Result<Vec<Quarantined>> {
        match (self, scan) {
            (Reader::Agent(client), scan) => Ok(client.quarantine(scan).await?),
            (Reader::Directory(directory), Scan::No) => Ok(directory.aside.quarantine()?),
            (Reader::Directory(directory), Scan::Yes) => Ok(directory.aside.quarantine_read()?),
        }
    }
}

/// Fails when the agent cannot say what the queue holds.
pub(super) fn known(queue: &QueueStatus) -> anyhow::Result<()> {
    match &queue.state_error {
        None => Ok(()),
        Some(error) => {
            anyhow::bail!("the running agent cannot read the queue's state yet: {error}")
        }
    }
}

/// Prints why a command has failed, and gives its exit code.
pub(super) fn finish(command: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        terminal::complain(&format!(
            "agent {command}: {}",
            format!("{error:#}").replace("; hint: ", "\n  hint: ")
        ));
        ExitCode::FAILURE
    })
}
