//! Collectors at the backend: registration, tokens, certificates, configurations.

use std::process::{Command, Stdio};
use std::time::Duration;

use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pganalytics::backend::store::{Page, Role};
use pganalytics::backend::{self, SecretRequest};
use pganalytics::clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::support::backend::{Ask, Client, Host, Served};
use crate::support::until_async;

/// The claims of a collector's token, good for an hour.
pub fn claims(id: &str) -> Value {
    let now = clock::now().as_second();
    json!({
        "sub": format!("collector:{id}"), "collector_id": id, "hostname": "db1", "type": "access",
        "iat": now, "nbf": now, "exp": now + 3600, "jti": "1",
    })
}

/// A token that the collector mints with its own secret.
pub fn minted(host: &Host, claims: &Value) -> String {
    let key = base64::Engine::decode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        host.answer["secret"].as_str().expect("a secret"),
    )
    .expect("base64url without padding");
    assert_eq!(key.len(), 32);
    signed(&host.id, &key, claims)
}

pub fn signed(kid: &str, key: &[u8], claims: &Value) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(key)).expect("a token")
}

async fn push_with(client: &Client, host: &Host, token: &str) -> crate::support::backend::Reply {
    client.send(host.ask(json!([])).bearer(token)).await
}

/// C47: id, token, certificate and key; other ids for other names; an audit row for each.
#[tokio::test]
async fn registration_gives_all_that_a_host_needs() {
    let served = Served::start().await;
    let body = json!({"name": "old", "hostname": "old.example.com", "version": "3.0.0"});
    let answer = served.try_register(&body).await.json();
    let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{key}: {answer}"));
    assert!(text("certificate").starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(text("private_key").starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(text("ca_certificate"), served.running().ca_certificate());
    assert_eq!(text("token").split('.').count(), 3);
    for time in ["expires_at", "certificate_expires_at"] {
        let at: jiff::Timestamp = text(time).parse().expect("RFC 3339");
        assert!(at > clock::now(), "{time}: {at}");
    }
    let id: uuid::Uuid = text("collector_id").parse().expect("a UUID");
    let other = served.register("new").await;
    assert_ne!(other.id, id.to_string());
    // A host that sent a request keeps its key to itself.
    assert_eq!(other.answer.get("private_key"), None);
    let audits = served.running().store().audits(Page::first(10)).await.expect("audits");
    let subjects: Vec<_> = audits.rows.iter().map(|row| row.subject.as_str()).collect();
    assert_eq!(subjects, [other.id.as_str(), &id.to_string(), "file"]);
    let actions: Vec<_> = audits.rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["collector.register", "collector.register", "secret.add"]);
    assert!(audits.rows[0].actor.ends_with("with the secret file"), "{audits:?}");
    // The certificate and key that were given work.
    let client = served.client(text("certificate"), text("private_key"));
    let host = Host { id: id.to_string(), token: text("token").to_owned(), ..other };
    assert_eq!(push_with(&client, &host, &host.token).await.status, 200);
}

/// C47: what is missing, empty or no request is refused, and nothing is registered.
#[tokio::test]
async fn a_wrong_registration_is_refused() {
    let served = Served::start().await;
    let check = async |body: Value| {
        served.try_register(&body).await.refused(400);
    };
    check(json!({"name": "", "hostname": "h"})).await;
    check(json!({"name": "  ", "hostname": "h"})).await;
    check(json!({"name": "n"})).await;
    check(json!({"name": "n", "hostname": ""})).await;
    check(json!({"name": 5, "hostname": "h"})).await;
    check(json!({"name": "n\nm", "hostname": "h"})).await;
    check(json!({"name": "n".repeat(256), "hostname": "h"})).await;
    check(json!({"name": "n", "hostname": "h", "csr": "no request"})).await;
    check(json!([])).await;
    let collectors = served.running().store().collectors(Page::first(1), clock::now()).await;
    assert_eq!(collectors.expect("collectors").total, 0);
}

/// C47, C49: without the secret nobody registers, and guessing is slowed down.
#[tokio::test]
async fn registration_needs_the_secret() {
    let served = Served::start_with(|config| config.limits.attempts_per_minute = 3).await;
    let body = json!({"name": "n", "hostname": "h"});
    let ask = || Ask::post("/api/v1/collectors/register").json(&body);
    let client = served.stranger();
    assert_eq!(client.send(ask()).await.refused(401), "bad_registration_secret");
    for wrong in ["x", &served.secret().to_lowercase()] {
        client.send(ask().header("x-registration-secret", wrong)).await.refused(401);
    }
    let reply = client.send(ask().header("x-registration-secret", &served.secret())).await;
    assert_eq!(reply.refused(429), "too_many_requests");
    let wait: u64 = reply.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
}

/// Guesses that come at once count like those that come one by one, and a good secret
/// does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_at_once_are_counted() {
    let served = Served::start_with(|config| config.limits.attempts_per_minute = 3).await;
    for n in 0..6 {
        served.register(&format!("db{n}")).await;
    }
    let mut guesses = JoinSet::new();
    for n in 0..40 {
        let client = served.stranger();
        let ask = Ask::post("/api/v1/collectors/register").json(&json!({"name": "n"}));
        let ask = ask.header("x-registration-secret", &format!("wrong-{n}"));
        guesses.spawn(async move { client.send(ask).await.status });
    }
    let mut statuses = guesses.join_all().await;
    statuses.sort_unstable();
    assert!(statuses.starts_with(&[401; 3]), "{statuses:?}");
    assert!(statuses[3..].iter().all(|status| *status == 429), "{statuses:?}");
}

/// C47: the secret makes new hosts, and no old one: not by its name, however it is written, nor by
/// its host, nor once it was removed. The old one notices nothing.
#[tokio::test]
async fn the_secret_takes_over_no_host() {
    let served = Served::start().await;
    let first = served.register("db1").await;
    let register = async |name: &str, hostname: &str| {
        served.try_register(&json!({"name": name, "hostname": hostname})).await
    };
    for (name, hostname, slug) in [
        ("db1", "db1.example.com", "name_taken"),
        ("DB1 ", "other.example.com", "name_taken"),
        ("other", "Db1.Example.com", "host_taken"),
    ] {
        assert_eq!(register(name, hostname).await.refused(409), slug, "{name} {hostname}");
    }
    assert_eq!(first.push(json!([])).await.status, 200, "it notices nothing");
    for unseen in ["db\u{202e}1", "db1\u{200b}", "db1\u{9b}31m"] {
        register(unseen, "x").await.refused(400);
        register("x", unseen).await.refused(400);
    }
    let admin = served.user_token(Role::Admin).await;
    let path = format!("/api/v1/collectors/{}", first.id);
    let remove = Ask::new(Method::DELETE, &path).bearer(&admin);
    assert_eq!(served.stranger().send(remove).await.status, 204);
    assert_eq!(register("db1", "db1.example.com").await.refused(409), "name_taken");
    // Nor does the certificate that it still has.
    let ask = Ask::post("/api/v1/collectors/register");
    let body = json!({"name": "db1", "hostname": "db1.example.com"});
    assert_eq!(first.client.send(ask.json(&body)).await.refused(401), "bad_registration_secret");
    // Its host may get a collector of another name: the machine was set up anew.
    assert_eq!(register("db1-new", "db1.example.com").await.status, 200);
}

/// Two names that look the same are one, however they are written, and so are two hosts; what
/// cannot be seen, or is not the name of a host, is refused.
#[tokio::test]
async fn names_and_hosts_are_what_they_look_like() {
    let served = Served::start().await;
    let register = async |name: &str, hostname: &str| {
        served.try_register(&json!({"name": name, "hostname": hostname})).await
    };
    let seen = [("K\u{f6}ln", "koeln"), ("\u{391}\u{3a3}", "h.example"), ("db 1", "10.0.0.1")];
    for (name, host) in seen {
        assert_eq!(register(name, host).await.status, 200, "{name}");
    }
    for same in ["Ko\u{308}ln", "K\u{d6}LN", "\u{3b1}\u{3c3}", "\u{3b1}\u{3c2}", "\u{ff44}B 1"] {
        assert_eq!(register(same, "x").await.refused(409), "name_taken", "{same}");
    }
    for blank in ["\u{2800}", "\u{a0}", "\u{2003}", "\u{3000}", "\u{1d173}", "\u{1bca0}"] {
        register(&format!("db{blank}1"), "x").await.refused(400);
        register("x", &format!("db{blank}1")).await.refused(400);
    }
    for same in ["h.example.", "H.EXAMPLE"] {
        assert_eq!(register("x", same).await.refused(409), "host_taken", "{same}");
    }
    for odd in ["010.0.0.1", "10.0.1", "k\u{f6}ln", "a b", "a..b", ".", "-a", "a/b", "[::1]"] {
        register("x", odd).await.refused(400);
    }
    assert_eq!(register("x", "2001:DB8:0::1").await.status, 200);
    assert_eq!(register("y", "2001:db8::1").await.refused(409), "host_taken");
}

/// Certificates are few, however a collector comes to them: each can make connections. Only the
/// secret that an admin has made for it is not held back.
#[tokio::test]
async fn certificates_have_a_limit() {
    let served = Served::start().await;
    let (mut host, other) = (served.register("db1").await, served.register("db2").await);
    let renew = async |host: &Host| {
        let ask = Ask::post("/api/v1/collectors/renew-certificate").bearer(&host.token);
        host.client.send(ask.json(&json!({"csr": key_and_request().1}))).await
    };
    let register = || {
        let body = json!({"name": "db1", "hostname": "db1.example.com"});
        Ask::post("/api/v1/collectors/register").json(&body)
    };
    let again = |host: &Host, answer: &Value| {
        let text = |key: &str| answer[key].as_str().expect(key);
        let client = served.client(text("certificate"), text("private_key"));
        Host { client, token: text("token").to_owned(), ..host.clone() }
    };
    for _ in 0..2 {
        assert_eq!(renew(&host).await.status, 200);
    }
    for _ in 0..3 {
        let reply = host.client.send(register()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        host = again(&host, &reply.json());
    }
    assert_eq!(host.client.send(register()).await.refused(429), "too_many_requests");
    assert_eq!(renew(&host).await.refused(429), "too_many_requests");
    let released = backend::release_named(&served.config, "db1").await.expect("a secret");
    let ask = register().header("x-registration-secret", &released.secret);
    let reply = served.stranger().send(ask).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let host = again(&host, &reply.json());
    let reply = renew(&host).await;
    assert_eq!(reply.refused(429), "too_many_requests");
    let wait: u64 = reply.header("retry-after").parse().expect("seconds");
    assert!((1..=3600).contains(&wait), "{wait}");
    assert_eq!(renew(&other).await.status, 200);
}

/// C47: the certificate decides whose registration it is, whatever the request says; the collector
/// keeps its name, its id and its server, and its old certificate and secret are dead once it uses
/// the new ones.
#[tokio::test]
async fn a_host_comes_back_with_its_certificate() {
    let served = Served::start().await;
    let first = served.register("db1").await;
    served.register("db2").await;
    first.push(json!([])).await;
    let metric = json!({"type": "custom.x", "timestamp": clock::rfc3339(clock::now()), "n": 1});
    assert_eq!(first.push(json!([metric])).await.status, 200);
    let (key, csr) = key_and_request();
    let body = json!({"name": "whoever", "hostname": "DB2.example.com", "csr": csr});
    let ask = Ask::post("/api/v1/collectors/register").json(&body);
    assert_eq!(first.client.send(ask).await.refused(409), "host_taken");
    let body = json!({"name": "whoever", "hostname": "new.example.com", "csr": csr});
    let ask = Ask::post("/api/v1/collectors/register").json(&body);
    let answer = first.client.send(ask).await.json();
    let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{key}: {answer}"));
    assert_eq!((text("collector_id"), text("name")), (first.id.as_str(), "db1"));
    let client = served.client(text("certificate"), &key.serialize_pem());
    let again = Host { client, token: text("token").to_owned(), ..first.clone() };
    // What it had is good until it uses what it was given.
    let old = minted(&first, &claims(&first.id));
    assert_eq!(push_with(&first.client, &first, &old).await.status, 200);
    push_with(&again.client, &again, &old).await.refused(401);
    assert_eq!(again.push(json!([metric])).await.status, 200);
    let old = push_with(&first.client, &first, &first.token).await;
    assert_eq!(old.refused(403), "certificate_mismatch");
    let old = minted(&first, &claims(&first.id));
    push_with(&again.client, &again, &old).await.refused(401);
    let servers = served.running().store().servers(Page::first(9)).await.expect("servers").rows;
    let hosts: Vec<_> = servers.iter().map(|server| server.hostname.as_str()).collect();
    assert_eq!(hosts, ["new.example.com"]);
    let audits = served.running().store().audits(Page::first(9)).await.expect("audits").rows;
    let actions: Vec<_> = audits.iter().map(|row| row.action.as_str()).take(2).collect();
    assert_eq!(actions, ["collector.replace_certificate", "collector.register"]);
    assert!(audits[1].actor.ends_with("with its certificate"), "{audits:?}");
}

/// An answer that does not arrive locks no host out: what it has shown is good until it shows what
/// it was given, however often it asks.
#[tokio::test]
async fn a_registration_whose_answer_is_lost_changes_nothing() {
    let served = Served::start().await;
    let first = served.register("db1").await;
    let registered = async |host: &Host| {
        let (key, csr) = key_and_request();
        let body = json!({"name": "db1", "hostname": "db1.example.com", "csr": csr});
        let ask = Ask::post("/api/v1/collectors/register").json(&body);
        let answer = host.client.send(ask).await.json();
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{key}: {answer}"));
        let client = served.client(text("certificate"), &key.serialize_pem());
        Host { client, token: text("token").to_owned(), answer: answer.clone(), ..host.clone() }
    };
    let works = async |host: &Host| {
        let own = minted(host, &claims(&host.id));
        push_with(&host.client, host, &own).await.status
    };
    let lost = registered(&first).await;
    assert_eq!(works(&first).await, 200);
    let second = registered(&first).await;
    assert_eq!((works(&first).await, works(&lost).await), (200, 401));
    // It registers at once with what it has not used yet, and that answer is lost as well.
    let lost = registered(&second).await;
    assert_eq!((works(&second).await, works(&first).await), (200, 401));
    assert_eq!((works(&lost).await, works(&second).await), (200, 401));
}

/// A certificate whose end has passed opens nothing but the registration, which it still decides.
#[tokio::test]
async fn a_host_comes_back_after_its_certificates_end() {
    let served = Served::start_with(|config| {
        config.lifetimes.client_certificate = Duration::from_secs(1);
    })
    .await;
    let first = served.register("db1").await;
    until_async("the certificate ends", Duration::from_secs(30), || async {
        first.push(json!([])).await.status == 403
    })
    .await;
    assert_eq!(first.push(json!([])).await.refused(403), "certificate_expired");
    let renew = Ask::post("/api/v1/collectors/renew-certificate").bearer(&first.token);
    let renew = renew.json(&json!({"csr": key_and_request().1}));
    assert_eq!(first.client.send(renew).await.refused(403), "certificate_expired");
    let body = json!({"name": "db1", "hostname": "db1.example.com"});
    let ask = Ask::post("/api/v1/collectors/register").json(&body);
    let answer = first.client.send(ask).await.json();
    assert_eq!(answer["collector_id"], first.id.as_str());
    let audits = served.running().store().audits(Page::first(1)).await.expect("audits").rows;
    assert!(audits[0].actor.ends_with("with its certificate, past its end"), "{audits:?}");
}

/// C47: the secret of a release brings one collector back, once, and no other.
#[tokio::test]
async fn a_released_collector_comes_back_once() {
    let served = Served::start().await;
    let first = served.register("db1").await;
    served.register("db2").await;
    let admin = served.user_token(Role::Admin).await;
    let release = |token: &str, id: &str| {
        let ask = Ask::post(&format!("/api/v1/collectors/{id}/release")).bearer(token);
        let client = served.stranger();
        async move { client.send(ask).await }
    };
    let viewer = served.user_token(Role::Viewer).await;
    release(&viewer, &first.id).await.refused(403);
    release(&admin, &uuid::Uuid::nil().to_string()).await.refused(404);
    let path = format!("/api/v1/collectors/{}", first.id);
    let remove = Ask::new(Method::DELETE, &path).bearer(&admin);
    assert_eq!(served.stranger().send(remove).await.status, 204);
    let answer = release(&admin, &first.id).await.json();
    let secret = answer["secret"].as_str().expect("a secret");
    let end: jiff::Timestamp = answer["expires_at"].as_str().expect("a time").parse().expect("one");
    let hours = end.duration_since(clock::now()).as_hours();
    assert!((23..=24).contains(&hours), "{hours}");
    let register = async |name: &str| {
        let body = json!({"name": name, "hostname": "db1.example.com"});
        let ask = Ask::post("/api/v1/collectors/register").json(&body);
        served.stranger().send(ask.header("x-registration-secret", secret)).await
    };
    assert_eq!(register("db2").await.refused(409), "other_name");
    assert_eq!(register("db3").await.refused(409), "other_name");
    assert_eq!(register("DB1").await.json()["collector_id"], first.id.as_str());
    assert_eq!(register("db1").await.refused(401), "bad_registration_secret");
}

/// A secret with the right to take names back does so; a name that was given up leads to its
/// collector. Secrets are made, listed and ended by hand beside a running backend.
#[tokio::test]
async fn secrets_are_made_and_ended_by_hand() {
    let served = Served::start().await;
    let first = served.register("db1").await;
    let add = |name: &str, reclaims: bool, uses_max: Option<u64>| {
        let request = SecretRequest { name: name.to_owned(), uses_max, life: None, reclaims };
        backend::add_secret(&served.config, request)
    };
    let (once, fleet) = (add("once", false, Some(1)).await, add("fleet", true, None).await);
    let (once, fleet) = (once.expect("a secret"), fleet.expect("a secret"));
    add("fleet", true, None).await.expect_err("the name is taken");
    let register = async |secret: &str, name: &str| {
        let body = json!({"name": name, "hostname": format!("{name}.elsewhere")});
        let ask = Ask::post("/api/v1/collectors/register").json(&body);
        served.stranger().send(ask.header("x-registration-secret", secret)).await
    };
    assert_eq!(register(&once, "db1").await.refused(409), "name_taken");
    assert_eq!(register(&once, "db2").await.status, 200);
    register(&once, "db3").await.refused(401);
    backend::rename(&served.config, "db1", "primary").await.expect("renamed");
    let back = register(&fleet, "db1").await.json();
    assert_eq!((&back["collector_id"], &back["name"]), (&json!(first.id), &json!("primary")));
    // The audit says of a secret what it may do, and of a registration by which secret it was.
    let audits = served.running().store().audits(Page::first(10)).await.expect("audits").rows;
    let added = |name: &str| {
        let row = audits.iter().find(|row| row.subject == name);
        row.map(|row| row.action.clone()).unwrap_or_default()
    };
    assert_eq!(
        (added("once"), added("fleet")),
        ("secret.add".into(), "secret.add (reclaims)".into())
    );
    let last = audits.first().expect("the newest");
    assert_eq!((&last.subject, last.action.as_str()), (&first.id, "collector.register"));
    assert!(last.actor.ends_with("with the secret fleet"), "{last:?}");
    backend::revoke_secret(&served.config, "fleet").await.expect("revoked");
    register(&fleet, "db1").await.refused(401);
    // The one in the file, too, and a restart does not bring it back.
    backend::revoke_secret(&served.config, "file").await.expect("revoked");
    served.try_register(&json!({"name": "x", "hostname": "x"})).await.refused(401);
    let secrets = backend::secrets(&served.config).await.expect("secrets");
    let good = secrets.iter().filter(|secret| secret.is_good(clock::now())).count();
    assert_eq!((secrets.len(), good), (3, 0));
}

/// Admins name and label collectors; what is wrong with one part changes nothing of the other.
#[tokio::test]
async fn labels_are_an_admins_words() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    served.register("db2").await;
    let (admin, viewer) =
        (served.user_token(Role::Admin).await, served.user_token(Role::Viewer).await);
    let path = format!("/api/v1/collectors/{}", host.id);
    let change = async |token: &str, body: Value| {
        let ask = Ask::new(Method::PATCH, &path).json(&body).bearer(token);
        served.stranger().send(ask).await
    };
    let labels = json!({"site": "Lyon", "tier": "1"});
    let both = json!({"name": "primary", "labels": labels});
    change(&viewer, both.clone()).await.refused(403);
    for (body, status) in [
        (json!({"name": "primary", "labels": {"a b": "x"}}), 400),
        (json!({"name": "primary", "labels": {"a": ""}}), 400),
        (json!({"name": "primary", "labels": {"a": 1}}), 400),
        (json!({"name": "primary", "labels": ["a"]}), 400),
        (json!({"labels": labels, "name": "DB2"}), 409),
        (json!({"labels": labels, "more": 1}), 400),
    ] {
        change(&admin, body).await.refused(status);
    }
    let shown = served.stranger().get(&path, &viewer).await.json();
    assert_eq!((&shown["name"], shown.get("labels")), (&json!("db1"), None));
    let answer = change(&admin, both).await.json();
    assert_eq!((&answer["name"], &answer["labels"]), (&json!("primary"), &labels));
    assert_eq!(change(&admin, json!({"name": "db1"})).await.json()["labels"], labels);
    let listed = served.stranger().get("/api/v1/collectors", &viewer).await.json();
    let ours = listed["data"].as_array().expect("rows").iter().find(|row| row["name"] == "db1");
    assert_eq!(ours.expect("it is listed")["labels"], labels);
    assert_eq!(change(&admin, json!({"labels": {}})).await.json().get("labels"), None);
    let nobody = format!("/api/v1/collectors/{}", uuid::Uuid::nil());
    let ask = Ask::new(Method::PATCH, &nobody).json(&json!({"labels": {}})).bearer(&admin);
    served.stranger().send(ask).await.refused(404);
}

/// C7, C10, C11, C49: which tokens pass, and which do not.
#[tokio::test]
async fn only_good_tokens_pass() {
    let served = Served::start().await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let user = served.user_token(Role::Admin).await;
    let own = claims(&host.id);
    let with = |key: &str, value: Value| {
        let mut claims = own.clone();
        claims[key] = value;
        minted(&host, &claims)
    };
    let check = async |token: &str, status: u16| {
        let reply = push_with(&host.client, &host, token).await;
        assert_eq!(reply.status, status, "{token} {reply:?}");
    };
    let now = clock::now().as_second();
    check(&host.token, 200).await;
    check(&minted(&host, &own), 200).await;
    check(&with("exp", json!(now - 30)), 200).await;
    check(&with("exp", json!(now - 90)), 401).await;
    check(&with("nbf", json!(now + 30)), 200).await;
    check(&with("nbf", json!(now + 90)), 401).await;
    check(&with("iat", json!(now + 90)), 401).await;
    check(&with("type", json!("refresh")), 401).await;
    check(&with("collector_id", json!(other.id)), 401).await;
    check(&with("sub", json!("user:1")), 401).await;
    check(&with("exp", Value::Null), 401).await;
    check(&signed(&host.id, &[7; 32], &own), 401).await;
    check(&signed(&other.id, &[7; 32], &own), 401).await;
    check(&signed("nobody", &[7; 32], &own), 401).await;
    check(&signed(&uuid::Uuid::nil().to_string(), &[7; 32], &own), 401).await;
    for token in [&user, "x", "a.b.c", "..", "Bearer"] {
        check(token, 401).await;
    }
    // Another collector's good token with this host's certificate.
    check(&other.token, 403).await;
    let reply = host.client.send(host.ask(json!([])).header("authorization", "")).await;
    assert_eq!(reply.refused(401), "unauthorized");
    assert_eq!(reply.header("www-authenticate"), "Bearer");
    for word in ["bearer", "Basic", "BEARER"] {
        let header = format!("{word} {}", host.token);
        let ask = host.ask(json!([])).header("authorization", &header);
        host.client.send(ask).await.refused(401);
    }
}

/// C39: the certificate that was registered, and no other, opens the collector's endpoints.
#[tokio::test]
async fn the_certificate_must_be_the_registered_one() {
    let served = Served::start().await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let ways = [
        (Method::POST, "/api/v1/metrics/push".to_owned()),
        (Method::GET, format!("/api/v1/config/{}", host.id)),
        (Method::POST, "/api/v1/collectors/refresh-token".to_owned()),
        (Method::POST, "/api/v1/collectors/renew-certificate".to_owned()),
    ];
    for (method, path) in ways {
        let (_, csr) = key_and_request();
        let ask = || {
            let ask = Ask::new(method.clone(), &path).bearer(&host.token);
            if path.ends_with("renew-certificate") {
                return ask.json(&json!({"csr": csr}));
            }
            if path.ends_with("push") { ask.json(&host.envelope(json!([]))) } else { ask }
        };
        assert_eq!(host.client.send(ask()).await.status, 200, "{path}");
        let reply = served.stranger().send(ask()).await;
        assert_eq!(reply.refused(403), "certificate_required");
        assert_eq!(other.client.send(ask()).await.refused(403), "certificate_mismatch");
    }
    // A certificate of another authority does not get through the handshake.
    let elsewhere = Served::start().await;
    let body = json!({"name": "x", "hostname": "x"});
    let answer = elsewhere.try_register(&body).await.json();
    let text = |key: &str| answer[key].as_str().expect(key);
    let client = served.client(text("certificate"), text("private_key"));
    let reply = client.try_send(host.ask(json!([]))).await;
    assert!(reply.is_err(), "{reply:?}");
}

/// C39: a renewed certificate is for the request's key and counts beside the old one until it is
/// used; from then on it alone does.
#[tokio::test]
async fn a_certificate_is_renewed() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let renew = |csr: &str| {
        let ask = Ask::post("/api/v1/collectors/renew-certificate").bearer(&host.token);
        host.client.send(ask.json(&json!({"csr": csr})))
    };
    let renewed = async || {
        let (key, csr) = key_and_request();
        let answer = renew(&csr).await.json();
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{key}: {answer}"));
        assert_eq!(text("ca_certificate"), served.running().ca_certificate());
        let end: jiff::Timestamp = text("certificate_expires_at").parse().expect("RFC 3339");
        assert!(end > clock::now());
        served.client(text("certificate"), &key.serialize_pem())
    };
    let works = async |client: &Client| push_with(client, &host, &host.token).await.status;
    // The host crashed before it had written the first one.
    let (lost, new) = (renewed().await, renewed().await);
    assert_eq!((works(&host.client).await, works(&lost).await), (200, 403));
    assert_eq!((works(&host.client).await, works(&new).await), (200, 200));
    let old = push_with(&host.client, &host, &host.token).await;
    assert_eq!(old.refused(403), "certificate_mismatch");
    assert_eq!(works(&new).await, 200);
    renew(&key_and_request().1).await.refused(403);
    let audits = served.running().store().audits(Page::first(10)).await.expect("audits");
    let actions: Vec<_> = audits.rows.iter().map(|row| row.action.as_str()).collect();
    let (given, used) = ("collector.renew_certificate", "collector.replace_certificate");
    assert_eq!(actions, [used, given, given, "collector.register", "secret.add"]);
    // What is no request, or comes without a certificate, changes nothing.
    let ask = |body: Value| {
        let ask = Ask::post("/api/v1/collectors/renew-certificate").bearer(&host.token);
        new.send(ask.json(&body))
    };
    ask(json!({"csr": "no request"})).await.refused(400);
    ask(json!({})).await.refused(400);
    assert_eq!(works(&new).await, 200);
}

fn key_and_request() -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    (key, csr.pem().expect("PEM"))
}

/// C39: TLS 1.2 is refused, TLS 1.3 is spoken.
#[tokio::test(flavor = "multi_thread")]
async fn only_tls_1_3_is_spoken() {
    let served = Served::start().await;
    let address = served.running().address().to_string();
    let connect = move |version: &str| {
        let child = Command::new("openssl")
            .args(["s_client", "-connect", &address, version])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .expect("run openssl");
        String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned()
    };
    let both = tokio::task::spawn_blocking(move || (connect("-tls1_3"), connect("-tls1_2")));
    let (new, old) = both.await.expect("no panic");
    assert!(new.contains("TLSv1.3, Cipher is TLS_"), "{new}");
    // The authority is shown beside the server: a host may know no more than its fingerprint.
    let subjects = new.replace(" = ", "=");
    assert!(subjects.contains("s:CN=pgAnalytics backend\n"), "{new}");
    assert!(subjects.contains("s:CN=pgAnalytics backend authority\n"), "{new}");
    assert!(old.contains("Cipher is (NONE)"), "{old}");
    assert!(old.contains("alert protocol version"), "{old}");
}

/// A host cannot mint itself a token for years, whatever it is used for.
#[tokio::test]
async fn a_minted_token_has_an_end() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let check = async |life: i64, status: u16| {
        let mut claims = claims(&host.id);
        claims["exp"] = json!(claims["iat"].as_i64().expect("a number").saturating_add(life));
        let token = minted(&host, &claims);
        assert_eq!(push_with(&host.client, &host, &token).await.status, status, "{life}");
        let renew = Ask::post("/api/v1/collectors/refresh-token").bearer(&token);
        assert_eq!(host.client.send(renew).await.status, status, "{life}");
    };
    check(3600, 200).await;
    check(7200, 200).await;
    check(7201, 401).await;
    check(i64::MAX, 401).await;
}

/// C12: a new token each time, that ends later; an old one is enough when the certificate is
/// there, so that a host that was cut off for a month gets in again.
#[tokio::test]
async fn a_token_is_renewed() {
    let served = Served::start_with(|config| {
        config.lifetimes.collector_token = Duration::from_secs(1800);
    })
    .await;
    let host = served.register("db1").await;
    let renew = |token: &str| Ask::post("/api/v1/collectors/refresh-token").bearer(token);
    let reply = host.client.send(renew(&host.token)).await;
    let answer = reply.json();
    let token = answer["token"].as_str().expect("a token");
    assert_ne!(token, host.token);
    assert_eq!(push_with(&host.client, &host, token).await.status, 200);
    let ends: jiff::Timestamp = answer["expires_at"].as_str().expect("a time").parse().expect("it");
    let left = ends.duration_since(clock::now()).as_secs();
    assert!((1790..=1800).contains(&left), "{left}");
    let mut old = claims(&host.id);
    old["exp"] = json!(clock::now().as_second() - 30 * 86_400);
    let old = minted(&host, &old);
    push_with(&host.client, &host, &old).await.refused(401);
    assert_eq!(host.client.send(renew(&old)).await.status, 200);
    served.stranger().send(renew(&old)).await.refused(401);
    host.client.send(renew("x.y.z")).await.refused(401);
    let user = served.user_token(Role::Admin).await;
    host.client.send(renew(&user)).await.refused(401);
}

/// C27, C50: a default is made, kept and served; new versions follow; an unchanged one is 304.
#[tokio::test]
async fn a_configuration_is_pulled_by_version() {
    let served = Served::start().await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let admin = served.user_token(Role::Admin).await;
    let path = format!("/api/v1/config/{}", host.id);
    let first = host.client.get(&path, &host.token).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!((first.header("x-config-version"), first.header("etag")), ("1", "\"1\""));
    let text = String::from_utf8(first.body.to_vec()).expect("UTF-8");
    for section in ["[collector]", "[pg_stats]", "[sysstat]", "[pg_log]", "[disk_usage]"] {
        assert!(text.contains(section), "{section}");
    }
    let held =
        |tag: &str| Ask::new(Method::GET, &path).bearer(&host.token).header("if-none-match", tag);
    for tag in ["\"1\"", "W/\"1\"", "\"0\", \"1\"", "*"] {
        let reply = host.client.send(held(tag)).await;
        assert_eq!((reply.status, reply.body.len()), (304, 0), "{tag}");
        assert_eq!(reply.header("x-config-version"), "1");
    }
    let put = |text: &str| Ask::new(Method::PUT, &path).bearer(&admin).body(text.to_owned());
    let user = served.stranger();
    let reply = user.send(put("[collector]\ninterval = 30\n")).await;
    assert_eq!(reply.json()["version"], 2, "{reply:?}");
    let second = host.client.send(held("\"1\"")).await;
    assert_eq!((second.status, second.header("x-config-version")), (200, "2"));
    assert_eq!(&second.body[..], b"[collector]\ninterval = 30\n");
    assert_eq!(host.push(json!([])).await.json()["next_config_version"], 2);
    // What an agent could not load is refused with its line, and changes nothing.
    let reply = user.send(put("[collector]\ninterval = = 30\n")).await;
    assert_eq!(reply.refused(422), "config_invalid");
    assert_eq!(reply.json()["details"]["line"], 2);
    // So is what only the host's own file may say.
    let reply = user.send(put("[queue]\ndir = \"/q\"\n")).await;
    assert_eq!(
        (reply.refused(422).as_str(), &reply.json()["details"]["line"]),
        ("config_invalid", &json!(2))
    );
    assert!(reply.json()["message"].to_string().contains("queue.dir: only the host's own file"));
    assert_eq!(host.client.send(held("\"2\"")).await.status, 304);
    // Users read it too, without a certificate; other collectors do not.
    assert_eq!(user.get(&path, &admin).await.header("x-config-version"), "2");
    assert_eq!(other.client.get(&path, &other.token).await.refused(403), "not_yours");
    let versions = user.get(&format!("{path}/versions"), &admin).await.json();
    assert_eq!(
        (versions["total"].as_u64(), versions["data"][0]["version"].as_i64()),
        (Some(2), Some(2))
    );
    assert_eq!(versions["data"][0]["updated_by"], "admin");
    // A section of the newer originals is taken, and told.
    let reply = user.send(put("[sysstat]\ninterval = 9\n[pg_locks]\ninterval = 5\n")).await;
    assert_eq!(reply.json()["version"], 3, "{reply:?}");
    let told = reply.json()["message"].to_string();
    assert!(told.contains("[pg_locks]: this agent does not collect it"), "{told}");
    let unknown = format!("/api/v1/config/{}", uuid::Uuid::nil());
    user.get(&unknown, &admin).await.refused(404);
    user.send(Ask::new(Method::PUT, &unknown).bearer(&admin).body("")).await.refused(404);
    host.client.send(Ask::new(Method::PUT, &path).bearer(&host.token).body("")).await.refused(401);
}

/// The list of collectors, one of them, and its end.
#[tokio::test]
async fn users_see_and_remove_collectors() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    served.register("db2").await;
    let (admin, viewer) =
        (served.user_token(Role::Admin).await, served.user_token(Role::Viewer).await);
    let user = served.stranger();
    let list = user.get("/api/v1/collectors?page=1&page_size=1", &viewer).await.json();
    let pages = (list["total"].as_u64(), list["total_pages"].as_u64(), list["page"].as_u64());
    assert_eq!(pages, (Some(2), Some(2), Some(1)));
    let first = &list["data"][0];
    assert_eq!((&first["name"], &first["status"]), (&json!("db1"), &json!("registered")));
    assert_eq!(first["certificate_thumbprint"].as_str().map(str::len), Some(64));
    assert_eq!(first.get("last_seen"), None);
    for wrong in ["page=0", "page_size=0", "page_size=101", "page=x"] {
        user.get(&format!("/api/v1/collectors?{wrong}"), &viewer).await.refused(400);
    }
    let path = format!("/api/v1/collectors/{}", host.id);
    let delete = |token: &str| Ask::new(Method::DELETE, &path).bearer(token);
    assert_eq!(user.send(delete(&viewer)).await.refused(403), "role_too_low");
    assert_eq!(user.send(delete(&host.token)).await.refused(401), "unauthorized");
    assert_eq!(host.push(json!([])).await.status, 200);
    assert_eq!(user.send(delete(&admin)).await.status, 204);
    host.push(json!([])).await.refused(401);
    assert_eq!(user.get(&path, &viewer).await.json()["status"], "deregistered");
    user.send(delete(&admin)).await.refused(404);
    for unknown in ["x", &uuid::Uuid::nil().to_string()] {
        user.get(&format!("/api/v1/collectors/{unknown}"), &viewer).await.refused(404);
    }
    user.get("/api/v1/collectors", &host.token).await.refused(401);
}

/// Without TLS, on loopback and when allowed: the token is enough.
#[tokio::test]
async fn plain_http_needs_no_certificate() {
    let served = Served::start_with(|config| {
        config.plaintext_listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let host = served.register("db1").await;
    let plain = Client::plain(served.running().plaintext_address().expect("it listens"));
    assert_eq!(push_with(&plain, &host, &host.token).await.status, 200);
    push_with(&plain, &host, "x").await.refused(401);
    let mut old = claims(&host.id);
    old["exp"] = json!(clock::now().as_second() - 3600);
    let renew = Ask::post("/api/v1/collectors/refresh-token").bearer(&minted(&host, &old));
    plain.send(renew).await.refused(401);
    let csr = json!({"csr": key_and_request().1});
    let renew = Ask::post("/api/v1/collectors/renew-certificate").bearer(&host.token);
    assert_eq!(plain.send(renew.json(&csr)).await.refused(403), "certificate_required");
}

/// C37: a request that is never completed is answered when its time is over.
#[tokio::test]
async fn an_unfinished_request_is_answered_in_time() {
    let served = Served::start_with(|config| {
        config.plaintext_listen = Some(([127, 0, 0, 1], 0).into());
        config.limits.request_timeout = Duration::from_millis(200);
    })
    .await;
    let address = served.running().plaintext_address().expect("it listens");
    let host = served.register("db1").await;
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let head = format!(
        "POST /api/v1/metrics/push HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {}\r\ncontent-length: 10\r\n\r\n{{",
        host.token
    );
    stream.write_all(head.as_bytes()).await.expect("send");
    let began = clock::monotonic();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read to the end");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"error\":\"timeout\""), "{answer}");
    assert!(clock::monotonic() - began < Duration::from_secs(4), "it waited for the rest");
}

/// C55: a client that never finishes its request is sent away, and does not hinder others.
#[tokio::test]
async fn slow_clients_are_sent_away() {
    let served = Served::start_with(|config| {
        config.limits.handshake_timeout = Duration::from_millis(200);
        config.limits.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let mut silent = tokio::net::TcpStream::connect(served.running().address()).await.expect("it");
    let host = served.register("db1").await;
    assert_eq!(host.push(json!([])).await.status, 200);
    let mut byte = [0; 1];
    let read = silent.read(&mut byte);
    let ended = tokio::time::timeout(Duration::from_secs(10), read).await.expect("it is closed");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    until_async("health", Duration::from_secs(5), async || {
        served.stranger().get("/api/v1/health", "x").await.status == 200
    })
    .await;
}
