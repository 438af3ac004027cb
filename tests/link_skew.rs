//! Hosts whose clock is wrong, by an hour or by years: they get in, and nobody else does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::store::Page;
use pganalytics::clock::{self, HostClock};
use pganalytics::link::register::{Contact, Registration, register};
use pganalytics::link::{
    CertificateClock, Link, LinkConfig, Push, SendErrorKind, ServerClock, TlsConfig, renew,
};
use pganalytics::shutdown;
use secrecy::SecretString;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::link_renew::Site;
use crate::link_tls::{World, identity, push};
use crate::support::backend::Served;
use crate::support::backend_stub::{Authority, Clients, Flaw, Reply, Stub};
use crate::support::shim::Faults;
use crate::support::{directory, site, until, until_async};

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// A host's clock, this many seconds ahead of the right time.
fn ahead(seconds: i64) -> ServerClock {
    ServerClock::of(HostClock::ahead_by(SignedDuration::from_secs(seconds)))
}

impl Site {
    /// The link of an agent that starts while its host's clock is ahead.
    fn link_ahead(&self, seconds: i64) -> Arc<Link> {
        let config = LinkConfig { clock: ahead(seconds), ..self.config.clone() };
        Arc::new(Link::new(&config, self.identity()).expect("a usable configuration"))
    }

    /// What an agent pushes whose host's clock is ahead: one metric, of the host's time.
    fn push_ahead(&self, link: &Link, seconds: i64) -> Push {
        let at = clock::rfc3339(clock::now() + SignedDuration::from_secs(seconds));
        let body = serde_json::json!({
            "collector_id": self.identity().collector_id, "hostname": "db1.example.com",
            "timestamp": at, "version": "1",
            "metrics": [{"type": "custom.x", "timestamp": at}],
            "agent": {
                "queue_id": Uuid::nil(), "config_version": 0,
                "clock_offset_ms": link.clock_offset_ms(),
                "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
                "lost": [],
            },
        });
        Push { body: Bytes::from(body.to_string()), encoding: "identity", batch_id: None }
    }
}

#[track_caller]
fn assert_offset(link: &Link, seconds_ahead: i64) {
    let wrong = link.clock_offset_ms() + seconds_ahead * 1000;
    assert!(wrong.abs() < 10_000, "{} ms", link.clock_offset_ms());
}

/// The first push is refused for its token, and the answer's `Date` makes the second one good.
#[tokio::test]
async fn a_host_an_hour_off_delivers_at_once() {
    let site = Site::registered().await;
    for seconds in [HOUR, -2 * HOUR] {
        let link = site.link_ahead(seconds);
        let answer = link.push(site.push()).await.expect("answered");
        assert_eq!(answer.status, 200, "{}", answer.message());
        assert_offset(&link, seconds);
    }
}

/// C39: the server's certificate looks expired or not begun to the host, and the whole push is
/// stored all the same.
#[tokio::test]
async fn a_host_years_off_delivers() {
    let site = Site::registered().await;
    for (n, seconds) in [(1, 12 * YEAR), (2, -12 * YEAR)] {
        let link = site.link_ahead(seconds);
        // The offset is known before the first push, and is said in it.
        assert_eq!(link.probe().await.expect("answered").status, 200);
        assert_offset(&link, seconds);
        let answer = link.push(site.push_ahead(&link, seconds)).await.expect("answered");
        assert_eq!(answer.status, 200, "{}", answer.message());
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["metrics_inserted"], 1, "{body}");
        let stored = site.served.stored(None).await;
        assert_eq!(stored.len(), n);
        let off = |at: Timestamp| at.duration_since(clock::now()).as_secs() - seconds;
        assert!(stored.iter().any(|metric| off(metric.at).abs() < 60), "{stored:?}");
    }
    // And without a probe.
    let link = site.link_ahead(-9 * YEAR);
    assert_eq!(link.push(site.push()).await.expect("answered").status, 200);
}

/// A host that was never told the right time can be registered.
#[tokio::test]
async fn a_host_years_off_registers() {
    let served = Served::start().await;
    for (name, seconds) in [("db1", 12 * YEAR), ("db2", -12 * YEAR)] {
        let folder = directory();
        let at = |name: &str| folder.path().join(name);
        let registration = Registration {
            link: LinkConfig {
                url: format!("https://127.0.0.1:{}", served.running().address().port()),
                tls: TlsConfig {
                    cert_file: at("collector.crt"),
                    key_file: at("collector.key"),
                    ..TlsConfig::default()
                },
                clock: ahead(seconds),
                ..LinkConfig::default()
            },
            state_dir: at("state"),
            name: name.to_owned(),
            hostname: format!("{name}.example.com"),
            contact: Contact::Ca(served.running().ca_file()),
            secret: Some(SecretString::from(served.secret())),
        };
        let identity = register(&registration).await.expect("registered").identity;
        let age = clock::now().duration_since(identity.registered_at).as_secs();
        assert!(age.abs() < 60, "registered {age} s ago");
    }
}

/// The first records of a host whose clock is days ahead, and those after its clock was set once
/// more, are not sent before the backend has told its time: it would refuse them.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_clock_that_is_days_ahead_wait_until_that_is_known() {
    const DAY: i64 = 24 * HOUR;
    let site = site::Site::registered().await;
    // Nothing but pushes talks to the backend, and those only when they are asked for.
    let config = fs_err::read_to_string(site.config()).expect("read");
    let (often, never) =
        ("push_interval = \"300ms\"", "push_interval = \"1h\"\nremote_config = false");
    assert!(config.contains(often), "{config}");
    fs_err::write(site.config(), config.replace(often, never)).expect("write");
    let clock = Faults::new(site.directory.path(), site.output());
    clock.set_clock_ahead(3 * DAY);
    let agent = site.start_with(|command| clock.strike_in(command));
    let limit = Duration::from_secs(30);
    until("the agent runs", limit, || agent.stderr().contains("the agent runs"));
    for days in [3, 9] {
        clock.set_clock_ahead(days * DAY);
        let before = site.queue_number("next_seq");
        until("it collects", limit, || site.queue_number("next_seq") >= before + 5);
        let done = site.command(&["replay"]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let stored = site.stored().await;
        let ahead = |at: Timestamp| at.duration_since(clock::now()).as_secs();
        let is_new = |seconds: i64| (seconds - days * DAY).abs() < HOUR;
        assert!(stored.iter().any(|metric| is_new(ahead(metric.at))), "{days} days");
        let letters = fs_err::read_to_string(site.queue().join("dead.ndjson")).unwrap_or_default();
        assert_eq!(letters, "", "{days} days: {}", agent.stderr());
    }
    agent.stop();
}

/// Certificates are not renewed because of a clock that nobody has confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_years_ahead_does_not_renew_a_new_certificate() {
    let site = Site::registered().await;
    let link = site.link_ahead(12 * YEAR);
    let (_trigger, shutdown) = shutdown::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(renew::run(Arc::clone(&link), shutdown));
    let limit = Duration::from_secs(30);
    until_async("it asks for the time", limit, || async { link.clock_offset_ms() != 0 }).await;
    assert_eq!(link.push(site.push()).await.expect("answered").status, 200);
    let audits = site.served.running().store().audits(Page::first(9)).await.expect("audits");
    let actions: Vec<_> = audits.rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["collector.register", "secret.add"]);
    assert_eq!(link.certificate().expect("one").error, None);
}

/// `tls.clock = "host"`: a wrong clock is said, and nothing is asked.
#[tokio::test]
async fn the_hosts_clock_decides_when_told_so() {
    let mut site = Site::registered().await;
    site.config.tls.clock = CertificateClock::Host;
    for (seconds, kind) in
        [(12 * YEAR, SendErrorKind::TlsExpired), (-12 * YEAR, SendErrorKind::TlsNotYetValid)]
    {
        let link = site.link_ahead(seconds);
        let error = link.push(site.push()).await.expect_err("no connection");
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(link.clock_offset_ms(), 0);
    }
}

/// C39: a wrong clock forgives nothing but the time.
#[tokio::test]
async fn only_the_time_may_be_wrong() {
    use SendErrorKind::{TlsExpired, TlsSelfSigned, TlsUnknownIssuer, TlsWrongName};
    let check = async |flaw, issuer: &str, expected: &[SendErrorKind]| {
        let authority = Authority::new("test CA");
        let server = match issuer {
            "its own" => authority.server(flaw),
            other => Authority::new(other).server(flaw),
        };
        let stub = Stub::https(&server, Clients::Anyone).await;
        let folder = directory();
        let tls = authority.client().install(folder.path(), &authority);
        // After the certificates' end, in the year 4096.
        let config = LinkConfig { clock: ahead(3000 * YEAR), ..stub.link_config(tls) };
        let link = Link::new(&config, identity()).expect("a link");
        let error = link.push(push()).await.expect_err("no connection");
        assert!(expected.contains(&error.kind), "{error}");
        assert_eq!(stub.probes().len() + stub.requests().len(), 0, "nobody was asked for the time");
        assert_eq!(link.clock_offset_ms(), 0);
    };
    check(Flaw::OtherName, "its own", &[TlsExpired, TlsWrongName]).await;
    check(Flaw::None, "another CA", &[TlsExpired, TlsUnknownIssuer]).await;
    check(Flaw::SelfSigned, "its own", &[TlsExpired, TlsSelfSigned]).await;
}

/// A time outside of the certificate's own validity is not believed, whoever says it: an expired
/// certificate stays expired.
#[tokio::test]
async fn a_time_outside_of_the_certificate_is_not_believed() {
    let world = World::with(Flaw::Expired).await;
    let link = Link::new(&world.config(), identity()).expect("a link");
    let dates = ["Sat, 01 Jan 2022 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"];
    for date in dates {
        world.stub.say_date(date);
        let error = link.push(push()).await.expect_err("expired");
        assert_eq!(error.kind, SendErrorKind::TlsExpired, "{error}");
        assert_eq!(link.clock_offset_ms(), 0);
    }
    let probes = world.stub.probes();
    assert_eq!((probes.len(), world.stub.requests().len()), (dates.len(), 0));
    assert!(probes.iter().all(|request| request.token().is_empty()));
}

/// A server that says a wrong time over a good connection spoils its own tokens, and not the
/// judgement of its certificate.
#[tokio::test]
async fn a_server_with_a_broken_clock_is_still_known() {
    let world = World::new().await;
    let link = Link::new(&world.config(), identity()).expect("a link");
    world.stub.reply([Reply::with(200, &[("date", "Thu, 01 Jan 1970 00:00:00 GMT")], "{}")]);
    assert_eq!(link.push(push()).await.expect("answered").status, 200);
    assert!(link.clock_offset_ms() < -50 * YEAR * 1000);
    let fresh = LinkConfig { clock: link.clock().clone(), ..world.config() };
    let again = Link::new(&fresh, identity()).expect("a link");
    assert_eq!(again.push(push()).await.expect("answered").status, 200);
}

/// With the system's roots the host's clock decides.
#[tokio::test]
async fn the_systems_roots_are_judged_by_the_hosts_clock() {
    let world = World::with(Flaw::Expired).await;
    let tls = TlsConfig { ca_file: None, ..world.tls.clone() };
    let link = Link::new(&world.stub.link_config(tls), identity());
    // A machine without any roots has nothing to trust.
    if let Ok(link) = link {
        link.push(push()).await.expect_err("not trusted");
    }
    assert_eq!(world.stub.requests().len(), 0);
}
