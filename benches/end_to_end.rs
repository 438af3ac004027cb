//! The whole path: appended to the queue on disk, sealed, read, compressed, pushed over TLS with a
//! client certificate and a token, and committed by the backend to its embedded store, all in this
//! process. `BENCH_RECORDS` sets how many records of about 1 KiB.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use std::{net::Ipv4Addr, path::Path, time::Duration};

use common::{directory, records, result, setting};
use pganalytics::{
    agent::{Agent, Setup},
    backend::{Backend, BackendConfig, Running},
    clock,
    config::Layers,
    link::register::{Contact, Registration, register},
    queue::Group,
};

const GROUP_RECORDS: u64 = 500;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let count = setting("BENCH_RECORDS", 50_000);
    let dir = directory();
    let backend = backend(dir.path()).await;
    let agent = agent(&backend, dir.path()).await;
    let view = agent.view();
    let groups: Vec<Group> = (0..count / GROUP_RECORDS)
        .map(|n| Group::of(records(n * GROUP_RECORDS..(n + 1) * GROUP_RECORDS)))
        .collect();
    let begun = clock::monotonic();
    for group in groups {
        view.queue.append(group).await.expect("the queue is open");
    }
    view.push_now().await;
    while view.forward.borrow().delivered_records < count {
        let mut forward = view.forward.clone();
        tokio::time::timeout(Duration::from_secs(60), forward.changed())
            .await
            .expect("batches arrive")
            .expect("the agent runs");
        let status = view.forward.borrow().clone();
        assert_eq!(status.failures, 0, "{:?}", status.last_answer);
        assert_eq!(status.refused_records, 0);
    }
    let took = begun.elapsed().as_secs_f64();
    result("end_to_end_records_s", count as f64 / took, "records/s");
    let status = view.forward.borrow().clone();
    result("end_to_end_wire_ratio", status.sent_bytes as f64 / status.raw_bytes as f64, "1");
    agent.stop(Duration::from_secs(10)).await;
    backend.stop().await;
}

async fn backend(dir: &Path) -> Running {
    let config = BackendConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        page_listen: None,
        data_dir: dir.join("backend"),
        ..BackendConfig::default()
    };
    Backend::start(config).await.expect("the backend starts")
}

async fn agent(backend: &Running, dir: &Path) -> Agent {
    let state = dir.join("agent");
    std::fs::create_dir(&state).expect("a new directory");
    let state_dir = state.display().to_string();
    let text = format!(
        "[collector]\nstate_dir = {state_dir:?}\npush_interval = \"1h\"\n[backend]\nurl = \
         \"https://localhost:{}\"\n[tls]\ncert_file = {:?}\nkey_file = {:?}\n[queue]\n\
         commit_interval = \"0s\"\n[sysstat]\nenabled = false\n[disk_usage]\nenabled = false\n\
         [pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n[agent]\nenabled = false\n",
        backend.address().port(),
        state.join("agent.crt").display().to_string(),
        state.join("agent.key").display().to_string(),
    );
    let layers = Layers { file: "bench.toml".into(), own: text, remote: None };
    let setup = Setup::of(layers).expect("a sound configuration");
    let registration = Registration {
        link: setup.loaded.config.link.clone(),
        state_dir: state,
        name: "bench".to_owned(),
        hostname: "bench".to_owned(),
        contact: Contact::Ca(backend.ca_file()),
        secret: Some(backend.registration_secret().clone()),
    };
    let registered = register(&registration).await.expect("the agent registers");
    Agent::start(setup, registered.identity).await.expect("the agent starts")
}
