//! `agent backend`: serves, and adds or shuts out users.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};

use crate::backend::store::Role;
use crate::backend::{self, Backend, BackendConfig, BackendError, Running, UserRequest};
use crate::cli::{owner, terminal};
use crate::config::{reader::ConfigError, secrets};

mod enrolment; // secrets and collectors

pub use enrolment::{CollectorCommand, SecretCommand};

/// Serve as the backend that agents report to.
///
/// The first start makes an authority, a certificate and a registration secret in the data
/// directory; later starts use them.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// The backend's own TOML file; without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Args {
    /// Becomes the owner of the backend's directory, where this is root and that is not. What is
    /// wrong with the configuration is the command's to say.
    pub fn become_owner(&self) -> anyhow::Result<()> {
        let file = match &self.command {
            None => self.config.as_deref(),
            Some(Command::User(UserCommand::Add(user))) => user.config.as_deref(),
            Some(Command::User(UserCommand::Disable(user))) => user.config.as_deref(),
            Some(Command::Secret(command)) => command.config_file(),
            Some(Command::Collector(command)) => command.config_file(),
        };
        match load(file.map(Path::to_owned)) {
            Ok(config) => owner::of_backend(file, &config),
            Err(_) => Ok(()),
        }
    }
}

/// What `agent backend` does besides serving.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Add, or shut out, a user of the API.
    #[command(subcommand)]
    User(UserCommand),
    /// Add, list or revoke what lets new hosts register.
    #[command(subcommand)]
    Secret(SecretCommand),
    /// List, rename, release or remove collectors.
    #[command(subcommand)]
    Collector(CollectorCommand),
}

/// What can be done with users.
#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Add a user; the password is asked for, or read from standard input.
    Add(AddUser),
    /// Shut a user out; its sessions end.
    Disable(DisableUser),
}

/// A user to add.
#[derive(Debug, clap::Args)]
pub struct AddUser {
    /// The name to log in with.
    pub username: String,

    /// What it may do: viewer, user or admin.
    #[arg(long, default_value = "viewer", value_parser = role)]
    pub role: Role,

    /// Where to write to the user.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub email: String,

    /// The user's name for people.
    #[arg(long, value_name = "NAME")]
    pub full_name: Option<String>,

    /// The backend's own TOML file; without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A user to shut out.
#[derive(Debug, clap::Args)]
pub struct DisableUser {
    /// The name it logs in with.
    pub username: String,

    /// The backend's own TOML file; without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the command; serving ends with `shutdown`. Exit codes: 0 done, 1 failed at run time, 64 a
/// setting or a key of the backend is wrong.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> ExitCode {
    let done = match args.command {
        None => serve(args.config, shutdown).await,
        Some(Command::User(UserCommand::Add(user))) => add_user(user).await,
        Some(Command::User(UserCommand::Disable(user))) => disable_user(user).await,
        Some(Command::Secret(command)) => enrolment::secret(command).await,
        Some(Command::Collector(command)) => enrolment::collector(command).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&format!(
                "agent backend: {}",
                format!("{error:#}").replace("; hint: ", "\n  hint: ")
            ));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is_setting = match error.downcast_ref() {
        Some(BackendError::Keys(_) | BackendError::Password(_)) => true,
        Some(_) => false,
        None => error.is::<ConfigError>(),
    };
    if is_setting { 64 } else { 1 }
}

async fn serve(config: Option<PathBuf>, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    if let Some(warning) = config.as_deref().and_then(secrets::exposed) {
        tracing::warn!("{warning}");
    }
    let running = Backend::start(load(config)?).await?;
    terminal::note(&greeting(&running));
    shutdown.await;
    running.stop().await;
    Ok(())
}

fn greeting(running: &Running) -> String {
    use std::fmt::Write as _;
    let mut text = format!("the backend serves at https://{}\n", running.address());
    if let Some(page) = running.page_address() {
        let _ = writeln!(text, "its page:             http://{page}/");
    }
    let _ = writeln!(text, "agents trust:         {}", running.ca_file().display());
    let _ = writeln!(text, "agents register with: {}", running.secret_file().display());
    text
}

async fn add_user(args: AddUser) -> anyhow::Result<()> {
    let config = load(args.config)?;
    let request = UserRequest {
        password: password()?,
        username: args.username,
        email: args.email,
        full_name: args.full_name,
        role: args.role,
    };
    let (username, role) = (request.username.clone(), request.role.as_str());
    backend::add_user(&config, request).await?;
    terminal::note(&format!("added the user {username} with the role {role}"));
    Ok(())
}

async fn disable_user(args: DisableUser) -> anyhow::Result<()> {
    let config = load(args.config)?;
    backend::disable_user(&config, &args.username).await?;
    terminal::note(&format!("the user {} is shut out", args.username));
    Ok(())
}

fn load(config: Option<PathBuf>) -> Result<BackendConfig, ConfigError> {
    config.map_or_else(|| Ok(BackendConfig::default()), |file| BackendConfig::load(&file))
}

/// Asked for twice at a terminal; else the first line of standard input.
fn password() -> anyhow::Result<SecretString> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("cannot read the password")?;
        return Ok(SecretString::from(line.trim_end_matches(['\r', '\n'])));
    }
    let ask = |prompt: &str| {
        let typed = rpassword::prompt_password(prompt).context("cannot read the password");
        typed.map(SecretString::from)
    };
    let (first, second) = (ask("Password: ")?, ask("Again: ")?);
    if first.expose_secret() != second.expose_secret() {
        bail!("the passwords differ; hint: run the command again");
    }
    Ok(first)
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "viewer, user or admin".to_owned())
}
