//! `agent check`: what works, what does not, and whether what it prints mends it.

use serde_json::Value;

use crate::support::postgres::{Postgres, majors};
use crate::support::process::{Finished, agent, run};
use crate::support::site::Site;

/// The findings for PostgreSQL of an agent that logs in as `role`.
fn check(server: &Postgres, role: &str, databases: &str) -> (Finished, Vec<Value>) {
    let directory = crate::support::directory();
    let file = directory.path().join("agent.toml");
    let host = server.socket_dir().display().to_string();
    let text =
        format!("[postgres]\nhost = \"{host}\"\nuser = \"{role}\"\ndatabases = {databases}\n");
    fs_err::write(&file, text).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let done = run(agent(["check", "postgres", "--json", "--config", file]));
    let findings = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    (done, findings)
}

/// What was judged of what; what could be more does not count.
fn verdicts(findings: &[Value]) -> Vec<(String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
    let judged = findings.iter().filter(|it| it["verdict"] != "could" && it["of"] != "version");
    judged.map(|finding| (text(finding, "of"), text(finding, "verdict"))).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(of, verdict)| ((*of).to_owned(), (*verdict).to_owned())).collect()
}

/// A role without any right, on every major: what it prints, run as it stands, makes all of it
/// work, and none of the tries leaves an error in the server's log.
#[tokio::test]
async fn what_a_role_lacks_is_printed_as_sql_that_mends_it() {
    for major in majors() {
        let server = Postgres::start(major);
        server.execute("postgres", "CREATE ROLE \"a \"\"b\" LOGIN").await;
        server.execute("postgres", "CREATE DATABASE \"x \"\"y\"").await;
        server.execute("postgres", "REVOKE CONNECT ON DATABASE \"x \"\"y\" FROM PUBLIC").await;
        let look = || check(&server, "a \\\"b", "[\"postgres\", 'x \"y', \"gone\"]");
        let (done, findings) = look();
        assert_eq!(done.code, Some(1), "{major}: {done:?}");
        let expected = [
            ("connection", "ok"),
            ("role", "limited"),
            ("database \"postgres\"", "ok"),
            ("database \"x \\\"y\"", "failed"),
            ("database \"gone\"", "failed"),
            ("log", "failed"),
        ];
        assert_eq!(verdicts(&findings), owned(&expected), "{major}: {findings:#?}");
        for finding in findings.iter().filter(|finding| finding["verdict"] != "could") {
            for statement in finding["sql"].as_array().into_iter().flatten() {
                server.execute("postgres", statement.as_str().expect("text")).await;
            }
        }
        let (done, findings) = look();
        let expected = [
            ("connection", "ok"),
            ("role", "ok"),
            ("database \"postgres\"", "ok"),
            ("database \"x \\\"y\"", "ok"),
            ("database \"gone\"", "failed"),
            ("log", "ok"),
        ];
        assert_eq!(verdicts(&findings), owned(&expected), "{major}: {findings:#?}");
        assert_eq!(done.code, Some(1), "{major}: one of the databases is not there");
        let log = fs_err::read_to_string(server.log_file()).expect("the log");
        let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR:")).collect();
        assert!(errors.is_empty(), "{major}: {errors:?}");
    }
}

/// Each part is tried with what the agent would use, and the exit code says the worst.
#[tokio::test(flavor = "multi_thread")]
async fn every_part_is_tried() {
    let site = Site::registered().await;
    let (code, text) = {
        let done = site.command(&["check"]);
        (done.code, done.stdout)
    };
    for part in ["collector\n", "queue\n", "backend\n"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains("answers, and knows this host as"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(code, Some(0), "{text}");
    // Without an identity nothing can be sent.
    let identity = site.directory.path().join("state/identity.json");
    fs_err::rename(&identity, identity.with_extension("away")).expect("rename");
    let done = site.command(&["check"]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("failed  identity: this host is not registered"), "{done:?}");
    assert!(done.stdout.contains("hint: run `agent register` first"), "{done:?}");
}
