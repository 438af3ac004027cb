//! Through an HTTP proxy: what it sees, what it is told, and what each of its refusals says.

use std::time::Duration;

use pganalytics::link::proxy::ProxySetting;
use pganalytics::link::register::register;
use pganalytics::link::{Link, LinkConfig, SendError, SendErrorKind, TlsConfig};
use serde_json::json;

use crate::link_register;
use crate::link_tls::{World, identity, push};
use crate::operator::{Host, says};
use crate::support::backend_stub::{Authority, Flaw};
use crate::support::connect_proxy::{ConnectProxy, Manner};
use crate::support::process::{Process, agent};
use crate::support::until;

/// `agent:p@ss`
const BASIC: &str = "Basic YWdlbnQ6cEBzcw==";
const LIMIT: Duration = Duration::from_secs(30);

fn through(world: &World, url: &str) -> LinkConfig {
    LinkConfig { proxy: ProxySetting::parse(url).expect("a proxy"), ..world.config() }
}

fn link(config: &LinkConfig) -> Link {
    Link::new(config, identity()).expect("a usable configuration")
}

async fn fails(config: &LinkConfig) -> SendError {
    link(config).push(push()).await.expect_err("no push")
}

/// The tunnel is a connection like any other: kept, HTTP/2, and with the client's certificate.
#[tokio::test]
async fn pushes_go_through_one_tunnel_with_tls_inside() {
    let world = World::new().await;
    let proxy = ConnectProxy::start(Manner::Open, world.stub.address).await;
    let link = link(&through(&world, &proxy.url()));
    for _ in 0..3 {
        assert_eq!(link.push(push()).await.expect("answered").status, 200);
    }
    assert_eq!(proxy.asked(), [world.stub.address.to_string()]);
    assert_eq!(link.proxy(), Some(proxy.url()));
    let requests = world.stub.requests();
    assert!(requests.iter().all(|request| request.client_certificate.is_some()));
    assert_eq!((requests[2].version, world.stub.connections()), (http::Version::HTTP_2, 1));
}

/// `https://`: TLS with the proxy, by a CA of `tls.ca_file`, and TLS with the backend inside it.
#[tokio::test]
async fn the_way_to_the_proxy_may_be_tls() {
    let world = World::new().await;
    let check = async |authority: &Authority, flaw| {
        let proxy = ConnectProxy::tls(&authority.server(flaw), world.stub.address).await;
        let url = format!("https://127.0.0.1:{}", proxy.address.port());
        (link(&through(&world, &url)).push(push()).await, proxy.asked().len())
    };
    let (answer, asked) = check(&world.authority, Flaw::None).await;
    assert_eq!((answer.expect("answered").status, asked), (200, 1));
    for (authority, flaw) in
        [(&world.authority, Flaw::Expired), (&Authority::new("other CA"), Flaw::None)]
    {
        let (answer, asked) = check(authority, flaw).await;
        let error = answer.expect_err("not trusted");
        assert_eq!((error.kind, asked), (SendErrorKind::ProxyTls, 0), "{error}");
        assert!(error.to_string().contains("no TLS with the proxy https://127.0.0.1"), "{error}");
    }
}

/// User and password reach the proxy and nobody else: no error, no status, no debug output.
#[tokio::test]
async fn credentials_are_sent_to_the_proxy_and_shown_nowhere() {
    let world = World::new().await;
    let proxy = ConnectProxy::start(Manner::Wants(BASIC), world.stub.address).await;
    let with = |user: &str| through(&world, &format!("http://{user}{}", proxy.address));
    let right = link(&with("agent:p%40ss@"));
    assert_eq!(right.push(push()).await.expect("answered").status, 200);
    assert!(world.stub.requests()[0].headers.get("proxy-authorization").is_none());

    let config = with("nobody:hunter2@");
    let (refused, unknown) = (fails(&config).await, fails(&with("")).await);
    assert_eq!([refused.kind, unknown.kind], [SendErrorKind::ProxyAuth; 2]);
    assert!(refused.to_string().contains("does not accept this user and password"), "{refused}");
    assert!(unknown.to_string().contains("wants a user and a password"), "{unknown}");
    let shown = format!("{config:?} {right:?} {:?} {refused:?}", right.proxy());
    for secret in ["nobody", "hunter2", "p%40ss", "p@ss", BASIC] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

/// Each way of a proxy to say no is told apart, from the others and from the backend's.
#[tokio::test]
async fn refusals_of_the_proxy_are_told_apart() {
    let world = World::new().await;
    let check = async |manner, kind, part: &str| {
        let proxy = ConnectProxy::start(manner, world.stub.address).await;
        let error = fails(&through(&world, &proxy.url())).await;
        assert_eq!(error.kind, kind, "{error}");
        for part in [part, "; hint: ", &proxy.url()] {
            assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        }
        assert_eq!(world.stub.connections(), 0);
    };
    check(Manner::Answers(407), SendErrorKind::ProxyAuth, "(407)").await;
    check(Manner::Answers(403), SendErrorKind::ProxyRefused, "answers 403").await;
    check(Manner::Answers(403), SendErrorKind::ProxyRefused, "its rules must let this host").await;
    check(Manner::Answers(502), SendErrorKind::ProxyRefused, "cannot reach the backend").await;
    check(Manner::Garbage, SendErrorKind::ProxyRefused, "does not answer CONNECT").await;
    let proxy = ConnectProxy::start(Manner::Open, world.stub.address).await;
    let gone = proxy.url();
    drop(proxy);
    let error = fails(&through(&world, &gone)).await;
    assert_eq!(error.kind, SendErrorKind::ProxyConnect, "{error}");
    let unknown = fails(&through(&world, "http://no-such-proxy.invalid:3128")).await;
    assert_eq!(unknown.kind, SendErrorKind::ProxyConnect, "{unknown}");
    assert!(unknown.to_string().contains("no-such-proxy.invalid:3128"), "{unknown}");
}

/// C37: the connect timeout covers a proxy that takes the request and says nothing.
#[tokio::test]
async fn connect_timeout_covers_the_proxy() {
    let world = World::new().await;
    let proxy = ConnectProxy::start(Manner::Silent, world.stub.address).await;
    let connect_timeout = Duration::from_millis(300);
    let error = fails(&LinkConfig { connect_timeout, ..through(&world, &proxy.url()) }).await;
    assert_eq!(error.kind, SendErrorKind::ConnectTimeout, "{error}");
    assert!(error.to_string().contains("through the proxy") && proxy.asked().len() == 1, "{error}");
}

/// C39: what is wrong with the backend's certificate is still the backend's.
#[tokio::test]
async fn the_backends_certificate_is_checked_through_the_tunnel() {
    let world = World::with(Flaw::Expired).await;
    let proxy = ConnectProxy::start(Manner::Open, world.stub.address).await;
    let error = fails(&through(&world, &proxy.url())).await;
    assert_eq!(error.kind, SendErrorKind::TlsExpired, "{error}");
}

#[tokio::test]
async fn plain_http_to_loopback_has_no_proxy() {
    let stub = crate::support::backend_stub::Stub::http().await;
    let proxy = ConnectProxy::start(Manner::Open, stub.address).await;
    let config = LinkConfig {
        allow_plaintext: true,
        proxy: ProxySetting::parse(&proxy.url()).expect("a proxy"),
        ..stub.link_config(TlsConfig::default())
    };
    assert_eq!(link(&config).push(push()).await.expect("answered").status, 200);
    assert!(proxy.asked().is_empty());
}

#[tokio::test]
async fn registration_goes_through_the_proxy() {
    let world = link_register::World::new().await;
    world.accepts(&json!({}));
    let proxy = ConnectProxy::start(Manner::Open, world.stub.address).await;
    let mut registration = world.registration();
    registration.link.proxy = ProxySetting::parse(&proxy.url()).expect("a proxy");
    register(&registration).await.expect("registered");
    assert_eq!(proxy.asked().len(), 1);
}

/// The environment's proxy is asked for a name that only it can look up, unless `NO_PROXY` or the
/// configuration says otherwise; status and log name the proxy without its password.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_follows_the_environment() {
    let host = Host::new("300ms").await;
    let proxy = ConnectProxy::start(Manner::Wants(BASIC), host.stub.address).await;
    let config = host.path("agent.toml");
    let text = fs_err::read_to_string(&config).expect("read");
    let named = format!("https://backend.example:{}", host.stub.address.port());
    fs_err::write(&config, text.replace(&host.stub.url(), &named)).expect("write");
    let start = |except: &str| {
        let mut command = agent(["run", "--config", config.to_str().expect("UTF-8")]);
        command.env("HTTPS_PROXY", format!("http://agent:p%40ss@{}", proxy.address));
        command.env("NO_PROXY", except);
        Process::start(command, host.folder.path())
    };
    let straight = start("backend.example");
    until("the name is looked up here", LIMIT, || {
        host.ask(&["status"]).stdout.contains("no address for backend.example")
    });
    straight.stop();
    assert!(proxy.asked().is_empty() && host.stub.requests().is_empty());

    let agent = start("other.example");
    until("records are delivered", LIMIT, || !host.stub.requests().is_empty());
    assert_eq!(proxy.asked()[0], named.trim_start_matches("https://"));
    let status = host.ask(&["status"]);
    says(&status, 0, &[&format!("{named} through {}", proxy.url())]);
    let done = agent.stop();
    assert!(done.stderr.contains(&proxy.url()), "{}", done.stderr);
    assert!(!(done.stderr + &status.stdout).contains("p%40ss"));
}
