//! The control socket of `agent run`: joins the agent to the server of [`crate::control`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agent::AgentView;
use crate::collect::label;
use crate::config::{Collectors, Config, Timing};
use crate::control::{
    AgentStatus, BackendStatus, CertificateStatus, CollectorStatus, DrainStatus, IntakeStatus,
    ReplayError, ReplayProgress, ReplayRequest, Server, SocketError, Sources, Subject,
};
use crate::forward::Speed;
use crate::link::{CertificateState, LinkConfig};

/// How long answers that have begun may take at a shutdown.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// The socket of a running agent.
#[derive(Debug)]
pub struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A place that cannot be had is tried again so often: a disk may be full for a while.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Starts to answer on `control.socket` for the agent that is registered as `collector_id`. A place
/// that cannot be had is said, and tried again. Must be called within a runtime.
pub async fn serve(
    view: AgentView,
    (file, config): (&Path, &Config),
    collector_id: String,
    metrics: Option<PrometheusHandle>,
) -> Serving {
    let socket = config.control_socket.clone();
    let first = Server::bind(&socket).await;
    let facts = Facts {
        config_file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        collector_id,
        hostname: config.agent.hostname.clone(),
        urls: urls(&config.link),
        verified: config.link.tls.verify,
    };
    let queue = view.queue.clone();
    let sources = Sources { queue, agent: Shown { view, facts }, metrics };
    let (stop, stopped) = oneshot::channel();
    // Whoever drops the sender wants the end, too.
    let mut stopped = Box::pin(async { stopped.await.unwrap_or_default() });
    let task = tokio::spawn(async move {
        let server = tokio::select! {
            server = bound(&socket, first) => server,
            () = &mut stopped => return,
        };
        server.serve(sources, stopped).await;
    });
    Serving { stop, task }
}

/// The server at `socket`, as soon as it can be had; `first` came of the first try.
async fn bound(socket: &Path, first: Result<Server, SocketError>) -> Server {
    let mut tried = first;
    let mut last_error = None;
    loop {
        let error = match tried {
            Ok(server) => {
                if last_error.is_some() {
                    tracing::info!(socket = %socket.display(), "this agent can be asked");
                }
                return server;
            }
            Err(error) => error.to_string(),
        };
        if last_error.as_ref() != Some(&error) {
            tracing::error!(error, "nobody can ask this agent");
        }
        last_error = Some(error);
        tokio::time::sleep(BIND_AGAIN).await;
        tried = Server::bind(socket).await;
    }
}

impl Serving {
    /// Finishes the answers that have begun and removes the socket.
    pub async fn stop(mut self) {
        self.stop.send(()).ok();
        if tokio::time::timeout(FINISH_MAX, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
struct Facts {
    config_file: PathBuf,
    collector_id: String,
    hostname: String,
    /// The backends in their order.
    urls: Vec<String>,
    verified: bool,
}

#[derive(Debug, Clone)]
struct Shown {
    view: AgentView,
    facts: Facts,
}

impl Subject for Shown {
    fn describe(&self) -> AgentStatus {
        let facts = self.facts.clone();
        let forward = self.view.forward.borrow().clone();
        let in_use = self.view.link.in_use();
        let several = facts.urls.len() > 1;
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.view.started_at,
            config_file: facts.config_file,
            collector_id: facts.collector_id,
            hostname: facts.hostname,
            backend: BackendStatus {
                url: in_use.url,
                urls: if several { facts.urls } else { Vec::new() },
                in_use_since: several.then_some(in_use.since),
                proxy: self.view.link.proxy(),
                verified: facts.verified,
                forwarding: forward.state,
                hint: forward.hint,
                reason: self.view.link.trouble().map(str::to_owned),
                last_answer: forward.last_answer,
                last_answer_at: forward.last_answer_at,
                last_delivery_at: forward.last_delivery_at,
                next_try_at: forward.next_try_at,
                clock_offset_ms: self.view.link.clock_offset_ms(),
                sent_bytes: forward.sent_bytes,
                refuses_health: forward.refuses_health,
                certificate: self.view.link.certificate().map(certificate),
                token_expires_at: self.view.link.token_expires_at(),
                in_flight: forward.in_flight,
                drain: forward.drain.map(|Speed { batches, millis }| DrainStatus {
                    batches,
                    millis,
                    eta_s: None, // what waits is known to the queue
                }),
            },
            collectors: self.collectors(),
            config: self.view.config_state.snapshot(),
            intake: self.intake(),
        }
    }

    async fn push_now(&self) {
        self.view.push_now().await;
    }

    async fn start_replay(&self, request: ReplayRequest) -> Result<ReplayProgress, ReplayError> {
        self.view.replay.start(request).await
    }

    fn replay(&self) -> Option<ReplayProgress> {
        self.view.replay.progress()
    }

    async fn stop_replay(&self) -> Option<ReplayProgress> {
        self.view.replay.stop().await
    }
}

impl Shown {
    fn intake(&self) -> Option<IntakeStatus> {
        let listen = self.view.config.borrow().intake.as_ref()?.listen.to_string();
        let counts = self.view.intake.counts();
        Some(IntakeStatus {
            listen: counts.listen.unwrap_or(listen),
            error: counts.error,
            connections: counts.connections,
            requests: counts.requests,
            refused: counts.refused,
            metrics: counts.metrics,
            rejects: counts.rejects,
            duplicates: counts.duplicates,
            body_bytes: counts.body_bytes,
        })
    }

    fn collectors(&self) -> Vec<CollectorStatus> {
        let done = self.view.collections.snapshot();
        let show = |(name, timing): &(String, Option<Timing>)| {
            let status = done.get(name).cloned().unwrap_or_default();
            CollectorStatus {
                name: name.clone(),
                enabled: timing.is_some(),
                interval_ms: timing.map_or(0, |timing| {
                    u64::try_from(timing.interval.as_millis()).unwrap_or(u64::MAX)
                }),
                last_run_at: status.last_at,
                last_ms: status.last_ms,
                cpu_ms: status.cpu_ms(),
                last_error: status.error,
                runs: status.collections + status.failures,
                failures: status.failures,
                metrics: status.metrics,
                rejects: status.rejected,
                last_reject: status.last_rejected,
                notices: status.notices,
                blocked_since: status.blocked_since,
            }
        };
        timings(&self.view.config.borrow().collectors).iter().map(show).collect()
    }
}

fn certificate(state: CertificateState) -> CertificateStatus {
    CertificateStatus {
        begins_at: state.validity.begins,
        expires_at: state.validity.ends,
        renew_at: state.renew_at.filter(|_| state.by_hand.is_none()),
        renewed_at: state.renewed_at,
        by_hand: state.by_hand,
        error: state.error,
    }
}

fn urls(link: &LinkConfig) -> Vec<String> {
    let endpoints = link.endpoints().unwrap_or_default();
    endpoints.iter().map(|endpoint| endpoint.base().to_owned()).collect()
}

/// Each collector by its label: one that is off once, one that is on for each of its servers.
fn timings(collectors: &Collectors) -> Vec<(String, Option<Timing>)> {
    let Collectors { sysstat, disk_usage, pg_stats, pg_log, agent } = collectors;
    let one = |name: &str, timing: Option<Timing>| vec![(name.to_owned(), timing)];
    let each = |name: &str, timing: Timing, instances: Vec<&str>| -> Vec<_> {
        instances.into_iter().map(|instance| (label(name, instance), Some(timing))).collect()
    };
    let pg_log = match pg_log {
        None => one("pg_log", None),
        Some((timing, all)) => {
            each("pg_log", *timing, all.iter().map(|config| &*config.instance).collect())
        }
    };
    let pg_stats = match pg_stats {
        None => one("pg_stats", None),
        Some((timing, all)) => {
            each("pg_stats", *timing, all.iter().map(|config| &*config.instance).collect())
        }
    };
    let sysstat = one("sysstat", sysstat.as_ref().map(|(timing, _)| *timing));
    let disk_usage = one("disk_usage", disk_usage.as_ref().map(|(timing, _)| *timing));
    [sysstat, disk_usage, pg_log, pg_stats, one("agent", *agent)].concat()
}
