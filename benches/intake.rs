//! How fast other programs push through the intake of a running agent, each answer durable: the
//! release binary as a process with a backend that is away, requests of 100 records of about 1 KiB
//! on 4 keep-alive connections, the load generator on the same cores.
//!
//! `BENCH_SECONDS` is how long is measured, after a second of warming up.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use common::{directory, document, median, result, setting};
use pganalytics::clock;

const CONNECTIONS: u64 = 4;
const REQUEST_RECORDS: u64 = 100;
/// Different requests of one connection.
const REQUESTS: u64 = 40;
const START_MAX: Duration = Duration::from_secs(20);

/// The agent; it ends with the value.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What the load generator has seen.
#[derive(Default)]
struct Seen {
    records: AtomicU64,
    stop: AtomicBool,
}

fn main() {
    let dir = directory();
    let (agent, socket) = start(dir.path());
    let seconds = Duration::from_secs(setting("BENCH_SECONDS", 10));
    let seen = Seen::default();
    let (rate, cpu, records) = thread::scope(|scope| {
        let seen = &seen;
        let loads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let socket = &socket;
                scope.spawn(move || load(socket, number, seen))
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let (cpu, records, begun) =
            (cpu_seconds(&agent), seen.records.load(Ordering::Relaxed), clock::monotonic());
        thread::sleep(seconds);
        let cpu = cpu_seconds(&agent) - cpu;
        let records = seen.records.load(Ordering::Relaxed) - records;
        let took = begun.elapsed().as_secs_f64();
        seen.stop.store(true, Ordering::Relaxed);
        let times = loads.into_iter().flat_map(|load| load.join().expect("a load ends"));
        let times: Vec<f64> = times.collect();
        result("intake_answer_ms", median(times), "ms");
        (records as f64 / took, cpu, records)
    });
    result("intake_records_s", rate, "records/s");
    result("intake_cpu_us", cpu * 1e6 / records as f64, "us of the agent's CPU per record");
    let status = process(&agent).status().expect("the agent's status");
    result("intake_rss_mib", status.vmhwm.unwrap_or(0) as f64 / 1024.0, "MiB at most");
}

fn process(agent: &Agent) -> procfs::process::Process {
    let id = i32::try_from(agent.0.id()).expect("a process id");
    procfs::process::Process::new(id).expect("the agent runs")
}

fn cpu_seconds(agent: &Agent) -> f64 {
    let stat = process(agent).stat().expect("the agent's times");
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

fn start(dir: &Path) -> (Agent, PathBuf) {
    let (socket, token) = (dir.join("intake.sock"), dir.join("token"));
    fs_err::write(&token, "none").expect("a token");
    let text = format!(
        "[collector]\nstate_dir = {:?}\n[backend]\nurl = \"http://127.0.0.1:1\"\n\
         allow_plaintext = true\ntoken_file = {:?}\n[intake]\nlisten = \"unix:{}\"\n\
         [pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n[agent]\nenabled = \
         false\n[log]\nlevel = \"error\"\n",
        dir.join("state").display().to_string(),
        token.display().to_string(),
        socket.display(),
    );
    let config = dir.join("agent.toml");
    fs_err::write(&config, text).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(["run", "--config"]).arg(&config).stdin(Stdio::null()).env_remove("RUST_LOG");
    let agent = Agent(command.spawn().expect("the agent starts"));
    let begun = clock::monotonic();
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < START_MAX, "the intake listens");
        thread::sleep(Duration::from_millis(20));
    }
    (agent, socket)
}

/// Pushes one request after the other; gives their times in milliseconds.
fn load(socket: &Path, connection: u64, seen: &Seen) -> Vec<f64> {
    let requests: Vec<Vec<u8>> =
        (0..REQUESTS).map(|number| request(connection * REQUESTS + number)).collect();
    let mut stream = UnixStream::connect(socket).expect("the intake answers");
    let mut times = Vec::new();
    let mut answer = [0; 4096];
    for request in requests.iter().cycle() {
        if seen.stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = clock::monotonic();
        stream.write_all(request).expect("the request goes");
        let mut length = 0;
        loop {
            let read = stream.read(&mut answer[length..]).expect("an answer");
            assert!(read > 0, "the connection stays");
            length += read;
            if is_whole(&answer[..length]) {
                break;
            }
        }
        let text = String::from_utf8_lossy(&answer[..length]);
        let inserted = format!("\"metrics_inserted\":{REQUEST_RECORDS},");
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(&inserted), "{text}");
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        seen.records.fetch_add(REQUEST_RECORDS, Ordering::Relaxed);
    }
    times
}

/// The answer ends with its JSON object.
fn is_whole(answer: &[u8]) -> bool {
    answer.windows(4).any(|window| window == b"\r\n\r\n") && answer.ends_with(b"}")
}

fn request(number: u64) -> Vec<u8> {
    let first = number * REQUEST_RECORDS;
    let mut body = b"{\"metrics\":[".to_vec();
    for n in first..first + REQUEST_RECORDS {
        body.extend_from_slice(&document(n));
        body.push(b',');
    }
    body.pop();
    body.extend_from_slice(b"]}");
    let head = format!(
        "POST /api/v1/metrics/push HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
