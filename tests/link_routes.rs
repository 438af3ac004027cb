//! Several backends of one store: the next one when one is down, and back when it returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pganalytics::link::{Link, LinkConfig, SendErrorKind};
use tokio::net::TcpListener;

use crate::link_tls::{World, identity, push};
use crate::operator::{Host, says};
use crate::support::backend_stub::{Clients, Flaw, Reply, Stub};
use crate::support::port::Port;
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// A host with two backends, of one CA.
struct Two {
    world: World,
    first: Option<Stub>,
    second: Stub,
    link: Link,
}

impl Two {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut LinkConfig)) -> Self {
        let world = World::new().await;
        let start = async || {
            let server = world.authority.server(Flaw::None);
            Stub::https(&server, Clients::Of(&world.authority)).await
        };
        let (first, second) = (start().await, start().await);
        let mut config = LinkConfig {
            url: first.url(),
            more_urls: vec![second.url()],
            return_after: Duration::from_millis(100),
            ..world.config()
        };
        change(&mut config);
        let link = Link::new(&config, identity()).expect("a usable configuration");
        Self { world, first: Some(first), second, link }
    }

    fn first(&self) -> &Stub {
        self.first.as_ref().expect("the first runs")
    }

    /// Ends the first; its port refuses connections.
    async fn end_first(&mut self) -> Arc<Port> {
        let mut first = self.first.take().expect("the first runs");
        first.end().await;
        Arc::clone(&first.port)
    }

    async fn resume_first(&mut self, port: Arc<Port>) {
        let server = self.world.authority.server(Flaw::None);
        let clients = Clients::Of(&self.world.authority);
        self.first = Some(Stub::https_at(port, &server, clients).await);
    }

    async fn pushes(&self) -> u16 {
        self.link.push(push()).await.expect("answered").status
    }

    fn in_use(&self) -> usize {
        self.link.in_use().number
    }
}

/// A push that finds the first backend gone is answered by the second, the next ones go there at
/// once, and back to the first when that gives a sign of life.
#[tokio::test]
async fn requests_go_to_the_next_backend_and_return() {
    let mut two = Two::new().await;
    assert_eq!((two.pushes().await, two.in_use()), (200, 1));
    let port = two.end_first().await;
    // The kept connection may break under the first push; the next ones find nobody.
    until_async("the second answers", LIMIT, || async { two.link.push(push()).await.is_ok() })
        .await;
    for count in 2..=3 {
        assert_eq!((two.pushes().await, two.in_use()), (200, 2));
        assert_eq!(two.second.requests().len(), count);
    }
    assert_eq!(two.link.in_use().url, two.second.url());
    assert_eq!(two.link.authority(), two.second.address.to_string());
    two.link.return_to_earlier().await;
    assert_eq!(two.in_use(), 2, "it is not back yet");
    two.resume_first(port).await;
    until_async("the first is in use again", LIMIT, || async {
        two.link.return_to_earlier().await;
        two.in_use() == 1
    })
    .await;
    let asked = two.first().requests();
    assert_eq!(asked.iter().map(|r| r.path.as_str()).collect::<Vec<_>>(), ["/api/v1/health"]);
    assert!(asked[0].header("authorization").is_empty(), "a sign of life needs no token");
    assert_eq!((two.pushes().await, two.first().requests().len()), (200, 2));
    assert_eq!(two.second.requests().len(), 3);
    two.link.return_to_earlier().await;
    assert_eq!(two.first().requests().len(), 2, "the first is not asked any more");
}

/// A backend that is ailing is given three tries; its third answer is that of the next one. One
/// whose store is still down is not returned to, nor one in whose place a portal answers.
#[tokio::test]
async fn an_ailing_backend_is_left_at_the_third_time() {
    let two = Two::new().await;
    two.first().reply([503, 502, 504, 503].map(Reply::status));
    two.first().reply([Reply::with(200, &[], "<html>Log in</html>")]);
    assert_eq!((two.pushes().await, two.pushes().await), (503, 502));
    assert!(two.second.requests().is_empty());
    assert_eq!((two.pushes().await, two.in_use()), (200, 2));
    assert_eq!((two.first().requests().len(), two.second.requests().len()), (3, 1));
    until_async("its health is asked", LIMIT, || async {
        two.link.return_to_earlier().await;
        two.first().requests().len() == 5
    })
    .await;
    assert_eq!(two.in_use(), 2);
    until_async("it is well", LIMIT, || async {
        two.link.return_to_earlier().await;
        two.in_use() == 1
    })
    .await;
}

/// Another backend of the group would say the same: a refusal moves nothing.
#[tokio::test]
async fn a_refusal_is_no_reason_to_ask_another() {
    let two = Two::new().await;
    for status in [400, 403, 404, 409, 413, 422, 429, 500, 403, 403] {
        two.first().reply([Reply::status(status)]);
        assert_eq!(two.pushes().await, status);
    }
    assert_eq!((two.in_use(), two.second.connections()), (1, 0));
}

/// A wrong certificate is no backend: the next one is asked. The token is the same for both.
#[tokio::test]
async fn a_backend_with_a_wrong_certificate_is_down() {
    let expired = World::with(Flaw::Expired).await;
    let two = Two::with(|config| {
        config.more_urls = vec![config.url.clone()];
        config.url = expired.stub.url();
    })
    .await;
    assert_eq!((two.pushes().await, two.in_use()), (200, 2));
    assert_eq!(two.first().requests().len(), 1);
    assert!(!two.first().requests()[0].token().is_empty());
}

/// C37: one request timeout is for the whole try, however many backends are asked; the next try
/// begins with the backend that this one did not come to.
#[tokio::test]
async fn the_request_timeout_covers_all_backends() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let other = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url =
        |listener: &TcpListener| format!("https://{}", listener.local_addr().expect("an address"));
    let two = Two::with(|config| {
        config.url = url(&silent);
        config.more_urls = vec![url(&other)];
        config.request_timeout = Duration::from_millis(300);
    })
    .await;
    let error = two.link.push(push()).await.expect_err("nobody answers");
    assert_eq!(error.kind, SendErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains(&url(&silent)["https://".len()..]), "{error}");
    let error = two.link.push(push()).await.expect_err("nobody answers");
    assert!(error.to_string().contains(&url(&other)["https://".len()..]), "{error}");
    other.accept().await.expect("the second was asked");
}

/// When all are down the error is that of the last one asked; nothing is stuck when one is back.
#[tokio::test]
async fn all_down_is_an_error_until_one_is_back() {
    let mut two = Two::with(|config| config.return_after = Duration::from_secs(3_600)).await;
    let port = two.end_first().await;
    let gone = Port::reserve();
    let config = LinkConfig {
        url: format!("https://{}", port.address()),
        more_urls: vec![format!("https://{}", gone.address())],
        ..two.world.config()
    };
    two.link = Link::new(&config, identity()).expect("usable");
    for _ in 0..5 {
        let error = two.link.push(push()).await.expect_err("nobody is there");
        assert_eq!(error.kind, SendErrorKind::Connect, "{error}");
    }
    two.resume_first(port).await;
    assert_eq!((two.pushes().await, two.in_use()), (200, 1));
}

/// C20: the backend in use dies and comes back while an agent works. Every batch is taken by one of
/// the two under one id, and the operator sees which is in use.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_delivers_to_whoever_is_there() {
    let mut host = Host::new("300ms").await;
    let authority = host.authority();
    let server = authority.server(Flaw::None);
    let second = Stub::https(&server, Clients::Of(authority)).await;
    let (file, first) = (host.path("agent.toml"), host.stub.url());
    let urls = format!("urls = [\"{first}\", \"{}\"]\nreturn_after = \"300ms\"", second.url());
    let text = fs_err::read_to_string(&file).expect("read");
    fs_err::write(&file, text.replace(&format!("url = '{first}'"), &urls)).expect("write");
    let agent = host.start();
    until("the first gets records", LIMIT, || taken(&host.stub).len() > 1);
    assert!(second.requests().is_empty());

    let port = Arc::clone(&host.stub.port);
    let before = host.replace_stub(None).await;
    until("the second gets records", LIMIT, || taken(&second).len() > 1);
    let status = host.ask(&["status"]);
    says(&status, 2, &[&second.url(), "in use for ", &format!("others: {first}"), "is down"]);
    let status = host.json(&["status", "--json"]);
    assert_eq!(status["backend"]["url"], second.url().as_str(), "{status}");
    assert_eq!(status["backend"]["urls"][0], first.as_str(), "{status}");

    host.replace_stub(Some(port)).await;
    until("the first gets records again", LIMIT, || taken(&host.stub).len() > 1);
    says(&host.ask(&["status"]), 0, &[&first, "flowing"]);
    let done = agent.stop();
    for said in ["a backend is down", "another backend is in use now", "is back, and in use again"]
    {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let all = [taken(&before), taken(&second), taken(&host.stub)].concat();
    for batch in all {
        *times.entry(batch).or_default() += 1;
    }
    // The answer to one may have been lost with the first backend; the store knows its id.
    let again = times.values().filter(|count| **count > 1).count();
    assert!(again <= 1 && times.values().all(|count| *count <= 2), "{times:?}");
    assert_eq!(host.queued("records"), 0);
}

/// The batch ids of the pushes that a stub has answered with 200.
fn taken(stub: &Stub) -> Vec<String> {
    let requests = stub.requests().into_iter();
    let pushes = requests.filter(|request| request.path == "/api/v1/metrics/push");
    pushes.map(|request| request.header("idempotency-key").to_owned()).collect()
}
