//! A TCP relay between agent and backend that misbehaves on command, below TLS: what a bad
//! network does, without either side's help.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the relay does from now on, to open connections as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Relays.
    Up,
    /// Closes every connection at once.
    Down,
    /// Keeps connections open and passes nothing on: only a timeout ends the wait.
    Silent,
    /// Closes open connections; accepts new ones and neither reads nor writes there.
    HalfOpen,
    /// Closes a connection that was open before in place of its next answer: the backend has
    /// stored what the agent believes to be lost. New connections are relayed, because below TLS
    /// their handshake looks like an answer.
    AnswersLost,
    /// Passes everything on, each piece this late and not faster than this.
    Slow { latency: Duration, bytes_per_s: u32 },
    /// Resets each connection in place of its byte with this number towards the backend.
    RequestReset(u64),
    /// The same towards the agent.
    AnswerReset(u64),
    /// Ends each connection in good order after this many bytes towards the agent.
    AnswerCut(u64),
    /// Sends the agent noise in place of what the backend says.
    Garbage,
    /// Sends the agent a fatal TLS alert in place of what the backend says.
    Alert,
}

/// `internal_error`, fatal, in a record of TLS 1.2 as before the handshake.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// A running relay; it ends with the value.
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    network: watch::Sender<Network>,
    struck: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Relays to `target` from a port of its own.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("a bound address");
        let (network, seen) = watch::channel(Network::Up);
        let (target, to) = watch::channel(target);
        let struck = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&struck);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = *to.borrow();
                tokio::spawn(relay(client, target, seen.clone(), Arc::clone(&counted)));
            }
        });
        Self { address, target, network, struck, accepting }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Relays new connections to another place.
    pub fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Changes what the relay does.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// How many connections were closed in place of an answer.
    pub fn answers_lost(&self) -> u64 {
        self.struck()
    }

    /// How many connections have suffered, whatever it was.
    pub fn struck(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.network.send_replace(Network::Down);
    }
}

/// One connection's two ends, and how much has passed each way since the network changed last.
struct Passage {
    client: TcpStream,
    server: TcpStream,
    requested: u64,
    answered: u64,
    open_before: bool,
    struck: Arc<AtomicU64>,
}

/// One connection, until either side or the network ends it.
async fn relay(
    client: TcpStream,
    target: SocketAddr,
    mut network: watch::Receiver<Network>,
    struck: Arc<AtomicU64>,
) {
    match *network.borrow_and_update() {
        Network::Down => return,
        Network::HalfOpen => _ = struck.fetch_add(1, Ordering::Relaxed),
        _ => {}
    }
    if *network.borrow() == Network::HalfOpen {
        network.changed().await.ok();
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (requested, answered) = (0, 0);
    let mut passage = Passage { client, server, requested, answered, open_before: false, struck };
    let mut request = vec![0; 16 << 10];
    let mut answer = vec![0; 16 << 10];
    loop {
        let now = *network.borrow();
        tokio::select! {
            changed = network.changed() => {
                let network = *network.borrow();
                if changed.is_err() || matches!(network, Network::Down | Network::HalfOpen) {
                    return;
                }
                if network == Network::Silent {
                    passage.strikes();
                }
                (passage.open_before, passage.requested, passage.answered) = (true, 0, 0);
            }
            read = passage.client.read(&mut request), if now != Network::Silent => match read {
                Ok(length @ 1..) if passage.request(now, &request[..length]).await.is_some() => {}
                _ => return,
            },
            read = passage.server.read(&mut answer), if now != Network::Silent => match read {
                Ok(length @ 1..) if passage.answer(now, &answer[..length]).await.is_some() => {}
                _ => return,
            },
        }
    }
}

impl Passage {
    /// Bytes for the backend. `None` when that was the end of the connection.
    async fn request(&mut self, network: Network, bytes: &[u8]) -> Option<()> {
        let passing = match network {
            Network::RequestReset(at) => at.saturating_sub(self.requested),
            _ => u64::MAX,
        };
        let end = bytes.len().min(usize::try_from(passing).unwrap_or(usize::MAX));
        delay(network, bytes.len()).await;
        self.server.write_all(&bytes[..end]).await.ok()?;
        self.requested += end as u64;
        if end < bytes.len() {
            return self.reset();
        }
        Some(())
    }

    /// Bytes for the agent.
    async fn answer(&mut self, network: Network, bytes: &[u8]) -> Option<()> {
        let passing = match network {
            Network::AnswerReset(at) | Network::AnswerCut(at) => at.saturating_sub(self.answered),
            Network::AnswersLost if self.open_before => 0,
            Network::Garbage | Network::Alert => 0,
            _ => u64::MAX,
        };
        let end = bytes.len().min(usize::try_from(passing).unwrap_or(usize::MAX));
        delay(network, bytes.len()).await;
        self.client.write_all(&bytes[..end]).await.ok()?;
        self.answered += end as u64;
        if end == bytes.len() {
            return Some(());
        }
        match network {
            Network::AnswerReset(_) => return self.reset(),
            Network::Alert => self.client.write_all(&ALERT).await.ok()?,
            Network::Garbage => {
                let noise: Vec<u8> = (0..bytes.len()).map(|_| fastrand::u8(..)).collect();
                self.client.write_all(&noise).await.ok()?;
            }
            _ => {}
        }
        self.strikes();
        self.client.shutdown().await.ok();
        None
    }

    /// Ends the connection towards both sides as a router does that has forgotten it.
    fn reset(&mut self) -> Option<()> {
        self.strikes();
        self.client.set_zero_linger().ok();
        self.server.set_zero_linger().ok();
        None
    }

    fn strikes(&self) {
        self.struck.fetch_add(1, Ordering::Relaxed);
    }
}

/// The time that `length` bytes take on this network.
async fn delay(network: Network, length: usize) {
    if let Network::Slow { latency, bytes_per_s } = network {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let sending = Duration::from_secs(1) * length / bytes_per_s.max(1);
        tokio::time::sleep(latency + sending).await;
    }
}
