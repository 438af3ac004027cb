//! The backend's configuration of an agent: taken, refused, told, kept.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use pganalytics::backend::store::{Audit, NewConfig, Role};
use serde_json::{Value, json};

use crate::operator::Host;
use crate::support::backend::Ask;
use crate::support::backend_stub::Reply;
use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

fn status(site: &Site) -> Value {
    let done = site.command(&["status", "--json"]);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

fn until_status(site: &Site, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    until(what, LIMIT, || {
        last = status(site);
        holds(&last["config"])
    });
    last
}

fn enabled(status: &Value, name: &str) -> bool {
    let all = status["collectors"].as_array().expect("collectors");
    all.iter().find(|one| one["name"] == name).expect(name)["enabled"] == json!(true)
}

/// Puts a configuration as an admin does; returns its version.
async fn put(site: &Site, token: &str, text: &str) -> i64 {
    let id = status(site)["collector_id"].as_str().expect("an id").to_owned();
    let ask = Ask::new(Method::PUT, &format!("/api/v1/config/{id}"));
    let reply = site.served.stranger().send(ask.bearer(token).body(text.to_owned())).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["version"].as_i64().expect("a version")
}

/// Stores a configuration that the API would not take.
async fn store(site: &Site, text: &str) -> i64 {
    let id = status(site)["collector_id"].as_str().expect("an id").parse().expect("a UUID");
    let audit = Audit {
        at: Timestamp::UNIX_EPOCH,
        actor: "test".to_owned(),
        action: "config.write".to_owned(),
        subject: "x".to_owned(),
    };
    let config = NewConfig { collector_id: id, text: text.to_owned(), audit };
    site.served.running().store().next_config(config).await.expect("stored")
}

/// C26, C27, C28: a new version is in force soon after it is put, because a push names it; a bad
/// one is refused once, told to the backend, and not fetched again; the last good one counts at the
/// next start, before the backend can be reached.
#[tokio::test(flavor = "multi_thread")]
async fn the_backends_configuration_is_in_force_until_a_better_one_comes() {
    let site = Site::registered().await;
    let token = site.served.user_token(Role::Admin).await;
    let mut agent = site.run();
    // Asked at the start: the first is the backend's default, which sets no key.
    until_status(&site, "the default", |config| config["version"] == 1);
    let good = put(&site, &token, "[disk_usage]\nenabled = false\n").await;
    let after = until_status(&site, "it is in force", |config| config["version"] == good);
    assert!(!enabled(&after, "disk_usage") && enabled(&after, "sysstat"), "{after}");
    assert_eq!(after["config"]["remote_keys"], json!(["disk_usage.enabled"]));

    let bad = store(&site, "[sysstat]\n\nenabled = false\n[disk_usage]\nenabled = 7\n").await;
    let named = |config: &Value| config["refused"]["version"] == bad;
    let refused = until_status(&site, "it is refused", named);
    let error = refused["config"]["refused"]["error"].as_str().expect("an error");
    let place = format!("configuration {bad} of the backend:5: disk_usage.enabled = 7: is not");
    assert!(error.starts_with(&place), "{error}");
    assert_eq!(refused["config"]["version"], good);
    assert!(enabled(&refused, "sysstat"), "nothing of it is applied");
    site.until_stored(site.stored().await.len() + 20).await;
    let refusals = || agent.stderr().matches("a configuration of the backend is refused").count();
    assert_eq!(refusals(), 1, "it is not fetched again");

    let id = refused["collector_id"].as_str().expect("an id");
    let path = format!("/api/v1/config/{id}/versions");
    let versions = site.served.stranger().get(&path, &token).await.json();
    let row = |version: i64| {
        let rows = versions["data"].as_array().expect("rows").iter();
        rows.clone().find(|row| row["version"] == version).expect("a row").clone()
    };
    assert_eq!(row(bad)["error"], error, "{versions}");
    assert!(row(bad)["applied_at"].is_null() && row(good)["applied_at"].is_string(), "{versions}");

    agent.kill();
    site.proxy.set(Network::Down);
    let agent = site.run();
    let again = status(&site);
    assert_eq!(again["config"]["version"], good, "{again}");
    assert!(!enabled(&again, "disk_usage"), "{again}");
    site.proxy.set(Network::Up);
    let next = put(&site, &token, "[collector]\npush_interval = \"200ms\"\n").await;
    let last = until_status(&site, "the next one", |config| config["version"] == next);
    assert!(enabled(&last, "disk_usage") && last["config"]["refused"].is_null(), "{last}");
    let done = agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_distinct(&stored);
}

/// An overlay that was stored when more was allowed is in force without what is forbidden now, and
/// a value that costs too much is limited; the backend hears of both with the version.
#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_is_in_force_without_what_is_the_hosts() {
    let site = Site::registered().await;
    let token = site.served.user_token(Role::Admin).await;
    let agent = site.run();
    let text = "[sysstat]\nenabled = false\n[pg_log]\nline_prefix = \"%m [100] \"\n\
                [disk_usage]\ninterval = \"100ms\"\n";
    let version = store(&site, text).await;
    let after = until_status(&site, "it is in force", |config| config["version"] == version);
    assert!(!enabled(&after, "sysstat") && after["config"]["refused"].is_null(), "{after}");
    assert_eq!(after["config"]["remote_keys"], json!(["sysstat.enabled", "disk_usage.interval"]));
    let told = after["config"]["withheld"].as_str().expect("it is told").to_owned();
    let (prefix, interval) = ("pg_log.line_prefix: only the host's own", "the host allows");
    assert!(told.contains(prefix) && told.contains(interval), "{told}");

    let id = after["collector_id"].as_str().expect("an id").to_owned();
    let mut row = Value::Null;
    for _ in 0..200 {
        site.until_stored(site.stored().await.len() + 1).await;
        let path = format!("/api/v1/config/{id}/versions");
        let versions = site.served.stranger().get(&path, &token).await.json();
        let rows = versions["data"].as_array().expect("rows").clone();
        row = rows.into_iter().find(|row| row["version"] == version).expect("a row");
        if row["error"].is_string() {
            break;
        }
    }
    assert_eq!(row["error"], told, "{row}");
    // Where it is put it is refused, with the key.
    let ask = Ask::new(Method::PUT, &format!("/api/v1/config/{id}"));
    let reply = site.served.stranger().send(ask.bearer(&token).body(text.to_owned())).await;
    assert_eq!(reply.status, 422, "{reply:?}");
    assert!(reply.json().to_string().contains("pg_log.line_prefix"), "{reply:?}");
    agent.stop();
}

/// C26, C27: the host has the last word, now and at the next start; a kept configuration that is
/// damaged stops nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_may_shut_the_backend_out() {
    let site = Site::registered().await;
    let token = site.served.user_token(Role::Admin).await;
    let agent = site.run();
    let version = put(&site, &token, "[disk_usage]\nenabled = false\n").await;
    until_status(&site, "it is in force", |config| config["version"] == version);
    let shown = site.command(&["config", "show"]).stdout;
    assert!(shown.contains("[disk_usage]\nenabled = false  # the backend\n"), "{shown}");
    let own = fs_err::read_to_string(site.config()).expect("read");
    let off = own.replace("[collector]\n", "[collector]\nremote_config = false\n");
    fs_err::write(site.config(), off).expect("write");
    agent.signal(rustix::process::Signal::HUP);
    let alone = until_status(&site, "the file alone", |config| config["version"] == 0);
    assert!(enabled(&alone, "disk_usage") && alone["config"]["remote"] == "off", "{alone}");
    fs_err::write(site.config(), own).expect("write");
    agent.signal(rustix::process::Signal::HUP);
    until_status(&site, "it is back", |config| config["version"] == version);
    agent.stop();

    let kept = site.directory.path().join("state/remote-config.json");
    fs_err::write(&kept, "{").expect("write");
    let agent = site.run();
    until_status(&site, "fetched anew", |config| config["version"] == version);
    assert!(kept.with_extension("json.bad").exists(), "it is set aside");
    agent.stop();
}

/// C27: what the agent has it does not fetch again: it names its version, and takes 304 for an
/// answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_known_is_named() {
    let host = Host::new("1h").await;
    let text = "[disk_usage]\ninterval = \"5s\"\n";
    let version = Reply::with(200, &[("x-config-version", "7")], text);
    host.stub.reply([version, Reply::with(304, &[], ""), Reply::status(503)]);
    let agent = host.start();
    let applied = || agent.stderr().contains("another configuration applies version=7");
    until("it is in force", LIMIT, applied);
    for asked in 2..=3 {
        agent.signal(rustix::process::Signal::HUP);
        until("it asks again", LIMIT, || host.stub.requests().len() == asked);
    }
    until("the answer is told", LIMIT, || agent.stderr().contains("gives no configuration"));
    agent.stop();
    let requests = host.stub.requests();
    let config = requests.iter().filter(|request| request.path.starts_with("/api/v1/config/"));
    let named: Vec<&str> = config.map(|request| request.header("if-none-match")).collect();
    assert_eq!(named, ["", "\"7\"", "\"7\""]);
}
