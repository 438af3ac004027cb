//! The examples of `docs/INTAKE.md` do what the document says.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pganalytics::{clock, intake};
use serde_json::{Value, json};

use crate::intake::{run, site};
use crate::support::intake::Place;
use crate::support::process::{self, Finished};
use crate::support::site::Site;
use crate::support::{until, until_async};

const SOCKET: &str = "/run/pganalytics/intake.sock";
const LIMIT: Duration = Duration::from_secs(30);

fn document() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs_err::read_to_string(root.join("docs/INTAKE.md")).expect("the document")
}

/// The code block in `language` that contains `mark`, with the test's own socket in it.
fn example(language: &str, mark: &str, place: &Place) -> String {
    let Place::Unix(socket) = place else { panic!("a Unix socket") };
    let document = document();
    let fence = format!("```{language}\n");
    let blocks = document.split(fence.as_str()).skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("\n```").next());
    let block = blocks.find(|block| block.contains(mark)).expect("the example is there");
    assert!(block.contains(SOCKET), "{block}");
    block.replace(SOCKET, socket.to_str().expect("UTF-8"))
}

/// Writes a program into the site's directory and runs it.
fn perform(site: &Site, interpreter: &str, program: &str, arguments: &[&str]) -> Finished {
    let file = site.directory.path().join("example");
    fs_err::write(&file, program.to_owned() + "\n").expect("write the program");
    let mut command = Command::new(interpreter);
    command.arg(&file).args(arguments);
    process::run(command)
}

/// The metrics of `kind` at the backend, once there are `count`.
async fn stored(site: &Site, kind: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    until_async("the example's metrics arrive", LIMIT, || async {
        let stored = site.stored().await;
        stored.iter().filter(|metric| metric.kind == kind).count() >= count
    })
    .await;
    for metric in site.stored().await.iter().filter(|metric| metric.kind == kind) {
        found.push(serde_json::from_str(&metric.document).expect("JSON"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_example_works() {
    let (site, place) = site("").await;
    let _agent = run(&site, &place);
    let done = perform(&site, "sh", &example("sh", "custom.deployment", &place), &[]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    let answer: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(answer, json!({"status": "success", "metrics_inserted": 1, "rejected": []}));
    let [metric] = &stored(&site, "custom.deployment", 1).await[..] else { panic!("one") };
    assert_eq!(metric["version"], json!("2.14.0"));
}

/// Also while the agent is away: the script waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_cron_example_works_and_waits_for_the_agent() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let script = example("sh", "backup-age", &place);
    let backups = site.directory.path().join("backups");
    fs_err::create_dir(&backups).expect("make a directory");
    let backups = backups.to_str().expect("UTF-8");
    let done = perform(&site, "sh", &script, &[backups]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (Some(0), "", ""));
    let [metric] = &stored(&site, "custom.backup_age", 1).await[..] else { panic!("one") };
    assert_eq!((&metric["age_s"], &metric["files"]), (&Value::Null, &json!(0)));

    agent.stop();
    let now = clock::now().as_second();
    until("the next second has its own key", LIMIT, || clock::now().as_second() > now);
    fs_err::write(Path::new(backups).join("base.tar"), "x").expect("a backup");
    let waiting = std::thread::scope(|scope| {
        let script = scope.spawn(|| perform(&site, "sh", &script, &[backups]));
        let agent = run(&site, &place);
        (script.join().expect("ran"), agent)
    });
    assert_eq!(waiting.0.code, Some(0), "{:?}", waiting.0);
    let metrics = stored(&site, "custom.backup_age", 2).await;
    let aged = metrics.iter().find(|metric| metric["files"] == json!(1)).expect("the second");
    assert!(aged["age_s"].as_u64().is_some_and(|age| age < 60), "{aged}");
    assert_eq!(metrics.len(), 2, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_works() {
    let (site, place) = site("").await;
    let _agent = run(&site, &place);
    let done = perform(&site, "python3", &example("python", "http.client", &place), &[]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    let expected =
        "1 taken\nmetric 1 timestamp \"yesterday\" does not end in `Z`: timestamps are UTC\n";
    assert_eq!(done.stdout, expected);
    let [metric] = &stored(&site, "custom.orders", 1).await[..] else { panic!("one") };
    assert_eq!(metric["open"], json!(17));
}

/// Limits and answers in the document are those of the program.
#[test]
fn the_document_says_what_the_program_does() {
    let document = document();
    let missing: Vec<String> = pganalytics::config::Config::keys()
        .into_iter()
        .filter(|key| key.section == "intake")
        .map(|key| format!("| `intake.{}` | `{}` | ", key.name, key.default))
        .filter(|row| !document.contains(row))
        .collect();
    assert!(missing.is_empty(), "rows are missing:\n{}", missing.join("\n"));
    assert_eq!(intake::METRICS_MAX, 100_000, "as the document says");
    assert_eq!(intake::REJECTED_NAMED_MAX, 1_000, "as the document says");
    assert_eq!((intake::KEY_BYTES_MAX, intake::KEY_KEPT), (128, Duration::from_secs(86_400)));
    assert_eq!(intake::BODIES_AT_ONCE, 4);
    assert_eq!(pganalytics::queue::PASSING_POSITIONS_MAX, 10_000, "the newest keys");
}
