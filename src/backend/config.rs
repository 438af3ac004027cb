//! What the backend can be told, and its defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::reader::{self, ConfigError, Document, Key, Section};

/// The backend's settings, from its own TOML file.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Where agents and users reach the API, TLS 1.3.
    pub listen: SocketAddr,
    /// Where the API answers without TLS: a loopback address, `None` unless `allow_plaintext`.
    pub plaintext_listen: Option<SocketAddr>,
    /// Where the page is: a loopback address, `None` for no page.
    pub page_listen: Option<SocketAddr>,
    /// Keys, certificates and the embedded store; made at the first start, owner only.
    pub data_dir: PathBuf,
    /// `sqlite:/path` or `postgres://...`; `None` for SQLite in `data_dir`.
    pub store: Option<String>,
    /// Names and addresses that the server certificate is good for.
    pub server_names: Vec<String>,
    /// A file with the registration secret in place of the one in `data_dir`.
    pub registration_secret_file: Option<PathBuf>,
    /// What the backend takes at most.
    pub limits: Limits,
    /// How long things stay good.
    pub lifetimes: Lifetimes,
    /// When agents look for a new configuration.
    pub next_check: Duration,
}

/// What the backend takes at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A request's body as it came over the wire, bytes.
    pub body_bytes_max: u64,
    /// The bodies of all requests together, as they came over the wire, bytes.
    pub bodies_bytes_max: u64,
    /// A request's body after decompression, bytes.
    pub inflated_bytes_max: u64,
    /// The most text that is stored of one metric, bytes.
    pub document_bytes_max: u64,
    /// Open connections of one listener.
    pub connections_max: usize,
    /// How many of these may be without a verified client certificate.
    pub connections_unverified_max: usize,
    /// How many of those may come from one address, or one /64 of IPv6.
    pub connections_per_address_max: usize,
    /// Connections with one client certificate.
    pub connections_per_collector_max: usize,
    /// Pushes worked on at a time; more wait for a moment and are then sent away with 429.
    pub pushes_at_once_max: usize,
    /// Other hosts that one collector may bring with replays.
    pub hosts_per_collector: u32,
    /// In a minute: failed logins of one address, and to one account, and wrong registration
    /// secrets of one address.
    pub attempts_per_minute: u32,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the handshake to the head of the first request.
    pub head_timeout: Duration,
    /// From the end of a request to the head of the next: an idle connection is closed after it.
    pub idle_timeout: Duration,
    /// From a request's head to its answer.
    pub request_timeout: Duration,
    /// For the peer to read an answer, or 32 KiB of it.
    pub write_timeout: Duration,
}

/// How long things stay good.
#[derive(Debug, Clone)]
pub struct Lifetimes {
    /// A collector's token.
    pub collector_token: Duration,
    /// A user's access token.
    pub access_token: Duration,
    /// A user's refresh token.
    pub refresh_token: Duration,
    /// A collector's certificate.
    pub client_certificate: Duration,
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self::read(Path::new("defaults"), "").expect("every default is in its range")
    }
}

impl BackendConfig {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, &reader::read_text(path)?)
    }

    /// Reads `text`, which came from `path`.
    pub fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::read_keys(path, text).map(|(config, _)| config)
    }

    /// Every key with its default.
    pub fn keys() -> Vec<Key> {
        Self::read_keys(Path::new("defaults"), "").map(|(_, keys)| keys).unwrap_or_default()
    }

    /// The store's address: the configured one, or the embedded one in the data directory.
    pub fn store_url(&self) -> String {
        match &self.store {
            Some(url) => url.clone(),
            None => format!("sqlite:{}", self.data_dir.join("metrics.db").display()),
        }
    }

    fn read_keys(path: &Path, text: &str) -> Result<(Self, Vec<Key>), ConfigError> {
        let mut document = Document::parse(path, text)?;
        let mut section = document.section("backend");
        let plaintext_listen = plaintext(&mut section);
        let config = Self {
            listen: section.address("listen", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080))),
            plaintext_listen,
            page_listen: loopback(&mut section, "page_listen", "127.0.0.1:8081"),
            data_dir: section.path("data_dir", "/var/lib/pganalytics-backend"),
            store: store(&mut section),
            server_names: section.list("server_names", "localhost, 127.0.0.1, ::1"),
            registration_secret_file: section.optional_path("registration_secret_file"),
            next_check: section.duration("next_check", "5min", ["1s", "1d"]),
            limits: limits(&mut document.section("limits")),
            lifetimes: lifetimes(&mut document.section("lifetimes")),
        };
        Ok((config, document.finish()?))
    }
}

fn limits(section: &mut Section<'_, '_>) -> Limits {
    let whole = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Limits {
        body_bytes_max: section.size("body_bytes_max", "16MiB", ["1KiB", "1GiB"]),
        bodies_bytes_max: section.size("bodies_bytes_max", "64MiB", ["1MiB", "64GiB"]),
        inflated_bytes_max: section.size("inflated_bytes_max", "64MiB", ["1KiB", "1GiB"]),
        document_bytes_max: section.size("document_bytes_max", "4MiB", ["1KiB", "64MiB"]),
        connections_max: whole(section.integer("connections_max", 1024, 1..=65_536)),
        connections_unverified_max: whole(section.integer(
            "connections_unverified_max",
            256,
            1..=65_536,
        )),
        connections_per_address_max: whole(section.integer(
            "connections_per_address_max",
            64,
            1..=65_536,
        )),
        connections_per_collector_max: whole(section.integer(
            "connections_per_collector_max",
            32,
            1..=65_536,
        )),
        pushes_at_once_max: whole(section.integer("pushes_at_once_max", 8, 1..=1024)),
        hosts_per_collector: small(section.integer("hosts_per_collector", 16, 0..=10_000)),
        attempts_per_minute: small(section.integer("attempts_per_minute", 10, 1..=10_000)),
        handshake_timeout: section.duration("handshake_timeout", "10s", ["100ms", "5min"]),
        head_timeout: section.duration("head_timeout", "10s", ["100ms", "5min"]),
        idle_timeout: section.duration("idle_timeout", "90s", ["100ms", "1h"]),
        request_timeout: section.duration("request_timeout", "30s", ["100ms", "1h"]),
        write_timeout: section.duration("write_timeout", "30s", ["100ms", "5min"]),
    }
}

fn lifetimes(section: &mut Section<'_, '_>) -> Lifetimes {
    Lifetimes {
        collector_token: section.duration("collector_token", "30min", ["1s", "2h"]),
        access_token: section.duration("access_token", "15min", ["1s", "1d"]),
        refresh_token: section.duration("refresh_token", "24h", ["1s", "90d"]),
        client_certificate: section.duration("client_certificate", "365d", ["1s", "3650d"]),
    }
}

fn plaintext(section: &mut Section<'_, '_>) -> Option<SocketAddr> {
    let listen = loopback(section, "plaintext_listen", "off");
    if section.boolean("allow_plaintext", false) {
        return listen;
    }
    if listen.is_some() {
        let hint = "set allow_plaintext = true to serve the API without TLS on loopback";
        section.reject("plaintext_listen", "needs allow_plaintext", hint);
    }
    None
}

/// A loopback address, or `off`.
fn loopback(section: &mut Section<'_, '_>, key: &'static str, default: &str) -> Option<SocketAddr> {
    let text = section.text(key, default);
    if text == "off" {
        return None;
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if is_loopback(address.ip()) => return Some(address),
        Ok(_) => section.reject(
            key,
            "is not a loopback address",
            "what is served here has no TLS: use 127.0.0.1, [::1] or \"off\"",
        ),
        Err(_) => section.reject(
            key,
            "is not an address",
            "an address and a port such as \"127.0.0.1:8081\", or \"off\"",
        ),
    }
    None
}

/// Whether what is sent to `address` stays on this host.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn store(section: &mut Section<'_, '_>) -> Option<String> {
    let url = section.optional_text("store")?;
    let known = ["sqlite:", "postgres://", "postgresql://"];
    if !known.iter().any(|scheme| url.starts_with(scheme)) {
        section.reject("store", "is no store", "sqlite:/path/to/file or postgres://user@host/db");
        return None;
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        BackendConfig::read(Path::new("backend.toml"), text).expect_err(text).to_string()
    }

    #[test]
    fn defaults_serve_tls_and_a_page_on_loopback() {
        let config = BackendConfig::default();
        assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(config.page_listen.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:8081"));
        assert_eq!(config.plaintext_listen, None);
        assert_eq!(config.store_url(), "sqlite:/var/lib/pganalytics-backend/metrics.db");
        assert_eq!(config.server_names, ["localhost", "127.0.0.1", "::1"]);
    }

    #[test]
    fn every_key_is_documented_with_its_default() {
        let documented = include_str!("../../docs/CONFIGURATION.md");
        for key in BackendConfig::keys() {
            let row = format!("| `{}.{}` | `{}` |", key.section, key.name, key.default);
            assert!(documented.contains(&row), "docs/CONFIGURATION.md lacks {row}");
        }
    }

    #[test]
    fn what_has_no_tls_stays_on_loopback() {
        let check = |text: &str, expected: &str| {
            let problem = problem(text);
            assert!(problem.contains(expected), "{problem}");
        };
        check("[backend]\npage_listen = \"0.0.0.0:1\"", "backend.toml:2: backend.page_listen");
        check("[backend]\npage_listen = \"10.0.0.1:1\"", "is not a loopback address");
        check("[backend]\npage_listen = \"here\"", "is not an address");
        check("[backend]\nplaintext_listen = \"127.0.0.1:1\"", "needs allow_plaintext");
        check(
            "[backend]\nallow_plaintext = true\nplaintext_listen = \"[::]:1\"",
            "is not a loopback address",
        );
        check("[backend]\nstore = \"mysql://x\"", "is no store");
        let mapped = "[backend]\npage_listen = \"[::ffff:127.0.0.1]:0\"";
        assert!(BackendConfig::read(Path::new("x"), mapped).is_ok());
    }
}
