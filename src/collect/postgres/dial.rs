//! The way to a server: its Unix socket, or the addresses of its name, one after the other.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::connection::PgConnection;
use super::guard::ClearText;

/// After this time without traffic the system asks whether the peer is still there.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);

/// One end that may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

impl Peer {
    /// Those of `place`, in the order in which they are tried.
    pub(super) async fn all_of(place: &PgConnection) -> io::Result<Vec<Self>> {
        if place.is_socket() {
            let name = format!(".s.PGSQL.{}", place.port);
            return Ok(vec![Self::Unix(Path::new(&place.host).join(name))]);
        }
        let found = lookup_host((place.host.as_str(), place.port)).await?;
        Ok(found.map(Self::Tcp).collect())
    }

    /// Only on this host nobody between the two ends can read what is sent.
    pub(super) fn clear_text(&self) -> ClearText {
        match self {
            Self::Unix(_) => ClearText::Allowed,
            Self::Tcp(address) if address.ip().to_canonical().is_loopback() => ClearText::Allowed,
            Self::Tcp(_) => ClearText::Refused,
        }
    }

    /// Whether a name whose addresses are `found` now does not lead here any more. An answer that
    /// did not come, or has no address, says nothing.
    pub(super) fn is_left_by(&self, found: io::Result<Vec<Self>>) -> bool {
        found.is_ok_and(|found| !found.is_empty() && !found.contains(self))
    }

    pub(super) async fn dial(&self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                rustix::net::sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE_IDLE)?;
                Ok(Box::new(stream))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_text_stays_on_this_host() {
        let check = |address: &str, expected| {
            let peer = Peer::Tcp(address.parse().expect(address));
            assert_eq!(peer.clear_text(), expected, "{address}");
        };
        for local in ["127.0.0.1:5432", "127.8.9.10:1", "[::1]:5432", "[::ffff:127.0.0.1]:5432"] {
            check(local, ClearText::Allowed);
        }
        let others = ["10.0.0.1:5432", "0.0.0.0:5432", "[fe80::1]:5432", "[::ffff:10.0.0.1]:5432"];
        for other in others {
            check(other, ClearText::Refused);
        }
        assert_eq!(Peer::Unix("/run/postgresql".into()).clear_text(), ClearText::Allowed);
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_leaves_its_peer() {
        let peer = |text: &str| Peer::Tcp(text.parse().expect(text));
        let here = peer("192.0.2.1:5432");
        assert!(here.is_left_by(Ok(vec![peer("192.0.2.2:5432")])));
        assert!(here.is_left_by(Ok(vec![peer("192.0.2.1:5433")])));
        assert!(!here.is_left_by(Ok(vec![peer("192.0.2.2:5432"), here.clone()])));
        assert!(!here.is_left_by(Ok(Vec::new())));
        assert!(!here.is_left_by(Err(io::ErrorKind::TimedOut.into())));
        let socket = PgConnection { host: "/run/pg".to_owned(), ..PgConnection::default() };
        let found = Peer::all_of(&socket).await;
        assert!(!Peer::Unix("/run/pg/.s.PGSQL.5432".into()).is_left_by(found));
        let found = Peer::all_of(&PgConnection::default()).await;
        assert!(here.is_left_by(found), "localhost");
    }

    #[tokio::test]
    async fn a_place_has_its_socket_or_its_addresses() {
        let peers = async |host: &str| {
            let place = PgConnection { host: host.to_owned(), ..PgConnection::default() };
            Peer::all_of(&place).await.expect(host)
        };
        assert_eq!(peers("/run/pg").await, [Peer::Unix("/run/pg/.s.PGSQL.5432".into())]);
        let address = |text: &str| Peer::Tcp(text.parse().expect(text));
        assert_eq!(peers("192.0.2.1").await, [address("192.0.2.1:5432")]);
        assert_eq!(peers("::1").await, [address("[::1]:5432")]);
    }
}
