//! A log on a file system that does not answer any more: calls to it do not return.

use std::time::Duration;

use serde_json::Value;

use crate::operator::Host;
use crate::support::shim::{Call, Fault, Faults, How};
use crate::support::{directory, until};

const LIMIT: Duration = Duration::from_secs(60);
const HANG: Fault = Fault { calls: Vec::new(), how: How::Hang, files: "*.log" };

/// A number of a collector in `agent status`.
fn number(host: &Host, collector: &str, name: &str) -> u64 {
    status(host, collector)[name].as_u64().expect("a number")
}

fn status(host: &Host, collector: &str) -> Value {
    let status = host.json(&["status", "--json"]);
    let all = status["collectors"].as_array().expect("collectors");
    all.iter().find(|it| it["name"] == collector).expect(collector).clone()
}

/// One thread hangs, the collector says so and asks for no other; everything else goes on, and so
/// does the log when the file system answers again. The end does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_hangs_holds_nobody_else() {
    let (host, logs) = (Host::new("300ms").await, directory());
    let log = logs.path().join("postgresql.log");
    fs_err::write(&log, "").expect("write");
    let file = host.path("agent.toml");
    let config = fs_err::read_to_string(&file).expect("read");
    let on = format!(
        "[pg_log]\npath = {:?}\nline_prefix = \"%m [%p] \"\ntimezone = \"UTC\"\n\
         start_at = \"beginning\"\ninterval = \"500ms\"\n",
        logs.path()
    );
    let config = config.replace("[pg_log]\nenabled = false\n", &on);
    let config =
        config.replace("[sysstat]\nenabled = false\n", "[sysstat]\ninterval = \"100ms\"\n");
    fs_err::write(&file, config).expect("write");
    let faults = Faults::new(logs.path(), host.folder.path());
    let agent = host.start_with(|command| faults.strike_in(command));
    until("the agent runs", LIMIT, || agent.stderr().contains("the agent runs"));
    until("the log is read", LIMIT, || number(&host, "pg_log", "metrics") > 0);
    let told = || agent.stderr().matches("has not come to an end").count();
    until("it is well", LIMIT, || status(&host, "pg_log")["last_error"].is_null());
    let before = told();

    let hang = Fault { calls: vec![Call::Open], ..HANG };
    faults.begin(&hang);
    until("a call hangs", LIMIT, || faults.struck() == 1);
    until("it is told", LIMIT, || told() > before);
    let (failures, samples) =
        (number(&host, "pg_log", "failures"), number(&host, "sysstat", "runs"));
    until("collections go by", LIMIT, || number(&host, "pg_log", "failures") > failures + 3);
    until("others go on", LIMIT, || number(&host, "sysstat", "runs") > samples + 3);
    let pushed = host.stub.requests().len();
    until("pushes go on", LIMIT, || host.stub.requests().len() > pushed);
    assert_eq!(faults.struck(), 1, "no other thread hangs");
    assert_eq!(told(), before + 1, "told once: {}", agent.stderr());

    let line = "2026-01-01 00:00:00.000 UTC [1] LOG:  checkpoint starting: time\n";
    fs_err::write(&log, line).expect("write");
    faults.end();
    let read = number(&host, "pg_log", "metrics");
    until("the log is read on", LIMIT, || number(&host, "pg_log", "metrics") > read);
    until("it is well", LIMIT, || status(&host, "pg_log")["last_error"].is_null());

    faults.begin(&hang);
    until("it hangs again", LIMIT, || faults.struck() == 1);
    agent.stop();
}
