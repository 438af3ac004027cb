//! The host's file, and what the backend lays over it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Config,
    reader::{self, Change, ConfigError, Key, Origin, Problem, Text, Withheld},
};
use crate::metric::pg_stats::MAIN_INSTANCE;

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
    /// What the backend has set and does not get.
    pub withheld: Vec<Withheld>,
    /// Sections of the original collectors that this agent does not have, with what to say of each.
    pub passed_over: Vec<Problem>,
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

    /// What the backend has set and does not get, for a person; none when it gets everything.
    pub fn told_withheld(&self) -> Option<String> {
        let problems: Vec<_> = self.withheld.iter().map(|it| it.problem.clone()).collect();
        let file = problems.first()?.file.clone();
        Some(ConfigError::of(file, problems, 0).to_string())
    }

    /// Keys whose value is another than in `before`, also of servers that only one of them has.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        self.differing(before, |_| true)
    }

    /// Keys whose value is another than in `started` and takes effect at a start only.
    pub fn needs_restart(&self, started: &Self) -> Vec<String> {
        self.differing(started, |key| key.change == Change::Restart)
    }

    fn differing(&self, before: &Self, counts: impl Fn(&Key) -> bool) -> Vec<String> {
        let by_path = |loaded: &'_ Self| -> HashMap<String, Key> {
            loaded.keys.iter().map(|key| (key.path(), key.clone())).collect()
        };
        let (earlier, now) = (by_path(before), by_path(self));
        let differs = |key: &&Key| earlier.get(&key.path()).is_none_or(|it| !key.means(it));
        let here = self.keys.iter().filter(differs);
        let gone = before.keys.iter().filter(|key| !now.contains_key(&key.path()));
        here.chain(gone).filter(|key| counts(key)).map(Key::path).collect()
    }

    /// The file that has these values, with who has set each of them.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut sections: Vec<&str> = Vec::new();
        for key in &self.keys {
            if !sections.contains(&key.section.as_str()) {
                sections.push(&key.section);
            }
        }
        let entries = sections.iter().filter_map(|section| section.split_once('.'));
        let several: HashSet<&str> = entries.map(|(section, _)| section).collect();
        for section in sections {
            let gap = if text.is_empty() { "" } else { "\n" };
            let name = section.split('.').next().unwrap_or_default();
            let _ = if several.contains(name) {
                writeln!(text, "{gap}[[{name}]]")
            } else {
                writeln!(text, "{gap}[{name}]")
            };
            for key in self.keys.iter().filter(|key| key.section == section) {
                show_key(&mut text, key);
            }
        }
        text
    }
}

fn show_key(text: &mut String, key: &Key) {
    let origin = match key.origin {
        Origin::Default => "",
        Origin::File => "  # the host's file",
        Origin::Remote => "  # the backend",
    };
    let _ = writeln!(text, "{} = {}{origin}", key.name, key.value);
}

/// A host's file for a text of a backend that is checked where the host is not known: it has the
/// servers that the text names, and nothing else.
pub fn stand_in_for(remote: &str) -> String {
    let table: Option<toml::Table> = remote.parse().ok();
    let servers = table.as_ref().and_then(|table| table.get("postgres")?.as_array());
    let names = servers.into_iter().flatten().filter_map(|server| server.get("name")?.as_str());
    let names: BTreeSet<&str> = names.filter(|name| *name != MAIN_INSTANCE).collect();
    if names.is_empty() {
        return String::new();
    }
    let entry = |name: &&str| format!("[[postgres]]\nname = {name:?}\n");
    let known = names.iter().filter(|name| reader::is_entry_name(name)).map(entry);
    std::iter::once("[[postgres]]\n".to_owned()).chain(known).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{reader::WithheldKind, *};
    use crate::{collect::pg_stats::PgStatsConfig, metric::ORIGINAL_TYPES};

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

    /// A key that is not marked as the backend's to set is left out, alone, and told with its line;
    /// every other key is taken.
    #[test]
    fn the_backend_gets_what_is_marked_and_nothing_else() {
        for key in Config::keys() {
            let text = format!("[{}]\n\n{} = {}\n", key.section, key.name, key.default);
            let loaded = layers("", Some(&text)).read().unwrap_or_else(|error| panic!("{error}"));
            let told = loaded.told_withheld();
            if key.remote.is_some() {
                assert_eq!((loaded.set_by(Origin::Remote), told), (vec![key.path()], None));
                continue;
            }
            assert_eq!(loaded.set_by(Origin::Remote), [""; 0]);
            let told = told.expect("it is told");
            let place = format!("configuration 7 of the backend:3: {}: only", key.path());
            assert!(told.starts_with(&place), "{told}");
            assert_eq!(loaded.withheld[0].kind, WithheldKind::Forbidden);
        }
    }

    /// One that was stored when more was allowed loses only what is forbidden now.
    #[test]
    fn an_overlay_loses_only_what_is_forbidden() {
        let remote = "[sysstat]\ninterval = 20\n[pg_log]\nline_prefix = \"%m [100] \"\n\
                      redact = false\nstart_at = \"beginning\"\n[backend]\nurl = \"https://x\"\n";
        let loaded = layers("[pg_log]\nline_prefix = \"%m [%p] \"", Some(remote)).read().unwrap();
        assert_eq!(loaded.set_by(Origin::Remote), ["sysstat.interval"]);
        let told = loaded.told_withheld().unwrap();
        for key in ["pg_log.line_prefix", "pg_log.redact", "pg_log.start_at", "backend.url"] {
            assert_eq!(told.matches(&format!("{key}: only the host's own")).count(), 1, "{told}");
        }
        let (_, pg_log) = loaded.config.collectors.pg_log.unwrap();
        assert_eq!(pg_log[0].prefix.as_deref(), Some("%m [%p] "));
    }

    /// The backend's value is limited to what `[remote]` allows, or to what the host itself has set.
    #[test]
    fn a_value_beyond_the_hosts_bounds_is_limited() {
        let check = |own: &str, remote: &str, value: &str, told: &str| {
            let loaded = layers(own, Some(remote)).read().unwrap();
            let shown = loaded.show();
            assert!(shown.contains(&format!("{value}  # the backend\n")), "{shown}");
            let text = loaded.told_withheld().unwrap_or_default();
            assert!(text.contains(told) && text.is_empty() == told.is_empty(), "{text}");
        };
        let fast = "[sysstat]\ninterval = 1";
        check("", fast, "interval = \"5s\"", "sysstat.interval = 1: the host allows \"5s\"");
        check("[remote]\ninterval_min = \"500ms\"", fast, "interval = 1", "");
        check("[sysstat]\ninterval = \"2s\"", fast, "interval = \"2s\"", "allows \"2s\"");
        check("", "[collector]\npush_interval = \"200ms\"", "push_interval = \"5s\"", "allows");
        let large = "[queue]\nbytes_max = \"1TiB\"";
        check("", large, "bytes_max = 1073741824", "queue.bytes_max = \"1TiB\": the host allows");
        check("[queue]\nbytes_max = \"2TiB\"", large, "bytes_max = \"1TiB\"", "");
        check("", "[queue]\nmemory_max = \"1GiB\"", "memory_max = 33554432", "the host allows");
        check("", "[pg_stats]\ntables_max = 9999", "tables_max = 1000", "the host allows 1000");
        let on = "[pg_log]\nenabled = true";
        check("[pg_log]\nenabled = false", on, "enabled = false", "the host allows false");
        check("", on, "enabled = true", "");
        let loaded = layers("", Some(fast)).read().unwrap();
        assert_eq!(loaded.config.collectors.sysstat.unwrap().0.interval, Duration::from_secs(5));
    }

    /// A list of the backend has as many names as the host allows, or has set itself; that it was
    /// cut is told once, without the names.
    #[test]
    fn a_list_beyond_the_hosts_bounds_is_cut() {
        let names = |count: u32| (0..count).map(|n| format!("d{n}")).collect::<Vec<_>>();
        let text = |count: u32| format!("[postgres]\ndatabases = {:?}\n", names(count));
        let check = |own: &str, count: u32, kept: u32| {
            let loaded = layers(own, Some(&text(count))).read().unwrap();
            let (_, pg_stats) = loaded.config.collectors.pg_stats.clone().unwrap();
            assert_eq!(pg_stats[0].databases, names(kept));
            assert_eq!(loaded.withheld.len(), usize::from(kept < count));
            let told = loaded.told_withheld().unwrap_or_default();
            let allowed = format!("the host allows the first {kept}");
            assert!(kept == count || (told.contains(&allowed) && told.len() < 400), "{told}");
            assert!(!loaded.show().contains(&format!("\"d{kept}\"")));
            let again = layers(own, Some(&text(count + 1))).read().unwrap();
            assert_eq!(
                again.changed_since(&loaded),
                [""; 0],
                "a list that is cut in the same way has not changed"
            );
        };
        check("", 1_000, 1_000);
        check("", 60_000, 1_000);
        check("[remote]\ndatabases_max = 2", 3, 2);
        check(&text(1_200), 1_200, 1_200);
        check(&text(1_200), 2_000, 1_200);
    }

    /// A text of the backend is what it says: nothing of the host's environment is put into it.
    #[test]
    fn variables_are_not_expanded_for_the_backend() {
        let loaded = layers("", Some("[postgres]\ndatabases = [\"${HOME}\", \"$HOME\"]")).read();
        let (_, pg_stats) = loaded.unwrap().config.collectors.pg_stats.unwrap();
        assert_eq!(pg_stats[0].databases, ["${HOME}", "$HOME"]);
    }

    /// A value of `key` that is sound, and another than the host's.
    fn other_value(key: &reader::Key, flag: bool) -> String {
        match (key.section.as_str(), key.name) {
            ("pg_log", "line_prefix") => "\"%m [100] \"".to_owned(),
            ("pg_log", "timezone") => "\"UTC\"".to_owned(),
            ("pg_log", "path") => "\"/etc\"".to_owned(),
            ("pg_log", "start_at") => "\"beginning\"".to_owned(),
            _ if ["true", "false"].contains(&key.default.as_str()) => flag.to_string(),
            _ => key.default.clone(),
        }
    }

    proptest! {
        /// Whatever the backend sets, the log is read as the host says, or not at all.
        #[test]
        fn what_leaves_of_a_log_never_grows(
            picks in proptest::collection::vec((0..3_u8, proptest::bool::ANY), Config::keys().len()),
            is_on in proptest::bool::ANY,
        ) {
            let mut remote = std::collections::BTreeMap::<String, String>::new();
            for (key, (pick, flag)) in Config::keys().iter().zip(picks) {
                if pick == 0 {
                    let lines = remote.entry(key.section.clone()).or_default();
                    let _ = writeln!(lines, "{} = {}", key.name, other_value(key, flag));
                }
            }
            let sections = remote.iter().map(|(section, lines)| format!("[{section}]\n{lines}"));
            let remote: String = sections.collect();
            let own = format!("[pg_log]\nenabled = {is_on}\npath = \"/log\"\n");
            let alone = layers(&own, None).read().unwrap().config.collectors.pg_log;
            let loaded = layers(&own, Some(&remote)).read().unwrap_or_else(|e| panic!("{e}"));
            if let Some((_, pg_log)) = loaded.config.collectors.pg_log {
                prop_assert_eq!(Some(pg_log), alone.map(|(_, pg_log)| pg_log));
            }
        }
    }

    const TWO: &str = "[[postgres]]\nhost = \"/run/a\"\n[[postgres]]\nname = \"two\"\nport = 5433
        databases = \"x\"\n";

    /// Each server is its own; a backend says which databases of one are visited, and nothing else.
    #[test]
    fn several_servers_are_told_apart() {
        let servers = |loaded: &Loaded| -> Vec<(String, u16, String)> {
            let (_, all) = loaded.config.collectors.pg_stats.clone().unwrap();
            let one = |it: PgStatsConfig| (it.instance, it.connection.port, it.databases.join(" "));
            all.into_iter().map(one).collect()
        };
        let expect = |main: &str, two: &str| {
            [("main".to_owned(), 5432, main.to_owned()), ("two".to_owned(), 5433, two.to_owned())]
        };
        let alone = layers(TWO, None).read().unwrap();
        assert_eq!(servers(&alone), expect("", "x"));
        let shown = alone.show();
        let parts =
            ["[[postgres]]\nname = \"main\"\n", "[[postgres]]\nname = \"two\"  # the host's"];
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        assert!(layers(&shown, None).read().unwrap().changed_since(&alone).is_empty(), "{shown}");
        let remote = "[[postgres]]\nname = \"two\"\ndatabases = \"y\"\nport = 1\n\
                      [[postgres]]\nname = \"three\"\nhost = \"h\"\n";
        let both = layers(TWO, Some(remote)).read().unwrap();
        assert_eq!(servers(&both), expect("", "y"));
        assert_eq!(both.set_by(Origin::Remote), ["postgres.two.databases"]);
        assert_eq!(both.changed_since(&alone), ["postgres.two.databases"]);
        let told = both.told_withheld().unwrap();
        assert!(told.contains("backend:4: postgres.two.port: only the host's own"), "{told}");
        assert!(told.contains("backend:5: [[postgres]] \"three\": the host's own file"), "{told}");
        let one = layers("[postgres]\nhost = \"/run/a\"", None).read().unwrap();
        assert!(one.changed_since(&alone).contains(&"postgres.two.port".to_owned()));
        let checked = layers(&stand_in_for(remote), Some(remote)).read().unwrap();
        assert_eq!(checked.withheld.len(), 2, "the port and the host: {:?}", checked.withheld);
    }

    /// The value of a secret is in no message and in no listing.
    #[test]
    fn a_secret_is_not_told() {
        let own = "[postgres]\npassword = \"hush\"\n";
        let both = layers(own, Some("[postgres]\npassword = \"hush-hush\"\n")).read().unwrap();
        assert!(!both.told_withheld().unwrap().contains("hush"));
        assert!(!both.show().contains("hush"));
        assert!(!layers(own, None).read().unwrap().show().contains("hush"));
    }

    /// Sections of the newer original collectors load, in either text, and are told one by one; a
    /// key of that name is a mistake, and so is a section that nobody has.
    #[test]
    fn sections_of_newer_originals_are_passed_over() {
        let section = |name| format!("[{name}]\nenabled = true\nx = 1\n");
        let sections = ORIGINAL_TYPES.map(section).concat();
        let own = format!("{sections}[sysstat]\ninterval = 30\n");
        let loaded = layers(&own, Some("[pg_locks]\ninterval = 5\n")).read().unwrap();
        let told: Vec<_> = loaded.passed_over.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 8 + 1, "{told:?}");
        for (n, name) in ORIGINAL_TYPES.iter().enumerate() {
            let place = format!("agent.toml:{}: [{name}]: this agent does not", 3 * n + 1);
            assert!(told[n].starts_with(&place), "{told:?}");
        }
        assert!(told[8].starts_with("configuration 7 of the backend:1: [pg_locks]"), "{told:?}");
        assert_eq!(loaded.set_by(Origin::File), ["sysstat.interval"]);
        assert!(layers("", None).read().unwrap().passed_over.is_empty());
        for (wrong, what) in [("pg_locks = 1", "unknown section"), ("[pg_lock]", "pg_log")] {
            let error = layers(wrong, None).read().map(|_| ()).expect_err(wrong).to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    /// A mistake of two keys in two texts is told with the text it is in.
    #[test]
    fn mistakes_name_their_text() {
        let error = refused("[pg_stats]\nlock_timeout = \"4s\"", "[sysstat]\ninterval = \"soon\"");
        assert!(error.starts_with("configuration 7 of the backend:2: sysstat.interval"), "{error}");
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
