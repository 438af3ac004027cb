//! `agent demo`: backend and agent in one process, with everything real between them: certificates,
//! registration, the queue on disk, TLS, the store. Ends with an account of every record.

mod account;
mod screen;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use tempfile::TempDir;

use self::{account::Account, screen::Screen};
use crate::cli::{owner, terminal};
use crate::{
    agent::{Agent, Setup},
    backend::{Backend, BackendConfig, Running},
    clock,
    collect::postgres::PgConnection,
    link::files::{self, Readers},
    link::register::{Contact, Registration, register},
    shutdown, telemetry, units,
};

/// Run agent and backend in one process, and watch metrics arrive.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the backend away for this long, 10 seconds after the start.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    outage: Option<Duration>,

    /// End after this long; without it, an outage ends the demo when the backlog is gone, and
    /// Ctrl-C ends it at any time.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    run_for: Option<Duration>,

    /// Keep everything in this directory, which must be new or of an earlier demo; without it
    /// everything is in a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How long everything runs before the outage.
const BEFORE_OUTAGE: Duration = Duration::from_secs(10);
/// How long everything runs after the backlog is gone.
const AFTER_DRAIN: Duration = Duration::from_secs(3);
/// The file that says whose the directory is.
const MARK: &str = ".pganalytics-demo";
const LAST_PUSH: Duration = Duration::from_secs(10);
const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// Where the demo keeps things; a temporary directory goes with it.
struct Place {
    path: PathBuf,
    temporary: Option<TempDir>,
}

/// Runs the demo. Exit codes: 0 nothing lost, 1 it could not run, 2 records are missing.
pub async fn run(args: Args) -> ExitCode {
    match perform(args).await {
        Ok(account) => {
            terminal::note(&format!("\n{account}"));
            if account.lost() == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) }
        }
        Err(error) => {
            terminal::complain(&format!("agent demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Args {
    /// Becomes the owner of the demo's directory, where this is root and that is not.
    pub fn become_owner(&self) -> anyhow::Result<()> {
        self.dir.as_deref().map_or(Ok(()), |dir| owner::step_down(&[dir]))
    }
}

async fn perform(args: Args) -> anyhow::Result<Account> {
    let place = Place::make(args.dir.as_deref())?;
    telemetry::start_log_file(&place.path.join("demo.log"), tracing::Level::INFO)?;
    let backend_config = backend_config(&place.path);
    let backend = start_backend(backend_config).await?;
    let setup = enrol(&backend, &place.path).await?;
    let config = setup.loaded.config.clone();
    let identity = crate::link::Identity::load(&config.agent.state_dir)?;
    let collector_id = identity.collector_id.parse().context("the collector's id")?;
    let begun = clock::now();
    let agent = Agent::start(setup, identity).await?;
    let mut screen = Screen::new(&place.path, &config, &backend);
    let ended = play(&args, backend, &agent, &mut screen).await;
    screen.note("stopping: the last window is pushed");
    let view = agent.view();
    agent.stop(LAST_PUSH).await;
    screen.end();
    let backend = ended?;
    let account = Account::take(&view, backend.store().as_ref(), collector_id, begun).await?;
    backend.stop().await;
    place.end();
    Ok(account)
}

/// Shows what happens until the demo is over; gives back the backend, which runs.
async fn play(
    args: &Args,
    backend: Running,
    agent: &Agent,
    screen: &mut Screen,
) -> anyhow::Result<Running> {
    let view = agent.view();
    let begun = clock::monotonic();
    let end = args.run_for.map(|limit| begun + limit);
    let Some(outage) = args.outage else {
        screen.watch(&view, end, async { shutdown::signalled().await.is_ok() }).await;
        return Ok(backend);
    };
    let interrupted = screen.watch(&view, Some(begun + BEFORE_OUTAGE), interrupt()).await;
    if interrupted {
        return Ok(backend);
    }
    let config = BackendConfig {
        listen: backend.address(),
        page_listen: backend.page_address(),
        ..backend.config().clone()
    };
    backend.stop().await;
    screen.backend_is_away(outage);
    let back_at = clock::monotonic() + outage;
    let interrupted = screen.watch(&view, Some(back_at), interrupt()).await;
    let backend = start_backend(config).await?;
    screen.backend_is_back();
    if interrupted {
        return Ok(backend);
    }
    let drained = async {
        let queue = view.queue.clone();
        let is_empty = || async { queue.status().await.is_ok_and(|status| status.batches <= 1) };
        while !is_empty().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(AFTER_DRAIN).await;
        true
    };
    let over = async {
        tokio::select! {
            over = drained, if end.is_none() => over,
            over = interrupt() => over,
        }
    };
    screen.watch(&view, end, over).await;
    Ok(backend)
}

async fn interrupt() -> bool {
    shutdown::signalled().await.is_ok()
}

fn backend_config(dir: &Path) -> BackendConfig {
    BackendConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        page_listen: Some(PAGE),
        data_dir: dir.join("backend"),
        ..BackendConfig::default()
    }
}

/// Starts the backend; when the page's usual port is taken, the page gets another.
async fn start_backend(config: BackendConfig) -> anyhow::Result<Running> {
    let elsewhere = BackendConfig {
        page_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        ..config.clone()
    };
    match Backend::start(config).await {
        Ok(running) => Ok(running),
        Err(_) => Backend::start(elsewhere).await.context("the backend does not start"),
    }
}

/// Writes the agent's configuration and registers the agent, as an operator would.
async fn enrol(backend: &Running, dir: &Path) -> anyhow::Result<Setup> {
    let agent_dir = dir.join("agent");
    fs_err::create_dir_all(&agent_dir)?;
    let text = format!(
        "[collector]\nstate_dir = {state:?}\npush_interval = 2\n\
         [backend]\nurl = \"https://localhost:{port}\"\n\
         [tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n\
         {postgres}\
         [sysstat]\ninterval = 1\n[disk_usage]\ninterval = 5\n\
         [forward]\nbackoff_max = \"5s\"\n",
        port = backend.address().port(),
        state = agent_dir.display().to_string(),
        cert = agent_dir.join("agent.crt").display().to_string(),
        key = agent_dir.join("agent.key").display().to_string(),
        postgres = postgres(),
    );
    let file = dir.join("agent.toml");
    // It may hold a password.
    files::replace(&file, text.as_bytes(), Readers::Owner)?;
    let setup = Setup::load(&file)?;
    let config = &setup.loaded.config;
    let hostname = config.agent.hostname.clone();
    let registration = Registration {
        link: config.link.clone(),
        state_dir: config.agent.state_dir.clone(),
        name: hostname.clone(),
        hostname,
        contact: Contact::Ca(backend.ca_file()),
        secret: Some(backend.registration_secret().clone()),
    };
    register(&registration).await.context("the agent does not register")?;
    Ok(setup)
}

/// The configuration of the PostgreSQL collectors, when there is a server to ask.
fn postgres() -> String {
    use secrecy::ExposeSecret;
    let from_url = std::env::var("DATABASE_URL").ok().map(|url| PgConnection::from_url(&url));
    let found = match from_url {
        Some(Ok(connection)) => Some(connection),
        Some(Err(why)) => {
            terminal::complain(&format!("DATABASE_URL is left out: {why}"));
            None
        }
        None => PgConnection::on_usual_socket(),
    };
    let Some(found) = found else {
        return "[pg_stats]\nenabled = false\n[pg_log]\nenabled = false\n".to_owned();
    };
    let password = found.password.as_ref().map_or("", |password| password.expose_secret());
    format!(
        "[postgres]\nhost = {:?}\nport = {}\nuser = {:?}\npassword = {:?}\ndatabase = {:?}\n\
         sslmode = {:?}\nchannel_binding = {:?}\ndatabases = \"*\"\n\
         [pg_stats]\ninterval = 5\n[pg_log]\ninterval = 2\n",
        // The texts are what they are, and not variables of the environment.
        found.host.replace("${", "$${"),
        found.port,
        found.user.replace("${", "$${"),
        password.replace("${", "$${"),
        found.database.replace("${", "$${"),
        found.tls.mode.name(),
        found.tls.channel_binding.name(),
    )
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "write it like 30s or 2min".to_owned())
}

impl Place {
    fn make(dir: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            fs_err::create_dir_all(dir)?;
            let is_empty = fs_err::read_dir(dir)?.next().is_none();
            anyhow::ensure!(
                is_empty || dir.join(MARK).exists(),
                "{} has something else in it; hint: name a directory that is new or empty",
                dir.display()
            );
            fs_err::write(dir.join(MARK), "")?;
            return Ok(Self { path: fs_err::canonicalize(dir)?, temporary: None });
        }
        let temporary = tempfile::Builder::new().prefix("pganalytics-demo-").tempdir()?;
        Ok(Self { path: temporary.path().to_owned(), temporary: Some(temporary) })
    }

    fn end(self) {
        if let Some(Err(error)) = self.temporary.map(TempDir::close) {
            tracing::warn!(%error, "the demo's directory stays");
        }
    }
}
