//! Clients without a certificate that hold what others need: connections, time, memory.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use http::Method;
use pganalytics::{backend, clock};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::backend_collectors::{claims, signed};
use crate::support::backend::{Ask, Client, Served};
use crate::support::hostile::{ATTACKS, Attack, Target};
use crate::support::process::{Process, agent};
use crate::support::{directory, until, until_async};

/// What a host waits for an answer at most; an agent waits 30 s.
const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY_MAX_KIB: u64 = 256 << 10;
/// Hosts that are served beside an attack.
const HOSTS: usize = 20;

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, u8::try_from(n % 250 + 1).expect("small"))
}

fn own_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 2, u8::try_from(n + 1).expect("small"))
}

/// Whatever a connection does, it ends: no phase of either protocol is without a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_connection_ends() {
    let short = Duration::from_millis(500);
    let served = Served::start_with(|config| {
        let limits = &mut config.limits;
        limits.handshake_timeout = Duration::from_secs(5);
        (limits.head_timeout, limits.idle_timeout) = (short, short);
        (limits.request_timeout, limits.write_timeout) = (short, short);
    })
    .await;
    let running = served.running();
    let target = Target::new(running.address(), running.ca_certificate());
    let mut attackers = JoinSet::new();
    for attack in ATTACKS {
        let target = target.clone();
        attackers.spawn(async move {
            let ended = target.attack(attack, Ipv4Addr::LOCALHOST);
            (attack, tokio::time::timeout(Duration::from_secs(20), ended).await.is_ok())
        });
    }
    let ended = attackers.join_all().await;
    assert!(ended.iter().all(|(_, ended)| *ended), "{ended:?}");
    assert_eq!(served.stranger().get("/version", "x").await.status, 200);
}

/// An address that takes all it can get takes it from itself: others, and hosts with a
/// certificate behind the same address, are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_shut_nobody_out() {
    let served = Served::start_with(|config| {
        config.limits.connections_max = 24;
        config.limits.connections_unverified_max = 16;
        config.limits.connections_per_address_max = 8;
        config.limits.handshake_timeout = Duration::from_secs(60);
    })
    .await;
    let host = served.register("db1").await;
    let running = served.running();
    let target = Target::new(running.address(), running.ca_certificate());
    let mut attackers = JoinSet::new();
    for n in 0..120 {
        let target = target.clone();
        // Most from the address that the host is behind, the others from many.
        let from = if n % 3 == 0 { address(n) } else { Ipv4Addr::LOCALHOST };
        attackers.spawn(async move { target.attack(Attack::Silent, from).await });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..5 {
        let push = tokio::time::timeout(PATIENCE, host.push(json!([])));
        assert_eq!(push.await.expect("in time").status, 200);
        let user = served.stranger();
        let version = tokio::time::timeout(PATIENCE, user.get("/version", "x"));
        assert_eq!(version.await.expect("in time").status, 200);
    }
    attackers.abort_all();
}

/// A backend as it is run.
pub struct Spawned {
    pub process: Process,
    target: Target,
    authority: String,
    secret: String,
    _directory: tempfile::TempDir,
}

/// A registered host: a client with its certificate, an empty push, and what both are made of.
pub struct Registered {
    pub client: Client,
    push: Ask,
    pub envelope: Value,
    own: (String, String),
    pub token: String,
    secret: String,
}

impl Registered {
    fn id(&self) -> &str {
        self.envelope["collector_id"].as_str().expect("an id")
    }

    /// A token that the host has minted for longer than it may.
    fn token_for_years(&self) -> String {
        let mut claims = claims(self.id());
        claims["exp"] = json!(i64::MAX);
        let key = URL_SAFE_NO_PAD.decode(&self.secret).expect("base64url without padding");
        signed(self.id(), &key, &claims)
    }
}

/// Pushes of all hosts at once, each twice: the longest that one has waited.
async fn serve_all(hosts: &[(Client, Ask)], beside: &str) -> Duration {
    let mut waiting = JoinSet::new();
    for (client, push) in hosts {
        let (client, push, beside) = (client.clone(), push.clone(), beside.to_owned());
        waiting.spawn(async move {
            let mut slowest = Duration::ZERO;
            for _ in 0..2 {
                let began = clock::monotonic();
                let reply = tokio::time::timeout(PATIENCE, client.try_send(push.clone())).await;
                let reply = reply.unwrap_or_else(|_| panic!("{beside}: not in time"));
                assert_eq!(reply.expect("an answer").status, 200, "{beside}");
                slowest = slowest.max(clock::monotonic() - began);
            }
            slowest
        });
    }
    waiting.join_all().await.into_iter().max().unwrap_or_default()
}

impl Spawned {
    pub fn start() -> Self {
        let directory = directory();
        let (file, data) = (directory.path().join("backend.toml"), directory.path().join("data"));
        let text = format!(
            "[backend]\nlisten = \"127.0.0.1:0\"\npage_listen = \"off\"\ndata_dir = \"{}\"\n\
             [limits]\nconnections_max = 300\n",
            data.display()
        );
        std::fs::write(&file, text).expect("write");
        let arguments = ["backend", "--config", file.to_str().expect("UTF-8")];
        let process = Process::start(agent(arguments), directory.path());
        let mut address = None;
        until("the backend serves", Duration::from_secs(20), || {
            let text = process.stdout();
            let url = text.split_once("https://").and_then(|(_, rest)| rest.lines().next());
            address = url.and_then(|url| url.trim().parse().ok());
            address.is_some()
        });
        let key = |name| std::fs::read_to_string(data.join("keys").join(name)).expect("a key");
        let authority = key("ca.crt");
        let target = Target::new(address.expect("it serves"), &authority);
        let secret = key("registration-secret").trim().to_owned();
        Self { process, target, authority, secret, _directory: directory }
    }

    /// So many registered hosts, each at an address of its own.
    async fn hosts(&self, count: usize) -> Vec<(Client, Ask)> {
        let mut hosts = Vec::new();
        for n in 0..count {
            let Registered { client, push, .. } = self.register(&format!("host-{n}")).await;
            hosts.push((client.from(own_address(n).into()), push));
        }
        hosts
    }

    pub async fn register(&self, name: &str) -> Registered {
        let stranger = Client::new(self.target.address, &self.authority, None);
        let body = json!({"name": name, "hostname": name});
        let ask = Ask::post("/api/v1/collectors/register").json(&body);
        let reply = stranger.send(ask.header("x-registration-secret", &self.secret)).await.json();
        let text = |key: &str| reply[key].as_str().expect(key).to_owned();
        let own = (text("certificate"), text("private_key"));
        let envelope = json!({
            "collector_id": text("collector_id"), "hostname": name, "version": "1.0.0",
            "timestamp": "2026-01-01T00:00:00Z", "metrics": [],
        });
        let token = text("token");
        let push = Ask::post("/api/v1/metrics/push").json(&envelope).bearer(&token);
        let pair = Some((own.0.as_str(), own.1.as_str()));
        let client = Client::new(self.target.address, &self.authority, pair);
        Registered { client, push, envelope, own, token, secret: text("secret") }
    }

    /// Waits, some seconds at most, until it has nearly as many connections as it takes.
    async fn until_full(&self) {
        let files = format!("/proc/{}/fd", self.process.id());
        for _ in 0..50 {
            if std::fs::read_dir(&files).expect("it runs").count() >= 250 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// The most memory that it ever had, KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// Who has a host's key can take its place: that is said where an operator sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_over_a_certificate_is_warned_of() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let host = backend.register("db1").await;
    let is_said = || {
        let said = |line: &str| line.contains("WARN") && line.contains("over its certificate");
        backend.process.stderr().lines().any(|line| said(line) && line.contains("db1"))
    };
    assert!(!is_said(), "{}", backend.process.stderr());
    let again = Ask::post("/api/v1/collectors/register");
    let reply = host.client.send(again.json(&json!({"name": "db1", "hostname": "db1"}))).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    until("it is said", PATIENCE, is_said);
}

/// A stranger can name any id: what is said of refused collectors is said of those that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_collectors_that_there_are_not_are_not_spoken_of() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let host = backend.register("db1").await;
    let id = host.id().to_owned();
    let said = || {
        let stderr = backend.process.stderr();
        let said = stderr.lines().filter(|line| line.contains("a collector was refused"));
        said.map(str::to_owned).collect::<Vec<_>>()
    };
    let stranger = Client::new(backend.target.address, &backend.authority, None);
    for n in 0..3 {
        let head = json!({"alg": "HS256", "kid": uuid::Uuid::from_u128(n)}).to_string();
        let token = format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(head));
        stranger.get("/api/v1/config/x", &token).await.refused(401);
    }
    let bad = format!("{}A", host.token);
    stranger.get("/api/v1/config/x", &bad).await.refused(401);
    until("it is said", PATIENCE, || !said().is_empty());
    assert!(matches!(&said()[..], [line] if line.contains(&id)), "{:?}", said());
}

/// A collector that is removed has the places of a stranger from then on, also for connections that
/// it has open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_collector_loses_its_open_places() {
    let served = Served::start_with(|config| {
        config.limits.connections_unverified_max = 4;
        config.limits.connections_per_address_max = 2;
    })
    .await;
    let host = served.register("db1").await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = host.client.connect().await.expect("connect");
        let reply = host.ask(json!([])).over(&mut connection).await.expect("an answer");
        assert_eq!(reply.status, 200);
        open.push(connection);
    }
    backend::remove(&served.config, "db1").await.expect("removed");
    // The last one comes first to be told; it is as idle as the others.
    let last = open.last_mut().expect("there are some");
    assert_eq!(host.ask(json!([])).over(last).await.expect("an answer").status, 401);
    until_async("two are left", PATIENCE, async || {
        open.iter().filter(|connection| !connection.is_closed()).count() == 2
    })
    .await;
}

/// With as many strangers as there may be by default: hosts beside each attack are served in time,
/// and the backend's memory has a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_served_beside_every_attack() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let hosts = backend.hosts(HOSTS).await;
    let neighbour = backend.register("neighbour").await;
    let mut measured = Vec::new();
    for attack in ATTACKS {
        let mut attackers = JoinSet::new();
        // What 40,000 requests cost their sender would slow down everybody on this machine.
        let many = if attack == Attack::Pipelined { 100 } else { 360 };
        for n in 0..many {
            let target = backend.target.clone();
            // More than one address may have, and with the others more than strangers may have.
            let from = if n % 4 == 0 { Ipv4Addr::LOCALHOST } else { address(n) };
            attackers.spawn(async move {
                loop {
                    let _ = target.attack(attack, from).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
        backend.until_full().await;
        let slowest = serve_all(&hosts, &format!("{attack:?}")).await;
        // Behind the address of most attackers: if need be with a second try, as an agent does.
        let Registered { client, push, .. } = &neighbour;
        until_async(&format!("{attack:?}: the neighbour is served"), PATIENCE, async || {
            matches!(client.try_send(push.clone()).await, Ok(reply) if reply.status == 200)
        })
        .await;
        // A person without a certificate gets in, too.
        let stranger = Client::new(backend.target.address, &backend.authority, None);
        let stranger = stranger.from(Ipv4Addr::new(127, 0, 3, 1).into());
        until_async(&format!("{attack:?}: a stranger is served"), PATIENCE, async || {
            let reply = stranger.try_send(Ask::new(Method::GET, "/version")).await;
            matches!(reply, Ok(reply) if reply.status == 200)
        })
        .await;
        attackers.shutdown().await;
        let memory = backend.memory();
        measured.push(format!("{attack:?}: {slowest:?}, {memory} KiB"));
        assert!(memory <= MEMORY_MAX_KIB, "{measured:?}");
    }
    tokio::task::spawn_blocking(move || backend.process.stop()).await.expect("it ends");
}

/// Hosts with good certificates that hold a hundred large bodies: they wait for room or are sent
/// away, the others are served beside them, and the backend's memory has its bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_many_connections_have_a_bound_together() {
    const ATTACKERS: usize = 4;
    const CONNECTIONS: usize = 100;
    const MIB: usize = 1 << 20;
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let hosts = backend.hosts(HOSTS).await;
    let mut sending = JoinSet::new();
    for n in 0..ATTACKERS {
        let Registered { own, token, .. } = backend.register(&format!("large-{n}")).await;
        let own = (own.0.as_str(), own.1.as_str());
        let target = Target::verified(backend.target.address, &backend.authority, own);
        for connection in 0..CONNECTIONS / ATTACKERS {
            // Every other one does not say how much will come.
            let length = match connection % 2 {
                0 => format!("content-length: {}", 16 * MIB),
                _ => format!("transfer-encoding: chunked\r\n\r\n{:x}", 16 * MIB),
            };
            let end = if connection % 2 == 0 { "\r\n\r\n" } else { "\r\n" };
            let head = format!(
                "POST /api/v1/metrics/push HTTP/1.1\r\nhost: localhost\r\n\
                 authorization: Bearer {token}\r\n{length}{end}"
            );
            let target = target.clone();
            sending.spawn(async move { target.half_a_body(&head, 15 * MIB).await });
        }
    }
    let mut held = Vec::new();
    while !sending.is_empty() {
        serve_all(&hosts, "large bodies").await;
        while let Some(stream) = sending.try_join_next() {
            held.push(stream.expect("it ends"));
        }
    }
    assert_eq!(held.len(), CONNECTIONS);
    let memory = backend.memory();
    assert!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    tokio::task::spawn_blocking(move || backend.process.stop()).await.expect("it ends");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Evil {
    Live,
    Removed,
}

/// Requests that do not end, of a collector that was given several certificates, far more than
/// there are places for: a host is served beside them. What is left of them then.
async fn served_beside(evil_is: Evil) -> (Served, Vec<TlsStream<TcpStream>>) {
    const HEAD: &str = "POST /api/v1/auth/refresh HTTP/1.1\r\nhost: localhost\r\n\
                        content-type: application/json\r\ncontent-length: 900\r\n\r\n{";
    let served = Served::start_with(|config| {
        config.limits.connections_max = 12;
        config.limits.connections_unverified_max = 8;
        config.limits.connections_per_address_max = 4;
    })
    .await;
    let host = served.register("db1").await;
    let body = json!({"name": "evil", "hostname": "evil"});
    let answer = served.try_register(&body).await.json();
    let text = |key: &str| answer[key].as_str().expect(key);
    let (mut certificates, key) = (vec![text("certificate").to_owned()], text("private_key"));
    let csr = rcgen::KeyPair::from_pem(key)
        .and_then(|key| rcgen::CertificateParams::default().serialize_request(&key)?.pem())
        .expect("a request");
    let evil = served.client(&certificates[0], key);
    for _ in 0..3 {
        let ask = Ask::post("/api/v1/collectors/renew-certificate").bearer(text("token"));
        let renewed = evil.send(ask.json(&json!({"csr": csr}))).await.json();
        certificates.push(renewed["certificate"].as_str().expect("a certificate").to_owned());
    }
    if evil_is == Evil::Removed {
        backend::remove(&served.config, "evil").await.expect("removed");
    }
    let running = served.running();
    let mut held = Vec::new();
    // One after the other: at once, they would take the places of strangers from each other.
    for n in 0..40 {
        let own = (certificates[n % certificates.len()].as_str(), key);
        let target = Target::verified(running.address(), running.ca_certificate(), own);
        let holding = target.half_a_body(HEAD, 0);
        // Where nobody makes room the later ones are not even accepted.
        let Ok(stream) = tokio::time::timeout(Duration::from_secs(2), holding).await else { break };
        held.extend(stream);
    }
    let client = host.client.from(address(1).into());
    let push = client.try_send(host.ask(json!([])));
    let reply = tokio::time::timeout(Duration::from_secs(5), push).await;
    let reply = reply.unwrap_or_else(|_| panic!("not in time"));
    assert_eq!(reply.expect("an answer").status, 200);
    (served, held)
}

/// A collector that keeps all it can get busy gives of it to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_collector_shuts_nobody_out() {
    served_beside(Evil::Live).await;
}

/// A removed collector's certificates have the places of strangers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_collector_is_a_stranger() {
    let (_served, mut held) = served_beside(Evil::Removed).await;
    until_async("one address has its part", PATIENCE, || {
        held.retain_mut(|stream| stream.read(&mut [0]).now_or_never().is_none());
        std::future::ready(held.len() <= 4)
    })
    .await;
}

/// A list with `count` of these and one more.
fn many(unit: &str, count: usize) -> String {
    format!("[{}{unit}]", format!("{unit},").repeat(count))
}

const AT: &str = "2026-01-01T00:00:00Z";

/// Lists of metrics that would be large as values.
fn large_metrics() -> Vec<String> {
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let document =
        |kind: &str, members: &str| format!(r#"{{"type":"{kind}","timestamp":"{AT}",{members}}}"#);
    let objects = many(r#"{"":0}"#, 500_000);
    let split = document(
        "pg_stats",
        &format!(
            r#""x":{},"databases":[{{"tables":[]}}{}]"#,
            many(r#"{"":0}"#, 10_000),
            r#",{"name":"a"}"#.repeat(1_000),
        ),
    );
    vec![
        many(r#"{"":0}"#, 1_000_000),
        many(r#"{"":0}"#, 99_000),
        many("0", 5_000_000),
        format!("[{}]", document("custom.x", &format!(r#""a":0,"a":{objects}"#))),
        format!("[{}]", document("sysstat", &format!(r#""cpu":{objects}"#))),
        format!("[{split}]"),
        format!("[{deep}]"),
    ]
}

/// A sound `agent` object with more members.
fn large_agent(members: &str) -> String {
    let sound = json!({
        "queue_id": "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", "config_version": 0,
        "clock_offset_ms": 0,
        "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
    });
    let sound = sound.to_string();
    format!(r#""agent":{},{members}}}"#, &sound[..sound.len() - 1])
}

/// Other members of an envelope that would be.
fn large_members() -> Vec<String> {
    let agent = |members: String| large_agent(&members);
    let loss =
        format!(r#"{{"from":1,"to":1,"records":1,"reason":"evict","at":"{AT}","x":{{"":0}}}}"#);
    vec![
        format!(r#""x":{}"#, many(r#"{"":0}"#, 1_000_000)),
        format!(r#""metrics_count":{}"#, many(r#"{"":0}"#, 1_000_000)),
        agent(format!(r#""lost":{}"#, many(&loss, 100_000))),
        agent(format!(r#""lost":{}"#, many("0", 5_000_000))),
        agent(format!(r#""backlog":{}"#, many(r#"{"":0}"#, 1_000_000))),
        agent(format!(
            r#""sequences":{{"queue_id":"6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001","runs":{}}}"#,
            many("[1,1]", 1_000_000)
        )),
    ]
}

/// What an agent may say of itself, far over its limits: cut, and the metrics beside it stored.
fn long_reports() -> Vec<String> {
    let loss = format!(r#"{{"from":1,"to":1,"records":1,"reason":"evict","at":"{AT}"}}"#);
    vec![
        large_agent(&format!(r#""config_error":"{}""#, "x".repeat(50 << 20))),
        large_agent(&format!(r#""lost":{}"#, many(&loss, 300_000))),
    ]
}

/// Pushes that are small on the wire, and would be a hundred times their text as values: none of
/// them costs more than its text, one after the other or all at once, and hosts are served beside
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_costs_memory_by_its_text() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let hosts = backend.hosts(HOSTS).await;
    let Registered { client, push, envelope, .. } = backend.register("hostile").await;
    let envelope = envelope.to_string();
    let empty = r#""metrics":[]"#;
    assert!(envelope.contains(empty), "{envelope}");
    let metrics = large_metrics().into_iter().map(|metrics| format!(r#""metrics":{metrics}"#));
    let others = large_members().into_iter().map(|members| format!("{empty},{members}"));
    let reports = long_reports();
    let cut = reports.len();
    let reports = reports.into_iter().map(|members| format!("{empty},{members}"));
    let pack = |members: String| {
        let body = envelope.replace(empty, &members);
        zstd::bulk::compress(body.as_bytes(), 1).expect("to memory")
    };
    let bodies: Vec<Vec<u8>> = metrics.chain(others).chain(reports).map(pack).collect();
    let ask = |body: &Vec<u8>| push.clone().body(body.clone()).header("content-encoding", "zstd");
    let mut answers = Vec::new();
    for (place, body) in bodies.iter().enumerate() {
        let reply = client.send(ask(body)).await;
        assert!(matches!(reply.status, 200 | 400 | 413), "{place}: {reply:?}");
        assert!(reply.body.len() < 1 << 20, "{place}: {} bytes", reply.body.len());
        if place >= bodies.len() - cut {
            assert_eq!(reply.status, 200, "{place}: {reply:?}");
        }
        answers.push(format!("{place}: {} {} KiB", reply.status, backend.memory()));
    }
    let mut all = JoinSet::new();
    for body in bodies.iter().chain(&bodies) {
        let (client, ask) = (client.clone(), ask(body));
        all.spawn(async move { client.send(ask).await.status });
    }
    let mut statuses = Vec::new();
    while !all.is_empty() {
        serve_all(&hosts, "large pushes").await;
        while let Some(status) = all.try_join_next() {
            statuses.push(status.expect("it ends"));
        }
    }
    assert!(
        statuses.iter().all(|status| [200, 400, 408, 413, 429].contains(status)),
        "{statuses:?}"
    );
    let memory = backend.memory();
    assert!(memory <= MEMORY_MAX_KIB, "{memory} KiB, {answers:?}");
    tokio::task::spawn_blocking(move || backend.process.stop()).await.expect("it ends");
}

/// Two hosts whose tokens are refused, each for two reasons, over and over on many connections:
/// the others are served, the memory has its bound, and the log has one line for each host and
/// reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_served_beside_a_storm_of_refusals() {
    const CONNECTIONS: usize = 48;
    const REQUESTS: usize = 200;
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let hosts = backend.hosts(HOSTS).await;
    let refused = [backend.register("refused-0").await, backend.register("refused-1").await];
    let mut storm = JoinSet::new();
    for n in 0..CONNECTIONS {
        let host = &refused[n % 2];
        // Not signed by the host, and signed by it for longer than a token may live.
        let token = if n % 4 < 2 { format!("{}A", host.token) } else { host.token_for_years() };
        let client = host.client.from(address(n).into());
        let ask = host.push.clone().bearer(&token);
        storm.spawn(async move {
            let mut open = client.connect().await.expect("connect");
            let mut statuses = Vec::new();
            for _ in 0..REQUESTS {
                statuses.push(ask.clone().over(&mut open).await.expect("an answer").status);
            }
            statuses
        });
    }
    let mut answers = Vec::new();
    while !storm.is_empty() {
        serve_all(&hosts, "a storm of refusals").await;
        while let Some(told) = storm.try_join_next() {
            answers.push(told.expect("it ends"));
        }
    }
    for statuses in answers {
        let told = statuses.iter().take_while(|status| **status == 401).count();
        assert!(told > 0 && told < REQUESTS, "{statuses:?}");
        assert!(statuses[told..].iter().all(|status| *status == 429), "{statuses:?}");
    }
    let memory = backend.memory();
    assert!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    let log = backend.process.stderr();
    let said = log.lines().filter(|line| line.contains("a collector was refused"));
    let said: Vec<&str> = said.collect();
    for host in &refused {
        let of_it = said.iter().filter(|line| line.contains(host.id())).count();
        assert_eq!(of_it, 2, "{said:#?}");
    }
    assert_eq!(said.len(), 4, "{said:#?}");
    tokio::task::spawn_blocking(move || backend.process.stop()).await.expect("it ends");
}
