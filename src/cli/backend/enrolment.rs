//! `agent backend secret` and `agent backend collector`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use comfy_table::Cell;

use super::load;
use crate::backend::store::{Collector, KeptSecret};
use crate::backend::{self, SecretRequest};
use crate::cli::screen::{Screen, right};
use crate::cli::terminal::{self, tell};
use crate::clock;
use crate::units;

/// What can be done with registration secrets.
#[derive(Debug, clap::Subcommand)]
pub enum SecretCommand {
    /// Make a secret that lets new hosts register, and print it: this once.
    Add(AddSecret),
    /// List the secrets, without themselves.
    List(ConfigFile),
    /// End a secret; hosts that have registered with it stay.
    Revoke(RevokeSecret),
}

/// What can be done with collectors.
#[derive(Debug, clap::Subcommand)]
pub enum CollectorCommand {
    /// List the collectors.
    List(ConfigFile),
    /// Give a collector another name; the old one stays reserved for it.
    Rename(RenameCollector),
    /// Make the secret with which one host comes back as this collector, and print it.
    Release(OneCollector),
    /// Take a collector's rights away; what it has stored stays.
    Remove(OneCollector),
}

impl SecretCommand {
    pub(super) fn config_file(&self) -> Option<&Path> {
        match self {
            Self::Add(AddSecret { file, .. })
            | Self::List(file)
            | Self::Revoke(RevokeSecret { file, .. }) => file.config.as_deref(),
        }
    }
}

impl CollectorCommand {
    pub(super) fn config_file(&self) -> Option<&Path> {
        match self {
            Self::List(file)
            | Self::Rename(RenameCollector { file, .. })
            | Self::Release(OneCollector { file, .. })
            | Self::Remove(OneCollector { file, .. }) => file.config.as_deref(),
        }
    }
}

/// Where the backend's settings are.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// The backend's own TOML file; without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A secret to make.
#[derive(Debug, clap::Args)]
pub struct AddSecret {
    /// What to call it: the team, the site, the batch of hosts that gets it.
    pub name: String,

    /// How often it may be used [default: any number].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub uses: Option<u64>,

    /// How long it lasts, such as 7d [default: for ever].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub expires: Option<Duration>,

    /// It also takes names back that are registered: for fleets whose collectors register at every
    /// start. Who has it can become any host.
    #[arg(long)]
    pub reclaims: bool,

    #[command(flatten)]
    file: ConfigFile,
}

/// A secret to end.
#[derive(Debug, clap::Args)]
pub struct RevokeSecret {
    /// Its name.
    pub name: String,

    #[command(flatten)]
    file: ConfigFile,
}

/// A collector to rename.
#[derive(Debug, clap::Args)]
pub struct RenameCollector {
    /// Its name or its id.
    pub name: String,
    /// Its name from now on.
    pub to: String,

    #[command(flatten)]
    file: ConfigFile,
}

/// A collector.
#[derive(Debug, clap::Args)]
pub struct OneCollector {
    /// Its name or its id.
    pub name: String,

    #[command(flatten)]
    file: ConfigFile,
}

pub(super) async fn secret(command: SecretCommand) -> anyhow::Result<()> {
    match command {
        SecretCommand::Add(args) => {
            let AddSecret { name, uses, expires, reclaims, file } = args;
            let request = SecretRequest { name, uses_max: uses, life: expires, reclaims };
            let secret = backend::add_secret(&load(file.config)?, request).await?;
            // On a line of its own, for a program that passes it on.
            tell(&format!("{secret}\n"))?;
            terminal::complain(
                "it is kept nowhere else; a host registers with it in --secret-file",
            );
        }
        SecretCommand::List(file) => {
            let secrets = backend::secrets(&load(file.config)?).await?;
            tell(&secrets_table(&Screen::stdout(clock::now()), &secrets))?;
        }
        SecretCommand::Revoke(RevokeSecret { name, file }) => {
            backend::revoke_secret(&load(file.config)?, &name).await?;
            tell(&format!("the secret {name} is revoked\n"))?;
        }
    }
    Ok(())
}

pub(super) async fn collector(command: CollectorCommand) -> anyhow::Result<()> {
    match command {
        CollectorCommand::List(file) => {
            let collectors = backend::collectors(&load(file.config)?).await?;
            tell(&collectors_table(&Screen::stdout(clock::now()), &collectors))?;
        }
        CollectorCommand::Rename(RenameCollector { name, to, file }) => {
            backend::rename(&load(file.config)?, &name, &to).await?;
            tell(&format!("the collector {name} is {to} now\n"))?;
        }
        CollectorCommand::Release(OneCollector { name, file }) => {
            let released = backend::release_named(&load(file.config)?, &name).await?;
            tell(&format!("{}\n", released.secret))?;
            terminal::complain(&format!(
                "for one `agent register --force --name {name}`, until {}",
                clock::rfc3339(released.expires_at)
            ));
        }
        CollectorCommand::Remove(OneCollector { name, file }) => {
            backend::remove(&load(file.config)?, &name).await?;
            tell(&format!("the collector {name} is removed; its metrics stay\n"))?;
        }
    }
    Ok(())
}

fn secrets_table(screen: &Screen, secrets: &[KeptSecret]) -> String {
    let mut table = screen.table(&["secret", ">uses", ">of", ">ends in", "state", "right"]);
    for secret in secrets {
        let state = match secret {
            KeptSecret { revoked_at: Some(_), .. } => "revoked",
            good if good.is_good(screen.now) => "good",
            _ => "used up",
        };
        let is_over = secret.expires_at.is_some_and(|end| end <= screen.now);
        let may = match (secret.reclaims, secret.collector_id) {
            (_, Some(_)) => "one host comes back",
            (true, None) => "new hosts, and names taken back",
            (false, None) => "new hosts",
        };
        table.add_row(vec![
            Cell::new(&secret.name),
            right(secret.uses),
            right(secret.uses_max.map_or_else(|| "any".to_owned(), |max| max.to_string())),
            right(secret.expires_at.map_or_else(|| "never".to_owned(), |end| screen.until(end))),
            Cell::new(if is_over && state != "revoked" { "over" } else { state }),
            Cell::new(may),
        ]);
    }
    screen.print(table)
}

fn collectors_table(screen: &Screen, collectors: &[Collector]) -> String {
    let mut table = screen.table(&["collector", "host", ">last push", "state", "id"]);
    for collector in collectors {
        let state = match collector {
            Collector { deregistered_at: Some(_), .. } => "removed",
            Collector { name_collides: true, .. } => "rename it: the name is another's",
            Collector { last_seen_at: None, .. } => "never pushed",
            _ => "registered",
        };
        table.add_row(vec![
            Cell::new(&collector.name),
            Cell::new(&collector.hostname),
            right(collector.last_seen_at.map_or_else(|| "-".to_owned(), |at| screen.age(at))),
            Cell::new(state),
            Cell::new(collector.id),
        ]);
    }
    screen.print(table)
}

fn duration(text: &str) -> Result<Duration, String> {
    let life = units::parse_duration(text).filter(|life| !life.is_zero());
    life.ok_or_else(|| "a duration such as 12h or 7d is needed".to_owned())
}
