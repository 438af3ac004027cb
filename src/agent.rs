//! Joins the stages: the only file that starts the agent's tasks and makes their channels.
//!
//! Collectors -> door -> queue -> forwarder -> link, and beside them the intake of other programs,
//! the end of each push window and the replay lane.

mod door;
mod intake;
mod letter;
pub mod replay;
mod seams;
pub mod windows;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};
use uuid::Uuid;

pub use self::{
    door::{Collections, CollectorStatus},
    seams::{LinkWire, QueueSource},
};
use self::{
    door::{Door, run_collector},
    intake::QueueSink,
    replay::{Lane, Replayer},
};
use crate::{
    clock,
    collect::{
        disk_usage::DiskUsageCollector, pg_log::PgLogCollector, pg_stats::PgStatsCollector,
        schedule::Schedule, sysstat::SysstatCollector,
    },
    config::{Collectors, Config, ForwardSettings},
    forward::{Drained, ForwardConfig, ForwardStatus, Forwarder},
    intake::{Intake, IntakeView},
    link::{Identity, Link, LinkError, renew},
    queue::{Queue, QueueThread, StoreError},
    shutdown::{self, Shutdown, Trigger},
};

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    view: AgentView,
    trigger: Trigger,
    stages: JoinSet<()>,
    forwarder: JoinHandle<()>,
    finish: watch::Sender<bool>,
    queue_thread: QueueThread,
}

/// What can be asked of a running agent. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct AgentView {
    /// The queue.
    pub queue: Queue,
    /// What the collectors have done.
    pub collections: Collections,
    /// What other programs have pushed; `None` when there is no intake.
    pub intake: Option<IntakeView>,
    /// What the forwarder has done.
    pub forward: watch::Receiver<ForwardStatus>,
    /// The way to the backend.
    pub link: Arc<Link>,
    /// Sends again what it is told to.
    pub replay: Lane,
    signals: Signals,
}

/// What makes the forwarder look at the queue.
#[derive(Debug, Clone, Default)]
struct Signals {
    /// A window has ended; a pause after a failure goes on.
    wake: Arc<Notify>,
    /// Somebody wants it now.
    now: Arc<Notify>,
}

/// Why an agent does not start. Each text carries its hint.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate, a key, the identity or the URL cannot be used.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The queue cannot be opened.
    #[error(transparent)]
    Queue(#[from] StoreError),
}

impl Agent {
    /// Opens the queue and starts the stages. Must be called within a runtime.
    pub async fn start(config: &Config, identity: Identity) -> Result<Self, StartError> {
        let collector_id = identity.collector_id.clone();
        let who = (collector_id.clone(), config.agent.hostname.clone());
        let link = Arc::new(Link::new(&config.link, identity)?);
        let (queue, queue_thread) = config.queue.start()?;
        // The queue's thread has just been started: it answers.
        let (queue_id, found) = queue
            .status()
            .await
            .map_or((Uuid::nil(), 0), |status| (status.queue_id, status.records));
        let (trigger, shutdown) = shutdown::channel();
        let collections = Collections::default();
        let signals = Signals::default();
        let mut stages = JoinSet::new();
        let door = Door { queue: queue.clone(), collections: collections.clone() };
        start_collectors(&mut stages, &config.collectors, &door, &shutdown).await;
        let intake = config.intake.clone().map(|config| {
            let intake = Intake::new(config, QueueSink(queue.clone()));
            let view = intake.view();
            stages.spawn(intake.run(shutdown.clone()));
            view
        });
        stages.spawn(end_windows(
            queue.clone(),
            windows::windows(config.agent.push_interval, queue_id),
            Arc::clone(&signals.wake),
            shutdown.clone(),
        ));
        let source = QueueSource { queue: queue.clone(), link: Arc::clone(&link) };
        let settings = forward_config(&config.forward, who);
        let (forwarder, forward) = Forwarder::new(source, LinkWire(Arc::clone(&link)), settings);
        let replayer = Replayer::of_host(config, queue.clone(), Arc::clone(&link), collector_id);
        let (replay, lane) = replay::lane(replayer);
        stages.spawn(lane.run(shutdown.clone()));
        stages.spawn(renew::run(Arc::clone(&link), shutdown));
        let (finish, finishing) = watch::channel(false);
        let found_pause = || windows::found_pause(config.agent.push_interval, fastrand::f64());
        let found = (found > 0).then(found_pause);
        let batches = forward_batches(forwarder, queue.clone(), signals.clone(), finishing, found);
        let forwarder = tokio::spawn(batches);
        let view = AgentView { queue, collections, intake, forward, link, replay, signals };
        Ok(Self { view, trigger, stages, forwarder, finish, queue_thread })
    }

    /// What can be asked of the agent.
    pub fn view(&self) -> AgentView {
        self.view.clone()
    }

    /// Stops collecting, finishes the requests of other programs that have begun, seals, tries once
    /// more to deliver what waits within `deadline`, and closes the queue. What is not delivered by
    /// then is on disk.
    pub async fn stop(mut self, deadline: Duration) {
        self.trigger.stop();
        while self.stages.join_next().await.is_some() {}
        self.view.queue.seal().await.ok();
        self.finish.send_replace(true);
        if tokio::time::timeout(deadline, &mut self.forwarder).await.is_err() {
            tracing::warn!("the shutdown deadline has come; what waits is on disk");
            self.forwarder.abort();
        }
        self.view.queue.close().await.ok();
        let thread = self.queue_thread;
        tokio::task::spawn_blocking(move || thread.join()).await.ok();
    }
}

impl AgentView {
    /// Ends the window now and tries to deliver everything that waits.
    pub async fn push_now(&self) {
        self.queue.seal().await.ok();
        self.queue.retry_now().await.ok();
        self.signals.now.notify_one();
        self.replay.wake();
    }
}

/// The forwarder's configuration, for whoever sends as this host.
pub fn forward_config(
    settings: &ForwardSettings,
    (collector_id, hostname): (String, String),
) -> ForwardConfig {
    ForwardConfig {
        collector_id,
        hostname,
        gzip_level: settings.gzip_level,
        backoff: (settings.backoff_first, settings.backoff_max),
    }
}

async fn start_collectors(
    stages: &mut JoinSet<()>,
    collectors: &Collectors,
    door: &Door,
    shutdown: &Shutdown,
) {
    if let Some((timing, config)) = &collectors.sysstat {
        let collector = SysstatCollector::new(config.clone());
        stages.spawn(run_collector(collector, *timing, door.clone(), shutdown.clone()));
    }
    if let Some((timing, config)) = &collectors.disk_usage {
        let collector = DiskUsageCollector::new(config.clone());
        stages.spawn(run_collector(collector, *timing, door.clone(), shutdown.clone()));
    }
    if let Some((timing, config)) = &collectors.pg_stats {
        let collector = PgStatsCollector::new(config.clone());
        stages.spawn(run_collector(collector, *timing, door.clone(), shutdown.clone()));
    }
    if let Some((timing, config)) = &collectors.pg_log {
        let position = door.queue.position("pg_log").await.ok().flatten();
        let collector = PgLogCollector::new(config.clone(), position.as_deref());
        stages.spawn(run_collector(collector, *timing, door.clone(), shutdown.clone()));
    }
}

/// Seals at the end of each push window and wakes the forwarder.
async fn end_windows(
    queue: Queue,
    mut schedule: Schedule,
    wake: Arc<Notify>,
    mut shutdown: Shutdown,
) {
    schedule.next(clock::now()); // the first tick is now, and a window has a length
    loop {
        let tick = schedule.next(clock::now());
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(tick.after) => {}
        }
        if queue.seal().await.is_err() {
            return;
        }
        wake.notify_one();
    }
}

/// Drains when woken, and again after a failure's pause; when told to finish, once more. What a
/// start has found waits for `found`.
async fn forward_batches(
    mut forwarder: Forwarder<QueueSource, LinkWire>,
    queue: Queue,
    signals: Signals,
    mut finishing: watch::Receiver<bool>,
    found: Option<Duration>,
) {
    let mut drained = found.map_or(Drained::Empty, Drained::Waiting);
    loop {
        let pause = async {
            match drained {
                Drained::Empty => signals.wake.notified().await,
                Drained::Waiting(wait) => tokio::time::sleep(wait).await,
            }
        };
        tokio::select! {
            biased;
            last = told(&mut finishing) => {
                if last {
                    queue.retry_now().await.ok();
                    forwarder.drain().await;
                }
                return;
            }
            () = signals.now.notified() => {}
            () = pause => {}
        }
        drained = forwarder.drain().await;
    }
}

/// Whether a last push is wanted; `false` when whoever would want it is gone.
async fn told(finishing: &mut watch::Receiver<bool>) -> bool {
    finishing.wait_for(|finish| *finish).await.is_ok()
}
