//! Hosts that come back, through the binary at both ends: what the operator of the backend and that
//! of the host type, what they are told, and that metrics are stored again.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pganalytics::clock;
use pganalytics::link::{Identity, TlsConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::link_renew::grow_old;
use crate::operator::says;
use crate::support::backend::Served;
use crate::support::backend_stub::{Authority, Clients, Flaw, Reply, Stub, set_mode};
use crate::support::process::{Finished, Process, agent, run};
use crate::support::{directory, until, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// A backend, and its operator at a terminal beside it.
struct Office {
    served: Served,
}

/// A host with a configuration and an agent.
struct Host {
    folder: TempDir,
}

impl Office {
    async fn open() -> Self {
        let office = Self { served: Served::start().await };
        let data = office.served.config.data_dir.display().to_string();
        let text = format!("[backend]\ndata_dir = \"{data}\"\n");
        fs_err::write(office.config(), text).expect("write");
        office
    }

    fn config(&self) -> PathBuf {
        self.served.directory.path().join("backend.toml")
    }

    /// `agent backend` with these arguments.
    #[track_caller]
    fn command(&self, arguments: &[&str]) -> Finished {
        let config = self.config();
        let config = ["--config", config.to_str().expect("UTF-8")];
        run(agent(["backend"].iter().chain(arguments).copied().chain(config)))
    }

    /// What a command prints that makes a secret: nothing else on standard output.
    #[track_caller]
    fn secret(&self, arguments: &[&str], said: &[&str]) -> String {
        let done = self.command(arguments);
        assert_eq!(done.code, Some(0), "{done:?}");
        for part in said {
            assert!(done.stderr.contains(part), "{part}: {done:?}");
        }
        let secret = done.stdout.strip_suffix('\n').expect("a line");
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(secret.len() == 32 && secret.chars().all(is_part), "{done:?}");
        secret.to_owned()
    }

    #[track_caller]
    fn release(&self, name: &str) -> String {
        let next = format!("agent register --force --name {name}");
        self.secret(&["collector", "release", name], &[&next, "until 2"])
    }

    /// The lines of `secret list` or `collector list` that begin with `name`, their words.
    #[track_caller]
    fn listed(&self, what: &str, name: &str) -> Vec<String> {
        let done = self.command(&[what, "list"]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines = done.stdout.lines().map(words);
        lines.filter(|line| line.split(' ').next() == Some(name)).collect()
    }

    /// Metrics of this host, in all of its server rows.
    async fn stored(&self, host: &str) -> usize {
        self.served.stored(Some(&format!("{host}.example.com"))).await.len()
    }
}

impl Host {
    fn new(office: &Office, name: &str) -> Self {
        let host = Self { folder: directory() };
        host.configure(office.served.running().address().port(), &format!("{name}.example.com"));
        host
    }

    fn configure(&self, port: u16, hostname: &str) {
        let dir = self.folder.path().display();
        let mut text = format!(
            "[collector]\nhostname = \"{hostname}\"\nstate_dir = \"{dir}/state\"\n\
             push_interval = \"200ms\"\n[backend]\nurl = \"https://127.0.0.1:{port}\"\n\
             [tls]\ncert_file = \"{dir}/host.crt\"\nkey_file = \"{dir}/host.key\"\n\
             [queue]\ndir = \"{dir}/queue\"\ncommit_interval = \"10ms\"\n\
             [forward]\nbackoff_first = \"50ms\"\nbackoff_max = \"200ms\"\n\
             [sysstat]\ninterval = \"100ms\"\n"
        );
        for off in ["disk_usage", "pg_stats", "pg_log", "agent"] {
            writeln!(text, "[{off}]\nenabled = false").expect("to memory");
        }
        fs_err::write(self.path("agent.toml"), text).expect("write");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `agent register` with these arguments, and the CA.
    #[track_caller]
    fn register(&self, office: &Office, arguments: &[&str]) -> Finished {
        let (config, ca) = (self.path("agent.toml"), office.served.running().ca_file());
        let file = ["--config", config.to_str().expect("UTF-8")];
        let ca = ["--ca", ca.to_str().expect("UTF-8")];
        let all = ["register"].iter().chain(arguments).chain(&file).chain(&ca).copied();
        run(agent(all))
    }

    /// The same with a secret in a file.
    #[track_caller]
    fn register_with(&self, office: &Office, secret: &str, arguments: &[&str]) -> Finished {
        fs_err::write(self.path("secret"), format!("{secret}\n")).expect("write");
        let file = self.path("secret");
        let file = ["--secret-file", file.to_str().expect("UTF-8")];
        self.register(office, &[arguments, &file].concat())
    }

    fn identity(&self) -> Identity {
        Identity::load(&self.path("state")).expect("an identity")
    }

    fn start(&self) -> Process {
        let config = self.path("agent.toml");
        let command = agent(["run", "--config", config.to_str().expect("UTF-8")]);
        Process::start(command, self.folder.path())
    }

    /// Its agent runs until more of it is stored.
    async fn delivers(&self, office: &Office, name: &str) {
        let before = office.stored(name).await;
        let agent = self.start();
        until_async(&format!("{name} is stored"), LIMIT, async || {
            office.stored(name).await > before
        })
        .await;
        agent.stop();
    }

    /// Removes what makes it somebody.
    fn forget(&self) {
        fs_err::remove_dir_all(self.path("state")).expect("remove");
        for name in ["host.crt", "host.key"] {
            fs_err::remove_file(self.path(name)).expect("remove");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.expect("run cp").success());
}

/// The commands for registration secrets: their output, their exit codes, and what they do to a
/// host that registers.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_added_listed_and_revoked() {
    let office = Office::open().await;
    let kept = "it is kept nowhere else";
    let add = ["secret", "add", "factory-7", "--uses", "1", "--expires", "7d"];
    let single = office.secret(&add, &[kept]);
    says(&office.command(&add), 1, &["there is, or was, a secret factory-7"]);
    says(&office.command(&["secret", "add", "x", "--uses", "0"]), 64, &["--uses"]);
    for life in ["0s", "soon"] {
        let done = office.command(&["secret", "add", "x", "--expires", life]);
        says(&done, 64, &["a duration such as 12h or 7d is needed"]);
    }
    says(&office.command(&["secret", "add", "a\u{202e}b"]), 1, &["\\u{202e}"]);
    assert_eq!(office.listed("secret", "x"), [""; 0]);
    let listed = office.listed("secret", "factory-7").concat();
    assert!(
        listed.starts_with("factory-7 0 1 ") && listed.ends_with(" good new hosts"),
        "{listed}"
    );

    let (one, two) = (Host::new(&office, "one"), Host::new(&office, "two"));
    let done = one.register_with(&office, &single, &[]);
    let next = "an agent that runs already takes this at its next start";
    says(&done, 0, &["registered \"one.example.com\"", "the certificate is valid until", next]);
    one.delivers(&office, "one").await;
    let listed = office.listed("secret", "factory-7").concat();
    assert!(listed.starts_with("factory-7 1 1 ") && listed.contains(" used up "), "{listed}");
    let done = two.register_with(&office, &single, &[]);
    says(&done, 1, &["does not accept the registration secret"]);
    assert!(!two.path("state/identity.json").exists());

    let short = office.secret(&["secret", "add", "short", "--expires", "1s"], &[kept]);
    until("it is over", LIMIT, || office.listed("secret", "short").concat().contains(" over "));
    says(&two.register_with(&office, &short, &[]), 1, &["does not accept"]);

    let fleet = office.secret(&["secret", "add", "fleet", "--reclaims"], &[kept]);
    let listed = office.listed("secret", "fleet").concat();
    assert_eq!(listed, "fleet 0 any never good new hosts, and names taken back");
    let done = office.command(&["secret", "revoke", "fleet"]);
    says(&done, 0, &["the secret fleet is revoked"]);
    assert!(office.listed("secret", "fleet").concat().contains(" revoked "));
    says(&two.register_with(&office, &fleet, &[]), 1, &["does not accept"]);
    says(&office.command(&["secret", "revoke", "nobody"]), 1, &["there is no secret nobody"]);
    let done = two.register_with(&office, &office.served.secret(), &[]);
    says(&done, 0, &["registered \"two.example.com\""]);
    two.delivers(&office, "two").await;
}

/// The commands for collectors: their output and their exit codes. One that was removed by mistake
/// comes back.
#[tokio::test(flavor = "multi_thread")]
async fn collectors_are_listed_renamed_and_removed() {
    let office = Office::open().await;
    let host = Host::new(&office, "db1");
    says(&host.register_with(&office, &office.served.secret(), &["--name", "db1"]), 0, &["db1"]);
    let id = host.identity().collector_id;
    let listed = || office.listed("collector", "db1").concat();
    assert_eq!(listed(), format!("db1 db1.example.com - never pushed {id}"));
    host.delivers(&office, "db1").await;
    assert!(listed().ends_with(&format!(" registered {id}")), "{}", listed());
    office.served.register("db2").await;

    let rename = |from: &str, to: &str| office.command(&["collector", "rename", from, to]);
    says(&rename("db1", "DB2"), 1, &["the name DB2 is, or was, another collector's"]);
    says(&rename("db3", "db4"), 1, &["there is no collector db3"]);
    says(&rename("db1", " "), 1, &["the name is missing or empty"]);
    says(&rename("db1", "primary"), 0, &["the collector db1 is primary now"]);
    assert_eq!((listed(), office.listed("collector", "primary").len()), (String::new(), 1));
    host.delivers(&office, "db1").await;

    let remove = || office.command(&["collector", "remove", "primary"]);
    says(&remove(), 0, &["the collector primary is removed; its metrics stay"]);
    says(&remove(), 1, &["the collector primary is removed already"]);
    assert!(office.listed("collector", "primary").concat().contains(" removed "));
    says(&host.register(&office, &["--force"]), 1, &["hint"]);
    says(&office.command(&["collector", "release", "db3"]), 1, &["there is no collector db3"]);
    let secret = office.release("primary");
    let done = host.register_with(&office, &secret, &["--force", "--name", "primary"]);
    says(&done, 0, &["registered \"primary\"", &id]);
    host.delivers(&office, "db1").await;
}

/// Two collectors of a store of before whose names are the same: the one that is typed is meant, or
/// the one with the id, never the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_collector_that_is_typed_is_meant() {
    let office = Office::open().await;
    let (first, second) = (office.served.register("db1").await, office.served.register("x").await);
    let store = office.served.config.data_dir.join("metrics.db");
    let store = rusqlite::Connection::open(store).expect("open the store");
    let collide = "UPDATE collectors SET name = 'DB1' WHERE name = 'x';
                   DELETE FROM names WHERE key = 'x'";
    store.execute_batch(collide).expect("they collide");
    let listed = office.listed("collector", "DB1").concat();
    assert!(listed.contains("rename it: the name is another's"), "{listed}");
    let rename = |from: &str, to: &str| office.command(&["collector", "rename", from, to]);
    says(&rename("DB1", "db2"), 0, &["the collector DB1 is db2 now"]);
    assert!(office.listed("collector", "db2").concat().ends_with(&second.id));
    assert!(office.listed("collector", "db1").concat().ends_with(&first.id));
    // Where there is no such name, it is that of the same letters.
    says(&rename("Db1", "primary"), 0, &["the collector Db1 is primary now"]);
    says(&rename(&second.id, "standby"), 0, &["is standby now"]);
    assert!(office.listed("collector", "primary").concat().ends_with(&first.id));
    assert!(office.listed("collector", "standby").concat().ends_with(&second.id));
    let nobody = uuid::Uuid::nil().to_string();
    says(&rename(&nobody, "x"), 1, &["there is no collector"]);
}

/// A host has lost its disk: nobody takes its name with the secret for new hosts, and the one of
/// its release brings it back once, beside another host that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_files_is_released() {
    let office = Office::open().await;
    let (lost, other) = (Host::new(&office, "lost"), Host::new(&office, "other"));
    for host in [&lost, &other] {
        says(&host.register_with(&office, &office.served.secret(), &[]), 0, &["registered"]);
    }
    lost.delivers(&office, "lost").await;
    let id = lost.identity().collector_id;
    lost.forget();
    let again = lost.register_with(&office, &office.served.secret(), &[]);
    let hint = "agent backend collector release";
    says(&again, 1, &["does not register \"lost.example.com\"", hint]);
    let secret = office.release("lost.example.com");
    // Another host is who its certificate says, and a new one nobody: neither uses the secret up.
    let done = other.register_with(&office, &secret, &["--force", "--name", "lost.example.com"]);
    says(&done, 0, &["the collector keeps its name, \"other.example.com\""]);
    let stranger = Host::new(&office, "new");
    let done = stranger.register_with(&office, &secret, &[]);
    assert_eq!(done.code, Some(1), "{done:?}");
    let done = lost.register_with(&office, &secret, &["--force", "--name", "lost.example.com"]);
    says(&done, 0, &["registered \"lost.example.com\"", &id]);
    lost.delivers(&office, "lost").await;
    assert_eq!(lost.identity().collector_id, id);
    other.delivers(&office, "other").await;
    lost.forget();
    let twice = lost.register_with(&office, &secret, &["--name", "lost.example.com"]);
    says(&twice, 1, &["does not accept the registration secret"]);
}

/// A host was cut off until its certificate ended: it shows it all the same, and needs no secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_certificate_has_ended_comes_back() {
    let mut office = Office::open().await;
    let life = office.served.config.lifetimes.client_certificate;
    office.served.stop().await;
    office.served.config.lifetimes.client_certificate = Duration::from_secs(1);
    office.served.resume().await;
    let host = Host::new(&office, "late");
    let done = host.register_with(&office, &office.served.secret(), &[]);
    says(&done, 0, &["registered"]);
    let before = host.identity();
    let end = before.certificate_expires_at.expect("an end");
    until("the certificate has ended", LIMIT, || clock::now() > end + Duration::from_secs(1));
    office.served.stop().await;
    office.served.config.lifetimes.client_certificate = life;
    office.served.resume().await;
    let agent = host.start();
    until("it is refused", LIMIT, || agent.stderr().contains("tls.cert_file has ended"));
    assert!(agent.stderr().contains("needs no secret"), "{}", agent.stderr());
    agent.stop();
    assert_eq!(office.stored("late").await, 0);
    says(&host.register(&office, &["--force"]), 0, &["registered", &before.collector_id]);
    assert_eq!(host.identity().collector_id, before.collector_id);
    host.delivers(&office, "late").await;
}

/// A cloned host becomes one of its own, with its own name; the first goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_takes_a_new_name() {
    let office = Office::open().await;
    let (first, clone) = (Host::new(&office, "first"), Host::new(&office, "clone"));
    says(&first.register_with(&office, &office.served.secret(), &[]), 0, &["registered"]);
    first.delivers(&office, "first").await;
    for name in ["state", "host.crt", "host.key", "queue"] {
        copy(&first.path(name), &clone.path(name));
    }
    // Its name alone does not make it another collector.
    let done = clone.register_with(&office, &office.served.secret(), &[]);
    says(&done, 64, &["this host is registered already: \"first.example.com\"", "--force"]);
    clone.forget();
    // With the name of the first it is refused, whatever it calls itself.
    let taken = ["--name", "first.example.com"];
    let done = clone.register_with(&office, &office.served.secret(), &taken);
    says(&done, 1, &["does not register \"first.example.com\"", "set --name"]);
    let done = clone.register_with(&office, &office.served.secret(), &[]);
    says(&done, 0, &["registered \"clone.example.com\""]);
    assert_ne!(clone.identity().collector_id, first.identity().collector_id);
    clone.delivers(&office, "clone").await;
    first.delivers(&office, "first").await;
}

/// A host is set back to a snapshot of before a renewal: its pair is worth nothing, and it comes
/// back with a release.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_before_a_renewal_is_released() {
    let office = Office::open().await;
    let host = Host::new(&office, "back");
    says(&host.register_with(&office, &office.served.secret(), &[]), 0, &["registered"]);
    let tls = TlsConfig {
        cert_file: host.path("host.crt"),
        key_file: host.path("host.key"),
        ..TlsConfig::default()
    };
    grow_old(&office.served, &tls, host.identity()).await;
    let snapshot = directory();
    let files = ["state", "host.crt", "host.key"];
    for name in files {
        copy(&host.path(name), &snapshot.path().join(name));
    }
    let old = fs_err::read(host.path("host.crt")).expect("read");
    let agent = host.start();
    until("it is renewed", LIMIT, || fs_err::read(host.path("host.crt")).expect("read") != old);
    agent.stop();
    host.delivers(&office, "back").await;

    host.forget();
    for name in files {
        copy(&snapshot.path().join(name), &host.path(name));
    }
    let id = host.identity().collector_id;
    let before = office.stored("back").await;
    let agent = host.start();
    until("it is refused", LIMIT, || agent.stderr().contains("agent backend collector release"));
    agent.stop();
    assert_eq!(office.stored("back").await, before);
    assert_eq!(host.register(&office, &["--force"]).code, Some(1));
    let secret = office.release("back.example.com");
    let done = host.register_with(&office, &secret, &["--force"]);
    says(&done, 0, &["registered \"back.example.com\"", &id]);
    host.delivers(&office, "back").await;
}

/// A host with the pair of an original collector, whose key others can read: it is shown all the
/// same, with a word on that, and replaced by one of the host's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_can_read_is_shown_and_replaced() {
    let office = Office::open().await;
    let host = Host::new(&office, "old");
    // Without a request for signing the backend makes the key, as it did for those collectors.
    let body = json!({"name": "old", "hostname": "old.example.com"});
    let answer = office.served.try_register(&body).await.json();
    let text = |key: &str| answer[key].as_str().expect(key);
    let key = host.path("host.key");
    fs_err::write(host.path("host.crt"), text("certificate")).expect("write");
    fs_err::write(&key, text("private_key")).expect("write");
    set_mode(&key, 0o644);
    let done = host.register(&office, &["--name", "old"]);
    says(&done, 0, &["registered \"old\"", text("collector_id")]);
    let said = done.stderr.lines().find(|line| line.contains("others can read"));
    let said = said.unwrap_or_else(|| panic!("{done:?}"));
    assert!(said.contains("WARN") && said.contains("host.key (mode 0644)"), "{said}");
    let mode = fs_err::metadata(&key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_ne!(fs_err::read_to_string(&key).expect("read"), text("private_key"));
    host.delivers(&office, "old").await;
}

/// What `agent register` says aloud: that the key was not made on this host, and that a host which
/// has every host's name needs one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_registration_says_aloud() {
    let office = Office::open().await;
    let host = Host::new(&office, "db1");
    let authority = Arc::new(Authority::new("test CA"));
    let stub = Stub::https(&authority.server(Flaw::None), Clients::Anyone).await;
    let made = Arc::clone(&authority);
    stub.reply([Reply::Made(Arc::new(move |_| {
        let pair = made.client();
        let answer = json!({
            "collector_id": "0b0e8f4c-0000-4000-8000-000000000001",
            "secret": crate::link_tls::SECRET, "certificate": pair.cert_pem,
            "private_key": pair.key.serialize_pem(),
        });
        (200, Bytes::from(answer.to_string()))
    }))]);
    let ca = host.path("stub.crt");
    fs_err::write(&ca, authority.pem()).expect("write");
    fs_err::write(host.path("secret"), "x").expect("write");
    let register = |arguments: &[&str]| {
        let [config, ca, secret] = [host.path("agent.toml"), ca.clone(), host.path("secret")]
            .map(|path| path.to_str().expect("UTF-8").to_owned());
        let files = ["--config", &config, "--ca", &ca, "--secret-file", &secret];
        run(agent(["register"].iter().chain(arguments).chain(&files).copied()))
    };
    let done = register(&["--backend", &stub.url()]);
    let aloud = "ATTENTION: the backend made the private key and sent it";
    says(&done, 0, &["registered \"db1.example.com\"", aloud]);

    for name in ["localhost", "localhost.localdomain"] {
        host.configure(office.served.running().address().port(), name);
        let done = register(&["--force"]);
        let refusal = format!("this host calls itself {name}, as every host does");
        says(&done, 64, &[&refusal, "collector.hostname", "--name NAME"]);
    }
    assert_eq!(stub.requests().len(), 1);
    assert_eq!(office.command(&["collector", "list"]).stdout.lines().count(), 2);
}
