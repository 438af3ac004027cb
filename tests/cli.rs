//! The command line: what a person sees who gets something wrong, and the exit codes.

use crate::support::process::{Finished, agent, run};
use crate::support::site::Site;

fn with_config(text: &str, command: &[&str]) -> Finished {
    let directory = crate::support::directory();
    let file = directory.path().join("agent.toml");
    fs_err::write(&file, text).expect("write a configuration");
    let config = ["--config", file.to_str().expect("UTF-8")];
    run(agent(command.iter().copied().chain(config)))
}

/// Exit code 64 and these texts, nothing on standard output.
#[track_caller]
fn assert_usage(done: &Finished, texts: &[&str]) {
    assert_eq!((done.code, done.stdout.as_str()), (Some(64), ""), "{done:?}");
    for text in texts {
        assert!(done.stderr.contains(text), "no {text:?} in {}", done.stderr);
    }
}

/// C30: without a file the agent says how to make one; a missing one is an error.
#[test]
fn a_missing_configuration_is_refused() {
    for command in ["run", "cron", "status", "inspect", "replay", "register"] {
        assert_usage(&run(agent([command])), &["hint:", "agent config init"]);
    }
    let done = run(agent(["run", "--config", "/nonexistent/agent.toml"]));
    assert_usage(&done, &["/nonexistent/agent.toml", "hint:"]);
}

/// C23, C24: file, line, key, value and hint of every mistake at once.
#[test]
fn a_wrong_configuration_is_refused_with_its_lines() {
    let text = "[collector]\nhostnme = \"x\"\ninterval = \"5 parsecs\"\n[postgres]\nport = 99999\n";
    let expected = [
        "agent.toml:2: collector.hostnme: unknown key",
        "did you mean `hostname`?",
        "agent.toml:3: collector.interval = \"5 parsecs\"",
        "agent.toml:5: postgres.port = 99999",
        "from 1 to 65535",
    ];
    assert_usage(&with_config(text, &["run"]), &expected);
    assert_usage(&with_config(text, &["config", "check"]), &expected);
    assert_usage(&with_config("[Collector]\n", &["run"]), &["[Collector]: unknown section"]);
    assert_usage(&with_config("[collector\n", &["run"]), &["agent.toml:1: not valid TOML"]);
}

/// Sections of newer original collectors do not keep a file from being used; each is told.
#[test]
fn sections_of_newer_originals_are_told_and_passed_over() {
    let text = "[pg_bloat]\nenabled = true\n[sysstat]\ninterval = 3\n[pg_locks]\ninterval = 5\n";
    let done = with_config(text, &["config", "check"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    for place in ["agent.toml:1: [pg_bloat]: this agent", "agent.toml:5: [pg_locks]: this agent"] {
        assert_eq!(done.stderr.matches(place).count(), 1, "{done:?}");
    }
}

/// What `config init` prints is a file that loads.
#[test]
fn the_sample_configuration_loads() {
    let sample = run(agent(["config", "init"]));
    assert_eq!(sample.code, Some(0), "{sample:?}");
    let done = with_config(&sample.stdout, &["config", "check"]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Half a file must not look like a whole one to who writes it: `config init > agent.toml`.
#[test]
fn output_that_does_not_arrive_is_a_failure() {
    for arguments in [&["config", "init"][..], &["metrics"], &["metrics", "--json"]] {
        let mut command = agent(arguments.iter().copied());
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").expect("open");
        let done = command.stdout(full.into_file()).output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("not complete: No space left"), "{arguments:?}: {said}");
    }
}

/// A host that is not registered is told what comes first.
#[test]
fn an_unregistered_host_is_told_to_register() {
    let text = "[collector]\nstate_dir = \"/nonexistent/state\"\n";
    assert_usage(&with_config(text, &["run"]), &["not registered", "agent register"]);
}

/// C14: a key that others can read, and a certificate that is none.
#[tokio::test(flavor = "multi_thread")]
async fn bad_key_files_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let site = Site::registered().await;
    let key = site.directory.path().join("collector.key");
    let others = std::fs::Permissions::from_mode(0o644);
    fs_err::set_permissions(&key, others).expect("let others read");
    assert_usage(&site.command(&["run"]), &["collector.key", "mode 0644", "chmod 600"]);
    let owner = std::fs::Permissions::from_mode(0o600);
    fs_err::set_permissions(&key, owner).expect("as it was");
    fs_err::write(site.directory.path().join("collector.crt"), "rubbish").expect("write");
    assert_usage(&site.command(&["run"]), &["collector.crt", "hint:"]);
}
