//! Why nothing is delivered is told to people and to programs: in the log, by `agent status`, and
//! as a reason of its own on the metrics page.

use std::path::Path;
use std::time::Duration;

use http::Method;
use pganalytics::backend::store::Role;
use serde_json::Value;

use crate::operator::Host;
use crate::scrape::scrape_socket;
use crate::support::backend::Ask;
use crate::support::backend_stub::Flaw;
use crate::support::process::Finished;
use crate::support::site::Site;
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

fn counted(socket: &Path, reason: &str) -> u64 {
    let text = scrape_socket(socket);
    assert!(text.contains("# HELP agent_send_failures_total "), "{text}");
    let series = format!("agent_send_failures_total{{reason=\"{reason}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("no {series}: {text}")).parse().expect("a number")
}

fn of_backend(status: &Finished, name: &str) -> String {
    let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    status["backend"][name].as_str().unwrap_or_default().to_owned()
}

/// C39: a certificate that has expired, from the handshake to the operator's screen.
#[tokio::test(flavor = "multi_thread")]
async fn expired_certificate_is_seen_by_everyone() {
    let host = Host::with("300ms", Flaw::Expired).await;
    let agent = host.start();
    until("the reason is in the status", LIMIT, || {
        let status = host.ask(&["status", "--json"]);
        of_backend(&status, "forwarding") == "backing_off"
            && of_backend(&status, "reason") == "tls_expired"
    });
    let socket = host.path("control.sock");
    assert!(counted(&socket, "tls_expired") > 0);
    for other in ["tls_not_yet_valid", "tls_unknown_issuer", "unauthorized"] {
        assert_eq!(counted(&socket, other), 0, "{other}");
    }
    let screen = host.ask(&["status"]).stdout;
    let done = agent.stop();
    for text in [&screen, &done.stderr] {
        assert!(text.contains("expired at 2020-01-01"), "{text}");
        assert!(text.contains("renew the backend's certificate"), "{text}");
    }
    assert!(screen.contains(" (tls_expired), "), "{screen}");
}

/// C34: a certificate that is registered no longer, and a collector that is deleted: two reasons,
/// each with what to do, and nothing is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_certificate_and_deleted_collector_are_told_apart() {
    let site = Site::registered().await;
    let file = |name: &str| site.directory.path().join(name);
    let pair = ["collector.crt", "collector.key"].map(|name| {
        let path = file(name);
        (fs_err::read(&path).expect("read"), path)
    });
    let (secret, ca) = (file("secret"), site.served.running().ca_file());
    let (secret, ca) = (secret.to_str().expect("UTF-8"), ca.to_str().expect("UTF-8"));
    let again = ["register", "--force", "--secret-file", secret, "--ca", ca];
    let registered = site.command(&again);
    assert_eq!(registered.code, Some(0), "{registered:?}");
    // From its first use on the new pair is the registered one.
    let agent = site.run();
    site.until_stored(1).await;
    agent.stop();
    for (old, path) in &pair {
        fs_err::write(path, old).expect("put the old one back");
    }
    let agent = site.run();
    // Whatever asks the backend first hears why not; a push has to hear it, too.
    let becomes = |reason: &str, hint: &str| {
        let forwarding = format!("paused ({reason})");
        until(hint, LIMIT, || {
            let screen = site.command(&["status"]).stdout;
            screen.contains(&forwarding) && screen.contains(hint)
        });
        assert!(counted(&file("state/control.sock"), reason) > 0);
    };
    becomes("certificate_mismatch", "replaced at the backend by a newer one");

    let admin = site.served.user_token(Role::Admin).await;
    let status: Value =
        serde_json::from_str(&site.command(&["status", "--json"]).stdout).expect("JSON");
    let collector = status["collector_id"].as_str().expect("an id");
    let delete = Ask::new(Method::DELETE, &format!("/api/v1/collectors/{collector}"));
    let deleted = site.served.stranger().send(delete.bearer(&admin)).await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    becomes("unauthorized", "was the collector deleted");
    let queued = site.queue_number("records");
    agent.stop();
    assert!(queued > 0 && site.queue_number("records") >= queued, "nothing is dropped");
}
