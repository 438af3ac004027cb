//! The collectors, the intake and the push windows of a running agent, and how another
//! configuration becomes theirs: what is as it was goes on undisturbed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use uuid::Uuid;

use super::{
    door::{Door, run_collector},
    health::{HealthCollector, Sources, Started},
    intake::QueueSink,
    windows,
};
use crate::{
    clock,
    collect::{
        disk_usage::{DiskUsageCollector, DiskUsageConfig},
        label,
        pg_log::{PgLogCollector, PgLogConfig},
        pg_stats::{PgStatsCollector, PgStatsConfig},
        schedule::Schedule,
        sysstat::{SysstatCollector, SysstatConfig},
    },
    config::{Collectors, Config, Timing},
    forward::ForwardStatus,
    intake::{Intake, IntakeConfig, IntakeView},
    metric::agent_health,
    queue::{PositionError, Queue},
    shutdown::{self, Shutdown, Trigger},
};

/// How long a collector may take to end; after that it is dropped where it stands.
const COLLECTOR_END_MAX: Duration = Duration::from_millis(800);
/// How often a queue that cannot read its state yet is asked for a position.
const POSITION_RETRY: Duration = Duration::from_secs(1);
/// How long the intake may take: a little more than it gives its requests.
const INTAKE_END_MAX: Duration = Duration::from_secs(4);

/// What runs now.
#[derive(Debug)]
pub(super) struct Stages {
    door: Door,
    health: Sources,
    collectors: BTreeMap<String, Running<Plan>>,
    intake: Option<Running<IntakeConfig>>,
    intake_view: IntakeView,
    push_interval: watch::Sender<Duration>,
    windows: Running<()>,
}

/// A task, and what it was started with.
#[derive(Debug)]
struct Running<C> {
    config: C,
    trigger: Trigger,
    task: JoinHandle<()>,
}

/// A collector as the configuration wants it.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    timing: Timing,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Sysstat(SysstatConfig),
    DiskUsage(DiskUsageConfig),
    PgStats(PgStatsConfig),
    PgLog(PgLogConfig),
    Agent,
}

/// What has to be done to get from what runs to what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Diff {
    /// Runs and is not wanted, or not like this.
    stop: Vec<String>,
    /// Is wanted and does not run, or not like this.
    start: Vec<String>,
}

impl Stages {
    /// Nothing runs but the push windows, which wake the forwarder with `wake`. What it does shows
    /// in `forward`.
    pub(super) fn new(
        door: Door,
        (forward, started): (watch::Receiver<ForwardStatus>, Started),
        wake: Arc<Notify>,
        (push_interval, queue_id): (Duration, Uuid),
    ) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let (push_interval, changes) = watch::channel(push_interval);
        let ends = end_windows(door.queue.clone(), changes, queue_id, wake, shutdown);
        let task = tokio::spawn(ends);
        let (queue, collections) = (door.queue.clone(), door.collections.clone());
        Self {
            door,
            health: Sources { queue, collections, forward, started },
            collectors: BTreeMap::new(),
            intake: None,
            intake_view: IntakeView::default(),
            push_interval,
            windows: Running { config: (), trigger, task },
        }
    }

    /// What the intake has done, whether it runs or not.
    pub(super) fn intake_view(&self) -> IntakeView {
        self.intake_view.clone()
    }

    /// Makes what runs what `config` wants. Collectors that it does not want, or wants otherwise,
    /// end first: within a second, in the middle of a collection if need be.
    pub(super) async fn apply(&mut self, config: &Config) {
        self.push_interval.send_if_modified(|interval| {
            std::mem::replace(interval, config.agent.push_interval) != config.agent.push_interval
        });
        let mut wanted = plans(&config.collectors);
        let running = self.collectors.iter().map(|(name, running)| (&**name, &running.config));
        let diff = diff(&running.collect(), &wanted);
        self.stop_collectors(&diff.stop).await;
        for name in diff.start {
            let Some(plan) = wanted.remove(&name) else { continue };
            let running = self.start_collector(plan);
            self.collectors.insert(name, running);
        }
        self.apply_intake(config.intake.as_ref());
    }

    /// Ends all of it, within the bounds above.
    pub(super) async fn stop(mut self) {
        self.windows.trigger.stop();
        let intake = self.intake.take();
        if let Some(intake) = &intake {
            intake.trigger.stop();
        }
        let names: Vec<_> = self.collectors.keys().cloned().collect();
        self.stop_collectors(&names).await;
        self.windows.end(Instant::now() + COLLECTOR_END_MAX).await;
        if let Some(intake) = intake {
            intake.end(Instant::now() + INTAKE_END_MAX).await;
        }
    }

    async fn stop_collectors(&mut self, names: &[String]) {
        let stopped: Vec<_> =
            names.iter().filter_map(|name| self.collectors.remove(name)).collect();
        for running in &stopped {
            running.trigger.stop();
        }
        let limit = Instant::now() + COLLECTOR_END_MAX;
        for running in stopped {
            running.end(limit).await;
        }
        for name in names {
            self.door.collections.ended(name);
        }
    }

    fn start_collector(&self, plan: Plan) -> Running<Plan> {
        let (trigger, shutdown) = shutdown::channel();
        let (timing, door) = (plan.timing, self.door.clone());
        let task = match plan.kind.clone() {
            Kind::Sysstat(config) => {
                tokio::spawn(run_collector(SysstatCollector::new(config), timing, door, shutdown))
            }
            Kind::DiskUsage(config) => {
                tokio::spawn(run_collector(DiskUsageCollector::new(config), timing, door, shutdown))
            }
            Kind::PgStats(config) => {
                tokio::spawn(run_collector(PgStatsCollector::new(config), timing, door, shutdown))
            }
            Kind::PgLog(config) => tokio::spawn(run_pg_log(config, timing, door, shutdown)),
            Kind::Agent => {
                let collector = HealthCollector(self.health.clone());
                tokio::spawn(run_collector(collector, timing, door, shutdown))
            }
        };
        Running { config: plan, trigger, task }
    }

    fn apply_intake(&mut self, wanted: Option<&IntakeConfig>) {
        if self.intake.as_ref().map(|running| &running.config) == wanted {
            return;
        }
        let earlier = self.intake.take();
        if let Some(earlier) = &earlier {
            earlier.trigger.stop();
        }
        let Some(config) = wanted.cloned() else { return };
        let (trigger, shutdown) = shutdown::channel();
        let sink = QueueSink(self.door.queue.clone());
        let intake = Intake::shown_in(self.intake_view(), config.clone(), sink);
        let task = tokio::spawn(async move {
            // The place may be the same one: requests that have begun there are finished first.
            if let Some(earlier) = earlier {
                earlier.end(Instant::now() + INTAKE_END_MAX).await;
            }
            intake.run(shutdown).await;
        });
        self.intake = Some(Running { config, trigger, task });
    }
}

impl<C> Running<C> {
    /// Waits until the task has ended, and drops it at `limit`.
    async fn end(mut self, limit: Instant) {
        if tokio::time::timeout_at(limit, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// A collector for each plan, by its label.
fn plans(collectors: &Collectors) -> BTreeMap<String, Plan> {
    let Collectors { sysstat, disk_usage, pg_stats, pg_log, agent } = collectors.clone();
    let mut plans = BTreeMap::new();
    let mut add = |label: String, timing, kind| drop(plans.insert(label, Plan { timing, kind }));
    if let Some((timing, config)) = sysstat {
        add("sysstat".to_owned(), timing, Kind::Sysstat(config));
    }
    if let Some((timing, config)) = disk_usage {
        add("disk_usage".to_owned(), timing, Kind::DiskUsage(config));
    }
    for (timing, config) in of_each(pg_stats) {
        add(label("pg_stats", &config.instance), timing, Kind::PgStats(config));
    }
    for (timing, config) in of_each(pg_log) {
        add(label("pg_log", &config.instance), timing, Kind::PgLog(config));
    }
    if let Some(timing) = agent {
        add(agent_health::TYPE.to_owned(), timing, Kind::Agent);
    }
    plans
}

fn of_each<C>(collector: Option<(Timing, Vec<C>)>) -> impl Iterator<Item = (Timing, C)> {
    let of = |(timing, configs): (Timing, Vec<C>)| {
        configs.into_iter().map(move |config| (timing, config))
    };
    collector.into_iter().flat_map(of)
}

fn diff(running: &BTreeMap<&str, &Plan>, wanted: &BTreeMap<String, Plan>) -> Diff {
    let stop = running.iter().filter(|(name, plan)| wanted.get(**name) != Some(**plan));
    let start = wanted.iter().filter(|(name, plan)| running.get(name.as_str()) != Some(plan));
    Diff {
        stop: stop.map(|(name, _)| (*name).to_owned()).collect(),
        start: start.map(|(name, _)| name.clone()).collect(),
    }
}

/// Reads the log on from where it was read last. Asked after an earlier collector has ended: what
/// it appended last counts. A queue that does not know yet is asked again.
async fn run_pg_log(config: PgLogConfig, timing: Timing, door: Door, mut shutdown: Shutdown) {
    let position = loop {
        match door.queue.position(&label("pg_log", &config.instance)).await {
            Ok(position) => break position,
            Err(PositionError::Closed(_)) => return,
            Err(PositionError::NotReady) => {}
        }
        tokio::select! {
            biased;
            () = shutdown.wait() => return,
            () = tokio::time::sleep(POSITION_RETRY) => {}
        }
    };
    let collector = PgLogCollector::new(config, position.as_deref());
    Box::pin(run_collector(collector, timing, door, shutdown)).await;
}

/// Windows from now on: the first tick is now, and a window has a length.
fn windows_from_now(interval: Duration, queue_id: Uuid) -> Schedule {
    let mut schedule = windows::windows(interval, queue_id);
    schedule.next(clock::now());
    schedule
}

/// Seals at the end of each push window and wakes the forwarder.
async fn end_windows(
    queue: Queue,
    mut interval: watch::Receiver<Duration>,
    queue_id: Uuid,
    wake: Arc<Notify>,
    mut shutdown: Shutdown,
) {
    let mut schedule = windows_from_now(*interval.borrow_and_update(), queue_id);
    loop {
        let tick = schedule.next(clock::now());
        tokio::select! {
            () = shutdown.wait() => return,
            Ok(()) = interval.changed() => {
                schedule = windows_from_now(*interval.borrow_and_update(), queue_id);
                continue;
            }
            () = tokio::time::sleep(tick.after) => {}
        }
        if queue.seal().await.is_err() {
            return;
        }
        wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        agent::Collections,
        queue::{Log, LogLimits, MemoryDisk},
    };

    fn config(text: &str) -> Config {
        Config::read(Path::new("agent.toml"), text).unwrap()
    }

    /// C28: what is as it was is neither stopped nor started; what has changed in any setting of
    /// its own, or in one that it inherits, is both.
    #[test]
    fn only_what_has_changed_is_touched() {
        let check = |before: &str, now: &str, stop: &[&str], start: &[&str]| {
            let (before, now) = (plans(&config(before).collectors), plans(&config(now).collectors));
            let running = before.iter().map(|(name, plan)| (name.as_str(), plan)).collect();
            let found = diff(&running, &now);
            let names = |of: &[&str]| of.iter().map(ToString::to_string).collect();
            assert_eq!(found, Diff { stop: names(stop), start: names(start) });
        };
        let all = ["agent", "disk_usage", "pg_log", "pg_stats", "sysstat"];
        check("", "", &[], &[]);
        check("", "[collector]\npush_interval = 5\n[queue]\nbytes_max = \"2GiB\"", &[], &[]);
        check("", "[sysstat]\ninterval = 60\n[pg_log]\ntimeout = 10", &[], &[]);
        check("", "[sysstat]\nenabled = false", &["sysstat"], &[]);
        check("[sysstat]\nenabled = false", "", &[], &["sysstat"]);
        check("", "[sysstat]\ninterval = 5", &["sysstat"], &["sysstat"]);
        check("", "[collector]\ninterval = 5", &all, &all);
        check("", "[postgres]\ndatabases = \"a\"", &["pg_stats"], &["pg_stats"]);
        let both = ["pg_log", "pg_stats"];
        check("", "[postgres]\npassword = \"new\"", &both, &both);
        check("", "[pg_log]\nredact = false", &["pg_log"], &["pg_log"]);
        // A server more, a server less, and another database of one of them.
        let main = "[[postgres]]\n";
        let two = "[[postgres]]\n[[postgres]]\nname = \"two\"\n";
        check(main, two, &[], &["pg_log@two", "pg_stats@two"]);
        check(two, main, &["pg_log@two", "pg_stats@two"], &[]);
        let other = format!("{two}databases = \"a\"\n");
        check(two, &other, &["pg_stats@two"], &["pg_stats@two"]);
        check("", &format!("{two}log = \"off\"\n"), &[], &["pg_stats@two"]);
        check("", &format!("{two}host = \"db.example.com\"\n"), &[], &["pg_stats@two"]);
    }

    const HOST_ONLY: &str =
        "[pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n[agent]\nenabled = false\n";

    fn stages(door: Door) -> Stages {
        let (_, forward) = watch::channel(ForwardStatus::default());
        let shown = (forward, (clock::now(), clock::monotonic()));
        let window = (Duration::from_secs(3_600), Uuid::nil());
        Stages::new(door, shown, Arc::default(), window)
    }

    /// C26, C28: a collector goes on over another configuration that leaves it alone, with no
    /// collection of its own for that; one that is removed ends, one that is added begins at once.
    #[tokio::test]
    async fn a_configuration_is_applied_to_what_runs() {
        let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).unwrap();
        let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
        let collections = Collections::default();
        let door = Door { queue: queue.clone(), collections: collections.clone() };
        let mut stages = stages(door);
        let read = |text: &str| config(&format!("{HOST_ONLY}{text}"));
        // An hour is the interval: every collection here is a first one.
        let hour = "[collector]\ninterval = \"1h\"\n";
        stages.apply(&read(&format!("{hour}[disk_usage]\nenabled = false"))).await;
        let metrics = |name: &str| collections.snapshot().get(name).map_or(0, |it| it.metrics);
        let until = async |what: &str, reached: &dyn Fn() -> bool| {
            let waiting = async {
                while !reached() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
        };
        until("the first", &|| metrics("sysstat") == 1).await;
        stages.apply(&read(hour)).await;
        until("the one that is added", &|| metrics("disk_usage") == 1).await;
        stages.apply(&read(&format!("{hour}[queue]\nage_max = \"1d\""))).await;
        stages.apply(&read(&format!("{hour}[sysstat]\nenabled = false"))).await;
        assert_eq!(stages.collectors.keys().collect::<Vec<_>>(), ["disk_usage"]);
        assert_eq!((metrics("sysstat"), metrics("disk_usage")), (1, 1), "nothing twice");
        stages.apply(&read(hour)).await;
        until("it is back", &|| metrics("sysstat") == 2).await;
        stages.stop().await;
        queue.close().await.unwrap();
        thread.join();
    }

    fn open() -> (Queue, crate::queue::QueueThread, Stages) {
        let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).unwrap();
        let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
        let door = Door { queue: queue.clone(), collections: Collections::default() };
        (queue, thread, stages(door))
    }

    /// C26: a collector that is removed in the middle of a collection, one that may take minutes,
    /// ends at once.
    #[tokio::test]
    async fn a_collection_under_way_does_not_hold_its_end() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let off = "[sysstat]\nenabled = false\n[disk_usage]\nenabled = false\n";
        let server_of = format!("[postgres]\nhost = \"127.0.0.1\"\nport = {port}\n");
        let slow = "connect_timeout = \"1min\"\n[pg_log]\nenabled = false\n[pg_stats]\n\
                    interval = \"1h\"\ntimeout = \"10min\"\n";
        let (queue, thread, mut stages) = open();
        stages.apply(&config(&format!("{off}{server_of}{slow}"))).await;
        let (_silent, _) = server.accept().await.unwrap();
        let limit = Duration::from_secs(10);
        let host_only = config(&format!("{off}{HOST_ONLY}"));
        let applied = stages.apply(&host_only);
        tokio::time::timeout(limit, applied).await.expect("it does not wait for the server");
        assert!(stages.collectors.is_empty());
        stages.stop().await;
        queue.close().await.unwrap();
        thread.join();
    }

    /// C26: `pg_log` with another setting goes on where it was: nothing twice, nothing left out.
    #[tokio::test]
    async fn the_log_is_read_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgresql.log");
        let lines = |messages: &[&str]| -> String {
            let line = |message| format!("2026-01-01 00:00:00.000 UTC [1] LOG:  {message}\n");
            messages.iter().map(line).collect()
        };
        fs_err::write(&path, lines(&["first", "second", "third"])).unwrap();
        let off = "[sysstat]\nenabled = false\n[disk_usage]\nenabled = false\n[pg_stats]\n\
                   enabled = false\n[agent]\nenabled = false\n";
        let log = format!(
            "{off}[pg_log]\npath = {path:?}\nline_prefix = \"%m [%p] \"\ntimezone = \"UTC\"\n\
             start_at = \"beginning\"\ninterval = \"100ms\"\nredact = false\n"
        );
        let (queue, thread, mut stages) = open();
        let mut read = String::new();
        let mut until = async |message: &str| {
            let reading = async {
                while !read.contains(message) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    queue.seal().await.unwrap();
                    while let Some(batch) = queue.next_batch().await.unwrap() {
                        for record in &batch.records {
                            read.push_str(str::from_utf8(&record.payload).unwrap());
                        }
                        let records = batch.records.len() as u64;
                        queue.delivered(batch.key, records, Vec::new()).await.unwrap();
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(30), reading).await.expect("it is read");
        };
        stages.apply(&config(&log)).await;
        until("first").await;
        stages.apply(&config(&format!("{off}[pg_log]\nenabled = false\n"))).await;
        let more = lines(&["first", "second", "third", "fourth", "fifth", "sixth"]);
        fs_err::write(&path, more).unwrap();
        stages.apply(&config(&format!("{log}timeout = 9\n"))).await;
        until("fifth").await;
        for message in ["first", "second", "third", "fourth", "fifth"] {
            assert_eq!(read.matches(message).count(), 1, "{message}: {read}");
        }
        stages.stop().await;
        queue.close().await.unwrap();
        thread.join();
    }
}
