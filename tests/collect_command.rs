//! `agent collect`: what came of one collection, without a backend.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::postgres::{Postgres, cache, shared};
use crate::support::process::{Finished, agent, run};

fn collect(arguments: &[&str]) -> Finished {
    run(agent(["collect"].into_iter().chain(arguments.iter().copied())))
}

/// The same with a configuration for this server.
fn collect_from(server: &Postgres, arguments: &[&str], more: &str) -> Finished {
    let directory = crate::support::directory();
    let file = directory.path().join("agent.toml");
    let host = server.socket_dir().display().to_string();
    fs_err::write(&file, format!("[postgres]\nhost = \"{host}\"\n{more}")).expect("a file");
    let file = file.to_str().expect("UTF-8");
    collect(&[arguments, &["--config", file]].concat())
}

/// Prometheus' own checker finds nothing to say about it.
#[track_caller]
fn assert_promtool_agrees(points: &str) {
    let mut promtool = Command::new(cache().join("tools/bin/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool; `tests/run install` installs it");
    let mut input = promtool.stdin.take().expect("a pipe");
    input.write_all(points.as_bytes()).expect("promtool reads");
    drop(input);
    let done = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{said}\n{points}");
}

#[test]
fn the_hosts_numbers_need_no_configuration() {
    let table = collect(&["disk_usage"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    let root = table.stdout.lines().find(|line| line.starts_with("filesystems.total_bytes "));
    assert!(root.is_some_and(|line| line.ends_with(" bytes")), "{}", table.stdout);
    let json = collect(&["sysstat", "--json"]);
    let documents: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(documents[0]["type"], "sysstat");
    assert!(documents[0]["boot_at"].is_string(), "{documents}");
}

#[test]
fn points_are_as_prometheus_wants_them() {
    let server = shared(17);
    for name in ["sysstat", "disk_usage", "pg_stats"] {
        let points = collect_from(server, &[name, "--points"], "");
        assert_eq!(points.code, Some(0), "{points:?}");
        assert!(points.stdout.lines().count() > 20, "{points:?}");
        assert_promtool_agrees(&points.stdout);
    }
    let broken = std::panic::catch_unwind(|| assert_promtool_agrees("# TYPE a counter\na 1\n"));
    assert!(broken.is_err(), "promtool has an opinion");
}

#[test]
fn what_gives_nothing_says_why() {
    let mut server = Postgres::start(17);
    server.stop();
    let away = collect_from(&server, &["pg_stats"], "");
    assert_eq!((away.code, away.stdout.as_str()), (Some(1), ""), "{away:?}");
    assert!(away.stderr.contains("\n  hint: is PostgreSQL running there?"), "{away:?}");
    let off = collect_from(&server, &["pg_stats"], "[pg_stats]\nenabled = false\n");
    assert_eq!((off.code, off.stdout.as_str()), (Some(64), ""), "{off:?}");
    assert!(off.stderr.contains("switched off"), "{off:?}");
}

/// The list of what is collected, for people and for programs.
#[test]
fn metrics_are_listed() {
    let table = run(agent(["metrics", "pg_stats"]));
    assert_eq!(table.code, Some(0), "{table:?}");
    assert!(table.stdout.contains("tables[].live_tuples"), "{}", table.stdout);
    let json = run(agent(["metrics", "--json"]));
    let all: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let names: Vec<_> = all.as_array().into_iter().flatten().map(|of| &of["type"]).collect();
    assert_eq!(names, ["sysstat", "disk_usage", "pg_stats", "pg_log", "agent"]);
    let odd = run(agent(["metrics", "odd"]));
    assert_eq!((odd.code, odd.stdout.as_str()), (Some(64), ""), "{odd:?}");
    assert!(odd.stderr.contains("hint: they are sysstat, "), "{odd:?}");
}
