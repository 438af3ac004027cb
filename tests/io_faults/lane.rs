//! A site of its own: an agent under faults, programs that push to it, an audit after each fault.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pganalytics::clock;
use serde_json::{Value, json};

use super::Outcome;
use super::settings::{Kind, Moment, Setting};
use crate::intake::{metric, push_of, with_intake};
use crate::support::intake::Place;
use crate::support::process::Process;
use crate::support::shim::Faults;
use crate::support::site::Site;

/// How soon after the end of a fault all is well.
const RECOVERY: Duration = Duration::from_secs(60);
/// A fault that has struck nothing lasts until it does, or so long.
const LASTS_MAX: Duration = Duration::from_secs(4);
/// What a supervisor waits before it starts an agent again.
const RESTART: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(100);
/// Programs that push at the same time.
const CLIENTS: usize = 2;
/// What a program waits before it pushes again.
const PUSH_PAUSE: Duration = Duration::from_millis(5);
/// Times that a program sends something before it gives up.
const TRIES: u32 = 3;
/// Bytes of JSON that the backend takes at once.
const TAKEN_BYTES: usize = 8 << 10;
/// One metric of so many is larger, and becomes a dead letter.
const LARGE_EVERY: u64 = 50;

/// What programs have been told.
#[derive(Default)]
struct Told {
    stop: AtomicBool,
    /// Little is pushed, so that the backlog gets empty.
    calm: AtomicBool,
    next: AtomicU64,
    /// Numbers whose push was answered with 200.
    taken: Mutex<BTreeSet<u64>>,
    /// The last other answer.
    refusal: Mutex<String>,
}

pub struct Lane {
    kind: Kind,
    site: Site,
    faults: Faults,
    agent: Process,
    told: Arc<Told>,
    clients: Vec<JoinHandle<()>>,
    restarts: u64,
    /// Numbers that the queue has given to records.
    given: u64,
}

/// What is where.
struct Seen {
    stored: BTreeMap<u64, u64>,
    dead: BTreeSet<u64>,
}

impl Lane {
    pub async fn new(kind: Kind) -> Self {
        let mut site = Site::registered().await;
        site.served.stop().await;
        site.served.config.limits.inflated_bytes_max = TAKEN_BYTES as u64;
        site.served.resume().await;
        let (site, place) = with_intake(site, "");
        let retain = match kind {
            Kind::Removes => "off",
            Kind::Keeps => "64MiB",
        };
        let text = fs_err::read_to_string(site.config()).expect("read");
        let text = text
            .replace("[queue]\n", &format!("[queue]\nretain_delivered = \"{retain}\"\n"))
            .replace("[sysstat]\ninterval = \"100ms\"", "[sysstat]\nenabled = false")
            .replace("[disk_usage]\ninterval = \"500ms\"", "[disk_usage]\nenabled = false");
        fs_err::write(site.config(), text).expect("write");
        let root = fs_err::canonicalize(site.directory.path()).expect("a path");
        let faults = Faults::new(&root.join("small/queue"), site.directory.path());
        let told = Arc::new(Told::default());
        let clients = (0..CLIENTS).map(|_| {
            let (told, place) = (Arc::clone(&told), place.clone());
            thread::spawn(move || told.push_until_stopped(&place))
        });
        let (clients, agent) = (clients.collect(), start(&site, &faults));
        let mut lane = Self { kind, site, faults, agent, told, clients, restarts: 0, given: 0 };
        lane.until_well(0, &mut Vec::new()).expect("it is well at first");
        lane
    }

    /// Lets the setting's fault strike, and says what has come of it.
    pub fn suffer(&mut self, setting: Setting) -> Outcome {
        let mut ended = Vec::new();
        self.told.calm.store(false, Ordering::SeqCst);
        self.faults.begin(&setting.fault);
        if setting.moment == Moment::AtStart {
            self.agent.kill();
            self.agent = start(&self.site, &self.faults);
            self.restarts += 1;
        }
        let begun = clock::monotonic();
        let mut failure = None;
        while failure.is_none() {
            let (lasted, struck) = (begun.elapsed(), self.faults.struck() > 0);
            if lasted >= setting.lasts && (struck || !setting.must_strike || lasted >= LASTS_MAX) {
                break;
            }
            failure = self.supervise(&mut ended).err();
            thread::sleep(POLL);
        }
        self.faults.end();
        let struck = self.faults.struck();
        let next = self.told.next.load(Ordering::SeqCst);
        let well = failure.map_or_else(|| self.until_well(next, &mut ended), Err);
        let failure = well.err().map(|why| format!("{why}\n{}", self.last_words()));
        Outcome { setting, struck, ended, failure }
    }

    /// Starts the agent again when it has ended, which it may do with an exit code that says so.
    fn supervise(&mut self, ended: &mut Vec<String>) -> Result<(), String> {
        if self.agent.is_running() {
            return Ok(());
        }
        let done = self.agent.finish(POLL);
        if done.code == Some(0) {
            return Err("the agent has ended by itself, with exit code 0".to_owned());
        }
        let last = done.stderr.lines().last().unwrap_or_default();
        let code =
            done.code.map_or(format!("a signal ({last})"), |code| format!("exit code {code}"));
        ended.push(format!("ended by {code}"));
        thread::sleep(RESTART);
        self.agent = start(&self.site, &self.faults);
        self.restarts += 1;
        Ok(())
    }

    /// Waits until a metric with a number from `next` on is answered with 200, and everything that
    /// was answered so until then is at the backend, or a dead letter.
    fn until_well(&mut self, next: u64, ended: &mut Vec<String>) -> Result<(), String> {
        let end = clock::monotonic() + RECOVERY;
        let mut missing: Option<BTreeSet<u64>> = None;
        loop {
            self.supervise(ended)?;
            let seen = self.seen();
            if let Some((n, times)) = seen.stored.iter().find(|(_, times)| **times > 1) {
                return Err(format!("{n} is stored {times} times"));
            }
            match &mut missing {
                None => {
                    let taken = self.told.taken();
                    missing = taken.range(next..).next().is_some().then_some(taken);
                    self.told.calm.store(missing.is_some(), Ordering::SeqCst);
                }
                Some(missing) => {
                    missing.retain(|n| !seen.stored.contains_key(n) && !seen.dead.contains(n));
                    if missing.is_empty() {
                        return self.audit_numbers();
                    }
                }
            }
            if clock::monotonic() > end {
                let refusal = self.told.refusal.lock().unwrap_or_else(PoisonError::into_inner);
                return Err(match missing {
                    None => format!("not within {RECOVERY:?}: a 200; the intake says: {refusal}"),
                    Some(missing) => format!(
                        "not within {RECOVERY:?}: {} acknowledged metrics delivered: {:?}",
                        missing.len(),
                        missing.iter().take(10).collect::<Vec<_>>()
                    ),
                });
            }
            thread::sleep(POLL);
        }
    }

    /// No number has been given twice: there are as many as there are metrics.
    fn audit_numbers(&mut self) -> Result<(), String> {
        // First what has a number, then how many there are: metrics go on coming in between.
        let seen = self.seen();
        let numbered = seen.stored.keys().chain(&seen.dead).collect::<BTreeSet<_>>().len() as u64;
        let given = self.site.queue_number("next_seq");
        let before = std::mem::replace(&mut self.given, given);
        if given < before || given < numbered {
            return Err(format!(
                "{numbered} metrics have a number, and {given} were given, after {before}"
            ));
        }
        Ok(())
    }

    /// Ends the programs and the agent, and holds the ledger against what the backend has.
    pub fn end(&mut self) -> Result<(), String> {
        self.stop_clients();
        let next = self.told.next.load(Ordering::SeqCst);
        let end = clock::monotonic() + RECOVERY;
        while self.site.queue_number("records") > 0 {
            if clock::monotonic() > end {
                return Err(format!("records stay queued\n{}", self.last_words()));
            }
            thread::sleep(POLL);
        }
        self.agent.terminate();
        let done = self.agent.finish(RECOVERY);
        if done.code != Some(0) {
            return Err(format!("it stops with {:?}\n{}", done.code, self.last_words()));
        }
        let seen = self.seen();
        let all: BTreeSet<u64> = seen.stored.keys().chain(&seen.dead).copied().collect();
        let missing: Vec<u64> = self.told.taken().difference(&all).copied().collect();
        if !missing.is_empty() {
            return Err(format!("acknowledged and missing: {missing:?}"));
        }
        assert!(all.iter().all(|n| *n < next), "numbers that nobody has pushed");
        self.audit_ledger(&seen)
    }

    /// Entries of the ledger are for records that are not at the backend.
    fn audit_ledger(&self, seen: &Seen) -> Result<(), String> {
        let ledger = self.site.command(&["inspect", "ledger", "--json"]);
        let ledger: Value = serde_json::from_str(&ledger.stdout).expect("JSON");
        let losses = ledger["losses"].as_array().expect("a list");
        let lost: u64 = losses.iter().map(|loss| number(loss, "records")).sum();
        let given = number(&ledger["queue"], "next_seq");
        let (stored, restarts) = (seen.stored.len() as u64, self.restarts);
        super::say(&format!(
            "{:?}: {given} numbers given, {stored} metrics stored, {lost} in the ledger, {} dead \
             letters; {restarts} restarts",
            self.kind,
            seen.dead.len(),
        ));
        // What was only in the memory of a process that has ended is in no ledger.
        if stored + lost > given || (stored + lost < given && restarts == 0) {
            return Err(format!("{stored} stored and {lost} lost of {given} numbers: {losses:?}"));
        }
        self.audit_kept(seen, losses)
    }

    /// What is kept says which number each metric has: none of the ledger's is at the backend.
    fn audit_kept(&self, seen: &Seen, losses: &[Value]) -> Result<(), String> {
        let export = self.site.command(&["inspect", "export"]);
        for line in export.stdout.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let (seq, n) = (number(&line, "seq"), number(&line["metric"], "n"));
            let names = |loss: &&Value| {
                let range = number(loss, "first_seq")..=number(loss, "last_seq");
                let is_whole = number(loss, "records") == range.clone().count() as u64;
                is_whole && range.contains(&seq)
            };
            let Some(loss) = losses.iter().find(names) else { continue };
            if seen.stored.contains_key(&n) {
                return Err(format!("{n} has number {seq} and is stored: {loss}"));
            }
        }
        Ok(())
    }

    fn seen(&self) -> Seen {
        let file = self.site.served.config.data_dir.join("metrics.db");
        let store = rusqlite::Connection::open(file).expect("open the store");
        store.busy_timeout(RECOVERY).expect("a limit");
        let sql = "SELECT json_extract(document, '$.n') AS n, count(*) FROM metrics GROUP BY n";
        let mut query = store.prepare(sql).expect("a query");
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        let unsigned = |n: i64| u64::try_from(n).expect("a count");
        let stored =
            rows.map(|row| row.expect("a row")).map(|(n, times)| (unsigned(n), unsigned(times)));
        let stored = stored.collect();
        Seen { stored, dead: dead(&self.site.queue()) }
    }

    /// The last lines of what the agent has said.
    fn last_words(&self) -> String {
        let text = self.agent.stderr();
        // These come each second, or with every large metric.
        let usual = ["the queue is closed", "the backend refuse", "a batch too large"];
        let unusual = |line: &&str| !usual.iter().any(|words| line.contains(words));
        let lines: Vec<&str> = text.lines().filter(unusual).collect();
        let status = self.site.command(&["status"]);
        let tail = lines[lines.len().saturating_sub(12)..].join("\n");
        format!("{tail}\nstatus: {:?} {}{}", status.code, status.stdout, status.stderr)
    }

    fn stop_clients(&mut self) {
        self.told.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.join().expect("ran");
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::SeqCst);
    }
}

impl Told {
    /// Pushes one number after the other, each with a key.
    fn push_until_stopped(&self, place: &Place) {
        while !self.stop.load(Ordering::SeqCst) {
            let calm = self.calm.load(Ordering::SeqCst);
            thread::sleep(if calm { POLL } else { PUSH_PAUSE });
            let n = self.next.fetch_add(1, Ordering::SeqCst);
            let mut metric = metric(n);
            if !calm && n % LARGE_EVERY == LARGE_EVERY - 1 {
                metric["filler"] = json!("x".repeat(TAKEN_BYTES));
            }
            let (key, body) = (format!("n-{n}"), push_of(&[metric]));
            for _ in 0..TRIES {
                match place.push(&[("Idempotency-Key", &key)], &body) {
                    Ok(answer) if answer.status == 200 => {
                        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(n);
                        break;
                    }
                    answer => {
                        let text = format!("{answer:?}");
                        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = text;
                        thread::sleep(POLL);
                    }
                }
            }
        }
    }

    fn taken(&self) -> BTreeSet<u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn start(site: &Site, faults: &Faults) -> Process {
    site.start_with(|command| {
        faults.strike_in(command);
        command.env("RUST_BACKTRACE", "0");
    })
}

#[track_caller]
fn number(document: &Value, key: &str) -> u64 {
    document[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {document}"))
}

/// The numbers of the dead letters; a line that is damaged has none.
fn dead(queue: &Path) -> BTreeSet<u64> {
    let text = fs_err::read(queue.join("dead.ndjson")).unwrap_or_default();
    let letter = |line: &[u8]| serde_json::from_slice::<Value>(line).ok()?["metric"]["n"].as_u64();
    text.split(|byte| *byte == b'\n').filter_map(letter).collect()
}
