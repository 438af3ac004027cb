//! Joins the stages: the only file that starts the agent's tasks and makes their channels.
//!
//! Collectors -> door -> queue -> forwarder -> link, and beside them the intake of other programs,
//! the end of each push window and the replay lane. What another configuration starts and ends
//! while the agent runs is in `stages`, and the configuration in force in `reload`.

mod door;
mod health;
mod intake;
mod letter;
mod reload;
mod remote;
pub mod replay;
mod seams;
mod stages;
pub mod windows;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use uuid::Uuid;

use self::{
    door::Door,
    reload::{AtBackend, Keeper, Parts},
    replay::{Lane, Replayer},
    stages::Stages,
};
pub use self::{
    door::{Collections, CollectorStatus},
    reload::{ConfigState, Reload, Setup},
    seams::{LinkWire, QueueSource},
};
use crate::{
    clock,
    config::{Config, ForwardSettings},
    forward::{Drained, ForwardConfig, ForwardStatus, Forwarder},
    intake::IntakeView,
    link::{Identity, Link, LinkError, renew},
    queue::{Queue, QueueThread, StoreError},
    shutdown::{self, Trigger},
};

/// How long the stages may take to end. Each has a bound of its own, which is less.
const STAGES_END_MAX: Duration = Duration::from_secs(6);
/// How long the queue may take to seal and to close: a disk that hangs must not hold the process.
const DISK_MAX: Duration = Duration::from_secs(15);

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
    /// When the agent started.
    pub started_at: Timestamp,
    /// The queue.
    pub queue: Queue,
    /// What the collectors have done.
    pub collections: Collections,
    /// What other programs have pushed.
    pub intake: IntakeView,
    /// The configuration in force.
    pub config: watch::Receiver<Config>,
    /// What is known about it.
    pub config_state: ConfigState,
    /// Reads the file again.
    pub reload: Reload,
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
    pub async fn start(setup: Setup, identity: Identity) -> Result<Self, StartError> {
        let started = (clock::now(), clock::monotonic());
        let setup = setup.with_kept(&identity.collector_id);
        let config = setup.loaded.config.clone();
        let who = (identity.collector_id.clone(), config.agent.hostname.clone());
        let link = Arc::new(Link::new(&config.link, identity)?);
        let (queue, queue_thread) = config.queue.start_patiently()?;
        let (queue_id, found) = found_in(&queue).await;
        let (trigger, shutdown) = shutdown::channel();
        let (collections, config_state, signals): (Collections, ConfigState, Signals) =
            <_>::default();
        let source = QueueSource {
            queue: queue.clone(),
            link: Arc::clone(&link),
            config: config_state.clone(),
        };
        let settings = forward_config(&config.forward, who.clone());
        let (settings, changes) = watch::channel(settings);
        let wire = LinkWire(Arc::clone(&link));
        let (forwarder, forward) = Forwarder::new(source.clone(), wire, changes.clone());
        let forwarder = forwarder.woken_by(Arc::clone(&signals.wake));
        let door = Door { queue: queue.clone(), collections: collections.clone() };
        let window = (config.agent.push_interval, queue_id);
        let shown = (forward.clone(), started);
        let mut running = Stages::new(door, shown, Arc::clone(&signals.wake), window);
        running.apply(&config).await;
        let intake = running.intake_view();
        let (shown, in_force) = watch::channel(config.clone());
        let parts = Parts {
            stages: running,
            queue: queue.clone(),
            forward: settings,
            log: setup.log.clone(),
            shown,
        };
        // One pause for all that a start may send, so that a host does not come twice.
        let pause = windows::found_pause(config.agent.push_interval, fastrand::f64());
        let (backend_link, shown) = (Arc::clone(&link), forward.clone());
        let backend = AtBackend::new(backend_link, &who.0, shown, queue_id, pause);
        let (keeper, reload) = Keeper::new(setup, parts, backend, config_state.clone());
        let mut stages = JoinSet::new();
        stages.spawn(keeper.run(shutdown.clone()));
        if !config.link.more_urls.is_empty() {
            let return_after = config.link.return_after;
            stages.spawn(watch_backends(Arc::clone(&link), return_after, shutdown.clone()));
        }
        let replayer = Replayer::of_host(&config, queue.clone(), Arc::clone(&link), who.0);
        let (replay, lane) = replay::lane(replayer.reporting(source));
        stages.spawn(lane.run(shutdown.clone()));
        stages.spawn(renew::run(Arc::clone(&link), shutdown));
        let (finish, finishing) = watch::channel(false);
        let found = (found > 0).then_some(pause);
        let told = Told::new(&signals, changes, finishing, &link);
        let forwarder = tokio::spawn(forward_batches(forwarder, queue.clone(), told, found));
        let view = AgentView {
            started_at: started.0,
            queue,
            collections,
            intake,
            config: in_force,
            config_state,
            reload,
            forward,
            link,
            replay,
            signals,
        };
        Ok(Self { view, trigger, stages, forwarder, finish, queue_thread })
    }

    /// What can be asked of the agent.
    pub fn view(&self) -> AgentView {
        self.view.clone()
    }

    /// Stops collecting, finishes the requests of other programs that have begun, seals, tries once
    /// more to deliver what waits within `deadline` of the call, and closes the queue. What is not
    /// delivered by then is on disk. Nothing that hangs holds it for long: neither a collector nor
    /// a request, and not the disk either.
    pub async fn stop(mut self, deadline: Duration) {
        let deadline = Instant::now() + deadline;
        self.trigger.stop();
        let stages = async { while self.stages.join_next().await.is_some() {} };
        if tokio::time::timeout(STAGES_END_MAX, stages).await.is_err() {
            tracing::warn!("a stage does not end; it is left behind");
        }
        let queue = &self.view.queue;
        tokio::time::timeout(DISK_MAX, queue.seal()).await.ok();
        self.view.signals.wake.notify_one();
        self.finish.send_replace(true);
        if tokio::time::timeout_at(deadline, &mut self.forwarder).await.is_err() {
            tracing::warn!("the shutdown deadline has come; what waits is on disk");
            self.forwarder.abort();
        }
        let thread = self.queue_thread;
        let close = async {
            queue.close().await.ok();
            tokio::task::spawn_blocking(move || thread.join()).await.ok();
        };
        if tokio::time::timeout(DISK_MAX, close).await.is_err() {
            tracing::error!("the disk does not answer; what it has acknowledged is on it");
        }
    }
}

impl AgentView {
    /// Ends the window now and tries to deliver everything that waits.
    pub async fn push_now(&self) {
        self.queue.seal().await.ok();
        self.queue.retry_now().await.ok();
        self.signals.wake.notify_one();
        self.signals.now.notify_one();
        self.replay.wake();
    }
}

/// A queue's identity, and how many records wait in it. Its thread has just been started: it
/// answers.
async fn found_in(queue: &Queue) -> (Uuid, u64) {
    let status = queue.status().await;
    status.map_or((Uuid::nil(), 0), |status| (status.queue_id, status.records))
}

/// The forwarder's configuration, for whoever sends as this host.
pub fn forward_config(
    settings: &ForwardSettings,
    (collector_id, hostname): (String, String),
) -> ForwardConfig {
    ForwardConfig {
        collector_id,
        hostname,
        brings_other: false,
        in_flight: settings.in_flight,
        order: settings.order,
        backlog_rate: settings.backlog_rate,
        encoding: settings.encoding,
        gzip_level: settings.gzip_level,
        zstd_level: settings.zstd_level,
        backoff: (settings.backoff_first, settings.backoff_max),
    }
}

/// What the forwarder's task is told.
struct Told {
    signals: Signals,
    settings: watch::Receiver<ForwardConfig>,
    finishing: watch::Receiver<bool>,
    link: Arc<Link>,
}

impl Told {
    fn new(
        signals: &Signals,
        settings: watch::Receiver<ForwardConfig>,
        finishing: watch::Receiver<bool>,
        link: &Arc<Link>,
    ) -> Self {
        Self { signals: signals.clone(), settings, finishing, link: Arc::clone(link) }
    }
}

/// Goes back to an earlier backend when it is there again. The looks are spread, so that the hosts
/// that lost a backend together do not return to it together.
async fn watch_backends(link: Arc<Link>, return_after: Duration, mut shutdown: shutdown::Shutdown) {
    loop {
        let pause = return_after.mul_f64(0.1 + 0.8 * fastrand::f64());
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = link.return_to_earlier() => {}
        }
    }
}

/// Drains when woken, and again after a failure's pause; when told to finish, once more. What a
/// start has found waits for `found`.
async fn forward_batches(
    mut forwarder: Forwarder<QueueSource, LinkWire>,
    queue: Queue,
    Told { signals, mut settings, mut finishing, link }: Told,
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
            Ok(()) = settings.changed() => {} // the forwarder looks at them itself
            () = signals.now.notified() => {}
            () = link.token_is_replaced() => {
                queue.retry_now().await.ok();
            }
            () = pause => {}
        }
        drained = forwarder.drain().await;
    }
}

/// Whether a last push is wanted; `false` when whoever would want it is gone.
async fn told(finishing: &mut watch::Receiver<bool>) -> bool {
    finishing.wait_for(|finish| *finish).await.is_ok()
}
