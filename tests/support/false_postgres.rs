//! Something that answers in PostgreSQL's place and means no good: it speaks just enough of the
//! protocol to be listened to, and then does not stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evil {
    /// Announces a message of a gigabyte before anybody is logged in.
    LongMessage,
    /// Says something else than a server would.
    NotPostgres,
    /// Before the login is through.
    EndlessNotices,
    EndlessParameters,
    /// In the answer to the first statement.
    LongRow,
    EndlessRows,
    /// A hundred, and then the answer's end: cheap, and more than there can be.
    MoreRows,
    NoticesForRows,
    LongError,
    /// A column's type is made of another one, which is made of another one.
    EndlessTypes,
    /// In the answer to a statement that gives no rows.
    EndlessEnds,
}

impl Evil {
    pub const ALL: [Self; 11] = [
        Self::LongMessage,
        Self::NotPostgres,
        Self::EndlessNotices,
        Self::EndlessParameters,
        Self::LongRow,
        Self::EndlessRows,
        Self::MoreRows,
        Self::NoticesForRows,
        Self::LongError,
        Self::EndlessTypes,
        Self::EndlessEnds,
    ];
}

/// What stands where a startup packet has its version when somebody asks for TLS.
pub const SSL_REQUEST: u32 = 80_877_103;
/// What it sends on one connection when nobody stops it.
const SUPPLY_BYTES: u64 = 256 << 20;
const GIGABYTE: i32 = 1 << 30;
/// A column of eight bytes.
const ROW: [u8; 14] = [0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7];

pub struct FalsePostgres {
    pub address: SocketAddr,
    most: Arc<AtomicU64>,
    heard: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FalsePostgres {
    /// It says no to TLS, as an attacker in the middle does.
    pub async fn start(evil: Evil) -> Self {
        Self::start_with(evil, None).await
    }

    /// It speaks TLS, and does what it does inside.
    pub async fn start_tls(evil: Evil, tls: Arc<ServerConfig>) -> Self {
        Self::start_with(evil, Some(tls)).await
    }

    async fn start_with(evil: Evil, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let (most, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = (Arc::clone(&most), Arc::clone(&heard));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ((most, heard), tls) = (counted.clone(), tls.clone());
                tokio::spawn(async move {
                    let mut sent = 0;
                    // It was hung up on, sooner or later.
                    serve(stream, evil, tls, &mut sent, &heard).await.ok();
                    most.fetch_max(sent, Ordering::Relaxed);
                });
            }
        });
        Self { address, most, heard, task }
    }

    /// How many startup packets it got, each with a user and a database.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// The most bytes that were sent on a connection that has ended.
    pub fn most_sent(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for FalsePostgres {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    evil: Evil,
    tls: Option<Arc<ServerConfig>>,
    sent: &mut u64,
    heard: &AtomicU64,
) -> io::Result<()> {
    let mut length = stream.read_u32().await?;
    let mut version = stream.read_u32().await?;
    if version != SSL_REQUEST {
        heard.fetch_add(1, Ordering::Relaxed);
        let mut peer = Peer { stream, sent: 0, statements: 0, types: 100_000 };
        peer.skip(length - 8).await?;
        let served = peer.serve(evil).await;
        *sent = peer.sent;
        return served;
    }
    let Some(tls) = tls else {
        stream.write_all(b"N").await?;
        *sent = 1;
        return Box::pin(serve(stream, evil, None, sent, heard)).await;
    };
    stream.write_all(b"S").await?;
    let mut stream = TlsAcceptor::from(tls).accept(stream).await?;
    (length, version) = (stream.read_u32().await?, stream.read_u32().await?);
    assert_ne!(version, SSL_REQUEST, "inside TLS nobody asks for it");
    heard.fetch_add(1, Ordering::Relaxed);
    let mut peer = Peer { stream, sent: 0, statements: 0, types: 100_000 };
    peer.skip(length - 8).await?;
    let served = peer.serve(evil).await;
    *sent = peer.sent;
    served
}

/// One connection.
struct Peer<S> {
    stream: S,
    sent: u64,
    /// Statements that were described.
    statements: u32,
    /// The last type that was invented.
    types: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    async fn serve(&mut self, evil: Evil) -> io::Result<()> {
        match evil {
            Evil::LongMessage => return self.announce(b'S').await,
            Evil::NotPostgres => return self.flood(b"HTTP/1.1 400 Bad Request\r\n\r\n").await,
            _ => {}
        }
        self.send(&message(b'R', &[0; 4])).await?;
        if evil == Evil::EndlessNotices {
            return self.flood(&notice()).await;
        }
        let parameter = message(b'S', b"server_version\x0017.2\0");
        if evil == Evil::EndlessParameters {
            return self.flood(&parameter).await;
        }
        self.send(&[parameter, message(b'K', &[0; 8]), message(b'Z', b"I")].concat()).await?;
        let mut is_bound = false;
        loop {
            let (kind, length) = (self.stream.read_u8().await?, self.stream.read_u32().await?);
            self.skip(length - 4).await?;
            let end = [message(b'C', b"SET\0"), message(b'Z', b"I")].concat();
            match (kind, evil) {
                (b'Q', Evil::EndlessEnds) => return self.flood(&message(b'C', b"SET\0")).await,
                (b'Q', _) => self.send(&end).await?,
                (b'B', _) => is_bound = true,
                (b'S', Evil::EndlessTypes) if is_bound => {
                    is_bound = false;
                    let row = self.next_type();
                    self.send(&[message(b'2', b""), row, end].concat()).await?;
                }
                (b'S', _) if is_bound => {
                    is_bound = false;
                    self.answer(evil).await?;
                }
                (b'S', _) => self.describe(evil).await?,
                _ => {}
            }
        }
    }

    /// Describes a statement that has one column, or the driver's own question for a type.
    async fn describe(&mut self, evil: Evil) -> io::Result<()> {
        self.statements += 1;
        let types: &[u32] = match (evil, self.statements) {
            (Evil::EndlessTypes, 1) => &[100_000],
            (Evil::EndlessTypes, _) => &[19, 18, 26, 26, 26, 19, 26],
            _ => &[20],
        };
        let parameters: &[u8] = if types.len() > 1 { &[0, 1, 0, 0, 0, 26] } else { &[0, 0] };
        let count = u16::try_from(types.len()).expect("few").to_be_bytes();
        let columns = types.iter().flat_map(|kind| {
            [&b"c\0"[..], &[0; 6], &kind.to_be_bytes(), &[0, 8], &[0xff; 4], &[0, 1]].concat()
        });
        let columns: Vec<u8> = count.into_iter().chain(columns).collect();
        let parts = [(b'1', &[][..]), (b't', parameters), (b'T', &columns), (b'Z', &b"I"[..])];
        self.send(&parts.map(|(kind, body)| message(kind, body)).concat()).await
    }

    /// A domain over a type that is not known either.
    fn next_type(&mut self) -> Vec<u8> {
        self.types += 1;
        let field = |value: &[u8]| {
            [&u32::try_from(value.len()).expect("short").to_be_bytes()[..], value].concat()
        };
        let base = self.types.to_be_bytes();
        let none = 0xffff_ffff_u32.to_be_bytes().to_vec();
        let fields = [
            vec![0, 7],
            field(b"t"),
            field(b"d"),
            field(&[0; 4]),
            none,
            field(&base),
            field(b"s"),
            field(&[0; 4]),
        ];
        message(b'D', &fields.concat())
    }

    async fn answer(&mut self, evil: Evil) -> io::Result<()> {
        self.send(&message(b'2', b"")).await?;
        match evil {
            Evil::LongRow => self.announce(b'D').await,
            Evil::LongError => self.announce(b'E').await,
            Evil::NoticesForRows => self.flood(&notice()).await,
            Evil::MoreRows => {
                let rows = message(b'D', &ROW).repeat(100);
                self.send(&[rows, message(b'C', b"SELECT 100\0"), message(b'Z', b"I")].concat())
                    .await
            }
            _ => self.flood(&message(b'D', &ROW)).await,
        }
    }

    /// Announces a message of a gigabyte, and begins with it.
    async fn announce(&mut self, kind: u8) -> io::Result<()> {
        self.send(&[&[kind][..], &GIGABYTE.to_be_bytes()].concat()).await?;
        self.flood(&[0]).await
    }

    async fn flood(&mut self, message: &[u8]) -> io::Result<()> {
        let many = message.repeat((64 << 10) / message.len());
        while self.sent < SUPPLY_BYTES {
            self.send(&many).await?;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    async fn skip(&mut self, bytes: u32) -> io::Result<()> {
        let mut skipped = vec![0; usize::try_from(bytes).expect("fits")];
        self.stream.read_exact(&mut skipped).await.map(drop)
    }
}

fn notice() -> Vec<u8> {
    message(b'N', b"SNOTICE\0C00000\0Mhush\0\0")
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [&[kind][..], &length, body].concat()
}
