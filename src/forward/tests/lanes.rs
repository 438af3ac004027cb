//! Several batches at once: fresh windows beside the backlog, and how fast that may drain.

use std::time::Duration;

use tokio::{sync::Notify, time::Instant};

use super::*;
use crate::encoding::{Encoding, inflate};

/// What the backend says to a push: after how long, and what.
type Reply = (Duration, Result<Answer, WireError>);

type OnPush = dyn Fn(Uuid, &Body) -> Reply + Send + Sync;

/// A wire that answers by a rule, and remembers what was sent when.
#[derive(Clone)]
pub(super) struct Road {
    pub(super) seen: Arc<Mutex<Seen>>,
    push: Arc<OnPush>,
    probe: Arc<dyn Fn() -> Reply + Send + Sync>,
    begun: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When each push began, and how many were under way then.
    pub(super) pushes: Vec<(Duration, u64, usize)>,
    pub(super) probes: Vec<Duration>,
    under_way: usize,
}

impl Road {
    pub(super) fn new(push: impl Fn(Uuid, &Body) -> Reply + Send + Sync + 'static) -> Self {
        let version = || (Duration::ZERO, answer(200, r#"{"encodings":["gzip","zstd"]}"#));
        let (push, probe) = (Arc::new(push), Arc::new(version));
        Self { seen: Arc::default(), push, probe, begun: Instant::now() }
    }

    pub(super) fn probed(self, probe: impl Fn() -> Reply + Send + Sync + 'static) -> Self {
        Self { probe: Arc::new(probe), ..self }
    }

    fn keys(&self) -> Vec<u64> {
        self.seen.lock().unwrap().pushes.iter().map(|(_, key, _)| *key).collect()
    }
}

impl Wire for Road {
    async fn push(&self, body: Body, id: Uuid) -> Result<Answer, WireError> {
        let (delay, answer) = (self.push)(id, &body);
        {
            let mut seen = self.seen.lock().unwrap();
            seen.under_way += 1;
            let push = (self.begun.elapsed(), id.as_u64_pair().1, seen.under_way);
            seen.pushes.push(push);
        }
        tokio::time::sleep(delay).await;
        self.seen.lock().unwrap().under_way -= 1;
        answer
    }

    async fn probe(&self) -> Result<Answer, WireError> {
        self.seen.lock().unwrap().probes.push(self.begun.elapsed());
        let (delay, answer) = (self.probe)();
        tokio::time::sleep(delay).await;
        answer
    }
}

pub(super) const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn four() -> ForwardConfig {
    ForwardConfig { in_flight: 4, ..config() }
}

fn fresh(queued: &Queued, key: u64) {
    queued.0.lock().unwrap().fresh.push_back(key);
}

/// C36: one batch, then two, then as many as may be, of which one place stays free for a window.
#[tokio::test(start_paused = true)]
async fn concurrency_rises_to_its_bound() {
    let road = Road::new(|_, _| (s(1), taken(200)));
    for (config, most) in [
        (four(), 3),
        (ForwardConfig { order: Order::OldestFirst, ..four() }, 4),
        (ForwardConfig { in_flight: 1, ..four() }, 1),
    ] {
        *road.seen.lock().unwrap() = Seen::default();
        let queued = Queued::with(20);
        let (mut forwarder, status) = Forwarder::new(queued.clone(), road.clone(), config.fixed());
        assert_eq!(forwarder.drain().await, Drained::Empty);
        let out: Vec<usize> = road.seen.lock().unwrap().pushes.iter().map(|p| p.2).collect();
        assert_eq!((out.len(), out.iter().max()), (20, Some(&most)));
        assert_eq!((out[0], out[1]), (1, 1), "{out:?}");
        assert_eq!(queued.0.lock().unwrap().delivered.len(), 20);
        assert_eq!((status.borrow().delivered_batches, status.borrow().in_flight), (20, 0));
    }
}

/// A window that ends while a slow backlog takes all of its places is sent at once.
#[tokio::test(start_paused = true)]
async fn a_fresh_window_does_not_wait_for_the_backlog() {
    let slow = |id: Uuid, _: &Body| {
        let delay = if id.as_u64_pair().1 >= 1_000 { Duration::from_millis(10) } else { s(20) };
        (delay, taken(200))
    };
    let (road, queued) = (Road::new(slow), Queued::with(100));
    let wake = Arc::new(Notify::new());
    let (forwarder, status) = Forwarder::new(queued.clone(), road.clone(), four().fixed());
    let mut forwarder = forwarder.woken_by(Arc::clone(&wake));
    let drain = tokio::spawn(async move { forwarder.drain().await });
    for window in 0..5 {
        tokio::time::sleep(s(61)).await;
        let (ended, key) = (Instant::now(), 1_000 + window);
        fresh(&queued, key);
        wake.notify_one();
        while !queued.0.lock().unwrap().delivered.contains(&(key, 0)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(ended.elapsed() < s(60), "window {window} is not delivered");
        }
        let delay = ended.elapsed();
        assert!(delay < Duration::from_millis(100), "window {window} took {delay:?}");
    }
    assert!(status.borrow().drain.is_some_and(|speed| speed.batches > 1));
    assert_eq!(drain.await.unwrap(), Drained::Empty);
    assert_eq!(status.borrow().drain, None);
}

/// A window that ends while the source is being asked, and says that it has none, is sent.
#[tokio::test(start_paused = true)]
async fn a_window_that_ends_during_a_question_is_not_missed() {
    #[derive(Clone)]
    struct Slow(Queued);

    impl Source for Slow {
        type Key = u64;

        async fn next(&self, choice: Choice) -> Result<Option<Outgoing<u64>>, String> {
            let answer = self.0.next(choice).await;
            tokio::time::sleep(s(1)).await;
            answer
        }

        async fn delivered(&self, batch: &Outgoing<u64>, bad: &[Refused]) -> Result<(), String> {
            self.0.delivered(batch, bad).await
        }

        async fn put_back(&self, key: u64, answer: String, next_at: Timestamp) {
            self.0.put_back(key, answer, next_at).await;
        }

        async fn agent_info(&self) -> Option<AgentInfo> {
            None
        }
    }

    let (road, queued) = (Road::new(|_, _| (s(0), taken(200))), Queued::with(0));
    let wake = Arc::new(Notify::new());
    let (forwarder, _) = Forwarder::new(Slow(queued.clone()), road, four().fixed());
    let mut forwarder = forwarder.woken_by(Arc::clone(&wake));
    let drain = tokio::spawn(async move { forwarder.drain().await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    fresh(&queued, 1_000);
    wake.notify_one();
    assert_eq!(drain.await.unwrap(), Drained::Empty);
    assert_eq!(queued.0.lock().unwrap().delivered, [(1_000, 0)]);
}

/// The newest window first, the backlog beside it; or everything in its order.
#[tokio::test(start_paused = true)]
async fn the_order_is_the_one_that_is_wanted() {
    let sent = async |order| {
        let (road, queued) = (Road::new(|_, _| (s(1), taken(200))), Queued::with(3));
        fresh(&queued, 10);
        fresh(&queued, 11);
        let config = ForwardConfig { order, ..config() };
        Forwarder::new(queued, road.clone(), config.fixed()).0.drain().await;
        road.keys()
    };
    assert_eq!(sent(Order::FreshFirst).await, [11, 10, 0, 1, 2]);
    assert_eq!(sent(Order::OldestFirst).await, [0, 1, 2, 10, 11]);
}

/// Over any time no more of the backlog leaves than the rate and one batch; fresh windows do not
/// count, and a lifted rate is not waited for.
#[tokio::test(start_paused = true)]
async fn the_backlog_keeps_to_its_rate() {
    let sizes = Arc::new(Mutex::new(0_u64));
    let road = {
        let sizes = Arc::clone(&sizes);
        Road::new(move |_, body| {
            *sizes.lock().unwrap() = body.bytes.len() as u64;
            (Duration::ZERO, taken(200))
        })
    };
    let queued = Queued::with(1);
    Forwarder::new(queued, road.clone(), four().fixed()).0.drain().await;
    let batch = *sizes.lock().unwrap();
    let (settings, seen) =
        tokio::sync::watch::channel(ForwardConfig { backlog_rate: Some(batch / 10), ..four() });
    let queued = Queued::with(1_000);
    (1_000..1_020).for_each(|key| fresh(&queued, key));
    *road.seen.lock().unwrap() = Seen::default();
    let (mut forwarder, _status) = Forwarder::new(queued.clone(), road.clone(), seen);
    let drain = tokio::spawn(async move { forwarder.drain().await });
    tokio::time::sleep(s(200)).await;
    let delivered = queued.0.lock().unwrap().delivered.clone();
    let fresh = delivered.iter().filter(|(key, _)| *key >= 1_000).count();
    assert_eq!(fresh, 20);
    let backlog = delivered.len() - fresh;
    assert!((18..=22).contains(&backlog), "{backlog} of the backlog in 200 s");
    settings.send_modify(|config| config.backlog_rate = None);
    assert_eq!(drain.await.unwrap(), Drained::Empty);
    assert!(road.seen.lock().unwrap().pushes.last().unwrap().0 < road.begun.elapsed() + s(1));
    assert_eq!(queued.0.lock().unwrap().delivered.len(), 1_020);
}

/// What stands still does not drain: no speed shows once everything waits.
#[tokio::test(start_paused = true)]
async fn an_outage_ends_the_speed_of_a_drain() {
    let works = Arc::new(Mutex::new(true));
    let road = {
        let works = Arc::clone(&works);
        let reply = move || if *works.lock().unwrap() { taken(200) } else { unreachable() };
        Road::new(move |_, _| (s(1), reply()))
    };
    let (mut forwarder, status) = Forwarder::new(Queued::with(1_000), road, four().fixed());
    let drain = tokio::spawn(async move { forwarder.drain().await });
    tokio::time::sleep(s(10)).await;
    let speed = status.borrow().drain.expect("it drains");
    assert!(speed.batches > 1 && speed.millis > 0, "{speed:?}");
    *works.lock().unwrap() = false;
    assert!(matches!(drain.await.unwrap(), Drained::Waiting(_)));
    assert_eq!(status.borrow().drain, None);
}

/// A backend that begins to refuse everything gets one batch to refuse; what was out beside it goes
/// back, with its answer.
#[tokio::test(start_paused = true)]
async fn one_batch_is_taken_apart_at_a_time() {
    let no = |id: Uuid, _: &Body| {
        let is_bad = id.as_u64_pair().1 >= 7; // parts have ids of their own, which are larger
        (s(1), if is_bad { answer(400, r#"{"message":"no"}"#) } else { taken(200) })
    };
    let (road, queued) = (Road::new(no), Queued::with(30));
    let config = ForwardConfig { order: Order::OldestFirst, ..four() };
    let (mut forwarder, status) = Forwarder::new(queued.clone(), road, config.fixed());
    let drained = forwarder.drain().await;
    assert!(matches!(drained, Drained::Waiting(wait) if wait > s(100)), "{drained:?}");
    let held = queued.0.lock().unwrap();
    let refused: Vec<_> = held.delivered.iter().filter(|(_, refused)| *refused > 0).collect();
    assert_eq!((refused.len(), held.delivered.len()), (1, 8), "{:?}", held.delivered);
    assert!(!held.put_back.is_empty() && held.put_back.len() <= 3, "{:?}", held.put_back);
    assert!(held.put_back.iter().all(|(_, answer)| answer.contains("400 no")));
    assert_eq!(status.borrow().state, PAUSED);
    assert_eq!(status.borrow().hint.as_deref(), Some(verdict::TAKES_NOTHING));
}

/// zstd goes to a backend that lists it, and to no other; one that turns out not to know it gets
/// the same records as gzip, and none is refused for it.
#[tokio::test]
async fn zstd_goes_only_to_a_backend_that_takes_it() {
    let config = ForwardConfig { encoding: Encoding::Zstd, ..config() };
    let sent = async |version: &'static str, known: &'static [Encoding]| {
        let encodings = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&encodings);
        let road = Road::new(move |_, body| {
            assert_eq!(Encoding::of(&body.bytes), body.encoding);
            assert!(inflate(None, body.bytes.clone(), 1 << 20).is_ok());
            noted.lock().unwrap().push(body.encoding);
            let status = if known.contains(&body.encoding) { 200 } else { 415 };
            (Duration::ZERO, taken(status))
        });
        let road = road.probed(move || (Duration::ZERO, answer(200, version)));
        let queued = Queued::with(2);
        let (mut forwarder, _) = Forwarder::new(queued.clone(), road, config.clone().fixed());
        assert_eq!(forwarder.drain().await, Drained::Empty);
        assert_eq!(queued.0.lock().unwrap().delivered, [(0, 0), (1, 0)]);
        encodings.lock().unwrap().clone()
    };
    let both = r#"{"version":"1","encodings":["gzip","zstd"]}"#;
    let (gzip, zstd) = (Encoding::Gzip, Encoding::Zstd);
    assert_eq!(sent(both, &[Encoding::Gzip, Encoding::Zstd]).await, [zstd, zstd]);
    assert_eq!(sent(r#"{"version":"1"}"#, &[Encoding::Gzip]).await, [gzip, gzip]);
    assert_eq!(sent("", &[Encoding::Gzip]).await, [gzip, gzip]);
    assert_eq!(sent(both, &[Encoding::Gzip]).await, [zstd, gzip, gzip]);
}
