//! The control socket: one agent owns it, nobody else may ask.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pganalytics::control::{
    AgentStatus, BackendStatus, Client, ClientError, ConfigStatus, ReplayError, ReplayProgress,
    ReplayRequest, Server, SocketError, Sources, Subject,
};
use pganalytics::queue::{
    Group, Log, LogLimits, MemoryDisk, NewRecord, Queue, QueueThread, SegmentState,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::backend_stub::set_mode;
use crate::support::process::{agent, run};
use crate::support::site::Site;
use crate::support::{directory, until};

/// An agent that pushes nothing.
#[derive(Clone)]
pub struct Still;

impl Subject for Still {
    fn describe(&self) -> AgentStatus {
        AgentStatus {
            version: "0".to_owned(),
            pid: 1,
            started_at: Timestamp::UNIX_EPOCH,
            config: ConfigStatus::default(),
            config_file: PathBuf::new(),
            collector_id: "c-1".to_owned(),
            hostname: "db.example".to_owned(),
            backend: BackendStatus {
                url: "https://backend.example".to_owned(),
                verified: true,
                ..BackendStatus::default()
            },
            collectors: Vec::new(),
            intake: None,
        }
    }

    async fn push_now(&self) {}

    async fn start_replay(&self, _request: ReplayRequest) -> Result<ReplayProgress, ReplayError> {
        Err(ReplayError::Stopping)
    }

    fn replay(&self) -> Option<ReplayProgress> {
        None
    }

    async fn stop_replay(&self) -> Option<ReplayProgress> {
        None
    }
}

/// A queue in memory behind a socket.
struct Running {
    queue: Queue,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
    _thread: QueueThread,
}

impl Running {
    async fn start(path: &Path) -> Result<Self, SocketError> {
        let server = Server::bind(path).await?;
        let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).expect("a log");
        let (queue, thread) = Queue::start(log, Duration::ZERO).expect("a queue");
        let sources = Sources { queue: queue.clone(), agent: Still, metrics: None };
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(sources, async { stopped.await.unwrap_or_default() }));
        Ok(Self { queue, stop, tasks, _thread: thread })
    }

    async fn stop(mut self) {
        self.stop.send(()).expect("still serving");
        self.tasks.join_next().await;
    }
}

#[tokio::test]
async fn client_hears_what_the_queue_holds() {
    let folder = directory();
    let path = folder.path().join("control.sock");
    let running = Running::start(&path).await.expect("a socket");
    let client = Client::new(&path);
    let replay = client.replay().await.expect("answered");
    assert_eq!((replay.last_segment, replay.batches), (None, 0));
    let record = NewRecord {
        kind: "sysstat".to_owned(),
        at_ms: 0,
        payload: bytes::Bytes::from_static(b"{}"),
    };
    let group = Group::of(vec![record.clone(), record]);
    running.queue.append(group).await.expect("appended");

    let status = client.status().await.expect("answered");
    assert_eq!((status.agent.collector_id.as_str(), status.queue.records), ("c-1", 2));
    let [segment] = &client.segments().await.expect("answered")[..] else { panic!("one") };
    assert_eq!((segment.state, segment.records), (SegmentState::Open, 2));
    let replay = client.replay().await.expect("answered");
    assert_eq!((replay.last_segment, replay.batches, replay.records), (Some(segment.id), 1, 2));
    let [batch] = &client.batches().await.expect("answered")[..] else { panic!("one") };
    assert_eq!((batch.segment, batch.records), (segment.id, 2));
    running.stop().await;
    assert!(!path.exists());
    let error = client.status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NotRunning(_)), "{error}");
}

#[tokio::test]
async fn closed_queue_is_an_error_and_not_silence() {
    let folder = directory();
    let path = folder.path().join("control.sock");
    let running = Running::start(&path).await.expect("a socket");
    running.queue.close().await.expect("closed");
    let error = Client::new(&path).segments().await.expect_err("no queue").to_string();
    assert!(error.contains("the queue is closed"), "{error}");
}

#[tokio::test]
async fn socket_has_one_owner() {
    let folder = directory();
    let path = folder.path().join("run/control.sock");
    let first = Running::start(&path).await.expect("a socket");
    let mode = std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let error = Running::start(&path).await.err().expect("taken");
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
    Client::new(&path).status().await.expect("the first still answers");
    first.stop().await;

    // What a killed agent leaves: a socket that nobody answers on.
    drop(StdListener::bind(&path).expect("bind"));
    assert!(path.exists());
    let client = Client::new(&path);
    let error = client.status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NotRunning(_)), "{error}");
    let second = Running::start(&path).await.expect("the left-over is replaced");
    client.status().await.expect("the second answers");
    second.stop().await;

    std::fs::write(&path, "precious").expect("write");
    let error = Running::start(&path).await.err().expect("no socket");
    assert!(error.to_string().contains("is no socket; hint: "), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");

    let long = folder.path().join("x".repeat(120));
    let error = Running::start(&long).await.err().expect("too long").to_string();
    assert!(error.contains("107 bytes"), "{error}");
}

/// Only root can become somebody else, so only root can try.
#[tokio::test(flavor = "multi_thread")]
async fn other_users_get_no_answer() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = directory();
    set_mode(folder.path(), 0o755);
    let path = folder.path().join("control.sock");
    let config = folder.path().join("agent.toml");
    std::fs::write(&config, format!("[control]\nsocket = '{}'\n", path.display())).expect("write");
    let running = Running::start(&path).await.expect("a socket");
    // A copy that this user may run, wherever the tests were built.
    let program = folder.path().join("agent");
    std::fs::copy(env!("CARGO_BIN_EXE_agent"), &program).expect("copy");
    set_mode(&program, 0o755);
    let ask = |user: u32| {
        let mut command = std::process::Command::new(&program);
        command.args(["status", "--json", "--config"]).arg(&config).uid(user).gid(user);
        tokio::task::spawn_blocking(move || run(command))
    };
    let refused = ask(NOBODY).await.expect("ran");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("belongs to another user"), "{refused:?}");
    // With the mode gone, the peer's user still counts.
    set_mode(&path, 0o666);
    let refused = ask(NOBODY).await.expect("ran");
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
    let answered = ask(0).await.expect("ran");
    assert_eq!(answered.code, Some(0), "{answered:?}");
    assert!(answered.stdout.contains("\"collector_id\": \"c-1\""), "{answered:?}");
    running.stop().await;
}

#[test]
fn commands_without_a_configuration_say_how_to_make_one() {
    for command in ["status", "inspect", "replay"] {
        let done = run(agent([command]));
        assert_eq!(done.code, Some(64), "{done:?}");
        assert!(done.stderr.contains("agent config init"), "{done:?}");
        let done = run(agent([command, "--nonsense"]));
        assert_eq!(done.code, Some(64), "{done:?}");
    }
}

#[test]
fn help_of_the_operators_commands() {
    for command in ["register", "status", "inspect", "replay"] {
        let done = run(agent([command, "--help"]));
        assert_eq!(done.code, Some(0), "{done:?}");
        insta::assert_snapshot!(format!("help_{command}"), done.stdout);
    }
    for command in [["inspect", "export"], ["queue", "repair"]] {
        let done = run(agent(command.into_iter().chain(["--help"])));
        assert_eq!(done.code, Some(0), "{done:?}");
        insta::assert_snapshot!(format!("help_{}", command.join("_")), done.stdout);
    }
}

/// What is in the way of the socket at the start may go away: then the agent can be asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_cannot_be_had_at_the_start_is_had_later() {
    let site = Site::registered().await;
    let folder = site.directory.path().join("blocked");
    fs_err::write(&folder, "in the way").expect("write");
    site.configure(&format!("[control]\nsocket = \"{}/control.sock\"\n", folder.display()));
    let agent = site.start();
    let limit = Duration::from_secs(60);
    until("it says so", limit, || agent.stderr().contains("nobody can ask this agent"));
    fs_err::remove_file(&folder).expect("remove");
    until("it can be asked", limit, || site.command(&["status"]).stdout.contains("backend "));
    assert_eq!(agent.stderr().matches("nobody can ask this agent").count(), 1);
    let done = agent.stop();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(!folder.join("control.sock").exists());
}

/// The agent may have as many open files as the system lets it.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised() {
    let site = Site::registered().await;
    let agent = site.start_with(|command| {
        let run = std::mem::replace(command, std::process::Command::new("sh"));
        command.args(["-c", "ulimit -S -n 200; exec \"$@\"", "sh"]);
        command.arg(run.get_program()).args(run.get_args()).env_remove("RUST_LOG");
    });
    until("it runs", Duration::from_secs(60), || agent.stderr().contains("the agent runs"));
    let limits = fs_err::read_to_string(format!("/proc/{}/limits", agent.id())).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let numbers: Vec<&str> =
        files.split_whitespace().filter(|it| it.parse::<u64>().is_ok()).collect();
    let [soft, hard] = numbers[..] else { panic!("{files}") };
    assert_eq!(soft, hard, "{files}");
}
