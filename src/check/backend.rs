//! The way to the backend, with this host's identity.

use super::{Finding, Verdict};
use crate::answer::Meaning;
use crate::clock;
use crate::config::Config;
use crate::forward::verdict::Verdict as OnAnswer;
use crate::link::{Answer, CertificateState, Identity, Link, LinkError};

const PART: &str = "backend";

/// The certificate, and a request that only the registered collector may make.
pub(super) async fn check(config: &Config, identity: Result<Identity, LinkError>) -> Vec<Finding> {
    let link = identity.and_then(|identity| {
        let id = identity.collector_id.clone();
        Ok((Link::new(&config.link, identity)?, id))
    });
    let (link, id): (Link, String) = match link {
        Ok(link) => link,
        Err(error) => return vec![Finding::failed(PART, "identity", &error)],
    };
    let mut findings: Vec<_> = link.certificate().iter().map(certificate).collect();
    let url = link.authority();
    findings.push(match link.get(&format!("/api/v1/config/{id}")).await {
        Ok(answer) => answered(url, &id, &answer),
        Err(error) => Finding::failed(PART, url, &error),
    });
    findings
}

fn certificate(own: &CertificateState) -> Finding {
    let (now, ends) = (clock::now(), own.validity.ends);
    let (of, until) = ("certificate", format!("good until {ends}"));
    let by_itself = || match own.renew_at {
        Some(at) => format!("{until}; the agent renews it from {at} on"),
        None => until.clone(),
    };
    if !own.validity.contains(now) {
        let says = format!("good from {} to {ends}, which is not now", own.validity.begins);
        let hint = "`agent register --force` on this host; and is its clock right?";
        return Finding::new(PART, of, Verdict::Failed, says).hint(hint);
    }
    match own.error.as_ref().or(own.by_hand.as_ref()) {
        Some(why) => Finding::of_error(PART, of, Verdict::Limited, &format!("{until}: {why}")),
        None => Finding::ok(PART, of, by_itself()),
    }
}

/// An answer to a request for the configuration: of a backend that has none is as good.
fn answered(url: &str, id: &str, answer: &Answer) -> Finding {
    if matches!(answer.meaning(), Meaning::Success | Meaning::Unchanged) {
        return Finding::ok(PART, url, format!("answers, and knows this host as {id}"));
    }
    let finding = Finding::new(PART, url, Verdict::Failed, format!("answers {}", answer.shown()));
    match OnAnswer::on(answer.meaning()) {
        OnAnswer::Pause(hint) if !hint.is_empty() => finding.hint(hint),
        _ => finding,
    }
}
