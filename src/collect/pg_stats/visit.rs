//! One database: its tables, its indexes and, when they are due, their sizes.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::Row;

use super::rows::{index, oid, relations, size, table};
use super::sizes::{Oid, Plan, Shown, Sizes};
use super::{
    Cluster, CollectError, Document, PgStatsCollector, RELATION_SIZES_MAX, empty_document, queries,
};
use crate::collect::postgres::{Failure, Query, Recovery, Session};
use crate::metric::Status;
use crate::metric::pg_stats::{Cost, Problem};

/// What is kept of a database between two visits.
#[derive(Debug, Default)]
pub(super) struct Relations {
    tables: Sizes,
    indexes: Sizes,
}

/// What a visit found out besides rows.
struct Findings<'a> {
    cost: &'a mut Cost,
    problems: Vec<Problem>,
    /// The first failure after which the connection is of no use.
    lost: Option<Failure>,
}

/// One list of relations: how to ask for its rows and for its sizes.
struct List {
    rows: Query,
    sizes: Query,
    max: u32,
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
        if name == place.database || self.visited.as_ref().is_some_and(|(open, _)| open == name) {
            return Ok(());
        }
        // Closed first: there are never more than two connections.
        self.visited = None;
        findings.cost.connects += 1;
        let mut session = Session::open(place, name, &self.config.timeouts).await?;
        session.set_standby(recovery).await?;
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
        let tables = List {
            rows: queries::TABLES,
            sizes: queries::TABLE_SIZES,
            max: self.config.tables_max,
        };
        let indexes = List {
            rows: queries::INDEXES,
            sizes: queries::INDEX_SIZES,
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
        let mut lister = Lister { session, recovery, plan, findings };
        let table_rows = lister.list(&tables, &mut kept.tables).await;
        let index_rows = lister.list(&indexes, &mut kept.indexes).await;
        let show = |sizes: &Sizes, row: &Row| match recovery {
            Recovery::Standby => Shown { status: Some(Status::Recovery), ..Shown::default() },
            Recovery::Primary => oid(row).map(|oid| sizes.show(oid, plan.now)).unwrap_or_default(),
        };
        document.relations = Some(relations(table_rows.as_deref(), index_rows.as_deref()));
        document.tables = table_rows.map(|rows| {
            rows.iter().filter_map(|row| table(row, show(&kept.tables, row))).collect()
        });
        document.indexes = index_rows.map(|rows| {
            rows.iter().filter_map(|row| index(row, show(&kept.indexes, row))).collect()
        });
    }
}

/// Runs the statements of one visit.
struct Lister<'a, 'b> {
    session: &'a mut Session,
    recovery: Recovery,
    plan: Plan,
    findings: &'a mut Findings<'b>,
}

impl Lister<'_, '_> {
    /// The rows of a list, after its due sizes were measured.
    async fn list(&mut self, list: &List, sizes: &mut Sizes) -> Option<Vec<Row>> {
        if self.findings.lost.is_some() {
            return None;
        }
        let limit = i64::from(list.max);
        let query = Query { rows_max: list.max, ..list.rows };
        let rows = match self.session.rows(query, &[&limit], self.findings.cost).await {
            Ok(rows) => rows,
            Err(failure) => {
                self.findings.note(list.rows, failure);
                return None;
            }
        };
        let oids: Vec<Oid> = rows.iter().filter_map(oid).collect();
        let due = sizes.due(&oids, &self.plan);
        // On a standby a size would wait for locks that replay holds, and replay for it.
        if due.is_empty() || self.recovery == Recovery::Standby {
            return Some(rows);
        }
        match self.session.rows(list.sizes, &[&due], self.findings.cost).await {
            Ok(answers) => {
                let answers: HashMap<_, _> = answers.iter().filter_map(size).collect();
                // A relation that gave no answer was dropped meanwhile.
                sizes.answered(&due, &answers, Status::Error, self.plan.now);
            }
            Err(failure) => {
                sizes.failed(&due, failure.status, self.plan.now);
                self.findings.note(list.sizes, failure);
            }
        }
        Some(rows)
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
