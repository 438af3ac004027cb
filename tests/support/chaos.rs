//! Everything at once: an agent and a backend that are killed, a network and requests that are
//! meddled with, and a program that pushes numbers meanwhile. What the random numbers do is told by
//! the seed; when it happens is not.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pganalytics::clock;

use super::intake::Place;
use super::process::{Process, agent};
use super::proxy::Network;
use super::relay::{Meddling, Relay};
use super::site::{Site, assert_distinct};
use super::until;
use crate::intake::{metric, push_of, stored_numbers, with_intake};

const LIMIT: Duration = Duration::from_secs(120);
/// Between two pushes of the program.
const PUSH_EVERY: Duration = Duration::from_millis(50);

/// A site in trouble.
pub struct Chaos {
    site: Site,
    place: Place,
    relay: Relay,
    agent: Process,
    backend: Process,
    random: fastrand::Rng,
    seed: u64,
    done: Done,
}

/// What has been done to it.
#[derive(Debug, Default)]
pub struct Done {
    pub agent_kills: u64,
    pub backend_kills: u64,
    pub networks: u64,
}

/// What was there at the end.
#[derive(Debug)]
pub struct Audit {
    pub seed: u64,
    pub done: Done,
    /// Connections and pushes that suffered.
    pub connections: u64,
    pub pushes: u64,
    /// Numbers that the intake answered 200, and sequence numbers that the queue gave.
    pub numbers: u64,
    pub sequence: u64,
}

impl Chaos {
    /// A site with an intake, whose backend is a process of its own, with SQLite or with the store
    /// at this URL.
    pub async fn start(store: Option<String>, seed: u64) -> Self {
        let (mut site, place) = with_intake(Site::registered_in(store).await, "");
        let relay = site.relay().await;
        site.served.stop().await;
        let backend = start_backend(&site);
        let agent = site.run();
        let random = fastrand::Rng::with_seed(seed);
        Self { site, place, relay, agent, backend, random, seed, done: Done::default() }
    }

    /// Makes trouble for `length`, lets everything calm down, and compares. Panics when a number or
    /// a record is missing or there twice.
    pub async fn run(mut self, length: Duration) -> Audit {
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (begun, place) = (clock::monotonic(), self.place.clone());
        thread::scope(|scope| {
            let program = scope.spawn(|| push_numbers(&place, &next, &stop));
            let stopping = Stopping(&stop);
            while begun.elapsed() < length && !program.is_finished() {
                thread::sleep(Duration::from_millis(self.random.u64(50..500)));
                self.trouble();
            }
            self.calm();
            drop(stopping);
        });
        self.audit(next.into_inner()).await
    }

    fn trouble(&mut self) {
        match self.random.u8(..8) {
            0 => {
                self.agent.kill();
                self.done.agent_kills += 1;
                self.agent = self.site.start();
            }
            1 => {
                self.backend.kill();
                self.done.backend_kills += 1;
                self.backend = start_backend(&self.site);
            }
            2 | 3 => {
                let network = self.network();
                self.site.proxy.set(network);
                self.done.networks += 1;
            }
            4 => self.relay.set(Meddling::None),
            5 => self.relay.set(Meddling::Random),
            _ => self.site.proxy.set(Network::Up),
        }
    }

    fn network(&mut self) -> Network {
        let at = self.random.u64(..4_000);
        match self.random.u8(..10) {
            0 => Network::Down,
            1 => Network::Silent,
            2 => Network::HalfOpen,
            3 => Network::AnswersLost,
            4 => Network::Slow { latency: Duration::from_millis(at / 40), bytes_per_s: 64 << 10 },
            5 => Network::RequestReset(at),
            6 => Network::AnswerReset(at),
            7 => Network::AnswerCut(at),
            8 => Network::Garbage,
            _ => Network::Alert,
        }
    }

    /// Nothing is wrong any more, and both processes run.
    fn calm(&mut self) {
        self.site.proxy.set(Network::Up);
        self.relay.set(Meddling::None);
        for process in [&mut self.agent, &mut self.backend] {
            let runs = process.is_running();
            assert!(runs, "seed {}: a process has ended: {}", self.seed, process.stderr());
        }
    }

    async fn audit(mut self, numbers: u64) -> Audit {
        let seed = self.seed;
        until(&format!("seed {seed}: the backlog is delivered"), LIMIT, || left(&self.site) < 30);
        self.agent.terminate();
        let done = self.agent.finish(LIMIT);
        // What the shutdown's deadline has left goes with the next.
        let agent = self.site.run();
        until(&format!("seed {seed}: the rest is delivered"), LIMIT, || left(&self.site) < 30);
        agent.stop();
        self.backend.kill();
        self.site.served.resume().await;
        let stored = self.site.stored().await;
        let (records, sequence) = (left(&self.site), self.site.queue_number("next_seq"));
        assert_eq!(records, 0, "seed {seed}: {}", done.stderr);
        assert_eq!(stored.len() as u64, sequence, "seed {seed}: {}", done.stderr);
        let mut host = stored;
        host.retain(|metric| metric.kind != "custom.test");
        assert_distinct(&host);
        let expected: Vec<u64> = (0..numbers).collect();
        assert!(stored_numbers(&self.site).await == expected, "seed {seed}: {numbers} numbers");
        let (connections, pushes) = (self.site.proxy.struck(), self.relay.struck());
        Audit { seed, done: self.done, connections, pushes, numbers, sequence }
    }
}

impl Audit {
    /// One line for whoever runs it.
    pub fn say(&self) {
        writeln!(std::io::stderr(), "{self:?}").expect("say");
    }
}

fn left(site: &Site) -> u64 {
    site.queue_number("records")
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pushes the next few numbers, with a key, until they are answered; then the next.
fn push_numbers(place: &Place, next: &AtomicU64, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(0);
    while !stop.load(Ordering::Relaxed) {
        let first = next.load(Ordering::Relaxed);
        let end = first + random.u64(1..=10);
        let (key, metrics) = (format!("n-{first}"), (first..end).map(metric).collect::<Vec<_>>());
        let body = push_of(&metrics);
        let begun = clock::monotonic();
        let answered = || place.push(&[("Idempotency-Key", &key)], &body).ok();
        while answered().is_none_or(|answer| answer.status != 200) {
            assert!(begun.elapsed() < LIMIT, "{first} is never answered");
            thread::sleep(Duration::from_millis(10));
        }
        next.store(end, Ordering::Relaxed);
        thread::sleep(PUSH_EVERY);
    }
}

/// The backend of the site as a process, where it was.
fn start_backend(site: &Site) -> Process {
    let config = &site.served.config;
    let file = site.directory.path().join("backend.toml");
    let store = config.store.iter().fold(String::new(), |_, store| format!("store = '{store}'\n"));
    let text = format!(
        "[backend]\nlisten = \"{}\"\npage_listen = \"off\"\ndata_dir = '{}'\n{store}",
        config.listen,
        config.data_dir.display(),
    );
    fs_err::write(&file, text).expect("write the configuration");
    let file = file.to_str().expect("UTF-8");
    Process::start(agent(["backend", "--config", file]), site.output())
}
