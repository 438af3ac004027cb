//! Real PostgreSQL servers, one data directory and one Unix socket directory each.
//!
//! `tests/run` installs the servers of `servers.txt`; without them a test that needs one fails and
//! says so. A server runs as the test's own user, or as `postgres` (else `nobody`) when that user
//! is root, because PostgreSQL refuses root. It listens on
//! TCP only where a test is about that, at a loopback address of its own.
//!
//! Between a test and its server stands a shell that waits for its standard input to close: when
//! the test ends in any way, SIGKILL included, that shell stops the server and removes its
//! directory. So a server in a `static` is gone with the test process too.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio_postgres::{Client, NoTls, Row};

use super::until;

const SERVERS: &str = include_str!("servers.txt");
/// The major of Debian's package that `tests/run` installs for the translations of its messages.
const TRANSLATED: u32 = 15;
const START_LIMIT: Duration = Duration::from_secs(60);

/// Small, quick, and with the log file that `pg_log` reads.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "16MB"),
    ("max_connections", "50"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("logging_collector", "on"),
    ("log_directory", "log"),
    ("log_filename", "postgresql.log"),
    ("log_rotation_age", "0"),
    ("log_rotation_size", "0"),
];

/// Runs the server "$2".. until standard input says "stop" or ends; after an end the directory
/// "$1" is removed too.
const KEEPER: &str = r#"
trap '' INT TERM HUP
dir=$1; shift
"$@" >>"$dir/start.log" 2>&1 </dev/null &
server=$!
echo "$server"
if read -r word; then keep=yes; else keep=no; fi
kill -INT "$server" 2>/dev/null
wait "$server"
[ "$keep" = yes ] || rm -rf "$dir"
"#;

/// A running server. It is stopped, and its directory removed, when the value is dropped.
pub struct Postgres {
    major: u32,
    directory: PathBuf,
    program: PathBuf,
    /// The language of its messages, as gettext's `LANGUAGE` has it; English without one.
    language: Option<&'static str>,
    user: Option<User>,
    keeper: Option<Child>,
    pid: u32,
    /// A loopback address of its own, where it listens on TCP.
    address: Option<String>,
}

/// The user a server runs as when the tests run as root.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// The majors whose servers `tests/run` installs, in rising order.
pub fn majors() -> Vec<u32> {
    listed().map(|(major, _)| major).collect()
}

/// Whether the server of `major` is installed: for benches, which need not have one.
pub fn installed(major: u32) -> bool {
    places(major).iter().any(|bin| bin.join("postgres").exists())
}

/// The server of `major` that this test process shares between its tests: for tests that only
/// read, or that work in a database of their own. It is there until the process ends.
pub fn shared(major: u32) -> &'static Postgres {
    static SHARED: OnceLock<Mutex<Vec<&'static Postgres>>> = OnceLock::new();
    let mut shared = SHARED.get_or_init(Mutex::default).lock().expect("no panic in start");
    if let Some(server) = shared.iter().find(|server| server.major == major) {
        return server;
    }
    let server = Box::leak(Box::new(Postgres::start(major)));
    shared.push(server);
    server
}

impl Postgres {
    /// A new server of `major`, ready for connections.
    pub fn start(major: u32) -> Self {
        Self::start_with(major, &[])
    }

    /// As [`Postgres::start`], with settings (`postgresql.conf`) over the ones of every test.
    pub fn start_with(major: u32, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::new(major, &binaries(major));
        server.initialise(settings);
        server.resume();
        server
    }

    /// Debian's server of [`TRANSLATED`], which has the translations of its messages that the
    /// others lack. It is not started: [`Postgres::speak`] does that.
    pub fn translated(settings: &[(&str, &str)]) -> Self {
        let bin = debian(TRANSLATED);
        assert!(
            bin.join("postgres").exists(),
            "Debian's PostgreSQL {TRANSLATED} is not in {}; hint: tests/run installs it",
            bin.display()
        );
        let server = Self::new(TRANSLATED, &bin);
        // A locale that every host has, and not C, in which nothing is translated.
        server.initialise(&[&[("lc_messages", "C.UTF-8")], settings].concat());
        server
    }

    /// Starts a server of [`Postgres::translated`] in this language (`C` is English), with a log of
    /// that name. A running one is stopped before.
    pub fn speak(&mut self, language: &'static str) -> PathBuf {
        self.stop();
        self.language = Some(language);
        let log = format!("{language}.log");
        self.set(&[("log_filename", &log)]);
        self.resume();
        self.data_dir().join("log").join(log)
    }

    /// A server that also listens on TCP, port 5432 at [`Postgres::address`]. `make` is told that
    /// address and gives settings, and files of the data directory, which get mode 0600.
    pub fn start_on_tcp(
        major: u32,
        make: impl FnOnce(&str) -> (Vec<(&'static str, String)>, Vec<(&'static str, String)>),
    ) -> Self {
        let mut server = Self::new(major, &binaries(major));
        let address = own_address();
        let (settings, files) = make(&address);
        let settings: Vec<_> = [("listen_addresses", address.as_str())]
            .into_iter()
            .chain(settings.iter().map(|(name, value)| (*name, value.as_str())))
            .collect();
        server.initialise(&settings);
        for (name, text) in files {
            server.write(name, &text);
            let mode = fs_err::set_permissions(
                server.data_dir().join(name),
                std::fs::Permissions::from_mode(0o600),
            );
            mode.expect("set the mode");
        }
        server.address = Some(address);
        server.resume();
        server
    }

    /// Where it listens on TCP.
    pub fn address(&self) -> &str {
        self.address.as_deref().expect("it was started on TCP")
    }

    /// A streaming standby of `primary`, which is stopped while its data is copied.
    pub fn standby_of(primary: &mut Self) -> Self {
        let mut server = Self::new(primary.major, &binaries(primary.major));
        primary.stop();
        let mut copy = server.as_server_user("cp");
        let status = copy.arg("-a").args([primary.data_dir(), server.data_dir()]).status();
        assert!(status.expect("run cp").success(), "copy the primary's data");
        let from = format!("host={} user=postgres", primary.directory.display());
        let socket = server.directory.to_str().expect("a path in UTF-8").to_owned();
        server.set(&[("unix_socket_directories", &socket)]);
        if primary.major >= 12 {
            server.set(&[("primary_conninfo", &from)]);
            server.write("standby.signal", "");
        } else {
            let settings = format!("standby_mode = on\nprimary_conninfo = '{from}'\n");
            server.write("recovery.conf", &settings);
        }
        primary.resume();
        server.resume();
        server
    }

    fn new(major: u32, bin: &Path) -> Self {
        let user = server_user();
        let directory = tempfile::Builder::new()
            .prefix("pga-pg-")
            .tempdir_in(socket_root())
            .expect("make a server directory")
            .keep();
        if let Some(user) = user {
            chown(&directory, Some(user.uid), Some(user.gid)).expect("give the directory away");
        }
        let program = bin.join("postgres");
        Self {
            major,
            directory,
            program,
            language: None,
            user,
            keeper: None,
            pid: 0,
            address: None,
        }
    }

    /// The major version, for example 15.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The directory with the socket `.s.PGSQL.5432`: the `host` of a connection.
    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    /// The data directory. It belongs to the server's user.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The log file that the server's logging collector writes.
    pub fn log_file(&self) -> PathBuf {
        self.data_dir().join("log/postgresql.log")
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A connection string (key=value) for the superuser `postgres`, who needs no password.
    pub fn connection(&self, database: &str) -> String {
        format!("host={} port=5432 user=postgres dbname={database}", self.directory.display())
    }

    /// A new session in `database`, as superuser.
    pub async fn client(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.connection(database), NoTls)
            .await
            .unwrap_or_else(|error| panic!("connect to {}: {error}", self.directory.display()));
        tokio::spawn(connection);
        client
    }

    /// Runs statements in `database`, in a session of their own.
    pub async fn execute(&self, database: &str, sql: &str) {
        let result = self.client(database).await.batch_execute(sql).await;
        result.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs one query in `database`, in a session of its own, and returns its rows.
    pub async fn query(&self, database: &str, sql: &str) -> Vec<Row> {
        let result = self.client(database).await.query(sql, &[]).await;
        result.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// Takes the server away (a fast shutdown); [`Postgres::resume`] brings it back as it was.
    pub fn stop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        let mut input = keeper.stdin.take().expect("the keeper has an input");
        input.write_all(b"stop\n").expect("tell the keeper to stop");
        keeper.wait().expect("wait for the keeper");
    }

    /// Starts a stopped server again, on the same data and the same socket.
    pub fn resume(&mut self) {
        assert!(self.keeper.is_none(), "stop the server before it is started again");
        let mut command = self.as_server_user("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(&self.directory).arg(&self.program);
        command.arg("-D").arg(self.data_dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.process_group(0).spawn().expect("start the keeper");
        let mut pid = String::new();
        let output = keeper.stdout.take().expect("the keeper has an output");
        BufReader::new(output).read_line(&mut pid).expect("read the server's id");
        self.pid = pid.trim().parse().expect("the keeper prints the server's id");
        self.keeper = Some(keeper);
        let status_file = self.data_dir().join("postmaster.pid");
        let start_log = self.directory.join("start.log");
        until(&format!("server ready, see {}", start_log.display()), START_LIMIT, || {
            assert!(alive(self.pid), "PostgreSQL {} ended: {}", self.major, text(&start_log));
            // The eighth line of postmaster.pid is the state that pg_ctl waits for as well.
            text(&status_file)
                .lines()
                .nth(7)
                .is_some_and(|state| matches!(state.trim(), "ready" | "standby"))
        });
    }

    fn initialise(&self, settings: &[(&str, &str)]) {
        let mut command = self.as_server_user(self.program.with_file_name("initdb"));
        command.args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"]);
        let output = command.arg(self.data_dir()).output().expect("run initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));

        let socket = self.directory.to_str().expect("a path in UTF-8");
        let own = [("unix_socket_directories", socket)];
        self.set(&SETTINGS.iter().chain(&own).chain(settings).copied().collect::<Vec<_>>());
    }

    /// Adds settings, which count over those before them from the next start on.
    fn set(&self, settings: &[(&str, &str)]) {
        let mut lines = String::new();
        for (name, value) in settings {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''")).expect("into a string");
        }
        let file = self.data_dir().join("postgresql.conf");
        let mut file = fs_err::OpenOptions::new().append(true).open(file).expect("open settings");
        file.write_all(lines.as_bytes()).expect("write settings");
    }

    /// Writes a file of the data directory.
    fn write(&self, name: &str, text: &str) {
        let path = self.data_dir().join(name);
        fs_err::write(&path, text).expect("write a file of the server");
        if let Some(user) = self.user {
            chown(&path, Some(user.uid), Some(user.gid)).expect("give the file away");
        }
    }

    fn as_server_user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // In C nothing is translated, and what a server says before it knows a database is ASCII.
        let locale = if self.language.is_some() { "C.UTF-8" } else { "C" };
        command.current_dir(&self.directory).env("LC_ALL", locale);
        command.env("LANGUAGE", self.language.unwrap_or_default());
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            drop(keeper.wait());
        }
        drop(fs_err::remove_dir_all(&self.directory));
    }
}

/// Where `tests/run` keeps what it installs: outside the sources, shared by all clones.
pub fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("PGANALYTICS_TEST_CACHE") {
        return PathBuf::from(cache);
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/cache/pganalytics-agent-tests");
    }
    let home = std::env::var_os("HOME").expect("HOME is set");
    PathBuf::from(home).join(".cache/pganalytics-agent-tests")
}

/// The directory of `initdb` and `postgres`: the installed package, else Debian's.
fn binaries(major: u32) -> PathBuf {
    let places = places(major);
    places.iter().find(|bin| bin.join("postgres").exists()).cloned().unwrap_or_else(|| {
        panic!("PostgreSQL {major} is nowhere in {places:?}; hint: tests/run installs it")
    })
}

fn places(major: u32) -> [PathBuf; 2] {
    let version = listed().find(|(listed, _)| *listed == major).map(|(_, version)| version);
    let version = version.unwrap_or_else(|| panic!("PostgreSQL {major} is not in servers.txt"));
    let installed = cache().join("servers").join(version).join("native/bin");
    [installed, debian(major)]
}

fn debian(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

fn listed() -> impl Iterator<Item = (u32, &'static str)> {
    let lines = SERVERS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (major, version) = line.split_once(' ')?;
        Some((major.parse().ok()?, version))
    })
}

/// A short path, because a Unix socket's path has at most 107 bytes.
fn socket_root() -> PathBuf {
    let root = std::env::temp_dir();
    if root.as_os_str().len() <= 60 { root } else { PathBuf::from("/tmp") }
}

/// A loopback address that no other server of this process has, nor, while both live, of another.
fn own_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (pid, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}", 64 + (pid >> 8) % 128, pid % 256, 1 + next % 250)
}

fn server_user() -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs_err::read_to_string("/etc/passwd").expect("read the users");
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
        Some(User { uid: ids.next()?, gid: ids.next()? })
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("a user named postgres or nobody"))
}

fn alive(pid: u32) -> bool {
    let stat = text(Path::new(&format!("/proc/{pid}/stat")));
    !stat.is_empty() && !stat.contains(") Z ")
}

fn text(path: &Path) -> String {
    fs_err::read_to_string(path).unwrap_or_default()
}
