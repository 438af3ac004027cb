//! The host's file, and what the backend lays over it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Config,
    reader::{self, Change, ConfigError, Key, Origin, Text},
};

/// The texts that a configuration is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The host's file.
    pub file: PathBuf,
    /// What it said when it was read last.
    pub own: String,
    /// What the backend lays over it.
    pub remote: Option<Remote>,
}

/// A configuration of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its number at the backend.
    pub version: i64,
    /// TOML.
    pub text: String,
}

/// A sound configuration, and every key of it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the stages take.
    pub config: Config,
    /// Every key that exists, with its value and who has set it.
    pub keys: Vec<Key>,
}

impl Layers {
    /// The file at `file` alone.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self { file: file.to_owned(), own: reader::read_text(file)?, remote: None })
    }

    /// The same, with the file read again.
    pub fn with_file_again(&self) -> Result<Self, ConfigError> {
        Ok(Self { own: reader::read_text(&self.file)?, ..self.clone() })
    }

    /// The same file under another configuration of the backend.
    #[must_use]
    pub fn with_remote(&self, remote: Option<Remote>) -> Self {
        Self { remote, ..self.clone() }
    }

    /// Reads all of it.
    pub fn read(&self) -> Result<Loaded, ConfigError> {
        let own = Text { file: &self.file, text: &self.own };
        let Some(remote) = &self.remote else { return Config::read_layers(own, None) };
        let name = remote.name();
        let over = Text { file: Path::new(&name), text: &remote.text };
        Config::read_layers(own, Some(over))
    }
}

impl Remote {
    /// What messages call it.
    pub fn name(&self) -> String {
        format!("configuration {} of the backend", self.version)
    }
}

impl Loaded {
    /// Keys that `origin` has set.
    pub fn set_by(&self, origin: Origin) -> Vec<String> {
        self.keys.iter().filter(|key| key.origin == origin).map(Key::path).collect()
    }

    /// Keys whose value is another than in `before`.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let pairs = self.keys.iter().zip(&before.keys);
        pairs.filter(|(key, before)| !key.means(before)).map(|(key, _)| key.path()).collect()
    }

    /// Keys whose value is another than in `started` and takes effect at a start only.
    pub fn needs_restart(&self, started: &Self) -> Vec<String> {
        let pairs = self.keys.iter().zip(&started.keys);
        pairs
            .filter(|(key, before)| key.change == Change::Restart && !key.means(before))
            .map(|(key, _)| key.path())
            .collect()
    }

    /// The file that has these values, with who has set each of them.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in &self.keys {
            if key.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{}]", key.section);
                section = key.section;
            }
            let origin = match key.origin {
                Origin::Default => "",
                Origin::File => "  # the host's file",
                Origin::Remote => "  # the backend",
            };
            let _ = writeln!(text, "{} = {}{origin}", key.name, key.value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn layers(own: &str, remote: Option<&str>) -> Layers {
        let remote = remote.map(|text| Remote { version: 7, text: text.to_owned() });
        Layers { file: PathBuf::from("agent.toml"), own: own.to_owned(), remote }
    }

    fn refused(own: &str, remote: &str) -> String {
        layers(own, Some(remote)).read().map(|_| ()).expect_err(remote).to_string()
    }

    /// What the backend sets wins, what it leaves out is the host's, what both leave out is the
    /// default.
    #[test]
    fn the_backend_lies_over_the_file_key_by_key() {
        let own = "[collector]\ninterval = 30\n[sysstat]\ninterval = 5\n[pg_log]\nenabled = false";
        let remote = "[collector]\ninterval = 20\n[sysstat]\nenabled = true\n";
        let loaded = layers(own, Some(remote)).read().unwrap();
        let collectors = loaded.config.collectors.clone();
        let seconds = |timing: super::super::Timing| timing.interval;
        assert_eq!(seconds(collectors.sysstat.unwrap().0), Duration::from_secs(5));
        assert_eq!(seconds(collectors.disk_usage.unwrap().0), Duration::from_secs(20));
        assert!(collectors.pg_log.is_none());
        assert_eq!(loaded.set_by(Origin::Remote), ["collector.interval", "sysstat.enabled"]);
        assert_eq!(loaded.set_by(Origin::File), ["sysstat.interval", "pg_log.enabled"]);
        let shown = loaded.show();
        assert!(shown.contains("[sysstat]\nenabled = true  # the backend\n"), "{shown}");
        assert!(shown.contains("interval = 5  # the host's file\n"), "{shown}");
        assert!(shown.contains("[shutdown]\ndeadline = \"10s\"\n"), "{shown}");
    }

    /// Every key that is the host's own, set by the backend, makes the whole refused with its name,
    /// its line, and why; every other key is taken.
    #[test]
    fn the_backend_cannot_set_what_is_the_hosts() {
        for key in Config::keys() {
            let text = format!("[{}]\n\n{} = {}\n", key.section, key.name, key.default);
            let read = layers("", Some(&text)).read();
            let Some(why) = key.local else {
                let loaded = read.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(loaded.set_by(Origin::Remote), [key.path()]);
                continue;
            };
            let error = read.map(|_| ()).expect_err(&text).to_string();
            let place = format!("configuration 7 of the backend:3: {}: only", key.path());
            assert!(error.starts_with(&place) && error.contains(why), "{error}");
        }
    }

    /// The value of a secret is in no message and in no listing.
    #[test]
    fn a_secret_is_not_told() {
        let own = "[postgres]\npassword = \"hush\"\n";
        assert!(!refused(own, "[postgres]\npassword = \"hush\"\n").contains("hush"));
        assert!(!layers(own, None).read().unwrap().show().contains("hush"));
    }

    /// A mistake of two keys in two texts is told with the text it is in.
    #[test]
    fn mistakes_name_their_text() {
        let error =
            refused("[pg_stats]\nlock_timeout = \"4s\"", "[pg_stats]\nstatement_timeout = 3");
        assert!(
            error.starts_with("configuration 7 of the backend:2: pg_stats.statement"),
            "{error}"
        );
        let error = refused("[queue]\nbytes_max = 1", "[sysstat]\nenabled = true");
        assert!(error.starts_with("agent.toml:2: queue.bytes_max = 1"), "{error}");
        let error = refused("", "[sysstat\n");
        assert!(error.starts_with("configuration 7 of the backend:1: not valid TOML"), "{error}");
    }

    /// Only a change of meaning needs a restart, and going back needs none.
    #[test]
    fn what_needs_a_restart_is_named() {
        let started = layers("[queue]\nbytes_max = \"1GiB\"", None).read().unwrap();
        let check = |text: &str, expected: &[&str]| {
            let now = layers(text, None).read().unwrap();
            assert_eq!(now.needs_restart(&started), expected, "{text}");
        };
        check("", &[]);
        check("[backend]\nconnect_timeout = 10", &[]);
        check("[backend]\nconnect_timeout = 11", &["backend.connect_timeout"]);
        check("[queue]\ndir = \"/q\"\nbytes_max = \"2GiB\"", &["queue.dir"]);
        check("[forward]\nproxy = \"http://u:p@h:1\"", &["forward.proxy"]);
        check("[sysstat]\nenabled = false\n[log]\nlevel = \"debug\"", &[]);
    }
}
