//! `agent status`: the agent in one screen.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Cell;
use jiff::Timestamp;

use super::inspect::totals;
use super::local::{self, Local};
use super::screen::{Screen, count, counted, right};
use super::terminal::{self, tell};
use crate::clock;
use crate::config::Config;
use crate::control::{
    AgentStatus, BackendStatus, CertificateStatus, Client, ClientError, CollectorStatus,
    IntakeStatus, RemoteState, Status,
};
use crate::metric::agent_health::ForwarderState;
use crate::queue::QueueStatus;
use crate::units;

/// Where the values stand, after the names.
const INDENT: usize = 11;
/// An offset of the clocks below this is the resolution of the HTTP date.
const CLOCK_OFFSET_SHOWN_MS: u64 = 2_000;

/// What `agent status` shows.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    local::finish("status", show(&args, &Local::of(config)).await)
}

async fn show(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let screen = Screen::stdout(clock::now());
    let status = match Client::new(&local.socket).status().await {
        Ok(status) => status,
        Err(ClientError::NotRunning(path)) => {
            terminal::complain(&format!(
                "the agent does not run (nobody answers on {})",
                path.display()
            ));
            if let Ok(log) = local.view() {
                terminal::complain(&format!(
                    "queue      {}",
                    totals(&screen, &log.status(), INDENT)
                ));
            }
            return Ok(ExitCode::from(1));
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        tell(&serde_json::to_string_pretty(&status)?)?;
    } else {
        tell(&page(&screen, &status))?;
    }
    Ok(ExitCode::from(if concerns(&status, screen.now).is_empty() { 0 } else { 2 }))
}

/// What a person should look at, in words.
fn concerns(status: &Status, now: Timestamp) -> Vec<String> {
    let (agent, queue) = (&status.agent, &status.queue);
    let now = agent.backend.server_time(now);
    let mut found = Vec::new();
    if agent.backend.forwarding == ForwarderState::Paused {
        found
            .push("the backend refuses this agent; nothing is dropped, see the last answer".into());
    }
    let first = agent.backend.urls.first();
    if let Some(first) = first.filter(|first| **first != agent.backend.url) {
        found.push(format!("the backend {first} is down; another is in use"));
    }
    if let Some(error) = &queue.disk_error {
        found.push(format!("the disk takes no records, they are in memory: {error}"));
    }
    if !agent.backend.verified {
        found.push("tls.verify = false: the backend's certificate is not checked".to_owned());
    }
    let offset = agent.backend.clock_offset_ms;
    if offset.unsigned_abs() >= CLOCK_OFFSET_SHOWN_MS {
        let direction = if offset > 0 { "behind" } else { "ahead of" };
        let offset = units::show_duration(Duration::from_millis(offset.unsigned_abs()));
        found.push(format!("this host's clock is {offset} {direction} the backend's"));
    }
    found.extend(agent.backend.certificate.as_ref().and_then(|own| troubled_certificate(own, now)));
    for (number, what) in [
        (queue.counts.refused_records, "refused by the backend, in the dead letters"),
        (queue.counts.evicted_records, "evicted for want of room"),
        (queue.counts.corrupt_records, "damaged on disk"),
    ] {
        if number > 0 {
            found.push(format!("{} {what}", counted(number, "record")));
        }
    }
    if let Some(error) = agent.intake.as_ref().and_then(|intake| intake.error.as_ref()) {
        found.push(format!("other programs cannot push: {error}"));
    }
    if let Some(refused) = &agent.config.refused {
        let version = refused.version;
        found.push(format!("configuration {version} of the backend is refused, see above"));
    }
    if agent.config.file_error.is_some() {
        found.push("the configuration file is refused; the one in force stays".to_owned());
    }
    if !agent.config.needs_restart.is_empty() {
        found.push(format!("needs a restart: {}", agent.config.needs_restart.join(", ")));
    }
    let failing = agent.collectors.iter().filter(|collector| collector.last_error.is_some());
    found.extend(failing.map(|collector| format!("collector {} fails, see below", collector.name)));
    let rejecting = agent.collectors.iter().filter(|collector| collector.rejects > 0);
    found.extend(rejecting.map(|CollectorStatus { name, rejects, .. }| {
        format!("{} of collector {name} rejected, see below", counted(*rejects, "metric"))
    }));
    let blocked = agent.collectors.iter().filter(|collector| collector.blocked_since.is_some());
    found.extend(blocked.map(|collector| {
        format!("the queue is full: collector {} waits for room", collector.name)
    }));
    found
}

fn troubled_certificate(own: &CertificateStatus, now: Timestamp) -> Option<String> {
    let ends = own.expires_at;
    if ends <= now {
        return Some(format!(
            "the client certificate expired at {ends}: run `agent register --force`"
        ));
    }
    let error = own
        .error
        .as_ref()
        .map(|error| {
            format!("\n           last try: {error}").replace("; hint: ", "\n           hint: ")
        })
        .unwrap_or_default();
    if own.is_near_end(now) {
        return Some(format!("the client certificate ends at {ends} and is not renewed{error}"));
    }
    own.error.as_ref()?;
    Some(format!("the client certificate was not renewed{error}"))
}

fn page(screen: &Screen, status: &Status) -> String {
    let agent = &status.agent;
    let mut text = format!(
        "agent      {} {}, pid {}, up {}\n",
        agent.version,
        agent.hostname,
        agent.pid,
        screen.age(agent.started_at),
    );
    let _ = writeln!(text, "collector  {}", agent.collector_id);
    text.push_str(&config(screen, agent));
    text.push_str(&backend(screen, &agent.backend));
    text.push_str(&queue(screen, &status.queue));
    text.extend(agent.intake.as_ref().map(intake));
    for concern in concerns(status, screen.now) {
        let _ = writeln!(text, "look       {concern}");
    }
    text.push('\n');
    text.push_str(&collectors(screen, &agent.collectors));
    text
}

/// The configuration in force, and what was refused.
fn config(screen: &Screen, agent: &AgentStatus) -> String {
    let (config, file) = (&agent.config, agent.config_file.display());
    let since = config.applied_at.map(|at| format!(", in force for {}", screen.age(at)));
    let mut text = format!("config     {file}{}\n", since.unwrap_or_default());
    let asked = config.asked_at.map(|at| format!(" (asked {} ago)", screen.age(at)));
    let asked = asked.unwrap_or_default();
    let _ = match (config.remote, config.version) {
        (RemoteState::Off, _) => writeln!(text, "           the backend is not asked for another"),
        (RemoteState::Absent, 0) => writeln!(text, "           the backend has none{asked}"),
        (_, 0) => writeln!(text, "           nothing of the backend over it{asked}"),
        (_, version) => {
            let keys = match config.remote_keys.as_slice() {
                [] => ", which sets no key".to_owned(),
                keys => {
                    let lines: Vec<_> = keys.chunks(2).map(|pair| pair.join(", ")).collect();
                    format!("\n           which sets {}", lines.join(",\n           "))
                }
            };
            writeln!(text, "           version {version} of the backend over it{asked}{keys}")
        }
    };
    let refused = config.refused.iter().map(|refused| &refused.error);
    for error in config.file_error.iter().chain(refused).chain(&config.withheld) {
        let error = error.trim_end().replace('\n', "\n           ");
        let _ = writeln!(text, "           {error}");
    }
    text
}

fn backend(screen: &Screen, backend: &BackendStatus) -> String {
    let doing = backend.forwarding.as_str().replace('_', " ");
    let mut parts = vec![match &backend.reason {
        Some(reason) => format!("{doing} ({reason})"),
        None => doing,
    }];
    parts.extend(backend.next_try_at.map(|at| match screen.until(at).as_str() {
        "now" => "next try now".to_owned(),
        wait => format!("next try in {wait}"),
    }));
    parts.push(match backend.last_delivery_at {
        Some(at) => format!("last delivery {} ago", screen.age(at)),
        None => "no delivery yet".to_owned(),
    });
    parts.push(format!("{} sent", units::show_size(backend.sent_bytes)));
    let proxy = backend.proxy.as_ref().map(|proxy| format!(" through {proxy}"));
    let proxy = proxy.unwrap_or_default();
    let mut text = format!("backend    {}{proxy}\n", backend.url);
    if let Some(since) = backend.in_use_since {
        let others: Vec<&str> =
            backend.urls.iter().map(String::as_str).filter(|url| *url != backend.url).collect();
        let since = screen.age(since);
        let _ = writeln!(text, "           in use for {since}; others: {}", others.join(", "));
    }
    let _ = writeln!(text, "           {}", parts.join(", "));
    text.push_str(&proofs(screen, backend));
    if backend.refuses_health {
        text.push_str("           does not know metrics of type `agent`; it gets none\n");
    }
    if let Some(drain) = &backend.drain {
        let left = drain.eta_s.map(|eta| units::show_duration(Duration::from_secs(eta.max(1))));
        let left = left.map_or_else(String::new, |left| format!(", empty in about {left}"));
        let _ = writeln!(
            text,
            "           the backlog drains: {} in {}, {} on their way{left}",
            counted(drain.batches, "batch"),
            units::show_duration(Duration::from_millis(drain.millis)),
            backend.in_flight,
        );
    }
    if let Some(answer) = &backend.last_answer {
        let when = backend.last_answer_at.map(|at| format!(" ({} ago)", screen.age(at)));
        let when = when.unwrap_or_default();
        let answer = answer.trim_end().replace("; hint: ", "\n  hint: ");
        let answer = answer.replace("\n  hint:", "\n           hint:");
        let _ = writeln!(text, "           last answer{when}: {answer}");
    }
    text
}

/// What the agent proves itself with, and for how long: by the backend's clock, whose times are
/// shown as distances.
fn proofs(screen: &Screen, backend: &BackendStatus) -> String {
    let screen = Screen { now: backend.server_time(screen.now), ..*screen };
    let mut parts = Vec::new();
    if let Some(own) = &backend.certificate {
        let ends = screen.until(own.expires_at);
        parts.push(match (&own.by_hand, own.renew_at) {
            (Some(why), _) => format!("certificate ends in {ends}; {why}"),
            (None, Some(at)) => match screen.until(at).as_str() {
                "now" => format!("certificate ends in {ends}, is being renewed"),
                wait => format!("certificate ends in {ends}, is renewed in {wait}"),
            },
            (None, None) => format!("certificate ends in {ends}"),
        });
    }
    parts.extend(backend.token_expires_at.map(|at| format!("token ends in {}", screen.until(at))));
    if parts.is_empty() { String::new() } else { format!("           {}\n", parts.join("; ")) }
}

fn queue(screen: &Screen, queue: &QueueStatus) -> String {
    let counts = &queue.counts;
    format!(
        "queue      {}\n           {} taken, {} delivered in {} since the start\n",
        totals(screen, queue, INDENT),
        counted(counts.appended_records, "record"),
        count(counts.delivered_records),
        counted(counts.delivered_batches, "batch"),
    )
}

fn intake(intake: &IntakeStatus) -> String {
    format!(
        "intake     {}, {} open\n           {} taken, {} rejected, {} of {} refused\n",
        intake.listen,
        counted(intake.connections, "connection"),
        counted(intake.metrics, "metric"),
        count(intake.rejects),
        count(intake.refused),
        counted(intake.requests, "request"),
    )
}

fn collectors(screen: &Screen, list: &[CollectorStatus]) -> String {
    let header =
        ["collector", ">every", ">last run", ">runs", ">failed", ">metrics", ">rejected", "state"];
    let mut table = screen.table(&header);
    for collector in list {
        let state = match (&collector.last_error, collector.enabled, collector.last_run_at) {
            (_, false, _) => "off",
            _ if collector.blocked_since.is_some() => "blocked",
            (Some(_), ..) => "failing",
            (None, _, None) => "starting",
            (None, ..) => "ok",
        };
        table.add_row(vec![
            Cell::new(&collector.name),
            right(every(collector.interval_ms)),
            right(collector.last_run_at.map(|at| screen.age(at)).unwrap_or_default()),
            right(count(collector.runs)),
            right(count(collector.failures)),
            right(count(collector.metrics)),
            right(count(collector.rejects)),
            Cell::new(state),
        ]);
    }
    let mut text = screen.print(table);
    for collector in list {
        if let Some(error) = &collector.last_error {
            let error = error.trim_end().replace("; hint: ", "\n  hint: ");
            let _ = writeln!(text, "\n{}: {error}", collector.name);
        }
        for notice in &collector.notices {
            let notice = notice.trim_end().replace("; hint: ", "\n  hint: ");
            let _ = writeln!(text, "\n{}: {notice}", collector.name);
        }
        if let Some(reject) = &collector.last_reject {
            let _ = writeln!(text, "\n{}: rejected: {reject}", collector.name);
        }
    }
    text
}

fn every(interval_ms: u64) -> String {
    match interval_ms {
        0 => String::new(),
        some => units::show_duration(Duration::from_millis(some)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use uuid::Uuid;

    use super::*;
    use crate::cli::screen::Look;
    use crate::control::{ConfigStatus, DrainStatus, RefusedConfig};
    use crate::queue::Counts;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    pub(in crate::cli) fn healthy() -> Status {
        let collector = |name: &str, metrics| CollectorStatus {
            name: name.to_owned(),
            enabled: true,
            interval_ms: 60_000,
            last_run_at: Some(at("2026-11-21T11:59:48Z")),
            last_ms: 12,
            cpu_ms: 3_456,
            last_error: None,
            runs: 1_440,
            failures: 0,
            metrics,
            rejects: 0,
            last_reject: None,
            notices: Vec::new(),
            blocked_since: None,
        };
        let backend = BackendStatus {
            url: "https://backend.example.com:8080".to_owned(),
            urls: Vec::new(),
            in_use_since: None,
            proxy: None,
            verified: true,
            forwarding: ForwarderState::Flowing,
            hint: None,
            reason: None,
            last_answer: Some("200".to_owned()),
            last_answer_at: Some(at("2026-11-21T11:59:30Z")),
            last_delivery_at: Some(at("2026-11-21T11:59:30Z")),
            next_try_at: None,
            clock_offset_ms: 120,
            sent_bytes: 12_345_678,
            certificate: Some(CertificateStatus {
                begins_at: at("2026-06-01T00:00:00Z"),
                expires_at: at("2027-06-01T00:00:00Z"),
                renew_at: Some(at("2027-01-10T00:00:00Z")),
                renewed_at: None,
                by_hand: None,
                error: None,
            }),
            token_expires_at: None,
            ..BackendStatus::default()
        };
        let agent = AgentStatus {
            version: "0.1.0".to_owned(),
            pid: 4711,
            started_at: at("2026-11-20T12:00:00Z"),
            config_file: PathBuf::from("/etc/pganalytics/agent.toml"),
            collector_id: "0b0e8f4c-0000-4000-8000-000000000001".to_owned(),
            hostname: "db.example".to_owned(),
            backend,
            config: ConfigStatus {
                applied_at: Some(at("2026-11-20T12:00:00Z")),
                version: 7,
                remote_keys: vec!["collector.interval".into(), "pg_log.enabled".into()],
                asked_at: Some(at("2026-11-21T11:58:00Z")),
                last_answer: Some("nothing new".into()),
                ..ConfigStatus::default()
            },
            collectors: vec![collector("sysstat", 1_440), collector("pg_stats", 4_320)],
            intake: Some(IntakeStatus {
                listen: "unix:/run/pganalytics/intake.sock".to_owned(),
                connections: 1,
                requests: 1_450,
                refused: 3,
                metrics: 2_880,
                ..IntakeStatus::default()
            }),
        };
        let queue = QueueStatus {
            queue_id: Uuid::from_u128(7),
            segments: 1,
            batches: 1,
            records: 12,
            raw_bytes: 34_567,
            disk_bytes: 12_288,
            usage_bytes: 0,
            bytes_max: 1 << 30,
            kept_segments: 0,
            oldest_at: Some(at("2026-11-21T11:59:30Z")),
            next_seq: 5_772,
            ring_bytes: 40_000,
            ring_bytes_max: 4 << 20,
            ring_records: 40,
            disk_error: None,
            state_error: None,
            counts: Counts {
                appended_records: 5_772,
                delivered_records: 5_760,
                delivered_batches: 1_440,
                ..Counts::default()
            },
        };
        Status { agent, queue }
    }

    fn troubled() -> Status {
        let mut status = healthy();
        let backend = &mut status.agent.backend;
        backend.forwarding = ForwarderState::Paused;
        backend.reason = Some("certificate_mismatch".to_owned());
        backend.refuses_health = true;
        backend.verified = false;
        backend.urls = vec!["https://first.example.com:8080".to_owned(), backend.url.clone()];
        backend.in_use_since = Some(at("2026-11-21T11:55:00Z"));
        backend.proxy = Some("http://proxy.example.com:3128".to_owned());
        backend.last_answer = Some("403 certificate does not match the token's collector".into());
        backend.last_delivery_at = None;
        backend.next_try_at = Some(at("2026-11-21T12:04:00Z"));
        backend.clock_offset_ms = -3_600_000;
        let own = backend.certificate.as_mut().expect("one");
        own.expires_at = at("2026-12-05T12:00:00Z");
        own.renew_at = Some(at("2026-10-01T12:00:00Z"));
        own.error = Some("the backend says 503; hint: wait".to_owned());
        backend.token_expires_at = Some(at("2026-11-21T11:20:00Z"));
        status.queue.disk_error = Some("no space left on device".to_owned());
        status.queue.counts.refused_records = 3;
        status.queue.counts.evicted_records = 1;
        status.agent.intake = Some(IntakeStatus {
            listen: "127.0.0.1:9187".to_owned(),
            error: Some("127.0.0.1:9187: address already in use".to_owned()),
            ..IntakeStatus::default()
        });
        status.agent.config.file_error = Some(
            "agent.toml:3: queue.bytes_max = 1: is not allowed\n  hint: a size such as ...".into(),
        );
        status.agent.config.refused = Some(RefusedConfig {
            version: 8,
            error: "configuration 8 of the backend:2: backend.url: only the host's own file may \
                    set it\n  hint: leave it out"
                .into(),
            at: at("2026-11-21T11:58:00Z"),
        });
        status.agent.config.needs_restart = vec!["queue.dir".into(), "backend.url".into()];
        let [sysstat, pg_stats] = &mut status.agent.collectors[..] else { panic!("two") };
        sysstat.enabled = false;
        pg_stats.last_error = Some("connect to /run/postgresql: refused; hint: start it".into());
        pg_stats.failures = 3;
        pg_stats.rejects = 2;
        pg_stats.last_reject =
            Some("pg_stats: tables[3].live_tuples: expected a whole number, found -1".into());
        status
    }

    fn screen(width: usize) -> Screen {
        Screen { width: Some(width), look: Look::Plain, now: at("2026-11-21T12:00:00Z") }
    }

    #[test]
    fn healthy_agent_fits_one_screen() {
        assert_eq!(concerns(&healthy(), screen(80).now), Vec::<String>::new());
        let text = page(&screen(80), &healthy());
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        insta::assert_snapshot!("healthy", text);
    }

    #[test]
    fn trouble_is_named() {
        assert_eq!(concerns(&troubled(), screen(80).now).len(), 14);
        insta::assert_snapshot!("troubled", page(&screen(80), &troubled()));
    }

    /// What waits and how fast it leaves: when it will be gone.
    #[test]
    fn a_drain_shows_its_end() {
        let mut status = healthy();
        status.queue.batches = 7_500;
        status.agent.backend.in_flight = 4;
        let drain = DrainStatus { batches: 500, millis: 60_000, eta_s: None };
        status.agent.backend.drain = Some(drain);
        let status = Status::new(status.agent, status.queue);
        let text = page(&screen(80), &status);
        let line = "the backlog drains: 500 batches in 1min, 4 on their way, empty in about 15min";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn status_survives_json() {
        let text = serde_json::to_string(&troubled()).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("read back"), troubled());
    }
}
