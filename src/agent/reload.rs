//! The configuration in force: the host's file, read again when asked, and over it what the backend
//! says; applied to what runs as a difference.
//!
//! A configuration is checked whole before anything of it is applied; one that is not sound is
//! refused, and the one in force stays. A refused one of the backend is tried again when the host's
//! file has changed, and fetched again when it has another version.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    forward_config,
    remote::{self, Asking, Kept, Pulled},
    stages::Stages,
    windows,
};
use crate::{
    clock,
    config::{
        Config, Layers, Loaded, Remote, RemoteConfig,
        reader::{ConfigError, Origin, Problem},
    },
    control::{ConfigStatus, RefusedConfig, RemoteState},
    forward::{ForwardConfig, ForwardStatus},
    link::Link,
    queue::Queue,
    shutdown::Shutdown,
    telemetry::LogLevel,
};

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The texts of the configuration.
    pub layers: Layers,
    /// The configuration itself.
    pub loaded: Loaded,
    /// The log, whose level follows the configuration.
    pub log: Option<LogLevel>,
}

/// What is known about the configuration in force. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ConfigState(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    status: ConfigStatus,
    reports: Reports,
}

/// The refusals that the status shows, as the backend hears of them: without a value of the host's
/// file.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    /// Of the host's file.
    pub file_error: Option<String>,
    /// Of what the backend has said.
    pub refused: Option<String>,
}

/// Asks a running agent to read its file again. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct Reload(mpsc::Sender<Asked>);

/// Who asks, and hears what has come of it.
type Asked = oneshot::Sender<Result<(), String>>;

/// What takes another configuration while it runs.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) stages: Stages,
    pub(super) queue: Queue,
    pub(super) forward: watch::Sender<ForwardConfig>,
    pub(super) log: Option<LogLevel>,
    /// The configuration, for whoever looks.
    pub(super) shown: watch::Sender<Config>,
}

/// The backend's side of the configuration.
#[derive(Debug)]
pub(super) struct AtBackend {
    link: Arc<Link>,
    collector_id: String,
    /// Names newer versions.
    forward: watch::Receiver<ForwardStatus>,
    spread: f64,
    /// Left at a start before it asks for another configuration than the kept one.
    pause: Duration,
}

/// Keeps the configuration in force.
#[derive(Debug)]
pub(super) struct Keeper {
    layers: Layers,
    /// With what the process has started.
    started: Loaded,
    loaded: Loaded,
    /// What the backend has said last, if this agent does not take it.
    refused: Option<Remote>,
    parts: Parts,
    backend: AtBackend,
    asking: Asking,
    kept: Kept,
    state: ConfigState,
    asked: mpsc::Receiver<Asked>,
}

/// What the keeper waits for.
enum Event {
    Shutdown,
    Asked(Asked),
    Named(i64),
    Pulled(Pulled),
}

/// Requests that may wait.
const ASKED_MAX: usize = 4;

impl Setup {
    /// Reads the file at `file`.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::of(Layers::load(file)?)
    }

    /// Reads these texts.
    pub fn of(layers: Layers) -> Result<Self, ConfigError> {
        let loaded = layers.read()?;
        Ok(Self { layers, loaded, log: None })
    }

    /// The same, with the last good configuration of the backend that an earlier process has kept
    /// for `collector_id`. One that is not sound any more is set aside.
    #[must_use]
    pub fn with_kept(self, collector_id: &str) -> Self {
        let agent = &self.loaded.config.agent;
        if agent.remote_config == RemoteConfig::Off {
            return self;
        }
        let kept = Kept::of(&agent.state_dir, collector_id);
        let Some(remote) = kept.load() else { return self };
        let layers = self.layers.with_remote(Some(remote));
        match layers.read() {
            Ok(loaded) => {
                if let Some(log) = &self.log {
                    log.set(loaded.config.log_level);
                }
                Self { layers, loaded, ..self }
            }
            Err(error) => {
                kept.set_aside(&error.to_string());
                self
            }
        }
    }
}

impl ConfigState {
    /// As it is now.
    pub fn snapshot(&self) -> ConfigStatus {
        self.known().status.clone()
    }

    /// The refusals of [`ConfigState::snapshot`] for the backend.
    pub fn with_reports(&self) -> (ConfigStatus, Reports) {
        let known = self.known();
        (known.status.clone(), known.reports.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ConfigStatus)) {
        let mut known = self.known();
        let Known { status, reports } = &mut *known;
        change(status);
        reports.file_error.take_if(|_| status.file_error.is_none());
        reports.refused.take_if(|_| status.refused.is_none());
    }

    fn refuse_file(&self, error: &ConfigError) {
        let mut known = self.known();
        known.status.file_error = Some(error.to_string());
        known.reports.file_error = Some(error.report());
    }

    fn refuse_remote(&self, version: i64, error: &ConfigError) {
        let mut known = self.known();
        let (told, at) = (error.to_string(), clock::now());
        known.status.refused = Some(RefusedConfig { version, error: told, at });
        known.reports.refused = Some(error.report());
    }
}

impl Reload {
    /// Has the file read again and applied. The error is the refusal, for a person.
    pub async fn now(&self) -> Result<(), String> {
        let stopping = || "the agent is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

impl AtBackend {
    /// Asked as `collector_id`, at a time of its own for each queue; at a start after `pause` by
    /// an agent that has a configuration.
    pub(super) fn new(
        link: Arc<Link>,
        collector_id: &str,
        forward: watch::Receiver<ForwardStatus>,
        queue_id: Uuid,
        pause: Duration,
    ) -> Self {
        let spread = windows::spread(queue_id);
        Self { link, collector_id: collector_id.to_owned(), forward, spread, pause }
    }
}

impl Keeper {
    /// A keeper of what `setup` says, which runs in `parts` already.
    pub(super) fn new(
        setup: Setup,
        parts: Parts,
        backend: AtBackend,
        state: ConfigState,
    ) -> (Self, Reload) {
        let (reload, asked) = mpsc::channel(ASKED_MAX);
        let Setup { layers, loaded, log: _ } = setup;
        let version = layers.remote.as_ref().map(|remote| remote.version);
        let keeper = Self {
            started: loaded.clone(),
            refused: None,
            asking: Asking::new(version, Instant::now(), backend.pause),
            kept: Kept::of(&loaded.config.agent.state_dir, &backend.collector_id),
            layers,
            loaded,
            parts,
            backend,
            state,
            asked,
        };
        tell_passed_over(&keeper.loaded.passed_over, &[]);
        keeper.tell();
        (keeper, Reload(reload))
    }

    /// Serves until the shutdown, and then ends the stages.
    pub(super) async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            match self.next(&mut shutdown).await {
                Event::Shutdown => break,
                Event::Asked(reply) => _ = reply.send(self.read_file_again().await),
                Event::Named(version) => self.asking.hear(version, Instant::now()),
                Event::Pulled(pulled) => self.take(pulled).await,
            }
        }
        self.parts.stages.stop().await;
    }

    async fn next(&mut self, shutdown: &mut Shutdown) -> Event {
        let is_asked = self.loaded.config.agent.remote_config == RemoteConfig::On;
        let AtBackend { link, collector_id, forward, .. } = &mut self.backend;
        let asking = &self.asking;
        let pull = async {
            tokio::time::sleep_until(asking.due()).await;
            remote::pull(link, collector_id, asking.known).await
        };
        tokio::select! {
            biased;
            () = shutdown.wait() => Event::Shutdown,
            Some(reply) = self.asked.recv() => Event::Asked(reply),
            version = remote::named(forward, asking), if is_asked => Event::Named(version),
            pulled = pull, if is_asked => Event::Pulled(pulled),
        }
    }

    /// Reads the file again, under what the backend has said last: what was wrong with that may
    /// have been in the file.
    async fn read_file_again(&mut self) -> Result<(), String> {
        self.asking.at_once(Instant::now());
        match self.reread() {
            Ok((layers, loaded)) => {
                self.state.change(|status| status.file_error = None);
                if layers.remote != self.layers.remote {
                    self.keep(layers.remote.clone()).await;
                }
                self.apply(layers, loaded).await;
                Ok(())
            }
            Err(error) => {
                self.state.refuse_file(&error);
                let error = error.to_string();
                tracing::error!(error, "the configuration is refused; the one in force stays");
                Err(error)
            }
        }
    }

    fn reread(&self) -> Result<(Layers, Loaded), ConfigError> {
        let layers = self.layers.with_file_again()?;
        let own = layers.with_remote(None);
        let alone = own.read()?;
        if alone.config.agent.remote_config == RemoteConfig::Off {
            return Ok((own, alone));
        }
        if self.refused.is_some() {
            let tried = layers.with_remote(self.refused.clone());
            if let Ok(loaded) = tried.read() {
                return Ok((tried, loaded));
            }
        }
        let loaded = layers.read()?;
        Ok((layers, loaded))
    }

    /// Takes what the backend has answered.
    async fn take(&mut self, pulled: Pulled) {
        let interval = self.loaded.config.agent.config_pull_interval;
        let wait = remote::wait(interval, self.backend.spread);
        self.asking.answered(&pulled, wait, Instant::now());
        let (remote, answer) = match &pulled {
            Pulled::New(remote) => (RemoteState::Asked, format!("version {}", remote.version)),
            Pulled::Same => (RemoteState::Asked, "nothing new".to_owned()),
            Pulled::Absent(answer) => (RemoteState::Absent, answer.clone()),
            Pulled::Failed(answer) => (self.state.snapshot().remote, answer.clone()),
        };
        let is_failure = matches!(pulled, Pulled::Absent(_) | Pulled::Failed(_));
        self.state.change(|status| {
            if is_failure && status.last_answer.as_ref() != Some(&answer) {
                tracing::warn!(answer, "the backend gives no configuration; this one stays");
            }
            status.asked_at = Some(clock::now());
            status.last_answer = Some(answer);
            status.remote = remote;
        });
        if let Pulled::New(remote) = pulled {
            self.take_remote(remote).await;
        }
    }

    async fn take_remote(&mut self, remote: Remote) {
        let layers = self.layers.with_remote(Some(remote.clone()));
        match layers.read() {
            Ok(loaded) => {
                self.refused = None;
                // Before it counts: a crash in between starts with the new one.
                self.keep(Some(remote)).await;
                self.apply(layers, loaded).await;
            }
            Err(error) => {
                let version = remote.version;
                self.state.refuse_remote(version, &error);
                let error = error.to_string();
                tracing::error!(version, error, "a configuration of the backend is refused");
                self.refused = Some(remote);
            }
        }
    }

    /// Keeps the backend's configuration for the next start.
    async fn keep(&self, remote: Option<Remote>) {
        let (kept, Some(remote)) = (self.kept.clone(), remote) else { return };
        let saved = tokio::task::spawn_blocking(move || kept.save(&remote)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(error, "the backend's configuration is not kept for the next start");
        }
    }

    /// Puts a sound configuration in force.
    async fn apply(&mut self, layers: Layers, loaded: Loaded) {
        let changed = loaded.changed_since(&self.loaded);
        let version = layers.remote.as_ref().map_or(0, |remote| remote.version);
        if changed.is_empty() {
            tracing::info!(version, "the configuration was read: nothing has changed");
        } else {
            let keys = changed.join(", ");
            tracing::info!(version, keys, "another configuration applies");
        }
        let Parts { stages, queue, forward, log, shown } = &mut self.parts;
        let (config, before) = (&loaded.config, &self.loaded.config);
        if config.queue != before.queue {
            let interval = config.queue.commit_interval;
            // A queue that is closed is about to end with the process.
            queue.change_limits(interval, config.queue.limits).await.ok();
        }
        forward.send_if_modified(|in_force| {
            let who = (in_force.collector_id.clone(), in_force.hostname.clone());
            let wanted = forward_config(&config.forward, who);
            let differs = wanted != *in_force;
            *in_force = wanted;
            differs
        });
        if let Some(log) = log {
            log.set(config.log_level);
        }
        stages.apply(config).await;
        shown.send_replace(config.clone());
        if layers.remote.is_none() || layers.remote == self.refused {
            self.refused = None;
        }
        if layers.remote.is_none() {
            self.asking.known = None; // what was had is wanted again when the host lets it in
        }
        tell_passed_over(&loaded.passed_over, &self.loaded.passed_over);
        (self.layers, self.loaded) = (layers, loaded);
        self.tell();
    }

    /// Makes the state say what is in force.
    fn tell(&self) {
        let needs_restart = self.loaded.needs_restart(&self.started);
        if !needs_restart.is_empty() {
            let keys = needs_restart.join(", ");
            tracing::warn!("needs a restart: {keys}");
        }
        let is_off = self.loaded.config.agent.remote_config == RemoteConfig::Off;
        let withheld = self.loaded.told_withheld();
        if let Some(keys) = &withheld {
            tracing::warn!(keys, "the backend does not get everything that it has set");
        }
        self.state.change(|status| {
            status.withheld = withheld;
            status.applied_at = Some(clock::now());
            status.version = self.layers.remote.as_ref().map_or(0, |remote| remote.version);
            status.remote_keys = self.loaded.set_by(Origin::Remote);
            status.needs_restart = needs_restart;
            if self.refused.is_none() {
                status.refused = None;
            }
            if is_off {
                status.remote = RemoteState::Off;
            } else if status.remote == RemoteState::Off {
                status.remote = RemoteState::Asked;
            }
        });
    }
}

/// Tells of the sections of other collectors that were not there `before`.
fn tell_passed_over(now: &[Problem], before: &[Problem]) {
    for section in now.iter().filter(|section| !before.contains(section)) {
        tracing::warn!("{}", section.to_string().replace("\n  hint: ", "; hint: "));
    }
}
