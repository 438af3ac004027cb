//! A whole site: a backend in this process, a network that misbehaves on command, and a registered
//! host whose agent runs as a process of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pganalytics::backend::store::StoredMetric;
use serde_json::Value;

use super::backend::Served;
use super::process::{Finished, Process, agent, run};
use super::proxy::Proxy;
use super::relay::{Keys, Relay};
use super::{until, until_async};

/// What every agent here is told: short intervals, no PostgreSQL, nothing of itself.
const CONFIG: &str = r#"
[collector]
hostname = "db1.example.com"
push_interval = "300ms"
state_dir = "{dir}/state"
[backend]
url = "https://127.0.0.1:{port}"
connect_timeout = "1s"
request_timeout = "2s"
[tls]
cert_file = "{dir}/collector.crt"
key_file = "{dir}/collector.key"
[queue]
dir = "{dir}/small/queue"
[forward]
backoff_first = "50ms"
backoff_max = "200ms"
[shutdown]
deadline = "3s"
[sysstat]
interval = "100ms"
[disk_usage]
interval = "500ms"
[pg_stats]
enabled = false
[pg_log]
enabled = false
[agent]
enabled = false
"#;

const START_LIMIT: Duration = Duration::from_secs(30);

/// Mounts "$1" with the options "$2" and becomes the rest of the arguments.
const MOUNTED: &str = r#"mount -t tmpfs -o "$2" none "$1" && shift 2 && exec "$@""#;

/// One backend, one network, one host.
pub struct Site {
    pub served: Served,
    pub proxy: Proxy,
    pub directory: tempfile::TempDir,
    output: tempfile::TempDir,
}

impl Site {
    /// A site whose host is registered and has no agent running.
    pub async fn registered() -> Self {
        Self::registered_in(None).await
    }

    /// The same with another store of the backend's than SQLite in its directory.
    pub async fn registered_in(store: Option<String>) -> Self {
        let served = Served::start_with(|config| config.store = store).await;
        let proxy = Proxy::start(served.running().address()).await;
        let (directory, output) = (super::directory(), super::directory());
        let site = Self { served, proxy, directory, output };
        site.configure("");
        let secret = site.directory.path().join("secret");
        fs_err::write(&secret, site.served.secret()).expect("write the secret");
        let authority = site.served.running().ca_file();
        let done = site.command(&[
            "register",
            "--secret-file",
            secret.to_str().expect("UTF-8"),
            "--ca",
            authority.to_str().expect("UTF-8"),
        ]);
        assert_eq!(done.code, Some(0), "{done:?}");
        site
    }

    /// Writes the configuration, with `more` at its end.
    pub fn configure(&self, more: &str) {
        let text = CONFIG
            .replace("{dir}", self.directory.path().to_str().expect("UTF-8"))
            .replace("{port}", &self.proxy.address().port().to_string());
        fs_err::write(self.config(), text + more).expect("write the configuration");
    }

    /// Puts a relay between network and backend that sees requests.
    pub async fn relay(&self) -> Relay {
        let running = self.served.running();
        let keys = running.ca_file().parent().expect("a directory").to_owned();
        let keys = Keys {
            server: [keys.join("server.crt"), keys.join("server.key")],
            agent: ["collector.crt", "collector.key"].map(|name| self.directory.path().join(name)),
            authority: running.ca_certificate().to_owned(),
        };
        let relay = Relay::start(running.address(), &keys).await;
        self.proxy.retarget(relay.address());
        relay
    }

    /// Where processes write what they say.
    pub fn output(&self) -> &Path {
        self.output.path()
    }

    /// The agent's configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("agent.toml")
    }

    /// The queue's directory.
    pub fn queue(&self) -> PathBuf {
        self.directory.path().join("small/queue")
    }

    /// Starts `agent run` and waits until it runs.
    #[track_caller]
    pub fn run(&self) -> Process {
        let agent = self.start();
        until("the agent runs", START_LIMIT, || agent.stderr().contains("the agent runs"));
        agent
    }

    /// Starts `agent run`.
    pub fn start(&self) -> Process {
        self.start_with(|_| ())
    }

    /// The same with something about the command changed.
    pub fn start_with(&self, change: impl FnOnce(&mut Command)) -> Process {
        let config = self.config();
        let mut command = agent(["run", "--config", config.to_str().expect("UTF-8")]);
        change(&mut command);
        Process::start(command, self.output.path())
    }

    /// Starts `agent run` with the queue on a file system of its own, a tmpfs with these mount
    /// options that ends with the agent. Returns how the test reaches its root.
    ///
    /// The mount is in a namespace of the agent's, which takes root or user namespaces.
    pub fn run_on(&self, options: &str) -> (Process, PathBuf) {
        let small = self.directory.path().join("small");
        fs_err::create_dir_all(&small).expect("make a mount point");
        let config = self.config();
        let run = agent(["run", "--config", config.to_str().expect("UTF-8")]);
        let mut command = Command::new("unshare");
        let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
        command.args([namespaces, "--", "sh", "-c", MOUNTED, "sh"]).arg(&small).arg(options);
        command.arg(run.get_program()).args(run.get_args()).env_remove("RUST_LOG");
        let process = Process::start(command, self.output.path());
        let root = Path::new("/proc").join(process.id().to_string()).join("root");
        let inside = small.strip_prefix("/").expect("an absolute path");
        (process, root.join(inside))
    }

    /// Runs another command of the agent to its end.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Finished {
        let config = self.config();
        let config = ["--config", config.to_str().expect("UTF-8")];
        run(agent(arguments.iter().copied().chain(config)))
    }

    /// What `agent inspect --json` says.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        let done = self.command(&["inspect", "--json"]);
        assert!(matches!(done.code, Some(0 | 2)), "{done:?}");
        serde_json::from_str(&done.stdout).expect("inspect prints JSON")
    }

    /// A number of the queue's status, for example `next_seq` or `records`.
    #[track_caller]
    pub fn queue_number(&self, name: &str) -> u64 {
        let seen = self.inspect();
        seen["queue"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {seen}"))
    }

    /// Every metric that the backend has stored.
    pub async fn stored(&self) -> Vec<StoredMetric> {
        self.served.stored(None).await
    }

    /// Waits until the backend has at least `count` metrics.
    pub async fn until_stored(&self, count: usize) {
        let what = format!("{count} metrics stored");
        until_async(&what, Duration::from_secs(30), || async {
            self.stored().await.len() >= count
        })
        .await;
    }
}

/// That no two metrics are the same one: one collector takes one metric at a time.
#[track_caller]
pub fn assert_distinct(stored: &[StoredMetric]) {
    let distinct: BTreeSet<_> =
        stored.iter().map(|metric| (&metric.kind, metric.at, &metric.database)).collect();
    assert_eq!(distinct.len(), stored.len(), "metrics are stored more than once");
}

/// The longest time between two neighbouring host samples.
pub fn longest_gap(stored: &[StoredMetric]) -> Duration {
    let samples = stored.iter().filter(|metric| metric.kind == "sysstat");
    let times: BTreeSet<_> = samples.map(|metric| metric.at).collect();
    let gaps = times.iter().zip(times.iter().skip(1)).map(|(from, to)| to.duration_since(*from));
    gaps.max().and_then(|gap| Duration::try_from(gap).ok()).expect("two samples")
}
