//! Carries a replay out: looks the queue through, sends what is selected, and keeps its place.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{
    dead,
    job::{self, Item, Job, JobFile},
    source::{Origin, Place, ReplaySource},
};
use crate::{
    agent::{LinkWire, QueueSource, forward_config},
    clock,
    config::Config,
    control::{Amount, ReplayProgress, ReplayState},
    forward::{Drained, ForwardConfig, Forwarder},
    link::Link,
    queue::{Queue, dead_letters},
};

/// Where progress shows.
pub type Shown = watch::Sender<Option<ReplayProgress>>;

/// Carries replays out, one at a time.
#[derive(Debug)]
pub struct Replayer {
    queue: Queue,
    dead_letters: PathBuf,
    origin: Origin,
    file: Option<JobFile>,
    link: Arc<Link>,
    reporter: Option<QueueSource>,
    forward: ForwardConfig,
    wake: Arc<Notify>,
}

impl Replayer {
    /// Replays this host's queue as `collector_id`.
    pub fn of_host(config: &Config, queue: Queue, link: Arc<Link>, collector_id: String) -> Self {
        let who = (collector_id, config.agent.hostname.clone());
        Self {
            queue,
            dead_letters: dead_letters(&config.queue.dir),
            origin: Origin::Own,
            file: Some(JobFile::of_host(&config.agent.state_dir)),
            link,
            reporter: None,
            forward: forward_config(&config.forward, who),
            wake: Arc::default(),
        }
    }

    /// Replays what a host has left in `dir`: the host `other`, or this one when none is named.
    /// `queue` is a look at it.
    #[must_use]
    pub fn of_dir(self, other: Option<&str>, dir: &std::path::Path, file: JobFile) -> Self {
        let mut forward = self.forward;
        if let Some(other) = other {
            other.clone_into(&mut forward.hostname);
            forward.brings_other = true;
        }
        let dead_letters = dead_letters(dir);
        Self {
            dead_letters,
            origin: Origin::Foreign,
            file: Some(file),
            reporter: None,
            forward,
            ..self
        }
    }

    /// Says with each push what the agent says with its own; `reporter` knows.
    #[must_use]
    pub fn reporting(self, reporter: QueueSource) -> Self {
        Self { reporter: Some(reporter), ..self }
    }

    /// Keeps no job: what waits is known by the queue itself.
    #[must_use]
    pub fn without_file(self) -> Self {
        Self { file: None, ..self }
    }

    /// Ends the pause after a failure.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Where the job is kept.
    pub fn file(&self) -> Option<&JobFile> {
        self.file.as_ref()
    }

    /// Carries `job` out, to its end. Can be dropped at any time, and taken up again.
    pub async fn run(&self, job: Job, shown: &Shown) -> ReplayProgress {
        let mut progress = match self.begin(job.clone()).await {
            Ok(source) => self.send(&source, shown).await,
            Err(error) => {
                let progress = job.progress;
                ReplayProgress { state: ReplayState::Failed, last_answer: Some(error), ..progress }
            }
        };
        progress.ended_at = Some(clock::now());
        progress.eta_s = None;
        self.keep(Job::new(progress.clone())).await;
        shown.send_replace(Some(progress.clone()));
        progress
    }

    /// Selects what is to be sent, and writes down how much that is before anything is sent.
    async fn begin(&self, mut job: Job) -> Result<ReplaySource, String> {
        if self.origin == Origin::Own && job.end_seq.is_none() && !job.is_of_dead() {
            self.queue.seal().await.map_err(|error| error.to_string())?;
        }
        let status = self.queue.status().await.map_err(|error| error.to_string())?;
        if let Some(error) = status.state_error {
            return Err(format!("the queue's state cannot be read yet: {error}"));
        }
        let is_new = job.end_seq.is_none();
        job.end_seq.get_or_insert(status.next_seq);
        job.progress.failing_since = None;
        let (items, total, corrupt) = self.select(&job, status.queue_id).await?;
        if is_new {
            job.progress.total = total;
            job.progress.corrupt = corrupt;
            self.keep(job.clone()).await;
        }
        let place = Place {
            queue: self.queue.clone(),
            queue_id: status.queue_id,
            dead_letters: self.dead_letters.clone(),
            origin: self.origin,
            file: self.file.clone(),
            reporter: self.reporter.clone(),
            link: Arc::clone(&self.link),
        };
        Ok(ReplaySource::new(place, job, items))
    }

    /// What is left of a job, how much it is, and how many records of it are damaged.
    async fn select(&self, job: &Job, queue_id: Uuid) -> Result<(Vec<Item>, Amount, u64), String> {
        if job.is_of_dead() {
            let (path, asked) = (self.dead_letters.clone(), job.asked());
            let count = move || dead::count(&path, queue_id, asked);
            let counted = tokio::task::spawn_blocking(count).await;
            let counted = counted.map_err(|error| error.to_string())?;
            let counted = counted.map_err(|error| error.to_string())?;
            return Ok((Vec::new(), counted.amount, counted.unreadable));
        }
        let selection = &job.progress.request.selection;
        let looked = job::look_through(&self.queue, selection).await;
        let (segments, batches) = looked.map_err(|error| error.to_string())?;
        let items = job.select(&batches);
        let amount = job::amount(&items);
        Ok((items, amount, job.missing(&segments, &batches)))
    }

    async fn send(&self, source: &ReplaySource, shown: &Shown) -> ReplayProgress {
        let wire = LinkWire(Arc::clone(&self.link));
        // One batch after another; the pace is the replay's own.
        let settings = ForwardConfig { in_flight: 1, backlog_rate: None, ..self.forward.clone() };
        let (mut forwarder, mut status) = Forwarder::new(source.clone(), wire, settings.fixed());
        let show = |status: &watch::Receiver<_>| {
            shown.send_replace(Some(source.progress(&status.borrow())));
        };
        show(&status);
        loop {
            let drained = {
                let drain = forwarder.drain();
                tokio::pin!(drain);
                loop {
                    tokio::select! {
                        drained = &mut drain => break drained,
                        Ok(()) = status.changed() => show(&status),
                    }
                }
            };
            show(&status);
            let Drained::Waiting(wait) = drained else { break };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
                () = self.link.token_is_replaced() => {}
            }
            source.try_again();
        }
        let mut progress = source.progress(&status.borrow());
        let (_, failure) = source.end();
        progress.state = ReplayState::Done;
        if let Some(failure) = failure {
            progress.state = ReplayState::Failed;
            progress.last_answer = Some(failure);
        }
        progress
    }

    async fn keep(&self, job: Job) {
        let Some(file) = self.file.clone() else { return };
        let saved = tokio::task::spawn_blocking(move || file.save(&job)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "a replay cannot be kept; a restart would not go on with it");
        }
    }
}
