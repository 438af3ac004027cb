//! What each backend takes, by what it has answered so far: how bodies are packed for it, and
//! whether it knows what the agent says of itself. Pure.
//!
//! Some backends do not inflate: they answer 415 or 400 to every compressed body. So what is
//! refused with 415, or with 400 before this backend has taken anything compressed, goes once more
//! without compression. If it is taken so, everything goes to this backend without, until it names
//! another version, for which it is asked now and then. A 400 without compression is about the
//! records; what is left of their batch stays without, because nothing is known yet.
//!
//! zstd goes to a backend that lists it in `/version`; one that refuses it gets none until it is
//! asked again.
//!
//! The type `agent` is not known to the original backends. One that has refused it as unknown gets
//! none until it names another version.

use std::time::Duration;

use super::{ForwardConfig, batch::Packing};
use crate::{
    answer::{Answer, Meaning},
    encoding::Encoding,
    metric::members,
};

/// A backend that takes only plain bodies is asked for its version so often.
const PROBE_EVERY: Duration = Duration::from_secs(3_600);
/// More backends than a configuration names; beyond them the one that was silent longest is
/// forgotten.
const BACKENDS_MAX: usize = 16;

/// Characters of a version that tell it from another.
const VERSION_MAX: usize = 200;

/// What is known of each backend. Times are durations since any fixed moment.
#[derive(Debug, Default)]
pub struct Encodings {
    /// The one that has answered last is at the end.
    known: Vec<Known>,
}

#[derive(Debug, Default)]
struct Known {
    url: String,
    /// What it said of itself when it was asked last.
    version: Option<String>,
    asked_at: Option<Duration>,
    /// Whether it lists zstd, if that is known.
    zstd: Option<bool>,
    compressed: Compressed,
    /// It does not know the type `agent`.
    refuses_health: bool,
}

/// Whether a backend takes compressed bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Compressed {
    /// It has not said so.
    #[default]
    Unknown,
    /// It has taken one.
    Taken,
    /// It has refused one, and taken its content without compression.
    NotTaken,
}

/// Whether what is left of a batch goes without compression, whatever else is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plain {
    /// No.
    #[default]
    No,
    /// Yes, and what is sent next was refused compressed.
    Again,
    /// Yes.
    Yes,
}

impl Encodings {
    /// How the next body is packed.
    pub fn packing(&self, config: &ForwardConfig, plain: Plain) -> Packing {
        let known = self.known.last();
        let compressed = known.map(|known| known.compressed).unwrap_or_default();
        let zstd = known.and_then(|known| known.zstd);
        match config.encoding {
            Encoding::Identity => Packing::Identity,
            _ if plain != Plain::No || compressed == Compressed::NotTaken => Packing::Identity,
            Encoding::Zstd if zstd == Some(true) => Packing::Zstd(config.zstd_level),
            _ => Packing::Gzip(config.gzip_level),
        }
    }

    /// Whether the backend gets nothing of what the agent says of itself.
    pub fn refuses_health(&self) -> bool {
        self.known.last().is_some_and(|known| known.refuses_health)
    }

    /// The backend that has answered so does not know what the agent says of itself. Returns
    /// whether that is new.
    pub fn refused_health(&mut self, answer: &Answer) -> bool {
        !std::mem::replace(&mut self.known(&answer.backend).refuses_health, true)
    }

    /// Whether the backend has to be asked what it takes, when bodies shall be packed so.
    pub fn wants_probe(&self, wanted: Encoding, now: Duration) -> bool {
        let Some(known) = self.known.last() else { return wanted == Encoding::Zstd };
        let takes_plain = known.compressed == Compressed::NotTaken && wanted != Encoding::Identity;
        if takes_plain || known.refuses_health {
            return known.asked_at.is_none_or(|at| now.saturating_sub(at) >= PROBE_EVERY);
        }
        wanted == Encoding::Zstd && known.zstd.is_none()
    }

    /// A backend has answered when it was asked for its version.
    pub fn probed(&mut self, answer: &Answer, now: Duration) {
        let (mut version, mut zstd) = (None, false);
        let is_object = members::each_member(&answer.body, |name, value| match name {
            "version" => version = members::text(value).map(|text| beginning(&text)),
            "encodings" => {
                let is_zstd = |name| members::text(name).as_deref() == Some(Encoding::Zstd.label());
                zstd = false;
                members::each_entry(value, |name| {
                    zstd |= is_zstd(name);
                    true
                });
            }
            _ => {}
        });
        if !is_object {
            (version, zstd) = (None, false);
        }
        let known = self.known(&answer.backend);
        if known.asked_at.is_some() && known.version != version {
            known.compressed = Compressed::Unknown;
            known.refuses_health = false;
        }
        known.zstd = Some(zstd);
        (known.version, known.asked_at) = (version, Some(now));
    }

    /// A backend has taken a body that was packed so. Returns whether that has shown that it does
    /// not take compressed ones.
    pub fn taken(&mut self, answer: &Answer, encoding: Encoding, plain: Plain) -> bool {
        let known = self.known(&answer.backend);
        let before = known.compressed;
        match (encoding, plain) {
            // The id of a batch is read before its body is.
            _ if answer.meaning() != Meaning::Success => {}
            (Encoding::Identity, Plain::Again) => known.compressed = Compressed::NotTaken,
            (Encoding::Identity, Plain::No | Plain::Yes) => {}
            _ => known.compressed = Compressed::Taken,
        }
        known.compressed == Compressed::NotTaken && before != known.compressed
    }

    /// A backend has refused a body that was packed so. `Some` when that may be for its packing:
    /// then the same content is sent again, as [`Self::packing`] says with this.
    pub fn refused(&mut self, answer: &Answer, encoding: Encoding, plain: Plain) -> Option<Plain> {
        let known = self.known(&answer.backend);
        match (answer.meaning(), encoding) {
            (_, Encoding::Identity) => None,
            (Meaning::Malformed | Meaning::UnknownEncoding, Encoding::Zstd) => {
                // Another backend may answer now, which does not know zstd.
                known.zstd = None;
                Some(plain)
            }
            (Meaning::UnknownEncoding, _) => Some(Plain::Again),
            (Meaning::Malformed, _) if known.compressed != Compressed::Taken => Some(Plain::Again),
            _ => None,
        }
    }

    /// The backend that answers now.
    fn known(&mut self, url: &str) -> &mut Known {
        let place = self.known.iter().position(|known| known.url == url);
        let known = match place {
            Some(place) => self.known.remove(place),
            None => Known { url: url.to_owned(), ..Known::default() },
        };
        if self.known.len() >= BACKENDS_MAX {
            self.known.remove(0);
        }
        let last = self.known.len();
        self.known.push(known);
        &mut self.known[last]
    }
}

impl Plain {
    /// After an answer that was not about the packing.
    #[must_use]
    pub fn answered(self) -> Self {
        if self == Self::No { Self::No } else { Self::Yes }
    }
}

fn beginning(version: &str) -> String {
    version.chars().take(VERSION_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Purpose;

    const TAKEN: &str = r#"{"status":"success"}"#;

    fn from(backend: &str, status: u16) -> Answer {
        let mut answer = Answer::new(Purpose::Data, status, TAKEN);
        backend.clone_into(&mut answer.backend);
        answer
    }

    fn version(backend: &str, body: &'static str) -> Answer {
        let mut answer = Answer::new(Purpose::Probe, 200, body);
        backend.clone_into(&mut answer.backend);
        answer
    }

    fn encoding(encodings: &Encodings, wanted: Encoding) -> Encoding {
        let config = ForwardConfig { encoding: wanted, ..ForwardConfig::default() };
        match encodings.packing(&config, Plain::No) {
            Packing::Identity => Encoding::Identity,
            Packing::Gzip(_) => Encoding::Gzip,
            Packing::Zstd(_) => Encoding::Zstd,
        }
    }

    fn gzip(encodings: &Encodings) -> bool {
        encoding(encodings, Encoding::Gzip) == Encoding::Gzip
    }

    /// A backend that does not inflate, as far as it goes: what is refused is taken plain.
    fn learn(encodings: &mut Encodings, backend: &str, status: u16) {
        let again = encodings.refused(&from(backend, status), Encoding::Gzip, Plain::No);
        assert_eq!(again, Some(Plain::Again), "{status}");
        assert!(encodings.taken(&from(backend, 200), Encoding::Identity, Plain::Again));
    }

    #[test]
    fn what_is_taken_plain_stays_plain() {
        for status in [400, 415] {
            let mut encodings = Encodings::default();
            assert!(gzip(&encodings));
            learn(&mut encodings, "a", status);
            assert!(!gzip(&encodings));
            assert!(!encodings.taken(&from("a", 200), Encoding::Identity, Plain::No), "once");
            assert_eq!(encodings.refused(&from("a", 400), Encoding::Identity, Plain::No), None);
        }
    }

    /// Other refusals, and a 400 of a backend that inflates, are about the records.
    #[test]
    fn only_what_may_be_the_packing_is_sent_again() {
        let mut encodings = Encodings::default();
        for status in [409, 413, 418, 422] {
            let again = encodings.refused(&from("a", status), Encoding::Gzip, Plain::No);
            assert_eq!(again, None, "{status}");
        }
        assert!(!encodings.taken(&from("a", 200), Encoding::Gzip, Plain::No));
        assert_eq!(encodings.refused(&from("a", 400), Encoding::Gzip, Plain::No), None);
        learn(&mut encodings, "a", 415);
        assert!(!gzip(&encodings), "it was replaced by one that does not inflate");
    }

    /// A bad record in the first batch says nothing about the backend: the rest of its batch goes
    /// plain, and the next one is packed again.
    #[test]
    fn a_bad_record_is_not_the_packing() {
        let mut encodings = Encodings::default();
        let plain = encodings.refused(&from("a", 400), Encoding::Gzip, Plain::No);
        assert_eq!(encodings.refused(&from("a", 400), Encoding::Identity, Plain::Again), None);
        let plain = plain.unwrap_or_default().answered();
        assert_eq!(encodings.packing(&ForwardConfig::default(), plain), Packing::Identity);
        assert!(!encodings.taken(&from("a", 200), Encoding::Identity, plain));
        assert!(gzip(&encodings));
        assert_eq!(Plain::No.answered(), Plain::No);
    }

    /// A batch that was known may not have been read.
    #[test]
    fn a_known_batch_says_nothing_about_the_packing() {
        let mut encodings = Encodings::default();
        let mut known = Answer::new(Purpose::Data, 409, r#"{"error":"duplicate_batch"}"#);
        "a".clone_into(&mut known.backend);
        assert!(!encodings.taken(&known, Encoding::Gzip, Plain::No));
        assert!(!encodings.taken(&known, Encoding::Identity, Plain::Again));
        assert!(encodings.refused(&from("a", 400), Encoding::Gzip, Plain::No).is_some());
    }

    #[test]
    fn each_backend_is_known_by_itself() {
        let mut encodings = Encodings::default();
        learn(&mut encodings, "a", 415);
        encodings.taken(&from("b", 200), Encoding::Gzip, Plain::No);
        assert!(gzip(&encodings));
        assert_eq!(encodings.refused(&from("b", 400), Encoding::Gzip, Plain::No), None);
        encodings.taken(&from("a", 200), Encoding::Identity, Plain::No);
        assert!(!gzip(&encodings), "a has answered last");
        for n in 0..100 {
            encodings.taken(&from(&format!("c{n}"), 200), Encoding::Gzip, Plain::No);
        }
        assert_eq!(encodings.known.len(), BACKENDS_MAX);
    }

    /// It is asked for its version once, then each hour; another version may inflate.
    #[test]
    fn another_version_is_tried_again() {
        let (hour, gzip_wanted) = (PROBE_EVERY, Encoding::Gzip);
        let mut encodings = Encodings::default();
        assert!(!encodings.wants_probe(gzip_wanted, hour), "there is nothing to learn");
        learn(&mut encodings, "a", 415);
        assert!(encodings.wants_probe(gzip_wanted, hour));
        assert!(!encodings.wants_probe(Encoding::Identity, hour), "nobody wants anything else");
        encodings.probed(&version("a", r#"{"version":"1"}"#), hour);
        assert!(!gzip(&encodings), "the first that it says is the one that does not inflate");
        assert!(!encodings.wants_probe(gzip_wanted, hour + hour / 2));
        assert!(encodings.wants_probe(gzip_wanted, 2 * hour));
        encodings.probed(&version("a", r#"{"version":"1"}"#), 2 * hour);
        assert!(!gzip(&encodings));
        encodings.probed(&version("a", r#"{"version":"2"}"#), 3 * hour);
        assert!(gzip(&encodings));
        learn(&mut encodings, "a", 400);
        assert!(!gzip(&encodings));
    }

    /// The type `agent` is tried again with another version, and known of each backend by itself.
    #[test]
    fn what_the_agent_says_of_itself_goes_to_whom_knows_it() {
        let (hour, now) = (PROBE_EVERY, Duration::ZERO);
        let mut encodings = Encodings::default();
        assert!(!encodings.refuses_health());
        assert!(encodings.refused_health(&from("a", 200)));
        assert!(!encodings.refused_health(&from("a", 400)), "once");
        assert!(encodings.refuses_health() && encodings.wants_probe(Encoding::Identity, now));
        encodings.probed(&version("a", r#"{"version":"1"}"#), now);
        assert!(!encodings.wants_probe(Encoding::Gzip, hour / 2));
        assert!(encodings.wants_probe(Encoding::Gzip, hour));
        encodings.probed(&version("a", r#"{"version":"1"}"#), hour);
        assert!(encodings.refuses_health());
        encodings.taken(&from("b", 200), Encoding::Gzip, Plain::No);
        assert!(!encodings.refuses_health(), "b is in use");
        encodings.taken(&from("a", 200), Encoding::Gzip, Plain::No);
        assert!(encodings.refuses_health());
        encodings.probed(&version("a", r#"{"version":"2"}"#), 2 * hour);
        assert!(!encodings.refuses_health());
    }

    #[test]
    fn zstd_goes_to_whom_lists_it() {
        let lists = r#"{"version":"1","encodings":["gzip","zstd"]}"#;
        let mut encodings = Encodings::default();
        assert!(encodings.wants_probe(Encoding::Zstd, PROBE_EVERY));
        assert_eq!(encoding(&encodings, Encoding::Zstd), Encoding::Gzip);
        encodings.probed(&version("a", lists), PROBE_EVERY);
        assert_eq!(encoding(&encodings, Encoding::Zstd), Encoding::Zstd);
        assert_eq!(encoding(&encodings, Encoding::Gzip), Encoding::Gzip);
        assert_eq!(encoding(&encodings, Encoding::Identity), Encoding::Identity);
        assert!(!encodings.wants_probe(Encoding::Zstd, 2 * PROBE_EVERY));
        let again = encodings.refused(&from("a", 415), Encoding::Zstd, Plain::No);
        assert_eq!(
            (again, encoding(&encodings, Encoding::Zstd)),
            (Some(Plain::No), Encoding::Gzip)
        );
        assert!(encodings.wants_probe(Encoding::Zstd, PROBE_EVERY));
        learn(&mut encodings, "a", 415);
        encodings.probed(&version("a", lists), PROBE_EVERY);
        assert_eq!(encoding(&encodings, Encoding::Zstd), Encoding::Identity, "it does not inflate");
    }
}
