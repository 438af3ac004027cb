//! A backend that is away for hours, in milliseconds; and what ten thousand bad answers leave.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{
    lanes::{Road, four, s},
    *,
};

/// Drains as an agent does, for so long.
async fn run<S: Source, W: Wire>(forwarder: &mut Forwarder<S, W>, hours: u64)
where
    S::Key: 'static,
{
    let until = tokio::time::Instant::now() + s(hours * 3_600);
    while tokio::time::Instant::now() < until {
        match forwarder.drain().await {
            Drained::Waiting(wait) => tokio::time::sleep(wait).await,
            Drained::Empty => return,
        }
    }
}

/// C36: while the backend is away no batch is sent, and a probe about every two and a half minutes;
/// when it is back, one batch goes, and then more.
#[tokio::test(start_paused = true)]
async fn an_outage_of_a_day_costs_probes_and_no_batches() {
    let away = Arc::new(AtomicBool::new(false));
    let here = Arc::clone(&away);
    let is_away = move || here.load(Ordering::Relaxed);
    let probe_is_away = is_away.clone();
    let road = Road::new(move |_, _| (s(1), if is_away() { unreachable() } else { taken(200) }))
        .probed(move || (s(1), if probe_is_away() { answer(502, "") } else { answer(404, "") }));
    let queued = Queued::with(100);
    let config = ForwardConfig { order: Order::OldestFirst, ..four() };
    let (mut forwarder, status) = Forwarder::new(queued.clone(), road.clone(), config.fixed());
    {
        let drain = forwarder.drain();
        tokio::pin!(drain);
        tokio::select! {
            _ = &mut drain => panic!("it drains for longer"),
            () = tokio::time::sleep(s(10)) => away.store(true, Ordering::Relaxed),
        }
        assert!(matches!(drain.await, Drained::Waiting(_)));
    }
    let backing_off = ForwarderState::BackingOff;
    assert_eq!((status.borrow().state, status.borrow().in_flight), (backing_off, 0));
    let sent = road.seen.lock().unwrap().pushes.len();
    let back = queued.0.lock().unwrap().put_back.len();
    assert!((1..=4).contains(&back), "{back} batches were out");
    run(&mut forwarder, 24).await;
    let probes = road.seen.lock().unwrap().probes.len();
    assert_eq!(road.seen.lock().unwrap().pushes.len(), sent, "no batch is sent meanwhile");
    assert!((400..900).contains(&probes), "{probes} probes in a day");
    assert_eq!(queued.0.lock().unwrap().put_back.len(), back);
    away.store(false, Ordering::Relaxed);
    run(&mut forwarder, 24).await;
    let seen = road.seen.lock().unwrap();
    let out: Vec<usize> = seen.pushes[sent..].iter().map(|push| push.2).collect();
    assert_eq!((&out[..3], out.iter().max()), (&[1, 1, 2][..], Some(&4)), "one, two, then more");
    assert_eq!(queued.0.lock().unwrap().delivered.len(), 100 - back);
    assert_eq!(status.borrow().state, ForwarderState::Flowing);
}

/// A probe that is answered says nothing of the store behind the backend: each batch that is tried
/// makes the next pause longer.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_asked_ever_more_rarely() {
    let queued = Queued::with(10_000);
    let road = Road::new(|_, _| (s(0), answer(503, "")));
    let (mut forwarder, _) = Forwarder::new(queued, road.clone(), four().fixed());
    run(&mut forwarder, 24).await;
    let seen = road.seen.lock().unwrap();
    assert!((400..900).contains(&seen.pushes.len()), "{} batches", seen.pushes.len());
    assert_eq!(seen.probes.len() + 1, seen.pushes.len(), "a probe before each, but the first");
}

/// There is always one more batch; counts the records that somebody holds.
#[derive(Debug, Clone, Default)]
struct Endless {
    next: Arc<AtomicU64>,
    live: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

/// A record's bytes, counted until the last copy of them is gone.
struct Payload(Arc<AtomicU64>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        br#"{"type":"sysstat"}"#
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Source for Endless {
    type Key = u64;

    async fn next(&self, choice: Choice) -> Result<Option<Outgoing<u64>>, String> {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = if choice == Choice::FreshOnly { Lane::Fresh } else { Lane::Backlog };
        let records: Vec<(u64, i64)> = (0..4).map(|n| (key * 4 + n, 0)).collect();
        let payload = |_| {
            let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(live, Ordering::Relaxed);
            Bytes::from_owner(Payload(Arc::clone(&self.live)))
        };
        let metrics = (0..4).map(payload).collect();
        let (id, queue_id) = (Uuid::from_u128(u128::from(key)), Uuid::nil());
        let (health, left_out) = (Vec::new(), Vec::new());
        Ok(Some(Outgoing { key, id, lane, queue_id, records, metrics, health, left_out }))
    }

    async fn delivered(&self, _: &Outgoing<u64>, _: &[Refused]) -> Result<(), String> {
        Ok(())
    }

    async fn put_back(&self, _: u64, _: String, _: Timestamp) {}

    async fn agent_info(&self) -> Option<AgentInfo> {
        None
    }
}

/// Ten thousand rejected, refused and delayed answers leave nothing behind: what the forwarder
/// holds is bounded by what may be out, whatever comes back and in whatever order.
#[tokio::test(start_paused = true)]
async fn bad_answers_leave_memory_flat() {
    let answers = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&answers);
    let rejecting = r#"{"status":"success","collector_id":"c","metrics_inserted":2,
        "bytes_received":1,"processing_time_ms":1,"next_config_version":4,
        "next_check_in_seconds":60,"rejected":[{"index":1,"path":"cpu.user","message":"no"}]}"#;
    let bad = move |_: Uuid, _: &Body| {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        let delay = std::time::Duration::from_millis(n * 7_919 % 3_000);
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(10_000));
        let answer = match n % 11 {
            0 | 1 => answer(200, rejecting),
            2 => answer(413, &long),
            3 | 4 => answer(422, &long),
            5 => answer(503, &long),
            6 => unreachable(),
            _ => taken(200),
        };
        (delay, answer)
    };
    let (source, road) = (Endless::default(), Road::new(bad));
    let (mut forwarder, status) = Forwarder::new(source.clone(), road, four().fixed());
    while answers.load(Ordering::Relaxed) < 10_000 {
        let drained = tokio::time::timeout(s(60), forwarder.drain()).await;
        assert_ne!(drained, Ok(Drained::Empty), "there is always more");
        assert_eq!(source.live.load(Ordering::Relaxed), 0, "no record is held during a pause");
        assert!(forwarder.remembered() <= 16, "{} batches", forwarder.remembered());
        if let Ok(Drained::Waiting(wait)) = drained {
            tokio::time::sleep(wait).await;
        }
    }
    let status = status.borrow();
    assert!(status.failures > 100 && status.split_batches > 100, "{status:?}");
    assert!(status.refused_records > 1_000, "{}", status.refused_records);
    let most = source.most.load(Ordering::Relaxed);
    assert!((4..=4 * 4).contains(&most), "{most} records were held at once");
}
