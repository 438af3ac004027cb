//! Backends that do not inflate what they get: older ones, and what stands before them.

use crate::support::backend_stub::Reply;
use crate::verdicts::{Bench, Pushed, Row, refusing, said};

/// Takes a body without an encoding, and answers `status` to any other.
fn plain_only(status: u16) -> impl Fn(usize, &Pushed) -> Reply + Send + Sync + 'static {
    move |_, push| said(if push.encoding.is_empty() { 200 } else { status })
}

fn encodings(row: &Row) -> Vec<&str> {
    row.pushes.iter().map(|push| push.encoding.as_str()).collect()
}

/// 415, or 400 before anything was taken: the batch comes once more without compression, under its
/// id, and the next ones come so at once; a version that inflates gets compressed ones again.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_inflate_gets_plain_bodies() {
    for status in [400, 415] {
        let bench = Bench::start("200ms", "200ms").await;
        let row = bench.row_of(plain_only(status));
        row.came_whole(2, &status);
        assert_eq!(encodings(&row), ["gzip", ""], "{status}");
        assert!(row.log.contains("takes no compressed bodies"), "{}", row.log);
        for _ in 0..2 {
            let row = bench.row_of(plain_only(status));
            row.came_whole(1, &status);
            assert_eq!(encodings(&row), [""], "{status}");
        }
        let row = bench.row_of(|_, push| refusing(400, &push.numbers));
        row.lost_the_bad_one(400);
        assert!(encodings(&row).iter().all(|encoding| encoding.is_empty()), "{row:?}");
        // A restart of the backend, after which it is another version.
        bench.host.stub.say_version("0.2.0");
        let row = bench.row_of(|nth, _| said(if nth == 0 { 503 } else { 200 }));
        row.came_whole(2, &status);
        assert_eq!(encodings(&row), ["", "gzip"], "{status}");
    }
}

/// A bad record in the first batch is no reason to send anything plain later; a 400 of a backend
/// that inflates is about a record at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_is_told_from_the_encoding() {
    let bench = Bench::start("200ms", "200ms").await;
    let row = bench.row_of(|_, push| refusing(400, &push.numbers));
    row.lost_the_bad_one(400);
    assert_eq!((row.pushes[0].encoding.as_str(), row.pushes[1].encoding.as_str()), ("gzip", ""));
    assert!(row.pushes.len() <= 7, "{row:?}");
    let row = bench.row_of(|_, _| said(200));
    assert_eq!(encodings(&row), ["gzip"]);
    let row = bench.row_of(|_, push| refusing(400, &push.numbers));
    row.lost_the_bad_one(400);
    assert!(encodings(&row).iter().all(|encoding| *encoding == "gzip"), "{row:?}");
}

/// Both at once: a bad record in the first batch to a backend that does not inflate. Only that one
/// is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_for_a_backend_that_does_not_inflate_is_found() {
    let bench = Bench::start("200ms", "200ms").await;
    let answer = |_: usize, push: &Pushed| {
        if push.encoding.is_empty() { refusing(400, &push.numbers) } else { said(400) }
    };
    bench.row_of(answer).lost_the_bad_one(400);
    let row = bench.row_of(plain_only(400));
    row.came_whole(2, &"the next one");
    assert_eq!(encodings(&row), ["gzip", ""]);
}

/// `forward.encoding = "identity"`
#[tokio::test(flavor = "multi_thread")]
async fn plain_bodies_are_a_setting() {
    let bench = Bench::with("200ms", "200ms", "encoding = \"identity\"").await;
    let row = bench.row_of(plain_only(415));
    row.came_whole(1, &"at once");
    assert_eq!(encodings(&row), [""]);
}
