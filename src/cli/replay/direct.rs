//! A replay by this process: of this host's queue while no agent runs, and of a directory that
//! another host has left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::watch;

use super::Args;
use super::report::{Bar, Outcome};
use crate::agent::replay::{Job, JobFile, Replayer};
use crate::cli::run::identity;
use crate::cli::terminal;
use crate::config::Config;
use crate::control::{ReplayProgress, ReplayRequest, ReplayState};
use crate::link::Link;
use crate::queue::{Budget, Log, LogLimits, LookedAt, OnFull, Queue, Retain};
use crate::{clock, shutdown};

/// How often the progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Opens this host's queue and replays it, as the agent would.
pub(super) async fn own(
    args: &Args,
    config: &Config,
    request: ReplayRequest,
) -> anyhow::Result<Outcome> {
    let identity = identity(config)?;
    let collector_id = identity.collector_id.clone();
    let link = Arc::new(Link::new(&config.link, identity)?);
    let (queue, thread) = config.queue.start()?;
    let replayer = Replayer::of_host(config, queue.clone(), link, collector_id);
    let (replayer, rest) = if request.is_plain() {
        (replayer.without_file(), "the rest stays queued")
    } else {
        (replayer, "the rest is sent when the same command or the agent runs again")
    };
    let outcome = carry_out(&replayer, request, args.wait, rest).await;
    queue.close().await.ok();
    tokio::task::spawn_blocking(move || thread.join()).await?;
    outcome
}

/// Replays the queue in `dir`, which is only read.
pub(super) async fn foreign(
    args: &Args,
    config: &Config,
    dir: &Path,
    request: ReplayRequest,
) -> anyhow::Result<Outcome> {
    let log = look_at(config, dir)?;
    let file = JobFile::of_other(&config.agent.state_dir, log.queue_id());
    let identity = identity(config)?;
    let collector_id = identity.collector_id.clone();
    let link = Arc::new(Link::new(&config.link, identity)?);
    let (queue, thread) = Queue::look(log)?;
    let replayer = Replayer::of_host(config, queue.clone(), link, collector_id);
    let replayer = replayer.of_dir(args.hostname.as_deref(), dir, file);
    let rest = "the rest is sent when the same command runs again";
    let outcome = carry_out(&replayer, request, args.wait, rest).await;
    queue.close().await.ok();
    tokio::task::spawn_blocking(move || thread.join()).await?;
    outcome
}

fn look_at(config: &Config, dir: &Path) -> anyhow::Result<Log<LookedAt>> {
    // This host's budget is not that queue's: nothing in it is too much.
    let budget = Budget {
        bytes_max: u64::MAX,
        age_max: None,
        disk_free_min_percent: 0,
        on_full: OnFull::EvictOldest,
    };
    let limits = LogLimits { budget, retain: Retain::Bytes(u64::MAX), ..config.queue.limits };
    let log = Log::look(LookedAt::at(dir), limits);
    log.with_context(|| format!("no queue in {}", dir.display()))
}

/// Gives up what an earlier process has left of a replay of this host's queue, or of the one in
/// `dir`.
pub(super) fn stop(config: &Config, dir: Option<&Path>) -> anyhow::Result<Option<ReplayProgress>> {
    let file = match dir {
        None => JobFile::of_host(&config.agent.state_dir),
        Some(dir) => JobFile::of_other(&config.agent.state_dir, look_at(config, dir)?.queue_id()),
    };
    let Some(mut job) = file.load()?.filter(Job::goes_on) else { return Ok(None) };
    job.progress.state = ReplayState::Stopped;
    job.progress.ended_at = Some(clock::now());
    file.save(&job)?;
    Ok(Some(job.progress))
}

/// The job that is kept when it is the one that is asked for, else a new one.
fn job_for(replayer: &Replayer, request: ReplayRequest) -> anyhow::Result<Job> {
    let kept = replayer.file().map(JobFile::load).transpose()?.flatten();
    match kept.filter(Job::goes_on) {
        Some(mut kept) if kept.progress.request.selection == request.selection => {
            terminal::complain(&format!(
                "an interrupted replay goes on: {} batches are sent",
                kept.progress.done.batches
            ));
            kept.progress.request = request;
            Ok(kept)
        }
        Some(kept) => bail!(
            "an interrupted replay of {} is not at its end\n  \
             hint: ask for the same again, or end it with --stop",
            kept.progress.request.selection
        ),
        None => Ok(Job::new(ReplayProgress::new(request, clock::now()))),
    }
}

/// Carries the replay out until it is at its end, a signal comes, or the backend has taken nothing
/// for `wait`.
async fn carry_out(
    replayer: &Replayer,
    request: ReplayRequest,
    wait: Duration,
    rest: &'static str,
) -> anyhow::Result<Outcome> {
    let job = job_for(replayer, request)?;
    let bar = Bar::begin();
    let (shown, seen) = watch::channel(Some(job.progress.clone()));
    let mut last = job.progress.clone();
    let running = replayer.run(job, &shown);
    let stopped = shutdown::signalled();
    tokio::pin!(running, stopped);
    loop {
        tokio::select! {
            ended = &mut running => return Ok(bar.end(ended, rest)),
            _ = &mut stopped => break,
            () = tokio::time::sleep(SHOW_EVERY) => {}
        }
        if let Some(now) = seen.borrow().clone() {
            last = now;
        }
        bar.show(&last);
        let failing = last.failing_since.map(|since| clock::now().duration_since(since));
        let failing = failing.and_then(|failing| Duration::try_from(failing).ok());
        if failing.is_some_and(|failing| failing > wait) {
            break;
        }
    }
    let last = seen.borrow().clone().unwrap_or(last);
    Ok(bar.end(last, rest))
}
