//! Backends that do not inflate: what they refuse compressed goes once more without.

use std::time::Duration;

use super::{
    lanes::{Road, s},
    *,
};
use crate::encoding::Encoding::{self, Gzip, Identity, Zstd};

/// A backend that takes these encodings and answers `status` to others; what it was sent.
struct Backend {
    takes: Arc<Mutex<Vec<Encoding>>>,
    sent: Arc<Mutex<Vec<Encoding>>>,
    version: Arc<Mutex<&'static str>>,
    road: Road,
}

impl Backend {
    fn new(takes: &[Encoding], status: u16) -> Self {
        let takes = Arc::new(Mutex::new(takes.to_vec()));
        let (sent, version) = (Arc::default(), Arc::new(Mutex::new(r#"{"version":"1"}"#)));
        let (known, noted, says) =
            (Arc::clone(&takes), Arc::<Mutex<Vec<_>>>::clone(&sent), Arc::clone(&version));
        let road = Road::new(move |_, body| {
            noted.lock().unwrap().push(body.encoding);
            let takes = known.lock().unwrap().contains(&body.encoding);
            (Duration::ZERO, if takes { taken(200) } else { answer(status, "") })
        });
        let road = road.probed(move || (Duration::ZERO, answer(200, *says.lock().unwrap())));
        Self { takes, sent, version, road }
    }

    fn forwarder(&self, batches: u64, wanted: Encoding) -> (Forwarder<Queued, Road>, Queued) {
        let (queued, config) =
            (Queued::with(batches), ForwardConfig { encoding: wanted, ..config() });
        (Forwarder::new(queued.clone(), self.road.clone(), config.fixed()).0, queued)
    }

    fn sent(&self) -> Vec<Encoding> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

/// Section 7: 415, or 400 before anything was taken: once more without, and so from then on.
#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_inflate_gets_plain_bodies() {
    for status in [400, 415] {
        let backend = Backend::new(&[Identity], status);
        let (mut forwarder, queued) = backend.forwarder(3, Gzip);
        assert_eq!(forwarder.drain().await, Drained::Empty);
        assert_eq!(backend.sent(), [Gzip, Identity, Identity, Identity], "{status}");
        assert_eq!(queued.0.lock().unwrap().delivered, [(0, 0), (1, 0), (2, 0)]);
        // What was learned goes with the process.
        let (mut restarted, _) = backend.forwarder(1, Gzip);
        restarted.drain().await;
        assert_eq!(backend.sent(), [Gzip, Identity], "{status}");
    }
}

/// Another version of the backend is tried with compression again; the same one is not.
#[tokio::test(start_paused = true)]
async fn another_version_may_inflate() {
    let backend = Backend::new(&[Identity], 415);
    let (mut forwarder, queued) = backend.forwarder(1, Gzip);
    let mut next = async || {
        queued.0.lock().unwrap().waiting.push_back(7);
        assert_eq!(forwarder.drain().await, Drained::Empty);
        tokio::time::sleep(s(3_600)).await;
        backend.sent()
    };
    assert_eq!(next().await, [Gzip, Identity, Identity], "two batches");
    assert_eq!(next().await, [Identity]);
    backend.takes.lock().unwrap().push(Gzip);
    assert_eq!(next().await, [Identity], "it is the same version");
    *backend.version.lock().unwrap() = r#"{"version":"2"}"#;
    assert_eq!(next().await, [Gzip]);
    let probes = backend.road.seen.lock().unwrap().probes.len();
    assert_eq!((next().await, probes), (vec![Gzip], 3));
    assert_eq!(backend.road.seen.lock().unwrap().probes.len(), 3, "there is nothing to learn");
}

#[tokio::test]
async fn plain_bodies_are_a_setting() {
    let backend = Backend::new(&[Identity, Gzip, Zstd], 415);
    backend.forwarder(2, Identity).0.drain().await;
    assert_eq!(backend.sent(), [Identity, Identity]);
    assert!(backend.road.seen.lock().unwrap().probes.is_empty());
}

/// A 400 that stays one without compression is about a record, and so is every later one.
#[tokio::test]
async fn a_bad_record_is_still_found() {
    let (ok, no) = (|| taken(200), || answer(400, ""));
    let found = [no(), ok(), ok(), no()];
    // The whole, twice; its parts; the next batch as if nothing had been; that of a known backend.
    let answers = [no()].into_iter().chain(found.clone()).chain([ok()]).chain(found);
    let (drained, queued, status) = drain(3, answers.collect()).await;
    assert_eq!(drained, Drained::Empty);
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 1), (1, 0), (2, 1)]);
    assert_eq!((status.refused_records, status.split_batches), (2, 2));
}

/// What is left of a batch stays plain over a pause: compressed, a backend that does not inflate
/// would refuse sound records.
#[tokio::test]
async fn the_rest_of_a_batch_stays_plain_over_a_pause() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&sent);
    let road = Road::new(move |_, body| {
        let mut sent = noted.lock().unwrap();
        sent.push(body.encoding);
        let answer = match (sent.len(), body.encoding) {
            (_, Gzip) | (2 | 5, _) => answer(400, ""),
            (4, _) => unreachable(),
            _ => taken(200),
        };
        (Duration::ZERO, answer)
    });
    let queued = Queued::with(1);
    let (mut forwarder, _) = Forwarder::new(queued.clone(), road, config().fixed());
    assert!(matches!(forwarder.drain().await, Drained::Waiting(_)));
    queued.0.lock().unwrap().waiting.push_back(0);
    assert_eq!(forwarder.drain().await, Drained::Empty);
    let sent = sent.lock().unwrap().clone();
    assert_eq!(sent, [Gzip, Identity, Identity, Identity, Identity, Identity]);
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 1)]);
}
