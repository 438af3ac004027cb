//! `agent run`.

use std::{path::Path, process::ExitCode};

use super::{ConfigFile, EXIT_USAGE, block_on, control, file_and};
use crate::{
    agent::{Agent, StartError},
    config::Config,
    link::{Identity, LinkError},
    shutdown, telemetry, units,
};

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(file: &ConfigFile) -> ExitCode {
    file_and(file, |path, config| {
        telemetry::start_log(config.log_level);
        block_on(run_agent(path, config))
    })
}

async fn run_agent(path: &Path, config: Config) -> ExitCode {
    let counters = telemetry::start_counters();
    let started = match identity(&config) {
        Ok(identity) => {
            let collector_id = identity.collector_id.clone();
            Agent::start(&config, identity).await.map(|agent| (agent, collector_id))
        }
        Err(error) => Err(StartError::Link(error)),
    };
    let (agent, collector_id) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("agent run: {}", error.to_string().replace("; hint: ", "\n  hint: "));
            return match error {
                StartError::Link(_) => ExitCode::from(EXIT_USAGE),
                StartError::Queue(_) => ExitCode::FAILURE,
            };
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %path.display(),
        backend = config.link.url,
        push_interval = units::show_duration(config.agent.push_interval),
        "the agent runs"
    );
    // Collecting and delivering matter more than being asked about it.
    let about = (path, &config);
    let control = control::serve(agent.view(), about, collector_id, counters)
        .await
        .inspect_err(|error| tracing::error!(%error, "nobody can ask this agent"));
    match shutdown::signalled().await {
        Ok(signal) => tracing::info!(signal, "stopping"),
        Err(error) => tracing::error!(%error, "cannot hear signals; stopping"),
    }
    if let Ok(control) = control {
        control.stop().await;
    }
    agent.stop(config.shutdown_deadline).await;
    tracing::info!("stopped");
    ExitCode::SUCCESS
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
