//! Where PostgreSQL is, and how to reach it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{self, Host, SslNegotiation};

use super::password::PasswordFrom;
use super::tls::{ChannelBinding, PgTls, SslMode};

/// Where Debian and the upstream defaults put the server's socket.
pub(super) const USUAL_SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One server and the role the agent uses there. In clear text the password is sent over the
/// socket, over loopback, and where TLS has shown that the other end is the host that was asked
/// for.
#[derive(Debug, Clone)]
pub struct PgConnection {
    /// A host name, an address, or the directory of a Unix socket when it starts with `/`.
    pub host: String,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
    /// The role. `pg_monitor` is enough for every number.
    pub user: String,
    /// Absent: it comes from elsewhere, or trust, peer or a certificate decides.
    pub password: Option<SecretString>,
    /// Where it comes from when it is absent.
    pub password_from: PasswordFrom,
    /// How TLS is spoken, over TCP.
    pub tls: PgTls,
    /// The maintenance database, where the kept connection lives.
    pub database: String,
    /// How long a connection may take to come about, name resolution included.
    pub connect_timeout: Duration,
}

impl PartialEq for PgConnection {
    fn eq(&self, other: &Self) -> bool {
        let password = |of: &Self| of.password.as_ref().map(|it| it.expose_secret().to_owned());
        let Self { host, port, user, password: _, password_from, tls, database, connect_timeout } =
            self;
        *host == other.host
            && *port == other.port
            && *user == other.user
            && password(self) == password(other)
            && *password_from == other.password_from
            && *tls == other.tls
            && *database == other.database
            && *connect_timeout == other.connect_timeout
    }
}

impl Default for PgConnection {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 5432,
            user: "postgres".to_owned(),
            password: None,
            password_from: PasswordFrom::default(),
            tls: PgTls::default(),
            database: "postgres".to_owned(),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl PgConnection {
    /// Reads `postgres://user:password@host:port/database` or `host=... user=...`, with an
    /// `sslmode` that needs no file. What the text leaves out keeps its default. The error never
    /// holds the text, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let parsed: tokio_postgres::Config = url.parse().map_err(|_| {
            "not a PostgreSQL connection string; \
             hint: postgres://user@host:5432/database or host=/run/postgresql user=postgres"
                .to_owned()
        })?;
        let mut connection = Self::default();
        connection.tls.mode = match parsed.get_ssl_mode() {
            config::SslMode::Disable => SslMode::Disable,
            config::SslMode::Require => SslMode::Require,
            _ => SslMode::Prefer,
        };
        connection.tls.channel_binding = match parsed.get_channel_binding() {
            config::ChannelBinding::Disable => ChannelBinding::Disable,
            config::ChannelBinding::Require => ChannelBinding::Require,
            _ => ChannelBinding::Prefer,
        };
        match parsed.get_hosts().first() {
            Some(Host::Tcp(host)) => connection.host.clone_from(host),
            Some(Host::Unix(directory)) => connection.host = directory.display().to_string(),
            None => {}
        }
        if let Some(port) = parsed.get_ports().first() {
            connection.port = *port;
        }
        if let Some(user) = parsed.get_user() {
            user.clone_into(&mut connection.user);
        }
        if let Some(database) = parsed.get_dbname() {
            database.clone_into(&mut connection.database);
        }
        let password = parsed.get_password().and_then(|bytes| str::from_utf8(bytes).ok());
        connection.password = password.map(SecretString::from);
        Ok(connection)
    }

    /// The server on the usual socket of this host, when there is one.
    pub fn on_usual_socket() -> Option<Self> {
        let default = Self::default();
        let name = format!(".s.PGSQL.{}", default.port);
        let directory =
            USUAL_SOCKET_DIRS.into_iter().find(|dir| Path::new(dir).join(&name).exists());
        directory.map(|directory| Self { host: directory.to_owned(), ..default })
    }

    /// Where it is, for messages: no password.
    pub fn place(&self) -> String {
        format!("{}:{} as {:?}", self.host, self.port, self.user)
    }

    /// Whether it is a Unix socket or a loopback address, as far as its name says so.
    pub fn is_on_this_host(&self) -> bool {
        let address = self.host.parse::<IpAddr>().map(|address| address.to_canonical());
        self.is_socket() || self.host == "localhost" || address.is_ok_and(|it| it.is_loopback())
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// What the driver says at a login to one database; the way there is not its concern.
    pub(super) fn driver_config(
        &self,
        database: &str,
        password: Option<&SecretString>,
    ) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.user)
            .dbname(database)
            // Its line is what it is, and it asks for nothing: see `tls::Established`.
            .ssl_mode(config::SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct)
            .channel_binding(match self.tls.channel_binding {
                ChannelBinding::Disable => config::ChannelBinding::Disable,
                ChannelBinding::Prefer => config::ChannelBinding::Prefer,
                ChannelBinding::Require => config::ChannelBinding::Require,
            })
            .application_name(concat!("pganalytics-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        config
    }
}

/// A name as SQL writes it, whatever is in it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C25, C43: connection strings with special characters, and no password in the error.
    #[test]
    fn urls_are_read() {
        let check = |url: &str, place: &str, database: &str, password: Option<&str>| {
            let read = PgConnection::from_url(url).expect(url);
            assert_eq!((read.place().as_str(), read.database.as_str()), (place, database), "{url}");
            assert_eq!(read.password.as_ref().map(ExposeSecret::expose_secret), password, "{url}");
        };
        check("postgres://a:p%40%2F%3A@db:5433/x%20y", "db:5433 as \"a\"", "x y", Some("p@/:"));
        check("host=/run/pg user='o\\'brien'", "/run/pg:5432 as \"o'brien\"", "postgres", None);
        check("postgresql:///only", "localhost:5432 as \"postgres\"", "only", None);
        let modes = ["disable", "prefer", "require"];
        let mode = |url: &str| PgConnection::from_url(url).map(|read| read.tls.mode.name());
        for known in modes {
            assert_eq!(mode(&format!("postgres://a@b/c?sslmode={known}")), Ok(known));
        }
        assert_eq!(mode("host=b"), Ok("prefer"));
        for wrong in ["mysql://a:secret@b", "host", "host=a password=secret sslmode=verify-full"] {
            let error = PgConnection::from_url(wrong).expect_err(wrong);
            assert!(error.contains("hint:") && !error.contains("secret"), "{error}");
        }
        let debug = format!("{:?}", PgConnection::from_url("postgres://a:hidden@b").expect("read"));
        assert!(!debug.contains("hidden"), "{debug}");
    }
}
