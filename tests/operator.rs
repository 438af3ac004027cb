//! What an operator does on a host: look at the queue, have it delivered, while the agent runs and
//! while it does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pganalytics::link::Identity;
use secrecy::ExposeSecret;
use serde_json::Value;
use tempfile::TempDir;

use crate::link_tls::identity;
use crate::support::backend_stub::{Authority, Clients, Flaw, Reply, Stub, set_mode};
use crate::support::port::Port;
use crate::support::process::{Finished, Process, agent, run};
use crate::support::{directory, until};

const SOON: Duration = Duration::from_secs(30);

/// A registered host with `disk_usage` every 500 ms, and its backend.
pub struct Host {
    pub folder: TempDir,
    pub stub: Stub,
    authority: Authority,
}

impl Host {
    pub async fn new(push_interval: &str) -> Self {
        Self::with(push_interval, Flaw::None).await
    }

    /// A host whose backend has something wrong with its certificate.
    pub async fn with(push_interval: &str, flaw: Flaw) -> Self {
        let authority = Authority::new("test CA");
        let stub = Stub::https(&authority.server(flaw), Clients::Of(&authority)).await;
        let folder = directory();
        let tls = authority.client().install(folder.path(), &authority);
        let identity: Identity = identity();
        let file = folder.path().join("identity.json");
        std::fs::write(&file, identity.encode().expose_secret()).expect("write");
        set_mode(&file, 0o600);
        let config = format!(
            "[collector]\nstate_dir = '{}'\ninterval = \"500ms\"\n\
             push_interval = {push_interval:?}\n\
             [backend]\nurl = '{}'\n\
             [tls]\ncert_file = '{}'\nkey_file = '{}'\nca_file = '{}'\n\
             [queue]\ncommit_interval = \"10ms\"\n\
             [forward]\nbackoff_first = \"50ms\"\nbackoff_max = \"200ms\"\n\
             [sysstat]\nenabled = false\n[pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n\
             [agent]\nenabled = false\n",
            folder.path().display(),
            stub.url(),
            tls.cert_file.display(),
            tls.key_file.display(),
            tls.ca_file.expect("installed").display(),
        );
        std::fs::write(folder.path().join("agent.toml"), config).expect("write");
        Self { folder, stub, authority }
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Ends the backend and starts another one, at `port` or on a port that nobody knows.
    /// Returns what is left of the old one: its requests.
    pub async fn replace_stub(&mut self, port: Option<Arc<Port>>) -> Stub {
        let (server, clients) = (self.authority.server(Flaw::None), Clients::Of(&self.authority));
        let next = match port {
            Some(port) => Stub::https_at(port, &server, clients).await,
            None => Stub::https(&server, clients).await,
        };
        let mut old = std::mem::replace(&mut self.stub, next);
        old.end().await;
        old
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn start(&self) -> Process {
        self.start_with(|_| ())
    }

    /// The same with something about the command changed.
    pub fn start_with(&self, change: impl FnOnce(&mut Command)) -> Process {
        let config = self.path("agent.toml");
        let mut command = agent(["run", "--config", config.to_str().expect("UTF-8")]);
        change(&mut command);
        Process::start(command, self.folder.path())
    }

    pub fn ask(&self, arguments: &[&str]) -> Finished {
        let config = self.path("agent.toml");
        let config = ["--config", config.to_str().expect("UTF-8")];
        run(agent(arguments.iter().chain(&config).copied()))
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = self.ask(arguments);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// The queue's own word: `segments`, `records` and so on.
    pub fn queued(&self, key: &str) -> u64 {
        self.json(&["inspect", "--json"])["queue"][key].as_u64().expect("a number")
    }

    /// An agent that has been killed with at least `segments` segments in its queue.
    pub fn killed_with(&self, segments: u64) {
        let mut process = self.start();
        until("segments are queued", SOON, || {
            self.ask(&["status"]).code != Some(1) && self.queued("segments") >= segments
        });
        process.kill();
    }
}

pub fn says(done: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(done.code, Some(code), "{done:?}");
    for part in parts {
        assert!(done.stdout.contains(part) || done.stderr.contains(part), "{part}: {done:?}");
    }
}

pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => _ = files.insert(path.clone(), std::fs::read(path).expect("a file")),
            }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn running_agent_is_asked_and_told_to_push() {
    let host = Host::new("1h").await;
    let process = host.start();
    until("a record is queued", SOON, || {
        host.ask(&["status"]).code == Some(0) && host.queued("records") > 0
    });
    says(&host.ask(&["status"]), 0, &["flowing", "no delivery yet", "disk_usage", "ok"]);
    says(&host.ask(&["inspect"]), 0, &["told by the running agent", "1 open"]);
    says(&host.ask(&["inspect", "segments"]), 0, &["window UTC", "open"]);
    says(&host.ask(&["inspect", "batches"]), 0, &["open"]);
    assert_eq!(host.json(&["inspect", "--json"])["source"], "agent");

    host.stub.reply(vec![Reply::with(503, &[], "{\"message\":\"store down\"}"); 1_000]);
    let done = host.ask(&["replay", "--wait", "1s"]);
    // A window may end just now.
    says(&done, 1, &["delivered 0 of ", "stays queued", "503 store down"]);
    says(&host.ask(&["inspect"]), 0, &["delivery ", "503 store down"]);
    says(&host.ask(&["inspect", "segments"]), 0, &["last answer (segment ", "503 store down"]);
    // For a moment it probes, now and then.
    until("it backs off", SOON, || host.ask(&["status"]).stdout.contains("backing off"));
    says(&host.ask(&["status"]), 0, &["503 store down"]);

    host.stub.forget_replies();
    says(&host.ask(&["replay"]), 0, &["delivered ", "in "]);
    let status = host.json(&["status", "--json"]);
    assert_eq!(status["backend"]["forwarding"], "flowing");
    assert!(status["queue"]["counts"]["delivered_records"].as_u64() > Some(0), "{status}");
    process.stop();
    assert!(!host.path("control.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_of_a_killed_agent_is_seen_and_delivered() {
    let host = Host::new("300ms").await;
    host.stub.reply(vec![Reply::status(503); 100_000]);
    host.killed_with(4);

    says(&host.ask(&["status"]), 1, &["does not run", "queue "]);
    let before = files(&host.path("queue"));
    says(&host.ask(&["inspect"]), 0, &["no agent runs; read from its directory", "sealed"]);
    says(&host.ask(&["inspect", "batches"]), 0, &["pending"]);
    let list = host.json(&["inspect", "segments", "--json"]);
    assert_eq!(list["source"], "directory");
    let segments = list["segments"].as_array().expect("a list").len();
    assert!(segments >= 4, "{list}");
    assert_eq!(files(&host.path("queue")), before, "looking changes nothing");

    says(&host.ask(&["replay", "--wait", "500ms"]), 1, &["delivered 0 of ", "503"]);
    host.stub.forget_replies();
    host.stub.reply([Reply::status(200)]);
    host.stub.reply(vec![Reply::status(503); 100_000]);
    says(&host.ask(&["replay", "--wait", "500ms"]), 2, &["delivered 1 of ", "stays queued"]);
    host.stub.forget_replies();
    says(&host.ask(&["replay"]), 0, &["delivered "]);
    says(&host.ask(&["replay"]), 0, &["nothing is queued"]);
    says(&host.ask(&["inspect"]), 0, &["nothing is queued"]);
}

/// A reader that has seen enough: the pipe of standard output is closed before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn closed_pipe_is_no_failure() {
    let host = Host::new("300ms").await;
    host.killed_with(1);
    let config = host.path("agent.toml");
    let config = config.to_str().expect("UTF-8");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = agent(["inspect", "--config", config]);
    let done = command.stdout(writer).stderr(std::process::Stdio::piped()).output().expect("run");
    assert_eq!((done.status.code(), done.stderr.len()), (Some(0), 0), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_without_a_queue_is_told_so() {
    let host = Host::new("1h").await;
    says(&host.ask(&["inspect"]), 1, &["no queue in ", "does not exist", "hint: "]);
    says(&host.ask(&["status"]), 1, &["does not run"]);
}
