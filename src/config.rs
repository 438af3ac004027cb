//! The agent's configuration: TOML in, one validated part per stage out.
//!
//! The keys of the first table in `docs/CONFIGURATION.md` are those of existing installations; the
//! others are grouped by stage. `config.sample.toml` lists all of them, and a test keeps it so.

mod backend; // [backend] and the way to it
mod collectors; // a section for each collector
mod host; // what this host calls itself
mod postgres; // where PostgreSQL is, and how to get in
pub mod layers; // the host's file, and what the backend lays over it
pub mod reader; // TOML, key by key
pub mod secrets; // passwords that others can read

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::layers::{Layers, Loaded, Remote};
use self::reader::{Bound, ConfigError, Document, Key, Section, Text};
use crate::{
    collect::{
        disk_usage::DiskUsageConfig, pg_log::PgLogConfig, pg_stats::PgStatsConfig,
        sysstat::SysstatConfig,
    },
    encoding::Encoding,
    forward::Order,
    intake::{IntakeConfig, Listen},
    link::{CertificateClock, LinkConfig, TlsConfig},
    metric::ORIGINAL_TYPES,
    queue::{BatchLimits, Budget, Durability, LogLimits, OnFull, QueueConfig, Retain},
    units,
};

/// Everything that `agent run` needs, one part per stage.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this agent is until it is registered, and where it keeps what it knows.
    pub agent: AgentConfig,
    /// How to reach the backend.
    pub link: LinkConfig,
    /// The collectors and when each of them runs.
    pub collectors: Collectors,
    /// Where other programs push; `None` when they do not.
    pub intake: Option<IntakeConfig>,
    /// The queue.
    pub queue: QueueConfig,
    /// How batches leave.
    pub forward: ForwardSettings,
    /// The local socket of `agent status`, `inspect` and `replay`.
    pub control_socket: PathBuf,
    /// How long the last push at a shutdown may take.
    pub shutdown_deadline: Duration,
    /// What is logged.
    pub log_level: tracing::Level,
}

/// `[collector]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The agent's id when an external token is used; a registered agent has its own.
    pub id: String,
    /// The host that the metrics are about.
    pub hostname: String,
    /// How often windows end and are pushed.
    pub push_interval: Duration,
    /// How often the backend is asked for a new configuration.
    pub config_pull_interval: Duration,
    /// Whether the backend is asked for one.
    pub remote_config: RemoteConfig,
    /// Identity, queue and socket live here.
    pub state_dir: PathBuf,
}

/// Whether the backend may change the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteConfig {
    /// It is asked.
    On,
    /// The host's own file is all.
    Off,
}

/// The collectors that are enabled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collectors {
    /// Host numbers.
    pub sysstat: Option<(Timing, SysstatConfig)>,
    /// File systems.
    pub disk_usage: Option<(Timing, DiskUsageConfig)>,
    /// PostgreSQL statistics, of each server.
    pub pg_stats: Option<(Timing, Vec<PgStatsConfig>)>,
    /// PostgreSQL's log, of each server that has it on this host.
    pub pg_log: Option<(Timing, Vec<PgLogConfig>)>,
    /// The agent's own health.
    pub agent: Option<Timing>,
}

/// When a collector runs and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From one collection to the next.
    pub interval: Duration,
    /// After this a collection is given up.
    pub deadline: Duration,
}

/// `[forward]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardSettings {
    /// Batches on their way at once at most.
    pub in_flight: usize,
    /// Which batches go first.
    pub order: Order,
    /// Bytes of compressed bodies a second that the backlog may take; `None`: all there is.
    pub backlog_rate: Option<u64>,
    /// gzip, zstd or identity.
    pub encoding: Encoding,
    /// Of gzip: 0 (fast) to 9 (small).
    pub gzip_level: u32,
    /// Of zstd: 1 (fast) to 19 (small).
    pub zstd_level: i32,
    /// The ceiling of the pause after the first failure.
    pub backoff_first: Duration,
    /// The highest ceiling.
    pub backoff_max: Duration,
}

const LEVELS: [(&str, tracing::Level); 5] = [
    ("info", tracing::Level::INFO),
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

impl Config {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, &reader::read_text(path)?)
    }

    /// Reads `text`, which came from `path`.
    pub fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let own = Text { file: path, text };
        Self::read_layers(own, None).map(|loaded| loaded.config)
    }

    /// Every key with its default.
    pub fn keys() -> Vec<Key> {
        let own = Text { file: Path::new("defaults"), text: "" };
        Self::read_layers(own, None).map(|loaded| loaded.keys).unwrap_or_default()
    }

    /// Reads the host's own text and, key by key over it, what the backend says. Of that, keys that
    /// are the host's alone are left out, and values are limited to what the host allows. Sections
    /// of the newer original collectors, named as the types that they send, are passed over.
    pub fn read_layers(own: Text<'_>, remote: Option<Text<'_>>) -> Result<Loaded, ConfigError> {
        let mut document = Document::layered(own, remote)?;
        let passed_over = document.pass_over(&ORIGINAL_TYPES);
        let bounds = Bounds::read(&mut document.section("remote"));
        let (agent, interval) = agent(&mut document.section("collector"), &bounds);
        let tls = tls(&mut document.section("tls").all_at_start());
        let mut link = backend::link(&mut document.section("backend").all_at_start(), tls);
        link.proxy = backend::proxy(&mut document.section("forward").all_at_start());
        let servers = postgres::read(&mut document, &bounds);
        let config = Self {
            collectors: collectors::read(&mut document, interval, &servers, &bounds),
            intake: intake(&mut document.section("intake")),
            queue: queue(&mut document.section("queue"), &agent.state_dir, &bounds),
            forward: forward(&mut document.section("forward")),
            control_socket: document
                .section("control")
                .at_start()
                .optional_path("socket")
                .unwrap_or_else(|| agent.state_dir.join("control.sock")),
            shutdown_deadline: document.section("shutdown").duration(
                "deadline",
                "10s",
                ["0s", "1h"],
            ),
            log_level: LEVELS[document.section("log").choice("level", &LEVELS.map(|l| l.0))].1,
            agent,
            link,
        };
        let withheld = document.take_withheld();
        Ok(Loaded { config, keys: document.finish()?, withheld, passed_over })
    }
}

/// Why the backend may set a key; those of collectors are beside them.
const PACE: &str = "says how often something is done, within `remote.interval_min`";
const DISK: &str = "says what is kept on disk, within `remote.queue_bytes_max`";
const MEMORY: &str = "says what is kept in memory, within `remote.memory_max`";
const KEPT: &str = "says how long records are kept, within `queue.bytes_max`";
const WIRE: &str = "says what the backend gets first, and how it is packed";

/// `[remote]`: how far the backend may go.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    interval: Bound,
    queue_bytes: Bound,
    memory: Bound,
    tables: Bound,
    databases: Bound,
}

impl Bounds {
    fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            interval: Bound::AtLeast(section.duration("interval_min", "5s", ["100ms", "1d"])),
            queue_bytes: Bound::AtMost(section.size("queue_bytes_max", "1GiB", ["16MiB", "1PiB"])),
            memory: Bound::AtMost(section.size("memory_max", "32MiB", ["1MiB", "1GiB"])),
            tables: Bound::AtMost(section.integer("tables_max", 1_000, 1..=10_000)),
            databases: Bound::AtMost(section.integer("databases_max", 1_000, 1..=100_000)),
        }
    }
}

fn agent(section: &mut Section<'_, '_>, bounds: &Bounds) -> (AgentConfig, Duration) {
    let config = AgentConfig {
        id: section.at_start().text("id", "collector-001"),
        hostname: host::named(&section.at_start().text("hostname", "")),
        push_interval: section.remote(PACE).within(bounds.interval).duration(
            "push_interval",
            "60",
            ["100ms", "1h"],
        ),
        config_pull_interval: section.remote(PACE).within(bounds.interval).duration(
            "config_pull_interval",
            "300",
            ["1s", "1d"],
        ),
        remote_config: if section.boolean("remote_config", true) {
            RemoteConfig::On
        } else {
            RemoteConfig::Off
        },
        state_dir: section.at_start().path("state_dir", "/var/lib/pganalytics"),
    };
    let section = section.remote(PACE).within(bounds.interval);
    (config, section.duration("interval", "60", ["100ms", "1d"]))
}

const CERTIFICATE_CLOCKS: [(&str, CertificateClock); 2] =
    [("server", CertificateClock::Server), ("host", CertificateClock::Host)];

fn tls(section: &mut Section<'_, '_>) -> TlsConfig {
    TlsConfig {
        verify: section.boolean("verify", true),
        cert_file: section.path("cert_file", "/etc/pganalytics/collector.crt"),
        key_file: section.path("key_file", "/etc/pganalytics/collector.key"),
        ca_file: section.optional_path("ca_file"),
        clock: CERTIFICATE_CLOCKS[section.choice("clock", &CERTIFICATE_CLOCKS.map(|c| c.0))].1,
    }
}

/// `None` unless `listen` is set.
fn intake(section: &mut Section<'_, '_>) -> Option<IntakeConfig> {
    let listen = section.optional_text("listen");
    let group = section.optional_text("group");
    let body_bytes_max = section.size("body_bytes_max", "8MiB", ["1KiB", "64MiB"]);
    let connections_max = section.integer("connections_max", 64, 1..=1_000);
    let connections_max = usize::try_from(connections_max).unwrap_or(64);
    let timeout = section.duration("timeout", "10s", ["100ms", "5min"]);
    match Listen::parse(&listen?) {
        Ok(listen) => {
            Some(IntakeConfig { listen, group, body_bytes_max, connections_max, timeout })
        }
        Err(error) => {
            section.reject("listen", error.what, error.hint);
            None
        }
    }
}

fn queue(section: &mut Section<'_, '_>, state_dir: &Path, bounds: &Bounds) -> QueueConfig {
    let memory = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let budget = budget(section, bounds);
    let segment_bytes_max = section.size("segment_bytes_max", "16MiB", ["64KiB", "16MiB"]);
    QueueConfig {
        dir: section.at_start().optional_path("dir").unwrap_or_else(|| state_dir.join("queue")),
        commit_interval: section.duration("commit_interval", "100ms", ["0s", "10s"]),
        limits: LogLimits {
            durability: DURABILITIES[section.choice("durability", &DURABILITIES.map(|d| d.0))].1,
            retain: retain(section),
            // What is evicted at once is a small part of a small queue.
            segment_bytes_max: segment_bytes_max.min(budget.bytes_max / 8),
            budget,
            batch: BatchLimits {
                raw_bytes_max: section.size("batch_bytes_max", "1MiB", ["16KiB", "16MiB"]),
                records_max: section.integer("batch_records_max", 1_000, 1..=100_000),
            },
            ring_bytes_max: memory(section.remote(MEMORY).within(bounds.memory).size(
                "ring_bytes_max",
                "4MiB",
                ["0B", "1GiB"],
            )),
            volatile_bytes_max: memory(section.remote(MEMORY).within(bounds.memory).size(
                "memory_max",
                "16MiB",
                ["1MiB", "1GiB"],
            )),
        },
    }
}

const DURABILITIES: [(&str, Durability); 3] =
    [("sync", Durability::Sync), ("interval", Durability::Interval), ("os", Durability::Os)];

const ON_FULL: [(&str, OnFull); 4] = [
    ("evict_oldest", OnFull::EvictOldest),
    ("evict_newest", OnFull::EvictNewest),
    ("block", OnFull::Block),
    ("thin", OnFull::Thin),
];

fn budget(section: &mut Section<'_, '_>, bounds: &Bounds) -> Budget {
    let percent = section.integer("disk_free_min", 5, 0..=90);
    let age_max = section.remote(KEPT).duration("age_max", "0s", ["0s", "3650d"]);
    Budget {
        bytes_max: section.remote(DISK).within(bounds.queue_bytes).size(
            "bytes_max",
            "1GiB",
            ["16MiB", "1PiB"],
        ),
        age_max: Some(age_max).filter(|age| !age.is_zero()),
        disk_free_min_percent: u8::try_from(percent).unwrap_or(u8::MAX),
        on_full: ON_FULL[section.choice("on_full", &ON_FULL.map(|policy| policy.0))].1,
    }
}

/// `off`, a size, or a duration.
fn retain(section: &mut Section<'_, '_>) -> Retain {
    let text = section.remote(KEPT).text("retain_delivered", "off");
    if text == "off" {
        return Retain::Off;
    }
    let size = units::parse_size(&text).map(Retain::Bytes);
    size.or_else(|| units::parse_duration(&text).map(Retain::Age)).unwrap_or_else(|| {
        let hint = "write off, a size like 512MiB, or a time like 24h";
        section.reject("retain_delivered", "is neither a size nor a time", hint);
        Retain::Off
    })
}

const ORDERS: [(&str, Order); 2] =
    [("fresh_first", Order::FreshFirst), ("oldest_first", Order::OldestFirst)];

const ENCODINGS: [(&str, Encoding); 3] =
    [("gzip", Encoding::Gzip), ("zstd", Encoding::Zstd), ("identity", Encoding::Identity)];

fn forward(section: &mut Section<'_, '_>) -> ForwardSettings {
    let backlog_rate = section.size("backlog_rate", "0B", ["0B", "1GiB"]);
    let settings = ForwardSettings {
        in_flight: usize::try_from(section.integer("in_flight", 4, 1..=16)).unwrap_or(4),
        order: ORDERS[section.remote(WIRE).choice("order", &ORDERS.map(|order| order.0))].1,
        backlog_rate: Some(backlog_rate).filter(|rate| *rate > 0),
        encoding: ENCODINGS[section.remote(WIRE).choice("encoding", &ENCODINGS.map(|e| e.0))].1,
        zstd_level: i32::try_from(section.integer("zstd_level", 3, 1..=19)).unwrap_or(3),
        gzip_level: u32::try_from(section.integer("gzip_level", 6, 0..=9)).unwrap_or(6),
        backoff_first: section.duration("backoff_first", "1s", ["10ms", "1h"]),
        backoff_max: section.duration("backoff_max", "300s", ["10ms", "1d"]),
    };
    if settings.backoff_first > settings.backoff_max {
        section.reject("backoff_first", "is longer than backoff_max", "make it shorter");
    }
    settings
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    /// C21
    #[test]
    fn existing_keys_have_their_documented_defaults() {
        let config = read("").unwrap();
        assert_eq!(config.agent.id, "collector-001");
        let own = host::named("");
        assert_eq!(config.agent.hostname, own, "two hosts with one name would be one collector");
        assert_eq!(config.agent.push_interval, Duration::from_secs(60));
        assert_eq!(config.agent.config_pull_interval, Duration::from_secs(300));
        assert_eq!(config.link.url, "https://localhost:8080");
        assert!(config.link.tls.verify && config.link.tls.ca_file.is_none());
        assert_eq!(config.link.tls.cert_file, Path::new("/etc/pganalytics/collector.crt"));
        assert_eq!(config.link.tls.key_file, Path::new("/etc/pganalytics/collector.key"));
        let (timing, pg_stats) = config.collectors.pg_stats.unwrap();
        assert_eq!(timing.interval, Duration::from_secs(60));
        assert_eq!(pg_stats.len(), 1);
        let PgStatsConfig { connection, databases, instance, .. } = pg_stats[0].clone();
        assert_eq!((&*instance, databases.len()), ("main", 0));
        assert_eq!((&*connection.host, connection.port), ("localhost", 5432));
        assert_eq!((&*connection.user, &*connection.database), ("postgres", "postgres"));
        assert!(connection.password.is_none());
        assert!(config.collectors.sysstat.is_some() && config.collectors.disk_usage.is_some());
    }

    /// C21, C22, C25, C28, C29
    #[test]
    fn existing_files_are_read() {
        let config = read(
            r#"
            [collector]
            id = "collector-007"
            hostname = "db-server-01.example.com"
            interval = 30
            push_interval = 15
            config_pull_interval = 600
            [backend]
            url = "https://api.example.com:8080"
            [postgres]
            host = "/run/postgresql"
            port = 5433
            user = "mon"
            password = "p://w\"d"
            database = "postgres"
            databases = "postgres, myapp, analytics"
            [tls]
            verify = false
            ca_file = "/etc/ca.crt"
            [pg_stats]
            interval = 120
            [sysstat]
            enabled = false
            "#,
        )
        .unwrap();
        assert_eq!(config.link.url, "https://api.example.com:8080");
        assert!(!config.link.tls.verify && config.collectors.sysstat.is_none());
        let (timing, pg_stats) = config.collectors.pg_stats.unwrap();
        assert_eq!(timing.interval, Duration::from_secs(120));
        assert_eq!(pg_stats[0].databases, ["postgres", "myapp", "analytics"]);
        let password = pg_stats[0].connection.password.clone().unwrap();
        assert_eq!(password.expose_secret(), "p://w\"d");
        let (timing, _) = config.collectors.disk_usage.unwrap();
        assert_eq!(timing.interval, Duration::from_secs(30), "collector.interval is the default");
    }

    #[test]
    fn the_backlog_has_no_rate_unless_it_is_given_one() {
        let forward = read("").unwrap().forward;
        assert_eq!((forward.in_flight, forward.order), (4, Order::FreshFirst));
        assert_eq!((forward.backlog_rate, forward.encoding), (None, Encoding::Gzip));
        let text = "[forward]\nbacklog_rate = \"256KiB\"\norder = \"oldest_first\"\nin_flight = 1
            encoding = \"zstd\"";
        let forward = read(text).unwrap().forward;
        assert_eq!((forward.in_flight, forward.order), (1, Order::OldestFirst));
        assert_eq!((forward.backlog_rate, forward.encoding), (Some(256 << 10), Encoding::Zstd));
        let plain = read("[forward]\nencoding = \"identity\"").unwrap().forward;
        assert_eq!(plain.encoding, Encoding::Identity);
        let error = read("[forward]\nencoding = \"deflate\"").unwrap_err();
        assert!(error.contains("one of gzip, zstd, identity"), "{error}");
    }

    #[test]
    fn the_intake_is_off_until_it_has_a_place() {
        assert_eq!(read("[intake]\nlisten = \"\"\nconnections_max = 3").unwrap().intake, None);
        let intake = read("[intake]\nlisten = \"unix:/run/a.sock\"").unwrap().intake.unwrap();
        assert_eq!(intake.listen, Listen::Unix("/run/a.sock".into()));
        assert_eq!((intake.group, intake.body_bytes_max), (None, 8 << 20));
        assert_eq!((intake.connections_max, intake.timeout), (64, Duration::from_secs(10)));
    }

    /// C24
    #[test]
    fn bad_values_are_refused_with_their_line() {
        let check = |text: &str, expected: &str| {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        };
        check("[backend]\nurl = \"localhost:8080\"", "agent.toml:2: backend.url");
        check("[backend]\nurl = \"ftp://host\"", "agent.toml:2: backend.url");
        check("[backend]\nurl = \"http://host\"", "agent.toml:2: backend.url");
        check("[pg_stats]\nlock_timeout = \"9s\"", "timeouts are out of order");
        check("[collector]\npush_interval = -5", "agent.toml:2: collector.push_interval = -5");
        check("[pg_stats]\nenabled = \"yes\"", "true or false");
        check("[intake]\nlisten = \"0.0.0.0:1\"", "agent.toml:2: intake.listen = \"0.0.0.0:1\"");
        check("[intake]\nlisten = \"unix:x.sock\"", "begins with /");
        check("[intake]\nlisten = \"here\"", "is not an address\n  hint: `unix:");
    }
}
