//! `agent config`.

use std::{path::PathBuf, process::ExitCode};

use super::{EXIT_USAGE, owner, refused_owner, run::identity};
use crate::cli::terminal;
use crate::{
    agent::Setup,
    config::{Layers, Remote, reader::ConfigError, secrets},
};

/// What can be done with configuration files.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a configuration with every key, its default and its meaning.
    Init,
    /// Read a configuration and say what is wrong with it.
    Check {
        /// The file to check.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the configuration that a start takes: every key with its value, and who has set it.
    ///
    /// The file, and over it the last good configuration of the backend. Secrets are not shown.
    Show {
        /// The file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// The file that `config init` prints.
pub const SAMPLE: &str = include_str!("../../config.sample.toml");

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let refused = |error: ConfigError| {
        terminal::complain(&format!("{error}"));
        ExitCode::from(EXIT_USAGE)
    };
    match command {
        Command::Init => terminal::told(SAMPLE),
        Command::Check { config } => match Layers::load(config).and_then(|layers| layers.read()) {
            Ok(loaded) => {
                for section in &loaded.passed_over {
                    terminal::complain(&section.to_string());
                }
                if let Some(warning) = secrets::exposed(config) {
                    terminal::complain(&warning.replace("; hint: ", "\n  hint: "));
                }
                terminal::note(&format!("{}: fine", config.display()));
                ExitCode::SUCCESS
            }
            Err(error) => refused(error),
        },
        Command::Show { config } => match Setup::load(config) {
            Ok(setup) => {
                if let Err(error) = owner::of_host(config, &setup.loaded.config) {
                    return refused_owner(&error);
                }
                let id = identity(&setup.loaded.config).map(|identity| identity.collector_id);
                // A host that is not registered has nothing of a backend.
                let setup = setup.with_kept(&id.unwrap_or_default());
                let over = setup.layers.remote.as_ref().map(Remote::name);
                terminal::note(&format!(
                    "# {}, over it: {}",
                    config.display(),
                    over.as_deref().unwrap_or("nothing")
                ));
                terminal::told(&setup.loaded.show())
            }
            Err(error) => refused(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// C21: the sample is complete, true, and loads as it is.
    #[test]
    fn the_sample_names_every_key_with_its_default() {
        Config::read(Path::new("config.sample.toml"), SAMPLE).expect("the sample loads");
        let mut section = "";
        let mut lines = Vec::new();
        for line in SAMPLE.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            }
            lines.push(format!("{section}.{}", line.trim_start_matches("# ")));
        }
        for key in Config::keys() {
            let expected = format!("{}.{} = {}", key.section, key.name, key.default);
            assert!(lines.contains(&expected), "the sample lacks: {expected}");
        }
        let known = Config::keys();
        for line in lines.iter().filter_map(|line| line.split_once(" = ")) {
            let Some((section, name)) = line.0.split_once('.') else { continue };
            if name.contains(' ') {
                continue;
            }
            let is_known = known.iter().any(|key| key.section == section && key.name == name);
            assert!(is_known, "the sample has a key that does not exist: {}", line.0);
        }
    }
}
