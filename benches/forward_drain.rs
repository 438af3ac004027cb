//! How fast a backlog leaves: 1 GiB of JSON on disk, drained by the release binary as a process of
//! its own, with the default settings (four batches in flight), over TLS 1.3 with a client
//! certificate, to a backend in another process that takes everything and keeps nothing. All of it
//! runs on the same cores. `BENCH_BACKLOG_MIB` sets the size of the backlog.
//!
//! - `drain_gzip_mb_s`, `drain_zstd_mb_s`: MB of JSON per second, from the request to push until
//!   nothing waits, with gzip at its default level and with zstd.
//! - `drain_rss_mib`: the most memory that the agent had resident, its start included.
//! - `fresh_delay_ms`: while the backlog drains, windows of one metric end twice a second; the
//!   longest time from the end of one to its arrival at the backend.

#![allow(clippy::cast_precision_loss, reason = "measurements")]
#![allow(clippy::print_stdout, reason = "the backend tells this program what arrives")]
#![allow(dead_code, reason = "a part of what tests use is used here")]

mod common;
#[path = "../tests/support/port.rs"]
mod port;
#[path = "../tests/support/backend_stub.rs"]
mod stub;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use common::{allocated, directory, fill, result, setting};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use pganalytics::{clock, control::Client, encoding};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use stub::{Authority, Flaw};
use tokio_rustls::TlsAcceptor;

/// The argument that makes this program the backend.
const SERVE: &str = "--serve";
/// Names the metrics of fresh windows.
const FRESH: &str = "custom.fresh";
/// A window of one metric is no longer, packed.
const FRESH_BYTES_MAX: usize = 4 << 10;
const FRESH_EVERY: Duration = Duration::from_millis(500);
const START_MAX: Duration = Duration::from_secs(30);
const DRAIN_MAX: Duration = Duration::from_secs(900);

/// A process that ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What a drain was like.
struct Drained {
    took: Duration,
    peak_mib: f64,
    /// Of each fresh window.
    delays: Vec<Duration>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some([_, dir]) =
        arguments.iter().position(|argument| argument == SERVE).and_then(|at| arguments.get(at..))
    {
        return serve(Path::new(dir));
    }
    let whole = arguments.iter().any(|argument| argument == "--bench");
    let backlog = setting("BENCH_BACKLOG_MIB", if whole { 1024 } else { 16 }) << 20;
    let dir = directory();
    let (written, _) = fill(&dir.path().join("backlog"), backlog);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    result("drain_backlog_mib", mib(written), "MiB");
    result("drain_backlog_disk_mib", mib(allocated(dir.path())), "MiB");
    certificates(dir.path());
    let (mut peak, mut longest) = (0.0_f64, None);
    for encoding in ["gzip", "zstd"] {
        let drained = drain(dir.path(), encoding);
        let rate = written as f64 / 1e6 / drained.took.as_secs_f64();
        result(&format!("drain_{encoding}_mb_s"), rate, "MB/s");
        result(&format!("drain_{encoding}_windows"), drained.delays.len() as f64, "fresh windows");
        peak = peak.max(drained.peak_mib);
        longest = longest.max(drained.delays.into_iter().max());
    }
    result("drain_rss_mib", peak, "MiB at most");
    // A small backlog has gone before the first window ends.
    assert!(longest.is_some() || !whole, "no window ended while the backlog drained");
    if let Some(delay) = longest {
        result("fresh_delay_ms", delay.as_secs_f64() * 1e3, "ms at most");
    }
}

/// Drains a copy of the backlog.
fn drain(dir: &Path, encoding: &str) -> Drained {
    let home = dir.join(encoding);
    copy(&dir.join("backlog"), &home.join("queue"));
    let (_backend, port, arrivals) = backend(dir);
    let agent = agent(dir, &home, encoding, port);
    let client = Client::new(&home.join("control.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let waiting = || runtime.block_on(client.status()).expect("the agent answers").queue.batches;
    push_now(&home);
    let (begun, mut delays) = (clock::monotonic(), Vec::new());
    let mut next = begun + FRESH_EVERY;
    while waiting() > 0 {
        assert!(begun.elapsed() < DRAIN_MAX, "the backlog drains");
        if clock::monotonic() >= next {
            next = clock::monotonic() + FRESH_EVERY;
            metric(&home);
            let ended = clock::monotonic();
            push_now(&home);
            let arrived = arrivals.recv_timeout(START_MAX).expect("a fresh window arrives");
            // What arrives when nothing else waits any more is not measured.
            if waiting() > 0 {
                delays.push(arrived.saturating_duration_since(ended));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    let id = i32::try_from(agent.0.id()).expect("a process id");
    let status = procfs::process::Process::new(id).and_then(|process| process.status());
    let peak = status.expect("the agent's status").vmhwm.unwrap_or(0);
    Drained { took, peak_mib: peak as f64 / 1024.0, delays }
}

fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("a directory");
    for entry in fs_err::read_dir(from).expect("the backlog").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).expect("room for a copy");
        }
    }
}

/// Pushes one metric through the intake; it is durable when this returns.
fn metric(home: &Path) {
    let at = clock::rfc3339(clock::now());
    let body = format!(r#"{{"metrics":[{{"type":"{FRESH}","timestamp":"{at}","value":1}}]}}"#);
    post(&home.join("intake.sock"), "/api/v1/metrics/push", &body);
}

/// Ends the window, as its time does.
fn push_now(home: &Path) {
    post(&home.join("control.sock"), "/v1/replay", "");
}

fn post(socket: &Path, path: &str, body: &str) {
    let mut stream = UnixStream::connect(socket).expect("the agent listens");
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \
         application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("the request goes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}

fn agent(dir: &Path, home: &Path, encoding: &str, port: u16) -> Process {
    let path = |name: &str| dir.join(name).display().to_string();
    let text = format!(
        "[collector]\nstate_dir = {:?}\npush_interval = \"1h\"\n[backend]\nurl = \
         \"https://localhost:{port}\"\ntoken_file = {:?}\n[tls]\nca_file = {:?}\ncert_file = \
         {:?}\nkey_file = {:?}\n[queue]\nbytes_max = \"100GiB\"\ncommit_interval = \"0s\"\n\
         [forward]\nencoding = {encoding:?}\n[intake]\nlisten = \"unix:{}\"\n[sysstat]\nenabled = \
         false\n[disk_usage]\nenabled = false\n[pg_stats]\nenabled = false\n[pg_log]\nenabled = \
         false\n[agent]\nenabled = false\n[log]\nlevel = \"error\"\n",
        home.display().to_string(),
        path("token"),
        path("ca.crt"),
        path("collector.crt"),
        path("collector.key"),
        home.join("intake.sock").display(),
    );
    let config = home.join("agent.toml");
    fs_err::write(&config, text).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(["run", "--config"]).arg(&config).stdin(Stdio::null()).env_remove("RUST_LOG");
    let agent = Process(command.spawn().expect("the agent starts"));
    let begun = clock::monotonic();
    while ["intake.sock", "control.sock"]
        .iter()
        .any(|socket| UnixStream::connect(home.join(socket)).is_err())
    {
        assert!(begun.elapsed() < START_MAX, "the agent listens");
        thread::sleep(Duration::from_millis(20));
    }
    agent
}

/// A CA, a server's and a collector's certificate, and a token that nobody checks.
fn certificates(dir: &Path) {
    let authority = Authority::new("bench CA");
    authority.client().install(dir, &authority);
    let server = authority.server(Flaw::None);
    fs_err::write(dir.join("server.crt"), &server.chain[0]).expect("a certificate");
    fs_err::write(dir.join("server.key"), server.key.serialize_der()).expect("a key");
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = part(r#"{"exp":4102444800,"type":"access"}"#);
    fs_err::write(dir.join("token"), format!("{}.{claims}.{}", part("{}"), part("-")))
        .expect("a token");
}

/// Starts the backend; gives its port, and when fresh windows arrive.
fn backend(dir: &Path) -> (Process, u16, mpsc::Receiver<Instant>) {
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(this);
    command.arg(SERVE).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut backend = command.spawn().expect("the backend starts");
    let mut lines = BufReader::new(backend.stdout.take().expect("its output")).lines();
    let port = lines.next().and_then(|line| line.ok()?.parse().ok()).expect("its port");
    let (arrived, arrivals) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for _ in lines.map_while(Result::ok) {
            // Nobody listens when the drain is over.
            arrived.try_send(clock::monotonic()).ok();
        }
    });
    (Process(backend), port, arrivals)
}

/// The backend: takes everything, keeps nothing, and says on its output when a fresh window comes.
fn serve(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let tls = TlsAcceptor::from(Arc::new(server_config(dir)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("an address").port());
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let tls = tls.clone();
            connections.spawn(async move {
                let Ok(stream) = tls.accept(tcp).await else { return };
                let http = auto::Builder::new(TokioExecutor::new());
                http.serve_connection(TokioIo::new(stream), service_fn(take)).await.ok();
            });
        }
    });
}

fn server_config(dir: &Path) -> ServerConfig {
    let read = |name: &str| fs_err::read(dir.join(name)).expect("what was written");
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(&read("ca.crt")).expect("a CA");
    roots.add(ca).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = vec![CertificateDer::from(read("server.crt"))];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(read("server.key")));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a certificate with its key");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

async fn take(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.uri().path() == "/version" {
        return Ok(Response::new(Full::from(r#"{"version":"0","encodings":["gzip","zstd"]}"#)));
    }
    let mut body = request.into_body();
    let (mut first, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        if length <= FRESH_BYTES_MAX {
            first.extend_from_slice(&data);
        }
    }
    if length <= FRESH_BYTES_MAX {
        let json = encoding::inflate(None, first.into(), 1 << 20).unwrap_or_default();
        if memchr::memmem::find(&json, FRESH.as_bytes()).is_some() {
            println!("fresh");
        }
    }
    Ok(Response::new(Full::from(stub::TAKEN)))
}
