//! `agent queue`: work on the queue's directory while no agent runs.

use std::process::ExitCode;

use super::{ConfigFile, file_and, repair};
use crate::telemetry;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Look for damage in the queue's directory, and repair it with --apply.
    ///
    /// Prints a plan and changes nothing; --apply carries it out. Nothing is deleted: what is in
    /// the way moves into backup-TIME/ in the queue's directory, and what is changed is copied
    /// there first. No agent may run meanwhile.
    /// Exit codes: 0 nothing to repair, or it is repaired, 1 failed, 2 the plan has damage in it.
    Repair {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// What is done.
        #[command(flatten)]
        args: repair::Args,
    },
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    match command {
        Command::Repair { config, args } => file_and(config, |_, config| {
            telemetry::start_log(tracing::Level::ERROR);
            repair::run(args, &config)
        }),
    }
}
