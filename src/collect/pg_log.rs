//! The PostgreSQL log in the stderr format, as entries.
//!
//! The positions in its files are handed over with the entries ([`Collected::state`]) and move
//! only when the queue has them ([`Collector::committed`]): a crash in between repeats a collection
//! and loses nothing. No text of a message leaves the host unless redaction is off.
//!
//! A log may lie on a mount whose server is dead, where any call hangs. So everything that touches
//! its files is done on a thread of its own, one at a time, and waited for with a deadline.

mod entry;
mod follow;
mod forms;
mod pass;
mod positions;
mod prefix;
mod redact;
mod settings;
mod time;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::blocking::{self, Blocking, Unfinished};
use super::postgres::PgConnection;
use super::{CollectError, Collected, Collector, Notices};
use crate::clock;
use crate::metric::pg_stats::MAIN_INSTANCE;
use entry::Reading;
use follow::{Place, Position};
use pass::{Pass, Read};
use positions::Positions;
use prefix::Prefix;
use settings::Asked;

/// How long the server's answers about its log are used before it is asked again.
const SETTINGS_AGE_MAX: Duration = Duration::from_secs(600);
/// How soon after a failure it is asked again.
const SETTINGS_RETRY: Duration = Duration::from_secs(60);
/// What the system calls the threads that touch the log's files.
const THREAD_NAME: &str = "pg_log";

/// Whether text that may hold data is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Redaction {
    /// Of a message leaves its form, when that is known, or its class and length; of what comes
    /// with it, nothing.
    #[default]
    On,
    /// Everything is sent as the server wrote it.
    Off,
}

/// Where a log without a stored position is begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartAt {
    /// With what is written from now on.
    #[default]
    End,
    /// With the first line of the file that is written to now.
    Beginning,
}

/// What to read.
#[derive(Debug, Clone, PartialEq)]
pub struct PgLogConfig {
    /// The server's name in the configuration.
    pub instance: String,
    /// The server that is asked for what is not given here; its database names the metrics.
    pub connection: PgConnection,
    /// The log file, or the directory of the log files; absent: the server says.
    pub path: Option<PathBuf>,
    /// `log_line_prefix`; absent: the server says, and `%m [%p] ` until it has.
    pub prefix: Option<String>,
    /// `log_timezone`, an IANA name; absent: the server says.
    pub timezone: Option<String>,
    /// Whether text that may hold data is left out.
    pub redaction: Redaction,
    /// Where a log without a stored position is begun.
    pub start_at: StartAt,
    /// The most that one collection reads; the rest is for the next.
    pub read_bytes_max: u64,
    /// The size of a metric's JSON at which further entries go into another.
    pub metric_bytes_max: usize,
    /// How long the work on the files may take. What comes of it later is for the next collection.
    pub files_timeout: Duration,
}

/// The collector `pg_log`.
#[derive(Debug)]
pub struct PgLogCollector {
    config: PgLogConfig,
    /// What the server said, also before a restart.
    known: Option<Server>,
    asked: Option<Instant>,
    /// Why the last question to the server was not answered in full.
    unanswered: Option<String>,
    passes: Blocking<Result<Read, CollectError>>,
    committed: Arc<Followed>,
    pending: Option<Followed>,
    more: bool,
    notices: Notices,
}

/// How far the log has been read, with its newest files open: they may be renamed or removed.
#[derive(Debug, Default)]
struct Followed {
    positions: Option<Positions>,
    open: OpenFiles,
}

/// Files that are closed on a thread of their own: on a dead mount that hangs, too.
#[derive(Debug, Default)]
struct OpenFiles(Vec<fs_err::File>);

/// Where the log is, before anybody has looked.
#[derive(Debug)]
enum Whereabouts {
    /// A file or a directory.
    Path(PathBuf),
    Place(Place),
}

/// The part of the server's answers that outlives a restart while the server is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Server {
    prefix: String,
    timezone: String,
    place: Option<Place>,
}

/// [`Collected::state`], as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    positions: Option<Positions>,
    /// What earlier versions kept: the position of one file.
    #[serde(default, skip_serializing)]
    position: Option<Position>,
    server: Option<Server>,
}

impl Default for PgLogConfig {
    fn default() -> Self {
        Self {
            instance: MAIN_INSTANCE.to_owned(),
            connection: PgConnection::default(),
            path: None,
            prefix: None,
            timezone: None,
            redaction: Redaction::On,
            start_at: StartAt::End,
            read_bytes_max: 8 << 20,
            metric_bytes_max: 256 << 10,
            files_timeout: Duration::from_secs(5),
        }
    }
}

impl Whereabouts {
    /// Looks, which may hang.
    fn place(self) -> Place {
        match self {
            Self::Path(path) => Place::at(path),
            Self::Place(place) => place,
        }
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        let files = std::mem::take(&mut self.0);
        if !files.is_empty() {
            blocking::thread(THREAD_NAME, || drop(files)).ok();
        }
    }
}

impl PgLogCollector {
    /// A collector that goes on at `state`, the last [`Collected::state`] that was stored. A state
    /// that cannot be read is logged and counts as none.
    pub fn new(config: PgLogConfig, state: Option<&[u8]>) -> Self {
        let state = state.and_then(|bytes| match serde_json::from_slice::<State>(bytes) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::error!("the stored position of the log is unreadable: {error}");
                None
            }
        });
        let (positions, known) = match state {
            Some(State { positions, position, server }) => {
                (positions.or_else(|| position.map(Positions::of_one)), server)
            }
            None => (None, None),
        };
        let notices = Notices::of(&config.instance);
        Self {
            config,
            known,
            asked: None,
            unanswered: None,
            passes: Blocking::new(THREAD_NAME),
            committed: Arc::new(Followed { positions, open: OpenFiles::default() }),
            pending: None,
            more: false,
            notices,
        }
    }

    /// Asks the server when the configuration leaves something open and the last answer is old.
    async fn ask(&mut self) {
        let config = &self.config;
        if config.path.is_some() && config.prefix.is_some() && config.timezone.is_some() {
            return;
        }
        let age = self.asked.map(|at| clock::monotonic().saturating_duration_since(at));
        let wait = if self.unanswered.is_none() { SETTINGS_AGE_MAX } else { SETTINGS_RETRY };
        if age.is_some_and(|age| age < wait) {
            return;
        }
        let asked = settings::ask(&config.connection).await;
        self.asked = Some(clock::monotonic());
        self.unanswered = match asked {
            Ok(Asked { prefix, timezone, place }) => {
                let reason = place.as_ref().err().cloned();
                self.known = Some(Server { prefix, timezone, place: place.ok() });
                reason.filter(|_| config.path.is_none())
            }
            Err(message) => Some(message),
        };
    }

    /// Where the log is, when that is configured or the server has said it.
    pub fn place(&self) -> Option<String> {
        self.whereabouts().map(|whereabouts| match whereabouts {
            Whereabouts::Path(path) => path.display().to_string(),
            Whereabouts::Place(place) => place.path().display().to_string(),
        })
    }

    fn whereabouts(&self) -> Option<Whereabouts> {
        let known = self.known.as_ref().and_then(|server| server.place.clone());
        let named = self.config.path.clone().map(Whereabouts::Path);
        named.or(known.map(Whereabouts::Place))
    }

    /// Reads the files on, or gives what has come of reading them since an earlier collection.
    async fn read(
        &mut self,
        now: Timestamp,
        whereabouts: Whereabouts,
        reading: Reading,
    ) -> Result<Read, CollectError> {
        let (config, committed) = (self.config.clone(), Arc::clone(&self.committed));
        let pass = move || {
            let place = whereabouts.place();
            Pass::new(now, &config, &place, &reading).run(&committed)
        };
        let done = self.passes.run(self.config.files_timeout, pass).await;
        done.unwrap_or_else(|unfinished| {
            Err(CollectError::new(match unfinished {
                Unfinished::Hangs => "reading the files of the log has not come to an end; \
                     hint: does the file system answer on which they are?"
                    .to_owned(),
                Unfinished::Failed(error) => format!("cannot read the log: {error}"),
            }))
        })
    }

    fn reading(&mut self) -> Result<Reading, CollectError> {
        let known = self.known.as_ref();
        let text = self.config.prefix.as_deref().or(known.map(|server| server.prefix.as_str()));
        let text = text.unwrap_or("%m [%p] ");
        let prefix = Prefix::compile(text).map_err(CollectError::new)?;
        if !prefix.has_time() {
            return Err(CollectError::new(format!(
                "log_line_prefix {text:?} gives no time; hint: begin it with %m"
            )));
        }
        let zone = self.config.timezone.as_deref().or(known.map(|s| s.timezone.as_str()));
        let zone = zone.and_then(|name| {
            let zone = TimeZone::get(name).map_err(|error| {
                format!("{error}; hint: pg_log.timezone takes an IANA name such as Europe/Berlin")
            });
            self.notices.ok("log_timezone", zone)
        });
        Ok(Reading { prefix, zone, redaction: self.config.redaction })
    }
}

impl Collector for PgLogCollector {
    fn name(&self) -> &'static str {
        "pg_log"
    }

    fn instance(&self) -> &str {
        &self.config.instance
    }

    async fn collect(&mut self, now: Timestamp) -> Result<Collected, CollectError> {
        self.pending = None;
        self.more = false;
        self.ask().await;
        let Some(whereabouts) = self.whereabouts() else {
            let unknown = "where PostgreSQL writes its log is not known; hint: set pg_log.path";
            return Err(CollectError::new(self.unanswered.as_deref().unwrap_or(unknown)));
        };
        let answered = self.unanswered.clone().map_or(Ok(()), Err);
        self.notices.ok("log settings", answered);
        let reading = self.reading()?;
        let has_zone = reading.zone.is_some();
        let read = self.read(now, whereabouts, reading).await?;
        let gone = read.gone.as_ref().map_or(Ok(()), |path| {
            let path = path.display();
            Err(format!("the log file {path} is gone; what was not read of it is lost"))
        });
        let emptied = read.emptied.as_ref().map_or(Ok(()), |path| {
            let path = path.display();
            Err(format!(
                "{path} was emptied, and no copy of what it was is there; what was written to it \
                 since it was read last is lost"
            ))
        });
        self.notices.ok("log file", gone.and(emptied));
        let left_out = match read.left_out {
            0 => Ok(()),
            files => Err(format!(
                "{files} files of the log directory were written to and are not read: others were \
                 written later; hint: keep fewer files there, or name one log in pg_log.path"
            )),
        };
        self.notices.ok("log directory", left_out);
        for path in &read.passed_over {
            let file = path.display();
            tracing::warn!(%file, "is passed over: none of its lines is one of the log");
        }
        self.notices.ok("log files", read.unreadable.map_or(Ok(()), Err));
        if read.untimed > 0 && !has_zone && self.known.is_none() {
            // The position stays, so that the entries are read once the zone is known.
            return Err(CollectError::new(
                "the zone of the log's times is not known before the server has answered; \
                 hint: name its log_timezone in pg_log.timezone",
            ));
        }
        if read.untimed > 0 {
            let hint = "name the server's log_timezone in pg_log.timezone";
            let message = format!("entries whose time is not known are left out; hint: {hint}");
            self.notices.failed("log times", &message);
        } else if !read.metrics.is_empty() {
            self.notices.recovered("log times");
        }
        let state = State {
            positions: read.followed.positions.clone(),
            position: None,
            server: self.known.clone(),
        };
        let state = serde_json::to_vec(&state)
            .map_err(|error| CollectError::new(format!("cannot store the position: {error}")))?;
        self.pending = Some(read.followed);
        self.more = read.more;
        Ok(Collected { metrics: read.metrics, state: read.has_moved.then_some(state) })
    }

    fn has_more(&self) -> bool {
        self.more
    }

    fn notices(&self) -> Vec<String> {
        self.notices.told()
    }

    fn committed(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.committed = Arc::new(pending);
        }
    }
}
