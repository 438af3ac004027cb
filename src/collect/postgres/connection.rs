//! Where PostgreSQL is, and how to reach it.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};

/// Where Debian and the upstream defaults put the server's socket.
const USUAL_SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One server and the role the agent uses there. TLS to PostgreSQL is not spoken: over a network
/// the password is protected by SCRAM (or, weakly, by MD5) and nothing else is, so the socket or
/// loopback is advised. In clear text it is never sent over a network.
#[derive(Debug, Clone)]
pub struct PgConnection {
    /// A host name, an address, or the directory of a Unix socket when it starts with `/`.
    pub host: String,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
    /// The role. `pg_monitor` is enough for every number.
    pub user: String,
    /// Absent: trust, peer or a certificate decides.
    pub password: Option<SecretString>,
    /// The maintenance database, where the kept connection lives.
    pub database: String,
    /// How long a connection may take to come about, name resolution included.
    pub connect_timeout: Duration,
}

impl PartialEq for PgConnection {
    fn eq(&self, other: &Self) -> bool {
        let password = |of: &Self| of.password.as_ref().map(|it| it.expose_secret().to_owned());
        let Self { host, port, user, password: _, database, connect_timeout } = self;
        *host == other.host
            && *port == other.port
            && *user == other.user
            && password(self) == password(other)
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
            database: "postgres".to_owned(),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl PgConnection {
    /// Reads `postgres://user:password@host:port/database` or `host=... user=...`. What the text
    /// leaves out keeps its default. The error never holds the text, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let parsed: tokio_postgres::Config = url.parse().map_err(|_| {
            "not a PostgreSQL connection string; \
             hint: postgres://user@host:5432/database or host=/run/postgresql user=postgres"
                .to_owned()
        })?;
        if parsed.get_ssl_mode() == SslMode::Require {
            return Err("sslmode=require is not supported; \
                        hint: connect over the Unix socket or loopback"
                .to_owned());
        }
        let mut connection = Self::default();
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

    /// What the driver says at a login to one database; the way there is not its concern.
    pub(super) fn driver_config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.user)
            .dbname(database)
            .ssl_mode(SslMode::Disable)
            .application_name(concat!("pganalytics-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(password) = self.password.as_ref().filter(|p| !p.expose_secret().is_empty()) {
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
        for wrong in ["mysql://a:secret@b", "host", "host=a password=secret sslmode=require"] {
            let error = PgConnection::from_url(wrong).expect_err(wrong);
            assert!(error.contains("hint:") && !error.contains("secret"), "{error}");
        }
        let debug = format!("{:?}", PgConnection::from_url("postgres://a:hidden@b").expect("read"));
        assert!(!debug.contains("hidden"), "{debug}");
    }
}
