//! `agent run`.

use std::{path::Path, process::ExitCode};

use super::{ConfigFile, EXIT_USAGE, block_on, control, named, owner, refused_owner};
use crate::cli::terminal;
use crate::{
    agent::{Agent, AgentView, Setup, StartError},
    config::{Config, secrets},
    files,
    link::{Identity, LinkError},
    shutdown::{Asked, Signals},
    telemetry, units,
};

/// Runs the agent until SIGTERM or SIGINT; SIGHUP has it read its configuration again.
pub fn run(file: &ConfigFile) -> ExitCode {
    named(file, |path| match Setup::load(path) {
        Ok(setup) => {
            if let Err(error) = owner::of_host(path, &setup.loaded.config) {
                return refused_owner(&error);
            }
            let log = telemetry::start_log(setup.loaded.config.log_level);
            if let Some(warning) = secrets::exposed(path) {
                tracing::warn!("{warning}");
            }
            let token = setup.loaded.config.link.token_file.as_deref();
            let exposed = |token| secrets::exposed_file("backend.token_file", token);
            if let Some(warning) = token.and_then(exposed) {
                tracing::warn!("{warning}");
            }
            let state_dir = &setup.loaded.config.agent.state_dir;
            if let Some(warning) = secrets::open_folder("collector.state_dir", state_dir) {
                tracing::warn!("{warning}");
            }
            block_on(run_agent(path, Setup { log: Some(log), ..setup }))
        }
        Err(error) => {
            terminal::complain(&format!("{error}"));
            ExitCode::from(EXIT_USAGE)
        }
    })
}

async fn run_agent(path: &Path, setup: Setup) -> ExitCode {
    // Before anything else: a SIGHUP that nobody hears ends the process.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            terminal::complain(&format!("agent run: cannot hear signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = files::allow_many() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let counters = telemetry::start_counters();
    let config = setup.loaded.config.clone();
    let started = match identity(&config) {
        Ok(identity) => {
            let collector_id = identity.collector_id.clone();
            Agent::start(setup, identity).await.map(|agent| (agent, collector_id))
        }
        Err(error) => Err(StartError::Link(error)),
    };
    let (agent, collector_id) = match started {
        Ok(started) => started,
        Err(error) => {
            terminal::complain(&format!(
                "agent run: {}",
                error.to_string().replace("; hint: ", "\n  hint: ")
            ));
            return match error {
                StartError::Link(_) => ExitCode::from(EXIT_USAGE),
                StartError::Queue(_) => ExitCode::FAILURE,
            };
        }
    };
    // Collecting and delivering matter more than being asked about it.
    let about = (path, &config);
    let control = control::serve(agent.view(), about, collector_id, counters).await;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %path.display(),
        backend = config.link.url,
        push_interval = units::show_duration(config.agent.push_interval),
        "the agent runs"
    );
    let view = agent.view();
    let code = until_stopped(&view, &mut signals).await;
    let deadline = view.config.borrow().shutdown_deadline;
    let stop = async {
        control.stop().await;
        agent.stop(deadline).await;
    };
    tokio::select! {
        () = stop => tracing::info!("stopped"),
        signal = signals.stopped() => {
            // As after kill -9: what was acknowledged is in the queue's files.
            tracing::warn!(signal, "leaving at once; what is not delivered is on disk");
        }
    }
    code
}

/// Waits until the agent is told to stop, or cannot go on; what it ends with.
async fn until_stopped(view: &AgentView, signals: &mut Signals) -> ExitCode {
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop(signal) => {
                    tracing::info!(signal, "stopping");
                    return ExitCode::SUCCESS;
                }
                // A refusal is in the log and in the status.
                Asked::Reload => _ = view.reload.now().await,
            },
            () = view.queue.ended() => {
                // A supervisor starts another, which finds in the files what was acknowledged.
                tracing::error!("the queue has ended by itself; the agent cannot go on");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// The registered identity; without one, an external token and the configured id will do.
pub(super) fn identity(config: &Config) -> Result<Identity, LinkError> {
    match Identity::find(&config.agent.state_dir)? {
        Some(identity) => Ok(identity),
        None if config.link.token_file.is_some() => {
            Ok(Identity::new(&config.agent.id, &config.agent.hostname))
        }
        None => Identity::load(&config.agent.state_dir),
    }
}
