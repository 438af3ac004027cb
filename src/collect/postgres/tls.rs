//! TLS to a server, with the words and the meaning that libpq gives them.
//!
//! The agent sends `SSLRequest` itself and makes the handshake before the driver says anything. So
//! the guard stands inside TLS and reads the server's messages, and the driver is told only that
//! its line is encrypted already, and what a password is to be bound to.
//!
//! Sources: "SSL Support" of libpq's manual; RFC 5929 for `tls-server-end-point`.

mod explain; // what a failure means, and what to do
mod names; // a certificate without alternative names
mod verify; // whose certificates are accepted
mod wire; // a line as the driver takes it

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::Duplex;
use crate::files::{self, Unreadable};

pub(super) use explain::{explain, tls_error};
pub(super) use wire::{Established, Wire};

/// `SSLRequest`: its length, and a number where a startup packet has its version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// `sslmode`: whether a connection over TCP is encrypted, and what is asked of the server's
/// certificate. Unix sockets never are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server takes nothing else.
    Allow,
    /// Where the server can.
    #[default]
    Prefer,
    /// Always; the certificate is checked only when there is a root certificate.
    Require,
    /// Always, with a certificate of the CA.
    VerifyCa,
    /// Always, with a certificate of the CA for the host that was asked for.
    VerifyFull,
}

impl SslMode {
    /// Each with its name, the default first.
    pub const ALL: [(&str, Self); 6] = [
        ("prefer", Self::Prefer),
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// `channel_binding`: whether a SCRAM login must belong to the TLS session that it is made in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Where both sides can.
    #[default]
    Prefer,
    /// Never.
    Disable,
    /// Always: any other login is refused.
    Require,
}

impl ChannelBinding {
    /// Each with its name, the default first.
    pub const ALL: [(&str, Self); 3] =
        [("prefer", Self::Prefer), ("disable", Self::Disable), ("require", Self::Require)];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, binding)| *binding == self).map_or("", |(name, _)| name)
    }
}

/// Whose certificates are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Roots {
    /// Nobody has said.
    #[default]
    Unnamed,
    /// Those of the operating system.
    System,
    /// The certificates of this file.
    File(PathBuf),
}

/// How TLS is spoken with one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PgTls {
    /// Whether, and what is asked of the server's certificate.
    pub mode: SslMode,
    /// Whose certificates are accepted, from [`SslMode::Require`] on.
    pub roots: Roots,
    /// The files with the certificate that the agent shows, and with its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Whether a login belongs to its TLS session.
    pub channel_binding: ChannelBinding,
}

/// What is asked of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// Everything for a handshake with one server. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Handshake {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    check: Check,
}

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsFailure {
    pub(super) message: String,
    pub(super) hint: String,
}

/// What a server says to `SSLRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Tls,
    Plain,
    /// An error: it is out of something, or older than TLS.
    Refused,
    /// It does not speak PostgreSQL's protocol.
    Foreign,
}

impl TlsFailure {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl PgTls {
    fn check(&self) -> Check {
        match (self.mode, &self.roots) {
            (SslMode::VerifyFull, _) => Check::ChainAndName,
            // As libpq does for the sake of old installations.
            (SslMode::VerifyCa, _) | (SslMode::Require, Roots::File(_)) => Check::Chain,
            _ => Check::Nothing,
        }
    }

    /// Reads the files that are named. It may block.
    pub(super) fn handshake(&self, host: &str) -> Result<Handshake, TlsFailure> {
        let check = self.check();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let mut named = Vec::new();
        match &self.roots {
            _ if check == Check::Nothing => {}
            Roots::File(file) => {
                named = certificates(file, "postgres.sslrootcert")?;
                roots.add_parsable_certificates(named.iter().cloned());
            }
            Roots::System | Roots::Unnamed => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        let verifier = verify::Verifier { check, roots, named, provider: Arc::clone(&provider) };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TlsFailure::new(format!("no TLS: {error}"), "reinstall the agent"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "postgres.sslcert")?;
                builder.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                    let (certificate, key) = (certificate.display(), key.display());
                    TlsFailure::new(
                        format!("{certificate} and {key} do not belong together: {error}"),
                        "postgres.sslkey must hold the key of postgres.sslcert",
                    )
                })?
            }
        };
        // A resumed session would go on with the certificate that was shown when it began.
        config.resumption = rustls::client::Resumption::disabled();
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if check != Check::ChainAndName => {
                ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
            }
            Err(_) => {
                return Err(TlsFailure::new(
                    format!("{host:?} is not a name that a certificate can have"),
                    "write postgres.host as the server's certificate has it",
                ));
            }
        };
        Ok(Handshake { config: Arc::new(config), name, check })
    }
}

impl Handshake {
    /// Whether nobody but the server that was asked for can be at the other end.
    pub(super) fn proves_the_host(&self) -> bool {
        self.check == Check::ChainAndName
    }

    /// Speaks TLS on `socket`, whose server has agreed to.
    pub(super) async fn with(
        &self,
        socket: Box<dyn Duplex>,
    ) -> Result<TlsStream<Box<dyn Duplex>>, TlsFailure> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(self.name.clone(), socket).await.map_err(|error| explain(&error))
    }
}

/// Asks whether TLS is spoken here. Reads the one byte of the answer and nothing beyond: what came
/// behind it in clear text is not taken for a part of what is encrypted.
pub(super) async fn ask(socket: &mut Box<dyn Duplex>) -> io::Result<Offer> {
    socket.write_all(&SSL_REQUEST).await?;
    socket.flush().await?;
    Ok(match socket.read_u8().await? {
        b'S' => Offer::Tls,
        b'N' => Offer::Plain,
        b'E' => Offer::Refused,
        _ => Offer::Foreign,
    })
}

/// What a SCRAM login is bound to: the digest of the server's certificate.
pub(super) fn end_point(stream: &TlsStream<Box<dyn Duplex>>) -> Option<Vec<u8>> {
    let (_, session) = stream.get_ref();
    names::digest(session.peer_certificates()?.first()?)
}

fn certificates(file: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, TlsFailure> {
    let pem = files::read_file(file).map_err(|error| {
        TlsFailure::new(format!("{key}: {error}"), "let the agent's user read that file")
    })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let what = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "holds no certificate".to_owned(),
        Err(error) => format!("is damaged: {error}"),
    };
    let hint = "it must hold PEM: -----BEGIN CERTIFICATE-----";
    Err(TlsFailure::new(format!("{key} {} {what}", file.display()), hint))
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsFailure> {
    let key = "postgres.sslkey";
    let pem = files::read_private(file).map_err(|unreadable| match unreadable {
        Unreadable::Failed(error) => {
            TlsFailure::new(format!("{key}: {error}"), "let the agent's user own and read it")
        }
        Unreadable::Open(mode) => TlsFailure::new(
            format!("{key} {} can be read by others (mode {mode:04o})", file.display()),
            format!("chmod 600 {}", file.display()),
        ),
    })?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        // The error's text never has the key.
        TlsFailure::new(
            format!("{key} {} holds no usable private key: {error}", file.display()),
            "it must hold an unencrypted PEM key: -----BEGIN PRIVATE KEY-----",
        )
    })
}
