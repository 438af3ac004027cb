//! The program `agent`: parses its arguments, runs one command, gives its exit code.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 partial or found damage, 64 usage or configuration.

use std::process::ExitCode;

use clap::Parser;
use pganalytics::cli::{self, Command};

/// Store-and-forward metrics agent for PostgreSQL hosts, and the backend it reports to.
#[derive(Debug, Parser)]
#[command(name = "agent", version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    set_up_process();
    // What is written is the user's alone, whatever the shell or the service says: queue, state,
    // copies of them, sockets. What others are to read is given to them by name.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match Arguments::try_parse() {
        Ok(arguments) => cli::execute(arguments.command),
        Err(error) => {
            // Help and version come this way too; a pipe that is closed is not an error.
            error.print().ok();
            if error.use_stderr() { ExitCode::from(cli::EXIT_USAGE) } else { ExitCode::SUCCESS }
        }
    }
}

/// What the process is told before anything else runs.
///
/// A file that reaches the process's limit (`ulimit -f`) is an error of the write, as a full disk
/// is, and not the end of the process.
///
/// glibc does not hold on to freed memory. It raises the size from which it asks the system for
/// memory of its own each time such memory is freed, and the buffers of each push window's segment
/// then stay in the heap: 8 MiB of an agent that has nothing to do.
#[expect(unsafe_code, reason = "settings of the process and the C library; nothing else runs yet")]
fn set_up_process() {
    #[cfg(target_env = "gnu")]
    const LARGE_BYTES: libc::c_int = 128 << 10;
    // SAFETY: no handler is installed, mallopt takes two numbers, and no other thread exists. Where
    // mallopt does nothing, the agent is a little larger.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
    }
}
