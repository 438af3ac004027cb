//! `agent run`.

use std::{path::Path, process::ExitCode, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;

use super::{
    ConfigFile, EXIT_USAGE, block_on,
    control::{self, Serving},
    file_and,
};
use crate::{
    agent::{Agent, StartError},
    config::Config,
    control::SocketError,
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
    let (agent, control) = match start(path, &config, counters).await {
        Ok(started) => started,
        Err(error) => {
            eprintln!("agent run: {}", error.to_string().replace("; hint: ", "\n  hint: "));
            return match error {
                Failure::Start(StartError::Queue(_)) => ExitCode::FAILURE,
                Failure::Start(StartError::Link(_)) | Failure::Control(_) => {
                    ExitCode::from(EXIT_USAGE)
                }
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
    match shutdown::signalled().await {
        Ok(signal) => tracing::info!(signal, "stopping"),
        Err(error) => tracing::error!(%error, "cannot hear signals; stopping"),
    }
    agent.stop(config.shutdown_deadline).await;
    control.stop().await;
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Control(#[from] SocketError),
}

async fn start(
    path: &Path,
    config: &Config,
    counters: Option<PrometheusHandle>,
) -> Result<(Agent, Serving), Failure> {
    let identity = identity(config).map_err(StartError::Link)?;
    let agent = Agent::start(config, identity.clone()).await?;
    match control::serve(agent.view(), (path, config), &identity, counters).await {
        Ok(control) => Ok((agent, control)),
        Err(error) => {
            agent.stop(Duration::ZERO).await;
            Err(error.into())
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
