//! What the agent writes is its user's alone, and what it shows steers no terminal.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::intake::{metric, push_of, site};
use crate::support::process::{Process, agent, run};
use crate::support::proxy::Network;
use crate::support::{directory, until};

const LIMIT: Duration = Duration::from_secs(60);

/// Everything below `path` and itself that its group or others may touch; sockets apart.
fn open_to_others(path: &Path) -> Vec<(PathBuf, u32)> {
    let data = fs_err::symlink_metadata(path).expect("there");
    let mode = data.permissions().mode() & 0o7777;
    let is_open = mode & 0o077 != 0 && !data.file_type().is_socket();
    let mut found = if is_open { vec![(path.to_owned(), mode)] } else { vec![] };
    if data.is_dir() {
        for entry in fs_err::read_dir(path).expect("list") {
            found.extend(open_to_others(&entry.expect("an entry").path()));
        }
    }
    found
}

/// Under every umask: the queue with its segments, state, letters and copies, also where an earlier
/// version has made the directory for everyone.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_their_users_under_every_umask() {
    let (site, place) = site("").await;
    site.proxy.set(Network::Down);
    fs_err::create_dir_all(site.queue()).expect("make");
    let everyone = std::fs::Permissions::from_mode(0o777);
    fs_err::set_permissions(site.queue(), everyone).expect("open");
    let mut command = Command::new("sh");
    let (program, config) = (env!("CARGO_BIN_EXE_agent"), site.config());
    let line = format!("umask 000; exec {program} run --config {}", config.display());
    command.args(["-c", &line]);
    let process = Process::start(command, site.output());
    until("the intake listens", LIMIT, || place.connect().is_ok());
    for n in 0..5 {
        let answer = place.push(&[], &push_of(&[metric(n)])).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let state = site.directory.path().join("state");
    let socket = fs_err::symlink_metadata(state.join("control.sock")).expect("a socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    for folder in [&site.queue(), &state] {
        assert_eq!(open_to_others(folder), []);
    }
    process.stop();
    assert_eq!(open_to_others(&site.queue()), []);
    let mut repair = Command::new("sh");
    fs_err::write(site.queue().join("segments/notes.txt"), "x").expect("write");
    let line =
        format!("umask 000; exec {program} queue repair --apply --config {}", config.display());
    repair.args(["-c", &line]);
    let done = run(repair);
    assert_eq!(done.code, Some(0), "{done:?}");
    let backups = fs_err::read_dir(site.queue()).expect("list");
    let backup = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("backup-");
    assert!(backups.flatten().any(|entry| backup(&entry.file_name())), "{done:?}");
    let not_ours = |(path, _): &(PathBuf, u32)| !path.ends_with("notes.txt");
    let open: Vec<_> = open_to_others(&site.queue()).into_iter().filter(not_ours).collect();
    assert_eq!(open, []);
}

/// Whoever reads has seen enough: the command ends without a word.
#[test]
fn a_closed_pipe_is_no_panic() {
    for arguments in [&["config", "init"][..], &["--help"], &["run", "--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = agent(arguments.iter().copied());
        command.stdin(Stdio::null()).stdout(writer);
        let done = command.stderr(Stdio::piped()).output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert_eq!(done.status.code(), Some(0), "{arguments:?}: {said}");
    }
}

/// What other programs have pushed is exported as they pushed it, and obeyed by no terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_steers_no_terminal() {
    let (site, place) = site("").await;
    site.proxy.set(Network::Down);
    let process = crate::intake::run(&site, &place);
    let mut hostile = metric(1);
    hostile["text"] = json!("\u{1b}]0;title\u{7}\u{9b}2J\u{202e}txt");
    let answer = place.push(&[], &push_of(&[hostile.clone()])).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let done = site.command(&["inspect", "export"]);
    let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
    let lines: Vec<_> = done.stdout.lines().map(|line| (line, read(line))).collect();
    let ours = lines.iter().find(|(_, read)| read["metric"]["text"] == hostile["text"]);
    let (line, read) = ours.expect("the metric as it was pushed");
    assert!(line.is_ascii(), "{line:?}");
    let number = read["seq"].to_string();
    for arguments in [&["inspect", "record", &number, "--decode"][..], &["inspect", "segments"]] {
        let done = site.command(arguments);
        assert_eq!(done.code, Some(0), "{done:?}");
        let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!done.stdout.contains(obeyed), "{arguments:?}: {:?}", done.stdout);
    }
    process.stop();
}

/// Passwords in a configuration that everybody can read, and a state directory that others get
/// into: said when the agent and the backend start, once, and without the password.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_can_read_is_told_at_the_start() {
    let (site, _place) = site("[postgres]\npassword = \"geheim7\"\n").await;
    let state = site.directory.path().join("state");
    let warned = |stderr: &str, part: &str| {
        assert!(!stderr.contains("geheim7"), "{stderr}");
        let is_it = |line: &&str| line.contains("WARN") && line.contains(part);
        stderr.lines().filter(is_it).count()
    };
    let (password, listed) =
        ("every user of this host can read postgres.password", "list collector");
    for (mode, expected) in [(0o600, 0), (0o644, 1)] {
        fs_err::set_permissions(site.config(), PermissionsExt::from_mode(mode)).expect("set");
        let mode = if expected == 0 { 0o700 } else { 0o755 };
        fs_err::set_permissions(&state, PermissionsExt::from_mode(mode)).expect("set");
        let done = site.run().stop();
        for part in [password, listed] {
            assert_eq!(warned(&done.stderr, part), expected, "{part}: {}", done.stderr);
        }
        // It may be more than the agent's: it stays as it is, and the agent's files are its own.
        let now = fs_err::metadata(&state).expect("there").permissions().mode() & 0o777;
        assert_eq!(now, mode);
        let open: Vec<_> =
            open_to_others(&state).into_iter().filter(|(at, _)| *at != state).collect();
        assert_eq!(open, []);
    }

    let folder = directory();
    let file = folder.path().join("backend.toml");
    // Nobody listens there: the word on the file comes before.
    let text = format!(
        "[backend]\nlisten = \"127.0.0.1:0\"\npage_listen = \"off\"\ndata_dir = \"{0}/data\"\n\
         store = \"postgres://u:geheim7@/x?host={0}\"\n",
        folder.path().display()
    );
    fs_err::write(&file, text).expect("write");
    for (mode, expected) in [(0o600, 0), (0o644, 1)] {
        fs_err::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set");
        let done = run(agent(["backend", "--config", file.to_str().expect("UTF-8")]));
        assert_eq!(done.code, Some(1), "{done:?}");
        let part = "every user of this host can read backend.store";
        assert_eq!(warned(&done.stderr, part), expected, "{done:?}");
    }
}

/// The password of `DATABASE_URL` gets into a file of the demo that is its user's alone, under
/// every umask.
#[test]
fn the_demos_password_is_its_users() {
    let folder = directory();
    let place = folder.path().join("demo");
    let mut command = Command::new("sh");
    let line = format!(
        "umask 000; exec {} demo --for 1s --dir {}",
        env!("CARGO_BIN_EXE_agent"),
        place.display()
    );
    command.args(["-c", &line]).env_remove("RUST_LOG");
    command.env("DATABASE_URL", "postgres://u:geheim7@127.0.0.1:1/x");
    let done = run(command);
    assert!(matches!(done.code, Some(0 | 2)), "{done:?}");
    let file = place.join("agent.toml");
    assert!(fs_err::read_to_string(&file).expect("read").contains("geheim7"));
    assert_eq!(open_to_others(&file), []);
    assert!(!done.stdout.contains("geheim7") && !done.stderr.contains("geheim7"), "{done:?}");
    let log = fs_err::read_to_string(place.join("demo.log")).expect("read");
    assert!(!log.contains("geheim7"), "{log}");
}

/// The demo keeps its hands off what it has not made.
#[test]
fn the_demo_replaces_nobodys_files() {
    let folder = directory();
    let mine = folder.path().join("agent.toml");
    fs_err::write(&mine, "[collector]\nhostname = \"mine\"\n").expect("write");
    let path = folder.path().to_str().expect("UTF-8");
    let done = run(agent(["demo", "--dir", path, "--for", "1s"]));
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("has something else in it"), "{done:?}");
    assert_eq!(fs_err::read_dir(folder.path()).expect("list").count(), 1, "nothing was added");
    let fresh = folder.path().join("fresh");
    let path = fresh.to_str().expect("UTF-8");
    for _ in 0..2 {
        let done = run(agent(["demo", "--dir", path, "--for", "1s"]));
        assert!(matches!(done.code, Some(0 | 2)), "{done:?}");
    }
    assert_eq!(open_to_others(&fresh.join("agent.toml")), []);
}
