//! The agent as its users run it: a process with arguments, files, signals and an exit code.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::until;

const RUN_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A process that is killed when the value is dropped.
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// The agent with `arguments`, without the environment variables that change what it does.
pub fn agent<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("DATABASE_URL");
    command
}

/// Runs `command` to its end. Panics when that takes longer than a minute.
#[track_caller]
pub fn run(command: Command) -> Finished {
    let directory = super::directory();
    let mut process = Process::start(command, directory.path());
    process.finish(RUN_LIMIT)
}

impl Process {
    /// Starts `command` in the background, its output in files in `directory`.
    #[track_caller]
    pub fn start(mut command: Command, directory: &Path) -> Self {
        let number = fs_err::read_dir(directory).expect("list").count();
        let stdout = directory.join(format!("{number}.stdout"));
        let stderr = directory.join(format!("{number}.stderr"));
        command.stdin(Stdio::null());
        command.stdout(fs_err::File::create(&stdout).expect("make a file").into_file());
        command.stderr(fs_err::File::create(&stderr).expect("make a file").into_file());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child, stdout, stderr }
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        fs_err::read_to_string(&self.stdout).expect("read standard output")
    }

    /// What it has written to standard error so far: the agent's log.
    pub fn stderr(&self) -> String {
        fs_err::read_to_string(&self.stderr).expect("read standard error")
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask for the state").is_none()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM: asks it to stop as a service manager does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to stop, and expects that it does so soon and with success.
    #[track_caller]
    pub fn stop(mut self) -> Finished {
        self.terminate();
        let done = self.finish(STOP_LIMIT);
        assert_eq!(done.code, Some(0), "{done:?}");
        done
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("send a signal");
    }

    /// Waits for its end. Panics, with what it has written, when it takes longer than `limit`.
    #[track_caller]
    pub fn finish(&mut self, limit: Duration) -> Finished {
        let mut status: Option<ExitStatus> = None;
        let what = format!("end of process {}, see {}", self.id(), self.stderr.display());
        until(&what, limit, || {
            status = self.child.try_wait().expect("ask for the state");
            status.is_some()
        });
        let code = status.and_then(|status| status.code());
        Finished { code, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
    }
}
