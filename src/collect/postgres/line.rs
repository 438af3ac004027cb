//! A line to a server: dialled and, as the mode says, encrypted, before the driver has it.

use std::io;

use super::connection::PgConnection;
use super::dial::{Duplex, Peer};
use super::failure::Failure;
use super::guard::{ClearText, Refusal};
use super::tls::{self, Established, Handshake, Offer, SslMode, TlsFailure};

/// One way to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Plain,
    Tls,
    /// TLS where the server speaks it.
    TlsIfOffered,
}

/// How to get to a server: what is said to each of its addresses.
#[derive(Debug, Clone)]
pub(super) struct Route {
    mode: SslMode,
    /// Absent where TLS is never spoken.
    handshake: Option<Handshake>,
}

/// Bytes both ways, and what may be said on them.
pub(super) struct Line {
    pub(super) stream: Box<dyn Duplex>,
    /// What the driver is told about them.
    pub(super) established: Established,
    pub(super) clear_text: ClearText,
    pub(super) is_encrypted: bool,
}

impl Route {
    /// Reads the files that TLS takes, away from the runtime.
    pub(super) async fn to(place: &PgConnection) -> Result<Self, Failure> {
        let mode = place.tls.mode;
        if mode == SslMode::Disable || place.is_socket() {
            return Ok(Self { mode: SslMode::Disable, handshake: None });
        }
        let (tls, host) = (place.tls.clone(), place.host.clone());
        let read = tokio::task::spawn_blocking(move || tls.handshake(&host)).await;
        let handshake = read.unwrap_or_else(|error| {
            Err(TlsFailure::new(format!("cannot read the files of TLS: {error}"), "try again"))
        });
        Ok(Self { mode, handshake: Some(handshake.map_err(Failure::tls)?) })
    }

    /// What is tried, one after the other.
    pub(super) fn attempts(&self) -> &'static [Attempt] {
        match self.mode {
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Tls],
            SslMode::Prefer => &[Attempt::TlsIfOffered, Attempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Tls],
        }
    }

    /// A line to `peer`.
    pub(super) async fn dial(&self, peer: &Peer, attempt: Attempt) -> Result<Line, Failure> {
        let unreached = |error: io::Error| Failure::unreached(&error);
        let socket = peer.dial().await.map_err(unreached)?;
        self.secure(socket, peer.clear_text(), attempt).await
    }

    /// Makes a line of `socket`.
    async fn secure(
        &self,
        mut stream: Box<dyn Duplex>,
        clear_text: ClearText,
        attempt: Attempt,
    ) -> Result<Line, Failure> {
        let plain = |stream| Line {
            stream,
            established: Established::default(),
            clear_text,
            is_encrypted: false,
        };
        let Some(handshake) = self.handshake.as_ref().filter(|_| attempt != Attempt::Plain) else {
            return Ok(plain(stream));
        };
        let offer = tls::ask(&mut stream).await.map_err(|error| Failure::unreached(&error))?;
        match offer {
            Offer::Tls => {}
            Offer::Plain if attempt == Attempt::TlsIfOffered => return Ok(plain(stream)),
            Offer::Plain => {
                return Err(Failure::tls(TlsFailure::new(
                    format!("no TLS there, and postgres.sslmode is {:?}", self.mode.name()),
                    "set ssl = on in postgresql.conf; or does something between answer for it?",
                )));
            }
            Offer::Refused => {
                return Err(Failure::tls(TlsFailure::new(
                    "the server answers the question for TLS with an error",
                    "the server's log says more",
                )));
            }
            Offer::Foreign => return Err(Failure::refused(Refusal::Framing)),
        }
        let stream = handshake.with(stream).await.map_err(Failure::tls)?;
        let clear_text = match clear_text {
            ClearText::Refused if handshake.proves_the_host() => ClearText::Allowed,
            clear_text => clear_text,
        };
        let established = Established { end_point: tls::end_point(&stream) };
        Ok(Line { stream: Box::new(stream), established, clear_text, is_encrypted: true })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    use super::super::tls::{PgTls, Roots};
    use super::*;

    /// Only where TLS has shown the host that was asked for may a password be sent as it is, and
    /// what was said in clear text before is not a part of the session.
    #[tokio::test]
    async fn clear_text_takes_the_proof_of_the_host() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["db.example.com".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        fs_err::write(&file, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let line = async |mode: SslMode, at: ClearText, answer: &[u8]| {
            let tls = PgTls { mode, roots: Roots::File(file.clone()), ..PgTls::default() };
            let host = "db.example.com".to_owned();
            let route = Route::to(&PgConnection { host, tls, ..PgConnection::default() }).await;
            let (client, mut server) = tokio::io::duplex(1 << 16);
            let serve = async {
                let mut request = [0; 8];
                server.read_exact(&mut request).await.unwrap();
                server.write_all(answer).await.unwrap();
                acceptor.accept(server).await.ok()
            };
            let route = route.unwrap();
            let secured = route.secure(Box::new(client), at, route.attempts()[0]);
            tokio::join!(secured, serve).0
        };
        let (allowed, refused) = (ClearText::Allowed, ClearText::Refused);
        for (mode, at, expected) in [
            (SslMode::Prefer, refused, refused),
            (SslMode::Require, refused, refused),
            (SslMode::VerifyCa, refused, refused),
            (SslMode::VerifyFull, refused, allowed),
            (SslMode::Prefer, allowed, allowed),
        ] {
            let line = line(mode, at, b"S").await.unwrap_or_else(|why| panic!("{mode:?}: {why:?}"));
            assert_eq!((line.clear_text, line.is_encrypted), (expected, true), "{mode:?}");
            assert_eq!(line.established.end_point.map(|it| it.len()), Some(32));
        }
        let notice = line(SslMode::VerifyFull, refused, b"SN\0\0\0\x05\0").await;
        assert!(notice.is_err_and(|failure| failure.is_tls()));
    }
}
