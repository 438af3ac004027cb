//! An HTTP proxy that opens tunnels, demands a password, or refuses, and remembers what it was
//! asked for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::backend_stub::Pair;

/// What the proxy does with those who ask.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// Opens the way.
    Open,
    /// Opens it for who says this as `Proxy-Authorization`, and answers 407 otherwise.
    Wants(&'static str),
    /// Answers with this status.
    Answers(u16),
    /// Answers with something that is no HTTP.
    Garbage,
    /// Reads the request and says nothing.
    Silent,
}

/// A running proxy; it ends with the value.
pub struct ConnectProxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl ConnectProxy {
    /// Every way leads to `target`, whatever name was asked for.
    pub async fn start(manner: Manner, target: SocketAddr) -> Self {
        Self::start_with(manner, target, None).await
    }

    /// A proxy to which the way itself is TLS.
    pub async fn tls(server: &Pair, target: SocketAddr) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(server.chain.clone(), server.private_key())
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::start_with(Manner::Open, target, Some(acceptor)).await
    }

    async fn start_with(manner: Manner, target: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (mut tasks, seen) = (JoinSet::new(), Arc::clone(&asked));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, seen) = (tls.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    match tls {
                        None => serve(tcp, manner, target, &seen).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(tcp).await else { return };
                            serve(stream, manner, target, &seen).await;
                        }
                    }
                });
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The host and port of every `CONNECT`, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("asked").clone()
    }
}

async fn serve(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    manner: Manner,
    target: SocketAddr,
    asked: &Mutex<Vec<String>>,
) {
    let Some(head) = head(&mut client).await else { return };
    let mut words = head.split_whitespace();
    let (method, to) = (words.next(), words.next().unwrap_or_default().to_owned());
    assert_eq!(method, Some("CONNECT"), "{head}");
    asked.lock().expect("asked").push(to.clone());
    assert!(head.to_ascii_lowercase().contains(&format!("host: {to}")), "{head}");
    let status = match manner {
        Manner::Open => 200,
        Manner::Wants(said) if head.contains(&format!("roxy-authorization: {said}\r\n")) => 200,
        Manner::Wants(_) => 407,
        Manner::Answers(status) => status,
        Manner::Garbage => {
            client.write_all(b"220 mail.example ESMTP\r\n").await.ok();
            return;
        }
        Manner::Silent => std::future::pending().await,
    };
    let answer = if status == 200 {
        "HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n".to_owned()
    } else {
        format!("HTTP/1.1 {status} No\r\nContent-Length: 4\r\n\r\nnope")
    };
    if client.write_all(answer.as_bytes()).await.is_err() || status != 200 {
        return;
    }
    let Ok(mut backend) = TcpStream::connect(target).await else { return };
    copy_bidirectional(&mut client, &mut backend).await.ok();
}

/// The head of the request, with the empty line.
async fn head(client: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}
