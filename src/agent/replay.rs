//! The replay lane: sends again what is asked for, beside the forwarder and at its own pace, so
//! that fresh metrics wait for nothing.
//!
//! One replay at a time, one batch after another, each under the id that it has for ever: a backend
//! that has a batch says so, and one that has lost it takes it. What is asked for is in a file, and
//! so is the place that has been reached: a restarted agent goes on there.

mod dead; // refused records, sent again as new batches
mod job; // what outlives the process
mod run; // from a job to its end
mod source; // batches for the forwarder

use std::{ops::ControlFlow, sync::Arc};

use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::{
    dead::{Asked, Count, count as count_dead},
    job::{Job, JobFile, amount},
    run::Replayer,
};
use crate::{
    clock,
    control::{ReplayError, ReplayProgress, ReplayRequest, ReplayState},
    shutdown::Shutdown,
};

/// The lane of a running agent. Clones share it.
#[derive(Debug, Clone)]
pub struct Lane {
    commands: mpsc::Sender<Command>,
    shown: watch::Receiver<Option<ReplayProgress>>,
    wake: Arc<Notify>,
}

/// The lane's task.
#[derive(Debug)]
pub struct LaneTask {
    commands: mpsc::Receiver<Command>,
    shown: watch::Sender<Option<ReplayProgress>>,
    replayer: Replayer,
}

type Started = Result<ReplayProgress, ReplayError>;

#[derive(Debug)]
enum Command {
    Start(ReplayRequest, oneshot::Sender<Started>),
    Stop(oneshot::Sender<Option<ReplayProgress>>),
}

/// Requests that may wait for the lane.
const COMMANDS_MAX: usize = 4;

/// A lane and the task that it needs.
pub fn lane(replayer: Replayer) -> (Lane, LaneTask) {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (shown, seen) = watch::channel(None);
    let lane = Lane { commands: sender, shown: seen, wake: replayer.wake() };
    (lane, LaneTask { commands, shown, replayer })
}

impl Lane {
    /// Begins a replay; it is kept when this returns. Refused while another is under way.
    pub async fn start(&self, request: ReplayRequest) -> Result<ReplayProgress, ReplayError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Start(request, reply);
        self.commands.send(command).await.map_err(|_| ReplayError::Stopping)?;
        answer.await.map_err(|_| ReplayError::Stopping)?
    }

    /// Ends the replay that is under way, for ever. Returns how far it came; `None` when there is
    /// none.
    pub async fn stop(&self) -> Option<ReplayProgress> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Stop(reply)).await.ok()?;
        answer.await.ok()?
    }

    /// The replay that is under way, or the last one.
    pub fn progress(&self) -> Option<ReplayProgress> {
        self.shown.borrow().clone()
    }

    /// Ends a pause after a failure.
    pub fn wake(&self) {
        self.wake.notify_waiters();
    }
}

impl LaneTask {
    /// Goes on with what an earlier process has left, and then serves until the shutdown. What is
    /// under way then goes on after the next start.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut job = self.kept();
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.wait() => return,
                next = self.step(job.take()) => next,
            };
            let ControlFlow::Continue(next) = next else { return };
            job = next;
        }
    }

    /// Carries a job out, or waits for one.
    async fn step(&mut self, job: Option<Job>) -> ControlFlow<(), Option<Job>> {
        if let Some(job) = job {
            self.carry_out(job).await;
            return ControlFlow::Continue(None);
        }
        match self.commands.recv().await {
            Some(command) => ControlFlow::Continue(self.idle(command).await),
            None => ControlFlow::Break(()),
        }
    }

    fn kept(&self) -> Option<Job> {
        let file = self.replayer.file()?;
        let job = file.load().inspect_err(|error| {
            tracing::warn!(%error, "whether a replay was under way cannot be read");
        });
        let job = job.ok().flatten()?;
        self.shown.send_replace(Some(job.progress.clone()));
        job.goes_on().then_some(job)
    }

    /// Answers while nothing is under way.
    async fn idle(&self, command: Command) -> Option<Job> {
        match command {
            Command::Start(request, reply) => {
                let job = Job::new(ReplayProgress::new(request, clock::now()));
                let kept = self.keep(job.clone()).await;
                let started = kept.map(|()| job.progress.clone());
                let begins = started.is_ok();
                if begins {
                    self.shown.send_replace(Some(job.progress.clone()));
                }
                reply.send(started).ok();
                begins.then_some(job)
            }
            Command::Stop(reply) => {
                reply.send(None).ok();
                None
            }
        }
    }

    /// Carries a job out and answers meanwhile.
    async fn carry_out(&mut self, job: Job) {
        let selection = job.progress.request.selection;
        tracing::info!(%selection, "a replay begins");
        let reply = {
            let running = self.replayer.run(job, &self.shown);
            tokio::pin!(running);
            loop {
                let command = tokio::select! {
                    ended = &mut running => {
                        let (state, records) = (ended.state, ended.done.records);
                        tracing::info!(%selection, ?state, records, "a replay has ended");
                        return;
                    }
                    Some(command) = self.commands.recv() => command,
                };
                match command {
                    Command::Start(_, reply) => {
                        reply.send(Err(ReplayError::Busy(selection))).ok();
                    }
                    Command::Stop(reply) => break reply,
                }
            }
        };
        let stopped = self.shown.borrow().clone().map(|progress| ReplayProgress {
            state: ReplayState::Stopped,
            ended_at: Some(clock::now()),
            eta_s: None,
            ..progress
        });
        self.shown.send_replace(stopped.clone());
        if let Some(progress) = stopped.clone()
            && let Err(error) = self.keep(Job::new(progress)).await
        {
            tracing::error!(%error, "a replay has been stopped and would go on after a restart");
        }
        reply.send(stopped).ok();
    }

    async fn keep(&self, job: Job) -> Result<(), ReplayError> {
        let Some(file) = self.replayer.file().cloned() else { return Ok(()) };
        let saved = tokio::task::spawn_blocking(move || file.save(&job)).await;
        match saved {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ReplayError::Failed(error.to_string())),
            Err(error) => Err(ReplayError::Failed(error.to_string())),
        }
    }
}
