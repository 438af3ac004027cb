//! One database: its tables, its indexes and, when they are due, their sizes.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::choice::{Activity, Catalog, Listed};
use super::objects::Seldom;
use super::rows::{catalog, index, oid, partitioned, size, table};
use super::sizes::{Oid, Plan, Shown, Sizes};
use super::{
    Cluster, CollectError, Document, PgStatsCollector, RELATION_SIZES_MAX, details, empty_document,
    queries,
};
use crate::clock;
use crate::collect::postgres::{Failure, Query, Recovery, Session};
use crate::metric::Status;
use crate::metric::pg_objects::PartitionedTables;
use crate::metric::pg_stats::{Cost, Problem, Relations as Totals};

/// A table, index or database in JSON: fifty numbers, and names whose every byte may be escaped.
const PART_BYTES_MAX: usize = 4_096;

/// What is kept of a database between two visits.
#[derive(Debug, Default)]
pub(super) struct Relations {
    tables: Kept,
    indexes: Kept,
    seldom: Seldom,
    /// Relations that its session has opened.
    opened: usize,
    session_since: Option<Instant>,
}

/// What is kept of the relations of one kind.
#[derive(Debug, Default)]
struct Kept {
    sizes: Sizes,
    activity: Activity,
    /// At the end of the last visit every relation had a size.
    all_measured: bool,
}

/// What a visit found out besides rows.
struct Findings<'a> {
    cost: &'a mut Cost,
    problems: Vec<Problem>,
    /// The first failure after which the connection is of no use.
    lost: Option<Failure>,
}

/// One kind of relations: how to ask for all, for sizes, and for more of those that are shown.
struct Kind {
    all: Query,
    /// That one has a parameter: whether pages of indexes are to be counted.
    has_indexes: bool,
    sizes: Query,
    details: Query,
    max: u32,
}

/// The relations of one kind.
struct List {
    /// Of those that are shown, the largest first.
    rows: Vec<Row>,
    catalog: Catalog,
    /// How large those are that have no size.
    estimates: HashMap<Oid, u64>,
}

/// What is known of a partitioned table by its parts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Whole {
    pub(super) bytes: u64,
    /// The parts that are not measured.
    pub(super) estimated: u64,
}

/// How much a list leaves out.
struct LeftOut {
    count: u64,
    bytes: u64,
    /// Of these, not measured.
    estimated: u64,
}

impl Relations {
    /// Whether the session has opened so many relations.
    pub(super) fn has_opened(&self, count: usize) -> bool {
        self.opened >= count
    }

    pub(super) fn in_new_session(&mut self, now: Instant) {
        (self.opened, self.session_since) = (0, Some(now));
    }
}

impl PgStatsCollector {
    /// One database's document; none for a database that is not there.
    pub(super) async fn visit(
        &mut self,
        now: Timestamp,
        name: &str,
        cluster: &Cluster,
        cost: &mut Cost,
    ) -> Result<Option<Document>, CollectError> {
        let part = format!("database {name}");
        let known = cluster.databases.iter().find(|database| database.summary.name == name);
        let mut document = empty_document(now, name, cluster);
        // Without the list nothing is known; then the visit itself shows whether it is there.
        if !cluster.databases.is_empty() {
            match known {
                None => {
                    self.absent.push(name.to_owned());
                    return Ok(None);
                }
                Some(database) if !database.may_connect => {
                    let grant = format!("GRANT CONNECT ON DATABASE \"{name}\" TO the agent's role");
                    self.notices.failed(&part, &format!("may not connect to it; hint: {grant}"));
                    document.status = Some(Status::Permission);
                    document.problems.push(problem("connect", Status::Permission, Some("42501")));
                    return Ok(Some(document));
                }
                Some(_) => {}
            }
        }
        let mut findings = Findings { cost, problems: Vec::new(), lost: None };
        if let Err(failure) = self.open(name, cluster.recovery, &mut findings).await {
            if failure.sqlstate.as_deref() == Some("3D000") {
                // Dropped since it was listed.
                return Ok(None);
            }
            self.notices.failed(&part, &failure.message);
            document.status = Some(failure.status);
            let sqlstate = failure.sqlstate.as_deref();
            document.problems.push(problem("connect", failure.status, sqlstate));
            return Ok(Some(document));
        }
        self.relations(name, cluster.recovery, &mut document, &mut findings).await;
        let Findings { problems, lost, .. } = findings;
        document.status = Some(problems.first().map_or(Status::Ok, |problem| problem.status));
        document.problems = problems;
        match &lost {
            Some(failure) if name == self.config.connection.database => {
                return Err(self.main_lost(failure));
            }
            Some(failure) => {
                self.visited = None;
                self.notices.failed(&part, &failure.message);
            }
            None => drop(self.notices.recovered(&part)),
        }
        Ok(Some(document))
    }

    /// Makes the session of `name` the open one.
    async fn open(
        &mut self,
        name: &str,
        recovery: Recovery,
        findings: &mut Findings<'_>,
    ) -> Result<(), Failure> {
        let place = &self.config.connection;
        let kept = self.relations.entry(name.to_owned()).or_default();
        if name == place.database {
            return Ok(());
        }
        findings.cost.connects += 1;
        let mut session = Session::open(place, name, &self.config.timeouts).await?;
        session.set_standby(recovery).await?;
        kept.in_new_session(clock::monotonic());
        self.visited = Some((name.to_owned(), session));
        Ok(())
    }

    async fn relations(
        &mut self,
        name: &str,
        recovery: Recovery,
        document: &mut Document,
        findings: &mut Findings<'_>,
    ) {
        let plan = self.plan(RELATION_SIZES_MAX);
        let level = self.level.unwrap_or_default();
        let table_kind = Kind {
            all: queries::TABLES,
            has_indexes: true,
            sizes: queries::TABLE_SIZES,
            details: details::tables(level),
            max: self.config.tables_max,
        };
        let index_kind = Kind {
            all: queries::INDEXES,
            has_indexes: false,
            sizes: queries::INDEX_SIZES,
            details: details::indexes(level),
            max: self.config.indexes_max,
        };
        let Self { main, visited, relations: kept, config, .. } = self;
        let session = match visited {
            Some((open, session)) if open == name => Some(session),
            _ if name == config.connection.database => main.as_mut(),
            _ => None,
        };
        let (Some(session), kept) = (session, kept.entry(name.to_owned()).or_default()) else {
            return;
        };
        let Relations { tables, indexes, seldom, opened, session_since } = kept;
        let since = *session_since;
        let mut lister = Lister { session, recovery, plan, findings, opened, since };
        let mut table_list = lister.list(&table_kind, tables).await;
        let mut index_list = lister.list(&index_kind, indexes).await;
        let table_sizes = Known { sizes: &tables.sizes, recovery, now: plan.now };
        let index_sizes = Known { sizes: &indexes.sizes, ..table_sizes };
        if let Some(list) = &table_list {
            document.partitioned = lister.partitioned(list.wholes(&table_sizes)).await;
        }
        document.sequences = lister.sequences(seldom).await;
        document.functions = lister.functions().await;
        document.extensions = lister.extensions(seldom, level).await;
        let bytes_max = config.list_bytes_max;
        let shown_tables =
            table_list.as_mut().map(|list| list.shown(&table_sizes, bytes_max, table));
        let shown_indexes =
            index_list.as_mut().map(|list| list.shown(&index_sizes, bytes_max, index));
        (document.tables, document.indexes) = (shown_tables, shown_indexes);
        document.relations =
            Some(totals(table_list.as_ref(), &table_sizes, index_list.as_ref(), &index_sizes));
    }
}

/// Sizes as they are to be shown.
#[derive(Clone, Copy)]
struct Known<'a> {
    sizes: &'a Sizes,
    recovery: Recovery,
    now: Instant,
}

impl Known<'_> {
    /// The last known size.
    fn measured(&self, oid: Oid) -> Option<u64> {
        match self.recovery {
            Recovery::Standby => None,
            Recovery::Primary => self.sizes.last(oid).map(|bytes| bytes.total),
        }
    }

    fn bytes(&self, relation: &Listed) -> u64 {
        self.measured(relation.oid).unwrap_or(relation.estimate)
    }

    fn show(&self, oid: Oid) -> Shown {
        match self.recovery {
            Recovery::Standby => Shown { status: Some(Status::Recovery), ..Shown::default() },
            Recovery::Primary => self.sizes.show(oid, self.now),
        }
    }
}

impl List {
    /// The parts of the document that `part` makes, as many as `bytes_max` has room for; the others
    /// are left out.
    fn shown<T: Serialize>(
        &mut self,
        sizes: &Known<'_>,
        bytes_max: usize,
        part: fn(&Row, Shown) -> Option<T>,
    ) -> Vec<T> {
        let shown = |row: &Row| {
            let shown = oid(row).map(|oid| (oid, sizes.show(oid)));
            let (oid, shown) = shown.unwrap_or_default();
            let estimate = self.estimates.get(&oid).copied().filter(|_| shown.bytes.is_none());
            part(row, Shown { estimate, ..shown })
        };
        let mut parts: Vec<T> = self.rows.iter().filter_map(shown).collect();
        parts.truncate(fitting(&parts, bytes_max));
        self.rows.truncate(parts.len());
        parts
    }

    /// The sizes of partitioned tables: those of their parts.
    fn wholes(&self, sizes: &Known<'_>) -> HashMap<Oid, Whole> {
        let mut wholes: HashMap<Oid, Whole> = HashMap::new();
        for part in &self.catalog.listed {
            let Some(root) = part.root else { continue };
            let whole = wholes.entry(root).or_default();
            whole.bytes = whole.bytes.saturating_add(sizes.bytes(part));
            whole.estimated += u64::from(sizes.measured(part.oid).is_none());
        }
        wholes
    }

    fn left_out(&self, sizes: &Known<'_>) -> LeftOut {
        let Catalog { listed, total, total_bytes } = &self.catalog;
        let shown: HashSet<Oid> = self.rows.iter().filter_map(oid).collect();
        let rest = || listed.iter().filter(|it| !shown.contains(&it.oid));
        let is_estimated = |it: &&Listed| sizes.measured(it.oid).is_none();
        let unlisted = total.saturating_sub(listed.len() as u64);
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        let listed_bytes = sum(&mut listed.iter().map(|it| it.estimate));
        let rest_bytes = sum(&mut rest().map(|it| sizes.bytes(it)));
        LeftOut {
            count: unlisted + rest().count() as u64,
            bytes: total_bytes.saturating_sub(listed_bytes).saturating_add(rest_bytes),
            estimated: unlisted + rest().filter(is_estimated).count() as u64,
        }
    }
}

/// How many of the first parts have `bytes_max` bytes of JSON at most.
pub(super) fn fitting<T: Serialize>(parts: &[T], bytes_max: usize) -> usize {
    if parts.len() * PART_BYTES_MAX <= bytes_max {
        return parts.len();
    }
    let mut bytes = 0;
    let fits = |part: &&T| {
        bytes += serde_json::to_vec(part).map_or(0, |json| json.len() + 1);
        bytes <= bytes_max
    };
    parts.iter().take_while(fits).count()
}

fn totals(
    tables: Option<&List>,
    table_sizes: &Known<'_>,
    indexes: Option<&List>,
    index_sizes: &Known<'_>,
) -> Totals {
    let total = |list: &List| list.catalog.total;
    let tables_left_out = tables.map(|list| list.left_out(table_sizes));
    let indexes_left_out = indexes.map(|list| list.left_out(index_sizes));
    Totals {
        tables_total: tables.map(total),
        tables_left_out: tables_left_out.as_ref().map(|it| it.count),
        tables_left_out_bytes: tables_left_out.as_ref().map(|it| it.bytes),
        tables_left_out_estimated: tables_left_out.as_ref().map(|it| it.estimated),
        indexes_total: indexes.map(total),
        indexes_left_out: indexes_left_out.as_ref().map(|it| it.count),
        indexes_left_out_bytes: indexes_left_out.as_ref().map(|it| it.bytes),
        indexes_left_out_estimated: indexes_left_out.as_ref().map(|it| it.estimated),
    }
}

/// Runs the statements of one visit.
pub(super) struct Lister<'a, 'b> {
    session: &'a mut Session,
    pub(super) recovery: Recovery,
    pub(super) plan: Plan,
    findings: &'a mut Findings<'b>,
    opened: &'a mut usize,
    /// When the session began.
    since: Option<Instant>,
}

impl Lister<'_, '_> {
    /// The relations of a kind, after the sizes that are due were measured.
    async fn list(&mut self, kind: &Kind, kept: &mut Kept) -> Option<List> {
        let estimates = !kept.all_measured;
        let rows = if kind.has_indexes {
            self.rows(kind.all, &[&estimates]).await?
        } else {
            self.rows(kind.all, &[]).await?
        };
        let mut catalog = catalog(&rows);
        kept.activity.since_last(&mut catalog.listed);
        let (recovery, now) = (self.recovery, self.plan.now);
        let choose = |catalog: &Catalog, sizes: &Sizes| {
            let known = Known { sizes, recovery, now };
            catalog.choose(kind.max as usize, |relation| known.bytes(relation))
        };
        // On a standby a size would wait for locks that replay holds, and replay for it.
        if self.recovery == Recovery::Primary {
            let likely = choose(&catalog, &kept.sizes);
            self.measure(kind.sizes, &likely, &catalog, &mut kept.sizes).await;
        }
        let is_measured = |it: &Listed| kept.sizes.last(it.oid).is_some();
        kept.all_measured = recovery == Recovery::Primary
            && catalog.listed.len() as u64 == catalog.total
            && catalog.listed.iter().all(is_measured);
        let chosen = choose(&catalog, &kept.sizes);
        let places: HashMap<Oid, usize> = chosen.iter().copied().zip(0..).collect();
        let mut rows = match chosen.as_slice() {
            [] => Vec::new(),
            chosen => {
                let query = Query { rows_max: kind.max, ..kind.details };
                self.rows(query, &[&chosen]).await?
            }
        };
        rows.sort_by_key(|row| oid(row).and_then(|oid| places.get(&oid).copied()));
        let is_chosen = |it: &&Listed| places.contains_key(&it.oid);
        let estimates = catalog.listed.iter().filter(is_chosen).map(|it| (it.oid, it.estimate));
        Some(List { rows, estimates: estimates.collect(), catalog })
    }

    /// The partitioned tables, the largest of `wholes` before others.
    async fn partitioned(&mut self, wholes: HashMap<Oid, Whole>) -> Option<PartitionedTables> {
        let mut largest: Vec<Oid> = wholes.keys().copied().collect();
        let size = |oid: &Oid| wholes.get(oid).map_or(0, |whole| whole.bytes);
        largest.sort_by_key(|oid| (std::cmp::Reverse(size(oid)), *oid));
        largest.truncate(details::PARTITIONED.rows_max as usize);
        let rows = self.rows(details::PARTITIONED, &[&largest]).await?;
        Some(partitioned(&rows, &wholes))
    }

    /// Measures what is due; `shown` before others.
    async fn measure(&mut self, query: Query, shown: &[Oid], catalog: &Catalog, sizes: &mut Sizes) {
        let all: Vec<Oid> = catalog.listed.iter().map(|it| it.oid).collect();
        let due = sizes.due(shown, &all, &self.plan);
        if due.is_empty() || self.findings.lost.is_some() {
            return;
        }
        *self.opened += sizes.not_asked_since(&due, self.since);
        match self.session.rows(query, &[&due], self.findings.cost).await {
            Ok(answers) => {
                let answers: HashMap<_, _> = answers.iter().filter_map(size).collect();
                // A relation that gave no answer was dropped meanwhile.
                sizes.answered(&due, &answers, Status::Error, self.plan.now);
            }
            Err(failure) => {
                sizes.failed(&due, failure.status, self.plan.now);
                self.findings.note(query, failure);
            }
        }
    }

    /// The rows of a statement; absent when it failed, which is noted.
    pub(super) async fn rows(
        &mut self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Option<Vec<Row>> {
        if self.findings.lost.is_some() {
            return None;
        }
        match self.session.rows(query, parameters, self.findings.cost).await {
            Ok(rows) => Some(rows),
            Err(failure) => {
                self.findings.note(query, failure);
                None
            }
        }
    }
}

impl Findings<'_> {
    fn note(&mut self, query: Query, failure: Failure) {
        self.problems.push(failed(query, &failure));
        if failure.lost {
            self.lost = Some(failure);
        }
    }
}

/// A statement's failure as the document has it.
pub(super) fn failed(query: Query, failure: &Failure) -> Problem {
    problem(query.name, failure.status, failure.sqlstate.as_deref())
}

fn problem(query: &str, status: Status, sqlstate: Option<&str>) -> Problem {
    Problem { query: query.to_owned(), status, sqlstate: sqlstate.map(ToOwned::to_owned) }
}
