//! What is found where the store should be: stores of earlier versions, filled as those versions
//! filled them, and files that are no store.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::store::{
    self, Audit, ConfigOutcome, MetricQuery, MetricRow, Page, Push, RefusalCount, RefusalReason,
    Renamed, Store, StoreError,
};
use refinery::Target;
use uuid::Uuid;

use crate::support;

mod sqlite {
    refinery::embed_migrations!("src/backend/store/sqlite/migrations");
}

mod postgres {
    refinery::embed_migrations!("src/backend/store/postgres/migrations");
}

const ID: Uuid = Uuid::from_u128(1);
const ID_TEXT: &str = "00000000-0000-0000-0000-000000000001";
const OLD: &str = r#"{"n": 1}"#;

/// The first version: no row had a key, a metric could stand twice, holes had no times.
fn first_rows(time: &str, secret: &str) -> String {
    format!(
        "INSERT INTO collectors (id, name, hostname, sealed_secret, created_at, updated_at,
                                 metrics_total)
              VALUES ('{ID_TEXT}', 'db1', 'db1', {secret}, {time}, {time}, 5000);
         INSERT INTO servers (collector_id, name, hostname, created_at, updated_at)
              VALUES ('{ID_TEXT}', 'db1', 'db1', {time}, {time});
         INSERT INTO pushes (collector_id, batch_id, received_at, metrics)
              VALUES ('{ID_TEXT}', 'old', {time}, 5000);
         WITH RECURSIVE numbers (n) AS (
             SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 5000)
         INSERT INTO metrics (push_id, server_id, type, at, document)
              SELECT 1, 1, 'custom.x', {time}, '{OLD}' FROM numbers;
         INSERT INTO lost (collector_id, queue_id, first, last, records, reason, at)
              VALUES ('{ID_TEXT}', '{ID_TEXT}', 3, 9, 7, 'evict', {time});"
    )
}

fn at() -> Timestamp {
    "2026-01-01T00:00:00.123456Z".parse().expect("a time")
}

fn batch(id: &str) -> Push {
    let metrics = vec![MetricRow::new("custom.x".to_owned(), None, at(), OLD.to_owned())];
    Push {
        collector_id: ID,
        hostname: "db1".to_owned(),
        is_brought: false,
        brought_max: 1,
        batch_id: Some(id.to_owned()),
        received_at: at(),
        metrics,
        rejected: None,
        refused: Some(RefusalCount::new(RefusalReason::InvalidMetric, 1, "bad", at())),
        report: None,
        config: ConfigOutcome::default(),
        lost: vec![],
    }
}

/// Everything is there, known batches are known, and what comes from now on has keys.
async fn works(store: Arc<dyn Store>) {
    let stored = async || {
        let (start, end) = (Timestamp::MIN, Timestamp::MAX);
        let query = MetricQuery {
            server_id: 1,
            kind: None,
            start,
            end,
            step: None,
            limit: 10_000,
            bytes_max: 1 << 30,
        };
        store.metrics(query).await.expect("metrics").metrics.len()
    };
    assert_eq!(stored().await, 5000);
    assert!(store.push(batch("old")).await.expect("push").duplicate);
    // A row without a key is not found again; the ones with a key are.
    assert_eq!(store.push(batch("new")).await.expect("push").inserted, 1);
    assert_eq!(store.push(batch("newer")).await.expect("push").inserted, 0);
    assert_eq!(stored().await, 5001);
    let holes = store.lost(ID, Page::first(10)).await.expect("lost");
    assert_eq!((holes.rows[0].from, holes.rows[0].first_at), (3, None));
    let end = at() + SignedDuration::from_secs(1);
    assert_eq!(store.holes(ID, at(), end).await.expect("holes"), holes.rows);
    let collector = store.collector(ID, at()).await.expect("collector").expect("is there");
    assert_eq!(collector.metrics_total, 5001);
    assert_eq!(collector.refusals.first().map(|refused| refused.count), Some(2));
    store.close().await;
}

/// The fifth version: rows have digests of their texts. `digest` as the store writes one.
fn fifth_rows(time: &str, secret: &str, digest: &str) -> String {
    format!(
        "INSERT INTO collectors (id, name, hostname, sealed_secret, created_at, updated_at,
                                 metrics_total)
              VALUES ('{ID_TEXT}', 'db1', 'db1', {secret}, {time}, {time}, 1);
         INSERT INTO servers (collector_id, name, hostname, created_at, updated_at)
              VALUES ('{ID_TEXT}', 'db1', 'db1', {time}, {time}),
                     ('{ID_TEXT}', 'db2', 'db2', {time}, {time});
         INSERT INTO pushes (collector_id, batch_id, received_at, metrics)
              VALUES ('{ID_TEXT}', 'old', {time}, 1);
         INSERT INTO metrics (push_id, server_id, type, at, document, digest)
              VALUES (1, 1, 'custom.x', {time}, '{OLD}', {digest}),
                     (1, 1, 'custom.x', {time}, '{OLD}', NULL);"
    )
}

fn digest_of_old() -> String {
    let row = MetricRow::new("custom.x".to_owned(), None, at(), OLD.to_owned());
    Uuid::from_bytes(row.digest).simple().to_string()
}

/// A row of the fifth version is that of the first record with its text; the second has its own.
async fn fifth_works(store: Arc<dyn Store>) {
    let inserted = async |name: &str, numbers: std::ops::Range<u64>| {
        let row = &batch(name).metrics[0];
        let metrics = numbers.map(|n| row.clone().of_record(ID, n)).collect();
        store.push(Push { metrics, ..batch(name) }).await.expect("push").inserted
    };
    assert!(store.push(batch("old")).await.expect("push").duplicate);
    assert_eq!(inserted("new", 1..3).await, 1);
    assert_eq!(inserted("newer", 1..4).await, 1);
    assert_eq!(store.push(batch("its text")).await.expect("push").inserted, 0);
    let collector = store.collector(ID, at()).await.expect("collector").expect("is there");
    assert_eq!(collector.metrics_total, 3);
    store.close().await;
}

/// C56, S7
#[tokio::test]
async fn a_fifth_sqlite_store_is_brought_up_to_date() {
    let directory = support::directory();
    let path = directory.path().join("store.db");
    let mut old = rusqlite::Connection::open(&path).expect("a new file");
    sqlite::migrations::runner().set_target(Target::Version(5)).run(&mut old).expect("version 5");
    let (time, digest) = (at().as_microsecond().to_string(), format!("X'{}'", digest_of_old()));
    old.execute_batch(&fifth_rows(&time, "X''", &digest)).expect("fill");
    drop(old);
    fifth_works(store::open(&format!("sqlite:{}", path.display())).await.expect("open")).await;
}

async fn a_fifth_postgres_store(major: u32) {
    let server = support::postgres::shared(major);
    let name = "fifth_version";
    server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    let mut old = server.client(name).await;
    let runner = postgres::migrations::runner().set_target(Target::Version(5));
    runner.run_async(&mut old).await.expect("version 5");
    let (time, digest) = (format!("'{}'::timestamptz", at()), format!("'{}'", digest_of_old()));
    old.batch_execute(&fifth_rows(&time, "''", &digest)).await.expect("fill");
    let url = format!("postgres://postgres@/{name}?host={}", server.socket_dir().display());
    fifth_works(store::open(&url).await.expect("open")).await;
}

/// C56, S7
#[tokio::test]
async fn a_fifth_postgres_10_store_is_brought_up_to_date() {
    a_fifth_postgres_store(10).await;
}

/// C56, S7
#[tokio::test]
async fn a_fifth_postgres_18_store_is_brought_up_to_date() {
    a_fifth_postgres_store(18).await;
}

/// C56, S5
#[tokio::test]
async fn a_first_sqlite_store_is_brought_up_to_date() {
    let directory = support::directory();
    let path = directory.path().join("store.db");
    let mut old = rusqlite::Connection::open(&path).expect("a new file");
    sqlite::migrations::runner().set_target(Target::Version(1)).run(&mut old).expect("version 1");
    old.execute_batch(&first_rows(&at().as_microsecond().to_string(), "X''")).expect("fill");
    drop(old);
    let url = format!("sqlite:{}", path.display());
    works(store::open(&url).await.expect("open")).await;
    // The second opening has nothing left to do.
    store::open(&url).await.expect("open again").close().await;
}

async fn a_first_postgres_store(major: u32) {
    let server = support::postgres::shared(major);
    let name = "first_version";
    server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    let mut old = server.client(name).await;
    let runner = postgres::migrations::runner().set_target(Target::Version(1));
    runner.run_async(&mut old).await.expect("version 1");
    old.batch_execute(&first_rows(&format!("'{}'::timestamptz", at()), "''")).await.expect("fill");
    let url = format!("postgres://postgres@/{name}?host={}", server.socket_dir().display());
    works(store::open(&url).await.expect("open")).await;
    store::open(&url).await.expect("open again").close().await;
}

/// C56, S5
#[tokio::test]
async fn a_first_postgres_10_store_is_brought_up_to_date() {
    a_first_postgres_store(10).await;
}

/// C56, S5
#[tokio::test]
async fn a_first_postgres_18_store_is_brought_up_to_date() {
    a_first_postgres_store(18).await;
}

/// Two collectors whose names are one by their letters, as a store of before kept them.
fn names_of_before(time: &str, secret: &str) -> String {
    let other = Uuid::from_u128(2);
    format!(
        "INSERT INTO collectors (id, name, hostname, sealed_secret, created_at, updated_at)
              VALUES ('{ID_TEXT}', 'Ko\u{308}ln', 'a', {secret}, {time}, {time}),
                     ('{other}', 'KO\u{308}LN', 'b', {secret}, {time}, {time});
         INSERT INTO names (key, collector_id)
              VALUES ('ko\u{308}ln', '{ID_TEXT}'), ('ko\u{308}ln ', '{other}');"
    )
}

async fn names_are_one(store: Arc<dyn Store>) {
    let named = store.collector_named("K\u{d6}LN").await.expect("names");
    assert_eq!(named.map(|known| known.id), Some(ID));
    let all = store.collectors(Page::first(9), at()).await.expect("collectors").rows;
    let mut collides: Vec<_> = all.iter().map(|row| (row.id, row.name_collides)).collect();
    collides.sort_unstable();
    assert_eq!(collides, [(ID, false), (Uuid::from_u128(2), true)]);
}

/// S3
#[tokio::test]
async fn names_of_an_earlier_sqlite_store_are_one_by_their_letters() {
    let directory = support::directory();
    let path = directory.path().join("store.db");
    let url = format!("sqlite:{}", path.display());
    store::open(&url).await.expect("open").close().await;
    let old = rusqlite::Connection::open(&path).expect("the file");
    let time = at().as_microsecond().to_string();
    old.execute_batch(&names_of_before(&time, "X''")).expect("fill");
    drop(old);
    names_are_one(store::open(&url).await.expect("open")).await;
}

/// S3
#[tokio::test]
async fn names_of_an_earlier_postgres_store_are_one_by_their_letters() {
    let server = support::postgres::shared(18);
    let name = "earlier_names";
    server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    let url = format!("postgres://postgres@/{name}?host={}", server.socket_dir().display());
    store::open(&url).await.expect("open").close().await;
    let time = format!("'{}'::timestamptz", at());
    server.client(name).await.batch_execute(&names_of_before(&time, "''")).await.expect("fill");
    names_are_one(store::open(&url).await.expect("open")).await;
}

/// Names that the sixth version let stand beside each other. The fourth is the oldest collector's,
/// so that it is not by chance the one that keeps the name; the fifth is another name.
const COLLIDING: [(u128, &str); 5] =
    [(1, "DB1"), (2, " db1 "), (3, "db\u{202e}1"), (4, "db1"), (5, "db11")];

fn colliding_names(time: impl Fn(Timestamp) -> String, secret: &str) -> String {
    let row = |(n, name): &(u128, &str)| {
        let age = i64::try_from(*n).expect("small");
        let created = time(at() - SignedDuration::from_hours(age % 5));
        let id = Uuid::from_u128(*n);
        format!("('{id}', '{name}', 'host-{n}', {secret}, {created}, {created})")
    };
    let rows: Vec<String> = COLLIDING.iter().map(row).collect();
    format!(
        "INSERT INTO collectors (id, name, hostname, sealed_secret, created_at, updated_at)
              VALUES {}",
        rows.join(", ")
    )
}

/// Of names that are one the oldest collector has it, the others are flagged; all of them push, and
/// are themselves again when they have names of their own.
async fn colliding_names_are_flagged(url: &str) {
    for round in 0..2_u32 {
        let store = store::open(url).await.expect("open");
        let all = store.collectors(Page::first(9), at()).await.expect("collectors").rows;
        let mut flagged: Vec<_> =
            all.iter().map(|row| (row.id.as_u128(), row.name_collides)).collect();
        flagged.sort_unstable();
        assert_eq!(flagged, [(1, true), (2, true), (3, true), (4, false), (5, false)]);
        for (n, name) in COLLIDING {
            let (id, hostname) = (Uuid::from_u128(n), format!("host-{n}"));
            let kept = all.iter().find(|row| row.id == id).expect("it is there");
            assert_eq!((kept.name.as_str(), &kept.hostname), (name, &hostname));
            let pushed = Push { collector_id: id, hostname, ..batch(&format!("{round}")) };
            assert_eq!(store.push(pushed).await.expect("push").inserted, u64::from(round == 0));
            let named = store.collector_named(name).await.expect("names").expect("it is one's");
            assert_eq!(named.id.as_u128(), if n == 5 { 5 } else { 4 });
        }
        store.close().await;
    }
    let store = store::open(url).await.expect("open");
    let by =
        || Audit { at: at(), actor: String::new(), action: String::new(), subject: String::new() };
    let id = Uuid::from_u128(3);
    assert_eq!(store.rename(id, "dB1", by()).await.expect("answered"), Renamed::NameTaken);
    assert_eq!(store.rename(id, "db3", by()).await.expect("answered"), Renamed::Done);
    let renamed = store.collector(id, at()).await.expect("collector").expect("is there");
    assert!(!renamed.name_collides);
    store.close().await;
}

/// S3
#[tokio::test]
async fn colliding_names_of_a_sixth_sqlite_store_are_kept() {
    let directory = support::directory();
    let path = directory.path().join("store.db");
    let mut old = rusqlite::Connection::open(&path).expect("a new file");
    sqlite::migrations::runner().set_target(Target::Version(6)).run(&mut old).expect("version 6");
    let rows = colliding_names(|at| at.as_microsecond().to_string(), "X''");
    old.execute_batch(&rows).expect("fill");
    drop(old);
    colliding_names_are_flagged(&format!("sqlite:{}", path.display())).await;
}

/// S3
#[tokio::test]
async fn colliding_names_of_a_sixth_postgres_store_are_kept() {
    let server = support::postgres::shared(18);
    let name = "sixth_version";
    server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
    let mut old = server.client(name).await;
    let runner = postgres::migrations::runner().set_target(Target::Version(6));
    runner.run_async(&mut old).await.expect("version 6");
    let rows = colliding_names(|at| format!("'{at}'::timestamptz"), "''");
    old.batch_execute(&rows).await.expect("fill");
    let url = format!("postgres://postgres@/{name}?host={}", server.socket_dir().display());
    colliding_names_are_flagged(&url).await;
}

/// A file that is no store is named as damaged, and left as it is.
#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let directory = support::directory();
    let path = directory.path().join("store.db");
    let text = "this is not a database, though it is long enough to be mistaken for one".repeat(20);
    std::fs::write(&path, &text).expect("write");
    let refused = store::open(&format!("sqlite:{}", path.display())).await;
    let Err(StoreError::Damaged(_)) = refused else { panic!("opened or misjudged") };
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}
