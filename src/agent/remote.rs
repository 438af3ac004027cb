//! The configuration that the backend has for this agent: when it is asked for, what an answer
//! means, and the last good one on disk, which counts before the backend can be reached.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use crate::{
    answer::{Answer, Meaning},
    clock,
    collect::schedule::Schedule,
    config::Remote,
    forward::ForwardStatus,
    link::{
        Link,
        files::{self, Readers},
    },
};

/// How often a backend is asked that has no configurations at all.
const ABSENT_RETRY: Duration = Duration::from_secs(3_600);
/// Push answers that name a new version make the agent ask at most so often.
const GAP: Duration = Duration::from_secs(5);
/// A longer text is no configuration.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// What has come of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pulled {
    /// Another one than the one that is known.
    New(Remote),
    /// The one that is known.
    Same,
    /// The backend keeps none. In words.
    Absent(String),
    /// In words.
    Failed(String),
}

/// When the backend is asked next. Pure.
#[derive(Debug)]
pub(super) struct Asking {
    /// The version that was taken or refused last.
    pub(super) known: Option<i64>,
    due: Instant,
    last: Option<Instant>,
    is_absent: bool,
    /// Versions up to this one have been asked for.
    answered: i64,
    named: i64,
}

/// The last good configuration of the backend, in the state directory.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    path: PathBuf,
    collector_id: String,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    collector_id: String,
    version: i64,
    text: String,
}

impl Asking {
    /// At once, or, with a configuration that an earlier process has left (`known`), after `pause`:
    /// after a power cut all agents of a fleet have one, and start in the same second.
    pub(super) fn new(known: Option<i64>, now: Instant, pause: Duration) -> Self {
        let due = if known.is_some() { now + pause } else { now };
        Self { known, due, last: None, is_absent: false, answered: 0, named: 0 }
    }

    /// When to ask.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether a push answer that names `version` is a reason to ask sooner.
    pub(super) fn is_news(&self, version: i64, now: Instant) -> bool {
        let is_newer = version > self.known.unwrap_or(0) && version > self.answered;
        is_newer && !self.is_absent && self.due > now + GAP
    }

    /// A push answer has named `version`.
    pub(super) fn hear(&mut self, version: i64, now: Instant) {
        self.named = version;
        self.due = self.last.map_or(now, |last| now.max(last + GAP)).min(self.due);
    }

    /// Asks at once, also one that had no configurations.
    pub(super) fn at_once(&mut self, now: Instant) {
        (self.is_absent, self.due) = (false, now);
    }

    /// It was asked; `wait` is left of the interval.
    pub(super) fn answered(&mut self, pulled: &Pulled, wait: Duration, now: Instant) {
        self.last = Some(now);
        self.is_absent = matches!(pulled, Pulled::Absent(_));
        self.due = now + if self.is_absent { wait.max(ABSENT_RETRY) } else { wait };
        match pulled {
            Pulled::New(remote) => {
                self.known = Some(remote.version);
                self.answered = self.named.max(remote.version);
            }
            Pulled::Same => self.answered = self.named,
            Pulled::Absent(_) | Pulled::Failed(_) => {}
        }
    }
}

/// How long it is until the backend is asked again, at another time on each host.
pub(super) fn wait(interval: Duration, spread: f64) -> Duration {
    let mut schedule = Schedule::new(interval, interval.mul_f64(spread));
    schedule.next(clock::now()); // now
    schedule.next(clock::now()).after
}

/// Returns when a push answer names a version that is a reason to ask.
pub(super) async fn named(forward: &mut watch::Receiver<ForwardStatus>, asking: &Asking) -> i64 {
    loop {
        if forward.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let version = forward.borrow_and_update().next_config_version;
        if let Some(version) = version
            && asking.is_news(version, Instant::now())
        {
            return version;
        }
    }
}

/// Asks for the configuration unless it is the `known` one.
pub(super) async fn pull(link: &Link, collector_id: &str, known: Option<i64>) -> Pulled {
    let path = format!("/api/v1/config/{collector_id}");
    let answer = match known {
        Some(version) => link.get_unless(&path, &format!("\"{version}\"")).await,
        None => link.get(&path).await,
    };
    match answer {
        Ok(answer) => read(&answer, known),
        Err(error) => Pulled::Failed(error.to_string()),
    }
}

fn read(answer: &Answer, known: Option<i64>) -> Pulled {
    match answer.meaning() {
        Meaning::Success => {}
        Meaning::Unchanged => return Pulled::Same,
        Meaning::NotHere => return Pulled::Absent(answer.shown()),
        _ => return Pulled::Failed(answer.shown()),
    }
    let Some(version) = version(&answer.headers) else {
        return Pulled::Failed("200 without X-Config-Version or a number as ETag".to_owned());
    };
    if known == Some(version) {
        return Pulled::Same; // a backend that does not know If-None-Match
    }
    if answer.body.len() > TEXT_BYTES_MAX {
        let bytes = answer.body.len();
        return Pulled::Failed(format!("version {version} has {bytes} bytes: no configuration"));
    }
    match str::from_utf8(&answer.body) {
        Ok(text) => Pulled::New(Remote { version, text: text.to_owned() }),
        Err(_) => Pulled::Failed(format!("version {version} is not UTF-8 text")),
    }
}

fn version(headers: &HeaderMap) -> Option<i64> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = || text("etag").map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
    text("x-config-version").or_else(tag)?.trim().parse().ok()
}

impl Kept {
    /// Of this collector, in this directory.
    pub(super) fn of(state_dir: &Path, collector_id: &str) -> Self {
        let path = state_dir.join("remote-config.json");
        Self { path, collector_id: collector_id.to_owned() }
    }

    /// What was kept; one that cannot be read is set aside, one of another collector is not ours.
    pub(super) fn load(&self) -> Option<Remote> {
        let bytes = match fs_err::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.set_aside(&error.to_string());
                return None;
            }
        };
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.collector_id != self.collector_id => None,
            Ok(Record { version, text, .. }) => Some(Remote { version, text }),
            Err(error) => {
                self.set_aside(&error.to_string());
                None
            }
        }
    }

    /// Replaces it; durable when this returns.
    pub(super) fn save(&self, remote: &Remote) -> Result<(), String> {
        let Remote { version, text } = remote.clone();
        let record = Record { collector_id: self.collector_id.clone(), version, text };
        let bytes = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
        files::replace(&self.path, &bytes, Readers::Owner).map_err(|error| error.to_string())
    }

    /// Moves it out of the way, with the reason in the log.
    pub(super) fn set_aside(&self, why: &str) {
        let aside = self.path.with_extension("json.bad");
        let file = aside.display().to_string();
        tracing::warn!(why, file, "the kept configuration of the backend is set aside");
        if let Err(error) = fs_err::rename(&self.path, &aside) {
            tracing::warn!(%error, "it stays where it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::answer::Purpose;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let mut answer = Answer::new(Purpose::Config, status, body);
        answer.headers = map;
        answer
    }

    /// C27: a version is taken once, from a backend that knows If-None-Match and from one that does
    /// not; whatever else comes back is no configuration.
    #[test]
    fn an_answer_is_a_configuration_or_it_is_not() {
        let new = |version, text: &str| Pulled::New(Remote { version, text: text.to_owned() });
        let check = |answer: Answer, known, expected| assert_eq!(read(&answer, known), expected);
        let seven = ("x-config-version", "7");
        check(answer(200, &[seven], "a = 1"), None, new(7, "a = 1"));
        check(answer(200, &[seven], "a = 1"), Some(6), new(7, "a = 1"));
        check(answer(200, &[seven], "a = 1"), Some(8), new(7, "a = 1"));
        check(answer(200, &[seven], "a = 1"), Some(7), Pulled::Same);
        check(answer(200, &[("etag", "W/\"7\"")], "a"), None, new(7, "a"));
        check(answer(304, &[], ""), Some(7), Pulled::Same);
        for status in [404, 405, 410, 501] {
            let said = format!("{status} gone");
            check(answer(status, &[], "gone"), Some(7), Pulled::Absent(said));
        }
        for status in [201, 302, 401, 403, 429, 500, 503] {
            let pulled = read(&answer(status, &[seven], "no"), None);
            assert_eq!(pulled, Pulled::Failed(format!("{status} no")));
        }
        assert!(matches!(read(&answer(200, &[], "a = 1"), None), Pulled::Failed(_)));
        assert!(matches!(read(&answer(200, &[("etag", "abc")], "a"), None), Pulled::Failed(_)));
    }

    /// C27: a newer version makes the agent ask once, soon; the same or an older one does not, and
    /// neither does a backend that names versions and has none.
    #[tokio::test(start_paused = true)]
    async fn a_newer_version_is_asked_for_once() {
        let (now, interval) = (Instant::now(), Duration::from_secs(300));
        let later = now + Duration::from_secs(60);
        let mut asking = Asking::new(None, now, GAP);
        assert_eq!(asking.due(), now, "at the start");
        assert_eq!(Asking::new(Some(1), now, GAP).due(), now + GAP, "it has one meanwhile");
        assert!(!asking.is_news(1, now), "it is asked for already");
        let seven = Pulled::New(Remote { version: 7, text: String::new() });
        asking.answered(&seven, interval, now);
        assert_eq!((asking.due(), asking.known), (now + interval, Some(7)));
        assert!(!asking.is_news(7, later) && !asking.is_news(6, later) && asking.is_news(8, later));
        asking.hear(8, now);
        assert_eq!(asking.due(), now + GAP, "not at once again");
        asking.answered(&Pulled::Failed("503".to_owned()), interval, now + GAP);
        assert!(asking.is_news(8, later), "it was not had");
        asking.hear(8, later);
        assert_eq!(asking.due(), later);
        asking.answered(&Pulled::Same, interval, later);
        assert!(!asking.is_news(8, later), "there is no such version");
        assert!(asking.is_news(9, later));
        asking.answered(&Pulled::Absent("404".to_owned()), interval, later);
        assert!(!asking.is_news(10, later));
        assert_eq!(asking.due(), later + ABSENT_RETRY);
        asking.at_once(later);
        assert_eq!(asking.due(), later);
    }

    /// What is kept survives; what is not ours or not readable is none, and is never an error.
    #[test]
    fn the_last_good_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), "c-1");
        assert_eq!(kept.load(), None);
        let remote = Remote { version: 7, text: "a = \"\u{e9}\"\n".to_owned() };
        kept.save(&remote).unwrap();
        assert_eq!(kept.load(), Some(remote.clone()));
        assert_eq!(Kept::of(dir.path(), "c-2").load(), None, "registered anew");
        let next = Remote { version: 8, ..remote };
        kept.save(&next).unwrap();
        assert_eq!(kept.load(), Some(next));
        let file = dir.path().join("remote-config.json");
        fs_err::write(&file, "{\"version\": 8").unwrap();
        assert_eq!(kept.load(), None);
        assert!(!file.exists() && dir.path().join("remote-config.json.bad").exists());
    }
}
