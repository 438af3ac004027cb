//! Several servers of one agent: each is read by itself, and named in everything about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::operator::{Host, says};
use crate::support::postgres::{Postgres, shared};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(60);

/// A host whose agent reads `servers`, text for the end of its configuration.
async fn host(collectors: &str, servers: &str) -> Host {
    let host = Host::new("1h").await;
    let file = host.path("agent.toml");
    let config = fs_err::read_to_string(&file).expect("read");
    let off = "[pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n";
    assert!(config.contains(off), "{config}");
    fs_err::write(&file, format!("{}{servers}", config.replace(off, collectors))).expect("write");
    host
}

fn entry(name: &str, host: &str, more: &str) -> String {
    format!("[[postgres]]\nname = {name:?}\nhost = {host:?}\n{more}")
}

fn socket(server: &Postgres) -> String {
    server.socket_dir().display().to_string()
}

/// A collector as `agent status` has it.
fn status(host: &Host, name: &str) -> Option<Value> {
    let done = host.ask(&["status", "--json"]);
    let status: Value = serde_json::from_str(&done.stdout).ok()?;
    let all = status["collectors"].as_array()?.clone();
    all.into_iter().find(|collector| collector["name"] == name)
}

fn number(host: &Host, name: &str, key: &str) -> u64 {
    status(host, name).and_then(|status| status[key].as_u64()).unwrap_or_default()
}

/// A dead server, and one that does not answer, cost the others nothing, and each is told by its
/// name; so do `agent collect` and the documents.
#[tokio::test(flavor = "multi_thread")]
async fn each_server_is_read_by_itself() {
    let (old, new) = (shared(10), shared(18));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = silent.local_addr().expect("an address").port();
    let servers = [
        entry("main", &socket(old), ""),
        entry("new", &socket(new), "databases = [\"absent\"]\n"),
        entry("dead", "/nonexistent", ""),
        entry("mute", "127.0.0.1", &format!("port = {port}\nconnect_timeout = \"1min\"\n")),
    ];
    let collectors = "[pg_stats]\ninterval = \"2s\"\n[pg_log]\nenabled = false\n";
    let host = host(collectors, &servers.concat()).await;
    let mut agent = host.start();
    until("both are read", LIMIT, || {
        number(&host, "pg_stats", "metrics") >= 2 && number(&host, "pg_stats@new", "metrics") >= 2
    });
    until("the dead one is told", LIMIT, || number(&host, "pg_stats@dead", "failures") > 0);
    let dead = status(&host, "pg_stats@dead").expect("it is there");
    let error = dead["last_error"].as_str().expect("an error");
    assert!(error.contains("/nonexistent:5432"), "{error}");
    assert_eq!(dead["metrics"], 0);
    let told = host.ask(&["status"]);
    says(&told, 2, &["collector pg_stats@dead fails", "pg_stats@new: postgres.databases: no"]);
    let log = agent.stderr();
    agent.kill();
    let notice = log.lines().find(|line| line.contains("no database \"absent\"")).expect("a line");
    assert!(notice.contains("instance=\"new\""), "{notice}");

    let done = host.ask(&["inspect", "export"]);
    let lines = done.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let about: BTreeSet<(String, u64)> = lines
        .filter(|line| line["metric"]["type"] == "pg_stats")
        .map(|line| {
            let instance = line["metric"]["instance"].as_str().expect("a name").to_owned();
            let version = line["metric"]["server"]["version_num"].as_u64().expect("a version");
            (instance, version / 10_000)
        })
        .collect();
    assert_eq!(about, [("main".to_owned(), 10), ("new".to_owned(), 18)].into(), "{done:?}");
}

/// `agent collect` reads each server, tells those that fail, and then does not end well.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_collection_reads_each_server() {
    let servers = [entry("main", &socket(shared(18)), ""), entry("dead", "/nonexistent", "")];
    let host = host("[pg_stats]\n[pg_log]\nenabled = false\n", &servers.concat()).await;
    let done = host.ask(&["collect", "pg_stats", "--json"]);
    says(&done, 1, &["\"instance\": \"main\"", "/nonexistent:5432"]);
}

/// The log of each server has its own position, also over a restart of the agent.
#[tokio::test(flavor = "multi_thread")]
async fn each_log_has_its_own_position() {
    let (one, two) = (Postgres::start(16), Postgres::start(17));
    let servers = [entry("main", &socket(&one), ""), entry("two", &socket(&two), "")];
    let log = "[pg_stats]\nenabled = false\n[pg_log]\nredact = false\ninterval = \"200ms\"\n";
    let host = host(log, &servers.concat()).await;
    let warn = async |server: &Postgres, text: &str| {
        server.execute("postgres", &format!("DO $$ BEGIN RAISE LOG '{text}'; END $$")).await;
    };
    let runs = |name: &str| number(&host, name, "runs");
    // By its number: what was delivered is gone from the queue, what was not stays over a restart.
    let mut seen = BTreeMap::<u64, String>::new();
    let mut exported = || -> String {
        for line in host.ask(&["inspect", "export"]).stdout.lines() {
            let record: Value = serde_json::from_str(line).expect("JSON");
            seen.insert(record["seq"].as_u64().expect("a number"), line.to_owned());
        }
        seen.values().cloned().collect::<Vec<_>>().join("\n")
    };
    for round in 1..=2 {
        let mut agent = host.start();
        until("both are followed", LIMIT, || runs("pg_log") >= 1 && runs("pg_log@two") >= 1);
        warn(&one, &format!("of_one_{round}.")).await;
        warn(&two, &format!("of_two_{round}.")).await;
        until("both have come", LIMIT, || {
            let exported = exported();
            ["one", "two"].iter().all(|of| exported.contains(&format!("\"of_{of}_{round}.\"")))
        });
        agent.kill();
    }
    let exported = exported();
    let of = |instance: &str| -> String {
        let is_its = format!("\"instance\":\"{instance}\"");
        exported.lines().filter(|line| line.contains(&is_its)).collect()
    };
    let (main, second) = (of("main"), of("two"));
    for round in 1..=2 {
        let (one, two) = (format!("of_one_{round}."), format!("of_two_{round}."));
        let count = |text: &str, what: &str| text.matches(&format!("\"{what}\"")).count();
        assert_eq!((count(&main, &one), count(&main, &two)), (1, 0), "{main}");
        assert_eq!((count(&second, &one), count(&second, &two)), (0, 1), "{second}");
    }
}
