//! Pushes: what is sent, which token, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use pganalytics::backend::BackendConfig;
use pganalytics::clock;
use pganalytics::link::client::IDLE_MAX;
use pganalytics::link::token::{Claims, Token};
use pganalytics::link::{Identity, Link, LinkConfig, Push, SendErrorKind};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::link_tls::{World, identity, push};
use crate::support::backend_stub::{Recorded, Reply};

fn link(world: &World) -> Link {
    Link::new(&world.config(), identity()).expect("a usable configuration")
}

fn claims(request: &Recorded) -> Claims {
    let key = jsonwebtoken::DecodingKey::from_secret(&(0..32).collect::<Vec<u8>>());
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    rules.validate_exp = false;
    jsonwebtoken::decode(request.token(), &key, &rules).expect("signed with the secret").claims
}

/// C31: POST to the path of the contract, JSON, gzip, Bearer, a length, the batch's id.
#[tokio::test]
async fn push_has_the_contracts_path_and_headers() {
    let world = World::new().await;
    let batch = "6f1d9a52-53a4-4b9f-8f6e-1f2c3d4e5f60".parse().expect("an id");
    let body = Bytes::from_static(&[0x1f, 0x8b, 8, 0]);
    let push = Push { body: body.clone(), encoding: "gzip", batch_id: Some(batch) };
    link(&world).push(push).await.expect("answered");
    let request = &world.stub.requests()[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/v1/metrics/push"));
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("content-encoding"), "gzip");
    assert_eq!(request.header("content-length"), "4");
    assert_eq!(request.header("idempotency-key"), batch.to_string());
    assert!(request.header("user-agent").starts_with("pganalytics-agent/"));
    assert_eq!(request.body, body);
    assert_eq!(claims(request).hostname, "db.example");
}

/// C32: the answer is returned as it is; C34: a 403 is not tried again.
#[tokio::test]
async fn answers_are_returned_and_nothing_but_401_is_sent_again() {
    let world = World::new().await;
    let link = link(&world);
    let statuses = [200, 201, 202, 400, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504];
    for status in statuses {
        world.stub.reply([Reply::with(status, &[], "{\"message\":\"why\"}")]);
        let answer = link.push(push()).await.expect("answered");
        assert_eq!((answer.status, answer.message().as_str()), (status, "why"));
    }
    assert_eq!(world.stub.requests().len(), statuses.len());
}

/// A redirect is not followed: data goes where the configuration says, and nowhere else.
#[tokio::test]
async fn redirects_are_not_followed() {
    let world = World::new().await;
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = format!("{}/elsewhere", world.stub.url());
        world.stub.reply([Reply::with(status, &[("location", &elsewhere)], "")]);
        assert_eq!(link(&world).push(push()).await.expect("answered").status, status);
    }
    assert!(world.stub.requests().iter().all(|request| request.path == "/api/v1/metrics/push"));
}

/// C33: 401, a new token, sent once more with the same body and id.
#[tokio::test]
async fn refused_token_is_renewed_and_the_push_sent_once_more() {
    let world = World::new().await;
    world.stub.reply([Reply::status(401), Reply::status(200)]);
    let answer = link(&world).push(push()).await.expect("answered");
    assert_eq!(answer.status, 200);
    let requests = world.stub.requests();
    assert_eq!(requests.len(), 2);
    assert_ne!(claims(&requests[0]).jti, claims(&requests[1]).jti);
    assert!(claims(&requests[1]).exp > claims(&requests[0]).exp);
    assert_eq!(requests[0].body, requests[1].body);
}

/// C33: a second 401 is the answer.
#[tokio::test]
async fn second_401_is_returned() {
    let world = World::new().await;
    world.stub.reply([Reply::status(401), Reply::status(401)]);
    assert_eq!(link(&world).push(push()).await.expect("answered").status, 401);
    assert_eq!(world.stub.requests().len(), 2);
}

/// C8: one token serves many pushes.
#[tokio::test]
async fn token_is_kept_between_pushes() {
    let world = World::new().await;
    let link = link(&world);
    for _ in 0..3 {
        link.push(push()).await.expect("answered");
    }
    let requests = world.stub.requests();
    assert!(requests.iter().all(|request| request.token() == requests[0].token()));
}

/// A host whose clock is hours off learns the server's time from its `Date`, and gets in.
#[tokio::test]
async fn tokens_follow_the_servers_clock() {
    let world = World::new().await;
    let hours = jiff::SignedDuration::from_hours(5);
    let server_now = clock::now() + hours;
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&server_now)
        .expect("a date");
    world.stub.reply([Reply::with(401, &[("date", &date)], "{}"), Reply::status(200)]);
    let link = link(&world);
    link.push(push()).await.expect("answered");
    let requests = world.stub.requests();
    let issued = claims(&requests[1]).iat - server_now.as_second();
    assert!((-2..=2).contains(&issued), "{issued} s from the server's clock");
    // The last answer had this host's own time again.
    assert!(link.clock_offset_ms().abs() < 2_000, "{}", link.clock_offset_ms());
}

#[tokio::test]
async fn clock_offset_is_that_of_the_last_answer() {
    let world = World::new().await;
    world.stub.reply([Reply::with(200, &[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "{}")]);
    let link = link(&world);
    assert_eq!(link.clock_offset_ms(), 0);
    link.push(push()).await.expect("answered");
    let expected = 784_111_777_000 - clock::now().as_millisecond();
    assert!((link.clock_offset_ms() - expected).abs() < 5_000, "{}", link.clock_offset_ms());
}

#[tokio::test]
async fn retry_after_is_read() {
    let world = World::new().await;
    world.stub.reply([
        Reply::with(429, &[("retry-after", "7")], "{}"),
        Reply::with(503, &[("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT")], "{}"),
    ]);
    let link = link(&world);
    let answer = link.push(push()).await.expect("answered");
    assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));
    let answer = link.push(push()).await.expect("answered");
    assert_eq!(answer.retry_after, Some(Duration::from_secs(3600)));
}

/// C36, C37: an answer that does not come, breaks off, or is too large is an error of its own.
#[tokio::test]
async fn broken_answers_are_told_apart() {
    let world = World::new().await;
    let check = async |alpn: &[&str], reply, config: LinkConfig, kinds: &[SendErrorKind]| {
        let server = world.authority.server(crate::support::backend_stub::Flaw::None);
        let clients = crate::support::backend_stub::Clients::Anyone;
        let stub = crate::support::backend_stub::Stub::https_with(&server, clients, alpn).await;
        stub.reply([reply]);
        let link = Link::new(&LinkConfig { url: stub.url(), ..config }, identity());
        let error = link.expect("usable").push(push()).await.expect_err("no whole answer");
        assert!(kinds.contains(&error.kind), "{:?} {error}", error.kind);
        assert!(error.to_string().contains("; hint: "), "{error}");
        assert_eq!(stub.requests().len(), 1, "the link itself does not send again");
    };
    let short = || LinkConfig { request_timeout: Duration::from_millis(300), ..world.config() };
    let small = || LinkConfig { answer_bytes_max: 10, ..world.config() };
    let long = || Reply::with(200, &[], "more than ten bytes");
    for alpn in [&["http/1.1"][..], &["h2"][..]] {
        check(alpn, Reply::Hang, short(), &[SendErrorKind::Timeout]).await;
        check(alpn, long(), small(), &[SendErrorKind::AnswerTooLarge]).await;
        let broken = [SendErrorKind::Partial, SendErrorKind::Reset];
        check(alpn, Reply::Partial, world.config(), &broken).await;
        check(alpn, Reply::Close, world.config(), &broken).await;
    }
}

/// A backend that sends interim answers without end is not listened to until the timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_without_end_are_not_waited_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let flood = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_exact(&mut [0; 64]).await.expect("the start of a request");
        let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(1_000);
        let mut sent = 0;
        while stream.write_all(interim.as_bytes()).await.is_ok() {
            sent += interim.len();
        }
        sent
    });
    let request_timeout = Duration::from_secs(60);
    let config =
        LinkConfig { url, allow_plaintext: true, request_timeout, ..LinkConfig::default() };
    let link = Link::new(&config, identity()).expect("usable");
    let error = link.push(push()).await.expect_err("no answer");
    assert_eq!(error.kind, SendErrorKind::AnswerTooLarge, "{error}");
    let (sent, most) = (flood.await.expect("it ends"), 64 << 20);
    assert!(sent < most, "{sent} bytes were taken");
}

fn without_secret(expires_at: Timestamp) -> Identity {
    let mut identity = identity();
    identity.secret = None;
    identity.token = Some(Token::new(SecretString::from("first"), expires_at));
    identity
}

fn refreshed(token: &str, expires_at: Timestamp) -> Reply {
    Reply::with(200, &[], &format!(r#"{{"token":"{token}","expires_at":"{expires_at}"}}"#))
}

/// C8, C9, C12: without a secret the token of registration is used, and renewed by the backend
/// 60 s before its end.
#[tokio::test]
async fn token_is_renewed_by_a_backend_that_gave_no_secret() {
    let world = World::new().await;
    let soon = |seconds| clock::now() + jiff::SignedDuration::from_secs(seconds);
    let link = Link::new(&world.config(), without_secret(soon(65))).expect("usable");
    link.push(push()).await.expect("answered");
    assert_eq!(world.stub.requests()[0].token(), "first");

    let link = Link::new(&world.config(), without_secret(soon(55))).expect("usable");
    world.stub.reply([refreshed("second", soon(1800)), Reply::status(200)]);
    link.push(push()).await.expect("answered");
    link.push(push()).await.expect("answered");
    let requests = world.stub.requests();
    let seen: Vec<_> = requests.iter().map(|r| (r.path.as_str(), r.token())).collect();
    let push_path = "/api/v1/metrics/push";
    let expected = [
        (push_path, "first"),
        ("/api/v1/collectors/refresh-token", "first"),
        (push_path, "second"),
        (push_path, "second"),
    ];
    assert_eq!(seen, expected);
}

/// C33: a 401 renews through the backend; when that is refused too, the 401 is the answer.
#[tokio::test]
async fn refused_token_is_renewed_by_the_backend_once() {
    let world = World::new().await;
    let end = clock::now() + jiff::SignedDuration::from_hours(1);
    let link = Link::new(&world.config(), without_secret(end)).expect("usable");
    world.stub.reply([Reply::status(401), refreshed("second", end), Reply::status(200)]);
    assert_eq!(link.push(push()).await.expect("answered").status, 200);
    assert_eq!(world.stub.requests()[2].token(), "second");
    world.stub.reply([Reply::status(401), Reply::status(401)]);
    assert_eq!(link.push(push()).await.expect("answered").status, 401);
    assert_eq!(world.stub.requests().len(), 5);
}

/// C13: an external token is used, and its replacement is noticed without a restart.
#[tokio::test]
async fn external_token_is_read_from_its_file() {
    let world = World::new().await;
    let end = clock::now().as_second() + 600;
    let token = |name: &str| {
        let claims = format!("{{\"exp\":{end},\"jti\":\"{name}\"}}");
        let part = |text: &str| {
            base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
        };
        format!("{}.{}.{}", part("{}"), part(&claims), part("s"))
    };
    let file = world.folder.path().join("token");
    let config = LinkConfig { token_file: Some(file.clone()), ..world.config() };
    let link = Link::new(&config, identity()).expect("usable");
    let error = link.push(push()).await.expect_err("no token yet");
    assert_eq!(error.kind, SendErrorKind::Token);
    assert!(error.to_string().contains(file.to_str().expect("UTF-8")), "{error}");
    assert!(world.stub.requests().is_empty());

    std::fs::write(&file, token("a")).expect("write");
    assert_eq!(link.push(push()).await.expect("answered").status, 200);
    assert_eq!(world.stub.requests()[0].token(), token("a"));
    world.stub.reply([Reply::status(401)]);
    assert_eq!(link.push(push()).await.expect("answered").status, 401);
    assert_eq!(world.stub.requests().len(), 2, "the same token is not sent twice");

    let renewed = token("b");
    let (path, text) = (file.clone(), renewed.clone());
    world.stub.reply([Reply::Made(Arc::new(move |_| {
        std::fs::write(&path, &text).expect("write");
        (401, Bytes::from_static(b"{}"))
    }))]);
    assert_eq!(link.push(push()).await.expect("answered").status, 200);
    assert_eq!(world.stub.requests()[3].token(), renewed);
}

/// Kept connections are closed by the agent, and not by the backend under the agent's next request:
/// an agent's idle limit is the backend's less what a request takes to get there.
#[test]
fn the_agent_closes_idle_connections_before_the_backend_does() {
    let backend = BackendConfig::default().limits.idle_timeout;
    let on_the_way = LinkConfig::default().connect_timeout;
    assert!(IDLE_MAX + on_the_way <= backend, "{IDLE_MAX:?} at the agent, {backend:?} there");
}

/// Many pushes at once share one renewal.
#[tokio::test]
async fn concurrent_pushes_renew_once() {
    let world = World::new().await;
    let link = link(&world);
    world.stub.reply([Reply::status(401), Reply::status(401)]);
    let (one, two) = tokio::join!(link.push(push()), link.push(push()));
    assert_eq!((one.expect("answered").status, two.expect("answered").status), (200, 200));
    let mut tokens: Vec<_> =
        world.stub.requests().iter().map(|request| claims(request).jti).collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 2);
}
