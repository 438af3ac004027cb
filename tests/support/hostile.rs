//! Clients that mean no good: raw sockets, TLS without a certificate, HTTP/2 frames by hand.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A way to hold a connection for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Connects and is silent.
    Silent,
    /// Is silent after the TLS handshake.
    SilentTls,
    /// Has agreed on HTTP/2 and does not begin it.
    NoPreface,
    /// Begins HTTP/2, pings, and asks for nothing.
    OnlyPings,
    /// Begins HTTP/2, answers what it must, pings of the server included, and asks for nothing.
    AnswersPings,
    /// Sends 40,000 requests at once and reads no answer.
    Pipelined,
    /// Asks over HTTP/2 and has no room for the answers.
    NoWindow,
    /// Sends a request's head one byte at a time.
    DrippedHead,
}

pub const ATTACKS: [Attack; 8] = [
    Attack::Silent,
    Attack::SilentTls,
    Attack::NoPreface,
    Attack::OnlyPings,
    Attack::AnswersPings,
    Attack::Pipelined,
    Attack::NoWindow,
    Attack::DrippedHead,
];

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET /version` of `localhost`, as HPACK without its dynamic table.
const HEAD: &[u8] = b"\x82\x87\x04\x08/version\x01\x09localhost";
const REQUEST: &str = "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n";
const PAUSE: Duration = Duration::from_millis(50);

/// Who is attacked.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl Target {
    /// `authority` is the backend's CA certificate, PEM.
    pub fn new(address: SocketAddr, authority: &str) -> Self {
        Self::of(address, authority, None)
    }

    /// The same for a peer that shows a certificate, `own` with its key, both PEM.
    pub fn verified(address: SocketAddr, authority: &str, own: (&str, &str)) -> Self {
        Self::of(address, authority, Some(own))
    }

    fn of(address: SocketAddr, authority: &str, own: Option<(&str, &str)>) -> Self {
        let connector = |protocol: &[u8]| {
            let mut roots = RootCertStore::empty();
            let authority = CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM");
            roots.add(authority).expect("an authority");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots);
            let mut config = match own {
                None => config.with_no_client_auth(),
                Some((certificate, key)) => {
                    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
                    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                    let chain = vec![certificate.expect("a certificate")];
                    config.with_client_auth_cert(chain, key).expect("a pair")
                }
            };
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Self { address, http1: connector(b"http/1.1"), http2: connector(b"h2") }
    }

    /// Announces a body with `head`, sends `bytes` of it, as far as they are read, and leaves the
    /// rest out.
    pub async fn half_a_body(&self, head: &str, bytes: usize) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let mut stream = self.http1.connect(ServerName::from(self.address.ip()), stream).await?;
        stream.write_all(head.as_bytes()).await?;
        let piece = vec![b' '; 64 << 10];
        for _ in 0..bytes / piece.len() {
            if stream.write_all(&piece).await.is_err() {
                break; // refused
            }
        }
        stream.flush().await.ok();
        Ok(stream)
    }

    /// Asks for `path` and reads nothing of the answer.
    pub async fn ask_and_not_read(
        &self,
        path: &str,
        token: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = connect(Ipv4Addr::LOCALHOST, self.address).await?;
        let mut stream = self.http1.connect(ServerName::from(self.address.ip()), stream).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// The same over HTTP/2, `streams` times on one connection, without room for the answers.
    pub async fn ask_without_window(
        &self,
        path: &str,
        token: &str,
        streams: u32,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let mut stream = self.http2.connect(ServerName::from(self.address.ip()), stream).await?;
        stream.write_all(PREFACE).await?;
        // SETTINGS_INITIAL_WINDOW_SIZE is 0.
        stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
        // GET, https, and literals: `:path`, `:authority`, `authorization`.
        let mut head = b"\x82\x87\x04".to_vec();
        head.extend(literal(path));
        head.extend(b"\x01\x09localhost\x0f\x08");
        head.extend(literal(&format!("Bearer {token}")));
        for n in 0..streams {
            // END_STREAM and END_HEADERS.
            stream.write_all(&frame(1, 5, 2 * n + 1, &head)).await?;
        }
        stream.flush().await?;
        Ok(stream)
    }

    /// Holds one connection until the backend ends it.
    pub async fn attack(&self, attack: Attack, from: Ipv4Addr) -> io::Result<()> {
        let mut stream = connect(from, self.address).await?;
        if attack == Attack::Silent {
            return read_to_end(&mut stream).await;
        }
        let connector = match attack {
            Attack::NoPreface | Attack::OnlyPings | Attack::AnswersPings | Attack::NoWindow => {
                &self.http2
            }
            _ => &self.http1,
        };
        let name = ServerName::from(self.address.ip());
        let mut stream = connector.connect(name, stream).await?;
        match attack {
            Attack::Silent | Attack::SilentTls | Attack::NoPreface => {
                read_to_end(&mut stream).await
            }
            Attack::OnlyPings => only_pings(stream).await,
            Attack::AnswersPings => answers_pings(stream).await,
            Attack::Pipelined => pipelined(stream).await,
            Attack::NoWindow => {
                stream.write_all(PREFACE).await?;
                // SETTINGS_INITIAL_WINDOW_SIZE is 0.
                stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
                for id in [1, 3, 5] {
                    // END_STREAM and END_HEADERS.
                    stream.write_all(&frame(1, 5, id, HEAD)).await?;
                }
                stream.flush().await?;
                read_to_end(&mut stream).await
            }
            Attack::DrippedHead => {
                stream.write_all(b"GET /version HTTP/1.1\r\nx-long: ").await?;
                loop {
                    stream.write_all(b"x").await?;
                    stream.flush().await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// From any address of this host's loopback network, with little room for answers.
async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.connect(to).await
}

async fn read_to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<()> {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

async fn only_pings(stream: TlsStream<TcpStream>) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    write.write_all(PREFACE).await?;
    write.write_all(&frame(4, 0, 0, &[])).await?;
    let pings = async {
        loop {
            write.write_all(&frame(6, 0, 0, &[7; 8])).await?;
            write.flush().await?;
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        ended = pings => ended,
        ended = read_to_end(&mut read) => ended,
    }
}

async fn answers_pings(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    stream.write_all(PREFACE).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    stream.flush().await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
        stream.read_exact(&mut payload).await?;
        match (head[3], head[4] & ACK) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            (PING, 0) => stream.write_all(&frame(PING, ACK, 0, &payload)).await?,
            _ => {}
        }
        stream.flush().await?;
    }
}

async fn pipelined(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let thousand = REQUEST.repeat(1000);
    for _ in 0..40 {
        stream.write_all(thousand.as_bytes()).await?;
    }
    // Nothing is read: only a write that fails says that the connection is gone.
    loop {
        stream.write_all(b"G").await?;
        stream.flush().await?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// A text as HPACK has it, without Huffman's code.
fn literal(text: &str) -> Vec<u8> {
    let mut rest = text.len();
    let mut bytes = Vec::new();
    if rest < 127 {
        bytes.push(u8::try_from(rest).expect("small"));
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).expect("small") | 128);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).expect("small"));
    }
    bytes.extend(text.as_bytes());
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
