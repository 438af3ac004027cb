//! PostgreSQL 10 to 18: the cluster and each configured database.
//!
//! One connection to the maintenance database is kept; at most one more is open, for the database
//! being visited, and ends with the visit: a database that somebody is connected to can be neither
//! dropped nor renamed nor copied. Counters are read at every collection, sizes every few minutes.
//! A statement that fails leaves its numbers out, says why in `status` and `problems`, and stops
//! nothing else.

mod backoff;
mod choice;
mod databases;
mod details;
mod level;
mod objects;
mod queries;
mod rows;
mod server;
mod sizes;
mod visit;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::postgres::{Failure, PgConnection, Query, Recovery, Session, Timeouts};
use super::{CollectError, Collected, Collector, Notices, document};
use crate::clock;
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_objects::SharedObjects;
use crate::metric::pg_stats::{
    Cost, DatabaseSummary, MAIN_INSTANCE, PgStats as Document, Problem, Server,
};
use crate::metric::{Status, Time};
use backoff::Backoff;
use databases::{Turns, Wanted};
use level::Level;
use rows::Database;
use sizes::{Plan, Sizes};
use visit::Relations;

/// The databases whose sizes one collection measures; the others wait for the next.
const DATABASE_SIZES_MAX: u32 = 50;
/// The tables, and the indexes, whose sizes one collection measures: 3,000 in ten minutes at one
/// collection a minute. A session that opens a table for the first time takes 0.2 ms for it.
const RELATION_SIZES_MAX: u32 = 300;
/// How often the name of a server that is connected to is looked up. Well below the five minutes
/// for which a connection may outlive the answer that led to it.
const FOLLOW: Duration = Duration::from_secs(60);
/// How long a locked relation, or one of a failed statement, is left alone.
const SIZE_RETRY: Duration = Duration::from_secs(60);

/// What to collect.
#[derive(Debug, Clone, PartialEq)]
pub struct PgStatsConfig {
    /// The server's name in the configuration.
    pub instance: String,
    /// The server and the maintenance database.
    pub connection: PgConnection,
    /// The databases to visit: names, patterns such as `app_*`, and exclusions such as `!app_old`;
    /// empty: the maintenance database alone.
    pub databases: Vec<String>,
    /// Of the databases that patterns find, so many are visited in one collection; the others have
    /// their turn in the next ones.
    pub visits_max: u32,
    /// After this no further one of them is visited, so that a collection with slow visits comes to
    /// its end; one is visited in any case.
    pub visits_time: Duration,
    /// The limits of every statement.
    pub timeouts: Timeouts,
    /// The largest tables of a database that are listed.
    pub tables_max: u32,
    /// The largest indexes of a database that are listed.
    pub indexes_max: u32,
    /// How long a size is shown before it is measured again.
    pub sizes_every: Duration,
    /// The statements of `pg_stat_statements` that are listed; 0: it is not read.
    pub statements_max: u32,
    /// Once a day their texts, without constants.
    pub statements_text: bool,
    /// A session of the server keeps some KiB in memory of each relation that it has opened, until
    /// it ends. After so many it is replaced.
    pub opened_max: usize,
    /// The JSON of a database's tables, of its indexes, and of the list of databases. By default a
    /// backend takes documents of 4 MiB.
    pub list_bytes_max: usize,
}

/// The collector `pg_stats`.
pub struct PgStatsCollector {
    config: PgStatsConfig,
    main: Option<Session>,
    /// The database being visited, if it is not the maintenance database.
    visited: Option<(String, Session)>,
    turns: Turns,
    backoff: Backoff,
    /// When the server's name was looked up last.
    followed: Option<Instant>,
    /// The statistics views of the server that is connected to.
    views: Option<server::Views>,
    settings: server::KnownSettings,
    statements: server::StatementsSeen,
    /// The functions that it has.
    level: Option<Level>,
    database_sizes: Sizes,
    relations: HashMap<String, Relations>,
    /// Configured databases that this collection has not found.
    absent: Vec<String>,
    notices: Notices,
}

impl Default for PgStatsConfig {
    fn default() -> Self {
        Self {
            instance: MAIN_INSTANCE.to_owned(),
            connection: PgConnection::default(),
            databases: Vec::new(),
            visits_max: 50,
            visits_time: Duration::from_secs(5),
            timeouts: Timeouts::default(),
            tables_max: 200,
            indexes_max: 200,
            sizes_every: Duration::from_secs(600),
            statements_max: 50,
            statements_text: false,
            opened_max: 10_000,
            list_bytes_max: 3 << 19,
        }
    }
}

/// What the maintenance connection gave.
struct Cluster {
    instance: String,
    server: Option<Server>,
    databases: Vec<Database>,
    shared_objects: Option<SharedObjects>,
    recovery: Recovery,
    problems: Vec<Problem>,
}

/// The databases of one collection.
struct Chosen {
    named: Vec<String>,
    /// Those whose turn it is.
    found: Vec<String>,
}

impl PgStatsCollector {
    /// A collector that has not connected yet.
    pub fn new(config: PgStatsConfig) -> Self {
        let notices = Notices::of(&config.instance);
        Self {
            config,
            main: None,
            visited: None,
            turns: Turns::default(),
            backoff: Backoff::default(),
            followed: None,
            views: None,
            settings: server::KnownSettings::default(),
            statements: server::StatementsSeen::default(),
            level: None,
            database_sizes: Sizes::default(),
            relations: HashMap::new(),
            absent: Vec::new(),
            notices,
        }
    }

    /// The databases that this collection visits, and forgets what is known of those that are not
    /// to be visited any more.
    fn choose(&mut self, cluster: &Cluster) -> Chosen {
        let wanted = Wanted::read(&self.config.databases, &self.config.connection.database);
        let listed = cluster.databases.iter().filter(|database| database.may_connect);
        let found = wanted.found(listed.map(|database| database.summary.name.as_str()));
        let next = self.turns.next(&found, self.config.visits_max as usize);
        // Without the list nothing is known of what is there.
        if !cluster.databases.is_empty() {
            let is_wanted = |name: &str| {
                found.contains(&name) || wanted.names.iter().any(|named| named == name)
            };
            let is_there =
                |name: &str| cluster.databases.iter().any(|database| database.summary.name == name);
            self.relations.retain(|name, _| is_wanted(name));
            self.turns.keep(is_wanted);
            self.notices.keep(|part| {
                let name = part.strip_prefix("database ");
                name.is_none_or(|name| is_wanted(name) && is_there(name))
            });
        }
        Chosen { named: wanted.names, found: next }
    }

    /// Whether there is time for one more database, after `visited` that patterns have found.
    fn has_time(&self, visited: usize, begun: Instant) -> bool {
        let elapsed = clock::monotonic().saturating_duration_since(begun);
        visited == 0 || elapsed < self.config.visits_time
    }

    /// Ends what a collection that was given up has left behind.
    async fn end_unfinished(&mut self) {
        if let Some(stale) = self.main.take_if(|session| session.is_busy()) {
            stale.cancel().await;
        }
        if let Some((_, stale)) = self.visited.take() {
            if stale.is_busy() {
                stale.cancel().await;
            }
            drop(stale);
        }
    }

    /// Ends the kept connection when the server's name has come to mean another place. It is looked
    /// up at most once a minute; without an answer the connection stays.
    async fn follow_name(&mut self) {
        let now = clock::monotonic();
        let is_due = self.followed.is_none_or(|at| now.saturating_duration_since(at) >= FOLLOW);
        let Some(main) = self.main.as_ref().filter(|_| is_due) else { return };
        self.followed = Some(now);
        if main.is_elsewhere(&self.config.connection).await {
            let place = self.config.connection.place();
            tracing::info!(%place, "the name means another address now: connecting again");
            self.main = None;
        }
    }

    /// Ends the session of a visit.
    async fn leave(&mut self) {
        if let Some((_, session)) = self.visited.take() {
            session.close().await;
        }
    }

    /// Opens the kept connection unless it is open.
    async fn connect(&mut self, cost: &mut Cost) -> Result<(), CollectError> {
        self.end_unfinished().await;
        self.follow_name().await;
        let place = &self.config.connection;
        let kept = self.relations.get(&place.database);
        if kept.is_some_and(|kept| kept.has_opened(self.config.opened_max)) {
            self.main = None;
        }
        if self.main.is_some() {
            return Ok(());
        }
        if let Some(message) = self.backoff.waits(clock::monotonic()) {
            return Err(CollectError::new(message));
        }
        cost.connects += 1;
        match Session::open(place, &place.database, &self.config.timeouts).await {
            Ok(session) => {
                self.main = Some(session);
                if let Some(kept) = self.relations.get_mut(&place.database) {
                    kept.in_new_session(clock::monotonic());
                }
                self.views = None;
                self.level = None;
                self.backoff.reset();
                Ok(())
            }
            Err(failure) => {
                let message = failure.to_connect(place);
                self.backoff.failed(message.clone(), clock::monotonic());
                Err(CollectError::new(message))
            }
        }
    }

    async fn cluster(&mut self, cost: &mut Cost) -> Result<Cluster, CollectError> {
        let mut problems = Vec::new();
        let server = self.ask_main(queries::SERVER, &[], cost, &mut problems).await?;
        let server = server.as_deref().and_then(<[Row]>::first).and_then(Server::read);
        let recovery = match server.as_ref().and_then(|server| server.in_recovery) {
            Some(true) => Recovery::Standby,
            _ => Recovery::Primary,
        };
        if let Some(session) = &mut self.main
            && let Err(failure) = session.set_standby(recovery).await
        {
            return Err(self.main_lost(&failure));
        }
        if self.level.is_none() {
            let names = Level::functions();
            let rows = self.ask_main(level::FUNCTIONS, &[&names], cost, &mut problems).await?;
            self.level = rows
                .map(|rows| Level::of(&rows.iter().filter_map(|row| row.text("name")).collect()));
        }
        let level = self.level.unwrap_or_default();
        let rows = self.ask_main(details::databases(level), &[], cost, &mut problems).await?;
        let mut databases: Vec<Database> =
            rows.unwrap_or_default().iter().filter_map(rows::database).collect();
        self.size_databases(&mut databases, recovery, cost, &mut problems).await?;
        let shared_objects = if level >= Level::V12 {
            self.ask_main(details::SHARED_OBJECTS, &[], cost, &mut problems).await?
        } else {
            None
        };
        let shared_objects = shared_objects.as_deref().and_then(<[Row]>::first);
        let shared_objects = shared_objects.and_then(SharedObjects::read);
        let instance = self.config.instance.clone();
        Ok(Cluster { instance, server, databases, shared_objects, recovery, problems })
    }

    async fn size_databases(
        &mut self,
        databases: &mut [Database],
        recovery: Recovery,
        cost: &mut Cost,
        problems: &mut Vec<Problem>,
    ) -> Result<(), CollectError> {
        if recovery == Recovery::Standby {
            return Ok(());
        }
        let plan = self.plan(DATABASE_SIZES_MAX);
        let oids: Vec<_> = databases.iter().map(|database| database.oid).collect();
        let due = self.database_sizes.due(&oids, &oids, &plan);
        if !due.is_empty() {
            let rows = self.ask_main(queries::DATABASE_SIZES, &[&due], cost, problems).await?;
            match rows {
                Some(rows) => {
                    let answers = rows.iter().filter_map(rows::size).collect();
                    self.database_sizes.answered(&due, &answers, Status::Permission, plan.now);
                }
                None => self.database_sizes.failed(&due, Status::Error, plan.now),
            }
        }
        for database in databases {
            let shown = self.database_sizes.show(database.oid, plan.now);
            database.summary.stats.size_bytes = shown.bytes.map(|bytes| bytes.total);
            database.summary.stats.size_age_s = shown.age_s;
        }
        Ok(())
    }

    fn plan(&self, limit: u32) -> Plan {
        let (every, limit) = (self.config.sizes_every, limit as usize);
        Plan { now: clock::monotonic(), every, retry: SIZE_RETRY.min(every), limit }
    }

    /// Runs a statement on the kept connection. `None`: it failed, which is noted.
    async fn ask_main(
        &mut self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
        cost: &mut Cost,
        problems: &mut Vec<Problem>,
    ) -> Result<Option<Vec<Row>>, CollectError> {
        let Some(session) = &mut self.main else {
            return Err(CollectError::new("not connected to PostgreSQL"));
        };
        let result = session.rows(query, parameters, cost).await;
        let part = format!("statement {}", query.name);
        match result {
            Ok(rows) => {
                self.notices.recovered(&part);
                Ok(Some(rows))
            }
            Err(failure) if failure.lost => Err(self.main_lost(&failure)),
            Err(failure) => {
                self.notices.failed(&part, &failure.message);
                problems.push(visit::failed(query, &failure));
                Ok(None)
            }
        }
    }

    /// One line for all of them: the backend may have named a thousand.
    fn tell_absent(&mut self) {
        let part = "postgres.databases";
        let Some(first) = self.absent.first() else {
            self.notices.recovered(part);
            return;
        };
        let more = match self.absent.len() {
            1 => String::new(),
            count => format!(", nor {} others that are named", count - 1),
        };
        let message = format!("no database {first:?}{more}; hint: are the names right?");
        self.notices.failed(part, &message);
    }

    /// The kept connection is of no use any more. The next collection may connect at once: the
    /// server has answered until now.
    fn main_lost(&mut self, failure: &Failure) -> CollectError {
        self.main = None;
        self.visited = None;
        let (place, message) = (self.config.connection.place(), &failure.message);
        let again = "the next collection connects again";
        let hint = failure.refusal.map_or(again, |refusal| refusal.hint());
        CollectError::new(format!(
            "lost the connection to PostgreSQL at {place}: {message}; hint: {hint}"
        ))
    }
}

impl Collector for PgStatsCollector {
    fn name(&self) -> &'static str {
        "pg_stats"
    }

    fn instance(&self) -> &str {
        &self.config.instance
    }

    async fn collect(&mut self, now: Timestamp) -> Result<Collected, CollectError> {
        let mut cost = Cost::default();
        let kept = self.main.is_some();
        self.connect(&mut cost).await?;
        let cluster = match self.cluster(&mut cost).await {
            // A server that was restarted has closed the kept connection meanwhile.
            Err(_) if kept && self.main.is_none() => {
                self.connect(&mut cost).await?;
                self.cluster(&mut cost).await?
            }
            cluster => cluster?,
        };
        let maintenance = self.config.connection.database.clone();
        let begun = clock::monotonic();
        let Chosen { named, found } = self.choose(&cluster);
        let mut documents = Vec::with_capacity(named.len() + found.len() + 1);
        self.absent.clear();
        for (n, name) in named.iter().chain(&found).enumerate() {
            if n >= named.len() && !self.has_time(n - named.len(), begun) {
                break;
            }
            self.turns.visited(name, begun);
            let visited = Box::pin(self.visit(now, name, &cluster, &mut cost)).await;
            self.leave().await;
            documents.extend(visited?);
        }
        self.tell_absent();
        let at = documents.iter().position(|document| document.database == maintenance);
        let at = at.unwrap_or_else(|| {
            documents.insert(0, empty_document(now, &maintenance, &cluster));
            0
        });
        if let Some(document) = documents.get_mut(at) {
            let mut problems = cluster.problems;
            // Its many statements make a large future.
            let adding = self.add_server(document, cluster.recovery, &mut cost, &mut problems);
            let added = Box::pin(adding).await;
            self.leave().await;
            added?;
            document.problems.splice(0..0, problems);
            document.status = Some(document.problems.first().map_or(Status::Ok, |p| p.status));
            let databases = cluster.databases.into_iter().map(|database| {
                let age = self.turns.age(&database.summary.name, begun);
                let visit_age_s = age.map(|age| age.as_secs());
                DatabaseSummary { visit_age_s, ..database.summary }
            });
            let databases = Some(databases.collect::<Vec<_>>()).filter(|d| !d.is_empty());
            if let Some(mut databases) = databases {
                let left_out = cut(&mut databases, self.config.list_bytes_max);
                document.databases = Some(databases);
                document.databases_left_out = Some(left_out);
            }
            document.shared_objects = cluster.shared_objects;
            document.server = cluster.server;
            cost.elapsed_ms = super::round2(cost.elapsed_ms);
            document.cost = Some(cost);
        }
        let metrics = documents.iter().map(document).collect::<Result<_, _>>()?;
        Ok(Collected { metrics, state: None })
    }

    fn committed(&mut self) {
        self.settings.commit();
        self.statements.commit();
    }

    fn notices(&self) -> Vec<String> {
        self.notices.told()
    }

    async fn given_up(&mut self) {
        self.end_unfinished().await;
    }
}

/// Leaves the smallest databases out where their list has more than `bytes_max` bytes of JSON, and
/// says how many.
fn cut(databases: &mut Vec<DatabaseSummary>, bytes_max: usize) -> u64 {
    let total = databases.len();
    if visit::fitting(databases, bytes_max) < total {
        databases.sort_by_key(|database| std::cmp::Reverse(database.stats.size_bytes));
        databases.truncate(visit::fitting(databases, bytes_max));
        databases.sort_by(|a, b| a.name.cmp(&b.name));
    }
    (total - databases.len()) as u64
}

/// A database with its own counters and nothing else.
fn empty_document(now: Timestamp, name: &str, cluster: &Cluster) -> Document {
    let known = cluster.databases.iter().find(|database| database.summary.name == name);
    Document {
        timestamp: Time(now),
        instance: Some(cluster.instance.clone()),
        database: name.to_owned(),
        status: Some(Status::Ok),
        own: known.map(|database| database.summary.stats.clone()).unwrap_or_default(),
        ..Document::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::pg_stats::DatabaseStats;

    #[test]
    fn the_smallest_databases_are_left_out_of_a_list_that_is_too_large() {
        let database = |number: u64| DatabaseSummary {
            name: format!("database {number}"),
            stats: DatabaseStats { size_bytes: Some(number), ..DatabaseStats::default() },
            ..DatabaseSummary::default()
        };
        let all: Vec<_> = [3, 1, 4, 2].map(database).into();
        let one = serde_json::to_vec(&all[0]).unwrap().len() + 1;
        let check = |bytes_max: usize, expected: &[u64]| {
            let mut databases = all.clone();
            let left_out = cut(&mut databases, bytes_max);
            let left: Vec<_> = databases.iter().filter_map(|it| it.stats.size_bytes).collect();
            assert_eq!((left.as_slice(), left_out), (expected, 4 - expected.len() as u64));
        };
        check(1 << 20, &[3, 1, 4, 2]);
        check(4 * one, &[3, 1, 4, 2]);
        check(3 * one, &[2, 3, 4]);
        check(one - 1, &[]);
    }
}
