//! TLS to PostgreSQL: real servers with certificates of a CA of the test's own, and attackers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::{ChannelBinding, PgConnection, PgTls, Roots, SslMode};
use rcgen::DnType;
use rustls::ServerConfig;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::backend_stub::{Authority, Flaw, Pair, set_mode};
use crate::support::false_postgres::{Evil, FalsePostgres};
use crate::support::postgres::Postgres;
use crate::support::{directory, until_async};

const LIMIT: Duration = Duration::from_secs(20);
/// Who may come how.
const HBA: &str = "local all all trust
hostssl all tls all trust
hostnossl all plain all trust
hostssl all cert all cert
host all scram all scram-sha-256
host all postgres all trust
";
const ROLES: &str = "CREATE ROLE tls LOGIN; CREATE ROLE plain LOGIN; CREATE ROLE cert LOGIN;
    SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD 'hush'";

/// A server with TLS, and what its clients need.
struct Site {
    server: Postgres,
    ca: Authority,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start(major: u32, flaw: Flaw) -> Self {
        Self::start_with(major, flaw, &[]).await
    }

    async fn start_with(major: u32, flaw: Flaw, more: &[(&'static str, &str)]) -> Self {
        let ca = Authority::new("the site's CA");
        let server = Postgres::start_on_tcp(major, |address| {
            let pair = ca.server_for(&[address], flaw);
            let settings = [
                ("ssl", "on"),
                ("ssl_ca_file", "root.crt"),
                ("ssl_cert_file", "server.crt"),
                ("ssl_key_file", "server.key"),
            ];
            let settings = settings.iter().chain(more).map(|(name, value)| {
                let value: &str = value;
                (*name, value.to_owned())
            });
            let files = vec![
                ("server.crt", pair.cert_pem.clone()),
                ("server.key", pair.key.serialize_pem()),
                ("root.crt", ca.pem()),
                ("pg_hba.conf", HBA.to_owned()),
            ];
            (settings.collect(), files)
        });
        server.execute("postgres", ROLES).await;
        let folder = directory();
        fs_err::write(folder.path().join("ca.crt"), ca.pem()).expect("write");
        Self { server, ca, folder }
    }

    fn roots(&self) -> Roots {
        Roots::File(self.folder.path().join("ca.crt"))
    }

    /// The certificate of a client, with its key.
    fn client(&self, ca: &Authority, name: &str) -> (PathBuf, PathBuf) {
        let pair = ca.client_with(|params| {
            params.distinguished_name.push(DnType::CommonName, name);
        });
        written(self.folder.path(), &pair)
    }

    fn place(&self, user: &str, tls: PgTls) -> PgConnection {
        PgConnection {
            host: self.server.address().to_owned(),
            user: user.to_owned(),
            password: (user == "scram").then(|| SecretString::from("hush")),
            connect_timeout: LIMIT,
            tls,
            ..PgConnection::default()
        }
    }

    /// Whether a session of `user` is encrypted, or why there is none.
    async fn session(&self, user: &str, tls: PgTls) -> Result<bool, String> {
        self.session_at(self.place(user, tls)).await
    }

    async fn session_at(&self, place: PgConnection) -> Result<bool, String> {
        let user = place.user.clone();
        let mut collector = collector(place);
        collector.collect(clock::now()).await.map_err(|error| error.to_string())?;
        let client = self.server.client("postgres").await;
        let encrypted = is_encrypted(&client, &user).await;
        drop(collector);
        let sql = "SELECT count(*) FROM pg_stat_activity
            WHERE usename = $1 AND application_name LIKE 'pganalytics-agent/%'";
        let gone =
            async || client.query_one(sql, &[&user]).await.expect("answers").get::<_, i64>(0) == 0;
        until_async("the session is gone", LIMIT, gone).await;
        Ok(encrypted)
    }
}

async fn is_encrypted(client: &Client, user: &str) -> bool {
    let sql = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE usename = $1 AND application_name LIKE 'pganalytics-agent/%'";
    client.query_one(sql, &[&user]).await.expect("one session").get(0)
}

fn written(folder: &Path, pair: &Pair) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
    fs_err::write(&certificate, &pair.cert_pem).expect("write");
    fs_err::write(&key, pair.key.serialize_pem()).expect("write");
    set_mode(&key, 0o600);
    (certificate, key)
}

fn collector(connection: PgConnection) -> PgStatsCollector {
    PgStatsCollector::new(PgStatsConfig { connection, ..PgStatsConfig::default() })
}

fn mode(mode: SslMode) -> PgTls {
    PgTls { mode, ..PgTls::default() }
}

async fn refused(place: PgConnection, expected: &[&str]) {
    let user = place.user.clone();
    let error = collector(place).collect(clock::now()).await.expect_err(&user).to_string();
    for expected in expected {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(!error.contains("hush"), "{error}");
}

/// Each mode encrypts as libpq would, on old and new majors; where the server lets a role in only
/// with
/// TLS, or only without, the modes that may do otherwise do.
#[tokio::test(flavor = "multi_thread")]
async fn each_mode_encrypts_as_libpq_would() {
    for major in [10, 14, 18] {
        let site = Site::start(major, Flaw::None).await;
        let check = async |of: SslMode, any: bool, tls: Option<bool>, plain: Option<bool>| {
            for (user, expected) in [("postgres", Some(any)), ("tls", tls), ("plain", plain)] {
                let roots = match of {
                    SslMode::VerifyCa | SslMode::VerifyFull => site.roots(),
                    _ => Roots::Unnamed,
                };
                let session = site.session(user, PgTls { mode: of, roots, ..PgTls::default() });
                let session = session.await;
                assert_eq!(session.clone().ok(), expected, "{major} {of:?} {user}: {session:?}");
                let refused = session.err().unwrap_or_else(|| "pg_hba.conf must".to_owned());
                assert!(refused.contains("pg_hba.conf must"), "{refused}");
            }
        };
        check(SslMode::Disable, false, None, Some(false)).await;
        check(SslMode::Allow, false, Some(true), Some(false)).await;
        check(SslMode::Prefer, true, Some(true), Some(false)).await;
        check(SslMode::Require, true, Some(true), None).await;
        check(SslMode::VerifyCa, true, Some(true), None).await;
        check(SslMode::VerifyFull, true, Some(true), None).await;
    }
}

/// A certificate is refused for what is wrong with it, and only by the modes that ask for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_certificate_is_refused_with_its_reason() {
    let (require, ca, full) = (SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull);
    for (flaw, told, hint) in [
        (Flaw::OtherName, "is for other.example, not for 127.", "hint: write postgres.host as"),
        (Flaw::Expired, "the server's certificate expired at 2020-01-01", "hint: renew"),
        (Flaw::NotYetValid, "is valid from 2200-01-01", "hint: is this host's clock behind?"),
        (Flaw::SelfSigned, "is from a CA that this host does not trust", "hint: set postgres.ssl"),
    ] {
        let site = Site::start(17, flaw).await;
        let with = |mode| PgTls { mode, roots: site.roots(), ..PgTls::default() };
        assert_eq!(site.session("tls", mode(require)).await, Ok(true), "{flaw:?}");
        assert_eq!(site.session("tls", mode(SslMode::Prefer)).await, Ok(true), "{flaw:?}");
        refused(site.place("tls", with(full)), &[told, hint]).await;
        if flaw == Flaw::OtherName {
            assert_eq!(site.session("tls", with(ca)).await, Ok(true));
            assert_eq!(site.session("tls", with(require)).await, Ok(true));
            continue;
        }
        refused(site.place("tls", with(ca)), &[told, hint]).await;
        // With a root certificate, `require` verifies as libpq's does.
        refused(site.place("tls", with(require)), &[told, hint]).await;
    }
}

/// Another CA's certificate is refused, the operating system's CAs do not know it either; and the
/// very certificate of the server can be named in the place of its CA's.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_named_ca_is_trusted() {
    let site = Site::start(17, Flaw::None).await;
    let file = site.folder.path().join("roots.crt");
    let with = |mode, roots| PgTls { mode, roots, ..PgTls::default() };
    fs_err::write(&file, Authority::new("the site's CA").pem()).expect("write");
    let untrusted =
        ["is from a CA that this host does not trust", "hint: set postgres.sslrootcert"];
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        refused(site.place("tls", with(mode, Roots::File(file.clone()))), &untrusted).await;
    }
    refused(site.place("tls", with(SslMode::VerifyFull, Roots::System)), &untrusted).await;
    let own = fs_err::read_to_string(site.server.data_dir().join("server.crt")).expect("read");
    fs_err::write(&file, own).expect("write");
    let pinned = with(SslMode::VerifyFull, Roots::File(file.clone()));
    assert_eq!(site.session("tls", pinned.clone()).await, Ok(true));
    fs_err::write(&file, "nothing").expect("write");
    refused(site.place("tls", pinned.clone()), &["holds no certificate", "hint: it must"]).await;
    fs_err::remove_file(&file).expect("remove");
    refused(site.place("tls", pinned), &["postgres.sslrootcert: ", "roots.crt"]).await;
}

/// A server that asks for the agent's certificate gets it, and says what is wrong with another.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_shows_its_certificate() {
    for major in [10, 13, 18] {
        let site = Site::start(major, Flaw::None).await;
        let with =
            |own| PgTls { mode: SslMode::VerifyFull, roots: site.roots(), own, ..PgTls::default() };
        let own = site.client(&site.ca, "cert");
        assert_eq!(site.session("cert", with(Some(own.clone()))).await, Ok(true), "{major}");
        refused(site.place("cert", with(None)), &["certificate", "hint: pg_hba.conf must"]).await;
        set_mode(&own.1, 0o640);
        let open = ["can be read by others (mode 0640)", "hint: chmod 600"];
        refused(site.place("cert", with(Some(own))), &open).await;
        let own = site.client(&site.ca, "other");
        refused(site.place("cert", with(Some(own))), &["authentication failed"]).await;
        let own = site.client(&Authority::new("a stranger"), "cert");
        let stranger = ["the server ends TLS", "hint: postgres.sslcert must be of a CA"];
        refused(site.place("cert", with(Some(own))), &stranger).await;
        let (certificate, _) = site.client(&site.ca, "cert");
        let other = site.folder.path().join("other.key");
        fs_err::write(&other, rcgen::KeyPair::generate().expect("a key").serialize_pem())
            .expect("write");
        set_mode(&other, 0o600);
        let apart = ["do not belong together", "hint: postgres.sslkey"];
        refused(site.place("cert", with(Some((certificate, other)))), &apart).await;
    }
}

/// A server that speaks nothing newer than TLS 1.2.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_1_2_is_reached() {
    let only = [("ssl_max_protocol_version", "TLSv1.2")];
    let site = Site::start_with(15, Flaw::None, &only).await;
    let roots = site.roots();
    let bound = PgTls {
        mode: SslMode::VerifyFull,
        roots,
        channel_binding: ChannelBinding::Require,
        own: None,
    };
    assert_eq!(site.session("scram", bound).await, Ok(true));
}

/// A SCRAM login is bound to its TLS session where both can, and refused where it must be and is
/// not: without TLS, and with a server that lets in without asking.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_bound_to_its_session() {
    for major in [10, 11, 18] {
        let site = Site::start(major, Flaw::None).await;
        let with = |mode, channel_binding| PgTls { mode, channel_binding, ..PgTls::default() };
        let bound = with(SslMode::Require, ChannelBinding::Require);
        for binding in [ChannelBinding::Disable, ChannelBinding::Prefer] {
            let tls = with(SslMode::Require, binding);
            assert_eq!(site.session("scram", tls).await, Ok(true), "{major} {binding:?}");
        }
        let hint = "hint: postgres.channel_binding = \"require\" takes TLS and scram-sha-256";
        let unbound = ["server did not use channel binding", hint];
        if major == 10 {
            refused(site.place("scram", bound.clone()), &unbound).await;
        } else {
            assert_eq!(site.session("scram", bound.clone()).await, Ok(true), "{major}");
        }
        refused(site.place("tls", bound), &unbound).await;
        let plain = with(SslMode::Disable, ChannelBinding::Require);
        refused(site.place("scram", plain), &unbound).await;
        let mut nobody = site.place("scram", mode(SslMode::Require));
        nobody.password = None;
        refused(nobody, &["hint: the server asks for a password: set postgres.password,"]).await;
    }
}

/// Takes TLS with a certificate of its own, and goes on to the server with TLS: what is said on one
/// side is said on the other.
async fn in_the_middle(listener: TcpListener, own: Arc<ServerConfig>, server: String) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (own, server) = (Arc::clone(&own), server.clone());
        tokio::spawn(async move {
            let mut request = [0; 8];
            client.read_exact(&mut request).await?;
            client.write_all(b"S").await?;
            let mut client = TlsAcceptor::from(own).accept(client).await?;
            let mut socket = TcpStream::connect((server.as_str(), 5432)).await?;
            socket.write_all(&request).await?;
            assert_eq!(socket.read_u8().await?, b'S');
            let name = rustls::pki_types::ServerName::try_from(server).expect("a name");
            let mut server = TlsConnector::from(trusting()).connect(name, socket).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

/// A client that asks nothing of a certificate.
fn trusting() -> Arc<rustls::ClientConfig> {
    use pganalytics::link::tls::{Trust, client_config};
    Arc::new(client_config(Trust::Anything, None).expect("a configuration"))
}

fn server_config(pair: &Pair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(pair.chain.clone(), pair.private_key())
        .expect("a pair");
    Arc::new(config)
}

fn at(address: SocketAddr, place: PgConnection) -> PgConnection {
    PgConnection { host: address.ip().to_string(), port: address.port(), ..place }
}

/// Who stands between and has no certificate of the CA gets no login: `require`, which does not
/// look, is helped by the binding of SCRAM, and without that lets him in.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_stands_between_is_found_out() {
    let site = Site::start(17, Flaw::None).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let pair = Authority::new("a stranger").server(Flaw::None);
    let server = site.server.address().to_owned();
    let between = tokio::spawn(in_the_middle(listener, server_config(&pair), server));
    let there = |tls| at(address, site.place("scram", tls));
    let with = |mode, roots| PgTls { mode, roots, ..PgTls::default() };
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let untrusted = ["is from a CA that this host does not trust"];
        refused(there(with(mode, site.roots())), &untrusted).await;
    }
    refused(there(mode(SslMode::Require)), &["channel binding"]).await;
    let unbound = PgTls { channel_binding: ChannelBinding::Disable, ..mode(SslMode::Require) };
    assert_eq!(site.session_at(there(unbound)).await, Ok(true), "so it stood between");
    between.abort();
}

/// Who answers no to the question for TLS hears nothing more where TLS must be.
#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_not_taken_where_tls_must_be() {
    let site = directory();
    let file = site.path().join("ca.crt");
    fs_err::write(&file, Authority::new("a CA").pem()).expect("write");
    for of in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let server = FalsePostgres::start(Evil::MoreRows).await;
        let tls = PgTls { roots: Roots::File(file.clone()), ..mode(of) };
        let password = Some(SecretString::from("hush"));
        let place = at(server.address, PgConnection { tls, password, ..PgConnection::default() });
        let told = format!("no TLS there, and postgres.sslmode is {:?}", of.name());
        refused(place, &[&told, "hint: set ssl = on in postgresql.conf"]).await;
        until_async("it has noticed", LIMIT, async || server.most_sent() > 0).await;
        assert_eq!((server.most_sent(), server.heard()), (1, 0), "{of:?}");
    }
}

/// What answers the question for TLS with something else is not PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn noise_in_place_of_an_answer_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let noise = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok();
        }
    });
    let told = ["does not speak PostgreSQL's protocol", "hint: is it PostgreSQL that answers"];
    refused(at(address, PgConnection::default()), &told).await;
    noise.abort();
}

/// The bounds on what a server says hold inside TLS, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_stop_is_hung_up_on_inside_tls() {
    let ca = Authority::new("a CA");
    let tls = server_config(&ca.server(Flaw::None));
    for evil in Evil::ALL {
        let server = FalsePostgres::start_tls(evil, Arc::clone(&tls)).await;
        let tls = mode(SslMode::Require);
        let connect_timeout = LIMIT;
        let place = PgConnection { tls, connect_timeout, ..PgConnection::default() };
        refused(at(server.address, place), &["hint: is it PostgreSQL that answers there?"]).await;
        assert_eq!(server.heard(), 1, "{evil:?}");
    }
}

/// A collection that was given up is cancelled at the server, over TLS as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_cancelled_over_tls() {
    let site = Site::start(17, Flaw::None).await;
    let mut config = PgStatsConfig {
        connection: site.place("postgres", mode(SslMode::Require)),
        ..PgStatsConfig::default()
    };
    config.timeouts.lock = LIMIT * 3;
    config.timeouts.statement = LIMIT * 4;
    config.timeouts.client = LIMIT * 5;
    let mut collector = PgStatsCollector::new(config);
    collector.collect(clock::now()).await.expect("collects");
    let blocker = site.server.client("postgres").await;
    let lock = "BEGIN; LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE";
    blocker.batch_execute(lock).await.expect("locks");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
        AND application_name LIKE 'pganalytics-agent/%'";
    let waiting = async || blocker.query_one(sql, &[]).await.expect("answers").get::<_, i64>(0);
    tokio::select! {
        ended = collector.collect(clock::now()) => panic!("{ended:?}"),
        () = until_async("it waits", LIMIT, async || waiting().await == 1) => {}
    }
    assert_eq!(waiting().await, 1, "nobody has cancelled it yet");
    // The next collection does that first, and is given up as well.
    tokio::select! {
        ended = collector.collect(clock::now()) => panic!("{ended:?}"),
        () = until_async("it was cancelled", LIMIT, async || waiting().await == 0) => {}
    }
    blocker.batch_execute("ROLLBACK").await.expect("unlocks");
}
