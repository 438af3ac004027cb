//! A TCP relay between agent and backend that misbehaves on command, below TLS: what a bad
//! network does, without either side's help.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Closes a connection that was open before in place of its next answer: the backend has
    /// stored what the agent believes to be lost. New connections are relayed, because below TLS
    /// their handshake looks like an answer.
    AnswersLost,
}

/// A running relay; it ends with the value.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    lost: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Relays to `target` from a port of its own.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("a bound address");
        let (network, seen) = watch::channel(Network::Up);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, target, seen.clone(), Arc::clone(&counted)));
            }
        });
        Self { address, network, lost, accepting }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the relay does.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// How many connections were closed in place of an answer.
    pub fn answers_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.network.send_replace(Network::Down);
    }
}

/// One connection, until either side or the network ends it.
async fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    mut network: watch::Receiver<Network>,
    lost: Arc<AtomicU64>,
) {
    if *network.borrow_and_update() == Network::Down {
        return;
    }
    let mut open_before = false;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let mut request = vec![0; 16 << 10];
    let mut answer = vec![0; 16 << 10];
    loop {
        let now = *network.borrow();
        tokio::select! {
            changed = network.changed() => {
                if changed.is_err() || *network.borrow() == Network::Down {
                    return;
                }
                open_before = true;
            }
            read = client.read(&mut request), if now != Network::Silent => match read {
                Ok(length @ 1..) if server.write_all(&request[..length]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut answer), if now != Network::Silent => match read {
                Ok(length @ 1..) => {
                    if now == Network::AnswersLost && open_before {
                        lost.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    if client.write_all(&answer[..length]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
