//! `agent config`.

use std::{path::PathBuf, process::ExitCode};

use super::EXIT_USAGE;
use crate::config::Config;

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
}

/// The file that `config init` prints.
pub const SAMPLE: &str = include_str!("../../config.sample.toml");

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    match command {
        Command::Init => {
            print!("{SAMPLE}");
            ExitCode::SUCCESS
        }
        Command::Check { config } => match Config::load(config) {
            Ok(_) => {
                println!("{}: fine", config.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_USAGE)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
