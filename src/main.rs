//! The program `agent`: parses its arguments, runs one command, gives its exit code.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 partial or found damage, 64 usage or configuration.

use std::process::ExitCode;

use clap::Parser;
use pganalytics::cli::{self, Command};

/// Store-and-forward metrics agent for PostgreSQL hosts, and the backend it reports to.
#[derive(Debug, Parser)]
#[command(name = "agent", version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => cli::execute(arguments.command),
        Err(error) => {
            // Help and version come this way too; a pipe that is closed is not an error.
            error.print().ok();
            if error.use_stderr() { ExitCode::from(cli::EXIT_USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
