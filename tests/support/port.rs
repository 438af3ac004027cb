//! Ports of the loopback address.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A port that stays its test's own while nobody listens on it, and between two who do.
///
/// A port that is only closed goes to whoever asks next for any port: another test's server, or the
/// near end of its connections. The socket here is bound and never listens: those who are told the
/// port may listen on it, as long as they allow addresses to be used again, and nobody is given it.
#[derive(Debug)]
pub struct Port(TcpSocket);

impl Port {
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }
}
