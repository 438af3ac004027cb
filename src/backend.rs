//! The server that agents report to: it registers them, checks and stores their pushes, and shows
//! what it stored.
//!
//! What is served where: the API on `listen`, TLS 1.3 only; the same without TLS
//! on `plaintext_listen`, loopback only; the page on `page_listen`, loopback only. What a push is
//! promised stands at [`store`].

mod api; // the HTTP endpoints
mod auth; // tokens, passwords, sealed secrets
mod config; // the backend's own TOML
mod enrolment; // secrets and collectors, by hand
mod keys; // the files in its data directory
mod names; // what may be a name
mod network; // who is one counterpart, by its address
mod page; // what a browser on this host is shown
mod pki; // the certificate authority
mod serve; // TLS and connections
pub mod store; // where it keeps what it was told

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use config::{BackendConfig, Lifetimes, Limits};
pub use enrolment::{
    Released, SecretRequest, add_secret, collectors, release_named, remove, rename, revoke_secret,
    secrets,
};

use crate::clock;
use api::Shared;
use serve::Listener;
use store::{Audit, NewUser, Role, Store, StoreError};

/// How often counts of refusals are written, when there are new ones: a kill costs so much of them.
const REFUSALS_WRITTEN_EVERY: Duration = Duration::from_secs(5);

/// Why the backend does not run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A key or certificate is missing, half there or unusable.
    #[error("{0}")]
    Keys(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {reason}; hint: is another backend running?")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why not.
        reason: std::io::Error,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A password cannot be used.
    #[error("{0}")]
    Password(String),
    /// A user cannot be added or shut out.
    #[error("{0}")]
    User(String),
    /// A secret or a collector cannot be changed so.
    #[error("{0}")]
    Enrolment(String),
}

impl From<pki::PkiError> for BackendError {
    fn from(err: pki::PkiError) -> Self {
        Self::Keys(err.to_string())
    }
}

impl From<auth::PasswordError> for BackendError {
    fn from(err: auth::PasswordError) -> Self {
        Self::Password(err.to_string())
    }
}

/// A backend that is not serving yet, or not any more.
#[derive(Debug)]
pub struct Backend;

/// A backend that serves in this process.
pub struct Running {
    address: SocketAddr,
    plaintext_address: Option<SocketAddr>,
    page_address: Option<SocketAddr>,
    shared: Arc<Shared>,
    shown: Arc<serve::Shown>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// A user to be added by hand.
#[derive(Debug)]
pub struct UserRequest {
    /// Unique.
    pub username: String,
    /// May be empty.
    pub email: String,
    /// For people.
    pub full_name: Option<String>,
    /// What it may do.
    pub role: Role,
    /// In the clear, to be hashed.
    pub password: SecretString,
}

impl Backend {
    /// Starts to serve. The first start on a data directory makes its keys; a later one on a
    /// directory with only some of them is refused.
    pub async fn start(config: BackendConfig) -> Result<Running, BackendError> {
        let (store, keys) = open(&config).await?;
        let shared = Arc::new(Shared::new(config, keys, store)?);
        let config = &shared.config;
        let router = api::router(&shared);
        let (tls, shown) = serve::tls(&shared.keys, &shared.store)?;
        let main = Listener::bind(config.listen, Some(tls), router.clone(), &config.limits).await?;
        let address = main.address()?;
        let mut listeners = vec![main];
        let mut plaintext_address = None;
        if let Some(listen) = config.plaintext_listen {
            let plain = Listener::bind(listen, None, router, &config.limits).await?;
            plaintext_address = Some(plain.address()?);
            tracing::warn!(address = ?plaintext_address, "the API is served without TLS too");
            listeners.push(plain);
        }
        let mut page_address = None;
        if let Some(listen) = config.page_listen {
            let page = Listener::bind(listen, None, page::router(&shared), &config.limits).await?;
            page_address = Some(page.address()?);
            listeners.push(page);
        }
        let (stop, stopped) = watch::channel(false);
        let start = |listener: Listener| listener.start(stopped.clone());
        let mut tasks: Vec<_> = listeners.into_iter().map(start).collect();
        let (keeper, kept) = (Arc::clone(&shared), Arc::clone(&shown));
        tasks.push(serve::keep_certificate(keeper, kept, stopped.clone()));
        tasks.push(write_refusals(Arc::clone(&shared), stopped));
        tracing::info!(%address, "the backend serves");
        Ok(Running { address, plaintext_address, page_address, shared, shown, stop, tasks })
    }
}

impl Running {
    /// Where agents and users reach the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the API answers without TLS.
    pub fn plaintext_address(&self) -> Option<SocketAddr> {
        self.plaintext_address
    }

    /// Where the page is.
    pub fn page_address(&self) -> Option<SocketAddr> {
        self.page_address
    }

    /// The settings it was started with.
    pub fn config(&self) -> &BackendConfig {
        &self.shared.config
    }

    /// The certificate that agents must trust, PEM.
    pub fn ca_certificate(&self) -> &str {
        self.shared.keys.authority.certificate_pem()
    }

    /// The file with [`Running::ca_certificate`].
    pub fn ca_file(&self) -> PathBuf {
        keys::directory(&self.shared.config.data_dir).join("ca.crt")
    }

    /// The file with [`Running::registration_secret`].
    pub fn secret_file(&self) -> PathBuf {
        keys::secret_file(&self.shared.config)
    }

    /// What a host must know to register.
    pub fn registration_secret(&self) -> &SecretString {
        &self.shared.keys.registration_secret
    }

    /// Makes the server certificate anew if it has to be, as is done by itself each hour; new
    /// connections are shown it.
    pub async fn renew_certificate(&self) -> Result<(), BackendError> {
        serve::renew_certificate(&self.shared, &self.shown).await
    }

    /// The store behind the API.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Takes no more requests, finishes the ones it has, and closes the store. A new start on the
    /// same data directory and port goes on where this one ended.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
        self.shared.write_refusals().await;
        self.shared.store.close().await;
        tracing::info!("the backend has stopped");
    }
}

/// Writes what is counted of refusals now and then, until `stop` turns true.
fn write_refusals(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFUSALS_WRITTEN_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            shared.write_refusals().await;
        }
    })
}

/// Serves until `shutdown` is ready.
pub async fn serve(
    config: BackendConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), BackendError> {
    let running = Backend::start(config).await?;
    shutdown.await;
    running.stop().await;
    Ok(())
}

/// Adds a user to the store of a backend, which may be running.
pub async fn add_user(config: &BackendConfig, user: UserRequest) -> Result<(), BackendError> {
    let username = user.username.clone();
    if username.is_empty() || username.len() > 128 || username.chars().any(char::is_control) {
        return Err(BackendError::User("a user name has 1 to 128 characters".to_owned()));
    }
    let password_hash = auth::Passwords::hash(&user.password)?;
    let new = NewUser {
        username: user.username,
        email: user.email,
        full_name: user.full_name,
        role: user.role,
        password_hash,
        audit: by_hand("user.add", &username),
    };
    let store = open_store(config).await?;
    let added = store.add_user(new).await;
    store.close().await;
    added.map(drop).map_err(|err| match err {
        StoreError::Conflict(_) => BackendError::User(format!("the user {username} exists")),
        other => other.into(),
    })
}

/// Shuts a user of the store of a backend out.
pub async fn disable_user(config: &BackendConfig, username: &str) -> Result<(), BackendError> {
    let store = open_store(config).await?;
    let disabled = store.disable_user(username, by_hand("user.disable", username)).await;
    store.close().await;
    if disabled? {
        return Ok(());
    }
    Err(BackendError::User(format!("there is no user {username}")))
}

fn by_hand(action: &str, subject: &str) -> Audit {
    Audit {
        at: clock::now(),
        actor: "command line".to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
    }
}

async fn open_store(config: &BackendConfig) -> Result<Arc<dyn Store>, BackendError> {
    keys::create_data_dir(&config.data_dir)?;
    Ok(store::open(&config.store_url()).await?)
}

/// Opens the store and the keys that belong to it, making both at the first start.
async fn open(config: &BackendConfig) -> Result<(Arc<dyn Store>, keys::Keys), BackendError> {
    let store = open_store(config).await?;
    let (directory, now) = (keys::directory(&config.data_dir), clock::now());
    if !directory.exists() {
        if store.bound_keys().await?.is_some() {
            return Err(BackendError::Keys(format!(
                "{} is missing, and the store holds secrets sealed with its keys; hint: restore \
                 the directory from a backup",
                directory.display()
            )));
        }
        keys::create(&config.data_dir, &config.server_names, now)?;
        tracing::info!(directory = %directory.display(), "made the keys of a new backend");
    }
    let keys = keys::load(config, now)?;
    store.bind_keys(keys.sealer.fingerprint()).await.map_err(|err| match err {
        StoreError::Conflict(_) => BackendError::Keys(format!(
            "the store holds secrets sealed with other keys than those in {}; hint: use the data \
             directory and the store that belong together",
            directory.display()
        )),
        other => other.into(),
    })?;
    let secret = keys.registration_secret.expose_secret();
    enrolment::keep_file_secret(store.as_ref(), &keys.sealer, secret).await?;
    Ok((store, keys))
}
