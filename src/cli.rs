//! The commands, one file each.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

pub mod backend; // the server, and its users
pub mod check; // what works and what does not
pub mod collect; // one collection
pub mod config; // config init, config check
pub mod control; // the control socket of `agent run`
pub mod demo; // agent and backend in one process, to look at
pub mod inspect; // what is queued
pub mod metrics; // what is collected
pub mod local; // the queue of this host, live or from its directory
mod owner; // root, in directories of others
pub mod queue; // work on the queue's directory
pub mod register; // enrols this host with a backend
pub mod repair; // damage in the queue's directory
pub mod replay; // delivers what is queued
pub mod run; // the agent
pub mod screen; // how numbers, times and sizes look
pub mod status; // the agent in one screen
pub mod terminal; // the one way to a terminal

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{config::Config, telemetry};

/// A wrong command line or configuration (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// What `agent` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Collect, queue and forward until SIGTERM or SIGINT.
    #[command(alias = "cron")]
    Run(ConfigFile),
    /// Enrol this host with a backend.
    ///
    /// Makes a private key that never leaves this host, has the backend certify it, and writes key,
    /// certificate, CA and identity. A host that is registered already stays as it is unless
    /// --force is given; then the old identity is replaced only when the new one is complete.
    Register {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// The enrolment.
        #[command(flatten)]
        args: register::Args,
    },
    /// Show the running agent: backend, queue and collectors.
    ///
    /// Exit codes: 0 all is well, 1 the agent does not run or does not answer, 2 it runs and
    /// something needs a look.
    Status {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// What to show.
        #[command(flatten)]
        args: status::Args,
    },
    /// Show what is in the queue: in one screen, or segments, batches, records, losses.
    ///
    /// Asks the agent when it runs, else reads its queue directory, and changes nothing either way.
    /// Exit codes: 0 shown, 1 failed, 2 shown and some of it is damaged.
    Inspect {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// What to show.
        #[command(flatten)]
        args: inspect::Args,
    },
    /// Deliver now what is queued, or send again what is kept, refused, or left by a dead host.
    ///
    /// Without a selection: what waits is pushed at once. The agent does it when it runs, beside
    /// its own pushes, and goes on with it after a restart; else this opens the queue and does it
    /// itself. Each batch goes under the id it always had, so a backend that has it stores nothing
    /// twice. The same command again joins a replay that is under way, or goes on with one that was
    /// interrupted.
    /// Exit codes: 0 all is delivered, 1 nothing is, 2 a part is, or something was damaged.
    Replay {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// How to deliver it.
        #[command(flatten)]
        args: replay::Args,
    },
    /// Work on the queue's directory while no agent runs.
    #[command(subcommand)]
    Queue(queue::Command),
    /// Write or check a configuration file.
    #[command(subcommand)]
    Config(config::Command),
    /// Try each part of the agent, and say what does not work and what mends it.
    ///
    /// Collects once, looks at the directories, and asks the backend for this host's configuration;
    /// nothing is queued or sent. For PostgreSQL it prints the GRANTs that are missing, to paste.
    /// Exit codes: 0 all works, 1 something does not, 2 all works and some of it is missing.
    Check {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// What to try.
        #[command(flatten)]
        args: check::Args,
    },
    /// Collect once, now, and show what came of it; nothing is queued or sent.
    Collect {
        /// The agent's configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// What to collect.
        #[command(flatten)]
        args: collect::Args,
    },
    /// Show every field that is collected: its unit, its meaning and where it comes from.
    Metrics(metrics::Args),
    /// Serve as the backend that agents report to.
    Backend(backend::Args),
    /// Run agent and backend in one process, and watch metrics arrive.
    Demo(demo::Args),
}

/// `--config`.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigFile {
    /// The agent's configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Runs a command to its end.
pub fn execute(command: Command) -> ExitCode {
    match command {
        Command::Run(file) => run::run(&file),
        Command::Register { config, args } => {
            // It may be root's own: before root works as somebody else.
            let secret = args.read_secret_file();
            file_and(&config, |path, config| {
                let host = register::Host {
                    config_file: path.to_owned(),
                    link: config.link,
                    state_dir: config.agent.state_dir,
                    hostname: config.agent.hostname,
                };
                // What is said of the present pair belongs to what the command says.
                telemetry::start_log(tracing::Level::WARN);
                block_on(register::run(args, secret, host))
            })
        }
        Command::Status { config, args } => {
            file_and(&config, |_, config| block_on(status::run(args, &config)))
        }
        Command::Inspect { config, args } => {
            file_and(&config, |_, config| block_on(inspect::run(args, &config)))
        }
        Command::Replay { config, args } => file_and(&config, |_, config| {
            telemetry::start_log(tracing::Level::ERROR);
            block_on(replay::run(args, &config))
        }),
        Command::Queue(command) => queue::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Check { config, args } => {
            file_and(&config, |_, config| block_on(check::run(args, &config)))
        }
        Command::Collect { config, args } => match collect::collectors(&config) {
            Ok(collectors) => block_on(collect::run(args, collectors)),
            Err(code) => code,
        },
        Command::Metrics(args) => metrics::run(&args),
        Command::Backend(args) => {
            if let Err(error) = args.become_owner() {
                return refused_owner(&error);
            }
            telemetry::start_log(tracing::Level::INFO);
            block_on(backend::run(args, async {
                // Without signals there is nothing to wait for.
                crate::shutdown::signalled().await.ok();
            }))
        }
        Command::Demo(args) => match args.become_owner() {
            Ok(()) => block_on(demo::run(args)),
            Err(error) => refused_owner(&error),
        },
    }
}

/// The file that `--config` names, or a word on how to make one.
fn named(file: &ConfigFile, command: impl FnOnce(&Path) -> ExitCode) -> ExitCode {
    let Some(path) = &file.config else {
        terminal::complain(
            "no configuration file is named\n  hint: `agent config init > agent.toml` writes one, \
             then use --config agent.toml",
        );
        return ExitCode::from(EXIT_USAGE);
    };
    command(path)
}

/// Loads the configuration that a command needs.
fn file_and(file: &ConfigFile, command: impl FnOnce(&Path, Config) -> ExitCode) -> ExitCode {
    named(file, |path| match Config::load(path) {
        Ok(config) => match owner::of_host(path, &config) {
            Ok(()) => command(path, config),
            Err(error) => refused_owner(&error),
        },
        Err(error) => {
            terminal::complain(&format!("{error}"));
            ExitCode::from(EXIT_USAGE)
        }
    })
}

/// Says why root cannot work as the owner of a directory.
fn refused_owner(error: &anyhow::Error) -> ExitCode {
    terminal::complain(&format!("{error:#}").replace("; hint: ", "\n  hint: "));
    ExitCode::from(EXIT_USAGE)
}

/// Runs a command on a runtime of two threads: a host's database needs the others.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            // What hangs in a system call must not hold the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            terminal::complain(&format!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}
