//! What a store promises (S1 to S8), held against SQLite and against real
//! PostgreSQL servers, the oldest and the newest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::store::{
    self, Audit, ConfigOutcome, Enrolled, Enrolment, KeptConfig, KeptSecret, Known, LOST_KEPT_MAX,
    Labels, LostRows, MetricQuery, MetricRow, NewConfig, NewSecret, NewUser, Page, Push, Pushed,
    RefusalCount, RefusalReason, Renamed, Renewal, Right, Role, Rotate, Rotation, Session, Store,
    StoreError, StoredMetric,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support;

/// Makes one test for each store of each function.
macro_rules! for_each_store {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() {
                let directory = super::support::directory();
                let url = format!("sqlite:{}", directory.path().join("store.db").display());
                super::$name(super::Opened::new(url, Some(directory)).await).await;
            })*
        }
        mod postgres_10 {
            $(#[tokio::test] async fn $name() {
                super::$name(super::Opened::new(super::postgres_url(10).await, None).await).await;
            })*
        }
        mod postgres_18 {
            $(#[tokio::test] async fn $name() {
                super::$name(super::Opened::new(super::postgres_url(18).await, None).await).await;
            })*
        }
    };
}

for_each_store!(
    a_push_is_kept_with_all_it_brings,
    a_batch_id_is_good_once,
    a_metric_of_two_batches_is_one_row,
    a_record_is_one_row_whatever_its_text,
    a_row_known_by_its_text_is_the_first_records,
    rows_known_by_their_text_are_claimed_among_many,
    texts_and_records_that_cross_are_rows_once,
    batches_that_cross_do_not_block_each_other,
    a_known_batch_still_brings_its_report,
    holes_are_where_their_records_were,
    losses_are_bounded_and_the_oldest_go,
    labels_are_replaced_as_a_whole,
    refusals_are_counted_by_reason,
    a_failed_push_leaves_nothing,
    a_collector_brings_metrics_of_several_hosts,
    metrics_are_found_by_range_type_and_step,
    a_name_is_its_first_collectors,
    a_host_is_its_live_collectors,
    secrets_end,
    a_release_ends_with_the_next_and_with_the_removal,
    brought_hosts_are_bounded,
    a_deregistered_collector_has_no_credentials,
    a_renewed_certificate_replaces_the_old_one_when_it_is_used,
    a_registration_replaces_the_old_pair_when_it_is_used,
    configurations_are_numbered,
    a_session_lives_until_it_ends,
    a_used_refresh_token_ends_the_session,
    two_refreshes_at_once_do_not_both_pass,
    users_are_unique_and_can_be_shut_out,
    keys_are_bound_for_ever,
    what_is_kept_survives_a_reopening,
    a_closed_store_is_unavailable,
);

struct Opened {
    store: Arc<dyn Store>,
    url: String,
    _directory: Option<TempDir>,
}

impl Opened {
    async fn new(url: String, directory: Option<TempDir>) -> Self {
        let store = store::open(&url).await.expect("open the store");
        Self { store, url, _directory: directory }
    }
}

/// A database of the test's own.
pub(crate) async fn postgres_url(major: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = support::postgres::shared(major);
    let name = format!("store_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    format!("postgres://postgres@/{name}?host={}", server.socket_dir().display())
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00.123456Z".parse().expect("a time")
}

fn after(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn audit(action: &str) -> Audit {
    let [actor, action, subject] = ["test", action, "subject"].map(str::to_owned);
    Audit { at: now(), actor, action, subject }
}

fn enrolment(id: u128, name: &str, hostname: &str) -> Enrolment {
    Enrolment {
        id: Uuid::from_u128(id),
        name: name.to_owned(),
        hostname: hostname.to_owned(),
        address: Some("10.0.0.1".to_owned()),
        version: None,
        sealed_secret: vec![0, 1, 2, 255],
        thumbprint: "ab".repeat(32),
        certificate_expires_at: after(1000),
        right: Right::Certificate,
        audit: audit("collector.register"),
    }
}

/// A secret that is there, of which `uses` are left.
async fn secret(store: &Arc<dyn Store>, name: &str, uses: Option<u64>) -> KeptSecret {
    let new = NewSecret {
        name: name.to_owned(),
        mark: name.as_bytes().to_vec(),
        uses_max: uses,
        expires_at: Some(after(10)),
        reclaims: false,
        collector_id: None,
        audit: audit("secret.add"),
    };
    store.add_secret(new).await.expect("add");
    store.secret_marked(name.as_bytes()).await.expect("secrets").expect("it is there")
}

async fn enrolled(store: &Arc<dyn Store>, id: u128) -> Uuid {
    let (name, secret) = (format!("collector-{id}"), secret(store, &format!("s{id}"), None).await);
    let host = if id == 1 { "db1".to_owned() } else { format!("host-{id}") };
    let new = Enrolment { right: Right::New(secret.id), ..enrolment(id, &name, &host) };
    assert_eq!(store.enrol(new).await.expect("enrol"), Enrolled::Done);
    Uuid::from_u128(id)
}

fn metric(kind: &str, database: Option<&str>, seconds: i64, n: i64) -> MetricRow {
    let document = json!({"type": kind, "n": n}).to_string();
    let (kind, database) = (kind.to_owned(), database.map(str::to_owned));
    MetricRow::new(kind, database, after(seconds), document)
}

fn push(collector_id: Uuid, batch_id: Option<&str>, metrics: Vec<MetricRow>) -> Push {
    Push {
        collector_id,
        hostname: "db1".to_owned(),
        is_brought: false,
        brought_max: 2,
        batch_id: batch_id.map(str::to_owned),
        received_at: now(),
        metrics,
        rejected: None,
        refused: None,
        report: None,
        config: ConfigOutcome::default(),
        lost: vec![],
    }
}

fn hole(from: u64, seconds: i64) -> LostRows {
    LostRows {
        queue_id: Uuid::from_u128(77),
        from,
        to: from + 1,
        records: 2,
        reason: "evict".to_owned(),
        at: after(seconds),
        first_at: None,
        last_at: None,
    }
}

async fn all(store: &Arc<dyn Store>) -> Vec<StoredMetric> {
    let mut found = Vec::new();
    for server in store.servers(Page::first(100)).await.expect("servers").rows {
        found.extend(store.metrics(query(server.id)).await.expect("metrics").metrics);
    }
    found
}

fn query(server_id: i64) -> MetricQuery {
    let (start, end) = (Timestamp::MIN, Timestamp::MAX);
    MetricQuery { server_id, kind: None, start, end, step: None, limit: 10_000, bytes_max: 1 << 30 }
}

fn numbers(metrics: &[StoredMetric]) -> Vec<i64> {
    let number = |metric: &StoredMetric| {
        serde_json::from_str::<Value>(&metric.document).expect("JSON")["n"].as_i64()
    };
    metrics.iter().map(|metric| number(metric).expect("a number")).collect()
}

/// C48: S1.
async fn a_push_is_kept_with_all_it_brings(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let document = r#"{"text": "\u0000 \\u0000 \ud83d\ude00 \"", "n": 1, "large": 1e300}"#;
    let database = Some("d\u{e9}\u{0}".to_owned());
    let row = MetricRow::new("custom.x".to_owned(), database, after(5), document.to_owned());
    let lost = LostRows { to: u64::MAX >> 1, ..hole(3, 0) };
    let thinned = LostRows { records: 1, at: after(1), ..lost.clone() };
    let sent = Push {
        report: Some(r#"{"a":1}"#.to_owned()),
        lost: vec![lost.clone(), lost.clone(), thinned.clone()],
        metrics: vec![row, metric("sysstat", None, 1, 2)],
        ..push(id, None, vec![])
    };
    let pushed = store.push(sent).await.expect("push");
    let expected = Pushed { duplicate: false, inserted: 2, rejected: None, config_version: 0 };
    assert_eq!(pushed, expected);
    let found = all(store).await;
    assert_eq!(numbers(&found), [2, 1]);
    assert_eq!(found[1].at, after(5));
    let kept: Value = serde_json::from_str(&found[1].document).expect("JSON");
    let text = kept["text"].as_str().expect("text").replace('\0', "\u{fffd}");
    assert_eq!(text, "\u{fffd} \\u0000 \u{1f600} \"");
    assert_eq!(kept["large"].as_f64(), Some(1e300));
    let servers = store.servers(Page::first(10)).await.expect("servers");
    let server = &servers.rows[0];
    assert_eq!((server.hostname.as_str(), server.address.as_str()), ("db1", "10.0.0.1"));
    assert_eq!(store.server(server.id).await.expect("server").as_ref(), Some(server));
    assert_eq!(store.server(server.id + 1).await.expect("server"), None);
    let holes = store.lost(id, Page::first(10)).await.expect("lost");
    // A window that is thinned again is another entry of the same range.
    assert_eq!((holes.total, holes.rows), (2, vec![thinned, lost]));
    let collector = store.collector(id, after(60)).await.expect("collector").expect("is there");
    assert_eq!((collector.metrics_total, collector.metrics_24h), (2, 2));
    assert_eq!(collector.last_seen_at, Some(now()));
    assert_eq!(collector.report.as_deref(), Some(r#"{"a":1}"#));
    let later = store.collector(id, after(86_401)).await.expect("collector").expect("is there");
    assert_eq!((later.metrics_total, later.metrics_24h), (2, 0));
}

/// C20: S2.
async fn a_batch_id_is_good_once(opened: Opened) {
    let store = &opened.store;
    let (one, two) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let batch = |id, n| Push {
        rejected: Some(format!("[{n}]")),
        ..push(id, Some("batch"), vec![metric("sysstat", None, n, n)])
    };
    let both = tokio::join!(store.push(batch(one, 1)), store.push(batch(one, 1)));
    let both = [both.0.expect("push"), both.1.expect("push")];
    assert_eq!(both.iter().filter(|pushed| pushed.duplicate).count(), 1, "{both:?}");
    let again = store.push(batch(one, 2)).await.expect("push");
    let rejected = Some("[1]".to_owned());
    assert_eq!(again, Pushed { duplicate: true, inserted: 0, rejected, config_version: 0 });
    let other = store.push(batch(two, 3)).await.expect("push");
    assert!(!other.duplicate);
    for _ in 0..2 {
        let free = push(one, None, vec![metric("sysstat", None, 9, 9)]);
        assert!(!store.push(free).await.expect("push").duplicate);
    }
    let mut found = numbers(&all(store).await);
    found.sort_unstable();
    assert_eq!(found, [1, 3, 9, 9]);
}

/// S5, C20: a batch that was split, thinned or replayed brings records that are there already.
async fn a_metric_of_two_batches_is_one_row(opened: Opened) {
    let store = &opened.store;
    let (one, two) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let of = |kind, database, seconds, n| metric(kind, database, seconds, n);
    let whole = || (0..600).map(|n| of("sysstat", None, n, n)).collect::<Vec<_>>();
    let inserted = async |id, batch: Option<&str>, metrics| {
        store.push(push(id, batch, metrics)).await.expect("push").inserted
    };
    assert_eq!(inserted(one, Some("whole"), whole()).await, 600);
    assert_eq!(inserted(one, Some("again"), whole()).await, 0);
    let rest = [whole().split_off(590), vec![of("sysstat", None, 600, 600)]].concat();
    assert_eq!(inserted(one, Some("rest"), rest).await, 1);
    // Each of these differs from one that is there in one thing only.
    let others = vec![
        of("sysstat", None, 601, 600),
        of("sysstat", None, 600, 601),
        of("sysstat", Some("a"), 600, 600),
        of("sysstat", Some("b"), 600, 600),
        MetricRow::new("custom.x".to_owned(), None, after(600), r#"{"type":"sysstat"}"#.into()),
        MetricRow::new("custom.y".to_owned(), None, after(600), r#"{"type":"sysstat"}"#.into()),
    ];
    assert_eq!(inserted(one, Some("others"), others.clone()).await, 6);
    assert_eq!(inserted(two, Some("others"), others).await, 6);
    // A peer that names no batch is not deduplicated.
    for _ in 0..2 {
        assert_eq!(inserted(one, None, vec![of("sysstat", None, 1, 1)]).await, 1);
    }
    let collector = store.collector(one, now()).await.expect("collector").expect("is there");
    assert_eq!((collector.metrics_total, collector.metrics_24h), (609, 609));
}

const QUEUE: Uuid = Uuid::from_u128(77);

/// The same document and time each time, as the records of these numbers.
fn equals(numbers: impl IntoIterator<Item = u64>) -> Vec<MetricRow> {
    let row = |number| metric("custom.x", None, 1, 1).of_record(QUEUE, number);
    numbers.into_iter().map(row).collect()
}

/// S7: a record is its queue and its number. It is one row in however many batches it comes; equal
/// documents are as many rows as there are records; a number that stands for two texts, as those of
/// cloned hosts do, loses neither.
async fn a_record_is_one_row_whatever_its_text(opened: Opened) {
    let store = &opened.store;
    let (one, two) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let inserted = async |id, batch: Option<&str>, metrics| {
        store.push(push(id, batch, metrics)).await.expect("push").inserted
    };
    assert_eq!(inserted(one, Some("a"), equals(5..8)).await, 3);
    assert_eq!(inserted(one, Some("b"), equals(7..10)).await, 2, "one is known");
    assert_eq!(inserted(one, None, equals(5..11)).await, 1, "without a batch id, too");
    let twice = equals([11, 11, 12, 12]);
    assert_eq!(inserted(one, Some("c"), twice).await, 2);
    let large = equals([0, u64::MAX, u64::MAX - 1]);
    assert_eq!(inserted(one, Some("d"), large).await, 3);
    // Each of these differs from number 5 in one thing only.
    let others = vec![
        metric("custom.x", None, 1, 1).of_record(Uuid::nil(), 5),
        metric("custom.x", None, 1, 2).of_record(QUEUE, 5),
        metric("custom.x", None, 2, 1).of_record(QUEUE, 5),
        metric("custom.x", Some("a"), 1, 1).of_record(QUEUE, 5),
        metric("custom.y", None, 1, 1).of_record(QUEUE, 5),
    ];
    assert_eq!(inserted(one, Some("e"), others.clone()).await, 5);
    assert_eq!(inserted(one, Some("f"), others.clone()).await, 0);
    assert_eq!(inserted(two, Some("f"), others).await, 5, "another server");
    let elsewhere = Push { hostname: "db2".to_owned(), ..push(one, Some("g"), equals(5..8)) };
    assert_eq!(store.push(elsewhere).await.expect("push").inserted, 3, "another server");
    let collector = store.collector(one, now()).await.expect("collector").expect("is there");
    assert_eq!((collector.metrics_total, collector.metrics_24h), (19, 19));
}

/// S7: what came without numbers is the row of the first record with its text, and of no other.
async fn a_row_known_by_its_text_is_the_first_records(opened: Opened) {
    let store = &opened.store;
    let (one, two) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let inserted = async |id, batch: &str, metrics| {
        store.push(push(id, Some(batch), metrics)).await.expect("push").inserted
    };
    let text = || vec![metric("custom.x", None, 1, 1)];
    assert_eq!(inserted(one, "text", text()).await, 1);
    assert_eq!(inserted(two, "text", text()).await, 1);
    assert_eq!(inserted(one, "first", equals(5..8)).await, 2, "one of three has a row");
    assert_eq!(inserted(one, "again", equals(5..8)).await, 0);
    assert_eq!(inserted(one, "text again", text()).await, 0, "claimed, it has its text still");
    assert_eq!(inserted(one, "alone", equals([9])).await, 1, "another's row is not claimed");
    assert_eq!(inserted(one, "backwards", equals([9, 8, 7, 6, 5])).await, 1);
    // The other's row is not touched by that.
    assert_eq!(inserted(two, "later", equals([8])).await, 0);
    assert_eq!(inserted(two, "more", equals([5, 8])).await, 1);
    // A record that is there already claims nothing; the next with its text does.
    let late = || vec![metric("custom.x", None, 3, 1)];
    let late_of = |n| vec![metric("custom.x", None, 3, 1).of_record(QUEUE, n)];
    assert_eq!(inserted(one, "late 20", late_of(20)).await, 1);
    assert_eq!(inserted(one, "late text", late()).await, 1);
    assert_eq!(inserted(one, "late 20 again", late_of(20)).await, 0);
    assert_eq!(inserted(one, "late 21", late_of(21)).await, 0);
    assert_eq!(inserted(one, "late both", [late_of(20), late_of(21)].concat()).await, 0);
    // Rows without a key are nobody's.
    let free = vec![metric("custom.x", None, 4, 4)];
    assert_eq!(store.push(push(one, None, free.clone())).await.expect("push").inserted, 1);
    let record = free.into_iter().map(|row| row.of_record(QUEUE, 30)).collect();
    assert_eq!(inserted(one, "not free", record).await, 1);
    let found = all(store).await;
    let collector = |id| store.collector(id, now());
    let totals = [one, two].map(collector);
    let mut total = 0;
    for collector in totals {
        total += collector.await.expect("collector").expect("is there").metrics_total;
    }
    assert_eq!(found.len() as u64, total);
}

/// S7: in a large batch whose metrics stand in it twice each, a third of them by their text, too.
async fn rows_known_by_their_text_are_claimed_among_many(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let of = |n: i64| metric("sysstat", None, n / 2, n / 2);
    let texts = (0..1_200).filter(|n| n % 6 == 0).map(of).collect();
    let whole = || {
        let record = |n: i64| of(n).of_record(QUEUE, n.unsigned_abs());
        (0..1_200).map(record).collect::<Vec<_>>()
    };
    let push_it = async |batch: &str, metrics| {
        store.push(push(id, Some(batch), metrics)).await.expect("push").inserted
    };
    assert_eq!(push_it("texts", texts).await, 200);
    assert_eq!(push_it("whole", whole()).await, 1_000);
    assert_eq!(push_it("half", whole().split_off(600)).await, 0);
    let mut counts = std::collections::BTreeMap::new();
    for number in numbers(&all(store).await) {
        *counts.entry(number).or_insert(0) += 1;
    }
    assert!(counts.len() == 600 && counts.values().all(|count| *count == 2), "{counts:?}");
}

/// S7: pushes with and without numbers, at once and in any order, and no row too many.
async fn texts_and_records_that_cross_are_rows_once(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let texts: Vec<MetricRow> = (0..300).map(|n| metric("sysstat", None, n, n)).collect();
    store.push(push(id, Some("texts"), texts.clone())).await.expect("push");
    let records = |first: u64| {
        let record = |(row, n): (&MetricRow, u64)| row.clone().of_record(QUEUE, n);
        texts.iter().zip(first..).map(record).collect::<Vec<_>>()
    };
    for round in 0..3 {
        let [one, two] = ["one", "two"].map(|name| format!("{name} {round}"));
        let reversed = records(0).into_iter().rev().collect();
        let both = tokio::join!(
            store.push(push(id, Some(&one), [records(0), records(1_000)].concat())),
            store.push(push(id, Some(&two), reversed))
        );
        let both = [both.0.expect("push").inserted, both.1.expect("push").inserted];
        assert_eq!(both.iter().sum::<u64>(), if round == 0 { 300 } else { 0 }, "{both:?}");
    }
    assert_eq!(all(store).await.len(), 600);
}

/// S5: the same metrics in opposite order in two batches at once.
async fn batches_that_cross_do_not_block_each_other(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    for round in 0..5 {
        let metrics: Vec<MetricRow> =
            (0..1000).map(|n| metric("sysstat", None, n, round)).collect();
        let reversed = metrics.iter().rev().cloned().collect();
        let [one, two] = ["one", "two"].map(|name| format!("{name} {round}"));
        let both = tokio::join!(
            store.push(push(id, Some(&one), metrics)),
            store.push(push(id, Some(&two), reversed))
        );
        let both = [both.0.expect("push").inserted, both.1.expect("push").inserted];
        assert_eq!(both.iter().sum::<u64>(), 1000, "{both:?}");
    }
}

/// S2: the answer to the first push was lost, and what the agent said with it is said again.
async fn a_known_batch_still_brings_its_report(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let batch = push(id, Some("batch"), vec![metric("sysstat", None, 1, 1)]);
    store.push(batch.clone()).await.expect("push");
    let later = Push {
        lost: vec![hole(3, 0)],
        report: Some(r#"{"a":2}"#.to_owned()),
        received_at: after(30),
        ..batch
    };
    for _ in 0..2 {
        assert!(store.push(later.clone()).await.expect("push").duplicate);
    }
    let holes = store.lost(id, Page::first(10)).await.expect("lost");
    assert_eq!((holes.total, holes.rows), (1, vec![hole(3, 0)]));
    let collector = store.collector(id, after(60)).await.expect("collector").expect("is there");
    assert_eq!(collector.metrics_total, 1);
    assert_eq!(collector.last_seen_at, Some(after(30)));
    assert_eq!(collector.report.as_deref(), Some(r#"{"a":2}"#));
}

/// However much a collector says it has lost, the newest entries are kept and the others counted.
async fn losses_are_bounded_and_the_oldest_go(opened: Opened) {
    let store = &opened.store;
    let (id, other) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let said = async |id, from: i64, to: i64| {
        let lost = (from..to).map(|n| hole(n.unsigned_abs() * 2, n)).collect();
        store.push(Push { lost, ..push(id, None, vec![]) }).await.expect("push");
    };
    said(other, 0, 3).await;
    said(id, 0, 2_500).await;
    said(id, 2_500, LOST_KEPT_MAX).await;
    let kept = async |id| {
        let holes = store.lost(id, Page::first(1)).await.expect("lost");
        let collector = store.collector(id, now()).await.expect("collector").expect("is there");
        (holes.total, collector.lost_forgotten)
    };
    assert_eq!(kept(id).await, (LOST_KEPT_MAX.unsigned_abs(), 0));
    said(id, LOST_KEPT_MAX, LOST_KEPT_MAX + 7).await;
    assert_eq!(kept(id).await, (LOST_KEPT_MAX.unsigned_abs(), 7));
    let oldest = store.holes(id, after(0), after(20)).await.expect("holes");
    assert_eq!(oldest.first().map(|lost| lost.from), Some(14), "the first seven have gone");
    assert_eq!(kept(other).await, (3, 0));
}

/// S8: with the push that brought them and once for a batch; those of others in any order.
async fn refusals_are_counted_by_reason(opened: Opened) {
    use RefusalReason::{BadPush, InvalidMetric, TooLarge};

    let store = &opened.store;
    let (id, other) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let kept = async |id| {
        let collector = store.collector(id, now()).await.expect("collector").expect("is there");
        let all = store.collectors(Page::first(10), now()).await.expect("collectors").rows;
        let row = all.into_iter().find(|row| row.id == id).expect("it is listed");
        assert_eq!(row.refusals, collector.refusals);
        collector.refusals
    };
    let new = |reason, count, message: &str, seconds| {
        RefusalCount::new(reason, count, message, after(seconds))
    };
    for (batch, count) in [("one", 3), ("one", 3), ("two", 4)] {
        let refused = Some(new(InvalidMetric, count, batch, count.cast_signed()));
        store.push(Push { refused, ..push(id, Some(batch), vec![]) }).await.expect("push");
    }
    assert_eq!(kept(id).await, [new(InvalidMetric, 7, "two", 4)]);
    assert_eq!(kept(other).await, []);
    // Of a collector that is not there nothing is kept, and the others' are.
    let nobody = Uuid::from_u128(99);
    let noted = vec![
        (other, new(TooLarge, 1, "first", 10)),
        (nobody, new(TooLarge, 5, "x", 10)),
        (id, new(TooLarge, 2, "large", 5)),
        (id, new(BadPush, 1, "a \0 in it", 6)),
    ];
    store.note_refusals(noted).await.expect("note");
    // What is written late does not stand for the last.
    let late = vec![(other, new(TooLarge, 10, "late", 9))];
    store.note_refusals(late).await.expect("note");
    let expected = [
        new(BadPush, 1, "a \0 in it", 6),
        new(InvalidMetric, 7, "two", 4),
        new(TooLarge, 2, "large", 5),
    ];
    assert_eq!(kept(id).await, expected);
    assert_eq!(kept(other).await, [new(TooLarge, 11, "first", 10)]);
}

async fn labels_are_replaced_as_a_whole(opened: Opened) {
    let store = &opened.store;
    let (id, other) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let held =
        async |id| store.collector(id, now()).await.expect("collector").expect("is there").labels;
    assert!(held(id).await.is_empty());
    for new in [labels(&[("site", "Lyon \" 2"), ("tier", "1")]), labels(&[("tier", "2")])] {
        let set = store.label(id, new.clone(), audit("collector.label")).await;
        assert!(set.expect("set"));
        assert_eq!(held(id).await, new);
    }
    assert!(held(other).await.is_empty());
    let nobody = Uuid::from_u128(99);
    assert!(!store.label(nobody, Labels::new(), audit("x")).await.expect("no error"));
}

/// A hole shows where the data is missing; from an agent that does not say, where it was noticed.
async fn holes_are_where_their_records_were(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let (first_at, last_at) = (Some(after(10)), Some(after(20)));
    let known = LostRows { first_at, last_at, ..hole(1, 1000) };
    let noticed = hole(5, 40);
    let lost = vec![noticed.clone(), known.clone()];
    store.push(Push { lost, ..push(id, None, vec![]) }).await.expect("push");
    let check = async |from, to, expected: &[&LostRows]| {
        let found = store.holes(id, after(from), after(to)).await.expect("holes");
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{from} to {to}");
    };
    check(0, 2000, &[&known, &noticed]).await;
    check(20, 21, &[&known]).await;
    check(12, 15, &[&known]).await;
    check(0, 10, &[]).await;
    check(21, 40, &[]).await;
    check(40, 41, &[&noticed]).await;
    assert_eq!(store.holes(Uuid::nil(), now(), Timestamp::MAX).await.expect("holes"), []);
}

/// What a collector replays of another host is that host's, and changes nothing of its own.
async fn a_collector_brings_metrics_of_several_hosts(opened: Opened) {
    let store = &opened.store;
    let one = enrolled(store, 1).await;
    for (n, hostname) in [(1, "db1"), (2, "dead"), (3, "db1"), (4, "dead")] {
        let (hostname, is_brought) = (hostname.to_owned(), hostname == "dead");
        let metrics = vec![metric("sysstat", None, n, n)];
        let push = Push { hostname, is_brought, ..push(one, None, metrics) };
        store.push(push).await.expect("push");
    }
    let servers = store.servers(Page::first(9)).await.expect("servers").rows;
    let names: Vec<&str> = servers.iter().map(|server| server.hostname.as_str()).collect();
    assert_eq!(names, ["db1", "dead"]);
    assert_eq!(numbers(&all(store).await), [1, 3, 2, 4]);
}

/// S1: all or nothing.
async fn a_failed_push_leaves_nothing(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    store.push(push(id, None, vec![])).await.expect("push");
    let unknown = push(Uuid::from_u128(9), Some("b"), vec![metric("sysstat", None, 1, 1)]);
    let refused = store.push(unknown).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(all(store).await, []);
    let pushed = store.push(push(id, Some("b"), vec![metric("sysstat", None, 1, 1)])).await;
    assert!(!pushed.expect("push").duplicate);
    assert_eq!(all(store).await.len(), 1);
}

/// C51: queries.
async fn metrics_are_found_by_range_type_and_step(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let mut metrics: Vec<MetricRow> = (0..10).map(|n| metric("sysstat", None, n, n)).collect();
    metrics.push(metric("pg_stats", Some("a"), 3, 103));
    metrics.push(metric("pg_stats", Some("b"), 3, 203));
    store.push(push(id, None, metrics)).await.expect("push");
    let server = store.servers(Page::first(1)).await.expect("servers").rows[0].id;
    let check = async |change: fn(&mut MetricQuery), expected: &[i64]| {
        let mut query = query(server);
        change(&mut query);
        let found = store.metrics(query.clone()).await.expect("metrics");
        assert_eq!(numbers(&found.metrics), expected, "{query:?}");
        assert_eq!(found.is_cut, query.bytes_max < 1 << 30, "{query:?}");
    };
    check(|q| q.limit = 3, &[7, 8, 9]).await;
    check(|q| q.bytes_max = 1, &[9]).await;
    check(|q| (q.bytes_max, q.step) = (1, Some(Duration::from_secs(1))), &[9]).await;
    check(|q| (q.start, q.end) = (after(2), after(4)), &[2, 3, 103, 203]).await;
    check(|q| q.kind = Some("pg_stats".to_owned()), &[103, 203]).await;
    check(|q| q.kind = Some("none\0".to_owned()), &[]).await;
    check(|q| q.server_id += 1, &[]).await;
    // Steps begin at whole multiples of their length since 1970, a Thursday at midnight.
    check(
        |q| (q.kind, q.step) = (Some("sysstat".to_owned()), Some(Duration::from_secs(5))),
        &[4, 9],
    )
    .await;
    check(|q| q.step = Some(Duration::from_secs(60)), &[103, 203, 9]).await;
    check(
        |q| (q.kind, q.step, q.limit) = (Some("sysstat".into()), Some(Duration::from_secs(1)), 2),
        &[8, 9],
    )
    .await;
}

/// C47: S3.
async fn a_name_is_its_first_collectors(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let named = async |name: &str| store.collector_named(name).await.expect("named");
    let known =
        Known { id, name: "collector-1".to_owned(), hostname: "db1".to_owned(), is_live: true };
    assert_eq!(named(" Collector-1").await, Some(known.clone()));
    assert_eq!(named("other").await, None);
    let one = secret(store, "one", Some(1)).await;
    let enrol = async |id: u128, name: &str, host: &str| {
        let new = Enrolment { right: Right::New(one.id), ..enrolment(id, name, host) };
        store.enrol(new).await.expect("enrol")
    };
    assert_eq!(enrol(2, "COLLECTOR-1", "db2").await, Enrolled::NameTaken);
    assert_eq!(enrol(2, "collector-2", "DB1").await, Enrolled::HostTaken);
    assert_eq!(enrol(2, "collector-2", "db2").await, Enrolled::Done);
    assert_eq!(enrol(3, "collector-3", "db3").await, Enrolled::SecretUsedUp);
    assert_eq!(named("collector-3").await, None, "nothing of it is kept");
    // A name that was given up stays reserved.
    let rename = async |id: u128, name: &str| {
        store.rename(Uuid::from_u128(id), name, audit("rename")).await.expect("rename")
    };
    assert_eq!(rename(1, "collector-2").await, Renamed::NameTaken);
    assert_eq!(rename(9, "x").await, Renamed::Unknown);
    assert_eq!(rename(1, "Elsewhere").await, Renamed::Done);
    assert_eq!(rename(2, "collector-1").await, Renamed::NameTaken);
    assert_eq!(named("collector-1").await.map(|known| known.name), Some("Elsewhere".to_owned()));
    assert_eq!(rename(1, "collector-1").await, Renamed::Done, "its own it may have back");
    // It comes back with its certificate under another host name, and its server goes with it.
    store.push(push(id, None, vec![])).await.expect("push");
    let again = Enrolment { thumbprint: "cd".repeat(32), ..enrolment(1, "x", "db9") };
    assert_eq!(store.enrol(again).await.expect("enrol"), Enrolled::Done);
    let held = store.credentials(id).await.expect("credentials").expect("there");
    let pending = held.pending.map(|pending| pending.thumbprint);
    assert_eq!((pending, held.hostname.as_str()), (Some("cd".repeat(32)), "db9"));
    let servers = store.servers(Page::first(9)).await.expect("servers").rows;
    assert_eq!(servers.iter().map(|row| row.hostname.as_str()).collect::<Vec<_>>(), ["db9"]);
    let shown = store.collector_shown(&"cd".repeat(32)).await.expect("shown");
    assert_eq!(shown, Some(Known { hostname: "db9".to_owned(), ..known }));
    assert_eq!(store.collector_shown("ef").await.expect("shown"), None);
    let page = Page { number: 2, size: 1 };
    let second = store.collectors(page, now()).await.expect("collectors");
    assert_eq!((second.total, second.rows[0].id), (2, Uuid::from_u128(2)));
    assert!(!second.rows[0].name_collides);
}

/// S3: nobody takes the host of another live collector, by whatever right. A collector may give its
/// own host another name.
async fn a_host_is_its_live_collectors(opened: Opened) {
    let store = &opened.store;
    let (first, second) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let back = secret(store, "back", Some(3)).await;
    let (certificate, back) = (Right::Certificate, Right::Back(back.id));
    let register = async |id: u128, right: Right, host: &str| {
        let again = Enrolment { right, ..enrolment(id, "x", host) };
        store.enrol(again).await.expect("enrol")
    };
    for right in [certificate, back] {
        assert_eq!(register(2, right, "DB1").await, Enrolled::HostTaken, "{right:?}");
    }
    let held = store.credentials(second).await.expect("credentials").expect("there");
    assert_eq!(held.hostname, "host-2");
    let secret = store.secret_marked(b"back").await.expect("secrets").expect("there");
    assert_eq!(secret.uses, 0, "no use is gone");
    for host in ["db2", "DB2", "db2"] {
        assert_eq!(register(2, certificate, host).await, Enrolled::Done, "{host}");
    }
    // The host of a removed one is free; who has it keeps it.
    assert!(store.deregister(first, audit("out")).await.expect("deregister"));
    assert_eq!(register(2, back, "db1").await, Enrolled::Done);
    assert_eq!(register(1, back, "db1").await, Enrolled::HostTaken);
    assert_eq!(register(1, back, "db3").await, Enrolled::Done);
}

/// A secret is good until it is used up, over or revoked.
async fn secrets_end(opened: Opened) {
    let store = &opened.store;
    let two = secret(store, "two", Some(2)).await;
    assert!(two.is_good(now()) && !two.is_good(after(10)));
    let again = NewSecret {
        name: "two".to_owned(),
        mark: b"other".to_vec(),
        uses_max: None,
        expires_at: None,
        reclaims: true,
        collector_id: None,
        audit: audit("secret.add"),
    };
    let taken = store.add_secret(again.clone()).await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
    let enrol = async |id: u128| {
        let (name, host) = (format!("c{id}"), format!("h{id}"));
        let new = Enrolment { right: Right::New(two.id), ..enrolment(id, &name, &host) };
        store.enrol(new).await.expect("enrol")
    };
    assert_eq!((enrol(1).await, enrol(2).await), (Enrolled::Done, Enrolled::Done));
    assert_eq!(enrol(3).await, Enrolled::SecretUsedUp);
    let kept = store.secrets().await.expect("secrets");
    assert_eq!((kept.len(), kept[0].uses, kept[0].is_good(now())), (1, 2, false));
    assert!(!store.revoke_secret("none", audit("revoke")).await.expect("revoke"));
    // That of the file is replaced by another one, and stays revoked while it is the same.
    let of_file =
        |mark: &[u8]| NewSecret { name: "file".to_owned(), mark: mark.to_vec(), ..again.clone() };
    let file = async || {
        let kept = store.secrets().await.expect("secrets");
        kept.into_iter().find(|kept| kept.name == "file").expect("there")
    };
    store.keep_file_secret(of_file(b"a")).await.expect("keep");
    assert!(store.revoke_secret("file", audit("revoke")).await.expect("revoke"));
    store.keep_file_secret(of_file(b"a")).await.expect("keep");
    assert!(!file().await.is_good(now()));
    store.keep_file_secret(of_file(b"b")).await.expect("keep");
    assert!(file().await.is_good(now()));
    // One that was revoked stays so, also when the file of before is restored; one that was not
    // ends with its file.
    let first = store.secret_marked(b"a").await.expect("marked").expect("kept");
    assert!(first.name.starts_with("file, until ") && !first.is_good(now()), "{first:?}");
    for mark in [b"a", b"c", b"a"] {
        store.keep_file_secret(of_file(mark)).await.expect("keep");
        assert_eq!(file().await.is_good(now()), mark != b"a");
        let first = store.secret_marked(b"a").await.expect("marked").expect("kept");
        assert_eq!((first.name == "file", first.is_good(now())), (mark == b"a", false));
        assert!(store.secret_marked(b"b").await.expect("marked").is_none());
    }
    assert!(store.secret_marked(b"c").await.expect("marked").is_none());
    // A secret with a name of its own keeps it in the file, too.
    store.keep_file_secret(of_file(b"other")).await.expect("keep");
    secret(store, "own", None).await;
    store.keep_file_secret(of_file(b"own")).await.expect("keep");
    let kept =
        store.secrets().await.expect("secrets").into_iter().filter(|kept| kept.is_good(now()));
    assert_eq!(kept.map(|kept| kept.name).collect::<Vec<_>>(), ["own"]);
}

/// A host that is brought is a server of its own, also under the collector's name, and there are
/// only so many.
async fn brought_hosts_are_bounded(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let bring = async |host: &str| {
        let metrics = vec![metric("custom.x", None, 1, 1)];
        let push = push(id, Some(host), metrics);
        store.push(Push { hostname: host.to_owned(), is_brought: true, ..push }).await
    };
    store.push(push(id, Some("own"), vec![metric("custom.x", None, 1, 1)])).await.expect("push");
    for host in ["db1", "db7", "db1"] {
        bring(host).await.expect("push");
    }
    let refused = bring("db8").await;
    assert!(matches!(refused, Err(StoreError::TooMany(_))), "{refused:?}");
    let servers = store.servers(Page::first(9)).await.expect("servers").rows;
    let seen: Vec<_> = servers.iter().map(|row| (row.hostname.as_str(), row.brought)).collect();
    assert_eq!(seen, [("db1", false), ("db1", true), ("db7", true)]);
}

/// The secret of a release is good until there is another of the collector, or the collector goes.
async fn a_release_ends_with_the_next_and_with_the_removal(opened: Opened) {
    let store = &opened.store;
    let (first, second) = (enrolled(store, 1).await, enrolled(store, 2).await);
    let release = async |name: &str, id: Uuid| {
        let new = NewSecret {
            name: name.to_owned(),
            mark: name.as_bytes().to_vec(),
            uses_max: Some(1),
            expires_at: Some(after(10)),
            reclaims: false,
            collector_id: Some(id),
            audit: audit("collector.release"),
        };
        store.add_secret(new).await.expect("add");
    };
    let good = async || {
        let kept = store.secrets().await.expect("secrets");
        let good = kept.into_iter().filter(|kept| kept.is_good(now())).map(|kept| kept.name);
        good.collect::<Vec<_>>().join(" ")
    };
    release("a", first).await;
    release("b", second).await;
    assert_eq!(good().await, "a b s1 s2");
    release("c", first).await;
    assert_eq!(good().await, "b c s1 s2");
    assert!(store.deregister(first, audit("out")).await.expect("deregister"));
    assert_eq!(good().await, "b s1 s2");
    let ended = store.secret_marked(b"c").await.expect("secrets").expect("there");
    let back = Enrolment { right: Right::Back(ended.id), ..enrolment(1, "collector-1", "db1") };
    assert_eq!(store.enrol(back).await.expect("enrol"), Enrolled::SecretUsedUp);
    release("d", first).await;
    assert_eq!(good().await, "b d s1 s2");
}

async fn a_deregistered_collector_has_no_credentials(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    store.push(push(id, None, vec![])).await.expect("push");
    assert!(store.deregister(id, audit("out")).await.expect("deregister"));
    assert!(!store.deregister(id, audit("out")).await.expect("deregister"));
    assert!(!store.deregister(Uuid::nil(), audit("out")).await.expect("deregister"));
    assert!(store.credentials(id).await.expect("credentials").is_none());
    let collector = store.collector(id, now()).await.expect("collector").expect("still known");
    assert_eq!(collector.deregistered_at, Some(now()));
    assert!(!store.servers(Page::first(1)).await.expect("servers").rows[0].is_active);
    // Its certificate does not bring it back; a secret does.
    let back = enrolment(1, "collector-1", "db1");
    assert_eq!(store.enrol(back.clone()).await.expect("enrol"), Enrolled::Deregistered);
    assert!(store.credentials(id).await.expect("credentials").is_none());
    let one = secret(store, "back", Some(1)).await;
    let back = Enrolment { right: Right::Back(one.id), ..back };
    assert_eq!(store.enrol(back.clone()).await.expect("enrol"), Enrolled::Done);
    assert!(store.credentials(id).await.expect("credentials").is_some());
    assert_eq!(store.enrol(back).await.expect("enrol"), Enrolled::SecretUsedUp);
}

/// S6
async fn a_renewed_certificate_replaces_the_old_one_when_it_is_used(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let renewal = |letters: &str| Renewal {
        id,
        thumbprint: letters.repeat(32),
        certificate_expires_at: after(2000),
        audit: audit("renew"),
    };
    let held = async || {
        let held = store.credentials(id).await.expect("credentials").expect("there");
        (held.thumbprint.expect("one"), held.next_thumbprint)
    };
    let replace =
        async |print: String| store.replace_certificate(id, &print, audit("replace")).await;
    let (old, lost, new) = ("ab".repeat(32), "cd".repeat(32), "ef".repeat(32));
    assert!(store.renew_certificate(renewal("cd")).await.expect("renew"));
    assert_eq!(held().await, (old.clone(), Some(lost.clone())));
    // The answer was lost: the host asks again.
    assert!(store.renew_certificate(renewal("ef")).await.expect("renew"));
    assert!(!replace(lost).await.expect("replace"), "it waits no more");
    assert_eq!(held().await, (old, Some(new.clone())));
    assert!(replace(new.clone()).await.expect("replace"));
    assert!(!replace(new.clone()).await.expect("replace"), "it is done");
    assert_eq!(held().await, (new, None));
    let collector = store.collector(id, now()).await.expect("collector").expect("there");
    assert_eq!(collector.certificate_expires_at, Some(after(2000)));
    let audits = store.audits(Page::first(10)).await.expect("audits").rows;
    let actions: Vec<_> = audits.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["replace", "renew", "renew", "collector.register", "secret.add"]);
    // Coming back by a secret ends what waits; a collector that was removed gets none.
    assert!(store.renew_certificate(renewal("cd")).await.expect("renew"));
    let right = Right::Back(secret(store, "back", None).await.id);
    let again = store.enrol(Enrolment { right, ..enrolment(1, "collector-1", "db1") }).await;
    assert_eq!(again.expect("enrol"), Enrolled::Done);
    assert_eq!(held().await.1, None);
    assert!(store.deregister(id, audit("out")).await.expect("deregister"));
    assert!(!store.renew_certificate(renewal("cd")).await.expect("renew"));
}

/// S6: a registration over a certificate waits, too, with its secret and beside a renewal.
async fn a_registration_replaces_the_old_pair_when_it_is_used(opened: Opened) {
    let store = &opened.store;
    let id = enrolled(store, 1).await;
    let print = |letters: &str| letters.repeat(32);
    let register = async |letters: &str, secret: u8| {
        let again = Enrolment {
            sealed_secret: vec![secret],
            thumbprint: print(letters),
            certificate_expires_at: after(3000),
            ..enrolment(1, "collector-1", "db1")
        };
        assert_eq!(store.enrol(again).await.expect("enrol"), Enrolled::Done);
    };
    let held = async || store.credentials(id).await.expect("credentials").expect("there");
    let with = async |letters: &str| {
        let held = held().await;
        let shown = print(letters);
        (held.has(&shown), held.waits(&shown), held.sealed_secret_with(Some(&shown)).to_vec())
    };
    let replace = async |letters: &str| {
        store.replace_certificate(id, &print(letters), audit("replace")).await.expect("replace")
    };
    let first = vec![0, 1, 2, 255];
    // The answer to the first one was lost.
    register("cd", 1).await;
    register("ef", 2).await;
    assert_eq!(with("ab").await, (true, false, first.clone()));
    assert_eq!(with("cd").await, (false, false, first.clone()));
    assert_eq!(with("ef").await, (true, true, vec![2]));
    assert_eq!(held().await.sealed_secret_with(None), first);
    let renewal = Renewal {
        id,
        thumbprint: print("01"),
        certificate_expires_at: after(2000),
        audit: audit("renew"),
    };
    assert!(store.renew_certificate(renewal.clone()).await.expect("renew"));
    assert!(replace("01").await);
    assert_eq!(with("01").await, (true, false, first));
    assert_eq!(with("ef").await, (true, true, vec![2]));
    let shown = store.collector_shown(&print("ef")).await.expect("shown");
    assert_eq!(shown.map(|known| known.id), Some(id));
    assert!(store.renew_certificate(renewal).await.expect("renew"));
    assert!(replace("ef").await);
    assert!(!replace("ef").await, "it is done");
    assert_eq!(with("ef").await, (true, false, vec![2]));
    assert_eq!(with("01").await, (false, false, vec![2]));
    let collector = store.collector(id, now()).await.expect("collector").expect("there");
    assert_eq!(collector.certificate_expires_at, Some(after(3000)));
    // Coming back by a secret ends what waits.
    register("cd", 3).await;
    let right = Right::Back(secret(store, "back", None).await.id);
    let again = Enrolment { right, ..enrolment(1, "collector-1", "db1") };
    assert_eq!(store.enrol(again).await.expect("enrol"), Enrolled::Done);
    assert!(!with("cd").await.0);
    assert_eq!(with("ab").await, (true, false, vec![0, 1, 2, 255]));
}

/// C50: versions.
async fn configurations_are_numbered(opened: Opened) {
    let store = &opened.store;
    let collector_id = enrolled(store, 1).await;
    let config = |text: &str| NewConfig {
        collector_id,
        text: text.to_owned(),
        audit: audit("config.write"),
    };
    assert_eq!(store.config(collector_id).await.expect("config"), None);
    let pair = tokio::join!(store.first_config(config("a")), store.first_config(config("a")));
    assert_eq!((pair.0.expect("first").version, pair.1.expect("first").version), (1, 1));
    assert_eq!(store.first_config(config("b")).await.expect("first").text, "a");
    assert_eq!(store.next_config(config("c")).await.expect("next"), 2);
    let newest = store.config(collector_id).await.expect("config").expect("there");
    assert_eq!((newest.version, newest.text.as_str()), (2, "c"));
    let kept = store.config_versions(collector_id, Page::first(1)).await.expect("versions");
    assert_eq!((kept.total, kept.rows[0].version), (2, 2));
    let pushed = store.push(push(collector_id, None, vec![])).await.expect("push");
    assert_eq!(pushed.config_version, 2);
    configurations_have_an_outcome(store, collector_id).await;
    let unknown = NewConfig { collector_id: Uuid::nil(), ..config("d") };
    let refused = store.next_config(unknown).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
}

/// What an agent says of a version is kept with it: when it was first in force, and why it is not.
async fn configurations_have_an_outcome(store: &Arc<dyn Store>, collector_id: Uuid) {
    let say = async |applied, refused: Option<(i64, &str)>, at: &str| {
        let refused = refused.map(|(version, error)| (version, error.to_owned()));
        let config = ConfigOutcome { applied, refused };
        let received_at = at.parse().expect("a time");
        let push = Push { config, received_at, ..push(collector_id, None, vec![]) };
        store.push(push).await.expect("push");
        let kept = store.config_versions(collector_id, Page::first(9)).await.expect("versions");
        let outcome =
            |row: &KeptConfig| (row.applied_at.map(|at| at.to_string()), row.error.clone());
        kept.rows.iter().map(outcome).collect::<Vec<_>>()
    };
    let (one, two) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
    let at = |time: &str| Some(time.to_owned());
    let error = |text: &str| Some(text.to_owned());
    let said = say(Some(1), Some((2, "no")), one).await;
    assert_eq!(said, [(None, error("no")), (at(one), None)]);
    let said = say(Some(1), Some((2, "never")), two).await;
    assert_eq!(said, [(None, error("never")), (at(one), None)], "the first time stays");
    let said = say(Some(2), None, two).await;
    assert_eq!(said, [(at(two), None), (at(one), None)], "taken after all");
    let said = say(Some(7), Some((8, "unknown versions")), two).await;
    assert_eq!(said, [(at(two), None), (at(one), None)]);
}

async fn user(store: &Arc<dyn Store>) -> i64 {
    let new = NewUser {
        username: "ann".to_owned(),
        email: String::new(),
        full_name: Some("Ann".to_owned()),
        role: Role::Admin,
        password_hash: "hash".to_owned(),
        audit: audit("user.add"),
    };
    store.add_user(new).await.expect("add a user")
}

async fn session(store: &Arc<dyn Store>) -> Uuid {
    let user_id = user(store).await;
    let (id, refresh_id) = (Uuid::from_u128(5), Uuid::from_u128(50));
    let new = Session { id, user_id, refresh_id, at: now(), expires_at: after(100) };
    store.open_session(new).await.expect("open a session");
    id
}

fn exchange(session: Uuid, presented: u128, next: u128) -> Rotate {
    let [presented, next] = [presented, next].map(Uuid::from_u128);
    Rotate { session, presented, next, at: after(10), expires_at: after(200) }
}

/// C53
async fn a_session_lives_until_it_ends(opened: Opened) {
    let store = &opened.store;
    let id = session(store).await;
    let live = async |at| store.session_user(id, at).await.expect("session").is_some();
    assert!(live(after(99)).await);
    assert!(!live(after(100)).await);
    let user = store.session_user(id, now()).await.expect("session").expect("live");
    assert_eq!((user.role, user.last_login), (Role::Admin, Some(now())));
    let done = store.rotate_session(exchange(id, 50, 51)).await.expect("rotate");
    assert!(matches!(done, Rotation::Done(_)), "{done:?}");
    assert!(live(after(150)).await);
    store.end_session(id, after(20)).await.expect("end");
    assert!(!live(after(21)).await);
    let dead = store.rotate_session(exchange(id, 51, 52)).await.expect("rotate");
    assert_eq!(dead, Rotation::Dead);
}

/// C53: S4.
async fn a_used_refresh_token_ends_the_session(opened: Opened) {
    let store = &opened.store;
    let id = session(store).await;
    let done = store.rotate_session(exchange(id, 50, 51)).await.expect("rotate");
    assert!(matches!(done, Rotation::Done(_)), "{done:?}");
    let reused = store.rotate_session(exchange(id, 50, 52)).await.expect("rotate");
    assert_eq!(reused, Rotation::Reused);
    let dead = store.rotate_session(exchange(id, 51, 53)).await.expect("rotate");
    assert_eq!(dead, Rotation::Dead);
    assert_eq!(store.session_user(id, after(11)).await.expect("session"), None);
}

/// C53: S4.
async fn two_refreshes_at_once_do_not_both_pass(opened: Opened) {
    let store = &opened.store;
    let user_id = user(store).await;
    for round in 0..10 {
        let (id, refresh_id) = (Uuid::from_u128(round), Uuid::from_u128(50));
        let new = Session { id, user_id, refresh_id, at: now(), expires_at: after(100) };
        store.open_session(new).await.expect("open a session");
        let both = tokio::join!(
            store.rotate_session(exchange(id, 50, 51)),
            store.rotate_session(exchange(id, 50, 52))
        );
        let both = [both.0.expect("rotate"), both.1.expect("rotate")];
        let done = both.iter().filter(|rotation| matches!(rotation, Rotation::Done(_))).count();
        assert_eq!(done, 1, "{both:?}");
    }
}

/// C53: inactive users.
async fn users_are_unique_and_can_be_shut_out(opened: Opened) {
    let store = &opened.store;
    let id = session(store).await;
    let account = store.account("ann").await.expect("account").expect("there");
    assert_eq!((account.password_hash.as_str(), account.user.is_active), ("hash", true));
    for unknown in ["Ann", "", "a\0"] {
        assert!(store.account(unknown).await.expect("account").is_none(), "{unknown:?}");
    }
    let again = NewUser {
        username: "ann".to_owned(),
        email: String::new(),
        full_name: None,
        role: Role::User,
        password_hash: "other".to_owned(),
        audit: audit("user.add"),
    };
    let refused = store.add_user(again).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert!(store.disable_user("ann", audit("user.disable")).await.expect("disable"));
    assert!(!store.disable_user("bob", audit("user.disable")).await.expect("disable"));
    assert_eq!(store.session_user(id, after(1)).await.expect("session"), None);
    assert!(!store.account("ann").await.expect("account").expect("there").user.is_active);
    let audits = store.audits(Page::first(10)).await.expect("audits");
    assert_eq!(audits.rows, [audit("user.disable"), audit("user.add")]);
}

async fn keys_are_bound_for_ever(opened: Opened) {
    let store = &opened.store;
    assert_eq!(store.bound_keys().await.expect("bound"), None);
    store.bind_keys("one").await.expect("bind");
    store.bind_keys("one").await.expect("bind the same");
    let refused = store.bind_keys("two").await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(store.bound_keys().await.expect("bound").as_deref(), Some("one"));
}

/// C56: a second opening finds the tables as they are.
async fn what_is_kept_survives_a_reopening(opened: Opened) {
    let id = enrolled(&opened.store, 1).await;
    let batch = push(id, Some("b"), vec![metric("sysstat", None, 1, 1)]);
    opened.store.push(batch.clone()).await.expect("push");
    opened.store.close().await;
    let store = store::open(&opened.url).await.expect("open again");
    assert_eq!(numbers(&all(&store).await), [1]);
    assert!(store.push(batch).await.expect("push").duplicate);
    store.ready().await.expect("ready");
}

async fn a_closed_store_is_unavailable(opened: Opened) {
    let id = enrolled(&opened.store, 1).await;
    opened.store.close().await;
    let refused = opened.store.push(push(id, None, vec![])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let refused = opened.store.ready().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
}

/// The file of the embedded store is its owner's alone, its log too.
#[tokio::test]
async fn the_sqlite_file_is_private() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = support::directory();
    let url = format!("sqlite:{}", directory.path().join("store.db").display());
    let store = store::open(&url).await.expect("open");
    enrolled(&store, 1).await;
    let mut files = 0;
    for entry in std::fs::read_dir(directory.path()).expect("read the directory") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").mode();
        assert_eq!(mode & 0o077, 0, "{:?} {mode:o}", entry.path());
        files += 1;
    }
    assert_eq!(files, 3);
}

/// The server writes no copies of the documents down before the first of them leaves.
#[tokio::test]
async fn large_documents_are_read_one_by_one() {
    let url = postgres_url(17).await;
    let (name, _) = url.split_once('?').expect("an address");
    let name = name.rsplit('/').next().expect("a name");
    let server = support::postgres::shared(17);
    let Opened { store, url, .. } = Opened::new(url.clone(), None).await;
    let id = enrolled(&store, 1).await;
    let large = |n: i64| {
        let document = json!({"type": "custom.a", "n": n, "text": "x".repeat(1 << 20)});
        MetricRow::new("custom.a".to_owned(), None, after(n), document.to_string())
    };
    store.push(push(id, None, (0..20).map(large).collect())).await.expect("push");
    // From now on whoever needs more is refused.
    let limit = format!("ALTER DATABASE {name} SET temp_file_limit = 0");
    server.execute("postgres", &limit).await;
    let store = store::open(&url).await.expect("open the store");
    let server = store.servers(Page::first(1)).await.expect("servers").rows.remove(0).id;
    let found = store.metrics(query(server)).await.expect("all of them");
    assert_eq!(numbers(&found.metrics), (0..20).collect::<Vec<_>>());
    let few = MetricQuery { bytes_max: 7 << 19, ..query(server) };
    let found = store.metrics(few).await.expect("the newest");
    assert_eq!((numbers(&found.metrics), found.is_cut), (vec![17, 18, 19], true));
}
